"""The mixer of a Mamba block on galenic's scan, in the place of transformers' own.

transformers' `MambaForCausalLM` stays what it is: its config, its weights and their names, its
cache, `generate`, what peft does to it. Only the modules that mix along time are exchanged, so
nothing of the network is written twice, and a checkpoint fits in both directions.
"""

from __future__ import annotations

import functools
import importlib
from collections.abc import Callable
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.checkpoint import checkpoint

from galenic.core.errors import BackboneError
from galenic.models.mamba.scan import selective_scan


def accelerate(network: nn.Module) -> nn.Module:
    """Exchange the mixers of a Mamba network of transformers, in place.

    Args:
        network: `MambaForCausalLM`, `MambaModel` or what holds one, with or without adapters.

    Returns:
        `network`. Its parameters are the same tensors under the same names.

    Raises:
        BackboneError: If there is no Mamba mixer in it.
    """
    from transformers.models.mamba.modeling_mamba import MambaMixer

    found = False
    for parent in list(network.modules()):
        for name, child in list(parent.named_children()):
            found |= isinstance(child, MambaMixer | SelectiveMixer)
            if isinstance(child, MambaMixer):
                setattr(parent, name, SelectiveMixer(child))
    if not found:
        raise BackboneError(
            f"{type(network).__name__} has no Mamba mixer.",
            expected="a network of transformers' Mamba family, such as MambaForCausalLM",
            next_step="Use it as it is: only Mamba networks are made faster here.",
        )
    return network


class SelectiveMixer(nn.Module):
    """Gu & Dao, 2023, figure 3: convolve, scan with steps and maps of the input, gate.

    Args:
        mixer: A mixer of transformers; its parts are taken over, not copied.
    """

    def __init__(self, mixer: Any) -> None:
        super().__init__()
        self.A_log, self.D = mixer.A_log, mixer.D
        self.conv1d, self.act = mixer.conv1d, mixer.act
        self.in_proj, self.x_proj = mixer.in_proj, mixer.x_proj
        self.dt_proj, self.out_proj = mixer.dt_proj, mixer.out_proj
        self.layer_idx: int = mixer.layer_idx
        self.sizes = [mixer.time_step_rank, mixer.ssm_state_size, mixer.ssm_state_size]
        self.train(mixer.training)

    def forward(
        self,
        hidden_states: Tensor,
        cache_params: Any = None,
        attention_mask: Tensor | None = None,
    ) -> Tensor:
        """Mix along time.

        Args:
            hidden_states: [B, L, width].
            cache_params: transformers' cache. Convolution and scan go on from what it holds, by
                any number of steps, and leave there where they ended.
            attention_mask: [B, L], 0 at padding.

        Returns:
            [B, L, width].
        """
        x, gate = self.in_proj(_masked(hidden_states, attention_mask)).chunk(2, dim=-1)
        if cache_params is None and torch.is_grad_enabled() and not self._by_kernel(x):
            # As Mamba's own kernel does: what is cheap is computed again in the backward pass.
            again = functools.partial(checkpoint, use_reentrant=False)
            y = again(self._mix, x, attention_mask, None, [])
            return cast(Tensor, again(self._gated, y, gate))
        return self._gated(self._mix(x, attention_mask, cache_params, None), gate)

    def _mix(
        self, x: Tensor, mask: Tensor | None, cache: Any, starts: list[Tensor] | None
    ) -> Tensor:
        """Convolution and scan; with `starts` filled, what follows the scan holds no values."""
        x = _masked(self.act(self._convolve(x, cache)), mask)
        step, B, C = self.x_proj(x).split(self.sizes, dim=-1)
        # Small steps come from large negative biases: not in a 16-bit type by choice.
        with torch.autocast(x.device.type, enabled=False):
            dt = functional.softplus(self.dt_proj(step.to(self.dt_proj.weight.dtype)))
        y = self._scan(x, dt, B, C, cache, starts)
        return torch.addcmul(y, x.to(y.dtype), self.D.to(y.dtype))

    def _gated(self, y: Tensor, gate: Tensor) -> Tensor:
        out: Tensor = self.out_proj((y * functional.silu(gate)).to(gate.dtype))
        return out

    def _convolve(self, x: Tensor, cache: Any) -> Tensor:
        length, weight = x.shape[1], self.conv1d.weight.squeeze(1)
        if cache is not None:
            x = cache.update_conv_state(
                x.transpose(1, 2), self.layer_idx, conv_kernel_size=weight.shape[1]
            ).transpose(1, 2)
        y = causal_convolution(x.to(weight.dtype), weight, self.conv1d.bias)
        return y[:, -length:].to(x.dtype)

    def _by_kernel(self, x: Tensor) -> bool:
        return x.is_cuda and x.dtype != torch.float64 and cuda_kernel() is not None

    def _scan(
        self,
        x: Tensor,
        dt: Tensor,
        B: Tensor,
        C: Tensor,
        cache: Any,
        starts: list[Tensor] | None,
    ) -> Tensor:
        A = -self.A_log.to(torch.promote_types(self.A_log.dtype, torch.float32)).exp()
        state = None if cache is None else cache.get_recurrent_state(self.layer_idx)
        kernel = cuda_kernel() if state is None and self._by_kernel(x) else None
        if kernel is None:
            y, last = selective_scan(x, dt, A, B, C, state, starts=starts)
        else:
            y, last = scan_by_kernel(kernel, x, dt, A, B, C)
        if cache is not None:
            cache.update_recurrent_state(last, self.layer_idx)
        return y


def causal_convolution(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """Each channel with its own filter over the present and the past.

    A few shifted products: a depthwise convolution of torch takes twice the time on a CPU.

    Args:
        x: [B, L, D].
        weight: [D, k]; the last tap is the present.
        bias: [D], or None.

    Returns:
        [B, L, D].
    """
    length, taps = x.shape[1], weight.shape[1]
    past = functional.pad(x, (0, 0, taps - 1, 0))
    y = x.new_zeros(()) if bias is None else bias
    for tap in range(taps):
        y = torch.addcmul(y, past[:, tap : tap + length], weight[:, tap])
    return y


@functools.cache
def cuda_kernel() -> Callable[..., Any] | None:
    """The scan of `mamba-ssm`, where that is installed."""
    try:
        module = importlib.import_module("mamba_ssm.ops.selective_scan_interface")
    except ImportError:
        return None
    kernel: Callable[..., Any] = module.selective_scan_fn
    return kernel


def scan_by_kernel(
    kernel: Callable[..., Any], x: Tensor, dt: Tensor, A: Tensor, B: Tensor, C: Tensor
) -> tuple[Tensor, Tensor]:
    """As :func:`selective_scan` from a state of zero; the last state carries no gradient."""
    u, step, inward, outward = (v.float().transpose(1, 2) for v in (x, dt, B, C))
    y, last = kernel(u, step, A.float(), inward, outward, return_last_state=True)
    return y.transpose(1, 2).to(x.dtype), last


def _masked(states: Tensor, mask: Tensor | None) -> Tensor:
    return states if mask is None else states * mask.unsqueeze(-1).to(states.dtype)
