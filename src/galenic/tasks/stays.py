"""Outcomes of stays from irregular series and notes.

Zhang et al., "Improving Medical Predictions by Irregular Multimodal Electronic Health Records
Modeling", ICML 2023, arXiv 2210.12156.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from safetensors.torch import load_file, save
from torch import Tensor, nn
from torch.utils.data import DataLoader

from galenic.core.errors import DataError
from galenic.core.fingerprint import fingerprint_bytes
from galenic.core.prediction import evaluating
from galenic.core.run import Run
from galenic.data.cohort import Cohort
from galenic.data.events import label, read
from galenic.data.events.channels import Channels
from galenic.data.events.grid import summaries
from galenic.data.events.ingest import REPORT
from galenic.models.backbone import Backbone, open_backbone
from galenic.models.irregular import ResidualHead, StayNetwork
from galenic.objectives.classification import Classifier
from galenic.pipeline.config import open_cohort
from galenic.pipeline.frozen import Rows
from galenic.pipeline.inputs import Inputs
from galenic.pipeline.opening import weights_of
from galenic.pipeline.stays import StayCollate, StayEncoder, Stays
from galenic.tasks import _heads, _stays_parts, classify
from galenic.tasks._job import carry_out, reopened
from galenic.tasks._stays_config import Config
from galenic.tasks._stays_parts import NETWORK
from galenic.tasks._stays_reading import definition, reading, record
from galenic.tasks._stays_results import GATES, looked_at

Array = np.ndarray[Any, np.dtype[Any]]
READS_COHORT = False


def run(config: Config, run: Run) -> None:
    """Read events, cut windows, train, predict, score and explain.

    Raises:
        GalenicError: For anything the user can put right.
    """
    carry_out(config, run, StaysJob)


def load(run: Run) -> tuple[StaysJob, Classifier]:
    """The fitted objective of a finished run, and the job that knows its data.

    Raises:
        DataError: If its events changed.
    """
    job, objective = classify.restored(reopened(run, Config, StaysJob))
    job.network.load_state_dict(load_file(run.path / NETWORK))
    return job, objective


class StaysJob(classify.Job):
    """One run over stays, step by step.

    Attributes:
        stays: What is read.
        channels: What is measured, by name of the modality.
        fingerprint: Of the event table.
        text: Reads the notes; None without them.
        network: Reads all else, and the features of the notes.
    """

    config: Config
    stays: Stays
    channels: dict[str, Channels]
    network: nn.Module

    def __init__(self, config: Config, run: Run) -> None:
        self.text: Backbone | None = None
        super().__init__(config, run, opener=self._open, head=self._head_of)
        self.collate = StayCollate(self.text)  # type: ignore[assignment]
        if self.frozen and self.text is not None and isinstance(self.stays.read, Inputs):
            started = time.perf_counter()
            rows = range(len(self.stays.read))
            self.stays.read = self._cache().pooled(self.text, self.stays.read, rows)
            self.feature_seconds += time.perf_counter() - started

    # Reading ----------------------------------------------------------------------------

    def _cohort(self) -> Cohort:
        """The stays: of the manifest, or as the definition makes them."""
        config = self.config
        events = read(config.data, mapping=config.mapping, timezone=config.timezone)
        self.events = events.frame
        self.fingerprint = self._same_events()
        self.run.write_text(REPORT, events.rejected.write_csv())
        table: Any = config.stays
        if table is None:
            table = label(self.events, definition(config)).to_pandas()
        columns = config.columns.model_copy(update={"inputs": ["cutoff"]})
        return open_cohort(table, columns, quick=config.quick)

    def _same_events(self) -> str:
        """Fingerprint of the event table, which is what this run had before, if it had any."""
        found = fingerprint_bytes(self.events.write_csv())
        known = self.run.provenance.get("data") or {}
        if known.get("events_fingerprint", found) != found:
            raise DataError(
                "The events are not those that the run was trained on.",
                where=Path(self.config.data).name,
                expected="the same files: channels and windows are read off them again",
                next_step="Put them back, or run again on the new ones.",
            )
        return found

    def _open(self, cohort: Cohort, train: Array, run: Run, **_: Any) -> tuple[Backbone, Any]:
        """Cut the windows, and build the network for what is in them."""
        found = reading(self.events, cohort, train, self.config)
        del self.events
        self.channels = found.channels
        record(run, cohort, found, self.fingerprint)
        if found.notes is not None:
            self.text = _stays_parts.open_text(self.config)
            run.update_provenance(weights=weights_of(self.text))
        self.stays = _stays_parts.samples(self.config, found, self.text)
        self.network = _stays_parts.network(self.config, self.channels, self.text)
        return self.text or open_backbone("builtin:table"), self.stays

    # Building ---------------------------------------------------------------------------

    def _head_of(self, job: classify.Job) -> nn.Module:
        if self.config.network.kind == "trees":
            return _heads.trees(job, self._summaries("train"))
        width = int(self.network.width)  # type: ignore[arg-type]
        return ResidualHead(width, self.label.outputs, self.config.network.dropout)

    def _pooled_encoder(self) -> nn.Module:
        encoder = _stays_parts.encoder(self.config, self.network, self.text)
        if isinstance(encoder, StayEncoder):
            self.stays.epochs = encoder.set_epoch
        return encoder

    def _depths(self) -> dict[str, int] | None:
        """The text network is one layer down: `schedule.layer_decay` is its share of the rate."""
        if self.config.schedule.layer_decay == 1.0:
            return None
        names = (name for name, _ in self.objective.named_parameters())
        return {name: int(not name.startswith("encoder.text.")) for name in names}

    # Doing ------------------------------------------------------------------------------

    def rows(self, part: str, *, training: bool = False) -> Rows:
        """The stays of one part."""
        rows = getattr(self.splits, part)
        labels = self.training_targets if part != "test" else self.targets
        if self.config.network.kind == "trees":
            return Rows(rows, labels, ahead={"features": self._summaries(part)})
        return Rows(rows, labels, inputs=self.stays)  # type: ignore[arg-type]

    def _summaries(self, part: str) -> Array:
        """Last, mean, lowest, highest and count of every channel, for the trees."""
        return summaries(self.stays.series["series"])[getattr(self.splits, part)]

    def evaluate(self) -> None:
        """Predict, write every number, and say what the network looked at."""
        super().evaluate()
        if isinstance(self.network, StayNetwork):
            self._explain(self.network)

    def _explain(self, network: StayNetwork) -> None:
        """Write the gates of the test stays over time, the share of each channel, and their means."""
        loader = DataLoader(
            self.rows("test"),
            batch_size=self.config.schedule.eval_batch_size,
            collate_fn=self.collate,
        )
        gates: dict[str, Array] = {}
        shares: dict[str, tuple[Sequence[str], Array]] = {}
        with evaluating(network):
            batches = [{n: x.to(network.queries.device) for n, x in b.items()} for b in loader]
            for name, channels in self.channels.items():
                found = [network.explain(name, **batch) for batch in batches]
                if (gate := _joined([gate for gate, _ in found])) is not None:
                    gates[name] = gate
                if (share := _joined([share for _, share in found])) is not None:
                    shares[name] = channels.names, share
        if gates:
            tables = [self._gates(name, values) for name, values in gates.items()]
            self.run.write_table("gates.parquet", pd.concat(tables, ignore_index=True))
        if shares:
            columns = ["modality", "channel", "share"]
            means = [
                (name, channel, mean)
                for name, (known, share) in shares.items()
                for channel, mean in zip(known, share.mean(axis=0).tolist(), strict=True)
            ]
            self.run.write_table("attention.parquet", pd.DataFrame(means, columns=columns))
        if gates or shares:
            looked = looked_at(
                gates,
                shares,
                self.cohort.patient_ids[self.splits.test],
                window_hours=self.config.series.window_hours,
                score=self.config.score,
                seed=self.config.seed,
            )
            self.run.write_json(GATES, looked)

    def _gates(self, modality: str, values: Array) -> pd.DataFrame:
        """One row a test stay and step; a stay with one gate has one row, without an hour."""
        count, steps = values.shape
        hours = np.linspace(0, self.config.series.window_hours, steps)
        return pd.DataFrame(
            {
                "modality": modality,
                "row": np.repeat(self.splits.test, steps),
                "hour": np.tile(hours if steps > 1 else np.nan, count),
                "gate": values.ravel(),
            }
        )

    def save(self) -> None:
        """Write what was trained, in safetensors."""
        super().save()
        self.run.write_bytes(NETWORK, save(self.network.state_dict()))


def _joined(found: list[Tensor | None]) -> Array | None:
    """The batches of one answer; None where the network has none."""
    known = [values.cpu() for values in found if values is not None]
    return torch.cat(known).numpy() if known else None
