"""The engine: exact resume, best weights, finite losses, rates."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import Dataset

from galenic.core.errors import GalenicError
from galenic.core.optim import parameter_groups, rate_factor
from galenic.core.sampling import EpochSampler
from galenic.core.schedule import Schedule
from galenic.core.trainer import Validation, fit


class Points(Dataset[dict[str, Tensor]]):
    def __init__(self, n: int, poison: int | None = None) -> None:
        draw = torch.Generator().manual_seed(0)
        self.x = torch.randn(n, 6, generator=draw)
        self.y = self.x.sum(dim=1)
        if poison is not None:
            self.x[poison] = torch.nan

    def __len__(self) -> int:
        return len(self.x)

    def __getitem__(self, row: int) -> dict[str, Tensor]:
        return {"x": self.x[row], "labels": self.y[row]}


class Objective(nn.Module):
    """Dropout and batch norm: both random state and buffers must survive a resume."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.frozen = nn.Linear(6, 6).requires_grad_(False)
        self.net = nn.Sequential(
            nn.Linear(6, 8), nn.BatchNorm1d(8), nn.Dropout(0.3), nn.Linear(8, 1)
        )
        self.stop_at: int | None = None
        self.calls = 0

    def forward(self, x: Tensor, labels: Tensor) -> dict[str, Tensor]:
        self.calls += self.training
        if self.calls == self.stop_at:
            raise KeyboardInterrupt
        out = self.net(self.frozen(x)).squeeze(-1)
        return {"loss": ((out - labels) ** 2).mean(), "logits": out, "labels": labels}


def collate(examples: list[dict[str, Tensor]]) -> dict[str, Tensor]:
    return {key: torch.stack([e[key] for e in examples]) for key in examples[0]}


def validation() -> Validation:
    def score(outputs: dict[str, np.ndarray]) -> dict[str, float]:
        return {"mse": float(((outputs["logits"] - outputs["labels"]) ** 2).mean())}

    return Validation(Points(20), score, greater_is_better=False)


def train(objective: Objective, folder: Path, **options: Any) -> Any:
    schedule = Schedule(
        epochs=3, batch_size=8, lr=1e-2, checkpoint_steps=4, workers=options.pop("workers", 0)
    )
    return fit(
        objective, Points(64), schedule=schedule, collate=collate, folder=folder, seed=3,
        validation=validation(), **options,
    )  # fmt: skip


@pytest.mark.parametrize("workers", [0, 2])
def test_resume_in_mid_epoch_is_exact(tmp_path: Path, workers: int) -> None:
    whole = Objective()
    train(whole, tmp_path / "whole", workers=workers)
    cut = Objective()
    cut.stop_at = 15
    with pytest.raises(KeyboardInterrupt):
        train(cut, tmp_path / "cut", workers=workers)
    resumed = Objective()
    result = train(resumed, tmp_path / "cut", workers=workers, resume=True)
    assert result.steps == 24
    assert resumed.calls == 24 - 12
    for name, value in whole.state_dict().items():
        assert torch.equal(value, resumed.state_dict()[name]), name


def test_a_damaged_checkpoint_is_passed_over(tmp_path: Path) -> None:
    whole = Objective()
    train(whole, tmp_path / "whole")
    cut = Objective()
    cut.stop_at = 15
    with pytest.raises(KeyboardInterrupt):
        train(cut, tmp_path / "cut")
    newest = tmp_path / "cut" / "checkpoint-12" / "model.safetensors"
    newest.write_bytes(newest.read_bytes()[:-7] + b"garbage")
    events: list[dict[str, Any]] = []
    resumed = Objective()
    train(resumed, tmp_path / "cut", resume=True, log=events.append)
    assert events[0]["event"] == "damaged checkpoint"
    for name, value in whole.state_dict().items():
        assert torch.equal(value, resumed.state_dict()[name]), name


def test_frozen_weights_stay_bit_identical_and_are_not_written(tmp_path: Path) -> None:
    from safetensors.torch import load_file

    objective = Objective()
    before = objective.frozen.weight.clone()
    train(objective, tmp_path)
    assert torch.equal(objective.frozen.weight, before)
    kept = load_file(max(tmp_path.glob("checkpoint-*")) / "model.safetensors")
    assert not [name for name in kept if name.startswith("frozen")]


def test_training_ends_on_the_best_epoch(tmp_path: Path) -> None:
    objective = Objective()
    figures = iter([3.0, 1.0, 2.0])
    seen: list[dict[str, Tensor]] = []

    def score(_: dict[str, np.ndarray]) -> dict[str, float]:
        seen.append({n: v.clone() for n, v in objective.state_dict().items()})
        return {"mse": next(figures)}

    schedule = Schedule(epochs=3, batch_size=16)
    result = fit(
        objective, Points(64), schedule=schedule, collate=collate, folder=tmp_path, seed=0,
        validation=Validation(Points(4), score, greater_is_better=False),
    )  # fmt: skip
    assert result.best == 1.0
    for name, value in objective.state_dict().items():
        assert torch.equal(value, seen[1][name]), name


def test_patience_stops_early(tmp_path: Path) -> None:
    schedule = Schedule(epochs=20, batch_size=16, patience=2)
    result = fit(
        Objective(), Points(64), schedule=schedule, collate=collate, folder=tmp_path, seed=0,
        validation=Validation(Points(4), lambda _: {"constant": 1.0}),
    )  # fmt: skip
    assert result.steps == 3 * 4


def test_nan_names_step_and_tensor(tmp_path: Path) -> None:
    with pytest.raises(GalenicError, match="no longer finite at step") as error:
        fit(
            Objective(), Points(16, poison=5), schedule=Schedule(epochs=1, batch_size=4),
            collate=collate, folder=tmp_path, seed=0,
        )  # fmt: skip
    assert "input 'x'" in error.value.where


def test_the_order_is_a_function_of_seed_and_epoch() -> None:
    first, again = EpochSampler(50, 1), EpochSampler(50, 1)
    assert list(first) == list(again)
    again.set_epoch(1)
    assert list(first) != list(again)
    assert sorted(again) == list(range(50))


def test_like_lengths_share_a_batch_and_none_is_lost() -> None:
    lengths = np.random.default_rng(0).integers(3, 60, 203)
    order = list(EpochSampler(203, 0, lengths=lengths, batch_size=8))
    assert sorted(order) == list(range(203))
    spans = [np.ptp(lengths[order[at : at + 8]]) for at in range(0, 200, 8)]
    chance = [np.ptp(lengths[at : at + 8]) for at in range(0, 200, 8)]
    assert np.mean(spans) < np.mean(chance) / 3


def test_weights_balance_the_draws() -> None:
    classes = np.array([0] * 90 + [1] * 10)
    weights = 1 / np.bincount(classes)[classes]
    drawn = np.concatenate([list(_epoch(EpochSampler(100, 0, weights), e)) for e in range(30)])
    assert classes[drawn].mean() == pytest.approx(0.5, abs=0.05)


def _epoch(sampler: EpochSampler, epoch: int) -> EpochSampler:
    sampler.set_epoch(epoch)
    return sampler


def test_vectors_do_not_decay_and_rates_fall_with_depth() -> None:
    module = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
    depths = {"0.weight": 0, "0.bias": 0, "1.weight": 1, "1.bias": 1}
    groups = parameter_groups(module, Schedule(lr=1.0, layer_decay=0.5, weight_decay=0.1), depths)
    found = {(g["lr"], g["weight_decay"], g["params"][0].ndim) for g in groups}
    assert found == {(0.5, 0.1, 2), (0.5, 0.0, 1), (1.0, 0.1, 2), (1.0, 0.0, 1)}


def test_warmup_then_cosine_down_to_the_floor() -> None:
    factor = rate_factor(Schedule(lr=1.0, min_lr=0.1, warmup=10), 110)
    rates = [factor(step) for step in range(111)]
    assert np.all(np.diff(rates[:11]) > 0)
    assert np.all(np.diff(rates[11:]) < 0)
    assert rates[10] == 1.0
    assert rates[110] == pytest.approx(0.1)
