"""Weights that differ after merging and unmerging: galenic's tuners against LoRA of peft."""

from __future__ import annotations

import time
from importlib.metadata import version
from typing import Any

import torch
from peft import LoraConfig, get_peft_model
from torch import nn

from benchmarks.harness import Times, write_result
from benchmarks.steps import vit_small
from galenic.tuners.pego import PEGOConfig
from galenic.tuners.ssf import SSFConfig

DTYPES = (torch.float32, torch.bfloat16, torch.float16)
ROUNDS = 5


def tuned(config: Any, dtype: torch.dtype) -> nn.Module:
    """A ViT-S/16 with an adapter as after a training."""
    model = get_peft_model(vit_small().to(dtype), config)
    draw = torch.Generator().manual_seed(0)
    for parameter in model.parameters():
        if parameter.requires_grad:
            noise = torch.randn(parameter.shape, generator=draw)
            parameter.data += (0.1 * noise).to(dtype)
    return model


def changed(model: Any) -> tuple[int, float]:
    """Weights of the backbone that differ after a round, and its seconds."""
    before = {n: p.clone() for n, p in model.named_parameters() if not p.requires_grad}
    started = time.perf_counter()
    model.merge_adapter()
    model.unmerge_adapter()
    seconds = time.perf_counter() - started
    state = dict(model.named_parameters())
    return sum(int((state[name] != value).sum()) for name, value in before.items()), seconds


def main() -> None:
    """Time of a round in float32, and the counts in all types."""
    peers = LoraConfig(r=8, target_modules="all-linear")
    counts, seconds = [], []
    for dtype in DTYPES:
        found = {}
        for name, config in (("ssf", SSFConfig()), ("pego", PEGOConfig()), ("lora", peers)):
            model = tuned(config, dtype)
            rounds = [changed(model) for _ in range(ROUNDS)]
            found[name] = rounds[0][0]
            if dtype is torch.float32:
                seconds.append([took for _, took in rounds])
        counts.append(found)
    ours = sum(found["ssf"] + found["pego"] for found in counts)
    listed = "; ".join(
        f"{str(dtype).removeprefix('torch.')}: ssf {found['ssf']}, pego {found['pego']}, "
        f"peft's lora {found['lora']}"
        for dtype, found in zip(DTYPES, counts, strict=True)
    )
    write_result(
        name="merge_unmerge",
        unit="s a round of pego in float32",
        times=Times(seconds[1], seconds[2]),
        peer={
            "name": "LoRA, merge_adapter and unmerge_adapter",
            "version": f"peft {version('peft')}",
        },
        reach="0 changed weights",
        met=lambda _: ours == 0,
        same_result=f"changed weights after merge and unmerge, {listed}",
    )


if __name__ == "__main__":
    main()
