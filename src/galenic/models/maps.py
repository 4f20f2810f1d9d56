"""Feature maps of a network, at several resolutions or behind several blocks."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from typing import Any

import torch
from torch import Tensor

from galenic.core.errors import BackboneError
from galenic.core.prediction import evaluating
from galenic.models.anatomy import anatomy
from galenic.models.backbone import Backbone, Features

Sides = tuple[int, ...]
# Times that a network halves its input, at most.
STEPS = 6
PIXELS = ("image", "volume")


def find(backbone: Backbone, count: int) -> tuple[str, ...]:
    """Modules whose outputs are the `count - 1` maps before the last one, finest first.

    Of a network that steps down these are the last maps of the coarsest resolutions; of one that
    does not, the outputs of its last blocks. The last map of all is what the backbone gives.

    Args:
        backbone: With its tuner in it.
        count: Maps in all.

    Raises:
        BackboneError: If the network has not so many.
    """
    names = [name for name, _ in backbone.network.named_modules() if name]
    with evaluating(backbone), torch.no_grad():
        outputs, features = passed(backbone, names, backbone.example(2))
    size, final = backbone.inputs.size or (), _final(backbone, features)
    last: dict[Sides, str] = {}
    # In the order in which the modules end: the last one at a resolution stands for it.
    for name, output in outputs.items():
        found = as_map(output, size, backbone.prefix_tokens)
        if found is not None and len(found) == 2 and found.shape[1] > 1:
            last[tuple(found.shape[2:])] = name
    sides = () if final is None else final.shape[2:]
    # Twice the last map, four times, ...: what a padding gives lies between these.
    steps = [tuple(2**k * side for side in sides) for k in range(STEPS, 0, -1)]
    coarser = [last[sides] for sides in steps if sides in last]
    if not coarser:
        coarser = list(anatomy(backbone.network).blocks[:-1])
    if len(coarser) < count - 1:
        raise BackboneError(
            f"'{backbone.spec}' has {len(coarser) + 1} levels of features; {count} were asked for.",
            next_step=f"Ask for {len(coarser) + 1} or fewer.",
        )
    return tuple(coarser[len(coarser) - count + 1 :])


def maps(backbone: Backbone, places: Sequence[str], batch: Mapping[str, Tensor]) -> list[Tensor]:
    """Maps [B, C, ...] behind the modules `places`, and last what the backbone gives.

    Raises:
        BackboneError: If what the backbone gives is no map.
    """
    outputs, features = passed(backbone, places, batch)
    final, size = _final(backbone, features), backbone.inputs.size or ()
    if final is None:
        raise BackboneError(
            f"'{backbone.spec}' gives no map of its input of {size or backbone.inputs.form}.",
            expected="tokens or positions that lie on a grid over a picture or a volume",
            next_step="Choose another backbone, or input.size a multiple of its stride.",
        )
    before = [as_map(outputs[name], size, backbone.prefix_tokens) for name in places]
    return [*(one for one in before if one is not None), final]


def passed(
    backbone: Backbone, names: Sequence[str], batch: Mapping[str, Tensor]
) -> tuple[dict[str, Any], Features]:
    """What modules gave in one pass, in the order in which they ended, and its features."""
    outputs: dict[str, Any] = {}

    def hook(name: str) -> Callable[..., None]:
        return lambda module, args, output: outputs.__setitem__(name, output)

    with ExitStack() as stack:
        for name in names:
            module = backbone.network.get_submodule(name)
            stack.callback(module.register_forward_hook(hook(name)).remove)
        return outputs, backbone(**batch)


def _final(backbone: Backbone, features: Features) -> Tensor | None:
    size = backbone.inputs.size
    if features.tokens is None or size is None or backbone.inputs.form not in PIXELS:
        return None
    return as_map(features.tokens, size, backbone.prefix_tokens)


def as_map(output: Any, size: Sides, prefix: int) -> Tensor | None:
    """A map [B, C, ...] over an input of `size`; None for what is none.

    Args:
        output: What a module gave: a map, or tokens [B, N, C] on a grid behind `prefix` others.
        size: Of the input; () where it has no sides.
        prefix: Tokens before the grid.
    """
    state = output[0] if isinstance(output, tuple | list) and len(output) else output
    if not isinstance(state, Tensor) or not size:
        return None
    if state.ndim == len(size) + 2:
        return state if _grid(state.shape[2:].numel(), size) == state.shape[2:] else None
    if state.ndim != 3:
        return None
    sides = _grid(state.shape[1] - prefix, size)
    if sides is None:
        return None
    return state[:, prefix:].transpose(1, 2).unflatten(2, sides)


def _grid(count: int, size: Sides) -> Sides | None:
    """Sides of a grid of `count` positions in the proportions of `size`; None for none."""
    if count < 2:
        return None
    stride = (torch.Size(size).numel() / count) ** (1 / len(size))
    sides = tuple(max(1, round(side / stride)) for side in size)
    return sides if torch.Size(sides).numel() == count and stride >= 1 else None
