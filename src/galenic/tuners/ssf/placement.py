"""Where the pairs sit.

The paper puts one pair after every operator of the backbone. By type that is: every linear
layer, convolution and norm outside the head, with one exception each:

- patch merging of a Swin has one pair of size 4*dim after its norm, none after its reduction;
- a plain CNN (no layer norm anywhere) has its pairs after convolutions and norms only, since
  its linear layers are its classifier.

The head is whatever stands under a module named as in `HEADS`; it is never entered unless
`target_modules` names it.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any, cast

from torch import nn

from galenic.core.errors import BackboneError, nearest
from galenic.tuners._calls import Run, uncalled
from galenic.tuners._network import (
    cannot_enter,
    is_linear,
    is_under,
    last,
    outer_modules,
    sealed_modules,
    widths,
)

HEADS = frozenset(
    [
        "head",
        "heads",
        "classifier",
        "classification_head",
        "pooler",
        "pooling_head",
        "lm_head",
        "cls",
        "score",
        "qa_outputs",
        "logits",
        "predictions",
        "prediction_head",
        "projection_head",
        "visual_projection",
        "text_projection",
        "decoder_head",
    ]
)

_CONVS = (
    nn.Conv1d,
    nn.Conv2d,
    nn.Conv3d,
    nn.ConvTranspose1d,
    nn.ConvTranspose2d,
    nn.ConvTranspose3d,
)
_BATCH = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.SyncBatchNorm)
_INSTANCE = (nn.InstanceNorm1d, nn.InstanceNorm2d, nn.InstanceNorm3d)


def is_conv(module: nn.Module) -> bool:
    """Whether this is a convolution (transposed ones are not foldable by output row)."""
    return isinstance(getattr(module, "base_layer", module), _CONVS)


def is_rms(module: nn.Module) -> bool:
    """Whether this is a root-mean-square norm: torch's, or one with a weight and that name."""
    module = getattr(module, "base_layer", module)
    named = type(module).__name__.endswith("RMSNorm")
    return isinstance(module, nn.RMSNorm) or (named and hasattr(module, "weight"))


def is_norm(module: nn.Module) -> bool:
    """Whether this is a norm that SSF knows."""
    base = getattr(module, "base_layer", module)
    kinds = (nn.LayerNorm, nn.GroupNorm, *_BATCH, *_INSTANCE)
    return isinstance(base, kinds) or is_rms(base)


def axis_of(module: nn.Module) -> int | None:
    """Channel axis of the module's output, decided by its type; None where SSF cannot enter."""
    module = getattr(module, "base_layer", module)
    if is_linear(module):
        return -1
    if is_conv(module):
        return -1 - len(module.kernel_size)  # type: ignore[arg-type]
    if isinstance(module, nn.LayerNorm):
        first = getattr(module, "data_format", "") == "channels_first"
        return 1 if first or type(module).__name__ == "LayerNorm2d" else -1
    if is_rms(module):
        return -1
    if isinstance(module, (nn.GroupNorm, *_BATCH, *_INSTANCE)):
        return 1
    return None


def channels_of(module: nn.Module) -> int:
    """Number of output channels of a module that `axis_of` knows."""
    module = getattr(module, "base_layer", module)
    if is_linear(module):
        return widths(module)[1]
    if is_conv(module):
        return int(module.out_channels)  # type: ignore[arg-type]
    if isinstance(module, (nn.LayerNorm, nn.RMSNorm)):
        return int(module.normalized_shape[-1])
    if isinstance(module, nn.GroupNorm):
        return int(module.num_channels)
    if isinstance(module, (*_BATCH, *_INSTANCE)):
        return int(module.num_features)
    return int(cast(Any, module).weight.shape[-1])


def in_head(name: str) -> bool:
    """Whether a module of this name belongs to a head."""
    parts = name.split(".")
    return bool(HEADS.intersection(parts)) or parts == ["fc"]


def place(
    network: nn.Module,
    target_modules: str | Sequence[str],
    *,
    exclude_modules: str | Sequence[str] | None = None,
    modules_to_save: Sequence[str] | None = None,
    last_blocks: int | None = None,
    run: Run | None = None,
) -> list[str]:
    """Full names of the modules that get a pair, in the network's order.

    With `auto`, layers whose weights are read without a call of them get none.

    Args:
        network: Any network; modules that carry pairs already count as what they wrap.
        target_modules: `auto`, a pattern that a full name must match, or names (full, or the
            end of a full name).
        exclude_modules: Pattern or names, as above, that get none.
        modules_to_save: Modules that are trained whole, and so get none.
        last_blocks: Only the last so many blocks and what follows them.
        run: One pass through the network; None makes an example from its config.

    Raises:
        BackboneError: If nothing matches, or a named module cannot carry a pair.
    """
    modules = outer_modules(network)
    sealed = sealed_modules(network)
    blind = uncalled(network, run)
    wrong: list[str] = []
    if target_modules == "auto":
        names = _automatic(modules)
        names = [name for name in names if name not in blind]
        wrong = sorted(n for n in sealed if not in_head(n) and not _matches(n, exclude_modules))
    else:
        names = [name for name in modules if _matches(name, target_modules)]
        if not isinstance(target_modules, str):
            wrong = [n for n in names if axis_of(modules[n]) is None or is_under(n, sealed)]
        names = [n for n in names if axis_of(modules[n]) is not None]
        wrong += [n for n in names if n in blind or is_under(n, sealed)]
    if wrong:
        kinds = ", ".join(f"{n} ({type(modules[n]).__name__})" for n in dict.fromkeys(wrong[:5]))
        raise BackboneError(
            f"'ssf' cannot enter {kinds} of {type(network).__name__}: no operator there is called "
            "as a module of its own.",
            expected="linear layers, convolutions or norms that are called as modules",
            next_step="Leave these out with exclude_modules, or use a network with separate layers.",
        )
    names = [
        name
        for name in names
        if not _matches(name, exclude_modules)
        and not is_under(name, sealed)
        and not (modules_to_save and _saved(name, modules_to_save))
    ]
    if last_blocks is not None:
        allowed = last(network, last_blocks)
        names = [name for name in names if name in allowed]
    if not names:
        raise _nothing(network, target_modules, list(modules))
    return names


def _automatic(modules: dict[str, nn.Module]) -> list[str]:
    entered = {n: m for n, m in modules.items() if axis_of(m) is not None and not in_head(n)}
    layered = any(
        isinstance(getattr(m, "base_layer", m), nn.LayerNorm) or is_rms(m) for m in entered.values()
    )
    if not layered and any(is_conv(m) for m in entered.values()):
        entered = {n: m for n, m in entered.items() if not is_linear(m)}
    return [name for name in entered if not _is_patch_reduction(name, modules)]


def _is_patch_reduction(name: str, modules: dict[str, nn.Module]) -> bool:
    """Whether this is the linear layer of a patch merging (norm over 4*dim, then reduction)."""
    parent, _, leaf = name.rpartition(".")
    if leaf != "reduction" or not is_linear(modules[name]):
        return False
    norm = modules.get(f"{parent}.norm")
    layer = getattr(modules[name], "base_layer", modules[name])
    return norm is not None and channels_of(norm) == layer.in_features


def _matches(name: str, wish: str | Sequence[str] | None) -> bool:
    if not wish:
        return False
    if isinstance(wish, str):
        return re.fullmatch(wish, name) is not None
    return any(name == w or name.endswith("." + w) for w in wish)


def _saved(name: str, modules_to_save: Sequence[str]) -> bool:
    return any(re.match(rf"(^|.*\.){m}($|\..*)", name) for m in modules_to_save)


def _nothing(network: nn.Module, wish: str | Sequence[str], names: list[str]) -> BackboneError:
    if wish == "auto":
        return cannot_enter(
            network,
            "ssf",
            "linear layers, convolutions, or layer, batch, group or RMS norms outside the head",
            "Name modules in target_modules.",
        )
    asked = [wish] if isinstance(wish, str) else list(wish)
    hints = [nearest(word, {*names, *(n.rpartition(".")[2] for n in names)}) for word in asked]
    return BackboneError(
        f"target_modules {asked} matches nothing in {type(network).__name__} that can carry a "
        f"pair. {' '.join(h for h in hints if h)}".strip(),
        where="target_modules",
        expected="names of linear layers, convolutions or norms, a pattern, or auto",
    )
