"""Tables as files hold them, and the cohorts that they make."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from galenic.core.errors import ConfigError, DataError
from galenic.data import tables
from galenic.data.cohort import Cohort
from galenic.data.manifest import read_table
from galenic.data.splits import SplitConfig, make_splits
from galenic.data.tabular import TabularEncoder


def of_text(folder: Path, text: str | bytes, name: str = "m.csv") -> pd.DataFrame:
    raw = text.encode() if isinstance(text, str) else text
    (folder / name).write_bytes(raw)
    return tables.plain(read_table(folder / name))


def graded(folder: Path) -> pd.DataFrame:
    """Ten pictures, each as bright as its row."""
    for row in range(10):
        Image.fromarray(np.full((8, 8), 20 * row, np.uint8)).save(folder / f"{row}.png")
    names = [f"{row}.png" for row in range(10)]
    return pd.DataFrame({"patient_id": range(10), "image": names, "label": ["dark", "light"] * 5})


# An index ------------------------------------------------------------------------------------


@pytest.mark.parametrize("order", ["shuffled", "some", "twice"])
def test_a_saved_index_parts_no_picture_from_its_label(tmp_path: Path, order: str) -> None:
    table = graded(tmp_path)
    chosen = {
        "shuffled": table.sample(frac=1, random_state=1),
        "some": table.iloc[3:8],
        "twice": pd.concat([table.iloc[2:6], table.iloc[:3]]),
    }[order]
    chosen.to_parquet(tmp_path / "m.parquet")
    cohort = Cohort.open(tmp_path / "m.parquet")
    assert cohort.label is not None and len(cohort) == len(chosen)
    for row, target in enumerate(cohort.targets()):
        number = int(cohort.read(row)["image"].pixels[0, 0, 0]) // 20
        assert cohort.label.classes[target] == table["label"][number]
        assert cohort.table["patient_id"][row] == number


def test_patients_that_are_the_index_are_patients(tmp_path: Path) -> None:
    graded(tmp_path).set_index("patient_id").to_parquet(tmp_path / "m.parquet")
    cohort = Cohort.open(tmp_path / "m.parquet")
    assert "patient_id" in cohort.table and not cohort.notes


def test_the_callers_frame_keeps_its_blanks(tmp_path: Path) -> None:
    frame = pd.DataFrame({" a ": [" x ", ""], "b": [1, 2]}, index=[5, 6])
    before = frame.copy(deep=True)
    table = tables.plain(frame)
    pd.testing.assert_frame_equal(frame, before)
    assert list(table) == ["a", "b"] and table["a"][0] == "x" and pd.isna(table["a"][1])


def test_two_columns_of_one_name_are_refused() -> None:
    with pytest.raises(DataError, match="Two columns are called 'a'"):
        tables.plain(pd.DataFrame([[1, 2]], columns=["a", "a "]))


# Cells ---------------------------------------------------------------------------------------


def test_rows_that_end_in_separators_stand_under_their_columns(tmp_path: Path) -> None:
    rows = [["patient_id", "code", "label", "age"]]
    rows += [[f"p{i}", f"0{i}", str(i % 2), str(50 + i)] for i in range(6)]
    plain = of_text(tmp_path, "\n".join(map(",".join, rows)))
    ended = of_text(
        tmp_path, "\n".join([",".join(rows[0]), *(",".join(r) + ",," for r in rows[1:])])
    )
    pd.testing.assert_frame_equal(ended, plain)
    assert list(plain["age"]) == [50, 51, 52, 53, 54, 55]


def test_a_header_that_ends_in_separators_names_no_column(tmp_path: Path) -> None:
    table = of_text(tmp_path, "record,x,,\n001,2,,\n002,3,,\n")
    assert list(table) == ["record", "x"]
    assert list(table["record"]) == ["001", "002"] and list(table["x"]) == [2, 3]
    twice = of_text(tmp_path, "x,x,y\n01,2,3\n02,3,4\n")
    assert list(twice["x"]) == ["01", "02"] and list(twice["x.1"]) == [2, 3]


def test_a_cell_too_many_names_its_row(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="more cells") as raised:
        of_text(tmp_path, "a,b\n1,2,\n1,2,5\n")
    assert raised.value.where == "row 1"


def test_none_is_a_grade_and_nothing_between_numbers(tmp_path: Path) -> None:
    table = of_text(tmp_path, "grade,age,unit\nNone,None,NA\nmild,4,mm\nsevere,5.5,mm\n")
    assert list(table["grade"]) == ["None", "mild", "severe"]
    np.testing.assert_array_equal(table["age"], [np.nan, 4, 5.5])
    assert table["unit"].isna().tolist() == [True, False, False]


@pytest.mark.parametrize("multiline", [False, True])
def test_codes_keep_their_zeros_and_numbers_are_numbers(tmp_path: Path, multiline: bool) -> None:
    note = '"two\nlines"' if multiline else "one"
    long = "12345678901234567890"
    text = f"record,id,x,n,note\n00001,{long},0.5,,{note}\n2,{long[::-1]},10,3,b\n"
    table = of_text(tmp_path, text)
    assert list(table["record"]) == ["00001", "2"] and list(table["id"]) == [long, long[::-1]]
    assert list(table["x"]) == [0.5, 10] and table["n"].dtype == float


@settings(max_examples=50, deadline=None)
@given(
    st.lists(
        st.tuples(st.integers(-99, 99), st.floats(-1e6, 1e6), st.text("abc ü", max_size=5)),
        min_size=1,
        max_size=8,
    ),
    st.sampled_from(",;\t"),
)
def test_any_separator_gives_the_same_table(rows: list, separator: str) -> None:
    frame = pd.DataFrame(rows, columns=["n", "x", "word"])
    raw = frame.to_csv(index=False, sep=separator).encode()
    parsed = tables.plain(tables._with_numbers(tables._read_csv(raw, separator), separator == ";"))
    np.testing.assert_array_equal(parsed["n"], frame["n"])
    np.testing.assert_allclose(parsed["x"], frame["x"], rtol=1e-14)
    words = [word.strip() or None for word in frame["word"]]
    assert [None if pd.isna(w) else w for w in parsed["word"]] == words


def test_a_table_as_excel_writes_it_in_europe(tmp_path: Path) -> None:
    text = "patient_id;temp;grade;code\r\n1;36,6;grün;1,2\r\n2;38;rot;x\r\n3;;rot;3\r\n"
    table = of_text(tmp_path, text.encode("utf-8-sig"))
    np.testing.assert_array_equal(table["temp"], [36.6, 38, np.nan])
    assert list(table["code"]) == ["1,2", "x", "3"] and list(table) == text[:28].strip().split(";")
    packed = of_text(tmp_path, gzip.compress(text.encode()), "m.csv.gz")
    pd.testing.assert_frame_equal(packed, table)
    with pytest.raises(DataError, match="not in UTF-8") as raised:
        of_text(tmp_path, text.encode("cp1252"))
    assert raised.value.where.endswith("line 2") and "UTF-8" in raised.value.next_step


def test_json_lines_mean_what_they_say(tmp_path: Path) -> None:
    rows = [
        {"patient_id": 1, "record": "00001", "date": "2026", "label": ["MI", "NORM"]},
        {"patient_id": "1", "record": " ", "date": "x", "label": []},
        {"patient_id": 2, "record": "3", "date": "y", "label": ["MI"]},
    ]
    table = of_text(tmp_path, "\n".join(map(json.dumps, rows)), "m.jsonl")
    assert (
        table["record"].fillna("-").tolist() == ["00001", "-", "3"] and table["date"][0] == "2026"
    )
    cohort = Cohort.open(tmp_path / "m.jsonl", inputs=["record"])
    assert cohort.patient_ids.tolist() == [0, 0, 1]
    assert cohort.label is not None and cohort.label.classes == ("MI", "NORM")
    np.testing.assert_array_equal(cohort.targets(), [[1, 1], [np.nan] * 2, [1, 0]])
    with pytest.raises(DataError, match="holds lists"):
        Cohort.open(tmp_path / "m.jsonl", inputs=["record"], kind="multiclass")


# Meaning -------------------------------------------------------------------------------------


def test_a_blank_makes_no_other_patient_class_or_part(tmp_path: Path) -> None:
    text = "patient_id,x,y,label,split\n" + "".join(
        f"p{i // 2}{' ' * (i % 2)},{i},{i % 3},{'ab'[i // 2 % 2]}{' ' * (i % 2)}, {part}\n"
        for i, part in enumerate(["training"] * 4 + ["Validation"] * 2 + ["test"] * 2 + [""] * 2)
    )
    (tmp_path / "m.csv").write_text(text)
    cohort = Cohort.open(tmp_path / "m.csv")
    assert cohort.patient_ids.tolist() == [0, 0, 1, 1, 2, 2, 3, 3, 4, 4]
    assert cohort.label is not None and cohort.label.classes == ("a", "b")
    splits = make_splits(cohort, SplitConfig(), seed=0)
    found = [part.tolist() for part in (splits.train, splits.val, splits.test)]
    assert found == [[0, 1, 2, 3], [4, 5], [6, 7]]


@pytest.mark.parametrize("name", ["note.txt", "NOTE.TXT"])
def test_a_column_may_name_texts(tmp_path: Path, name: str) -> None:
    for row in range(4):
        (tmp_path / f"{row}{name}").write_text(f"cough of {row} days")
    frame = pd.DataFrame({"patient_id": range(4), "note": [f"{row}{name}" for row in range(4)]})
    cohort = Cohort.open(frame, root=tmp_path)
    assert cohort.inputs == {"note": "text"} and cohort.read(2) == {"note": "cough of 2 days"}


def test_records_called_by_numbers_are_records(real_data: Path, tmp_path: Path) -> None:
    header = next((real_data / "ptbxl_500").rglob("*.hea"))
    for number in ("00001", "00002", "7"):
        text = header.read_text().replace(header.stem, number)
        (tmp_path / f"{number}.hea").write_text(text)
        (tmp_path / f"{number}.dat").write_bytes(header.with_suffix(".dat").read_bytes())
    text = "patient_id,record,label\n1,00001,0\n2,00002,1\n"
    (tmp_path / "m.csv").write_text(text)
    assert Cohort.open(tmp_path / "m.csv").inputs == {"record": "ecg"}
    (tmp_path / "n.csv").write_text("patient_id,record,label\n1,7,0\n2,7,1\n")
    cohort = Cohort.open(tmp_path / "n.csv")
    assert cohort.inputs == {"record": "ecg"} and cohort.read(1)["record"].samples.size


def test_classes_are_called_alike_in_every_subset() -> None:
    frame = pd.DataFrame({"patient_id": range(6), "x": range(6), "label": [0, 0.5, 1] * 2})
    cohort = Cohort.open(frame, kind="ordinal")
    assert cohort.label is not None and cohort.label.classes == ("0", "0.5", "1")
    assert cohort.subset([0, 2]).targets().tolist() == [0, 2]
    mixed = Cohort.open(frame.assign(label=pd.Series([0, "0", 1, "1", 1.0, 0], dtype=object)))
    assert mixed.targets().tolist() == [0, 0, 1, 1, 1, 0]


def test_dates_are_dates_however_written() -> None:
    base = pd.DataFrame({"patient_id": range(12), "x": range(12), "label": [0, 1] * 6})
    days = pd.date_range("2020-01-01", periods=12, freq="90D")
    wanted = None
    for dates in (
        days.astype(str),
        days.strftime("%Y%m%d").astype(int),
        days.tz_localize("Asia/Tokyo"),
    ):
        cohort = Cohort.open(base.assign(date=dates))
        config = SplitConfig(how="by_date", date="2022-01-01")
        splits = make_splits(cohort, config, seed=0)
        wanted = splits.test.tolist() if wanted is None else wanted
        assert splits.test.tolist() == wanted == [9, 10, 11]
    with pytest.raises(ConfigError, match="soon"):
        make_splits(cohort, SplitConfig(how="by_date", date="soon"), seed=0)


def test_categories_and_flat_columns_are_encoded_alike_elsewhere() -> None:
    train = pd.DataFrame({"stage": ["1", "2", "unknown"] * 3, "flat": [0.1] * 9})
    train["count"] = pd.array([1, 2, None] * 3, dtype="Int64")
    encoder = TabularEncoder.fit(train, np.arange(9))
    new = pd.DataFrame({"stage": [1.0, np.nan, 2.0], "flat": [0.1, 0.2, 0.1], "count": [1, 2, 1]})
    found = pd.DataFrame(encoder.transform(new), columns=encoder.names)
    assert found["stage = 1"].tolist() == [1, 0, 0] and found["stage = 2"].tolist() == [0, 0, 1]
    np.testing.assert_allclose(found["flat"], [0, 0.1, 0], atol=1e-6)


@pytest.mark.parametrize("name", ["MRN", "Patient ID", "patient-id"])
def test_patients_are_found_by_their_usual_names(name: str) -> None:
    frame = pd.DataFrame({name: [1, 1, 2, 3], "x": range(4), "label": [0, 0, 1, 1]})
    assert Cohort.open(frame).patient_column == name


def test_what_names_rows_is_no_feature_unless_it_is_asked_for() -> None:
    frame = pd.DataFrame({"x": range(120), "sex": ["f", "m"] * 60, "label": [0, 1] * 60})
    frame["fall"] = [f"F{row // 2}" for row in range(120)]
    cohort = Cohort.open(frame)
    assert cohort.feature_columns == ("x", "sex") and cohort.patient_column is None
    assert any("'fall' is left out" in note for note in cohort.notes)
    asked = Cohort.open(frame, inputs=["x", "fall"])
    assert asked.feature_columns == ("x", "fall")
    assert len(np.unique(Cohort.open(frame, patient_id="fall").patient_ids)) == 60
