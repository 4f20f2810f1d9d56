"""Reading long histories: time and memory of a Mamba against a transformer of the same size."""

from __future__ import annotations

import time
from functools import partial
from importlib.metadata import version
from typing import Literal

import torch
from torch import Tensor

from benchmarks.harness import alternate, apart, write_result
from galenic.core.meters import Meter
from galenic.models.mamba import Sizes, build
from galenic.objectives.next_event import NextEvent

VOCABULARY = 500
SIZES = Sizes(layers=4, width=64)
VERSION = version("transformers")
LENGTHS = (256, 1024, 4096, 16384)
# eager: a transformer that holds all weights of attention, as those of the paper's time did.
Network = Literal["mamba", "transformer", "eager"]


def objective(kind: Network) -> NextEvent:
    """What a step of pre-training runs."""
    torch.manual_seed(0)
    network = build("mamba" if kind == "mamba" else "transformer", SIZES, VOCABULARY)
    if kind == "eager":
        network.network.network.set_attn_implementation("eager")
    return NextEvent(network, network.decoder)


def history(length: int) -> dict[str, Tensor]:
    """One history [1, length]."""
    draw = torch.Generator().manual_seed(1)
    highs = {"input_ids": VOCABULARY, "types": 9, "ages": 80, "segments": 3, "positions": 500}
    made = {n: torch.randint(high, (1, length), generator=draw) for n, high in highs.items()}
    return {**made, "times": torch.arange(length)[None] // 20}


def step(kind: Network, length: int, *, memory: bool) -> float:
    """Microseconds of the processor a token, forward and backward, or MiB at the peak."""
    torch.set_num_threads(1)
    made = objective(kind)
    made(**history(64))["loss"].backward()  # what the libraries keep does not count
    batch = history(length)
    with Meter(interval=0.002) as meter:
        started = time.process_time()
        made(**batch)["loss"].backward()
        seconds = time.process_time() - started
    return meter.host_mb if memory else 1e6 * seconds / length


def write(
    name: str, ours: tuple[Network, int], peer: tuple[Network, int], *, memory: bool, most: float
) -> None:
    """A figure of one network and length over that of another."""
    sides = [partial(step, *side, memory=memory) for side in (ours, peer)]
    if memory:
        sides = [partial(apart, side) for side in sides]
    counts = [sum(p.numel() for p in objective(side[0]).parameters()) for side in (ours, peer)]
    write_result(
        name=f"context_{name}",
        unit="MiB at the peak" if memory else "us a token, forward and backward",
        times=alternate(*sides, warmup=0),
        peer={"name": f"{peer[0]}, {peer[1]} tokens", "version": f"transformers {VERSION}"},
        reach=f"at most {most:g}",
        met=lambda ratio: ratio <= most,
        same_result=f"{counts[0]:,} and {counts[1]:,} parameters, the same streams in",
        module="context_length",
    )


def main() -> None:
    """Per token: level in length, and below the transformer where histories are long."""
    longest = LENGTHS[-1]
    write("level", ("mamba", longest), ("mamba", LENGTHS[1]), memory=False, most=1.2)
    for length in LENGTHS:
        # Short histories are the transformer's: what grows is its time a token.
        most = 1.0 if length == longest else 10.0
        write(f"time_{length}", ("mamba", length), ("transformer", length), memory=False, most=most)
    write("memory", ("mamba", longest), ("transformer", longest), memory=True, most=1.0)
    write("memory_4x", ("mamba", longest), ("eager", longest // 4), memory=True, most=1.0)


if __name__ == "__main__":
    main()
