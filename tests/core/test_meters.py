"""Meters against what was really used."""

from __future__ import annotations

import threading
import time

import numpy as np
import pytest
import torch

from galenic.core.meters import Meter, count_parameters, resident_bytes


def test_seconds() -> None:
    with Meter() as meter:
        time.sleep(0.1)
    assert 0.1 <= meter.seconds < 1


def test_peak_of_memory_that_is_given_back_before_the_end() -> None:
    with Meter() as meter:
        array = np.ones(16 << 20, dtype=np.float64)
        time.sleep(0.05)
        del array
    assert 120 <= meter.host_mb <= 200
    assert meter.peak_memory_mb == (meter.cuda_mb or meter.host_mb)


def test_nested_meters_each_see_their_own_part() -> None:
    with Meter() as outer:
        first = np.ones(8 << 20)
        with Meter() as inner:
            time.sleep(0.03)
        del first
    assert inner.host_mb < 20
    assert outer.host_mb > 60


def test_the_thread_ends_also_after_a_fault() -> None:
    before = threading.active_count()
    with pytest.raises(ZeroDivisionError), Meter() as meter:
        raise ZeroDivisionError
    assert meter.seconds > 0
    assert threading.active_count() == before


def test_resident_bytes_is_plausible() -> None:
    assert 10 << 20 < resident_bytes() < 1 << 40


def test_count_parameters_counts_shared_ones_once() -> None:
    module = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.Linear(4, 3, bias=False))
    assert count_parameters(module) == (28, 28)
    module[0].bias.requires_grad_(False)
    assert count_parameters(module) == (24, 28)
    module.append(module[1])
    assert count_parameters(module) == (24, 28)
    assert count_parameters(torch.nn.ReLU()) == (0, 0)
