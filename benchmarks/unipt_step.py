"""Time and memory of a training step: UniPT, with and without cached states, against LoRA."""

from __future__ import annotations

import tempfile
import warnings
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from benchmarks.harness import alternate, write_result
from benchmarks.steps import BATCH, LORA, SIDE, Step, lora_on_all, vit_small
from galenic import tuners
from galenic.core.arraybank import ArrayBank
from galenic.core.inputs import InputSpec
from galenic.models.backbone import Backbone, Opened
from galenic.models.prefix import Replay, capture, frozen_prefix
from galenic.pipeline.inputs import Collate

ROUNDS = 5


def backbone() -> Backbone:
    """ViT-S/16 with UniPT beside it, at the defaults of both."""
    inputs = InputSpec("pixel_values", "image", 3, (SIDE, SIDE))
    opened = Opened(vit_small(), inputs, pool="cls", prefix_tokens=1)
    made = Backbone(opened, "vit-s", "auto")
    tuners.attach(made, tuners.parse_tuner({"method": "unipt"}))
    return made


class Cached(Step):
    """The same step on states from a memory-mapped bank; reading them counts."""

    def __init__(self, folder: Path) -> None:
        self.backbone = backbone()
        super().__init__(self.backbone.network)
        block = frozen_prefix(self.backbone.network)
        self.replay = Replay(self.backbone, block)
        with torch.inference_mode():
            states = capture(self.backbone, block, {"pixel_values": self.pixels}).numpy()
        self.bank = ArrayBank(folder)
        self.bank.add({str(row): state for row, state in enumerate(states)})
        self.collate = Collate()

    def features(self) -> Tensor:
        """Class tokens [B, d], from states that are read from disk."""
        rows = [{"hidden": np.array(self.bank[str(row)])} for row in range(BATCH)]
        with self.replay(self.collate(rows)["hidden"]):
            return self.backbone().pooled


def same_features(live: Step, cached: Step) -> str:
    """How cached and live states were compared, from the same weights."""
    cached.model.load_state_dict(live.model.state_dict())
    with torch.no_grad():
        gap = float((live.features() - cached.features()).abs().max())
    assert gap < 1e-5, f"cached and live features differ by {gap}"
    return f"features from cached and from live states differ by {gap:.1e} at most"


def main() -> None:
    """Both time figures and the memory figure."""
    warnings.filterwarnings("ignore", category=FutureWarning)  # between peft and transformers
    # One thread: on a shared machine two of them wait for each other, and measure the neighbours.
    torch.set_num_threads(1)
    peer = Step(lora_on_all(vit_small()))
    with tempfile.TemporaryDirectory() as place:
        live, cached = Step(backbone().network), Cached(Path(place))
        same = same_features(live, cached)
        mib = "MiB kept for the backward pass"
        _measure("unipt_memory", mib, live.saved_mb, peer.saved_mb, 0.25, same)
        _measure("unipt_step_cached", "ms a step", cached.step_ms, peer.step_ms, 0.15, same)
        _measure("unipt_step", "ms a step", live.step_ms, peer.step_ms, 0.5, same)


def _measure(
    name: str,
    unit: str,
    ours: Callable[[], float],
    peer: Callable[[], float],
    reach: float,
    same: str,
) -> None:
    write_result(
        name=name, unit=unit, times=alternate(ours, peer, rounds=ROUNDS), peer=LORA,
        reach=f"at most {reach}", met=lambda ratio: ratio <= reach, same_result=same,
        module="unipt_step",
    )  # fmt: skip


if __name__ == "__main__":
    main()
