"""One manifest with several inputs: a network a modality, and samples that may lack some."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import Dataset

from galenic.core.errors import ConfigError, DataError, nearest
from galenic.core.run import Run
from galenic.data.augment import AugmentConfig
from galenic.data.cohort import Cohort
from galenic.data.manifest import require_column
from galenic.models.backbone import Backbone, Pool
from galenic.models.lego.assembly import Assembly
from galenic.models.lego.block import LegoBlock
from galenic.pipeline.config import InputConfig
from galenic.pipeline.frozen import FrozenCache
from galenic.pipeline.inputs import Array, Collate, Inputs, single_input
from galenic.pipeline.opening import open_inputs

TOKENS = "tokens"


@dataclass
class Modality:
    """One input of a cohort, and the network that reads it.

    Attributes:
        name: Column of the manifest, or name of a group of columns.
        cohort: All rows, with this input alone.
        backbone: Its network.
        inputs: What the network reads.
        present: Bool [n], which rows have it.
        augmented: As `inputs`, drawn afresh every epoch; None where nothing is varied.
        ahead: States [n, D] by row, where the network is frozen and they were computed.
    """

    name: str
    cohort: Cohort
    backbone: Backbone
    inputs: Inputs
    present: Array
    augmented: Inputs | None = None
    ahead: dict[int, Array] = field(default_factory=dict)

    @property
    def kind(self) -> str:
        """image, ecg, text, table, ..."""
        return self.inputs.modality

    @property
    def frozen(self) -> bool:
        """Whether nothing of the network trains."""
        return not any(p.requires_grad for p in self.backbone.parameters())

    def having(self, rows: Array) -> Array:
        """Those of `rows` that have this input."""
        return rows[self.present[rows]]

    def compute(self, rows: Array, cache: FrozenCache) -> None:
        """Run the frozen network once over those of `rows` that have this input."""
        wanted = [int(row) for row in self.having(rows) if int(row) not in self.ahead]
        found = cache.tokens(self.backbone, self.inputs, wanted)
        self.ahead.update(zip(wanted, found, strict=True))

    def example(self, row: int, training: bool) -> Mapping[str, Array]:
        """What the encoder takes of one row."""
        if training and self.augmented is not None:
            return self.augmented[row]
        if row in self.ahead:
            return {TOKENS: np.array(self.ahead[row])}
        return self.inputs[row]


def split_inputs(cohort: Cohort, tables: Mapping[str, Sequence[str]]) -> dict[str, Cohort]:
    """The cohort of each input alone, with all rows.

    Args:
        cohort: Any number of inputs.
        tables: Groups of columns that are an input of their own; the other columns of a table
            stay together.

    Raises:
        ConfigError: If a group has the name of another input, or a column stands in two.
        DataError: If a column is not there, or is the label.
    """
    found: dict[str, Cohort] = {}
    taken: list[str] = []
    for name, columns in tables.items():
        if name in cohort.inputs and name != "table":
            raise ConfigError(f"'{name}' is a column and a group of columns.", where="tables")
        labels = cohort.label.columns if cohort.label else ()
        for column in columns:
            require_column(column, cohort.table.columns)
            if column in taken or column in labels or column in cohort.inputs:
                raise ConfigError(
                    f"Column '{column}' stands in two places.",
                    where=f"tables.{name}",
                    expected="each column in one group, and no label",
                )
            taken.append(column)
        found[name] = replace(cohort, inputs={name: "table"}, feature_columns=tuple(columns))
    for name, kind in cohort.inputs.items():
        features: tuple[str, ...] = ()
        if kind == "table":
            features = tuple(c for c in cohort.feature_columns if c not in taken)
            if not features:
                continue
        found[name] = replace(cohort, inputs={name: kind}, feature_columns=features)
    return found


def presence(cohort: Cohort) -> Array:
    """Bool [n]: the rows whose one input is there; of a table, at least one of its columns."""
    column, kind = single_input(cohort)
    if kind == "table":
        return cohort.features().notna().any(axis=1).to_numpy()
    cells = cohort.table[column]
    return (cells.notna() & (cells.astype(str).str.strip() != "")).to_numpy()


def open_modalities(
    cohort: Cohort,
    train: Array,
    run: Run,
    *,
    backbone: str,
    backbones: Mapping[str, str],
    tables: Mapping[str, Sequence[str]],
    pool: Pool,
    config: InputConfig,
    configs: Mapping[str, InputConfig],
    used: Array,
    seed: int,
) -> list[Modality]:
    """Open a network for every input of a cohort.

    Args:
        cohort: The samples.
        train: Training rows.
        run: Told what was opened.
        backbone: Network of every input that `backbones` does not name.
        backbones: Network by input.
        tables: As for :func:`split_inputs`.
        pool: As for `open_backbone`.
        config: Sizes of every input that `configs` does not name.
        configs: Sizes by input.
        used: Every row of the split.
        seed: Of the augmentation.

    Raises:
        ConfigError: If an input is named that is not there.
        DataError: If an input is there in no training row, or a row has none.
    """
    parts = split_inputs(cohort, tables)
    for key, named in (("backbones", backbones), ("inputs", configs)):
        for name in named:
            if name not in parts:
                raise ConfigError(
                    f"There is no input '{name}'. {nearest(name, parts)}".strip(),
                    where=key,
                    expected=", ".join(parts),
                )
    there = {name: presence(part) for name, part in parts.items()}
    _require_some(cohort, there, used)
    found, tabular = [], {}
    for name, part in parts.items():
        rows = train[there[name][train]]
        if not len(rows):
            raise DataError(
                f"No training sample has '{name}'.", where=cohort.name, expected="at least one"
            )
        options = configs.get(name, config)
        network, inputs = open_inputs(
            part, rows, run, backbone=backbones.get(name, backbone), pool=pool, config=options
        )
        if inputs.modality == "table":
            tabular[name] = run.read_json("table.json")
        augmented = _augmented(part, network, options.augment, seed, inputs)
        found.append(Modality(name, part, network, inputs, there[name], augmented))
    if len(tabular) > 1:
        (run.path / "table.json").unlink(missing_ok=True)
        run.write_json("tables.json", tabular)
    run.update_provenance(
        data={
            "fingerprint": cohort.fingerprint,
            "inputs": {m.name: m.kind for m in found},
            "present": {m.name: int(m.present[used].sum()) for m in found},
        },
        weights={
            "backbone": " + ".join(dict.fromkeys(m.backbone.spec for m in found)),
            "fingerprint": " + ".join(m.backbone.fingerprint for m in found),
        },
    )
    return found


def _augmented(
    part: Cohort, network: Backbone, augment: AugmentConfig | None, seed: int, inputs: Inputs
) -> Inputs | None:
    if augment is None or inputs.transform is None:
        return None
    return Inputs(part, network, augment=augment, seed=seed)


def _require_some(cohort: Cohort, there: Mapping[str, Array], used: Array) -> None:
    lacking = used[~np.stack(list(there.values())).any(axis=0)[used]]
    if len(lacking):
        rows = ", ".join(map(str, sorted(lacking)[:6]))
        raise DataError(
            f"{len(lacking)} samples have none of the inputs.",
            where=f"{cohort.name}, rows {rows}{' ...' if len(lacking) > 6 else ''}",
            expected=f"at least one of: {', '.join(there)}",
            next_step="Leave these rows out.",
        )


class PairedRows(Dataset[dict[str, Any]]):
    """Chosen rows of several modalities, each with its label; what is missing is left out.

    Args:
        modalities: In the order that :class:`PairedCollate` and :class:`Fed` have too.
        rows: Row numbers in the manifest.
        labels: Targets of the whole cohort.
        training: Draw augmentations.
    """

    def __init__(
        self,
        modalities: Sequence[Modality],
        rows: Array,
        labels: Array,
        *,
        training: bool = False,
    ) -> None:
        self.modalities, self.rows, self.labels = list(modalities), np.asarray(rows), labels
        self.training = training

    def __len__(self) -> int:
        return len(self.rows)

    @property
    def lengths(self) -> Array | None:
        """Tokens of the texts of each sample, where there are texts."""
        texts = [m for m in self.modalities if m.inputs.lengths is not None]
        counts = [np.where(m.present, m.inputs.lengths, 0)[self.rows] for m in texts]
        return np.sum(counts, axis=0) if counts else None

    def __getitem__(self, place: int) -> dict[str, Any]:
        row = int(self.rows[place])
        parts = {
            at: m.example(row, self.training)
            for at, m in enumerate(self.modalities)
            if m.present[row]
        }
        return {"parts": parts, "labels": np.asarray(self.labels[row])}

    def set_epoch(self, epoch: int) -> None:
        """Pass the epoch on to what draws."""
        for modality in self.modalities:
            if modality.augmented is not None:
                modality.augmented.set_epoch(epoch)


class PairedCollate:
    """Samples to one batch: `labels`, `present` [B, M], and `PLACE.KEY` for every modality.

    A sample that lacks a modality has zeros in its place, which nothing looks at.
    """

    def __init__(self, modalities: Sequence[Modality]) -> None:
        self.collates = [Collate.of(m.backbone) for m in modalities]

    def __call__(self, examples: Sequence[Mapping[str, Any]]) -> dict[str, Tensor]:
        """Tensors [B, ...] by key."""
        batch = {"labels": torch.from_numpy(np.stack([e["labels"] for e in examples]))}
        present = torch.zeros(len(examples), len(self.collates), dtype=torch.bool)
        for at, collate in enumerate(self.collates):
            found = [example["parts"].get(at) for example in examples]
            present[:, at] = torch.tensor([part is not None for part in found])
            model = next((part for part in found if part is not None), None)
            if model is None:
                continue
            empty = {key: np.zeros_like(value) for key, value in model.items()}
            filled = [empty if part is None else part for part in found]
            one = _states(filled) if TOKENS in model else collate(filled)
            batch |= {f"{at}.{key}": value for key, value in one.items()}
        return batch | {"present": present}


def _states(parts: Sequence[Mapping[str, Array]]) -> dict[str, Tensor]:
    """States [B, n, D] computed ahead, padded, with a mask where their lengths differ."""
    states = [torch.from_numpy(np.asarray(part[TOKENS])) for part in parts]
    lengths = torch.tensor([len(state) for state in states])
    padded = nn.utils.rnn.pad_sequence(states, batch_first=True)
    if bool((lengths == lengths[0]).all()):
        return {TOKENS: padded}
    return {TOKENS: padded, "mask": torch.arange(padded.shape[1]) < lengths[:, None]}


class Fed(nn.Module):
    """A model of named modalities, fed with the batches of :class:`PairedCollate`.

    Args:
        model: Takes inputs and presence by modality; a block takes its own input.
        names: The modalities, in the order of the batches.
    """

    def __init__(self, model: Assembly | LegoBlock | nn.Module, names: Sequence[str]) -> None:
        super().__init__()
        self.model = model
        self.names = tuple(names)

    def forward(self, present: Tensor, **parts: Tensor) -> Tensor:
        """Logits [B, outputs].

        Args:
            present: Bool [B, M].
            **parts: `PLACE.KEY` as the collation names them.
        """
        inputs: dict[str, dict[str, Tensor]] = {}
        for key, value in parts.items():
            at, _, name = key.partition(".")
            inputs.setdefault(self.names[int(at)], {})[name] = value
        found: Tensor
        if isinstance(self.model, LegoBlock):
            found = self.model(inputs[self.names[0]])
        elif bool(present.all()):
            found = self.model(inputs)
        else:
            found = self.model(inputs, {n: present[:, at] for at, n in enumerate(self.names)})
        return found


class Concatenated(nn.Module):
    """The baseline of early fusion: mean states side by side, and a small network on them.

    Args:
        encoders: By modality, each with the `width` of its states.
        outputs: Number of logits.
        hidden: Width of the hidden layer.
    """

    def __init__(self, encoders: Mapping[str, nn.Module], outputs: int, hidden: int = 128) -> None:
        super().__init__()
        self.names = tuple(encoders)
        self.encoders = nn.ModuleList(encoders.values())
        self.widths = [int(encoder.width) for encoder in encoders.values()]  # type: ignore[arg-type]
        self.norms = nn.ModuleList(nn.LayerNorm(width) for width in self.widths)
        self.mlp = nn.Sequential(
            nn.Linear(sum(self.widths) + len(self.widths), hidden),
            nn.SELU(),
            nn.Linear(hidden, outputs),
        )

    def forward(
        self,
        inputs: Mapping[str, Mapping[str, Tensor]],
        present: Mapping[str, Tensor] | None = None,
    ) -> Tensor:
        """Logits [B, outputs]; a missing modality is zeros and a flag."""
        one = next(iter(next(iter(inputs.values())).values()))
        found = []
        for place, name in enumerate(self.names):
            there = torch.zeros(len(one), 1, device=one.device)
            pooled = torch.zeros(len(one), self.widths[place], device=one.device)
            if name in inputs:
                states, mask = self.encoders[place](**inputs[name])
                there = there + (1.0 if present is None else present[name][:, None].float())
                keep = torch.ones_like(states[..., :1]) if mask is None else mask[..., None]
                mean = (states * keep).sum(dim=1) / keep.sum(dim=1).clamp_min(1)
                pooled = self.norms[place](mean) * there
            found += [pooled, there]
        logits: Tensor = self.mlp(torch.cat(found, dim=1))
        return logits
