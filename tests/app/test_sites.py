"""`galenic sites` and `--resume`: what is wrong is told, and what comes next."""

from __future__ import annotations

from pathlib import Path

import pandas as pd
import pytest
from typer.testing import CliRunner

from galenic.app.cli import app


@pytest.fixture
def manifest(tmp_path: Path) -> Path:
    table = pd.DataFrame(
        {
            "size": [float(row * 7 % 11) for row in range(60)],
            "weight": [float(row * 5 % 13) for row in range(60)],
            "outcome": ["well", "ill"] * 30,
            "hospitals": ["a", "a", "b", "b", "c", "c"] * 10,
            "ward": ["x", "y"] * 30,
            "period": ["old", "new", "new", "old", "mid", "new"] * 10,
        }
    )
    path = tmp_path / "cohort.csv"
    table.to_csv(path, index=False)
    return path


def told(*words: str) -> tuple[int, str]:
    done = CliRunner().invoke(app, ["sites", *words])
    return done.exit_code, " ".join(done.output.split())


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ([], "Did you mean 'hospitals'?"),
        (["--site", "hopsitals"], "Did you mean 'hospitals'?"),
        (["--site", "ward"], "2 site(s)"),
        (["--site", "hospitals", "--smallest", "21"], "at least 21"),
        (["--site", "period"], "'mid' lacks 'ill'"),
        (["--site", "hospitals", "schedule.epoch=3"], "epochs"),
    ],
)
def test_what_cannot_be_done_is_refused_before_anything_is_made(
    manifest: Path, tmp_path: Path, words: list[str], expected: str
) -> None:
    out = tmp_path / "runs"
    code, output = told(
        "linear", *words, "--data", str(manifest), "--label", "outcome", "--out", str(out)
    )
    assert code not in (0, 1)
    assert expected in output
    assert "Traceback" not in output
    if "schedule.epoch=3" not in words:
        assert not out.exists()


def test_recipes_and_data_are_asked_for(manifest: Path) -> None:
    assert "No data was named" in told("linear")[1]
    assert "No recipe was named" in told("--data", str(manifest))[1]
    assert "no recipe" in told("lorra", "--data", str(manifest), "--site", "hospitals")[1].lower()


@pytest.mark.parametrize("verb", ["sites", "curve"])
def test_resume_takes_nothing_else_and_needs_a_folder_of_its_kind(
    verb: str, manifest: Path, tmp_path: Path
) -> None:
    def tell(*words: str) -> str:
        return " ".join(CliRunner().invoke(app, [verb, *words]).output.split())

    assert "takes no recipes" in tell("linear", "--resume", str(tmp_path))
    assert "is not a run folder" in tell("--resume", str(tmp_path))
    run = tmp_path / "one"
    made = CliRunner().invoke(
        app,
        ["run", "knn", "--data", str(manifest), "--label", "outcome", "--name", "one", "--quick",
         "--out", str(tmp_path)],
    )  # fmt: skip
    assert made.exit_code == 0, made.output
    assert f"a folder that `galenic {verb}` made" in tell("--resume", str(run))
