"""Fingerprints of content: equal bytes, equal names and shapes, equal fingerprint."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from torch import Tensor, nn


def fingerprint_bytes(*parts: bytes | str) -> str:
    """SHA-256 of `parts`, each with its length, as 64 hexadecimal digits."""
    digest = hashlib.sha256()
    for part in parts:
        data = part.encode() if isinstance(part, str) else part
        digest.update(len(data).to_bytes(8, "big"))
        digest.update(data)
    return digest.hexdigest()


def fingerprint_arrays(arrays: Mapping[str, np.ndarray[Any, Any]]) -> str:
    """Fingerprint of named arrays of any shape; the order of the names does not matter.

    Arrays of Python objects are taken by the text of each element.
    """
    digest = hashlib.sha256()
    for name in sorted(arrays):
        array = np.asarray(arrays[name])
        _header(digest, name, array.dtype.str, array.shape)
        if array.dtype.hasobject:
            digest.update(fingerprint_bytes(*(str(value) for value in array.ravel())).encode())
        else:
            digest.update(np.ascontiguousarray(array).reshape(-1).view(np.uint8).data)
    return digest.hexdigest()


def fingerprint_tensors(state: Mapping[str, Tensor]) -> str:
    """Fingerprint of a state dict; dtype and shape count, device and strides do not."""
    import torch

    digest = hashlib.sha256()
    for name in sorted(state):
        tensor = state[name].detach().cpu().contiguous()
        _header(digest, name, str(tensor.dtype), tuple(tensor.shape))
        if tensor.numel():
            digest.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def fingerprint_module(module: nn.Module) -> str:
    """Fingerprint of all parameters and buffers of a module, those not saved included."""
    state: dict[str, Tensor] = dict(module.named_parameters(remove_duplicate=False))
    state.update(module.named_buffers(remove_duplicate=False))
    return fingerprint_tensors(state)


def _header(digest: Any, name: str, dtype: str, shape: tuple[int, ...]) -> None:
    digest.update(fingerprint_bytes(name, dtype, str(shape)).encode())
