"""Keep no activation that is cheap to compute again from one that is kept anyway.

A linear layer whose weight trains keeps its input for the backward pass. Where that input came
out of an activation function, autograd keeps what went into the function as well: the widest
tensor of a transformer block, twice. Inside :func:`rebuilding` the second copy is dropped and
computed again, from the very same numbers, when the backward pass asks for it.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

Rebuild = Callable[[Any], Tensor]

_FUNCTIONS: dict[str, Rebuild] = {
    "GeluBackward0": lambda node: functional.gelu(
        node._saved_self, approximate=node._saved_approximate
    ),
    "SiluBackward0": lambda node: functional.silu(node._saved_self),
}


class Rebuilt:
    """Saves `activation` as the node of the graph that made it; everything else as it is."""

    def __init__(self, activation: Tensor, node: Any, make: Rebuild) -> None:
        self.address, self.size = activation.data_ptr(), activation.numel()
        self.dtype, self.node, self.make = activation.dtype, node, make
        self._hooks: Any = torch.autograd.graph.saved_tensors_hooks(self._pack, _unpack)
        self._hooks.__enter__()

    def close(self) -> None:
        """Save as before, and let go of the graph."""
        self._hooks.__exit__(None, None, None)
        self._hooks = self.node = None

    def _pack(self, tensor: Tensor) -> Any:
        same = tensor.data_ptr() == self.address and tensor.numel() == self.size
        if same and tensor.dtype == self.dtype and tensor.is_contiguous():
            return _Later(self.node, self.make, tuple(tensor.shape))
        return tensor


class _Later:
    """A tensor that is computed when it is asked for."""

    def __init__(self, node: Any, make: Rebuild, shape: tuple[int, ...]) -> None:
        self.node, self.make, self.shape = node, make, shape

    def get(self) -> Tensor:
        with torch.no_grad():
            return self.make(self.node).reshape(self.shape)


def _unpack(kept: Any) -> Tensor:
    found: Tensor = kept.get() if isinstance(kept, _Later) else kept
    return found


def rebuilding(activation: Any) -> Rebuilt | None:
    """What saves `activation` cheaply, entered already; None where there is no such thing.

    Whoever gets one has to `close` it.
    """
    node = getattr(activation, "grad_fn", None)
    if node is None or not activation.is_contiguous():
        return None
    make = _FUNCTIONS.get(node.name())
    if make is None or _others():
        return None
    return Rebuilt(activation, node, make)


def _others() -> bool:
    """Whether someone else decides on what is saved, as recomputation and offloading do."""
    ask = getattr(torch._C._autograd, "_top_saved_tensors_default_hooks", None)
    return ask is None or ask(True) is not None
