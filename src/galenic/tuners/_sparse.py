"""A few entries of a parameter that train, and nothing but these: the kernel of sparse tuners.

The entries are one vector of k values, which is what the optimiser sees: its state, its decay
and its momentum are of k values, and no step of it can touch another entry. Before a module
that reads the parameter runs, the values are written to their places in the parameter's own
storage, and the module is given that storage through :class:`_Gather`, whose backward pass
keeps k entries of the weight's gradient and drops the rest. Neither a second copy of the weight
nor a gradient of its size outlives the operator (Hu et al., "SaRA", ICLR 2025, section 3.4).
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from galenic.tuners._network import sealed_modules
from galenic.tuners._rebuild import Rebuilt, rebuilding

_PASSIVE = (nn.ParameterList, nn.ParameterDict, nn.ModuleList, nn.ModuleDict)
Place = tuple[nn.Module, str]


class _Gather(torch.autograd.Function):
    """The whole parameter out of its k entries; back, k entries of its gradient."""

    @staticmethod
    def forward(
        ctx: Any, values: Tensor, weight: Tensor, index: Tensor, free: Tensor | None, lease: Any
    ) -> Tensor:
        ctx.save_for_backward(index, *([] if free is None else [free]))
        ctx.shape, ctx.dtype, ctx.lease = values.shape, values.dtype, lease
        return weight.view_as(weight)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None, None, None]:
        index, *free = ctx.saved_tensors
        found = grad.reshape(-1).index_select(0, index)
        if free:
            found = found * free[0]
        return found.to(ctx.dtype).reshape(ctx.shape), None, None, None, None


def gathered(
    values: Tensor, weight: Tensor, index: Tensor, free: Tensor | None = None, lease: Any = None
) -> Tensor:
    """`weight` as a function of its entries at `index`.

    Args:
        values: [k] or [1, k]; receives the gradient.
        weight: Any shape; holds the values already, and is not copied.
        index: int64 [k], flat places.
        free: Boolean [k]; where it is False, the gradient is zero.
        lease: Any object; it lives as long as the graph does.

    Returns:
        A tensor on the storage of `weight`.
    """
    found: Tensor = _Gather.apply(values, weight.detach(), index, free, lease)
    return found


def vector(weight: Tensor, index: Tensor) -> nn.Parameter:
    """A trainable copy of the entries of `weight` at `index`, in float32 at least.

    Shaped [1, k] where the weight is a matrix or more, so that an optimiser that spares vectors
    (biases, norms) from decay treats the values as it treats their parameter.
    """
    values = weight.detach().reshape(-1)[index]
    values = values.to(torch.promote_types(values.dtype, torch.float32))
    return nn.Parameter(values.unsqueeze(0) if weight.ndim > 1 else values)


def write(weight: Tensor, index: Tensor, values: Tensor) -> None:
    """Put values [k] at flat places of `weight`, in its own type; autograd does not see it."""
    # Through `.data`: the parameter counts as frozen, which its version counter attests.
    place = weight.data
    values = values.detach().reshape(-1).to(place.dtype)
    if place.is_contiguous():
        place.view(-1).index_copy_(0, index, values)
    else:
        flat = place.reshape(-1).index_copy(0, index, values)
        place.copy_(flat.reshape(place.shape))


class Source(Protocol):
    """What decides on the tensor that modules compute with."""

    def enter(self, weight: Tensor) -> Tensor | None:
        """The tensor instead of the parameter; None for the parameter as it stands."""

    def leave(self, weight: Tensor) -> None:
        """The module is done; a graph may still hold the tensor."""


class Swap:
    """Gives modules another tensor for a parameter while they run.

    Every module that holds the parameter is served, tied ones too. Where a module only keeps it
    for a parent that computes with it (the output projection of `nn.MultiheadAttention`, a
    `ParameterList`), the parent is the one that is watched.

    Args:
        network: All of it.
        name: Of the parameter, in `network`.
        source: Asked each time.
    """

    def __init__(self, network: nn.Module, name: str, source: Source) -> None:
        self.source, self.name = source, name
        self.places = places_of(network, name)
        self._deep = 0
        self._kept: nn.Parameter | None = None
        self._rebuilt: Rebuilt | None = None
        self._handles: list[RemovableHandle] = []
        for caller in {id(c): c for c in callers(network, self.places)}.values():
            self._handles += [
                caller.register_forward_pre_hook(self._enter),
                caller.register_forward_hook(self._leave, always_call=True),
            ]

    @property
    def weight(self) -> nn.Parameter:
        """The parameter itself."""
        if self._kept is not None:
            return self._kept
        owner, key = self.places[0]
        found = owner._parameters[key]
        assert isinstance(found, nn.Parameter)
        return found

    def remove(self) -> None:
        """Take the hooks away."""
        for handle in self._handles:
            handle.remove()
        self._handles.clear()

    def _enter(self, module: nn.Module, inputs: tuple[Any, ...]) -> None:
        self._deep += 1
        if self._deep > 1:
            return
        weight = self.weight
        found = self.source.enter(weight)
        if found is not None:
            self._kept = weight
            self._put(found)
            if isinstance(module, nn.Linear) and weight.ndim > 1 and inputs:
                self._rebuilt = rebuilding(inputs[0])

    def _leave(self, *_: Any) -> None:
        self._deep -= 1
        if self._deep:
            return
        if self._rebuilt is not None:
            self._rebuilt.close()
            self._rebuilt = None
        if self._kept is not None:
            self._put(self._kept)
            self._kept = None
        self.source.leave(self.weight)

    def _put(self, tensor: Tensor) -> None:
        for owner, key in self.places:
            owner._parameters[key] = tensor  # type: ignore[assignment]
            if isinstance(owner, nn.RNNBase):
                # It reads its weights from a list of its own.
                owner._flat_weights[owner._flat_weights_names.index(key)] = tensor


class SparseValues(nn.Module):
    """The entries of one parameter that train.

    It becomes a child of the module that owns the parameter, as `sparse_<key>`, so that its
    name tells where in the network it works.

    Args:
        network: All of it; the parameter is frozen from now on.
        name: Of the parameter.
        index: int64 [k], flat places, ascending.

    Attributes:
        values: [1, k] (or [k] for a vector), what trains.
    """

    index: Tensor

    def __init__(self, network: nn.Module, name: str, index: Tensor) -> None:
        super().__init__()
        owner, key = place_of(network, name)
        weight: Any = owner._parameters[key]
        weight.requires_grad_(False)
        self.register_buffer("index", index.to(weight.device))
        self.values = vector(weight, self.index)
        owner.add_module(f"sparse_{key}", self)
        self.swap = Swap(network, name, self)

    def enter(self, weight: Tensor) -> Tensor | None:
        """The parameter to compute with, its values in place."""
        write(weight, self.index, self.values)
        if not (torch.is_grad_enabled() and self.values.requires_grad):
            return None
        return gathered(self.values, weight, self.index)

    def leave(self, weight: Tensor) -> None:
        """The values stay in the parameter."""

    def flush(self) -> None:
        """Put the values into the parameter now, for those who read it without a forward pass."""
        write(self.swap.weight, self.index, self.values)

    def release(self) -> None:
        """Leave the network; the values stay in the parameter."""
        self.flush()
        self.swap.remove()
        owner, key = self.swap.places[0]
        del owner._modules[f"sparse_{key}"]


def sparse_values(network: nn.Module) -> list[SparseValues]:
    """Every :class:`SparseValues` of a network."""
    return [module for module in network.modules() if isinstance(module, SparseValues)]


def place_of(network: nn.Module, name: str) -> Place:
    """The module that owns a parameter, and its key there."""
    parent, _, key = name.rpartition(".")
    return network.get_submodule(parent), key


def places_of(network: nn.Module, name: str) -> list[Place]:
    """Every module that holds the parameter, the one of that name first."""
    owner, key = place_of(network, name)
    weight = owner._parameters[key]
    found = [(owner, key)]
    for module in network.modules():
        for other, value in module._parameters.items():
            if value is weight and not (module is owner and other == key):
                found.append((module, other))
    return found


def callers(network: nn.Module, places: Sequence[Place]) -> Iterable[nn.Module]:
    """The modules whose forward pass reads the parameter."""
    names = {module: name for name, module in network.named_modules()}
    sealed = sealed_modules(network)
    for owner, _ in places:
        parts = names[owner].split(".") if names[owner] else []
        path = [".".join(parts[:depth]) for depth in range(len(parts) + 1)]
        outer = next((name for name in path if name in sealed), None)
        if outer is None:
            outer = next(
                n
                for n in reversed(path)
                if not n or not isinstance(network.get_submodule(n), _PASSIVE)
            )
        yield network.get_submodule(outer)
