"""The engine against a loop written by hand, across kills, processes and precisions."""

from __future__ import annotations

import os
import subprocess
import sys
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import Dataset

from galenic.core.errors import ConfigError, DataError, GalenicError, RunError
from galenic.core.optim import parameter_groups, rate_factor
from galenic.core.sampling import EpochBatches, EpochSampler
from galenic.core.schedule import Schedule
from galenic.core.trainer import Validation, fit


class Points(Dataset[dict[str, Tensor]]):
    """Noise is drawn afresh each epoch, as an augmentation would be."""

    def __init__(self, n: int, noise: float = 0.0) -> None:
        draw = torch.Generator().manual_seed(0)
        self.x = torch.randn(n, 6, generator=draw)
        self.y = (self.x.sum(dim=1) > 0).long()
        self.noise, self.epoch = noise, -1

    def __len__(self) -> int:
        return len(self.x)

    def set_epoch(self, epoch: int) -> None:
        self.epoch = epoch

    def __getitem__(self, row: int) -> dict[str, Tensor]:
        draw = torch.Generator().manual_seed(1000 * (self.epoch + 1) + row)
        x = self.x[row] + self.noise * torch.randn(6, generator=draw)
        return {"x": x, "labels": self.y[row]}


class Small(nn.Module):
    """`**others` in forward is what makes a Trainer scale the loss by itself."""

    def __init__(self, dropout: float = 0.0) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.net = nn.Sequential(
            nn.Linear(6, 8), nn.GELU(), nn.Dropout(dropout), nn.LayerNorm(8), nn.Linear(8, 2)
        )
        self.losses: list[float] = []
        self.stop_at: int | None = None

    def forward(self, x: Tensor, labels: Tensor, **others: Any) -> dict[str, Tensor]:
        assert not others
        if self.training and len(self.losses) == self.stop_at:
            raise KeyboardInterrupt
        logits = self.net(x)
        loss = nn.functional.cross_entropy(logits, labels)
        if self.training:
            self.losses.append(float(loss.detach()))
        return {"loss": loss, "logits": logits, "labels": labels}


def collate(rows: list[dict[str, Tensor]]) -> dict[str, Tensor]:
    return {key: torch.stack([row[key] for row in rows]) for key in rows[0]}


def accuracy(outputs: dict[str, Any]) -> dict[str, float]:
    return {"accuracy": float((outputs["logits"].argmax(1) == outputs["labels"]).mean())}


def run(objective: nn.Module, folder: Path, data: Dataset[Any], **options: Any) -> Any:
    fields = set(Schedule.model_fields)
    schedule = Schedule(
        **{"batch_size": 8, "epochs": 3} | {k: v for k, v in options.items() if k in fields}
    )
    more = {k: v for k, v in options.items() if k not in fields}
    return fit(objective, data, schedule=schedule, collate=collate, folder=folder, seed=5, **more)


def by_hand(objective: nn.Module, data: Points, schedule: Schedule) -> None:
    """The reference: one slow, obvious loop."""
    groups = parameter_groups(objective, schedule)
    adam = torch.optim.AdamW(groups, lr=schedule.lr)
    order = EpochSampler(len(data), 5)
    batches = EpochBatches(order, schedule.batch_size)
    updates = -(-len(batches) // schedule.accumulate)
    factor = rate_factor(schedule, int(schedule.epochs * updates))
    peaks = [group["lr"] for group in groups]
    step = 0
    objective.train()
    for epoch in range(int(schedule.epochs)):
        batches.set_epoch(epoch)
        data.set_epoch(epoch)
        chosen = list(batches)
        for start in range(0, len(chosen), schedule.accumulate):
            part = chosen[start : start + schedule.accumulate]
            for rows in part:
                loss = objective(**collate([data[row] for row in rows]))["loss"]
                (loss / len(part)).backward()
            if schedule.clip_norm:
                nn.utils.clip_grad_norm_(objective.parameters(), schedule.clip_norm)
            for group, peak in zip(adam.param_groups, peaks, strict=True):
                group["lr"] = peak * factor(step)
            adam.step()
            adam.zero_grad()
            step += 1


@pytest.mark.parametrize("accumulate", [1, 3])
@pytest.mark.parametrize("clip", [None, 0.05])
def test_the_engine_is_the_loop_by_hand(
    tmp_path: Path, accumulate: int, clip: float | None
) -> None:
    # 59 samples: a short last batch, and a short last group of batches.
    schedule = Schedule(
        epochs=3, batch_size=8, lr=3e-2, accumulate=accumulate, clip_norm=clip, min_lr=1e-3
    )
    ours, reference = Small(), Small()
    fit(ours, Points(59, 0.1), schedule=schedule, collate=collate, folder=tmp_path, seed=5)
    by_hand(reference, Points(59, 0.1), schedule)
    torch.testing.assert_close(torch.tensor(ours.losses), torch.tensor(reference.losses))
    for name, value in reference.state_dict().items():
        torch.testing.assert_close(ours.state_dict()[name], value, msg=name)


@pytest.mark.parametrize(("every", "accumulate"), [(1, 2), (4, 1), (5, 1)])
def test_a_kill_at_any_step_changes_nothing(tmp_path: Path, every: int, accumulate: int) -> None:
    """Weights, best epoch and logged lines; 5 batches an epoch, so some cuts fall on its end."""

    def go(objective: Small, folder: str, **more: Any) -> Any:
        events: list[dict[str, Any]] = []
        result = run(
            objective, tmp_path / folder, Points(37, 0.3), lr=1e-2, checkpoint_steps=every,
            accumulate=accumulate, validation=Validation(Points(16), accuracy),
            log=events.append, **more,
        )  # fmt: skip
        return result, events

    whole = Small(0.3)
    result, events = go(whole, "whole")
    for cut_at in (7, 10, 13):
        cut = Small(0.3)
        cut.stop_at = cut_at
        with pytest.raises(KeyboardInterrupt):
            go(cut, f"cut{cut_at}")
        resumed = Small(0.3)
        again, later = go(resumed, f"cut{cut_at}", resume=True)
        assert (again.steps, again.best) == (result.steps, result.best)
        assert resumed.losses == whole.losses[-len(resumed.losses) :]
        assert len(resumed.losses) < len(whole.losses) or every > cut_at // accumulate
        assert later == events[len(events) - len(later) :]
        for name, value in whole.state_dict().items():
            assert torch.equal(value, resumed.state_dict()[name]), (cut_at, name)


def test_a_kill_while_an_epoch_is_judged(tmp_path: Path) -> None:
    """A step checkpoint at the end of an epoch must not make a resume skip its judgement."""

    def go(folder: str, stop: bool = False, **more: Any) -> tuple[list[float], Any]:
        figures: list[float] = []

        def score(outputs: dict[str, Any]) -> dict[str, float]:
            figures.append(float(outputs["logits"].sum()))
            if stop and len(figures) == 2:
                raise KeyboardInterrupt
            return {"figure": figures[-1]}

        data, judge = Points(40), Validation(Points(8), score)
        return figures, run(
            Small(), tmp_path / folder, data, checkpoint_steps=5, validation=judge, **more
        )

    whole, result = go("whole")
    with pytest.raises(KeyboardInterrupt):
        go("cut", stop=True)
    resumed, again = go("cut", resume=True)
    assert resumed == whole[1:]
    assert again.best == result.best


def test_a_finished_training_resumes_to_itself(tmp_path: Path) -> None:
    first, again = Small(), Small()
    # In the middle of an epoch: an engine that only counts epochs would go on.
    run(first, tmp_path, Points(40), max_steps=7)
    result = run(again, tmp_path, Points(40), max_steps=7, resume=True)
    assert result.steps == 7 and again.losses == []
    assert torch.equal(first.net[0].weight, again.net[0].weight)


def test_a_stopped_training_stays_stopped(tmp_path: Path) -> None:
    never_better = Validation(Points(8), lambda _: {"figure": 1.0})
    options: dict[str, Any] = {"epochs": 9, "patience": 2, "checkpoint_steps": 2}
    first, again = Small(), Small()
    result = run(first, tmp_path, Points(40), validation=never_better, **options)
    assert result.steps == 15
    same = run(again, tmp_path, Points(40), validation=never_better, resume=True, **options)
    assert same.steps == 15 and again.losses == []
    assert torch.equal(first.net[0].weight, again.net[0].weight)


def test_max_steps_is_a_limit_not_a_wish(tmp_path: Path) -> None:
    assert run(Small(), tmp_path / "a", Points(40), epochs=2, max_steps=100).steps == 10
    assert run(Small(), tmp_path / "b", Points(40), epochs=2, max_steps=3).steps == 3


def test_another_schedule_does_not_resume(tmp_path: Path) -> None:
    run(Small(), tmp_path, Points(40), epochs=1)
    with pytest.raises(ConfigError, match=r"lr was 0\.001, is 0\.5"):
        run(Small(), tmp_path, Points(40), epochs=1, lr=0.5, resume=True)


def test_checkpoints_of_another_training_are_not_mixed(tmp_path: Path) -> None:
    run(Small(), tmp_path, Points(40), epochs=1)
    with pytest.raises(RunError, match="another training"):
        run(Small(), tmp_path, Points(40), epochs=1)


def test_no_samples_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no samples"):
        run(Small(), tmp_path, Points(0))


def test_nothing_to_train_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="Nothing of the objective trains"):
        run(Small().requires_grad_(False), tmp_path, Points(8))


def test_a_diverged_loss_names_step_tensor_and_checkpoint(tmp_path: Path) -> None:
    class Breaks(Small):
        def forward(self, x: Tensor, labels: Tensor, **others: Any) -> dict[str, Tensor]:
            if len(self.losses) == 6:
                with torch.no_grad():
                    self.net[3].bias[1] = torch.inf
            return super().forward(x, labels, **others)

    with pytest.raises(GalenicError, match="at step 7") as error:
        run(Breaks(), tmp_path, Points(40))
    assert "parameter 'net.3.bias'" in error.value.where
    assert "'checkpoint-5'" in error.value.next_step


def test_a_moving_teacher_is_resumed(tmp_path: Path) -> None:
    """A frozen tensor that the objective changes is part of the state, a still one is not."""

    class Distils(Small):
        def __init__(self) -> None:
            super().__init__()
            self.teacher = nn.Linear(6, 8).requires_grad_(False)
            self.still = nn.Linear(6, 8).requires_grad_(False)

        def forward(self, x: Tensor, labels: Tensor, **others: Any) -> dict[str, Tensor]:
            outputs = super().forward(x, labels, **others)
            target = self.teacher(x) + self.still(x)
            outputs["loss"] = outputs["loss"] + (self.net[0](x) - target).square().mean()
            with torch.no_grad():
                self.teacher.weight.lerp_(self.net[0].weight, 0.1)
            return outputs

    whole, cut, resumed = Distils(), Distils(), Distils()
    run(whole, tmp_path / "whole", Points(40))
    cut.stop_at = 7
    with pytest.raises(KeyboardInterrupt):
        run(cut, tmp_path / "cut", Points(40))
    run(resumed, tmp_path / "cut", Points(40), resume=True)
    for name, value in whole.state_dict().items():
        assert torch.equal(value, resumed.state_dict()[name]), name
    from safetensors import safe_open

    with safe_open(tmp_path / "cut" / "checkpoint-15" / "model.safetensors", "pt") as file:
        assert "teacher.weight" in file.keys() and "still.weight" not in file.keys()  # noqa: SIM118


def test_the_objective_comes_back_as_it_went_in(tmp_path: Path) -> None:
    """Precision may wrap its forward, an epoch may change its modes: only weights may differ."""
    objective = Small()
    objective.eval()
    objective.net[2].train()
    modes = [part.training for part in objective.modules()]
    run(objective, tmp_path, Points(16), epochs=1, precision="bf16")
    assert [part.training for part in objective.modules()] == modes
    assert "forward" not in vars(objective)
    assert objective(**collate([Points(2)[0]]))["logits"].dtype == torch.float32
    assert all(parameter.grad is None for parameter in objective.parameters())


def test_precision_can_change_from_one_fit_to_the_next(tmp_path: Path) -> None:
    seen = []

    class Looks(Small):
        def forward(self, x: Tensor, labels: Tensor, **others: Any) -> dict[str, Tensor]:
            seen.append(self.net[0](x).dtype)
            return super().forward(x, labels, **others)

    for name in ("fp32", "bf16", "auto"):
        run(Looks(), tmp_path / name, Points(8), epochs=1, precision=name)
    assert seen[0] == torch.float32 and seen[1] == torch.bfloat16


def test_no_warning_and_no_print(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        run(Small(), tmp_path, Points(16), epochs=1, workers=1)
    assert capfd.readouterr() == ("", "")


# A real network ---------------------------------------------------------------------------


class Images(Dataset[dict[str, Tensor]]):
    def __len__(self) -> int:
        return 12

    def __getitem__(self, row: int) -> dict[str, Tensor]:
        draw = torch.Generator().manual_seed(row)
        return {"x": torch.randn(3, 16, 16, generator=draw), "labels": torch.tensor(row % 2)}


class Vit(nn.Module):
    def __init__(self, dropout: float = 0.1) -> None:
        from transformers import ViTConfig, ViTModel

        super().__init__()
        torch.manual_seed(0)
        config = ViTConfig(
            hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=32,
            image_size=16, patch_size=8, hidden_dropout_prob=dropout,
        )  # fmt: skip
        self.network = ViTModel(config, add_pooling_layer=False)
        self.head = nn.Linear(16, 2)
        self.calls, self.stop_at, self.recomputed = 0, -1, False

    def gradient_checkpointing_enable(self) -> None:
        self.network.activation_checkpointing_enable({"use_reentrant": False})

    def forward(self, x: Tensor, labels: Tensor) -> dict[str, Tensor]:
        if self.calls == self.stop_at:
            raise KeyboardInterrupt
        self.calls += 1
        self.recomputed = any(getattr(m, "gradient_checkpointing", False) for m in self.modules())
        logits = self.head(self.network(x).last_hidden_state[:, 0])
        return {"loss": nn.functional.cross_entropy(logits, labels), "logits": logits}


def test_a_wrapped_vit_resumes_bit_for_bit(tmp_path: Path) -> None:
    options: dict[str, Any] = {"batch_size": 4, "epochs": 2, "checkpoint_steps": 2}
    whole, cut, resumed = Vit(), Vit(), Vit()
    run(whole, tmp_path / "whole", Images(), **options)
    cut.stop_at = 3
    with pytest.raises(KeyboardInterrupt):
        run(cut, tmp_path / "cut", Images(), **options)
    with torch.no_grad():
        for parameter in resumed.parameters():
            parameter.zero_()
    result = run(resumed, tmp_path / "cut", Images(), resume=True, **options)
    assert (result.steps, resumed.calls) == (6, 4)
    for name, value in whole.state_dict().items():
        assert torch.equal(value, resumed.state_dict()[name]), name


def test_recomputing_gives_the_same_weights(tmp_path: Path) -> None:
    options: dict[str, Any] = {"batch_size": 4, "epochs": 2}
    plain, recomputing = Vit(), Vit()
    run(plain, tmp_path / "plain", Images(), **options)
    run(recomputing, tmp_path / "recomputing", Images(), gradient_checkpointing=True, **options)
    assert recomputing.recomputed and not plain.recomputed
    assert not any(getattr(m, "gradient_checkpointing", False) for m in recomputing.modules())
    for name, value in plain.state_dict().items():
        torch.testing.assert_close(recomputing.state_dict()[name], value, msg=name)


def test_recomputing_what_cannot_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="Small cannot recompute"):
        run(Small(), tmp_path, Points(8), gradient_checkpointing=True)


# Two processes ----------------------------------------------------------------------------

SCRIPT = """
import os, sys
from pathlib import Path
import torch
sys.path.insert(0, {tests!r})
from test_engine import Points, Small, Validation, accuracy, run

folder, rank = Path(sys.argv[1]), os.environ["RANK"]
found = {{}}
for place, stop, resume in (("whole", None, False), ("cut", 3, False), ("cut", None, True)):
    objective, lines = Small(0.2), []
    objective.stop_at = stop
    try:
        run(objective, folder / place, Points(19, 0.2), batch_size=4, checkpoint_steps=2,
            log=lines.append, resume=resume, validation=Validation(Points(16), accuracy))
    except KeyboardInterrupt:
        pass
    found[place] = (objective.state_dict(), len(lines), len(objective.losses))
torch.save(found, folder / f"rank{{rank}}.pt")
"""


def test_two_processes_train_as_one_and_resume(tmp_path: Path) -> None:
    script = tmp_path / "train.py"
    script.write_text(SCRIPT.format(tests=str(Path(__file__).parent)))
    done = subprocess.run(
        [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2",
         str(script), str(tmp_path)],
        env={**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""},
        capture_output=True, text=True, timeout=120,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    first, second = (torch.load(tmp_path / f"rank{r}.pt", weights_only=True) for r in (0, 1))
    (whole, lines, calls), (other, silent, _) = first["whole"], second["whole"]
    # 19 samples, 4 for each of two processes: three steps an epoch.
    assert calls == 9 and lines > 0 and silent == 0
    resumed, _, resumed_calls = first["cut"]
    assert resumed_calls == 7
    for name, value in whole.items():
        assert torch.equal(value, other[name]), name
        assert torch.equal(value, resumed[name]), name
    names = {path.name for path in (tmp_path / "whole" / "checkpoint-9").iterdir()}
    assert {"rng_state_0.pth", "rng_state_1.pth"} <= names
