"""The three kinds of layers: beside a sub-layer, around a block, and inside attention."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from galenic.core.errors import BackboneError
from galenic.tuners._bottleneck import Bottleneck, Conformer, Normed
from galenic.tuners._network import given
from galenic.tuners._prompts import (
    Args,
    first_of,
    insert,
    on_tokens,
    prefixed,
    remove,
    replace,
    uniform_limit,
    widen_all,
    with_first,
)
from galenic.tuners._wrapping import WrappingLayer
from galenic.tuners.petl_ast.config import PETLASTConfig


class TokenMask:
    """A pre-hook on the network that notes which tokens are real.

    It is kept until the next call, since activations may be computed again in the backward
    pass.
    """

    def __init__(self) -> None:
        self.keep: Tensor | None = None

    def __call__(self, network: nn.Module, args: Args, kwargs: Mapping[str, Any]) -> None:
        mask = given(network, "attention_mask", args, kwargs)
        self.keep = mask.bool() if isinstance(mask, Tensor) and mask.ndim == 2 else None

    def of(self, tokens: Tensor) -> Tensor | None:
        """True for the real ones among `tokens` [B, N, d]; None if all are, or it is not said."""
        keep = self.keep
        if keep is None or keep.shape != tokens.shape[:2] or bool(keep.all()):
            return None
        return keep


class AdapterLayer(WrappingLayer):
    """A sub-layer f and its adapter M.

    `parallel`: `f(x) + M(x) [+ x]`; `sequential`: `M(f(x)) [+ f(x)]`.

    Args:
        base_layer: The sub-layer, or its last projection.
        adapter_name: First adapter.
        mask: Says which tokens are padding.
    """

    adapter_layer_names = ("petl_adapter",)

    def __init__(self, base_layer: nn.Module, adapter_name: str, mask: TokenMask) -> None:
        super().__init__(base_layer, adapter_name)
        self.petl_adapter = nn.ModuleDict()
        self.mask = mask
        self._sums: dict[str, tuple[str, bool]] = {}
        self._seen: list[Tensor] = []
        self._index = 0
        self._tap: RemovableHandle | None = None
        self._norm: list[nn.Module] = []
        self._passed: list[tuple[Tensor, Tensor]] = []
        self._follows: RemovableHandle | None = None

    def listen(self, tapped: nn.Module, index: int) -> None:
        """Take the sub-layer's input from argument `index` of another module's call."""
        if self._tap is None:
            self._index = index
            self._tap = tapped.register_forward_pre_hook(self._note)

    def follow(self, norm: nn.Module) -> None:
        """Note what goes into the norm before the sub-layer: memory that is there anyway."""
        if self._follows is None:
            self._norm = [norm]
            self._follows = norm.register_forward_hook(self._pass)

    def _pass(self, _: nn.Module, args: Args, output: Tensor) -> None:
        self._passed[:] = [(args[0], output)]

    def _normed(self, passed: tuple[Tensor, Tensor] | None, x: Tensor | None) -> Normed | None:
        """The norm's side of `x`, if x is what the norm gave, untouched."""
        if passed is None or passed[1] is not x:
            return None
        norm: Any = self._norm[0]  # of a norm that trains, the copy that is active
        return Normed(passed[0].detach(), norm.weight, norm.bias, norm.eps)

    def update_layer(self, name: str, config: PETLASTConfig, spot: Mapping[str, Any]) -> None:
        """Make the adapter `name` at this spot."""
        width, size = spot["width"], spot["size"]
        module: nn.Module
        if config.variant == "conformer":
            module = Conformer(
                width, size, kernel=config.kernel_size, norm=config.norm,
                dropout=config.dropout, zero_init_up=config.zero_init_up,
            )  # fmt: skip
        else:
            module = Bottleneck(
                width, size, activation=config.activation, zero_init_up=config.zero_init_up
            )
        self.petl_adapter[name] = self.adopt(module)
        self._sums[name] = (config.placement, config.adds_residual)
        self.set_adapter(self.active_adapters, inference_mode=config.inference_mode)

    def _note(self, _: nn.Module, args: Args) -> None:
        self._seen[:] = [args[self._index]]

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """What the sub-layer gives, with the active adapters' sum."""
        output = self.base_layer(*args, **kwargs)
        seen = self._seen.pop() if self._seen else None
        passed = self._passed.pop() if self._passed else None
        if self.disable_adapters:
            return output
        x = first_of(args, kwargs) if self._tap is None else seen
        normed = self._normed(passed, x)
        return on_tokens(output, lambda f: self._adapted(f, x, normed))

    def _adapted(self, f: Tensor, x: Tensor | None, normed: Normed | None) -> Tensor:
        for name in self.active_adapters:
            if name not in self.petl_adapter:
                continue
            placement, residual = self._sums[name]
            module = self.petl_adapter[name]
            if placement == "sequential":
                f = module(f, f if residual else None, self.mask.of(f))
                continue
            if x is None:
                raise BackboneError(
                    f"The input of {type(self.base_layer).__name__} never passed.",
                    expected="a feed-forward that is called with it by position",
                    next_step="Use placement: sequential.",
                )
            f = module(x, f, self.mask.of(x), normed)
            f = f + x if residual else f
        return f

    def delete_adapter(self, adapter_name: str) -> None:
        """Remove an adapter."""
        self._sums.pop(adapter_name, None)
        super().delete_adapter(adapter_name)

    def release(self) -> None:
        """Take the taps away."""
        for handle in (self._tap, self._follows):
            if handle is not None:
                handle.remove()


class PromptLayer(WrappingLayer):
    """A block, before or in which prompts enter.

    Roles: `before` (prompts come later), `insert`, `replace` (deep prompts), `pass`.
    """

    adapter_layer_names = ("petl_prompts",)

    def __init__(self, base_layer: nn.Module, adapter_name: str) -> None:
        super().__init__(base_layer, adapter_name)
        self.petl_prompts = nn.ParameterDict()
        self._spots: dict[str, Mapping[str, Any]] = {}

    def update_layer(self, name: str, config: PETLASTConfig, spot: Mapping[str, Any]) -> None:
        """Make the prompts of adapter `name`, if any enter here."""
        self._spots[name] = spot
        if spot["role"] in ("insert", "replace"):
            limit = uniform_limit(spot["width"])
            start = torch.empty(spot["count"], spot["width"]).uniform_(-limit, limit)
            self.petl_prompts[name] = nn.Parameter(self.adopt(start))
        self.set_adapter(self.active_adapters, inference_mode=config.inference_mode)

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """The block's output, prompts included (unless they are stripped here)."""
        name = next((n for n in self.active_adapters if n in self._spots), None)
        if self.disable_adapters or name is None or self._spots[name]["role"] == "before":
            return self.base_layer(*args, **kwargs)
        spot = self._spots[name]
        count, at, drop = spot["count"], spot["at"], spot["drop"]
        tokens = first_of(args, kwargs)
        length = tokens.shape[1] + (0 if spot["role"] == "insert" else drop - count)
        if spot["role"] == "insert":
            tokens = insert(tokens, self.petl_prompts[name], at, drop)
        elif spot["role"] == "replace":
            tokens = replace(tokens, self.petl_prompts[name], at)
        args, kwargs = widen_all(*with_first(args, kwargs, tokens), length, count, at, drop)
        output = self.base_layer(*args, **kwargs)
        return on_tokens(output, lambda t: remove(t, count, at)) if spot["strip"] else output

    def delete_adapter(self, adapter_name: str) -> None:
        """Remove an adapter's prompts."""
        self._spots.pop(adapter_name, None)
        super().delete_adapter(adapter_name)


class PrefixLayer(WrappingLayer):
    """Attention with learned keys and values before its own."""

    adapter_layer_names = ("petl_keys", "petl_values")

    def __init__(self, base_layer: nn.Module, adapter_name: str) -> None:
        super().__init__(base_layer, adapter_name)
        self.petl_keys = nn.ParameterDict()
        self.petl_values = nn.ParameterDict()

    def update_layer(self, name: str, config: PETLASTConfig, spot: Mapping[str, Any]) -> None:
        """Make keys and values [p, d] of adapter `name`."""
        limit = uniform_limit(spot["patch_width"])
        for place in (self.petl_keys, self.petl_values):
            start = torch.empty(spot["count"], spot["width"]).uniform_(-limit, limit)
            place[name] = nn.Parameter(self.adopt(start))
        self.set_adapter(self.active_adapters, inference_mode=config.inference_mode)

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """What attention gives over the prefix and the tokens."""
        name = next((n for n in self.active_adapters if n in self.petl_keys), None)
        if self.disable_adapters or name is None:
            return self.base_layer(*args, **kwargs)
        with prefixed(self.get_base_layer(), self.petl_keys[name], self.petl_values[name]):
            return self.base_layer(*args, **kwargs)
