"""A run that is killed goes on to the same end."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from pathlib import Path

import pandas as pd
from typer.testing import CliRunner

from galenic.app.cli import app
from galenic.core.run import Run

WORDS = [
    "run", "linear", "--data", "sample:breast-fna", "score.resamples=20", "schedule.epochs=20",
    "schedule.patience=null", "schedule.batch_size=8", "schedule.checkpoint_steps=25",
]  # fmt: skip


def predictions(path: Path) -> pd.DataFrame:
    return pd.read_parquet(path / "predictions.parquet")


def test_a_killed_run_goes_on_to_the_same_end(tmp_path: Path) -> None:
    place = ["--out", str(tmp_path), "--name"]
    process = subprocess.Popen([sys.executable, "-m", "galenic", *WORDS, *place, "killed"])
    path = tmp_path / "killed"
    while process.poll() is None:
        if len(list(path.glob("checkpoints/*/checkpoint-*"))) > 1:
            process.send_signal(signal.SIGKILL)
            process.wait()
        time.sleep(0.01)
    assert process.returncode == -signal.SIGKILL, "it ended before it could be killed"
    assert Run.open(path).state == "running"
    assert not (path / "predictions.parquet").exists()

    report = CliRunner().invoke(app, ["report", str(path)])
    assert report.exit_code == 0, report.output
    assert "running" in (path / "report.html").read_text()

    resumed = CliRunner().invoke(app, ["run", "--resume", str(path)])
    assert resumed.exit_code == 0, resumed.output
    whole = CliRunner().invoke(app, [*WORDS, *place, "whole"])
    assert whole.exit_code == 0, whole.output
    pd.testing.assert_frame_equal(
        predictions(path), predictions(tmp_path / "whole"), check_exact=True
    )
    assert Run.open(path).state == "finished"
