"""Where a network's feature maps are: the last one before each step down, and the last of all."""

from __future__ import annotations

import copy
import math
from collections.abc import Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from itertools import pairwise
from threading import get_ident
from typing import Any, Literal

import torch
from torch import Tensor, nn

from galenic.core.errors import BackboneError, ConfigError, GalenicError
from galenic.models.anatomy import CONVOLUTIONS
from galenic.models.backbone import Backbone
from galenic.objectives.pretraining.spark.sparse import Sparse

Sides = tuple[int, ...]


@dataclass(frozen=True)
class Place:
    """Where one feature map of a network is found.

    Attributes:
        module: Name of the module, '' for the network itself.
        side: Whether the map goes into the module or comes out of it.
        channels: Of the map.
        stride: Input pixels a position, along each axis.
    """

    module: str
    side: Literal["in", "out"]
    channels: int
    stride: Sides


@dataclass(frozen=True)
class Maps:
    """The feature maps of a network.

    Attributes:
        places: One at each resolution, from the finest to the coarsest.
        sides: Sides of all maps inside, the input's included.
    """

    places: tuple[Place, ...]
    sides: frozenset[Sides]

    @property
    def stride(self) -> Sides:
        """Of the coarsest map."""
        return self.places[-1].stride


def find(backbone: Backbone) -> Maps:
    """Find the feature maps of a network; a copy of it is run.

    Raises:
        BackboneError: If the network reads no pixels, has no maps, or calls a function that is
            not known to be right on a sparse map; says which, and in which module.
    """
    size = backbone.inputs.size
    if backbone.inputs.form not in ("image", "volume", "signal") or size is None:
        raise BackboneError(
            f"'spark' cannot enter {type(backbone.network).__name__}: it reads "
            f"{backbone.inputs.form}.",
            expected="a convolutional network on pixels or tracings of a known size",
        )
    network = copy.deepcopy(backbone.network)
    for name, module in network.named_modules():
        if isinstance(module, nn.SyncBatchNorm):
            raise BackboneError(
                f"'{name}' is a SyncBatchNorm: it sums over all devices, inactive positions "
                "included.",
                expected="plain batch norms",
            )
    example = {key: value.expand(2, *value.shape[1:]) for key, value in backbone.example().items()}
    calls = _trace(network.eval(), example, len(size))
    maps = _choose(network, calls, size)
    _try(network, example, maps, size)
    return maps


@contextmanager
def caught(network: nn.Module, places: Iterable[Place]) -> Iterator[dict[Place, Tensor]]:
    """The feature maps of the one forward call of `network` inside, in this thread."""
    found: dict[Place, Tensor] = {}
    thread = get_ident()

    def catch(place: Place, value: Any) -> None:
        if get_ident() == thread and place not in found:
            found[place] = _map(value)

    def entering(place: Place) -> Any:
        return lambda module, args, kwargs: catch(place, (args, kwargs))

    def leaving(place: Place) -> Any:
        return lambda module, args, output: catch(place, output)

    with ExitStack() as stack:
        for place in places:
            module = network.get_submodule(place.module)
            if place.side == "in":
                handle = module.register_forward_pre_hook(entering(place), with_kwargs=True)
            else:
                handle = module.register_forward_hook(leaving(place))
            stack.callback(handle.remove)
        yield found


def refuse_recomputing(network: nn.Module) -> None:
    """A forward that is repeated in the backward pass would be repeated without its mask.

    Raises:
        ConfigError: If the network recomputes its activations.
    """
    if any(getattr(module, "gradient_checkpointing", False) for module in network.modules()):
        raise ConfigError(
            "'spark' cannot recompute activations: the mask is gone by then.",
            where="schedule.gradient_checkpointing",
            next_step="schedule.gradient_checkpointing=false",
        )


@dataclass
class _Call:
    """One call of a module: the sides of the map that went in, the map that came out."""

    module: str
    entered: Any
    left: Any = None
    inner: list[_Call] = field(default_factory=list)


def _trace(network: nn.Module, example: Mapping[str, Tensor], axes: int) -> _Call:
    """The tree of calls of one forward pass."""
    root = _Call("", None)
    open_calls = [root]

    def enter(name: str) -> Any:
        def hook(module: nn.Module, args: Any, kwargs: Any) -> None:
            call = _Call(name, _map((args, kwargs), axes))
            open_calls[-1].inner.append(call)
            open_calls.append(call)

        return hook

    def leave(module: nn.Module, args: Any, output: Any) -> None:
        open_calls.pop().left = _map(output, axes)

    with ExitStack() as stack:
        for name, module in network.named_modules():
            before = module.register_forward_pre_hook(enter(name), with_kwargs=True)
            stack.callback(before.remove)
            stack.callback(module.register_forward_hook(leave).remove)
        with torch.no_grad():
            network(**example)
    return root


def _choose(network: nn.Module, root: _Call, size: Sides) -> Maps:
    """The input of the outermost module that goes down by one step, at each step."""
    done = [call for call in _finished(root) if call.left is not None]
    # What a convolution or a pooling gives has its channels first; of others that is not known.
    first = [call.left for call in done if _moves(network.get_submodule(call.module))]
    sides = {tuple(found.shape[2:]) for found in first if _divides(found, size)}
    steps = sorted(sides | {tuple(size)}, key=math.prod, reverse=True)
    uneven = any(a % b for step in steps for a, b in zip(step, steps[-1], strict=True))
    if len(steps) < 2 or uneven:
        raise BackboneError(
            f"'spark' cannot enter {type(network).__name__}: its input of {size} is not halved "
            "evenly down to a smaller map.",
            expected="a convolutional network, whose maps divide the input evenly",
            next_step="Set input.size to a multiple of the network's stride.",
        )
    last = [call for call in done if tuple(call.left.shape[2:]) == steps[-1]][-1]
    following = dict(pairwise(steps))
    found: dict[Sides, Place] = {}
    for call in _steps_down(root, following):
        sides_in = tuple(call.entered.shape[2:])
        if sides_in != tuple(size):
            found.setdefault(sides_in, _place(call.module, "in", call.entered, size))
    final = _place(last.module, "out", last.left, size)
    finer = (found[step] for step in steps[:-1] if step in found)
    return Maps((*finer, final), frozenset(steps))


def _finished(call: _Call) -> Iterator[_Call]:
    """All calls, in the order in which they end."""
    for inner in call.inner:
        yield from _finished(inner)
    yield call


def _steps_down(call: _Call, following: Mapping[Sides, Sides]) -> Iterator[_Call]:
    for inner in call.inner:
        if inner.entered is not None and inner.left is not None:
            before, after = tuple(inner.entered.shape[2:]), tuple(inner.left.shape[2:])
            if before in following and following[before] == after:
                yield inner
                continue
        yield from _steps_down(inner, following)


def _try(network: nn.Module, example: Mapping[str, Tensor], maps: Maps, size: Sides) -> None:
    """One training pass of the copy with half of the cells masked, to see that all is known."""
    refuse_recomputing(network)
    grid = tuple(side // step for side, step in zip(size, maps.stride, strict=True))
    if math.prod(grid) < 2:
        raise BackboneError(
            f"An input of {size} is one cell of {maps.stride}: nothing could be masked and seen.",
            next_step=f"Set input.size to twice {maps.stride}, or more.",
        )
    active = torch.arange(math.prod(grid)).view(1, 1, *grid) % 2 == 0
    running: list[str] = []

    def enter(name: str) -> Any:
        return lambda module, args: running.append(name)

    def leave(module: nn.Module, args: Any, output: Any) -> None:
        running.pop()

    for name, module in network.named_modules():
        module.register_forward_pre_hook(enter(name))
        module.register_forward_hook(leave)
    sparse = Sparse(active.expand(2, -1, *grid), maps.sides)
    try:
        with torch.random.fork_rng(devices=[]), torch.no_grad(), sparse:
            network.train()(**example)
    except GalenicError as error:
        raise BackboneError(
            error.found,
            where=f"module '{running[-1]}'" if running and running[-1] else "",
            expected=error.expected,
            next_step=error.next_step,
        ) from None


def _place(module: str, side: Literal["in", "out"], found: Tensor, size: Sides) -> Place:
    stride = tuple(whole // side for whole, side in zip(size, found.shape[2:], strict=True))
    return Place(module, side, found.shape[1], stride)


def _moves(module: nn.Module) -> bool:
    return isinstance(module, CONVOLUTIONS) or "pool" in type(module).__name__.lower()


def _divides(found: Tensor, size: Sides) -> bool:
    sides = found.shape[2:]
    return math.prod(sides) > 1 and all(w % s == 0 for w, s in zip(size, sides, strict=True))


def _map(value: Any, axes: int | None = None) -> Any:
    """The first map among nested values; None where there is none."""
    if isinstance(value, Tensor):
        return value if axes is None or value.ndim == axes + 2 else None
    inner = value.values() if isinstance(value, Mapping) else value
    if not isinstance(inner, list | tuple) and not isinstance(value, Mapping):
        return None
    found = (_map(part, axes) for part in inner)
    return next((part for part in found if part is not None), None)
