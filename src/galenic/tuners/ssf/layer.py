"""One operator with its pairs, one pair a named adapter."""

from __future__ import annotations

from typing import Any

import torch
from peft.tuners.tuners_utils import check_adapters_to_merge
from torch import Tensor, nn

from galenic.core.errors import BackboneError
from galenic.tuners._merging import MergeError
from galenic.tuners._network import is_linear
from galenic.tuners._placing import TunerLayer
from galenic.tuners.ssf.config import SSFConfig
from galenic.tuners.ssf.fold import Original, fold, restore
from galenic.tuners.ssf.functional import scale_shift
from galenic.tuners.ssf.fused import fused
from galenic.tuners.ssf.placement import axis_of, channels_of, is_rms


class SSFLayer(TunerLayer):
    """An operator, then `gamma * x + beta` of the active adapters, in their order.

    Args:
        base_layer: Linear layer, convolution or norm.
        adapter_name: First adapter.
        config: Its settings.
        safe: Whether nothing in the network writes into an activation in place.
        keep_input: Whether the operator's input is kept for the backward pass anyway, as
            attention keeps what goes into its output projection.
    """

    adapter_layer_names = ("ssf_scale", "ssf_shift")
    other_param_names = ()

    def __init__(
        self,
        base_layer: nn.Module,
        adapter_name: str,
        config: SSFConfig,
        *,
        safe: bool = False,
        keep_input: bool = False,
    ) -> None:
        super().__init__()
        axis = axis_of(base_layer)
        if axis is None:
            raise BackboneError(
                f"'ssf' cannot enter {type(base_layer).__name__}.",
                expected="a linear layer, a convolution, or a layer, batch, group or RMS norm",
            )
        self.base_layer = base_layer
        self.axis = axis
        self.channels = channels_of(base_layer)
        self.ssf_scale = nn.ParameterDict()
        self.ssf_shift = nn.ParameterDict()
        self.merged_adapters: list[str] = []
        self._disable_adapters = False
        self._active_adapter = [adapter_name]
        self._original: Original | None = None
        # Convolutions and batch norms stand before in-place activations and in-place sums.
        gentle = is_linear(base_layer) or isinstance(base_layer, nn.LayerNorm) or is_rms(base_layer)
        self.rebuild = safe and gentle
        self.keep_input = keep_input
        self.update_layer(adapter_name, config)

    def update_layer(self, adapter_name: str, config: SSFConfig, **_: Any) -> None:
        """Make the pair of `adapter_name`."""
        weight = getattr(self.base_layer, "weight", None)
        device = weight.device if isinstance(weight, Tensor) else None
        dtype = torch.float32
        if isinstance(weight, Tensor) and weight.is_floating_point():
            dtype = weight.dtype
        if config.rebuild == "never":
            self.rebuild = False
        scale = torch.ones(self.channels, device=device, dtype=dtype)
        shift = torch.zeros(self.channels, device=device, dtype=dtype)
        if config.init == "normal":
            scale.normal_(1.0, config.init_std)
            shift.normal_(0.0, config.init_std)
        self.ssf_scale[adapter_name] = nn.Parameter(scale)
        self.ssf_shift[adapter_name] = nn.Parameter(shift)
        self.set_adapter(self.active_adapters, inference_mode=config.inference_mode)

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """The operator's output, scaled and shifted."""
        if self.disable_adapters and self.merged:
            self.unmerge()
        if self.rebuild and not (self.disable_adapters or self.merged):
            result = self._fused(*args, **kwargs)
            if result is not None:
                return result
        result = self.base_layer(*args, **kwargs)
        if self.disable_adapters or self.merged:
            return result
        if not isinstance(result, Tensor) or result.shape[self.axis] != self.channels:
            found = tuple(result.shape) if isinstance(result, Tensor) else type(result).__name__
            raise BackboneError(
                f"{type(self.base_layer).__name__} gave {found}.",
                expected=f"a tensor with {self.channels} channels on axis {self.axis}",
            )
        for name in self.active_adapters:
            if name in self.ssf_scale:
                result = scale_shift(
                    result,
                    self.ssf_scale[name],
                    self.ssf_shift[name],
                    self.axis,
                    rebuild=self.rebuild,
                )
        return result

    def _fused(self, *args: Any, **kwargs: Any) -> Tensor | None:
        """Operator and pair in one step, where there is one pair and one input."""
        names = [name for name in self.active_adapters if name in self.ssf_scale]
        if len(names) != 1 or len(args) != 1 or kwargs or not isinstance(args[0], Tensor):
            return None
        scale, shift = self.ssf_scale[names[0]], self.ssf_shift[names[0]]
        return fused(self.base_layer, args[0], scale, shift, keep_input=self.keep_input)

    def merge(self, safe_merge: bool = False, adapter_names: list[str] | None = None) -> None:
        """Fold adapters into the operator; the original tensors are kept for `unmerge`.

        Args:
            safe_merge: Refuse a result that is not finite, leaving the operator as it was.
            adapter_names: Which; the active ones by default.

        Raises:
            MergeError: If the base is quantised, or the result is not finite (`safe_merge`).
        """
        names = check_adapters_to_merge(self, adapter_names)
        names = [name for name in names or [] if name in self.ssf_scale]
        if not names:
            return
        before = self._original
        original = before or Original.of(self.base_layer)
        try:
            for name in names:
                fold(self.base_layer, self.ssf_scale[name], self.ssf_shift[name])
            if safe_merge:
                self._check_finite(names)
        except MergeError:
            if before is None:
                restore(self.base_layer, original)
            else:
                self._redo(original, self.merged_adapters)
            raise
        self._original = original
        self.merged_adapters.extend(names)

    def _redo(self, original: Original, names: list[str]) -> None:
        restore(self.base_layer, original)
        for name in names:
            fold(self.base_layer, self.ssf_scale[name], self.ssf_shift[name])

    def _check_finite(self, names: list[str]) -> None:
        for key in ("weight", "bias"):
            value = getattr(self.base_layer, key, None)
            if isinstance(value, Tensor) and not bool(torch.isfinite(value).all()):
                raise MergeError(
                    f"Merging {', '.join(names)} gives a {key} that is not finite.",
                    expected="finite scale and shift",
                    next_step="The adapter is damaged or training diverged; nothing was merged.",
                )

    def unmerge(self) -> None:
        """Put the original tensors back, every bit of them."""
        if self._original is not None:
            restore(self.base_layer, self._original)
        self._original = None
        self.merged_adapters.clear()

    def created(self) -> list[str]:
        """Names of the tensors that merging had to create in the operator."""
        return [] if self._original is None else self._original.created(self.base_layer)

    def delete_adapter(self, adapter_name: str) -> None:
        """Remove a pair; a merged one is unmerged first."""
        if adapter_name in self.merged_adapters:
            self.unmerge()
        super().delete_adapter(adapter_name)
