"""Learned tokens among a network's own: put in, replaced, taken out; and learned keys and values.

Sources: Jia et al., "Visual Prompt Tuning", ECCV 2022 (shallow and deep); Li and Liang,
"Prefix-Tuning", ACL 2021 (keys and values).
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from galenic.core.errors import BackboneError

Args = tuple[Any, ...]
HIDDEN = ("hidden_states", "hidden_state", "x", "inputs_embeds")
_CLASS = {"cls_token", "class_embedding"}
_DISTILLATION = {"distillation_token", "dist_token"}
_INTERFACE = "galenic_prefix"


def insert(tokens: Tensor, prompts: Tensor, at: int, drop: int = 0) -> Tensor:
    """`tokens` [B, N, d] with `prompts` [P, d] before position `at`: [B, N - drop + P, d].

    Args:
        tokens: Hidden states.
        prompts: The same for every sample.
        at: Position of the first prompt.
        drop: Tokens behind the prompts that are left out.
    """
    learned = prompts.to(tokens.dtype).expand(tokens.shape[0], -1, -1)
    return torch.cat([tokens[:, :at], learned, tokens[:, at + drop :]], dim=1)


def replace(tokens: Tensor, prompts: Tensor, at: int) -> Tensor:
    """`tokens` [B, N, d] whose positions `at` to `at + P` are `prompts` [P, d]."""
    return insert(tokens, prompts, at, drop=prompts.shape[0])


def remove(tokens: Tensor, count: int, at: int) -> Tensor:
    """`tokens` [B, N, d] without the `count` at `at`: [B, N - count, d]."""
    return torch.cat([tokens[:, :at], tokens[:, at + count :]], dim=1)


def widen(
    mask: Tensor, length: int, count: int, at: int, drop: int = 0, *, rows: bool = True
) -> Tensor:
    """A mask over `length` tokens, opened for `count` more at `at`.

    Args:
        mask: [B, N], [B, 1, 1, N] or [B, 1, N, N]; true, one or zero-added where it attends.
        length: N.
        count: New tokens, which everyone sees; they see what the first token sees.
        at: Where they stand.
        drop: Tokens behind them that are gone.
        rows: Whether the new tokens ask as well (are queries), or are only seen.
    """
    if mask.shape[-1] != length:
        return mask
    if rows and mask.ndim > 2 and mask.shape[-2] == length:
        asked = mask[..., :1, :].expand(*mask.shape[:-2], count, length)
        mask = torch.cat([mask[..., :at, :], asked, mask[..., at + drop :, :]], dim=-2)
    open_value = 0 if mask.is_floating_point() and mask.ndim > 2 else 1
    columns = mask.new_full((*mask.shape[:-1], count), open_value)
    return torch.cat([mask[..., :at], columns, mask[..., at + drop :]], dim=-1)


def widen_all(
    args: Args, kwargs: Mapping[str, Any], length: int, count: int, at: int, drop: int = 0
) -> tuple[Args, dict[str, Any]]:
    """The arguments of a block, with every mask among them opened as by :func:`widen`."""

    def opened(value: Any) -> Any:
        masks = isinstance(value, Tensor) and value.ndim in (2, 4)
        return widen(value, length, count, at, drop) if masks else value

    rest = {key: opened(value) if "mask" in key else value for key, value in kwargs.items()}
    return (*args[:1], *(opened(value) for value in args[1:])), rest


def kept_tokens(args: Args, kwargs: Mapping[str, Any], length: int) -> Tensor | None:
    """True for real tokens [B, N], read from the mask among a block's arguments; None for all."""
    for value in (*args[1:], *(v for k, v in kwargs.items() if "mask" in k)):
        if isinstance(value, Tensor) and value.ndim in (2, 4) and value.shape[-1] == length:
            row = value if value.ndim == 2 else value[:, 0, -1]
            floats = row.is_floating_point() and value.ndim == 4
            return row > torch.finfo(row.dtype).min / 2 if floats else row.bool()
    return None


def first_of(args: Args, kwargs: Mapping[str, Any]) -> Tensor:
    """The hidden states among the arguments of a block or sub-layer."""
    if args:
        return args[0]
    return next(kwargs[key] for key in HIDDEN if key in kwargs)


def with_first(
    args: Args, kwargs: Mapping[str, Any], tokens: Tensor
) -> tuple[Args, dict[str, Any]]:
    """The same arguments with other hidden states."""
    if args:
        return (tokens, *args[1:]), dict(kwargs)
    key = next(key for key in HIDDEN if key in kwargs)
    return args, {**kwargs, key: tokens}


def on_tokens(output: Any, change: Callable[[Tensor], Tensor]) -> Any:
    """`change` applied to the tokens in what a block, sub-layer or network gave."""
    if isinstance(output, Tensor):
        return change(output)
    if isinstance(output, (tuple, list)):
        return type(output)((change(output[0]), *output[1:]))
    output.last_hidden_state = change(output.last_hidden_state)
    return output


def place_for_prompts(network: nn.Module) -> tuple[int, bool]:
    """Where prompts go in, and whether a distillation token stands there.

    Behind the class token; before everything where there is none. Text networks begin with a
    class token of their own vocabulary.
    """
    names = {name.rpartition(".")[2] for name, _ in network.named_parameters()}
    words = any(
        isinstance(m, nn.Embedding) and m.padding_idx is not None for m in network.modules()
    )
    return int(bool(names & _CLASS) or words), bool(names & _DISTILLATION)


def owner_of(network: nn.Module, block: str, norm: str | None) -> str:
    """Name of the module whose output the blocks and the norm behind them make."""
    parents = block.split(".")[:-2]
    if norm is None or norm.startswith(block.rpartition(".")[0]):
        return ".".join(parents)
    shared = []
    for a, b in zip(parents, norm.split(".")[:-1], strict=False):
        if a != b:
            break
        shared.append(a)
    return ".".join(shared)


def read_out(tokens: Tensor, count: int, at: int, *, mean: bool) -> Tensor:
    """Output tokens as if prompts had never been there.

    Args:
        tokens: [B, N + P, d].
        count: P.
        at: Where the prompts stand.
        mean: Put the mean of class token and prompts in the place of the class token.

    Returns:
        [B, N, d].
    """
    rest = remove(tokens, count, at)
    if not mean or at == 0:
        return rest
    together = tokens[:, : at + count].mean(dim=1, keepdim=True)
    return torch.cat([together, rest[:, 1:]], dim=1)


def reads_interface(core: nn.Module) -> bool:
    """Whether an attention module computes through transformers' table of attention functions."""
    forward: Any = inspect.unwrap(type(core).forward)
    names = getattr(getattr(forward, "__code__", None), "co_names", ())
    return "ALL_ATTENTION_FUNCTIONS" in names and hasattr(core, "config")


@contextmanager
def prefixed(core: nn.Module, keys: Tensor, values: Tensor) -> Iterator[None]:
    """Inside, the attention of `core` also sees `keys` and `values`, both [p, d].

    Where among the keys they stand does not matter: attention is a sum over them.
    """
    from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

    ALL_ATTENTION_FUNCTIONS.register(_INTERFACE, _attend_with_prefix)
    config: Any = core.config
    core.__dict__["config"] = _Elsewhere(config)
    core.__dict__["_galenic_prefix"] = (keys, values, config._attn_implementation)
    try:
        yield
    finally:
        core.__dict__["config"] = config
        del core.__dict__["_galenic_prefix"]


class _Elsewhere:
    """A config that sends one module's attention to our function; all else is the network's."""

    _attn_implementation = _INTERFACE

    def __init__(self, config: Any) -> None:
        self._config = config

    def __getattr__(self, name: str) -> Any:
        return getattr(self._config, name)


def _attend_with_prefix(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    **options: Any,
) -> Any:
    """Attention of `query` [B, h, N, c] over the prefix and `key` [B, h, N, c]."""
    from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

    keys, values, name = module.__dict__["_galenic_prefix"]
    function = ALL_ATTENTION_FUNCTIONS.get(name) or ALL_ATTENTION_FUNCTIONS["sdpa"]
    if attention_mask is None and _looks_back(module, options) and "flash" not in name:
        # Left to the function, the triangle would begin at the prefix.
        attention_mask = _triangle(query, key)
    if attention_mask is not None:
        attention_mask = widen(attention_mask, key.shape[2], keys.shape[0], 0, rows=False)
    if options.get("position_bias") is not None:
        bias = widen(options["position_bias"], key.shape[2], keys.shape[0], 0, rows=False)
        options["position_bias"] = bias
    return function(
        module, query, _join(keys, key), _join(values, value), attention_mask, **options
    )


def _looks_back(module: nn.Module, options: Mapping[str, Any]) -> bool:
    asked = options.get("is_causal")
    return bool(getattr(module, "is_causal", False) if asked is None else asked)


def _triangle(query: Tensor, key: Tensor) -> Tensor:
    """A mask [1, 1, N, K] in which the last of N queries sees all of K keys, others one less."""
    count, seen = query.shape[2], key.shape[2]
    closed = query.new_full((1, 1, count, seen), torch.finfo(query.dtype).min)
    return closed.triu(seen - count + 1)


def _join(prefix: Tensor, own: Tensor) -> Tensor:
    batch, heads, _, channels = own.shape
    split = prefix.to(own.dtype).view(-1, heads, channels).transpose(0, 1)
    return torch.cat([split.expand(batch, -1, -1, -1), own], dim=2)


def check_interface(core: nn.Module, method: str) -> None:
    """Refuse attention that no prefix can be put before.

    Raises:
        BackboneError: Naming what was found.
    """
    if not reads_interface(core):
        raise BackboneError(
            f"'{method}' cannot put keys and values before {type(core).__name__}.",
            expected="attention that computes through transformers' ALL_ATTENTION_FUNCTIONS",
            next_step="Use variant: prompt, which adds tokens instead.",
        )


def uniform_limit(width: int, patch: int = 16) -> float:
    """`sqrt(6 / (3 patch^2 + d))`: prompts start in U(-v, v) (Jia et al., 2022)."""
    return math.sqrt(6.0 / (3 * patch * patch + width))
