"""Time and memory of a training step: `fit` against a loop written by hand."""

from __future__ import annotations

import tempfile
import time
import warnings
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from benchmarks.harness import SavedTensors, Times, alternate, write_result
from galenic.core.optim import parameter_groups, rate_factor
from galenic.core.sampling import EpochSampler
from galenic.core.schedule import Schedule
from galenic.core.trainer import fit

STEPS, BATCH, TOKENS, WORDS = 20, 16, 32, 1000
ROUNDS = 9
SCHEDULE = Schedule(
    epochs=1, batch_size=BATCH, lr=1e-3, weight_decay=0.01, precision="fp32", clip_norm=1.0
)


class Phrases(Dataset[dict[str, Tensor]]):
    """Random token ids [TOKENS] with a label that can be learnt."""

    def __init__(self, steps: int = STEPS) -> None:
        draw = torch.Generator().manual_seed(0)
        self.ids = torch.randint(WORDS, (steps * BATCH, TOKENS), generator=draw)
        self.labels = self.ids[:, 0] % 4

    def __len__(self) -> int:
        return len(self.ids)

    def __getitem__(self, row: int) -> dict[str, Tensor]:
        return {"input_ids": self.ids[row], "labels": self.labels[row]}


class Objective(nn.Module):
    """A peft model, a head, cross-entropy; notes when each step starts and what it lost."""

    def __init__(self, method: str) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.network = _peft_model(method)
        self.head = nn.Linear(192, 4)
        self.started: list[float] = []
        self.losses: list[Tensor] = []

    def forward(self, input_ids: Tensor, labels: Tensor) -> dict[str, Tensor]:
        """Loss and logits [B, 4] of token ids [B, T]."""
        self.started.append(time.perf_counter())
        logits = self.head(self.network(input_ids=input_ids).last_hidden_state.mean(1))
        loss = nn.functional.cross_entropy(logits, labels)
        self.losses.append(loss.detach())
        return {"loss": loss, "logits": logits}

    @property
    def step_ms(self) -> float:
        """Mean time from one step to the next, in ms; all that a loop does in between counts."""
        return 1000 * (self.started[-1] - self.started[1]) / (len(self.started) - 2)


def _peft_model(method: str) -> nn.Module:
    from peft import LoraConfig, get_peft_model
    from transformers import BertConfig, BertModel

    config = BertConfig(
        vocab_size=WORDS, hidden_size=192, num_hidden_layers=4, num_attention_heads=3,
        intermediate_size=768, max_position_embeddings=TOKENS,
    )  # fmt: skip
    network = BertModel(config, add_pooling_layer=False)
    if method == "lora":
        return get_peft_model(network, LoraConfig(r=8, target_modules=["query", "value"]))
    from galenic.tuners.ssf import SSFConfig

    return get_peft_model(network, SSFConfig())


def collate(rows: list[dict[str, Tensor]]) -> dict[str, Tensor]:
    """Stack samples."""
    return {key: torch.stack([row[key] for row in rows]) for key in rows[0]}


def with_fit(objective: Objective, data: Phrases) -> None:
    """Our side."""
    with tempfile.TemporaryDirectory() as place:
        fit(
            objective, data, schedule=SCHEDULE, collate=collate, folder=Path(place), seed=0,
            log=lambda _: None,
        )  # fmt: skip


def by_hand(objective: Objective, data: Phrases) -> None:
    """The peer: what one would write with torch alone."""
    adam = torch.optim.AdamW(parameter_groups(objective, SCHEDULE), lr=SCHEDULE.lr)
    pace = torch.optim.lr_scheduler.LambdaLR(adam, rate_factor(SCHEDULE, len(data) // BATCH))
    order = EpochSampler(len(data), 0)
    torch.manual_seed(0)
    objective.train()
    # A generator of its own: a loader without one draws from the state that dropout draws from.
    draws = torch.Generator()
    for batch in DataLoader(
        data, batch_size=BATCH, sampler=order, collate_fn=collate, generator=draws
    ):
        loss = objective(**batch)["loss"]
        loss.backward()
        nn.utils.clip_grad_norm_(objective.parameters(), SCHEDULE.clip_norm or 0.0)
        adam.step()
        pace.step()
        adam.zero_grad()


def measure(method: str) -> None:
    """Both figures of one method."""
    data, few = Phrases(), Phrases(3)
    losses: dict[str, Tensor] = {}
    loops: dict[str, Callable[[Objective, Phrases], None]] = {"ours": with_fit, "peer": by_hand}

    def side(name: str) -> float:
        objective = Objective(method)
        loops[name](objective, data)
        losses[name] = torch.stack(objective.losses)
        return objective.step_ms

    def memory(name: str) -> float:
        with SavedTensors() as kept:
            loops[name](Objective(method), few)
        return kept.peak_bytes / 2**20

    times = alternate(lambda: side("ours"), lambda: side("peer"), rounds=ROUNDS)
    gap = float((losses["ours"] - losses["peer"]).abs().max())
    assert len(losses["ours"]) == STEPS and gap < 1e-4, f"the loss curves differ by {gap}"
    same = f"{STEPS} losses of both loops, largest difference {gap:.1e}"
    peer: dict[str, Any] = {
        "name": "a loop written by hand",
        "version": f"torch {version('torch')}",
    }
    _write(f"trainer_step_{method}", "ms a step", times, peer, same)
    kept = alternate(lambda: memory("ours"), lambda: memory("peer"), rounds=5, warmup=0)
    _write(f"trainer_memory_{method}", "MiB kept for the backward pass", kept, peer, same)


def _write(name: str, unit: str, times: Times, peer: dict[str, Any], same: str) -> None:
    write_result(
        name=name, unit=unit, times=times, peer=peer, reach="at most 1.05",
        met=lambda ratio: ratio <= 1.05, same_result=same, module="trainer_step",
    )  # fmt: skip


def main() -> None:
    """LoRA of peft, SSF of galenic."""
    warnings.filterwarnings("ignore", category=FutureWarning)  # between peft and transformers
    # One thread: on a shared machine two of them wait for each other, and measure the neighbours.
    torch.set_num_threads(1)
    for method in ("lora", "ssf"):
        measure(method)


if __name__ == "__main__":
    main()
