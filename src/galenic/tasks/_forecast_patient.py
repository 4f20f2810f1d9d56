"""One patient before a trained network: answers, what they leant on, and how it may go on."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, cast

import numpy as np
import pandas as pd
import torch
from scipy.special import expit
from torch import Tensor

from galenic.core.errors import ConfigError, DataError, nearest
from galenic.core.prediction import evaluating, predict, to_device
from galenic.core.seeding import generator
from galenic.data.events.continuing import Continuation
from galenic.data.events.tokens import History, truncate
from galenic.data.events.vocabulary import Kind
from galenic.models.mamba import EventMamba
from galenic.models.mamba.attribution import integrated_gradients
from galenic.models.mamba.sampling import nucleus
from galenic.objectives.next_event import NextEvent
from galenic.objectives.prompted_event import PromptedEvent
from galenic.pipeline.histories import TaskRows, collate

if TYPE_CHECKING:
    from galenic.tasks._forecast_job import Job


def history_of(job: Job, patient: str) -> History:
    """All that is known of a patient, as far back as the network reads.

    Raises:
        DataError: If there is no such patient, or no visit; the message does not say who.
    """
    known = job.records.patients
    if patient not in known:
        raise DataError(
            "There is no such patient.",
            where=job.records.name,
            expected=f"one of the {len(known)} patients of the run's data",
        )
    found = job.records.histories(np.array([known.index(patient)]), job.vocabulary)
    if not found:
        raise DataError("The patient has no encounter.", where=job.records.name)
    return truncate(found[0], job.config.length)


def answers(job: Job, patient: str) -> dict[str, float]:
    """Probability of each task, asked now.

    Raises:
        DataError: As :func:`history_of`.
    """
    history = history_of(job, patient)
    found = {}
    for name in job.records.tasks:
        outputs = predict(job.answering(name), _asked(job, history, name), collate=collate)
        found[name] = float(expit(outputs["logits"][0]))
    return found


def explain(job: Job, patient: str, task: str) -> pd.DataFrame:
    """What the answer to a task leans on, by integrated gradients.

    Returns:
        One row a token: `token`, its `meaning`, `visit`, and its `share` in the log odds.

    Raises:
        ConfigError: If there is no such task, or no network that reads codes in order.
        DataError: As :func:`history_of`.
    """
    if task not in job.records.tasks:
        raise ConfigError(
            f"There is no task '{task}'. {nearest(task, job.records.tasks)}".strip(),
            expected=", ".join(job.records.tasks),
        )
    objective, history = job.answering(task), history_of(job, patient)
    if not isinstance(objective, PromptedEvent):
        raise _no_network()
    sample = _asked(job, history, task)[0]
    batch = to_device(collate([sample]), next(objective.parameters()).device)
    embedding = cast(EventMamba, objective.network).embedding
    shares = integrated_gradients(objective, embedding, batch)
    told = {"visit": sample["positions"], "share": shares.cpu().numpy()}
    return pd.DataFrame(_named(job, sample["input_ids"].tolist()) | told)


def forecast(
    job: Job,
    patient: str,
    tokens: int,
    *,
    temperature: float = 0.8,
    top_p: float = 0.95,
    seed: int = 0,
) -> pd.DataFrame:
    """How the history of a patient may go on; a visit that is open goes on first.

    Args:
        job: With a pretrained network.
        patient: Whose.
        tokens: How many.
        temperature: 0 takes the likeliest token each time.
        top_p: Chance that is drawn from.
        seed: Of the draws.

    Returns:
        One row a token: `token`, its `meaning`, `visit`, `age` in years, `week` since 2020.

    Raises:
        ConfigError: If there is no network that predicts tokens.
        DataError: As :func:`history_of`.
    """
    if job.pretrained is None:
        raise _no_network()
    history = history_of(job, patient)
    if history["types"][-2] != Kind.VE:
        history = {name: values[:-1] for name, values in history.items()}
    draws = generator(seed, "forecast")

    def choose(logits: Tensor) -> int:
        return int(nucleus(logits, temperature=temperature, top_p=top_p, draws=draws))

    rows = _written(job.pretrained, history, Continuation(history, job.vocabulary), tokens, choose)
    return pd.DataFrame(
        _named(job, [row["input_ids"] for row in rows])
        | {
            "visit": [row["positions"] for row in rows],
            "age": [row["ages"] for row in rows],
            "week": [row["times"] for row in rows],
        }
    )


@torch.inference_mode()
def _written(
    objective: NextEvent,
    history: History,
    beside: Continuation,
    count: int,
    choose: Callable[[Tensor], int],
) -> list[dict[str, int]]:
    """Streams of `count` tokens, each written in constant time from the state after the last."""
    device = next(objective.parameters()).device
    batch, past = to_device(collate([history]), device), None
    del batch["attention_mask"]
    rows: list[dict[str, int]] = []
    with evaluating(objective):
        while len(rows) < count:
            read = objective.network(**batch, past=past, use_cache=True)
            logits = objective.decoder(read.last_hidden_state[:, -1]).float().cpu()
            barred = ~torch.from_numpy(beside.allowed)
            rows.append(beside.add(choose(logits.masked_fill(barred, -torch.inf))))
            past = read.past
            batch = {name: torch.tensor([[v]], device=device) for name, v in rows[-1].items()}
    return rows


def _named(job: Job, tokens: list[int]) -> dict[str, list[str]]:
    """Columns that say which tokens these are."""
    names, codes = job.records.names, job.vocabulary.codes
    return {
        "token": [job.vocabulary.tokens[token] for token in tokens],
        "meaning": [names.get(codes.get(token, ""), "") for token in tokens],
    }


def _asked(job: Job, history: History, task: str) -> TaskRows:
    prompt = np.array([job.vocabulary.prompts[task]])
    return TaskRows([history], job.config.length, prompt)


def _no_network() -> ConfigError:
    return ConfigError(
        "A bag of codes neither reads in order nor writes.",
        where="network=bag",
        next_step="Run with network=mamba.",
    )
