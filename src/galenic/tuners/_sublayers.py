"""Where the attention and the feed-forward of each transformer block are, and what feeds them.

Found by structure: the block of a query projection is the nearest module that also holds a
linear layer that is none of attention's and gives the width back. Two layouts are told apart:

- the sub-layer is a module of its own, called with its input (ViT, DINOv2, CLIP, Swin, AST);
- the sub-layer ends in a module called with (inner, residual), which projects, adds and
  normalises (BERT and its kin): its input is that second argument.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

from torch import Tensor, nn

from galenic.core.errors import BackboneError
from galenic.models.anatomy import anatomy, is_norm
from galenic.tuners._network import attention, is_linear, is_under, last, widths

Kind = Literal["attention", "mlp"]
LOOKED_FOR = (
    "transformer blocks: attention with q, k and v layers that are called as modules, and a "
    "feed-forward that ends in a linear layer of the same width"
)


@dataclass(frozen=True)
class Tap:
    """Where the input of a sub-layer can be read: argument `index` of the call of `module`."""

    module: str
    index: int


@dataclass(frozen=True)
class Sublayer:
    """One half of a transformer block, by full module names.

    Attributes:
        kind: Which half.
        block: The block.
        width: d.
        call: The module that is the whole half, called with its input; None where there is none.
        tap: Where its input passes, where `call` is None; None where that is not to be had.
        core: The module that holds the projections (attention only, else '').
        down: Its last projection.
        norm: The norm that feeds it, where there is one.
        post: Whether the block normalises after the residual sum.
    """

    kind: Kind
    block: str
    width: int
    call: str | None
    tap: Tap | None
    core: str
    down: str
    norm: str | None
    post: bool


def sublayers(
    network: nn.Module, last_blocks: int | None = None, order: Sequence[str] = ()
) -> list[Sublayer]:
    """Both halves of every transformer block, attention first, in the network's order.

    Args:
        network: Any network; tuner layers in it count as what they wrap.
        last_blocks: Only those in the last so many blocks.
        order: Of `galenic.tuners._calls.calls`; tells which norm feeds what. Without it the
            first norm of a block is taken to feed attention, and the last the feed-forward.

    Raises:
        ConfigError: If the network has fewer blocks.
    """
    found = list(_Finder(network, order).halves())
    if last_blocks is not None:
        allowed = {plain(name) for name in last(network, last_blocks)}
        found = [half for half in found if half.block in allowed]
    return found


def require_two_way(network: nn.Module, method: str, next_step: str) -> None:
    """Refuse attention that looks back only, for what lets every token see every other.

    Raises:
        BackboneError: Naming where such attention is.
    """
    modules = modules_by_plain_name(network)
    cores = [half.core for half in sublayers(network) if half.kind == "attention"]
    causal = [core for core in cores if getattr(modules[core], "is_causal", False)]
    if causal:
        raise BackboneError(
            f"'{method}' cannot enter {type(network).__name__}: its attention ('{causal[0]}') "
            "looks back only, and here tokens would see those that come after them.",
            expected="an encoder, whose tokens see each other",
            next_step=next_step,
        )


def plain(name: str) -> str:
    """The name that a module had before tuners wrapped anything."""
    return name.replace(".base_layer", "").replace(".original_module", "")


def modules_by_plain_name(network: nn.Module) -> dict[str, nn.Module]:
    """Every module under its plain name: what tuners wrapped, and nothing that they brought."""
    wrappers = [
        name for name, module in network.named_modules() if name and hasattr(module, "base_layer")
    ]
    return {
        plain(name): module
        for name, module in network.named_modules()
        if ".modules_to_save." not in name
        and not any(
            name.startswith(w + ".") and not name.startswith(w + ".base_layer") for w in wrappers
        )
    }


def norms_of(modules: dict[str, nn.Module], width: int) -> list[str]:
    """Names of the norms over the last `width` channels, in order."""
    return [n for n, m in modules.items() if is_norm(m) and _normalises(m, width)]


def final_norm(network: nn.Module, order: Sequence[str] = ()) -> str | None:
    """The norm behind the last block, or the last one in it; None where there is none."""
    modules = modules_by_plain_name(network)
    halves = sublayers(network, order=order)
    if not halves:
        return None
    order, norms = list(modules), norms_of(modules, halves[-1].width)
    blocks = [half.block for half in halves]
    end = max(i for i, name in enumerate(order) if is_under(name, [blocks[-1]]))
    behind = [n for n in norms if order.index(n) > end]
    inside = [n for n in norms if is_under(n, [blocks[-1]])]
    return behind[0] if behind else inside[-1] if inside and halves[-1].post else None


def entry_norm(network: nn.Module) -> str | None:
    """The last norm before the first block: what embeddings pass on their way in."""
    modules = modules_by_plain_name(network)
    halves = sublayers(network)
    if not halves:
        return None
    order = list(modules)
    start = order.index(halves[0].block)
    before = [n for n in norms_of(modules, halves[0].width) if order.index(n) < start]
    return before[-1] if before else None


def is_plain_chain(network: nn.Module) -> bool:
    """Whether the transformer blocks follow each other at one width, without stages."""
    halves = sublayers(network)
    return len({half.width for half in halves}) == 1 and set(anatomy_blocks(network)) == {
        half.block for half in halves
    }


def anatomy_blocks(network: nn.Module) -> list[str]:
    """The network's outermost blocks, by plain names."""
    return [plain(name) for name in anatomy(network).blocks]


class _Finder:
    def __init__(self, network: nn.Module, order: Sequence[str]) -> None:
        self.modules = modules_by_plain_name(network)
        self.turn = {name: turn for turn, name in enumerate(_plain_all(order))}
        roles = {role: _plain_all(attention(network, (role,))) for role in ("q", "qkv", "out")}
        self.queries = roles["q"] + roles["qkv"]
        self.outs = roles["out"]
        every = ("q", "k", "v", "qkv", "out")
        self.attending = set(_plain_all(attention(network, every)))

    def halves(self) -> Iterator[Sublayer]:
        seen: set[str] = set()
        before: str | None = None
        for query in self.queries:
            width = widths(self.modules[query])[0]
            place = self._block(query, width)
            if place is None or place[0] in seen:
                continue
            block, down = place
            seen.add(block)
            mlp, attend = self._mlp(block, down, query, width), self._attention(block, query, width)
            if attend is None:
                continue
            starts = (attend[0] or query, mlp[0] or (mlp[1].module if mlp[1] else down))
            norms = self._feeding(block, attend, mlp, width, before, starts)
            post = norms[2]
            before = self._last_norm(block, width) if post else None
            yield Sublayer("attention", block, width, *attend, norms[0], post)
            yield Sublayer("mlp", block, width, mlp[0], mlp[1], "", down, norms[1], post)

    def _block(self, query: str, width: int) -> tuple[str, str] | None:
        """The nearest module around `query` with a projection of its own back to `width`."""
        for ancestor in _ancestors(query):
            ends = [
                name
                for name, module in self.modules.items()
                if name.startswith(ancestor + ".")
                and is_linear(module)
                and name not in self.attending
                and widths(module)[1] == width
            ]
            if ends:
                return ancestor, ends[-1]
        return None

    def _mlp(self, block: str, down: str, query: str, width: int) -> tuple[str | None, Tap | None]:
        call = None
        for place in _between(down, block):
            inside = self._under(place)
            if self._normalised(place, down, width) or query in inside:
                break
            if sum(is_linear(m) for m in inside.values()) > 1:
                call = place
        if call is not None:
            return call, None
        return None, self._residual(down, block, width) or self._first(block, down, width)

    def _attention(
        self, block: str, query: str, width: int
    ) -> tuple[str | None, Tap | None, str, str] | None:
        core = query.rpartition(".")[0]
        out = next((name for name in self.outs if name.startswith(block + ".")), None)
        if out is None:
            return None
        call = None
        for place in _between(query, block):
            if self._normalised(place, out, width):
                break
            if out in self._under(place):
                call = place
        tap = None if call is not None else self._residual(out, block, width)
        return call, tap, core, out

    def _normalised(self, place: str, end: str, width: int) -> bool:
        """Whether a norm stands in `place` itself, or beside the last projection inside it."""
        parents = {place, end.rpartition(".")[0]} if is_under(end, [place]) else {place}
        inside = norms_of(self._under(place), width)
        return any(name.rpartition(".")[0] in parents for name in inside)

    def _residual(self, down: str, block: str, width: int) -> Tap | None:
        """The module that projects, adds its second argument, and normalises."""
        parent = down.rpartition(".")[0]
        if parent == block or not self._normalised(parent, down, width):
            return None
        takes = list(inspect.signature(self.modules[parent].forward).parameters.values())
        places = [p for p in takes if p.kind is p.POSITIONAL_OR_KEYWORD]
        return Tap(parent, 1) if len(places) > 1 else None

    def _first(self, block: str, down: str, width: int) -> Tap | None:
        """The first layer of a feed-forward whose layers lie loose in the block."""
        names = list(self.modules)
        for name in names[: names.index(down)]:
            module = self.modules[name]
            loose = name.startswith(block + ".") and name not in self.attending
            if loose and is_linear(module) and widths(module)[0] == width:
                return Tap(name, 0)
        return None

    def _feeding(
        self,
        block: str,
        attend: tuple[str | None, Tap | None, str, str],
        mlp: tuple[str | None, Tap | None],
        width: int,
        before: str | None,
        starts: tuple[str, str],
    ) -> tuple[str | None, str | None, bool]:
        """Norms that feed attention and feed-forward, and whether they follow the sums.

        `starts` are the modules that the halves begin with.
        """
        calls = [call for call in (attend[0], mlp[0]) if call is not None]
        norms = [n for n in norms_of(self._under(block), width) if not is_under(n, calls)]
        if all(name in self.turn for name in starts):
            attend_at, mlp_at = (self.turn[name] for name in starts)
            turns = sorted((self.turn[n], n) for n in norms if n in self.turn)
            first = next((n for turn, n in reversed(turns) if turn < attend_at), None)
            second = next((n for turn, n in reversed(turns) if turn < mlp_at), None)
            post = first is None and bool(turns) and turns[-1][0] > mlp_at
            return (before or self._entry(block, width)) if post else first, second, post
        sums = [tap.module for tap in (attend[1], mlp[1]) if tap is not None and tap.index == 1]
        if sums:
            inner = [n for n in norms if not is_under(n, sums[-1:])] or norms
            return before or self._entry(block, width), inner[-1], True
        if len(norms) < 2:
            return None, norms[-1] if norms else None, False
        first, second = norms[0], norms[-1]
        if "out" in second.rpartition(".")[2]:
            return before or self._entry(block, width), first, True
        return first, second, False

    def _entry(self, block: str, width: int) -> str | None:
        order = list(self.modules)
        start = order.index(block)
        found = [n for n in norms_of(self.modules, width) if order.index(n) < start]
        return found[-1] if found else None

    def _last_norm(self, block: str, width: int) -> str | None:
        norms = norms_of(self._under(block), width)
        return norms[-1] if norms else None

    def _under(self, name: str) -> dict[str, nn.Module]:
        return {n: m for n, m in self.modules.items() if n == name or n.startswith(name + ".")}


def _plain_all(names: Sequence[str]) -> list[str]:
    return list(dict.fromkeys(plain(name) for name in names))


def _ancestors(name: str) -> Iterator[str]:
    while "." in name:
        name = name.rpartition(".")[0]
        yield name


def _between(name: str, block: str) -> Iterator[str]:
    """Modules around `name` and below `block`, from the inside out."""
    for ancestor in _ancestors(name):
        if ancestor == block:
            return
        yield ancestor


def _normalises(module: nn.Module, width: int) -> bool:
    shape = getattr(module, "normalized_shape", None)
    if shape is not None:
        return tuple(shape) == (width,)
    weight = getattr(module, "weight", None)
    return isinstance(weight, Tensor) and tuple(weight.shape) == (width,)
