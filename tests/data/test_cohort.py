"""Manifests, labels and splits."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from galenic.core.errors import ConfigError, DataError
from galenic.data.check import check
from galenic.data.cohort import Cohort
from galenic.data.labels import encode, infer
from galenic.data.splits import SplitConfig, make_splits


def table(n: int = 60, per_patient: int = 2, seed: int = 0) -> pd.DataFrame:
    rng = np.random.default_rng(seed)
    return pd.DataFrame(
        {
            "patient_id": [f"id{row // per_patient}" for row in range(n)],
            "age": rng.normal(60, 10, n),
            "score": rng.normal(size=n),
            "label": rng.choice(["a", "b", "c"], n, p=[0.6, 0.3, 0.1]),
        }
    )


@example(n=60, per_patient=4, seed=347, how="kfold")
@settings(max_examples=40, deadline=None)
@given(
    n=st.integers(60, 300),
    per_patient=st.integers(1, 4),
    seed=st.integers(0, 10**6),
    how=st.sampled_from(["stratified", "kfold", "few_shot"]),
)
def test_no_patient_stands_on_two_sides(n: int, per_patient: int, seed: int, how: str) -> None:
    cohort = Cohort.open(table(n, per_patient, seed))
    splits = make_splits(cohort, SplitConfig(how=how), seed)
    parts = [set(cohort.patient_ids[rows]) for rows in (splits.train, splits.val, splits.test)]
    assert not (parts[0] & parts[1] or parts[0] & parts[2] or parts[1] & parts[2])
    used = np.concatenate([splits.train, splits.val, splits.test])
    assert len(np.unique(used)) == len(used)
    if how != "few_shot":
        assert len(used) == n


def test_shares_and_classes_are_kept() -> None:
    cohort = Cohort.open(table(3000, 1))
    splits = make_splits(cohort, SplitConfig(val=0.15, test=0.2), 0)
    assert len(splits.test) / 3000 == pytest.approx(0.2, abs=0.01)
    y = cohort.targets()
    for rows in (splits.train, splits.val, splits.test):
        np.testing.assert_allclose(
            np.bincount(y[rows]) / len(rows), np.bincount(y) / len(y), atol=0.01
        )


def test_the_folds_cover_everyone_once() -> None:
    cohort = Cohort.open(table(120))
    tests = [make_splits(cohort, SplitConfig(how="kfold", fold=f), 1).test for f in range(5)]
    assert sorted(np.concatenate(tests)) == list(range(120))


def test_fewer_shots_are_a_subset_of_more() -> None:
    cohort = Cohort.open(table(400, 1))
    few, more = (make_splits(cohort, SplitConfig(how="few_shot", shots=k), 7).train for k in (2, 6))
    assert set(few) < set(more)
    assert np.bincount(cohort.targets()[few]).tolist() == [2, 2, 2]


def test_given_split_with_a_shared_patient_names_rows_not_people() -> None:
    given_parts = table(12, 2).assign(split=["train", "val", *["train", "test"] * 5])
    with pytest.raises(DataError, match="stand in two splits") as error:
        make_splits(Cohort.open(given_parts), SplitConfig(), 0)
    assert "rows 0, 1" in error.value.message
    assert "id0" not in error.value.message


def test_a_site_is_left_out_whole() -> None:
    sites = table(90, 1).assign(site=["north", "south", "west"] * 30)
    cohort = Cohort.open(sites)
    splits = make_splits(cohort, SplitConfig(how="leave_site_out", site="west"), 0)
    assert set(sites["site"].iloc[splits.test]) == {"west"}
    assert "west" not in set(sites["site"].iloc[splits.train])
    with pytest.raises(ConfigError, match="no site 'east'"):
        make_splits(cohort, SplitConfig(how="leave_site_out", site="east"), 0)


def test_the_future_is_the_test_part() -> None:
    dated = table(100, 1).assign(date=pd.date_range("2020-01-01", periods=100).astype(str))
    splits = make_splits(Cohort.open(dated), SplitConfig(how="by_date"), 0)
    assert splits.train.max() < splits.val.min() < splits.val.max() < splits.test.min()


@pytest.mark.parametrize(
    ("values", "kind", "classes"),
    [
        ([0, 1, 1, 0], "binary", ("0", "1")),
        ([0.0, 1.0, None, 0.0], "binary", ("0", "1")),
        (["x", "z", "y"], "multiclass", ("x", "y", "z")),
        ([10, 2, 1, 2], "multiclass", ("1", "2", "10")),
        ([0.5, 1.25, 3.0], "continuous", ()),
    ],
)
def test_kind_is_read_from_the_values(values: list, kind: str, classes: tuple) -> None:
    spec = infer(pd.DataFrame({"y": values}), ["y"])
    assert (spec.kind, spec.classes) == (kind, classes)


def test_blank_is_unknown() -> None:
    frame = pd.DataFrame({"a": [1, None, 0], "b": [0, 1, None]})
    encoded = encode(infer(frame, ["a", "b"]), frame)
    np.testing.assert_array_equal(encoded, np.array([[1, 0], [np.nan, 1], [0, np.nan]], np.float32))


def test_the_callers_table_is_left_alone() -> None:
    frame = table()
    before = pd.util.hash_pandas_object(frame).sum()
    cohort = Cohort.open(frame)
    cohort.table.loc[0, "age"] = 0
    assert pd.util.hash_pandas_object(frame).sum() == before


def test_fingerprint_follows_content() -> None:
    frame = table()
    same, other = Cohort.open(frame), frame.copy()
    other.loc[3, "age"] += 1
    assert same.fingerprint == Cohort.open(frame.copy()).fingerprint
    assert same.fingerprint != Cohort.open(other).fingerprint


def test_check_finds_leaks_across_the_split(tmp_path: Path) -> None:
    notes = pd.DataFrame(
        {
            "patient_id": range(9),
            "note": [f"a cough of {i} days" for i in range(8)] + ["a cough of 0 days"],
            "label": ["a", "b"] * 4 + ["a"],
            "split": ["train"] * 6 + ["val", "val", "test"],
        }
    )
    report = check(Cohort.open(notes, inputs=["note"]))
    leak = next(f for f in report.findings if f.code == "content-leak")
    assert leak.level == "error"
    assert leak.rows == (0, 8)


def test_check_reports_every_unreadable_file(tmp_path: Path) -> None:
    (tmp_path / "torn.png").write_bytes(b"\x89PNG\r\n\x1a\n half")
    frame = pd.DataFrame({"image": ["torn.png", "gone.png"], "label": ["a", "b"]})
    frame.to_csv(tmp_path / "cohort.csv", index=False)
    report = check(Cohort.open(tmp_path / "cohort.csv"))
    rows = {row for f in report.findings if f.code == "unreadable" for row in f.rows}
    assert rows == {0, 1}


def test_a_row_that_repeats_in_two_columns_counts_once() -> None:
    word = "a cough that does not go away"
    notes = pd.DataFrame({"patient_id": range(3), "note": [word] * 3, "advice": [word + " "] * 3})
    report = check(Cohort.open(notes))
    copies = next(f for f in report.findings if f.code == "same-content")
    assert copies.message.startswith("3 rows")


def test_a_column_of_pictures_and_films_is_not_read_as_words(real_data: Path) -> None:
    with pytest.raises(DataError, match=r"11 \.mpeg, 8 \.mp4"):
        Cohort.open(real_data / "lung_ultrasound_ccby/manifest.csv")
    words = Cohort.open(real_data / "lung_ultrasound_ccby/manifest.csv", inputs=["probe"])
    assert list(words.inputs) == ["table"]


def test_real_manifests_open(real_data: Path) -> None:
    ultrasound = Cohort.open(real_data / "busi_256_subset/manifest.csv")
    assert ultrasound.inputs == {"image": "image"}
    assert ultrasound.label is not None
    assert ultrasound.label.classes == ("benign", "malignant", "normal")
    assert ultrasound.read(0)["image"].pixels.shape[1:] == (256, 256)
    voice = Cohort.open(real_data / "als_voice/speakers.csv", inputs=["file"], label="label")
    assert voice.inputs == {"file": "audio"}
    assert voice.read(0)["file"].rate_hz == 16000


def test_sample_of_icd10_keeps_categories_together() -> None:
    cohort = Cohort.open("sample:icd10")
    assert cohort.label is not None
    assert len(cohort.label.classes) == 22
    assert 1800 < len(cohort) < 2200
    assert len(np.unique(cohort.patient_ids)) == cohort.table["category"].nunique()


def test_a_label_that_names_files_is_a_mask_or_refused(real_data: Path) -> None:
    masks = Cohort.open(real_data / "msd_hippocampus/cases.csv")
    assert masks.label is not None and masks.label.kind == "mask"
    assert masks.read_mask(0).voxels.shape == masks.read(0)["image"].voxels.shape
    with pytest.raises(DataError, match="names files"):
        Cohort.open(real_data / "als_voice/speakers.csv", inputs=["file"], label="file")


def test_several_labels_may_stand_in_one_cell() -> None:
    cells = ["MI;STTC", "NORM", None, " ", "STTC| MI", "NORM"]
    labels = pd.DataFrame({"size": [1.5, 2.0, 3.0, 4.0, 5.0, 6.0], "found": cells})
    cohort = Cohort.open(labels, label="found", kind="multilabel")
    assert cohort.label is not None
    assert cohort.label.classes == ("MI", "NORM", "STTC")
    nan = float("nan")
    expected = [[1, 0, 1], [0, 1, 0], [nan] * 3, [nan] * 3, [1, 0, 1], [0, 1, 0]]
    np.testing.assert_array_equal(cohort.targets(), expected)
    with pytest.raises(DataError, match=r"'HYP' is none[^:]*where: row 1"):
        encode(cohort.label, labels.assign(found=["MI", "HYP;MI"] * 3))


def test_a_row_of_unknown_site_may_be_of_any_site() -> None:
    sites = table(90, 1).assign(site=["north", "south", None] * 30)
    splits = make_splits(Cohort.open(sites), SplitConfig(how="leave_site_out", site="north"), 0)
    used = np.concatenate([splits.train, splits.val, splits.test])
    assert set(sites["site"].iloc[used]) == {"north", "south"}


def test_a_site_may_be_a_number() -> None:
    sites = table(90, 1).assign(site=[59, 71, 122] * 30)
    splits = make_splits(Cohort.open(sites), SplitConfig(how="leave_site_out", site=59), 0)  # type: ignore[arg-type]
    assert set(sites["site"].iloc[splits.test]) == {59}


@pytest.mark.parametrize("length", [200, 300, 900, 5000])
def test_words_of_any_length_are_text(tmp_path: Path, length: int) -> None:
    said = [("no fever, no cough. " * length)[:length] + str(row) for row in range(4)]
    table = pd.DataFrame({"patient_id": range(4), "said": said, "label": list("abab")})
    table.to_csv(tmp_path / "cohort.csv", index=False)
    cohort = Cohort.open(tmp_path / "cohort.csv", inputs=["said"])
    assert cohort.inputs == {"said": "text"}
    assert cohort.read(3)["said"] == said[3]
