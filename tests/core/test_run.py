"""The run folder: numbered without races, provenance without names, states and resume."""

from __future__ import annotations

import getpass
import json
import math
import os
import platform
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pandas as pd
import pytest

from galenic.core import provenance
from galenic.core.config import load_yaml
from galenic.core.errors import RunError
from galenic.core.figure import Figure
from galenic.core.run import Run


@pytest.fixture
def started(tmp_path: Path) -> Run:
    run = Run.create(tmp_path, "ssf")
    run.start({"a": {"b": 1}}, recipe="ssf", task="classify", command=["galenic"], seed=3)
    return run


def test_numbers_go_up_and_do_not_fill_holes(tmp_path: Path) -> None:
    assert Run.create(tmp_path / "new", "ssf").path.name == "ssf-0001"
    (tmp_path / "new" / "ssf-0007").mkdir()
    (tmp_path / "new" / "ssf-x").mkdir()
    assert Run.create(tmp_path / "new", "ssf").path.name == "ssf-0008"
    assert Run.create(tmp_path / "new", "lora").path.name == "lora-0001"


def test_no_two_processes_get_one_folder(tmp_path: Path) -> None:
    script = """
import sys
from pathlib import Path
from galenic.core.run import Run
sys.stdin.readline()
for _ in range(20):
    print(Run.create(Path(sys.argv[1]), "ssf").path.name)
"""
    workers = [
        subprocess.Popen(
            [sys.executable, "-c", script, str(tmp_path)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        for _ in range(3)
    ]
    for worker in workers:
        assert worker.stdin is not None
        worker.stdin.write("go\n")
        worker.stdin.flush()
    made = [line for worker in workers for line in worker.communicate()[0].split()]
    assert sorted(made) == [f"ssf-{n:04d}" for n in range(1, 61)]


def test_no_two_threads_get_one_folder(tmp_path: Path) -> None:
    with ThreadPoolExecutor(8) as pool:
        made = list(pool.map(lambda _: Run.create(tmp_path, "a").path.name, range(64)))
    assert len(set(made)) == 64


def test_an_existing_folder_is_refused_and_untouched(tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "x").write_text("kept")
    with pytest.raises(RunError, match="exists already") as caught:
        Run.create(tmp_path, "ssf", path=tmp_path / "mine")
    assert "--resume" in caught.value.next_step
    assert os.listdir(tmp_path / "mine") == ["x"]  # noqa: PTH208


def test_root_that_is_a_file(tmp_path: Path) -> None:
    (tmp_path / "runs").write_text("")
    with pytest.raises(RunError):
        Run.create(tmp_path / "runs", "ssf")


def test_start_writes_config_provenance_and_status(started: Run) -> None:
    assert started.config == {"a": {"b": 1}} == load_yaml(started.path / "config.yaml")
    assert started.state == "running"
    found = started.provenance
    assert (found["recipe"], found["task"], found["seed"]) == ("ssf", "classify", 3)
    assert {"galenic", "torch", "transformers", "peft", "numpy"} <= set(found["versions"])
    assert found["python"] == platform.python_version()
    started.update_provenance(data={"fingerprint": "f"}, weights={"backbone": "b"})
    started.update_provenance(data={"n": 3})
    assert started.provenance["data"] == {"fingerprint": "f", "n": 3}
    assert started.provenance["weights"] == {"backbone": "b"}


def test_provenance_names_nobody(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    home = tmp_path / "people" / "jdoe"
    monkeypatch.setenv("HOME", str(home))
    for name in ("LOGNAME", "USER", "LNAME", "USERNAME"):
        monkeypatch.setenv(name, "jdoe")
    assert getpass.getuser() == "jdoe"
    run = Run.create(tmp_path / "runs", "ssf")
    run.start(
        {},
        command=["galenic", "--data", f"{home}/c.csv", "/scratch/jdoe/x", f"--out={home}", "jdoex"],
    )
    command = run.provenance["command"]
    assert command == ["galenic", "--data", "~/c.csv", "/scratch/USER/x", "--out=~", "jdoex"]
    text = (run.path / "provenance.json").read_text()
    assert str(home) not in text
    assert not platform.node() or platform.node() not in text


def test_git_commit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path.parent))
    monkeypatch.chdir(tmp_path)
    assert provenance.git_commit() is None
    git = ["git", "-c", "user.name=a", "-c", "user.email=a@b.c"]
    (tmp_path / "x").write_text("1")
    for words in (["init", "-q"], ["add", "x"], ["commit", "-qm", "x"]):
        subprocess.run([*git, *words], check=True)
    found = provenance.git_commit()
    assert found is not None
    assert len(found["commit"]) == 40
    assert found["dirty"] is False
    (tmp_path / "x").write_text("2")
    assert (provenance.git_commit() or {})["dirty"] is True


def test_states(started: Run) -> None:
    started.fail("out of luck")
    assert Run.open(started.path).state == "failed"
    assert started.read_json("status.json")["message"] == "out of luck"
    again = Run.open(started.path)
    again.resume()
    assert again.resumed
    assert again.state == "running"
    again.finish()
    assert again.state == "finished"
    with pytest.raises(RunError, match="finished"):
        Run.open(started.path).resume()
    assert not [path.name for path in started.path.iterdir() if path.name.startswith(".")]


def test_a_run_that_is_being_written_is_not_resumed(started: Run) -> None:
    script = """
import sys
from pathlib import Path
from galenic.core.errors import RunError
from galenic.core.run import Run
try:
    Run.open(Path(sys.argv[1])).resume()
except RunError as error:
    print(error.found)
"""
    command = [sys.executable, "-c", script, str(started.path)]
    told = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    assert "still being written" in told
    started.fail("stopped")
    assert subprocess.run(command, capture_output=True, text=True, check=True).stdout == ""


def test_a_killed_run_can_be_resumed(tmp_path: Path) -> None:
    script = """
import os, sys
from pathlib import Path
from galenic.core.run import Run
run = Run.create(Path(sys.argv[1]), "ssf")
run.start({"a": 1}, task="classify")
(run.path / (".x.json." + "0" * 32 + ".tmp")).write_text("left")
os.kill(os.getpid(), 9)
"""
    subprocess.run([sys.executable, "-c", script, str(tmp_path)], check=False)
    run = Run.open(tmp_path / "ssf-0001")
    assert run.state == "running"
    run.resume()
    assert run.config == {"a": 1}
    assert not list(run.path.glob("*.tmp")) + list(run.path.glob(".*.tmp"))
    run.finish()


@pytest.mark.parametrize("exists", [True, False])
def test_open_what_is_no_run(tmp_path: Path, exists: bool) -> None:
    path = tmp_path / "x"
    if exists:
        path.mkdir()
    with pytest.raises(RunError, match="is not a run folder" if exists else "does not exist"):
        Run.open(path)


def test_files(started: Run) -> None:
    table = pd.DataFrame({"row": [1, 2], "score": [0.25, 0.5]}, index=[7, 9])
    started.write_table("predictions.parquet", table)
    found = pd.read_parquet(started.path / "predictions.parquet")
    pd.testing.assert_frame_equal(found, table.reset_index(drop=True))
    started.write_text("README.md", "Grüße")
    assert (started.path / "README.md").read_text(encoding="utf-8") == "Grüße"
    started.main = False
    started.write_bytes("masks/1.png", b"of a process that does not write")
    assert not (started.path / "masks").exists()
    started.main = True
    started.write_bytes("masks/1.png", b"\x89PNG")
    assert (started.path / "masks" / "1.png").read_bytes() == b"\x89PNG"
    started.log({"step": 1, "loss": 0.5})
    started.log({"step": 2, "loss": math.nan})
    assert [event["loss"] for event in started.events()] == [0.5, None]
    assert all("time" in event for event in started.events())


def test_metrics(started: Run) -> None:
    with pytest.raises(RunError, match=r"no metrics\.json"):
        _ = started.metrics
    auroc = {"value": 0.9, "low": 0.8, "high": 0.95, "level": 0.9, "n": 40}
    started.write_json("metrics.json", {"test": {"auroc": auroc, "f1": {"value": math.nan}}})
    assert started.metrics["auroc"] == Figure(0.9, 0.8, 0.95, 0.9, 40)
    assert math.isnan(started.metrics["f1"].value)


@pytest.mark.parametrize("fault", [ValueError("Ann Smith"), KeyboardInterrupt()])
def test_a_run_that_ends_in_a_fault_says_so_and_may_go_on(
    started: Run, fault: BaseException
) -> None:
    with pytest.raises(type(fault)), started.working():
        raise fault
    assert started.state == "failed"
    assert "Ann" not in (started.path / "status.json").read_text()
    started.resume()
    with started.working():
        pass
    assert started.state == "finished"


def test_broken_json_is_named(started: Run) -> None:
    (started.path / "metrics.json").write_text("{")
    with pytest.raises(RunError, match=r"metrics\.json cannot be read"):
        started.read_json("metrics.json")


def test_processes_of_one_launch_share_a_folder_and_one_writes(tmp_path: Path) -> None:
    script = """
import sys
from pathlib import Path
from galenic.core.run import Run
root = Path(sys.argv[1])
run = Run.create(root, "compare")
run.start({})
arm = Run.create(root, "ssf", path=run.path / "arms" / "ssf")
arm.start({})
arm.log({"rank": 0 if arm.main else 1})
arm.finish()
print(run.path.name, arm.state, arm.main)
run.finish()
again = Run.create(root, "compare")
again.start({})
print(again.path.name)
again.finish()
"""
    common = {
        **os.environ,
        "WORLD_SIZE": "2",
        "LOCAL_WORLD_SIZE": "2",
        "MASTER_PORT": "1234",
        "TORCHELASTIC_RUN_ID": "x",
    }
    workers = [
        subprocess.Popen(
            [sys.executable, "-c", script, str(tmp_path)],
            env={**common, "RANK": rank},
            stdout=subprocess.PIPE,
            text=True,
        )
        for rank in ("1", "0")
    ]
    try:
        told = [worker.communicate(timeout=60)[0].split() for worker in workers]
    finally:
        for worker in workers:
            worker.kill()
    assert told == [
        ["compare-0001", "finished", "False", "compare-0002"],
        ["compare-0001", "finished", "True", "compare-0002"],
    ]
    assert sorted(p.name for p in tmp_path.glob("[!.]*")) == ["compare-0001", "compare-0002"]
    lines = (tmp_path / "compare-0001" / "arms" / "ssf" / "log.jsonl").read_text().splitlines()
    assert [json.loads(line)["rank"] for line in lines] == [0]
