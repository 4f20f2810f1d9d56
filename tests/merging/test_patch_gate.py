"""The gate of a port: what is let through, what is refused and why, what must be measured."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError
from safetensors.torch import save_file
from torch import nn

from galenic.core.errors import ConfigError, WeightsError
from galenic.merging.patches import ActivationDrift, Gate, Patch, Portability, Probe, judged

OLD = {"w": torch.eye(4)}
# Moved by a quarter of its norm.
NEW = {"w": 1.25 * torch.eye(4)}
PATCH = Patch.from_checkpoints(OLD, {"w": torch.eye(4) + 0.1})
KNOWN = Portability("p", "o", "n", 1, (), {}, 0.25, (), ())
NUMBERS = st.floats(-1, 1, allow_nan=False)


def layers(*cosines: float | None) -> Portability:
    rows = [ActivationDrift(f"layer.{i}", 0.1, cosine) for i, cosine in enumerate(cosines)]
    return replace(KNOWN, activations=tuple(rows))


def test_a_port_beyond_its_limit_is_not_written(tmp_path: Path) -> None:
    (tmp_path / "new").mkdir()
    save_file(NEW, tmp_path / "new" / "model.safetensors")
    with pytest.raises(WeightsError, match=r"onto new is refused: the base has moved by 0\.25"):
        PATCH.port(tmp_path / "new", tmp_path / "out", old=OLD, gate=Gate(max_drift=0.2))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["new"]
    known = PATCH.port(tmp_path / "new", tmp_path / "out", old=OLD, gate=Gate(max_drift=0.3))
    assert (known.accepted, known.reasons) == (True, ())
    assert (tmp_path / "out" / "port_report.json").is_file()


def test_a_check_tells_what_would_be_refused() -> None:
    known = PATCH.check(NEW, OLD, gate=Gate(max_drift=0.2))
    assert not known.accepted
    assert "0.25 of its norm; 0.2 is the most" in known.reasons[0]
    assert PATCH.check(NEW, OLD).accepted


def test_a_drift_from_another_base_is_refused_however_small() -> None:
    near = {"w": NEW["w"] + 0.001}
    known = PATCH.check(NEW, near, gate=Gate(max_drift=0.1))
    assert known.drift is not None and known.drift < 0.01
    assert not known.accepted
    assert "is not the one that the patch was made on" in known.reasons[0]
    # Without a limit on what is measured from it, it is a warning.
    assert PATCH.check(NEW, near, gate=Gate()).accepted


@settings(deadline=None)
@given(drift=st.floats(0, 2), gain=NUMBERS, cosine=NUMBERS, limit=NUMBERS)
def test_every_limit_is_a_comparison(
    drift: float, gain: float, cosine: float, limit: float
) -> None:
    known = replace(layers(1.0, cosine), drift=drift, gain=gain)
    assert judged(known, Gate(max_drift=abs(limit))).accepted == (drift <= abs(limit))
    assert judged(known, Gate(min_cosine=limit)).accepted == (cosine >= limit)
    assert judged(known, Gate(min_gain=limit)).accepted == (gain >= limit)
    asked = Gate(max_drift=abs(limit), min_cosine=limit, min_gain=limit)
    kept = (drift <= abs(limit), cosine >= limit, gain >= limit)
    found = judged(known, asked)
    assert found.accepted == all(kept)
    assert len(found.reasons) == 3 - sum(kept)


@pytest.mark.parametrize(
    ("known", "gate", "says"),
    [
        (replace(KNOWN, drift=None), Gate(max_drift=1), "unknown"),
        (replace(KNOWN, drift=math.nan), Gate(max_drift=1), "nan"),
        (KNOWN, Gate(min_cosine=-1), "activations is unknown"),
        (layers(0.9, None), Gate(min_cosine=-1), "'layer.1' have a cosine of unknown"),
        (layers(0.9, math.nan, 0.1), Gate(min_cosine=0.5), "'layer.1' have a cosine of nan"),
        (layers(0.9, 0.1, 0.4), Gate(min_cosine=0.5), "2 of 3 layers"),
        (layers(0.9, 0.1, 0.4), Gate(min_cosine=0.5), "'layer.1' have a cosine of 0.1;"),
        (KNOWN, Gate(min_gain=-1), "gain over the bare new base is unknown"),
        (replace(KNOWN, gain=math.nan), Gate(min_gain=-1), "is nan"),
    ],
)
def test_what_is_unknown_is_refused(known: Portability, gate: Gate, says: str) -> None:
    found = judged(known, gate)
    assert not found.accepted
    assert says in found.reasons[0]
    # Judged again, only the last gate counts.
    assert judged(found, None) == known


@pytest.mark.parametrize(
    ("gate", "needs"),
    [
        (Gate(max_drift=1), "--from"),
        (Gate(min_cosine=0), "--text"),
        (Gate(min_gain=0), "scores"),
    ],
)
def test_what_is_not_measured_cannot_be_asked(gate: Gate, needs: str) -> None:
    with pytest.raises(ConfigError, match="not measured") as fault:
        PATCH.check(NEW, gate=gate)
    assert needs in fault.value.expected


@pytest.mark.parametrize(
    "values", [{"max_drift": -0.1}, {"min_cosine": 1.1}, {"min_gain": math.inf}]
)
def test_limits_that_mean_nothing_are_refused(values: dict[str, float]) -> None:
    with pytest.raises(ValidationError):
        Gate(**values)


def test_inputs_that_agree_too_little_are_refused() -> None:
    def net(turn: float) -> nn.Module:
        made = nn.Sequential(nn.Linear(2, 2, bias=False), nn.Linear(2, 2, bias=False))
        made[0].weight.data = torch.tensor([[1.0, -turn], [turn, 1.0]])
        made[1].weight.data = torch.eye(2)
        return made

    old, new, tuned = net(0.0), net(1.0), net(0.0)
    tuned[1].weight.data += 0.1
    patch = Patch.from_checkpoints(old, tuned)
    probe = Probe(old, [{"input": torch.randn(5, 2)}])
    # The first layer turns by 45 degrees; the patched one has not moved.
    for least, accepted in ((0.70, True), (0.71, False)):
        gate = Gate(max_drift=0, min_cosine=least)
        assert patch.check(new, old, gate=gate, probe=probe).accepted is accepted
