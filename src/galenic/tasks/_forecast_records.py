"""The records behind a `forecast` run: events, who is in which part, and what each task asks."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from galenic.core.errors import DataError
from galenic.core.fingerprint import fingerprint_bytes
from galenic.data.cohort import Cohort
from galenic.data.events import Definition, definitions, label, read, visible
from galenic.data.events.definitions import questions
from galenic.data.events.tokens import History, encode
from galenic.data.events.vocabulary import Vocabulary
from galenic.data.labels import LabelSpec, require_seen
from galenic.data.splits import Splits, make_splits, with_unlabelled
from galenic.tasks._forecast_config import Config

Array = np.ndarray[Any, np.dtype[Any]]


@dataclass(frozen=True)
class Samples:
    """One question a row: a patient, a task, and the history up to the cutoff.

    Attributes:
        patients: Number of the patient [n].
        tasks: Number of the task [n].
        labels: 0 or 1, NaN where it is not known [n].
        histories: Of each.
    """

    patients: Array
    tasks: Array
    labels: Array
    histories: list[History]

    def __len__(self) -> int:
        return len(self.labels)


class Records:
    """Events of patients, their labels and their parts.

    Patients are numbers from here on: places in the sorted list of their names.

    Args:
        config: Says where they are, and what is asked.
        new: They are for a finished run: all patients are test, and they are asked too what nobody
            knows the answer of yet.

    Attributes:
        events: The event table.
        rejected: What reading left out.
        names: What codes mean, where the source says it.
        patients: Names, sorted.
        definitions: What is asked.
        tasks: Names of the tasks.
        asked: `patient_id`, `task`, `cutoff` and `label`, one row a question.
        splits: Numbers of patients who have an answer.
        trained_on: Numbers of patients whose histories give the vocabulary and train the next
            token: those of training, and those of no part.

    Raises:
        DataError: If nobody can be asked, or a task has one answer only in training.
    """

    def __init__(self, config: Config, new: bool = False) -> None:
        found = read(config.data, mapping=config.mapping, timezone=config.timezone)
        self.events, self.rejected, self.names = found.frame, found.rejected, found.names
        self.name = Path(config.data).name
        self.patients: list[str] = self.events["patient_id"].unique().sort().to_list()
        self.definitions = [
            task if isinstance(task, Definition) else definitions.load(task)
            for task in config.tasks
        ]
        self.tasks = [definition.name for definition in self.definitions]
        ask = questions if new else label
        self.asked = self._asked([ask(self.events, one) for one in self.definitions])
        nobody = np.arange(0)
        everyone = np.arange(len(self.patients))
        self.splits, self.trained_on = Splits(nobody, nobody, everyone), nobody
        if not new:
            self.splits, self.trained_on = self._split(config)

    @property
    def fingerprint(self) -> str:
        """Of the event table."""
        return fingerprint_bytes(self.events.write_csv())

    def of(self, patients: Array) -> pl.DataFrame:
        """Events of some patients, in order."""
        names = [self.patients[number] for number in patients]
        return self.events.filter(pl.col("patient_id").is_in(names))

    def histories(self, patients: Array, vocabulary: Vocabulary) -> list[History]:
        """All that is known of some patients; who has no encounter has none."""
        found = encode(self.of(patients), vocabulary)
        return [found[place] for place in range(len(found))]

    def samples(self, vocabulary: Vocabulary) -> Samples:
        """Every question, with what was known when it is asked; without a visit it is left out."""
        known = encode(visible(self.events, self.asked), vocabulary)
        found = self.asked.join(
            known.subjects.with_row_index("history"),
            on=["patient_id", "cutoff"],
            how="inner",
            maintain_order="left",
        )
        return Samples(
            np.searchsorted(np.array(self.patients), found["patient_id"].to_numpy()),
            found["task"].to_numpy(),
            found["label"].to_numpy(),
            [known[place] for place in found["history"]],
        )

    def _asked(self, labels: Sequence[pl.DataFrame]) -> pl.DataFrame:
        """All questions in one table."""
        asked = pl.concat(
            [table.with_columns(task=pl.lit(task)) for task, table in enumerate(labels)]
        ).sort("task", "patient_id", "cutoff")
        if asked.is_empty():
            raise DataError(
                "No patient can be asked any task.",
                where=self.name,
                expected=f"visits that {', '.join(self.tasks)} can be asked of",
            )
        return asked

    def _split(self, config: Config) -> tuple[Splits, Array]:
        """Parts of the patients, alike in their rarest positive label, and who is trained on."""
        wide = self.asked.pivot(
            "task", index="patient_id", values="label", aggregate_function="max"
        )
        names = dict(enumerate(self.tasks))
        wide = wide.rename({str(task): name for task, name in names.items() if str(task) in wide})
        everyone = pl.DataFrame({"patient_id": self.patients})
        table = everyone.join(wide, on="patient_id", how="left", maintain_order="left").to_pandas()
        spec = LabelSpec("multilabel", tuple(self.tasks), tuple(self.tasks))
        table = table.reindex(columns=spec.columns)
        cohort = Cohort(table, Path(), {}, spec, np.arange(len(table)), self.name)
        splits = make_splits(cohort, config.split, config.seed)
        self._require_seen(spec, splits)
        return splits, with_unlabelled(cohort, config.split, splits).train

    def _require_seen(self, spec: LabelSpec, splits: Splits) -> None:
        """Check that the questions of the training patients have both answers of each task."""
        names = np.array(self.patients)[splits.train].tolist()
        chosen = self.asked.filter(pl.col("patient_id").is_in(names))
        answers = np.full((len(chosen), len(self.tasks)), np.nan)
        answers[np.arange(len(chosen)), chosen["task"].to_numpy()] = chosen["label"].to_numpy()
        nobody = np.arange(0)
        require_seen(spec, answers, Splits(np.arange(len(chosen)), nobody, nobody))
