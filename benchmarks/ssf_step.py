"""Time and memory of a training step of SSF, against LoRA of peft on all linear layers."""

from __future__ import annotations

import warnings

import torch
from peft import get_peft_model
from torch import nn

from benchmarks.harness import alternate, write_result
from benchmarks.steps import BATCH, LORA, Step, lora_on_all, vit_small
from galenic.tuners.ssf import SSFConfig


def biases(network: nn.Module) -> nn.Module:
    """Only the biases train: the least that reaches every layer."""
    for name, parameter in network.named_parameters():
        parameter.requires_grad_(name.endswith("bias"))
    return network


def main() -> None:
    """Both figures."""
    warnings.filterwarnings("ignore", category=FutureWarning)  # between peft and transformers
    # One thread: on a shared machine two of them wait for each other, and measure the neighbours.
    torch.set_num_threads(1)
    ours = Step(get_peft_model(vit_small(), SSFConfig(init="identity")))
    peer = Step(lora_on_all(vit_small()))
    with torch.no_grad():
        start = float((ours.features() - peer.features()).abs().max())
    assert start < 1e-5, f"the first outputs differ by {start}"
    times = alternate(ours.step_ms, peer.step_ms)
    floor = alternate(Step(biases(vit_small())).step_ms, peer.step_ms, warmup=0).ratio
    same = (
        f"both start as the same ViT-S/16, largest difference {start:.1e}; training the biases "
        f"alone, which is one pass each way and a sum, takes {floor:.3f} of the peer"
    )
    write_result(
        name="ssf_step", unit=f"ms a step of batch {BATCH}", times=times, peer=LORA,
        reach="at most 0.75", met=lambda ratio: ratio <= 0.75, same_result=same,
    )  # fmt: skip
    kept = alternate(ours.saved_mb, peer.saved_mb, warmup=0)
    write_result(
        name="ssf_memory", unit="MiB kept for the backward pass", times=kept, peer=LORA,
        reach="at most 0.72", met=lambda ratio: ratio <= 0.72, same_result=same, module="ssf_step",
    )  # fmt: skip


if __name__ == "__main__":
    main()
