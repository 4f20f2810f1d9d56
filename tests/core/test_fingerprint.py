"""Fingerprints change with content, name, shape and dtype, and with nothing else."""

from __future__ import annotations

import hashlib

import numpy as np
import pytest
import torch

from galenic.core.fingerprint import (
    fingerprint_arrays,
    fingerprint_bytes,
    fingerprint_module,
    fingerprint_tensors,
)

DTYPES = [torch.float32, torch.bfloat16, torch.float16, torch.int64, torch.bool, torch.complex64]


def test_bytes_against_a_plain_reference() -> None:
    parts = [b"ab", "c"]
    reference = hashlib.sha256((2).to_bytes(8, "big") + b"ab" + (1).to_bytes(8, "big") + b"c")
    assert fingerprint_bytes(*parts) == reference.hexdigest()
    assert fingerprint_bytes(b"a", b"bc") != fingerprint_bytes(b"ab", b"c")


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", [(), (0,), (3,), (2, 3, 4)])
def test_tensors_of_every_kind(dtype: torch.dtype, shape: tuple[int, ...]) -> None:
    tensor = torch.ones(shape).to(dtype)
    before = fingerprint_tensors({"w": tensor})
    assert before == fingerprint_tensors({"w": tensor.clone()})
    assert before != fingerprint_tensors({"v": tensor})
    if tensor.numel():
        changed = tensor.clone()
        changed.view(-1)[-1] = 0
        assert before != fingerprint_tensors({"w": changed})


def test_order_strides_and_gradients_do_not_count() -> None:
    a, b = torch.rand(3, 4), torch.rand(2)
    strided = a.t().contiguous().t().requires_grad_()
    assert not strided.is_contiguous()
    assert fingerprint_tensors({"a": a, "b": b}) == fingerprint_tensors({"b": b, "a": strided})


def test_shape_and_dtype_count() -> None:
    values = torch.zeros(4)
    prints = [
        fingerprint_tensors({"a": tensor})
        for tensor in (values, values.view(2, 2), values.to(torch.int32), values.half())
    ]
    assert len(set(prints)) == 4


def test_arrays() -> None:
    array = np.arange(6.0).reshape(2, 3)
    before = fingerprint_arrays({"a": array})
    assert before == fingerprint_arrays({"a": np.asfortranarray(array)})
    assert before != fingerprint_arrays({"a": array.T})
    assert before != fingerprint_arrays({"a": array.astype(np.float32)})
    texts = np.array(["ab", "c"], dtype=object)
    assert fingerprint_arrays({"a": texts}) == fingerprint_arrays({"a": texts.copy()})
    assert fingerprint_arrays({"a": texts}) != fingerprint_arrays(
        {"a": np.array(["a", "bc"], dtype=object)}
    )
    assert fingerprint_arrays({"a": np.zeros(0)}) != fingerprint_arrays({})


def test_module_counts_parameters_and_all_buffers() -> None:
    module = torch.nn.BatchNorm1d(3)
    module.register_buffer("hidden", torch.zeros(1), persistent=False)
    seen = {fingerprint_module(module)}
    for name in ("weight", "running_mean", "hidden"):
        with torch.no_grad():
            getattr(module, name).add_(1)
        seen.add(fingerprint_module(module))
    assert len(seen) == 4
    assert fingerprint_module(module.eval()) in seen
