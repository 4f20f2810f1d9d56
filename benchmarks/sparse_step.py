"""A step with 1 % of the weights of a ViT-S/16 against full fine-tuning with AdamW."""

from __future__ import annotations

import gc
import warnings
from collections.abc import Callable
from importlib.metadata import version
from typing import Any

import torch

from benchmarks.harness import Times, alternate, apart, write_result
from benchmarks.steps import Step, vit_small
from galenic.core.meters import Meter
from galenic.tuners._sparse import sparse_values
from galenic.tuners.composable_sft import LotteryTicket

SHARE = 0.01
PEER = {"name": "full fine-tuning, fused AdamW", "version": f"torch {version('torch')}"}


def sparse() -> Step:
    """Ours: a random choice of 1 % of the maskable entries, ready for the sparse phase."""
    network = vit_small()
    torch.manual_seed(0)
    LotteryTicket(network, proportion=SHARE, mask="random").sparsify()
    return _step(network)


def full() -> Step:
    """The peer: every weight trains."""
    return _step(vit_small())


def _step(network: torch.nn.Module) -> Step:
    free = [p for p in network.parameters() if p.requires_grad]
    return Step(network, torch.optim.AdamW(free, lr=1e-3, fused=True))


SIDES: dict[str, Callable[[], Step]] = {"ours": sparse, "peer": full}


def peak_mb(side: str) -> float:
    """Growth of the resident memory while a model is made and takes two steps, in MiB."""
    torch.set_num_threads(1)
    import transformers.models.vit.modeling_vit  # noqa: F401  what it brings does not count

    gc.collect()
    with Meter(interval=0.002) as meter:
        step = SIDES[side]()
        step.step()
        step.step()
    return meter.host_mb


def state_mb(step: Step) -> float:
    """What the optimiser keeps, in MiB."""
    state = step.optimiser.state.values()
    return sum(t.nbytes for entry in state for t in entry.values()) / 2**20


def gradients_agree(ours: Step, peer: Step) -> float:
    """Largest difference between the gathered gradients and those of the full step there."""
    for step in (ours, peer):
        step.optimiser.zero_grad()
        step.features().square().mean().backward()
    worst = 0.0
    for module in sparse_values(ours.model):
        whole: Any = peer.model.get_parameter(module.swap.name).grad
        mine: Any = module.values.grad
        worst = max(worst, float((whole.reshape(-1)[module.index] - mine.reshape(-1)).abs().max()))
    return worst


def main() -> None:
    """Time, peak memory, state."""
    warnings.filterwarnings("ignore", category=FutureWarning)
    # One thread: on a shared machine two of them wait for each other, and measure the neighbours.
    torch.set_num_threads(1)
    ours, peer = sparse(), full()
    gap = gradients_agree(ours, peer)
    assert gap < 1e-6, f"the gradients differ by {gap}"
    same = f"gradients of the {ours.size} values in both steps, largest difference {gap:.1e}"
    times = alternate(ours.step_ms, peer.step_ms)
    share = ours.size / peer.size
    state = Times([state_mb(ours)] * 5, [state_mb(peer)] * 5)
    del ours, peer
    _write("sparse_step", "ms a step", times, "at most 1.05", lambda r: r <= 1.05, same)
    reach = f"at most {1.05 * share:.4f}, the share of the weights and a twentieth"
    _write(
        "sparse_state", "MiB of optimiser state", state, reach, lambda r: r <= 1.05 * share, same
    )
    peaks = alternate(lambda: apart(peak_mb, "ours"), lambda: apart(peak_mb, "peer"), warmup=0)
    _write("sparse_memory", "MiB at the peak", peaks, "at most 0.85", lambda r: r <= 0.85, same)


def _write(
    name: str, unit: str, times: Times, reach: str, met: Callable[[float], bool], same: str
) -> None:
    write_result(
        name=name, unit=unit, times=times, peer=PEER, reach=reach, met=met, same_result=same,
        module="sparse_step",
    )  # fmt: skip


if __name__ == "__main__":
    main()
