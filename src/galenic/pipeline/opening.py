"""Open the network that suits a cohort, and the cohort's inputs for that network."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from galenic.core.errors import ConfigError, DataError
from galenic.core.progress import tell
from galenic.core.run import Run
from galenic.data.cohort import Cohort
from galenic.data.tabular import TabularEncoder
from galenic.data.values import Signal
from galenic.models.backbone import Backbone, Pool, open_backbone
from galenic.pipeline.config import DEFAULT_BACKBONES, InputConfig
from galenic.pipeline.inputs import Array, Inputs, single_input

# How a table was encoded.
ENCODING = "table.json"
# What takes the arguments of `open_inputs` and gives what it gives.
Opener = Callable[..., tuple[Backbone, Inputs]]


def open_inputs(
    cohort: Cohort,
    train: Array,
    run: Run,
    *,
    backbone: str,
    pool: Pool = "auto",
    config: InputConfig,
    open_network: Callable[..., Backbone] = open_backbone,
    encoder: TabularEncoder | None = None,
) -> tuple[Backbone, Inputs]:
    """The network and what it reads; `run` is told what was opened.

    Args:
        cohort: One input column.
        train: Rows that a table's encoding is learnt from; the first says how many leads there are.
        run: Gets `table.json` where the input is a table, and data and weights in its provenance.
        backbone: As for `open_backbone`, or `auto` for the builtin network of the modality.
        pool: As for `open_backbone`.
        config: Sizes and channels.
        open_network: What opens it, where `open_backbone` is not enough.
        encoder: Of a table, where it was learnt before.

    Raises:
        DataError: If the cohort has several inputs.
        ConfigError: If leads are asked of what is no tracing.
        BackboneError: If the network cannot be opened, or does not read this modality.
    """
    column, modality = single_input(cohort)
    if config.ecg is not None and modality != "ecg":
        raise ConfigError(f"The input is {modality}, no tracing.", where="input.ecg")
    channels, table = config.channels, None
    if modality == "table":
        encoder = encoder or TabularEncoder.fit(cohort.features(), train)
        table = encoder.transform(cohort.features())
        run.write_json(ENCODING, encoder.state())
        channels = table.shape[1]
    elif modality == "ecg" and channels is None and len(cohort):
        # Leads are no colours: a network of three channels is widened to as many as there are.
        value = cohort.read(int(train[0]))[column]
        channels = len(value.samples) if isinstance(value, Signal) else None
    opened = open_network(
        DEFAULT_BACKBONES[modality] if backbone == "auto" else backbone,
        modality=modality,
        channels=channels,
        size=config.sides,
        max_length=config.max_length,
        ecg=None if config.ecg is None else config.ecg.spec(),
        pool=pool,
    )
    inputs = Inputs(cohort, opened, table=table)
    run.update_provenance(data=describe(cohort), weights=weights_of(opened))
    if inputs.cut is not None:
        cut = inputs.cut
        run.update_provenance(data={"cut": cut.to_dict()})
        tell(
            f"{cut.texts} of {len(cohort)} texts are longer than the {cut.window} tokens that the "
            f"backbone reads: {cut.share:.1%} of all tokens are cut off at the end."
        )
    return opened, inputs


def require_same(run: Run, cohort: Cohort) -> None:
    """Check that a run which is taken up or opened again finds the samples that it began with.

    Args:
        run: Asked before anything of it is written anew.
        cohort: As it is now.

    Raises:
        DataError: If the manifest has changed: its parts would be others, and test patients among
            those that were trained on.
    """
    known = run.provenance.get("data") or {}
    if known.get("fingerprint", cohort.fingerprint) != cohort.fingerprint:
        raise DataError(
            "The manifest has changed since this run began.",
            where=cohort.name,
            expected="the same rows in the same order, with the same inputs, labels and parts",
            next_step="Put it back as it was, or begin a new run.",
        )


def describe(cohort: Cohort) -> dict[str, object]:
    """What the provenance of a run says of its data."""
    found: dict[str, object] = {
        "fingerprint": cohort.fingerprint,
        "name": cohort.name,
        "title": cohort.title,
        "license": cohort.license,
        "n": len(cohort),
        "patients": int(np.unique(cohort.patient_ids).size),
        "inputs": list(cohort.inputs),
    }
    label = cohort.label
    if label is None:
        return found | {"kind": "unlabelled", "classes": []}
    return found | {"kind": label.kind, "classes": list(label.classes)}


def weights_of(backbone: Backbone) -> dict[str, str]:
    """What the provenance of a run says of its network."""
    return {"backbone": backbone.spec, "fingerprint": backbone.fingerprint}
