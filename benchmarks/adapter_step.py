"""Time and memory of a step of the bottleneck adapter, against LoRA of peft at the same size.

The nearest peer in peft: one low-rank branch d -> r -> d beside one layer of each block. Both
sides train the same number of weights but for the biases of the bottleneck.
"""

from __future__ import annotations

import time
import warnings
from importlib.metadata import version
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.harness import SavedTensors, Times, alternate, write_result

BATCH, SIDE, WAIST = 16, 224, 8
STEPS, ROUNDS = 2, 5


def _vit() -> nn.Module:
    from transformers import ViTConfig, ViTModel

    torch.manual_seed(0)
    config = ViTConfig(
        hidden_size=384, num_hidden_layers=12, num_attention_heads=6, intermediate_size=1536,
        image_size=SIDE, patch_size=16,
    )  # fmt: skip
    return ViTModel(config, add_pooling_layer=False).eval()


def ours(network: nn.Module) -> nn.Module:
    """Parallel bottlenecks beside attention, where the peer is; norms stay frozen as there."""
    from peft import get_peft_model

    from galenic.tuners.petl_ast import PETLASTConfig

    config = PETLASTConfig(
        variant="houlsby",
        sites="mhsa",
        bottleneck=WAIST,
        train_layernorm=False,
        train_final_norm=False,
    )
    return get_peft_model(network, config)


def peer(network: nn.Module) -> nn.Module:
    """LoRA beside the output projection of attention."""
    from peft import LoraConfig, get_peft_model

    return get_peft_model(network, LoraConfig(r=WAIST, target_modules=["o_proj"]))


class Side:
    """A model, an optimiser of what trains, and one batch."""

    def __init__(self, network: nn.Module) -> None:
        self.model = network.train()
        self.free = [p for p in network.parameters() if p.requires_grad]
        self.adam = torch.optim.AdamW(self.free, lr=1e-3)
        draw = torch.Generator().manual_seed(1)
        self.pixels = torch.randn(BATCH, 3, SIDE, SIDE, generator=draw)

    @property
    def size(self) -> int:
        """Number of values that train."""
        return sum(p.numel() for p in self.free)

    def features(self) -> Tensor:
        """Class tokens [B, d]."""
        last: Tensor = self.model(pixel_values=self.pixels).last_hidden_state
        return last[:, 0]

    def step(self) -> None:
        """Forward, backward, update."""
        self.adam.zero_grad()
        self.features().square().mean().backward()
        self.adam.step()

    def step_ms(self) -> float:
        """Mean time of a step, in ms."""
        started = time.perf_counter()
        for _ in range(STEPS):
            self.step()
        return 1000 * (time.perf_counter() - started) / STEPS

    def saved_mb(self) -> float:
        """Peak of what autograd keeps in one step, in MiB."""
        with SavedTensors() as kept:
            self.step()
        return kept.peak_bytes / 2**20


def main() -> None:
    """Both figures."""
    warnings.filterwarnings("ignore", category=FutureWarning)  # between peft and transformers
    # One thread: on a shared machine two of them wait for each other, and measure the neighbours.
    torch.set_num_threads(1)
    a, b = Side(ours(_vit())), Side(peer(_vit()))
    gap = abs(a.size / b.size - 1)
    with torch.no_grad():
        start = float((a.features() - b.features()).abs().max())
    assert gap < 0.08, f"{a.size} against {b.size} trained values"
    assert start < 1e-5, f"the first outputs differ by {start}"
    same = (
        f"both start as the same ViT-S/16 (largest difference {start:.1e}); trained values "
        f"{a.size} and {b.size}, of which {12 * (384 + WAIST)} of ours are biases"
    )
    times = alternate(a.step_ms, b.step_ms, rounds=ROUNDS)
    _write("adapter_step", f"ms a step of batch {BATCH}", times, same)
    kept = alternate(a.saved_mb, b.saved_mb, rounds=ROUNDS, warmup=0)
    _write("adapter_memory", "MiB kept for the backward pass", kept, same)


def _write(name: str, unit: str, times: Times, same: str) -> None:
    peft: dict[str, Any] = {
        "name": "LoRA on attention's output projection",
        "version": f"peft {version('peft')}",
    }
    write_result(
        name=name, unit=unit, times=times, peer=peft, reach="at most 1.0",
        met=lambda ratio: ratio <= 1.0, same_result=same, module="adapter_step",
    )  # fmt: skip


if __name__ == "__main__":
    main()
