"""A Mamba block forward and backward: against mambapy's parallel scan and transformers' loop."""

from __future__ import annotations

import time
import warnings
from functools import partial
from importlib.metadata import version

import torch
from torch import Tensor, nn

from benchmarks.harness import alternate, apart, write_result
from galenic.core.meters import Meter
from galenic.models.mamba import SelectiveMixer

WIDTH, BATCH, LENGTHS = 128, 2, (512, 2048)
PARALLEL = {"name": "mambapy, parallel scan", "version": f"mambapy {version('mambapy')}"}
LOOP = {"name": "transformers, CPU path", "version": f"transformers {version('transformers')}"}


def transformers_block() -> nn.Module:
    """The block whose weights all sides have."""
    from transformers import MambaConfig
    from transformers.models.mamba.modeling_mamba import MambaModel

    torch.manual_seed(0)
    config = MambaConfig(vocab_size=2, hidden_size=WIDTH, num_hidden_layers=1)
    return MambaModel(config).layers[0].mixer.train()


def our_block() -> nn.Module:
    """Ours."""
    return SelectiveMixer(transformers_block())


def mambapy_block() -> nn.Module:
    """mambapy's, which has the same sizes and the same names of weights."""
    from mambapy.mamba import MambaBlock, MambaConfig

    block = MambaBlock(MambaConfig(d_model=WIDTH, n_layers=1))
    block.load_state_dict(transformers_block().state_dict())
    return block


BLOCKS = {"ours": our_block, "mambapy": mambapy_block, "transformers": transformers_block}


class Side:
    """A block and its input [2, length, 128]."""

    def __init__(self, name: str, length: int) -> None:
        self.block = BLOCKS[name]()
        draw = torch.Generator().manual_seed(1)
        self.x = torch.randn(BATCH, length, WIDTH, generator=draw, requires_grad=True)
        self.weight = torch.randn(BATCH, length, WIDTH, generator=draw)

    def run(self) -> Tensor:
        """Output; gradients of the input and of all weights are in `grad`."""
        self.block.zero_grad()
        self.x.grad = None
        y: Tensor = self.block(self.x)
        (y * self.weight).sum().backward()
        return y.detach()


def difference(ours: Side, peer: Side) -> float:
    """Largest of output and gradients, each relative to the largest value of the peer's."""
    pairs = [(ours.run(), peer.run()), (ours.x.grad, peer.x.grad)]
    other = dict(peer.block.named_parameters())
    pairs += [(p.grad, other[name].grad) for name, p in ours.block.named_parameters()]
    return max(float((a - b).abs().max() / b.abs().max()) for a, b in pairs)


def peak_mb(name: str, length: int) -> float:
    """Growth of the resident memory in a pass, in MiB."""
    torch.set_num_threads(1)
    Side(name, 16).run()  # what the libraries keep for themselves does not count
    side = Side(name, length)
    with Meter(interval=0.002) as meter:
        side.run()
    return meter.host_mb


def process_ms(side: Side) -> float:
    """A pass in ms of the processor: with one thread, a clock's on an idle machine."""
    started = time.process_time()
    side.run()
    return 1000 * (time.process_time() - started)


def against_parallel(length: int) -> None:
    """Time and memory of mambapy's block."""
    ours, peer = Side("ours", length), Side("mambapy", length)
    write = partial(
        write_result, peer=PARALLEL, same_result=same_result(ours, peer), module="mamba_block"
    )
    write(
        name=f"mamba_block_{length}", unit="ms forward and backward",
        times=alternate(partial(process_ms, ours), partial(process_ms, peer)),
        reach="at most 0.5", met=lambda ratio: ratio <= 0.5,
    )  # fmt: skip
    peaks = [partial(apart, peak_mb, name, length) for name in ("ours", "mambapy")]
    write(
        name=f"mamba_block_memory_{length}", unit="MiB at the peak",
        times=alternate(*peaks, warmup=0),
        reach="at most 0.65", met=lambda ratio: ratio <= 0.65,
    )  # fmt: skip


def against_loop(length: int) -> None:
    """Time of transformers' block.

    At the shortest length only: its way back fills a tensor of the whole length at every step, so
    that four times the length takes it several minutes.
    """
    ours, peer = Side("ours", length), Side("transformers", length)
    write_result(
        name=f"mamba_block_loop_{length}", unit="ms forward and backward", peer=LOOP,
        times=alternate(partial(process_ms, ours), partial(process_ms, peer)),
        reach="at most 0.1", met=lambda ratio: ratio <= 0.1,
        same_result=same_result(ours, peer), module="mamba_block",
    )  # fmt: skip


def same_result(ours: Side, peer: Side) -> str:
    """How the two were compared, from the same weights and input."""
    gap = difference(ours, peer)
    assert gap < 1e-4, f"outputs or gradients differ by {gap}"
    return f"output and all gradients, largest relative difference {gap:.1e}"


def main() -> None:
    """All figures."""
    warnings.filterwarnings("ignore", category=FutureWarning)
    # One thread: on a shared machine two of them wait for each other, and measure the neighbours.
    torch.set_num_threads(1)
    for length in LENGTHS:
        against_parallel(length)
    against_loop(LENGTHS[0])


if __name__ == "__main__":
    main()
