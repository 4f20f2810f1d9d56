"""Outcomes of other patients, answered from other events by the prompts of the run."""

from __future__ import annotations

from functools import partial
from typing import Any

import numpy as np
import pandas as pd
import polars as pl

from galenic.core.config import parse
from galenic.core.errors import ConfigError, DataError
from galenic.core.progress import tell
from galenic.core.run import Run
from galenic.data.events import Definition
from galenic.data.events.vocabulary import UNK, candidates
from galenic.data.labels import missing
from galenic.evaluation.protocol import to_scores
from galenic.pipeline.config import Columns
from galenic.tasks import forecast
from galenic.tasks._forecast_job import Job
from galenic.tasks._forecast_results import answers_to, columns, write_figures
from galenic.tasks._job import reopened
from galenic.tasks._predict_config import TABLE, Config
from galenic.tasks._predict_opening import note_origin
from galenic.tasks._predict_results import Trained, score_known

Array = np.ndarray[Any, np.dtype[Any]]
# Codes that a message lists.
SHOWN = 30


def apply(config: Config, finished: Run, run: Run) -> int:
    """Answer every task and, where answers are known, score; gives the number of parameters.

    Args:
        config: What was asked.
        finished: The run that was trained.
        run: Where it goes.

    Raises:
        ConfigError: If columns of a manifest were named: the run asks by its definitions.
        DataError: If no patient can be asked, or none of the codes is known.
    """
    if config.stays is not None or config.columns != Columns():
        raise ConfigError(
            f"'{finished.path.name}' reads no manifest: its own tasks say who is asked what, and "
            "when.",
            where="stays" if config.stays is not None else "columns",
            expected="events alone, by --data, --mapping and --timezone",
        )
    job = reopened(finished, forecast.Config, partial(_job, config))
    job.restore()
    forecast.describe(job, run)
    note_origin(finished, job.records, run)
    _require_known(job)
    if not len(job.samples):
        raise DataError(
            "None of the patients has an encounter before the cutoff of a task.",
            where=job.records.name,
            expected=f"visits that {', '.join(job.records.tasks)} can be asked of",
        )
    logits = answers_to(job, np.arange(len(job.samples)))
    run.write_text(TABLE, _table(job, logits).to_csv(index=False))
    _score(config, finished, job, logits, run)
    return job.parameters[1]


def _job(config: Config, own: forecast.Config, finished: Run) -> Job:
    """The run's own job, but of the new events."""
    size = config.batch_size or own.schedule.eval_batch_size
    told: dict[str, Any] = {
        "data": config.data,
        **config.reading(own.mapping, own.timezone),
        "schedule": own.schedule.model_copy(update={"eval_batch_size": size}),
        "score": config.score,
        "seed": config.seed,
    }
    definitions = finished.provenance["data"].get("definitions")
    if definitions is not None:
        told["tasks"] = [parse(Definition, one, str(finished.path)) for one in definitions]
    return forecast.make(own.model_copy(update=told), finished, new=True)


def _require_known(job: Job) -> None:
    """Check that the network knows something of the events, and say what it does not.

    Raises:
        DataError: If all of them would be [UNK].
    """
    vocabulary, events = job.vocabulary, job.records.events
    rows = candidates(events, vocabulary.config.sources)
    rows = vocabulary.lookup(rows.filter(~pl.col("code").is_in(list(vocabulary.dropped))))
    unknown = rows.filter(pl.col("token") == UNK)
    if len(unknown) == len(rows):
        known = sorted(set(vocabulary.codes.values()))
        raise DataError(
            "The new events hold none of the codes that the run knows.",
            where=f"{job.records.name}, codes of its events",
            expected=", ".join(known[:SHOWN]),
            next_step="Give the codes the names that they had in training, by --mapping for tables.",
        )
    if len(unknown):
        codes = unknown["code"].unique().sort().to_list()
        tell(
            f"{len(unknown)} of {len(rows)} events are of a code, or in a unit, that the run did "
            f"not know, and are [UNK] to it: {', '.join(codes[:SHOWN])}."
        )


def _table(job: Job, logits: Array) -> pd.DataFrame:
    """One row a question, sorted by task, patient and cutoff, as the samples are."""
    samples = job.samples
    rows = np.arange(len(samples))
    scores = to_scores("multilabel", logits)
    return pd.DataFrame(
        {
            "row": rows,
            # Numbers in the order of their names, which are written nowhere.
            "patient": samples.patients,
            "visit": [history["positions"][-1] for history in samples.histories],
            "task": np.array(job.records.tasks, dtype=object)[samples.tasks],
            "p": scores[rows, samples.tasks],
        }
    )


def _score(config: Config, finished: Run, job: Job, logits: Array, run: Run) -> None:
    """Write every figure, where an answer is known."""
    samples = job.samples
    targets = columns(job, np.arange(len(samples)), samples.labels)
    patients, table = samples.patients, pd.DataFrame(index=range(len(samples)))
    trained = Trained.open(finished)
    scored = score_known(config, trained, targets, logits, patients, table)
    if scored is None:
        return
    known = ~missing(targets)
    test = (targets[known], to_scores("multilabel", logits[known]), patients[known])
    before = [task["train"] for task in finished.read_json("tasks.json")]
    write_figures(job, run, scored, test, before)
