"""Masked-language training on texts, for tasks that train words before anything else."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from pydantic import Field
from torch import Tensor, nn

from galenic import tuners
from galenic.core.config import Config as BaseConfig
from galenic.core.errors import DataError
from galenic.core.run import Run
from galenic.core.schedule import Schedule
from galenic.core.trainer import fit
from galenic.data.cohort import Cohort
from galenic.language.masked import MaskedHead
from galenic.models.backbone import Backbone
from galenic.objectives.masked_language import MaskedLanguage
from galenic.pipeline.inputs import single_input


class WordsConfig(BaseConfig):
    """Masked-language training, without labels."""

    share: float = Field(0.15, gt=0, lt=1, description="Words that are hidden.")
    schedule: Schedule = Schedule(epochs=5, lr=1e-4, weight_decay=0.01, batch_size=32)


def require_text(cohort: Cohort, what: str) -> str:
    """The column of text that a cohort has as its one input.

    Raises:
        DataError: If it is no text; `what` is the subject of the sentence.
    """
    column, modality = single_input(cohort)
    if modality != "text":
        such = f", such as '{cohort.table[column].iloc[0]}'" if column in cohort.table else ""
        raise DataError(
            f"{what} reads text; column '{column}' is {modality}{such}.",
            where=cohort.name,
            next_step="Name a column of text: --inputs COLUMN",
        )
    return column


def train_words(
    opened: Backbone,
    head: MaskedHead,
    texts: Sequence[str],
    config: WordsConfig,
    *,
    run: Run,
    folder: str,
    seed: int,
    tuner: BaseConfig | None = None,
) -> MaskedLanguage:
    """Train a network and its head on masked words of `texts`, in place.

    Args:
        opened: The network.
        head: What names the words; tied to the embeddings where it began as a copy of them.
        texts: What is read; cut at the window of the network.
        config: How long, and how much is hidden.
        run: Gets the log and the checkpoints.
        folder: Of the checkpoints.
        seed: Of everything that is drawn.
        tuner: What of the network trains; None for all of it.
    """
    words: Any = opened.network.get_input_embeddings()  # type: ignore[operator]
    if torch.equal(words.weight, head.decoder.weight):
        if tuner is None:
            head.decoder.weight = words.weight
        else:
            # Tied, it would move entries of the embeddings that are not the tuner's.
            head.decoder.weight.requires_grad_(False)
    asked = tuners.Hooks()
    if tuner is not None:
        tuners.attach(opened, tuner)
        asked = tuners.hooks(opened, tuner)
    objective = MaskedLanguage(opened.network, head.transform, head.decoder, asked.penalty)
    found = opened.tokenizer(
        list(texts), truncation=True, max_length=opened.inputs.max_length, verbose=False
    )
    for stage in asked.begun(nn.ModuleList([head.transform, head.decoder])):
        result = fit(
            objective,
            found["input_ids"],
            schedule=config.schedule.model_copy(update=dict(stage.schedule)),
            collate=_hide(opened.tokenizer, config.share),
            folder=run.path / "checkpoints" / f"{folder}-{stage.name}",
            seed=seed,
            after_step=asked.after_step,
            log=run.log,
            resume=run.resumed,
        )
        run.log({"event": "adapted", "steps": result.steps, "seconds": result.seconds})
    head.decoder.weight = nn.Parameter(head.decoder.weight.detach().clone())
    return objective.eval()


def _hide(tokenizer: Any, share: float) -> Any:
    """Collation that hides words anew in every batch: 80 % mask, 10 % another, 10 % themselves."""
    from transformers import DataCollatorForLanguageModeling

    collator = DataCollatorForLanguageModeling(tokenizer, mlm_probability=share)

    def collate(rows: list[list[int]]) -> dict[str, Tensor]:
        return dict(
            collator([{"input_ids": row, "attention_mask": [1] * len(row)} for row in rows])
        )

    return collate
