"""A caption beside each sample, for methods that read words: drawn from what is known of it."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
from pydantic import Field, model_validator

from galenic.core.config import Config
from galenic.core.errors import DataError
from galenic.core.seeding import rng
from galenic.data.cohort import Cohort
from galenic.data.knowledge import KnowledgeBase
from galenic.data.manifest import require_column
from galenic.pipeline.inputs import Example

# Of a token that is part of no word.
NO_WORD = -1


class CaptionConfig(Config):
    """What is said of a sample."""

    column: str | None = Field(
        None, description="Of the category, or of the caption itself; None: the label."
    )
    knowledge: str | None = Field(
        None,
        description="builtin:NAME or a YAML file: a caption is drawn from what it says of the "
        "category. None: what stands in the column is the caption.",
    )
    modality: str | None = Field(
        None, description="In the knowledge base: its name, or the column that says it by row."
    )
    shuffle: bool = Field(False, description="Each sample gets the caption of another: a control.")

    @model_validator(mode="after")
    def _known(self) -> CaptionConfig:
        if self.modality is not None and self.knowledge is None:
            raise ValueError("modality is for a knowledge base, and none is named")
        return self


class Captions:
    """The caption of each row of a cohort, as tokens.

    Args:
        cohort: Says the category of each sample; one without has a caption of no words.
        config: What is said.
        tokenizer: A fast one; cuts at its `model_max_length`.
        seed: Of the shuffling.

    Attributes:
        column: Where the captions come from, for people.
        padding: Fills up each key of a batch.

    Raises:
        DataError: If a column is missing, or something is not in the knowledge base.
    """

    def __init__(self, cohort: Cohort, config: CaptionConfig, tokenizer: Any, seed: int) -> None:
        self.tokenizer = tokenizer
        self.categories, self.column = _categories(cohort, config.column)
        self.modalities = _modalities(cohort, config)
        self.knowledge = None if config.knowledge is None else KnowledgeBase.open(config.knowledge)
        if self.knowledge is not None:
            for named, modality in zip(self.categories, self.modalities, strict=True):
                self.knowledge.require(named, modality)
        rows = np.arange(len(cohort))
        self.rows = rng(seed, "captions").permutation(rows) if config.shuffle else rows
        self.padding = {
            "input_ids": tokenizer.pad_token_id, "attention_mask": 0, "words": NO_WORD
        }  # fmt: skip

    def __call__(self, row: int, draw: int) -> Example:
        """`input_ids`, `attention_mask` and `words` [L], the number of each token's word.

        Args:
            row: Of the cohort.
            draw: A seed; the same one gives the same caption.
        """
        found = self.tokenizer(self.text(row, draw), truncation=True)
        words = [NO_WORD if word is None else word for word in found.word_ids()]
        return {
            "input_ids": np.asarray(found["input_ids"], dtype=np.int64),
            "attention_mask": np.asarray(found["attention_mask"], dtype=np.int64),
            "words": np.asarray(words, dtype=np.int64),
        }

    def text(self, row: int, draw: int) -> str:
        """The caption of a row; of a sample with several categories, one is drawn."""
        row = int(self.rows[row])
        named = self.categories[row]
        if not named:
            return ""
        chosen = rng(draw, "caption")
        category = named[int(chosen.integers(len(named)))]
        if self.knowledge is None:
            return category
        return self.knowledge.caption(category, self.modalities[row], chosen)


def _categories(cohort: Cohort, column: str | None) -> tuple[list[list[str]], str]:
    """Categories of each row, and where they stand."""
    label = cohort.label
    if column is None and label is None:
        raise DataError(
            "Nothing says what the captions are.",
            where=cohort.name,
            expected="a label, or a column of categories or captions",
            next_step="captions.column=COLUMN; or, for pictures alone, pretraining.text=null "
            "captions=null",
        )
    if column is None and label is not None and label.kind == "multilabel":
        present = cohort.targets() == 1
        names = np.asarray(label.classes, dtype=object)
        return [names[row].tolist() for row in present], ", ".join(label.columns)
    if column is None:
        assert label is not None
        column = label.columns[0]
    require_column(column, cohort.table.columns)
    cells = ["" if pd.isna(cell) else str(cell).strip() for cell in cohort.table[column]]
    return [[cell] if cell else [] for cell in cells], column


def _modalities(cohort: Cohort, config: CaptionConfig) -> list[str | None]:
    if config.modality in cohort.table.columns:
        return [str(cell) for cell in cohort.table[config.modality]]
    return [config.modality] * len(cohort)
