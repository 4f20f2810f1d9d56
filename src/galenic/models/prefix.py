"""Run the frozen beginning of a network once, and enter behind it ever after."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from typing import TYPE_CHECKING, Any, Protocol

from torch import Tensor, nn

from galenic.core.errors import BackboneError
from galenic.models.anatomy import anatomy

if TYPE_CHECKING:
    from galenic.models.backbone import Backbone


class _Reached(Exception):  # noqa: N818
    """Ends a forward pass once the wanted state is known."""

    def __init__(self, state: Tensor) -> None:
        self.state = state


def frozen_prefix(network: nn.Module) -> int:
    """How many leading blocks can be computed ahead: nothing in or before them trains.

    0 where anything before the first block trains, or where the blocks are no plain chain.
    """
    names = anatomy(network).blocks
    inner = unwrapped(network)
    if not names or not getattr(inner, "galenic_chain", True):
        return 0
    training = {name for name, p in network.named_parameters() if p.requires_grad}
    before = _before(network, names[0])
    if training & before:
        return 0
    count = 0
    for block in names:
        if any(name.startswith(block + ".") for name in training):
            break
        count += 1
    return count


def prefix_modules(network: nn.Module, count: int) -> list[nn.Module]:
    """The first `count` blocks, and every layer before them."""
    names = anatomy(network).blocks
    before: list[nn.Module] = []
    for name, module in network.named_modules():
        if names and (name == names[0] or name.startswith(names[0] + ".")):
            break
        if not any(module.children()):
            before.append(module)
    return before + [network.get_submodule(name) for name in names[:count]]


def unwrapped(network: nn.Module) -> nn.Module:
    """The network inside a PEFT wrapper."""
    get_base = getattr(network, "get_base_model", None)
    return get_base() if callable(get_base) else network


def _before(network: nn.Module, first: str) -> set[str]:
    found: set[str] = set()
    for name, _ in network.named_parameters():
        if name.startswith(first + "."):
            break
        found.add(name)
    return found


class Reader(Protocol):
    """A side network that reads the states of all blocks of a frozen one, not just the last.

    Attributes:
        place: Name of the states that it reads: the same name, the same arrays.
        columns: Where the tokens behind a block, counted from 1, stand in the last axis of what is
            packed: (first column, column after the last). Empty where states are maps.
    """

    place: str
    columns: Mapping[int, tuple[int, int]]

    def capture(self, call: Callable[[], Any]) -> tuple[Tensor, Tensor | None]:
        """The states of one pass, as one array a sample [B, ...], and what came out of it.

        The latter are the tokens [B, N, D] of the frozen network; None where it gives maps.
        """

    def replay(self, packed: Tensor) -> AbstractContextManager[None]:
        """Inside, `packed` stands for the states, and the frozen network is not run."""


def reader(network: nn.Module) -> Reader | None:
    """The side network around `network`, where there is one."""
    inner: Any = unwrapped(network)
    return inner if callable(getattr(type(inner), "replay", None)) else None


def place(backbone: Backbone, block: int) -> str:
    """Name of what `capture` gives, for caches."""
    side = reader(backbone.network)
    return f"block{block}" if side is None else side.place


def capture(backbone: Backbone, block: int, inputs: Mapping[str, Tensor]) -> Tensor:
    """Hidden state behind the first `block` blocks [B, N, D] (or [B, C, H, W]).

    Args:
        backbone: The network; what follows the block is not run. With a side network around
            it, all states that this reads are given, as one array [B, N, ...] or [B, ...].
        block: At least 1.
        inputs: A batch.

    Raises:
        BackboneError: If the network never reaches the block.
    """
    side = reader(backbone.network)
    if side is not None:
        return side.capture(lambda: backbone(**inputs))[0]
    last = _modules(backbone)[block - 1]

    def stop(_: nn.Module, __: Any, output: Any) -> None:
        raise _Reached(output[0] if isinstance(output, tuple) else output)

    handle = last.register_forward_hook(stop)
    try:
        backbone(**inputs)
    except _Reached as reached:
        return reached.state
    finally:
        handle.remove()
    raise BackboneError(f"The forward pass of {backbone.spec} never reached block {block}.")


class Replay:
    """Enters a network behind its first blocks; what is skipped is found once.

    The network still builds its own masks and positions from the raw inputs; only the blocks
    are skipped, so that every family goes through unchanged.

    Args:
        backbone: The network, with its tuner already attached.
        block: How many leading blocks are skipped, at least 1.
    """

    def __init__(self, backbone: Backbone, block: int) -> None:
        self.side = reader(backbone.network)
        self.skipped = _modules(backbone)[:block] if self.side is None else []

    @contextmanager
    def __call__(self, hidden: Tensor) -> Iterator[None]:
        """Inside, a forward pass takes `hidden` for the output of the skipped blocks."""
        if self.side is not None:
            with self.side.replay(hidden):
                yield
            return
        for module in self.skipped[:-1]:
            _override(module, lambda *args, **kwargs: _first(args, kwargs))
        _override(self.skipped[-1], lambda *_, **__: hidden)
        try:
            yield
        finally:
            for module in self.skipped:
                del module.__dict__["forward"]


def _override(module: nn.Module, forward: Callable[..., Any]) -> None:
    module.__dict__["forward"] = forward


def _first(args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Any:
    return args[0] if args else kwargs["hidden_states"]


def _modules(backbone: Backbone) -> list[nn.Module]:
    network = backbone.network
    return [network.get_submodule(name) for name in anatomy(network).blocks]
