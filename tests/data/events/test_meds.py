"""MEDS: what is written comes back exactly, in one part or many; other writers are read."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from pathlib import Path

import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from galenic.core.errors import DataError, RunError
from galenic.data.events import convert, meds, ordered, read
from galenic.data.events.schema import SCHEMA, SOURCES

WORDS = st.text(st.characters(codec="utf-8"), max_size=8)
TIMES = st.datetimes(datetime(1900, 1, 1), datetime(2200, 1, 1)).map(
    lambda t: t.replace(tzinfo=UTC)
)
ROWS = st.fixed_dictionaries(
    {
        "patient_id": st.one_of(st.integers(0, 3).map(str), WORDS.filter(bool), st.just("007")),
        "time": st.none() | TIMES,
        "code": WORDS.filter(lambda code: code and not code.startswith("MEDS_")),
        "value": st.none() | st.floats(allow_nan=False, allow_infinity=False),
        "text": st.none() | WORDS,
        "unit": st.none() | WORDS,
        "source": st.sampled_from([name for name in SOURCES if name != "encounter"]),
        "encounter_id": st.none() | WORDS,
        "end": st.none(),
    }
)


@settings(max_examples=25, deadline=None)
@given(st.lists(ROWS, min_size=1, max_size=12))
def test_what_is_written_comes_back(
    tmp_path_factory: pytest.TempPathFactory, rows: list[dict[str, object]]
) -> None:
    frame = ordered(pl.DataFrame(rows, schema=SCHEMA))
    folder = meds.write(frame, tmp_path_factory.mktemp("meds") / "out")
    assert read(folder).frame.equals(frame)


def test_the_folder_is_laid_out_as_the_standard_says(real_data: Path, tmp_path: Path) -> None:
    made = read(real_data / "fhir_synthea_r4" / "bundles")
    folder = meds.write(made.frame, tmp_path / "out", made.names)
    shard = pl.read_parquet(folder / "data" / "0.parquet")
    assert dict(list(shard.schema.items())[:5]) == {
        "subject_id": pl.Int64(),
        "time": pl.Datetime("us"),
        "code": pl.String(),
        "numeric_value": pl.Float32(),
        "text_value": pl.String(),
    }
    # Events of a subject stand together, in the order of their times, static ones first.
    assert shard["subject_id"].rle().struct.field("value").is_unique().all()
    steps = shard.select(pl.col("time").diff().over("subject_id").dt.total_seconds()).to_series()
    assert steps.drop_nulls().min() >= 0
    codes = pl.read_parquet(folder / "metadata" / "codes.parquet")
    assert set(codes["code"]) == set(made.frame["code"])
    names = dict(codes.select("code", "description").iter_rows())
    assert names["LOINC//8302-2"] == "Body Height"
    splits = pl.read_parquet(folder / "metadata" / "subject_splits.parquet")
    assert set(splits["subject_id"]) == set(shard["subject_id"])
    assert set(splits["split"]) == {"train", "tuning", "held_out"}
    about = json.loads((folder / "metadata" / "dataset.json").read_text())
    assert about["etl_name"] == "galenic"


@pytest.mark.parametrize(
    ("source", "mapping"),
    [("fhir_synthea_r4/bundles", None), ("mimic3_demo_tables", "mimic3")],
)
def test_many_small_parts_give_what_one_reading_gives(
    source: str, mapping: str | None, real_data: Path, tmp_path: Path
) -> None:
    whole = read(real_data / source, mapping=mapping)
    made = convert([real_data / source], tmp_path / "out", mapping=mapping, share=1 << 16)
    assert len(list((tmp_path / "out" / "data").iterdir())) > 3
    assert read(tmp_path / "out").frame.equals(whole.frame)
    assert made.rejected.equals(whole.rejected)
    assert (made.events, made.patients) == (len(whole.frame), whole.frame["patient_id"].n_unique())


def test_a_folder_of_another_writer_is_read(tmp_path: Path) -> None:
    (tmp_path / "data" / "train").mkdir(parents=True)
    pl.DataFrame(
        {
            "subject_id": [12, 12, 12, None],
            "time": [None, datetime(2020, 1, 1), datetime(2020, 1, 2), datetime(2020, 1, 3)],
            "code": ["GENDER//F", "MEDS_BIRTH", "LAB//50912//mg/dL", "x"],
            "numeric_value": pl.Series([None, None, 0.5, None], dtype=pl.Float32),
        }
    ).write_parquet(tmp_path / "data" / "train" / "0.parquet")
    made = read(tmp_path)
    assert made.frame.select("patient_id", "source", "value").rows() == [
        ("12", "patient", None),
        ("12", "patient", None),
        ("12", "lab", 0.5),
    ]
    assert made.rejected.select("source", "reason", "count").rows() == [
        ("0.parquet", "no patient", 1)
    ]


@pytest.mark.parametrize("content", [b"", b"PAR1", b"not parquet at all" * 99])
def test_a_broken_shard_is_an_error_of_data(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "0.parquet").write_bytes(content)
    with pytest.raises(DataError, match=r"0\.parquet"):
        read(tmp_path)


def test_a_shard_without_codes_is_an_error_of_data(tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    pl.DataFrame({"subject_id": [1]}).write_parquet(tmp_path / "data" / "0.parquet")
    with pytest.raises(DataError, match="code"):
        read(tmp_path)


def test_numbers_of_subjects_do_not_meet() -> None:
    assert meds.subject_id("42") == 42
    others = {meds.subject_id(name) for name in ("042", "+42", "42 ", "p42", str(1 << 63), "٤٢")}
    assert len(others) == 6
    assert all((1 << 62) <= number < (1 << 63) for number in others)


def test_an_existing_folder_is_left_alone(real_data: Path, tmp_path: Path) -> None:
    (tmp_path / "note.txt").write_text("mine")
    with pytest.raises(RunError, match="exists already"):
        convert([real_data / "mimic3_demo_tables"], tmp_path, mapping="mimic3")
    assert [path.name for path in tmp_path.iterdir()] == ["note.txt"]
