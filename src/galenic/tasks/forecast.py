"""Patients in time: read their histories, answer clinical questions, write how they may go on.

"EHRMamba: Towards Generalizable and Scalable Foundation Models for Electronic Health Records",
2024, arXiv 2405.14567.
"""

from __future__ import annotations

from galenic.core.errors import DataError
from galenic.core.run import Run
from galenic.data.events.ingest import REPORT
from galenic.tasks._forecast_config import Config
from galenic.tasks._forecast_job import PRETRAINED, TUNED, VOCABULARY, Job
from galenic.tasks._forecast_patient import answers, explain, forecast
from galenic.tasks._job import carry_out, reopened

# What a run writes; a bag of codes has no pretrained network.
FILES = (
    "config.yaml",
    "provenance.json",
    "status.json",
    "log.jsonl",
    "splits.json",
    REPORT,
    "metrics.json",
    "tasks.json",
    "labels.json",
    "calibration.json",
    "cost.json",
    "predictions.parquet",
    VOCABULARY,
    PRETRAINED,
    TUNED,
)
READS_COHORT = False

__all__ = [
    "FILES",
    "READS_COHORT",
    "Config",
    "answers",
    "describe",
    "explain",
    "forecast",
    "load",
    "run",
]


def run(config: Config, run: Run) -> None:
    """Read, split, tokenise, train, and answer; every file of `run` is written.

    Raises:
        GalenicError: For anything the user can put right.
    """
    carry_out(config, run, _described)


def load(run: Run) -> Job:
    """A finished run with its weights.

    Raises:
        DataError: If its vocabulary is another one, or its data changed.
    """
    job = reopened(run, Config, make)
    if job.records.fingerprint != run.provenance["data"]["fingerprint"]:
        raise DataError(
            "The events are not those that the run was trained on.",
            where=job.records.name,
            expected="the same files: parts and labels are read off them again",
            next_step="Put them back, or run again on the new ones.",
        )
    job.restore()
    return job


def make(config: Config, run: Run, new: bool = False) -> Job:
    """The job; a quick one has a small network. For `new` see :class:`Job`."""
    if config.quick:
        sizes = config.sizes.model_copy(update={"layers": 2, "width": 32})
        config = config.model_copy(update={"sizes": sizes, "length": min(config.length, 64)})
    return Job(config, run, new)


def _described(config: Config, run: Run) -> Job:
    job = make(config, run)
    # Numbers of patients in the order of their names, which are written nowhere.
    parts = job.records.splits.to_dict(config.split.how, config.seed)
    run.write_json("splits.json", parts | {"trained_on": job.records.trained_on.tolist()})
    describe(job, run)
    return job


def describe(job: Job, run: Run) -> None:
    """Write to `run` what reading left out, and what the data and the network are."""
    records, config = job.records, job.config
    run.write_text(REPORT, records.rejected.write_csv())
    run.update_provenance(
        data={
            "name": records.name,
            "title": "",
            "license": "",
            "fingerprint": records.fingerprint,
            "vocabulary": job.vocabulary.fingerprint,
            "n": len(job.samples),
            "patients": len(records.patients),
            "kind": "multilabel",
            "classes": records.tasks,
            # As they are now: the file of a definition may change, or go.
            "definitions": [one.model_dump(mode="json") for one in records.definitions],
        },
        weights={"backbone": config.start or config.network},
    )
