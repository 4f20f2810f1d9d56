"""The command line: what is printed where, exit codes, and how fast it answers."""

from __future__ import annotations

import dataclasses
import json
import os
import re
import subprocess
import sys
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from typer.main import get_command
from typer.testing import CliRunner

from galenic import launch
from galenic.app import diagnosis, keys, screen
from galenic.app.cli import app, main
from galenic.core.errors import DataError, MissingExtraError
from galenic.core.recipes import open_recipe, recipe_path
from galenic.core.run import Run

VERBS = [
    "ls", "show", "cp", "run", "predict", "compare", "curve", "protocol", "sites", "merge", "patch",
    "port", "check", "report", "evidence", "doctor",
]  # fmt: skip
AUROC = {"value": 0.9, "low": 0.8, "high": 0.95, "level": 0.95, "n": 40}


def call(*words: str) -> Any:
    return CliRunner().invoke(app, list(words))


def spawn(*words: str, **options: Any) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "galenic", *words],
        capture_output=True,
        text=True,
        check=False,
        **options,
    )


def finished(root: Path, name: str = "ssf") -> Run:
    run = Run.create(root, name)
    run.start({}, recipe=name, task="classify")
    run.write_json("metrics.json", {"main": "auroc", "test": {"auroc": AUROC}})
    run.finish()
    return run


@pytest.fixture
def no_report(monkeypatch: pytest.MonkeyPatch) -> None:
    from galenic.app import report

    monkeypatch.setattr(report, "write", lambda path: Path(path) / "report.html", raising=False)


# What needs no recipe to be run ---------------------------------------------------------


@pytest.mark.parametrize("verb", [[], *([verb] for verb in VERBS)])
def test_help_has_examples(verb: list[str]) -> None:
    result = call(*verb, "--help")
    assert result.exit_code == 0
    words = ["galenic", *verb]
    assert len(re.findall(rf"(?m)^\s*{' '.join(words)}\b", result.output)) >= 1


def test_ls_names_every_recipe() -> None:
    result = call("ls")
    assert result.exit_code == 0
    for name in ("knn", "linear", "bitfit", "lora", "full", "ssf"):
        assert re.search(rf"(?m)^ *{name} ", result.output)


def test_ls_json() -> None:
    found = json.loads(call("ls", "--json").output)
    ssf = next(entry for entry in found if entry["recipe"] == "ssf")
    assert ssf["about"]["mergeable"] is True
    assert "2210.08823" in ssf["about"]["paper"]


@pytest.mark.parametrize("words", [["ls"], ["show", "ssf", "--plain"], ["run", "--help"]])
def test_light_verbs_import_nothing_heavy(words: list[str]) -> None:
    script = f"""
import sys
from galenic.app.cli import app
try:
    app({words!r})
except SystemExit:
    pass
heavy = ("torch", "transformers", "peft", "monai", "sklearn", "pandas", "numpy", "matplotlib")
print("HEAVY", [name for name in heavy if name in sys.modules])
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert done.stdout.endswith("HEAVY []\n"), done.stdout + done.stderr


def test_version() -> None:
    from galenic import __version__

    assert call("--version").output == f"galenic {__version__}\n"


def test_show_plain_is_the_file() -> None:
    text = recipe_path("ssf").read_text(encoding="utf-8").rstrip()
    assert call("show", "ssf", "--plain").output.rstrip() == text


def test_cp_copies_and_never_overwrites(tmp_path: Path) -> None:
    target = tmp_path / "mine.yaml"
    assert call("cp", "ssf", str(target)).exit_code == 0
    assert open_recipe(target) == open_recipe("ssf")
    target.write_text("mine")
    result = call("cp", "lora", str(target))
    assert result.exit_code == 2
    assert "exists already" in result.stderr
    assert target.read_text() == "mine"


def test_cp_into_a_folder_and_nowhere(tmp_path: Path) -> None:
    assert call("cp", "ssf", str(tmp_path)).exit_code == 0
    assert (tmp_path / "ssf.yaml").is_file()
    result = call("cp", "ssf", str(tmp_path / "no" / "x.yaml"))
    assert result.exit_code == 2
    assert "cannot be written" in result.stderr


@pytest.mark.parametrize(
    ("words", "code", "parts"),
    [
        (["show", "sfs"], 2, ["no recipe 'sfs'", "Did you mean 'ssf'", "galenic ls"]),
        (["run", "lorra", "--data", "x.csv"], 2, ["Did you mean 'lora'"]),
        (["run", "nowhere.yaml"], 2, ["There is no file 'nowhere.yaml'"]),
        (["run", "ssf"], 2, ["No data was named", "--data"]),
        (["run"], 2, ["No recipe was named"]),
        (["run", "tuner.rank=8", "--data", "x.csv"], 2, ["No recipe was named"]),
        (["run", "ssf", "--resume", "runs/x"], 2, ["takes no recipe"]),
        (["run", "ssf", "epochs", "--data", "x"], 2, ["Override 'epochs' has no '='"]),
        (["run", "--resume", "nowhere"], 6, ["'nowhere' does not exist"]),
        (["compare", "a=1", "--data", "x.csv"], 2, ["No recipe was named"]),
        (["compare", "linar", "ssf", "--data", "x"], 2, ["Did you mean 'linear'"]),
        (["report", "nowhere"], 6, ["'nowhere' does not exist"]),
    ],
)
def test_bad_input_has_a_way_out(
    words: list[str], code: int, parts: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    result = call(*words)
    assert result.exit_code == code, result.output
    for part in parts:
        assert part in result.stderr
    assert "Traceback" not in result.stderr
    assert result.stdout == ""


def test_exit_codes_of_the_real_process(tmp_path: Path) -> None:
    done = spawn("show", "sfs")
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("error: There is no recipe 'sfs'")
    assert "Traceback" not in done.stderr
    loud = spawn("show", "sfs", "--debug")
    assert loud.returncode == 2
    assert "Traceback" in loud.stderr
    assert spawn("show").returncode == 2
    assert spawn("lss").returncode == 2
    assert spawn("ls", "--nope").returncode == 2


def test_a_reader_that_leaves_is_no_fault() -> None:
    command = f"{sys.executable} -m galenic ls --json | head -c 1; exit ${{PIPESTATUS[0]}}"
    done = subprocess.run(["bash", "-c", command], capture_output=True, text=True, check=False)
    assert "Traceback" not in done.stderr
    assert "BrokenPipe" not in done.stderr


# Run and compare, with the engine replaced ----------------------------------------------


def replace(monkeypatch: pytest.MonkeyPatch, verb: str, result: Callable[..., Any]) -> list[Any]:
    calls: list[Any] = []

    def stand_in(*args: Any, **kwargs: Any) -> Any:
        calls.append((args, kwargs))
        return result(*args, **kwargs)

    monkeypatch.setattr(launch, verb, stand_in)
    return calls


def test_run_hands_everything_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, no_report: None
) -> None:
    made = finished(tmp_path)
    calls = replace(monkeypatch, "run", lambda *_, **__: made)
    result = call(
        *["run", "lora", "tuner.rank=4", "schedule.lr=1e-3", "--data", "c.csv", "--out", "o"],
        *["--label", "a", "--label", "b", "--inputs", "x", "--patient-id", "p", "--kind"],
        *["multilabel", "--site", "s", "--date", "d", "--split", "f", "--seed", "5", "--quick"],
        *["--name", "mine", "--no-cache"],
    )
    assert result.exit_code == 0, result.output
    (args, kwargs) = calls[0]
    assert args == ("lora", "c.csv")
    assert list(kwargs["overrides"]) == ["tuner.rank=4", "schedule.lr=1e-3"]
    assert kwargs["columns"] == {
        "label": ["a", "b"],
        "inputs": ["x"],
        "patient_id": "p",
        "kind": "multilabel",
        "site": "s",
        "date": "d",
        "split": "f",
    }
    assert kwargs["out"] == Path("o")
    assert kwargs["path"] == Path("o/mine")
    assert (kwargs["seed"], kwargs["quick"], kwargs["cache"]) == (5, True, False)
    assert re.search(r"auroc +0\.900 +\[0\.800, 0\.950\]", result.stdout)
    assert f"run: {made.path}" in result.stdout
    assert "report.html" in result.stdout


def test_run_leaves_out_what_was_not_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, no_report: None
) -> None:
    made = finished(tmp_path)
    calls = replace(monkeypatch, "run", lambda *_, **__: made)
    assert call("run", "ssf", "--data", "c.csv", "--label", "y").exit_code == 0
    kwargs = calls[0][1]
    assert kwargs["columns"]["label"] == "y"
    assert kwargs["columns"]["inputs"] is None
    assert kwargs["path"] is None
    assert kwargs["seed"] is None
    assert kwargs["cache"] is True


@pytest.mark.parametrize(
    ("error", "code", "part"),
    [
        (DataError("Row 3 is broken.", where="c.csv"), 3, "error: Row 3 is broken.\nwhere: c.csv"),
        (MissingExtraError.of("wfdb", "signals"), 7, 'pip install "galenic[signals]"'),
        (PermissionError(13, "Permission denied", "c.csv"), 1, "Permission denied"),
        (type("OutOfMemoryError", (RuntimeError,), {})("CUDA"), 1, "schedule.batch_size"),
    ],
)
def test_faults_of_the_engine(
    error: Exception, code: int, part: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: Any, **__: Any) -> None:
        raise error

    replace(monkeypatch, "run", fail)
    result = call("run", "ssf", "--data", "c.csv")
    assert result.exit_code == code
    assert part in result.stderr
    assert "Traceback" not in result.stderr


def test_a_bug_is_not_hidden(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: Any, **__: Any) -> None:
        raise ZeroDivisionError

    replace(monkeypatch, "run", fail)
    assert isinstance(call("run", "ssf", "--data", "c.csv").exception, ZeroDivisionError)


def test_interrupt_says_how_to_resume(tmp_path: Path) -> None:
    script = """
import sys
from pathlib import Path
from galenic import launch
from galenic.app.cli import main
from galenic.core.run import Run

def run(recipe, data, **options):
    Run.create(options["out"], recipe).start({}, recipe=recipe)
    raise KeyboardInterrupt

launch.run = run
sys.argv = ["galenic", "run", "ssf", "--data", "x", "--out", sys.argv[1]]
main()
"""
    command = [sys.executable, "-c", script, str(tmp_path / "runs")]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 130
    assert f"galenic run --resume {tmp_path / 'runs' / 'ssf-0001'}" in done.stderr
    assert "Traceback" not in done.stderr


def board() -> dict[str, Any]:
    cost = {"trainable_share": 0.00123, "peak_memory_mb": 512.4, "seconds": 12.34}
    rows = [
        {"recipe": "ssf", "metrics": {"auroc": AUROC}, "cost": cost, "pareto": True},
        {"recipe": "linear", "metrics": {"auroc": {**AUROC, "value": None}}, "cost": {}},
    ]
    gap = {"a": "ssf", "b": "linear", "value": 0.1, "low": 0.01, "high": 0.2, "p": 0.03}
    return {
        "metric": "auroc",
        "rows": rows,
        "differences": [{**gap, "metric": "auroc"}],
        "failed": {"knn": "No neighbours [here]"},
    }


def test_compare_tells_recipes_from_overrides_and_ends_with_a_table(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, no_report: None
) -> None:
    (tmp_path / "leaderboard.json").write_text(json.dumps(board()))
    made = types.SimpleNamespace(path=tmp_path)
    calls = replace(monkeypatch, "compare", lambda *_, **__: made)
    result = call(
        *["compare", "knn", "schedule.epochs=5", "ssf", "a=b.yaml", "--data", "c.csv"],
        *["--no-cache", "--seed", "3"],
    )
    assert result.exit_code == 0, result.output
    (args, kwargs) = calls[0]
    assert args == (["knn", "ssf", "a=b.yaml"], "c.csv")
    assert kwargs["overrides"] == ["schedule.epochs=5"]
    assert (kwargs["seed"], kwargs["cache"]) == (3, False)
    assert re.search(
        r"1 +ssf +0\.900 +\[0\.800, 0\.950\] +0\.123 % +512 MB +12\.3 s", result.stdout
    )
    assert re.search(r"2 +linear +- +\[", result.stdout)
    assert "ssf - linear: +0.100 [+0.010, +0.200], p = 0.030" in result.stdout
    assert "No neighbours [here]" in result.stdout
    assert f"report: {tmp_path / 'report.html'}" in result.stdout


@dataclasses.dataclass
class Finding:
    level: str
    code: str
    message: str
    rows: list[int]


@dataclasses.dataclass
class Findings:
    findings: list[Finding]
    facts: dict[str, Any]


@pytest.mark.parametrize(("level", "code"), [("error", 1), ("warning", 0), ("info", 0)])
@pytest.mark.parametrize("as_json", [True, False])
def test_check(level: str, code: int, as_json: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    opened: list[Any] = []

    class Cohort:
        @staticmethod
        def open(source: str, **columns: Any) -> str:
            opened.append((source, columns))
            return source

    found = Findings([Finding(level, "unreadable", "2 files [bad]", list(range(20)))], {"rows": 9})
    for name, room in (("cohort", {"Cohort": Cohort}), ("check", {"check": lambda _, **__: found})):
        module = types.ModuleType(f"galenic.data.{name}")
        vars(module).update(room)
        monkeypatch.setitem(sys.modules, module.__name__, module)
    words = ["check", "c.csv", "--label", "y", *(["--json"] if as_json else [])]
    result = call(*words)
    assert result.exit_code == code, result.output
    assert opened[0][0] == "c.csv"
    assert opened[0][1]["label"] == "y"
    if as_json:
        told = json.loads(result.stdout)
        assert told["facts"] == {"rows": 9}
        assert told["findings"][0]["rows"] == list(range(20))
    else:
        assert "2 files [bad]" in result.stdout
        assert "0, 1, 2, 3, 4, 5, 6, 7, ... (20 in all)" in result.stdout
        assert f"1 {level}" in result.stdout


def test_report_writes_and_says_where(tmp_path: Path, no_report: None) -> None:
    made = finished(tmp_path)
    result = call("report", str(made.path))
    assert result.exit_code == 0
    assert result.stdout.strip() == str(made.path / "report.html")


# Doctor ---------------------------------------------------------------------------------


def test_doctor(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GALENIC_DATA", str(tmp_path / "nowhere"))
    found = json.loads(call("doctor", "--json").stdout)
    assert found["machine"]["cores"] >= 1
    assert found["packages"]["torch"]
    assert {"imaging", "signals", "timm"} <= set(found["extras"])
    assert found["data"]["GALENIC_DATA"].startswith("missing")
    assert "builtin:minilm" in found["weights"]


def test_doctor_gives_the_install_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(diagnosis, "_version", lambda package: None)
    assert diagnosis.extras()["timm"] == 'missing timm: pip install "galenic[timm]"'
    assert "python-gdcm" in diagnosis.extras()["imaging"]
    monkeypatch.setattr(diagnosis, "_machine", lambda: {"torch": "missing: no torch"})
    assert 'pip install "galenic[proteins]"' in call("doctor").stdout


# Screen and keys ------------------------------------------------------------------------


def test_error_is_a_panel_on_a_terminal() -> None:
    script = """
import os, pty, sys
def child():
    os.environ["COLUMNS"] = "100"
    os.execvp(sys.executable, [sys.executable, "-m", "galenic", "show", "sfs"])
pid, end = pty.fork()
if pid == 0:
    child()
told = b""
while True:
    try:
        part = os.read(end, 4096)
    except OSError:
        break
    if not part:
        break
    told += part
sys.stdout.buffer.write(told)
sys.exit(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))
"""
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, env={**os.environ, "TERM": "xterm"}
    )
    told = re.sub(r"\x1b\[[0-9;]*m", "", done.stdout.decode())
    assert done.returncode == 2
    assert "╭─ Config" in told
    assert "next: galenic ls" in told


@pytest.mark.parametrize(
    ("value", "expected"), [(None, "-"), (float("nan"), "-"), (0.12345, "0.123")]
)
def test_number(value: float | None, expected: str) -> None:
    assert screen.number(value) == expected


@pytest.mark.parametrize(
    ("value", "expected"), [(0.0, "0 %"), (1.0, "100 %"), (0.00123, "0.123 %"), (None, "-")]
)
def test_share(value: float | None, expected: str) -> None:
    assert screen.share(value) == expected


def test_keys_of_a_config() -> None:
    from typing import Literal

    from pydantic import Field

    from galenic.core.config import Config

    class Inner(Config):
        """Inner.

        Attributes:
            rank: How wide,
                in columns.
        """

        rank: int = 8

    class Outer(Config):
        """Outer."""

        data: str
        how: Literal["a", "b"] = "a"
        inner: Inner = Inner()
        rate: float | None = Field(None, description="How fast.")
        names: list[str] | None = None
        spare: Inner | None = None

    found = {key.name: key for key in keys.of_config(Outer, {"inner": {"rank": 4}, "how": "a"})}
    assert list(found) == ["data", "how", "inner.rank", "rate", "names", "spare", "spare.rank"]
    assert found["data"].default == "(needed)"
    assert found["how"].type == "a or b"
    assert not found["how"].changed
    assert found["inner.rank"] == keys.Key(
        "inner.rank", "int", "4", "8", "How wide, in columns.", True
    )
    assert (found["rate"].type, found["rate"].doc) == ("float or none", "How fast.")
    assert (found["spare"].value, found["spare.rank"].default) == ("none", "8")
    assert found["names"].type == "list of str or none"


def test_the_command_answers_for_every_verb_and_for_none(monkeypatch, capsys) -> None:
    whole = get_command(app)
    for words in [[], *([verb] for verb in whole.commands)]:
        monkeypatch.setattr(sys, "argv", ["galenic", *words, "--help"])
        with pytest.raises(SystemExit) as ended:
            main()
        assert ended.value.code == 0
        said = capsys.readouterr().out
        assert f"galenic {words[0]}" in said if words else all(v in said for v in whole.commands)
