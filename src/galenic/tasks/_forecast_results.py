"""What a `forecast` run writes down: each task, all together, and the next token."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from galenic.core.prediction import predict
from galenic.core.run import Run
from galenic.evaluation import weighted
from galenic.evaluation.bootstrap import Array, Estimate, estimates
from galenic.evaluation.metrics import decide, evaluate
from galenic.evaluation.protocol import Scored, score, to_scores
from galenic.pipeline.histories import collate

if TYPE_CHECKING:
    from galenic.tasks._forecast_job import Job

PARTS = ("val", "test")
LOGGED = ("auroc", "balanced_accuracy", "perplexity", "next_token_accuracy")


def write_results(job: Job) -> None:
    """Answer every question of validation and test, and write every number."""
    samples, names = job.samples, job.records.tasks
    rows = {part: job.rows(part, list(range(len(names)))) for part in PARTS}
    groups = {part: samples.patients[found] for part, found in rows.items()}
    targets = {part: columns(job, found, samples.labels[found]) for part, found in rows.items()}
    answers = {part: answers_to(job, found) for part, found in rows.items()}
    scored = score(
        "multilabel",
        names,
        targets=targets,
        logits=answers,
        groups=groups,
        rows=rows,
        table=pd.DataFrame(index=range(len(samples))),
        config=job.config.score,
        seed=job.config.seed,
    )
    labels = [samples.labels[job.rows("train", [place])] for place in range(len(names))]
    trained = [{"n": len(found), "positive": int(found.sum())} for found in labels]
    test = (targets["test"], to_scores("multilabel", answers["test"]), groups["test"])
    told = write_figures(job, job.run, scored, test, trained)
    values = {name: told[name]["value"] for name in LOGGED if name in told}
    job.run.log({"event": "scored", **values})


def write_figures(
    job: Job,
    run: Run,
    scored: Scored,
    test: tuple[Array, Array, Array],
    trained: Sequence[Mapping[str, int]],
) -> dict[str, Any]:
    """Write every document, with each task by itself, and the next token.

    Args:
        job: What answered.
        run: Where it goes.
        scored: All tasks together.
        test: Targets and scores [n, tasks], and the patients [n].
        trained: How many training samples each task had, and how many positive ones.

    Returns:
        All figures on test, as `metrics.json` holds them.
    """
    figures = {"balanced_accuracy": _balanced_accuracy(job, *test), **_next_token(job)}
    told: dict[str, Any] = scored.documents["metrics.json"]["test"]
    told |= {name: figure.to_dict() for name, figure in figures.items()}
    for name, document in scored.documents.items():
        run.write_json(name, document)
    tasks = [_task(job, place, dict(found), *test) for place, found in enumerate(trained)]
    run.write_json("tasks.json", tasks)
    run.write_table("predictions.parquet", scored.predictions)
    return told


def answers_to(job: Job, rows: Array) -> Array:
    """Log odds of samples in the column of their task [n, tasks], 0 elsewhere."""
    found = np.zeros(len(rows))
    for name, tasks in job.phases.items():
        of_phase = np.isin(job.samples.tasks[rows], tasks)
        if of_phase.any():
            outputs = predict(
                job.tuned[name],
                job.questions(rows[of_phase], answered=False),
                collate=collate,
                batch_size=job.config.schedule.eval_batch_size,
            )
            found[of_phase] = outputs["logits"]
    return np.nan_to_num(columns(job, rows, found))


def columns(job: Job, rows: Array, values: Array) -> Array:
    """Values of samples in the column of their task [n, tasks], NaN elsewhere."""
    wide = np.full((len(rows), len(job.records.tasks)), np.nan)
    wide[np.arange(len(rows)), job.samples.tasks[rows]] = values
    return wide


def _task(
    job: Job, place: int, train: dict[str, int], targets: Array, scores: Array, groups: Array
) -> dict[str, Any]:
    """One task on test: how many, and its figures."""
    name = job.records.tasks[place]
    known = ~np.isnan(targets[:, place])
    found: dict[str, Any] = {
        "task": name,
        "token": job.vocabulary.prompts[name],
        "train": train,
        "test": {"n": int(known.sum()), "positive": int(np.nansum(targets[:, place]))},
    }
    if known.any():
        score_of = job.config.score
        column = (targets[known, place][:, None], scores[known, place][:, None])
        options: dict[str, Any] = {"resamples": score_of.resamples, "level": score_of.level}
        figures = evaluate("multilabel", *column, groups[known], seed=job.config.seed, **options)
        # With one column this is F1 of the positive class.
        figures["f1"] = figures.pop("macro_f1")
        figures["balanced_accuracy"] = _balanced_accuracy(job, *column, groups[known])
        found["metrics"] = {key: figure.to_dict() for key, figure in figures.items()}
    return found


def _balanced_accuracy(job: Job, targets: Array, scores: Array, groups: Array) -> Estimate:
    """Mean over the tasks."""

    def one(y: Array, scores: Array, weights: Array) -> Array:
        table = weighted.confusion(y.astype(int), decide("binary", scores)[0], 2, weights)
        return weighted.balanced_accuracy(table)

    return _estimate(job, lambda w: weighted.over_labels(one, targets, scores, w), groups)


def _next_token(job: Job) -> dict[str, Estimate]:
    """Perplexity and accuracy of the next token on test; none for a bag of codes."""
    if job.pretrained is None:
        return {}
    rows = job.histories(job.records.splits.test)
    found = predict(
        job.pretrained,
        rows,
        collate=collate,
        batch_size=job.config.pretraining.eval_batch_size,
    )
    patients = np.arange(len(rows))

    def share(name: str) -> Callable[[Array], Array]:
        return lambda weights: (weights @ found[name]) / (weights @ found["tokens"])

    return {
        "perplexity": _estimate(job, lambda w: np.exp(share("nll")(w)), patients),
        "next_token_accuracy": _estimate(job, share("hits"), patients),
    }


def _estimate(job: Job, metric: Callable[[Array], Array], groups: Array) -> Estimate:
    """A figure of sample weights [r, n], with the bootstrap of patients."""
    config = job.config.score
    [found] = estimates(
        metric, groups, resamples=config.resamples, level=config.level, seed=job.config.seed
    )
    return found
