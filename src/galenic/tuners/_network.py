"""What the tuners share about networks: freezing, names, blocks and errors."""

from __future__ import annotations

import inspect
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from torch import Tensor, nn

from galenic.core.errors import BackboneError, ConfigError

BATCH_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.SyncBatchNorm)

_QUERY = {"q", "query", "q_proj", "q_lin", "to_q", "query_proj", "wq"}
_KEY = {"k", "key", "k_proj", "k_lin", "to_k", "key_proj", "wk"}
_VALUE = {"v", "value", "v_proj", "v_lin", "to_v", "value_proj", "wv"}
_FUSED = {"qkv", "in_proj", "c_attn", "wqkv", "query_key_value", "to_qkv"}
_OUT = {"o", "o_proj", "out_proj", "out_lin", "to_out", "wo"}
_DOWN = {"fc2", "c_proj", "linear2", "lin2", "pwconv2", "down_proj", "output_dense", "wo"}


def freeze(network: nn.Module) -> None:
    """Stop every gradient, and stop batch statistics from drifting.

    A frozen batch norm in training mode would still move its running mean, so that two runs
    of the "frozen" network differ; a pre-hook keeps it in evaluation mode.
    """
    network.requires_grad_(False)
    for module in network.modules():
        if isinstance(module, BATCH_NORMS) and not getattr(module, "_galenic_held", False):
            module.register_forward_pre_hook(_evaluate)
            module._galenic_held = True  # type: ignore[assignment]
            module.eval()


def release(modules: Iterable[nn.Module]) -> None:
    """Let the batch statistics that :func:`freeze` holds move again."""
    for module in modules:
        if getattr(module, "_galenic_held", False):
            module._galenic_held = False  # type: ignore[assignment]


def _evaluate(module: nn.Module, _: tuple[Any, ...]) -> None:
    if getattr(module, "_galenic_held", False) and module.training:
        module.eval()


def exactly(names: Iterable[str]) -> str:
    """A pattern that matches these full names and no other."""
    return "(?:" + "|".join(re.escape(name) for name in names) + ")"


def attention(network: nn.Module, roles: Sequence[str] = ("q", "k", "v", "out")) -> list[str]:
    """Full names of the attention projections with these roles, in order.

    Roles are `q`, `k`, `v`, `qkv` (one layer for all three) and `out`. Layers inside
    `nn.MultiheadAttention` are left out: it reads their weights and never calls them.
    """
    wanted: set[str] = set()
    for role in roles:
        wanted |= {"q": _QUERY, "k": _KEY, "v": _VALUE, "qkv": _FUSED, "out": _OUT}[role]
    sealed = sealed_modules(network)
    found = []
    for name, module in network.named_modules():
        leaf = name.rpartition(".")[2].lower()
        if not is_linear(module) or is_under(name, sealed):
            continue
        inside = re.search(r"att(n|ention)|(^|\.)sa(\.|$)", name.lower()) is not None
        dense_out = "out" in roles and re.search(
            r"att(n|ention)\.(output\.dense|proj|c_proj)$", name.lower()
        )
        if dense_out or (leaf in wanted and (inside or leaf not in {"wo", "o"})):
            found.append(name)
    return found


def feedforward_down(network: nn.Module) -> list[str]:
    """Full names of the second layer of every feed-forward block, in order."""
    taken = set(attention(network))
    found = []
    for name, module in network.named_modules():
        leaf = name.rpartition(".")[2].lower()
        dense = re.search(r"(?<!attention\.)(?<!attn\.)output\.dense$", name.lower())
        if is_linear(module) and name not in taken and (leaf in _DOWN or dense):
            found.append(name)
    return found


def is_linear(module: nn.Module) -> bool:
    """Whether this is a linear layer, transformers' `Conv1D` included."""
    base = getattr(module, "base_layer", module)
    return isinstance(base, nn.Linear) or is_transposed(base)


def is_transposed(module: nn.Module) -> bool:
    """Whether this is transformers' `Conv1D`: a linear layer with its weight as [in, out]."""
    return type(module).__name__ == "Conv1D"


def widths(module: nn.Module) -> tuple[int, int]:
    """Inputs and outputs of a linear layer, transformers' `Conv1D` included."""
    layer: Any = getattr(module, "base_layer", module)
    if isinstance(layer, nn.Linear):
        return layer.in_features, layer.out_features
    return int(layer.weight.shape[0]), int(layer.weight.shape[1])


def sealed_modules(network: nn.Module) -> set[str]:
    """Modules whose children are read as bare weights and never called."""
    kinds = (nn.MultiheadAttention, nn.TransformerEncoderLayer, nn.TransformerDecoderLayer)
    return {name for name, module in network.named_modules() if isinstance(module, kinds)}


def outer_modules(network: nn.Module) -> dict[str, nn.Module]:
    """Every module but the insides of tuner layers; first name only where one has several."""
    wrapped = {n for n, m in network.named_modules() if n and hasattr(m, "base_layer")}
    return {
        name: module
        for name, module in network.named_modules()
        if name and not any(name.startswith(w + ".") for w in wrapped)
    }


def given(network: nn.Module, name: str, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
    """The argument `name` of a call of `network`, by keyword or by position; None without it."""
    if name in kwargs or not args:
        return kwargs.get(name)
    return inspect.signature(network.forward).bind_partial(*args).arguments.get(name)


def is_under(name: str, parents: Iterable[str]) -> bool:
    """Whether `name` is one of `parents` or inside one."""
    return any(name == parent or name.startswith(parent + ".") for parent in parents)


def blocks(network: nn.Module) -> list[str]:
    """Names of the network's blocks, in order.

    Raises:
        BackboneError: If the network has none.
    """
    from galenic.models.anatomy import anatomy

    found = list(anatomy(network).blocks)
    if not found:
        raise BackboneError(
            f"{type(network).__name__} has no sequence of blocks.",
            expected="a network of repeated blocks for last_blocks or frozen_blocks",
            next_step="Leave that key out.",
        )
    return found


def last(network: nn.Module, count: int) -> set[str]:
    """Names of all modules in the last `count` blocks and after them.

    "After" is the order in which the network defines its modules.

    Raises:
        ConfigError: If the network has fewer blocks.
    """
    every = blocks(network)
    if count > len(every):
        raise ConfigError(
            f"last_blocks is {count}, but {type(network).__name__} has {len(every)} blocks.",
            where="tuner.last_blocks",
            expected=f"1 to {len(every)}",
        )
    earlier, kept = every[: len(every) - count], every[len(every) - count :]
    names = [name for name, _ in network.named_modules()]
    start = names.index(kept[0])
    return {name for name in names[start:] if not is_under(name, earlier)}


def cannot_enter(network: nn.Module, method: str, looked_for: str, next_step: str) -> BackboneError:
    """The error for a network that a method cannot enter: what was looked for, what is there."""
    leaves = Counter(
        type(module).__name__ for module in network.modules() if not any(module.children())
    )
    found = ", ".join(f"{count} {kind}" for kind, count in leaves.most_common(8))
    return BackboneError(
        f"'{method}' cannot enter {type(network).__name__}: it found {found or 'no modules'}.",
        expected=looked_for,
        next_step=next_step,
    )


def trainable(network: nn.Module) -> dict[str, Tensor]:
    """Name and value of everything that trains."""
    return {name: p for name, p in network.named_parameters() if p.requires_grad}
