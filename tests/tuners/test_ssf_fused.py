"""Operator and pair in one step equal the two steps, in value, gradient and what is kept."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from galenic.tuners.ssf.fused import fused


def operators(inputs: int, outputs: int, seed: int) -> list[nn.Module]:
    torch.manual_seed(seed)
    norm = nn.LayerNorm(inputs)
    nn.init.normal_(norm.weight)
    nn.init.normal_(norm.bias)
    made = [nn.Linear(inputs, outputs), nn.Linear(inputs, outputs, bias=False), norm]
    return [module.double().requires_grad_(False) for module in made]


def gradients(
    forward: Callable[[Tensor, Tensor, Tensor], Tensor], tensors: list[Tensor]
) -> list[Tensor]:
    inputs = [t.clone().requires_grad_() for t in tensors]
    out = forward(*inputs)
    weights = torch.arange(out.numel(), dtype=out.dtype).reshape(out.shape).sin()
    (out * weights).sum().backward()
    return [out.detach(), *(t.grad for t in inputs if t.grad is not None)]


@settings(deadline=None, max_examples=25)
@given(
    inputs=st.integers(2, 7), outputs=st.integers(1, 7), rows=st.integers(1, 5),
    seed=st.integers(0, 999), keep=st.booleans(),
)  # fmt: skip
def test_one_step_equals_two(inputs: int, outputs: int, rows: int, seed: int, keep: bool) -> None:
    for module in operators(inputs, outputs, seed):
        channels = inputs if isinstance(module, nn.LayerNorm) else outputs
        x = torch.randn(2, rows, inputs, dtype=torch.float64)
        gamma = 1 + 0.3 * torch.rand(channels, dtype=torch.float64)
        beta = torch.randn(channels, dtype=torch.float64)

        def ours(x: Tensor, g: Tensor, b: Tensor, module: nn.Module = module) -> Tensor:
            found = fused(module, x, g, b, keep_input=keep)
            assert found is not None
            return found

        def plain(x: Tensor, g: Tensor, b: Tensor, module: nn.Module = module) -> Tensor:
            return g * module(x) + b

        for a, b in zip(
            gradients(ours, [x, gamma, beta]), gradients(plain, [x, gamma, beta]), strict=True
        ):
            torch.testing.assert_close(a, b, rtol=1e-7, atol=1e-7)


def pair(channels: int, dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor]:
    return (
        torch.ones(channels, dtype=dtype, requires_grad=True),
        torch.zeros(channels, dtype=dtype, requires_grad=True),
    )


def test_a_norm_keeps_its_output_and_not_its_input() -> None:
    norm = nn.LayerNorm(16).requires_grad_(False)
    x = torch.randn(4, 16, requires_grad=True)
    kept: list[int] = []
    with torch.autograd.graph.saved_tensors_hooks(
        lambda t: kept.append(t.data_ptr()) or t, lambda t: t
    ):
        y = fused(norm, x, *pair(16), keep_input=False)
    assert y is not None
    assert y.data_ptr() in kept
    assert x.data_ptr() not in kept


@pytest.mark.parametrize("keep", [True, False])
def test_a_linear_layer_keeps_one_of_input_and_output(keep: bool) -> None:
    layer = nn.Linear(16, 16).requires_grad_(False)
    x = torch.randn(4, 16, requires_grad=True)
    kept: list[int] = []
    with torch.autograd.graph.saved_tensors_hooks(
        lambda t: kept.append(t.data_ptr()) or t, lambda t: t
    ):
        y = fused(layer, x, *pair(16), keep_input=keep)
    assert y is not None
    assert (x.data_ptr() in kept) == keep
    assert (y.data_ptr() in kept) != keep


def test_where_one_step_would_lose_something_there_are_two() -> None:
    layer = nn.Linear(4, 4).requires_grad_(False)
    x = torch.randn(3, 4)
    assert fused(layer, x, *pair(4), keep_input=False) is not None
    gamma, beta = pair(4)
    with torch.no_grad():
        gamma[1] = 0
    assert fused(layer, x, gamma, beta, keep_input=False) is None
    assert fused(layer, x, gamma, beta, keep_input=True) is not None
    assert fused(nn.LayerNorm(4).requires_grad_(False), x, gamma, beta, keep_input=False) is None
    with torch.autocast("cpu", torch.bfloat16):
        assert fused(layer, x, *pair(4), keep_input=False) is None
    half = nn.Linear(4, 4).bfloat16().requires_grad_(False)
    assert fused(half, x.bfloat16(), *pair(4, torch.bfloat16), keep_input=False) is None
    with torch.no_grad():
        assert fused(layer, x, *pair(4), keep_input=False) is None
    assert fused(nn.Linear(4, 4), x, *pair(4), keep_input=False) is None, "its weight trains"
    seen: list[int] = []
    layer.register_forward_hook(lambda *_: seen.append(1))
    assert fused(layer, x, *pair(4), keep_input=False) is None, "its hooks would be passed by"


def test_a_base_bias_that_trains_gets_its_gradient() -> None:
    for module in operators(4, 3, 0)[::2]:
        assert module.bias is not None
        module.bias.requires_grad_(True)
        channels = len(module.bias)
        assert (
            fused(
                module, torch.randn(2, 4).double(), *pair(channels, torch.float64), keep_input=True
            )
            is None
        )
