"""`galenic events`: from records to MEDS and to labels, and the way out of bad input."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import polars as pl
import pytest
from typer.testing import CliRunner, Result

from galenic.app.cli import app


def events(*words: object) -> Result:
    return CliRunner().invoke(app, ["events", *map(str, words)])


@pytest.fixture(scope="module")
def folder(real_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("events") / "out"
    made = events("read", real_data / "mimic3_demo_tables", "--mapping", "mimic3", "--out", out)
    assert made.exit_code == 0
    assert "13,092 events of 100 patients" in made.output
    assert "units disagree" in made.output
    return out


def test_what_is_left_out_lies_beside(folder: Path) -> None:
    report = pl.read_csv(folder / "rejections.csv")
    assert report["count"].sum() > 10_000
    assert {path.name for path in folder.iterdir()} == {"data", "metadata", "rejections.csv"}


def test_labels_are_written_and_told(folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "labels.csv"
    made = events("label", folder, "--task", "readmission", "--out", out, "--json")
    counts = json.loads(made.output)
    labels = pl.read_csv(out)
    assert labels.columns == ["patient_id", "cutoff", "label"]
    assert (len(labels), labels["label"].sum()) == (counts["samples"], counts["positive"])
    assert counts["samples"] + sum(counts["excluded"].values()) == 129
    told = events("label", folder, "--task", "readmission", "--out", out).output
    assert f"{counts['samples']} samples" in told
    assert "excluded, dead" in told


def test_overrides_reach_the_task(folder: Path, tmp_path: Path) -> None:
    words = ("--task", "length_of_stay", "--out", tmp_path / "labels.csv", "--json")
    counts = [
        json.loads(events("label", folder, *words, f"label.at_least={days}d").output)["positive"]
        for days in (2, 30)
    ]
    assert counts[0] > counts[1] > 0


@pytest.mark.parametrize(
    ("words", "code", "found"),
    [
        (["read", "nowhere", "--out", "x"], 3, "There is no 'nowhere'"),
        (["read", ".", "--mapping", "omp", "--out", "x"], 2, "Did you mean 'omop'"),
        (["read", ".", "--timezone", "Moon", "--out", "x"], 2, "no time zone 'Moon'"),
        (["label", "nowhere", "--task", "mortality", "--out", "x"], 3, "There is no 'nowhere'"),
        (["label", ".", "--task", "mortalty", "--out", "x"], 2, "Did you mean 'mortality'"),
    ],
)
def test_bad_input_shows_the_way_out(
    words: list[str], code: int, found: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    made = events(*words)
    assert (made.exit_code, "Traceback" in made.output) == (code, False)
    assert found in made.output
    assert list(tmp_path.iterdir()) == []


def test_the_command_line_starts_without_polars() -> None:
    code = "import sys, galenic.app.cli; assert not {'polars', 'orjson'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_a_missing_extra_names_its_command() -> None:
    code = (
        "import sys; sys.modules['polars'] = None\n"
        "try:\n    import galenic.data.events\n"
        "except Exception as error:\n    print(error)"
    )
    told = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert 'pip install "galenic[records]"' in told.stdout
