"""One training step of a ViT-S/16: what the benchmarks of tuners have in common."""

from __future__ import annotations

import time
from importlib.metadata import version

import torch
from torch import Tensor, nn

from benchmarks.harness import SavedTensors

BATCH, SIDE = 16, 224
STEPS = 2
LORA = {"name": "peft LoRA, rank 8, all linear layers", "version": f"peft {version('peft')}"}


def vit_small() -> nn.Module:
    """ViT-S/16 at 224 pixels with random weights: the work is the same."""
    from transformers import ViTConfig, ViTModel

    torch.manual_seed(0)
    config = ViTConfig(
        hidden_size=384, num_hidden_layers=12, num_attention_heads=6, intermediate_size=1536,
        image_size=SIDE, patch_size=16,
    )  # fmt: skip
    return ViTModel(config, add_pooling_layer=False).eval()


def lora_on_all(network: nn.Module) -> nn.Module:
    """peft's LoRA of rank 8 on every linear layer."""
    from peft import LoraConfig, get_peft_model

    return get_peft_model(network, LoraConfig(r=8, target_modules="all-linear"))


class Step:
    """A model, an optimiser of what trains, and one batch.

    Args:
        model: Gives `last_hidden_state` of `pixel_values`.
        optimiser: Of what trains; AdamW by default.
    """

    def __init__(self, model: nn.Module, optimiser: torch.optim.Optimizer | None = None) -> None:
        self.model = model.train()
        self.free = [p for p in model.parameters() if p.requires_grad]
        self.optimiser = optimiser or torch.optim.AdamW(self.free, lr=1e-3)
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
        self.optimiser.zero_grad()
        self.features().square().mean().backward()
        self.optimiser.step()

    def step_ms(self) -> float:
        """Mean time of a step, in ms of the processor: with one thread, what a clock would say
        on a machine without neighbours."""
        started = time.process_time()
        for _ in range(STEPS):
            self.step()
        return 1000 * (time.process_time() - started) / STEPS

    def saved_mb(self) -> float:
        """Peak of what autograd keeps in one step, in MiB."""
        with SavedTensors() as kept:
            self.step()
        return kept.peak_bytes / 2**20
