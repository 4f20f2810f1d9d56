"""Named streams: the same name gives the same numbers, another name others."""

from __future__ import annotations

import random
import subprocess
import sys

import numpy as np
import pytest
import torch

from galenic.core.seeding import generator, rng, seed_everything, stream


def draws() -> tuple[float, float, float]:
    return random.random(), float(np.random.rand()), float(torch.rand(1))  # noqa: NPY002


@pytest.mark.parametrize("seed", [0, 1, 2**32 + 5])
def test_same_seed_same_numbers(seed: int) -> None:
    seed_everything(seed)
    first = draws()
    assert draws() != first
    seed_everything(seed)
    assert draws() == first


def test_streams_do_not_depend_on_each_other() -> None:
    expected = rng(0, "augment", 7).random(3)
    rng(0, "augment", 6).random(100)
    assert (rng(0, "augment", 7).random(3) == expected).all()


def test_names_seeds_and_types_tell_streams_apart() -> None:
    asked = [(0,), (1,), (0, "a"), (0, "b"), (0, "a", "b"), (0, "ab"), (0, 1), (0, "1"), (0, 1, 1)]
    assert len({stream(*words) for words in asked}) == len(asked)


def test_neighbouring_streams_are_not_correlated() -> None:
    table = np.stack([rng(0, "row", n).standard_normal(2000) for n in range(20)])
    off = np.corrcoef(table)[~np.eye(20, dtype=bool)]
    assert np.abs(off).max() < 5 / np.sqrt(2000)


def test_torch_stream() -> None:
    assert torch.equal(
        torch.rand(4, generator=generator(3, "x")), torch.rand(4, generator=generator(3, "x"))
    )
    assert not torch.equal(
        torch.rand(4, generator=generator(3, "x")), torch.rand(4, generator=generator(3, "y"))
    )


def test_streams_are_the_same_in_another_process() -> None:
    script = "from galenic.core.seeding import stream; print(stream(0, 'a', 1))"
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True
    )
    assert int(done.stdout) == stream(0, "a", 1)
