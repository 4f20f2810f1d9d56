"""Captions of a cohort: whose they are, and how words are told from pieces."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from galenic.core.config import parse
from galenic.core.errors import ConfigError, DataError
from galenic.data.cohort import Cohort
from galenic.models.tokenizers import open_tokenizer
from galenic.pipeline.captions import CaptionConfig, Captions

TABLE = pd.DataFrame(
    {
        "patient_id": range(6),
        "image": [f"{number}.png" for number in range(6)],
        "label": ["benign", "malignant", "chest", "normal", "head", None],
        "kind": ["breast ultrasound"] * 2 + ["radiology", "breast ultrasound"] + ["radiology"] * 2,
        "report": ["Hypoechoic mass.", "", "clear lungs", "x", "y", "z"],
    }
)


@pytest.fixture
def cohort(tmp_path: Path) -> Cohort:
    for name in TABLE["image"]:
        (tmp_path / name).touch()
    return Cohort.open(TABLE, root=tmp_path)


def captions(cohort: Cohort, window: int = 40, **config: Any) -> Captions:
    tokenizer = open_tokenizer("builtin:minilm", window)
    return Captions(cohort, parse(CaptionConfig, config), tokenizer, 0)


def test_the_sentence_is_of_the_category_and_the_modality_of_the_row(cohort: Cohort) -> None:
    found = captions(cohort, knowledge="builtin:radiology", modality="kind")
    said = [{found.text(row, draw) for draw in range(30)} for row in range(6)]
    assert all("breast" in text and "mass" in text for text in said[0])
    assert all("breast" not in text for text in said[2]) and len(said[2]) > 3
    assert said[5] == {""}
    assert found.text(0, 4) == found.text(0, 4)


def test_without_knowledge_the_column_is_the_caption(cohort: Cohort) -> None:
    assert [captions(cohort).text(row, 0) for row in range(6)][::5] == ["benign", ""]
    reports = captions(cohort, column="report")
    assert [reports.text(row, 0) for row in (0, 1)] == ["Hypoechoic mass.", ""]
    assert reports.column == "report"


def test_pieces_of_a_word_share_its_number(cohort: Cohort) -> None:
    found = captions(cohort, column="report")(0, 0)
    tokens = open_tokenizer("builtin:minilm", 40).convert_ids_to_tokens(found["input_ids"])
    number, expected = -1, []
    for token in tokens:
        number += token not in ("[CLS]", "[SEP]") and not token.startswith("##")
        expected.append(-1 if token in ("[CLS]", "[SEP]") else number)
    assert any(token.startswith("##") for token in tokens)
    assert found["words"].tolist() == expected
    assert found["attention_mask"].all() and len(found["words"]) == len(tokens)
    short = captions(cohort, 4, column="report")(0, 0)
    assert len(short["input_ids"]) == 4 and short["input_ids"][-1] == found["input_ids"][-1]


def test_one_of_several_labels_is_drawn(cohort: Cohort) -> None:
    table = TABLE.drop(columns="label").assign(mass=[1, 1, 0, 0, 1, 0], cyst=[1, 0, 0, 1, 0, 0])
    several = Cohort.open(table, root=cohort.root, label=["mass", "cyst"])
    found = captions(several)
    drawn = Counter(found.text(0, draw) for draw in range(400))
    assert set(drawn) == {"mass", "cyst"} and abs(drawn["mass"] - 200) < 50
    assert [found.text(row, 0) for row in (1, 2, 3)] == ["mass", "", "cyst"]


def test_shuffling_gives_each_caption_to_another_row(cohort: Cohort) -> None:
    found = captions(cohort, knowledge="builtin:radiology", modality="kind", shuffle=True)
    plain = captions(cohort, knowledge="builtin:radiology", modality="kind")
    assert np.array_equal(np.sort(found.rows), np.arange(6)) and (found.rows != range(6)).any()
    assert [found.text(row, 1) for row in range(6)] == [plain.text(int(r), 1) for r in found.rows]


def test_what_cannot_be_said_is_refused(cohort: Cohort) -> None:
    with pytest.raises(DataError, match=r"category 'head'|category 'chest'"):
        captions(cohort, knowledge="builtin:radiology", modality="breast ultrasound")
    with pytest.raises(DataError, match="No modality is named"):
        captions(cohort, knowledge="builtin:radiology")
    with pytest.raises(DataError, match=r"'reprot'.*'report'"):
        captions(cohort, column="reprot")
    with pytest.raises(ConfigError, match="none is named"):
        captions(cohort, modality="kind")
    unlabelled = Cohort.open(TABLE[["patient_id", "image"]], root=cohort.root)
    with pytest.raises(DataError, match="Nothing says"):
        captions(unlabelled)
