"""Device, precision and progress."""

from __future__ import annotations

import json
import subprocess
import sys
import types

import pytest
import torch

from galenic.core import hardware, progress
from galenic.core.errors import ConfigError

CPU, CUDA = torch.device("cpu"), torch.device("cuda", 0)


def test_device_is_one_that_computes() -> None:
    assert float(torch.ones(2, device=hardware.device()).sum()) == 2.0


@pytest.mark.parametrize(
    ("wish", "on", "bf16", "expected"),
    [
        ("auto", CPU, False, "fp32"),
        ("auto", CUDA, True, "bf16"),
        ("auto", CUDA, False, "fp16"),
        ("fp32", CUDA, True, "fp32"),
        ("bf16", CPU, False, "bf16"),
        ("fp16", CUDA, True, "fp16"),
    ],
)
def test_precision(
    monkeypatch: pytest.MonkeyPatch, wish: str, on: torch.device, bf16: bool, expected: str
) -> None:
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda: bf16)
    assert hardware.precision(wish, on) == expected


@pytest.mark.parametrize(("wish", "part"), [("fp16", "needs a GPU"), ("int8", "Unknown")])
def test_impossible_precision(wish: str, part: str) -> None:
    with pytest.raises(ConfigError, match=part):
        hardware.precision(wish, CPU)


def test_facts_are_plain() -> None:
    facts = json.loads(json.dumps(hardware.facts()))
    assert facts["cores"] >= 1
    assert 0 < facts["memory_free_gb"] <= facts["memory_gb"]
    assert facts["torch"] == torch.__version__


def test_progress_is_silent_where_nobody_looks() -> None:
    script = "from galenic.core.progress import track; print(sum(track(range(4), 'x')))"
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True
    )
    assert (done.stdout, done.stderr) == ("6\n", "")


@pytest.mark.parametrize(
    ("tty", "environment", "expected"),
    [
        (True, {}, True),
        (False, {}, False),
        (True, {"GALENIC_VERBOSITY": "0"}, False),
        (True, {"RANK": "1"}, False),
    ],
)
def test_when_bars_are_drawn(
    monkeypatch: pytest.MonkeyPatch, tty: bool, environment: dict[str, str], expected: bool
) -> None:
    for name in ("GALENIC_VERBOSITY", "RANK"):
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(progress.sys, "stderr", types.SimpleNamespace(isatty=lambda: tty))
    assert progress.visible() is expected


def test_bars_draw_also_one_in_another(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(progress, "visible", lambda: True)
    found = []
    for item in progress.track("ab", "outer"):
        with progress.bar("inner", total=2) as update:
            update(1, "half")
            update(2)
        found.append(item)
    assert found == ["a", "b"]
    assert list(progress.track(iter("xyz"), "no length")) == ["x", "y", "z"]
