"""Fold a pair into an operator, and take it out again to the bit.

- linear layer, convolution: `W' = gamma * W` by output channel, `b' = gamma * b + beta`;
- norm with affine terms: `g' = gamma * g`, `h' = gamma * h + beta`; terms that are missing
  are created;
- RMS norm: `g' = gamma * g`; it has no bias, so `beta` stays as an addition at run time.

Products are taken in float32 at least and rounded once.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from galenic.tuners._merging import MergeError, require_foldable
from galenic.tuners._network import is_linear
from galenic.tuners.ssf.placement import channels_of, is_conv, is_rms

_HOOK = "_galenic_shift_hook"


@dataclass
class Original:
    """What an operator held before the first merge."""

    weight: Tensor | None
    bias: Tensor | None

    @classmethod
    def of(cls, module: nn.Module) -> Original:
        """References to the tensors themselves: merging puts new ones in their place.

        Raises:
            MergeError: If the weights are quantised.
        """
        require_foldable(module)
        weight, bias = getattr(module, "weight", None), getattr(module, "bias", None)
        return cls(None if weight is None else weight.data, None if bias is None else bias.data)

    def created(self, module: nn.Module) -> list[str]:
        """Names of tensors that the module has now and had not then."""
        return [
            key
            for key in ("weight", "bias")
            if getattr(self, key) is None and getattr(module, key, None) is not None
        ]


def fold(module: nn.Module, gamma: Tensor, beta: Tensor) -> None:
    """Put `gamma` [c] and `beta` [c] into `module`, whose tensors are replaced, not written.

    Raises:
        MergeError: If the operator's maths is not a product with its weight.
    """
    with torch.no_grad():
        if is_rms(module):
            _fold_rms(module, gamma, beta)
            return
        if getattr(module, "weight", None) is None:
            shape = getattr(module, "normalized_shape", (channels_of(module),))
            _put(module, "weight", torch.ones(shape, dtype=gamma.dtype, device=gamma.device))
        bias = getattr(module, "bias", None)
        if bias is None:
            weight: Any = module.weight
            shape = (
                tuple(weight.shape)
                if not (is_linear(module) or is_conv(module))
                else (channels_of(module),)
            )
            _put(module, "bias", torch.zeros(shape, dtype=weight.dtype, device=weight.device))
        _put(module, "weight", _scaled(module.weight, _like_weight(module, gamma)))
        _put(module, "bias", _scaled(module.bias, gamma, beta))


def _like_weight(module: nn.Module, gamma: Tensor) -> Tensor:
    """`gamma` [c] shaped to multiply the output channels of the module's weight."""
    weight: Any = module.weight
    if isinstance(module, nn.modules.conv._ConvTransposeNd):
        # [in, out / groups, ...]: input channels are grouped, so rows need the group's part.
        per_group = gamma.view(module.groups, -1)
        rows = per_group.repeat_interleave(module.in_channels // module.groups, dim=0)
        return rows.view(*rows.shape, *[1] * (weight.dim() - 2))
    if is_conv(module) or isinstance(module, nn.Linear):
        return gamma.view(-1, *[1] * (weight.dim() - 1))
    return gamma  # transformers' Conv1D [in, out], norms [.., c]


def _scaled(value: Any, gamma: Tensor, beta: Tensor | None = None) -> Tensor:
    wide = torch.promote_types(value.dtype, torch.float32)
    result = value.to(wide) * gamma.to(device=value.device, dtype=wide)
    if beta is not None:
        result = result + beta.to(device=value.device, dtype=wide)
    return result.to(value.dtype)


def _fold_rms(module: nn.Module, gamma: Tensor, beta: Tensor) -> None:
    weight: Any = module.weight
    if weight is None:
        _put(module, "weight", torch.ones(gamma.shape, dtype=gamma.dtype, device=gamma.device))
        weight = module.weight
    probe = torch.linspace(-1.0, 1.0, gamma.numel(), device=weight.device).to(weight.dtype)[None]
    had = getattr(module, "bias", None)
    before = module(probe)
    after_weight = _scaled(weight, gamma)
    kept = weight.data
    _put(module, "weight", after_weight)
    expected = gamma.to(before.dtype) * (before if had is None else before - had.to(before.dtype))
    got = module(probe) if had is None else module(probe) - had.to(before.dtype)
    step = torch.finfo(weight.dtype).eps * 16
    if not torch.allclose(got, expected, rtol=step, atol=step):
        _put(module, "weight", kept)
        raise MergeError(
            f"{type(module).__name__} is not a product with its weight, so a scale cannot be "
            "folded into it.",
            expected="a norm whose output is weight * normalised input",
            next_step="Leave these norms out with exclude_modules, or keep the adapter apart.",
        )
    shift = beta.to(weight.dtype) if had is None else _scaled(had, gamma, beta)
    _put(module, "bias", shift.clone())
    if not hasattr(module, _HOOK):
        setattr(module, _HOOK, module.register_forward_hook(_add_bias))


def _add_bias(module: nn.Module, _: tuple[Any, ...], output: Tensor) -> Tensor:
    bias: Any = module.bias
    return output + bias.to(output.dtype)


def _put(module: nn.Module, key: str, value: Tensor) -> None:
    """Replace the tensor of a parameter, or create the parameter, frozen."""
    held = getattr(module, key, None)
    if isinstance(held, nn.Parameter):
        held.data = value
        return
    if key in module.__dict__:
        del module.__dict__[key]
    module.register_parameter(key, nn.Parameter(value, requires_grad=False))


def restore(module: nn.Module, original: Original) -> None:
    """Put the kept tensors back and remove what was created."""
    hook = module.__dict__.pop(_HOOK, None)
    if hook is not None:
        hook.remove()
    for key in ("weight", "bias"):
        kept = getattr(original, key)
        held = getattr(module, key, None)
        if kept is not None:
            held.data = kept.to(held.device)  # type: ignore[union-attr]
        elif held is not None:
            if is_rms(module) and key == "bias":
                del module._parameters[key]
            else:
                module._parameters[key] = None
