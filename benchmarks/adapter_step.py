"""Time and memory of a step of the bottleneck adapter, against LoRA of peft at the same size.

The nearest peer in peft: one low-rank branch d -> r -> d beside one layer of each block. Both
sides train the same number of weights but for the biases of the bottleneck.
"""

from __future__ import annotations

import warnings
from importlib.metadata import version
from typing import Any

import torch
from torch import nn

from benchmarks.harness import Times, alternate, write_result
from benchmarks.steps import BATCH, Step, vit_small

WAIST = 8


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


def main() -> None:
    """Both figures."""
    warnings.filterwarnings("ignore", category=FutureWarning)  # between peft and transformers
    # One thread: on a shared machine two of them wait for each other, and measure the neighbours.
    torch.set_num_threads(1)
    a, b = Step(ours(vit_small())), Step(peer(vit_small()))
    gap = abs(a.size / b.size - 1)
    with torch.no_grad():
        start = float((a.features() - b.features()).abs().max())
    assert gap < 0.08, f"{a.size} against {b.size} trained values"
    assert start < 1e-5, f"the first outputs differ by {start}"
    same = (
        f"both start as the same ViT-S/16 (largest difference {start:.1e}); trained values "
        f"{a.size} and {b.size}, of which {12 * (384 + WAIST)} of ours are biases"
    )
    times = alternate(a.step_ms, b.step_ms)
    _write("adapter_step", f"ms a step of batch {BATCH}", times, same)
    kept = alternate(a.saved_mb, b.saved_mb, warmup=0)
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
