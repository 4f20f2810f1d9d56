"""The kernel of adapters with a waist: slow references, gradients, memory, padding."""

from __future__ import annotations

import copy
from collections.abc import Callable

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional as F

from galenic.core.errors import ConfigError
from galenic.tuners._bottleneck import (
    ACTIVATIONS,
    Bottleneck,
    Conformer,
    Normed,
    bottleneck,
    waist_of,
)


def weights(draw: torch.Generator, d: int, b: int) -> list[Tensor]:
    shapes = ((b, d), (b,), (d, b), (d,))
    return [torch.randn(s, generator=draw, dtype=torch.float64, requires_grad=True) for s in shapes]


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_bottleneck_equals_a_double_loop(activation: str) -> None:
    draw = torch.Generator().manual_seed(0)
    x = torch.randn(2, 3, 5, generator=draw, dtype=torch.float64)
    down, down_bias, up, up_bias = weights(draw, 5, 2)
    got = bottleneck(x, down, down_bias, up, up_bias, activation=activation, base=2 * x)
    for sample in range(2):
        for token in range(3):
            inner = down.detach().numpy() @ x[sample, token].numpy() + down_bias.detach().numpy()
            waist = ACTIVATIONS[activation](torch.from_numpy(inner)).numpy()
            expected = up.detach().numpy() @ waist + up_bias.detach().numpy()
            expected = expected + 2 * x[sample, token].numpy()
            np.testing.assert_allclose(got[sample, token].detach().numpy(), expected, rtol=1e-12)


@pytest.mark.parametrize("activation", ["gelu", "quick_gelu"])
def test_bottleneck_gradients_equal_finite_differences(activation: str) -> None:
    draw = torch.Generator().manual_seed(1)
    x = torch.randn(2, 2, 4, generator=draw, dtype=torch.float64, requires_grad=True)
    base = torch.randn(2, 2, 4, generator=draw, dtype=torch.float64, requires_grad=True)

    def call(base: Tensor, x: Tensor, *w: Tensor) -> Tensor:
        return bottleneck(x, *w, activation=activation, base=base)

    assert torch.autograd.gradcheck(call, (base, x, *weights(draw, 4, 3)))


def test_bottleneck_does_not_write_into_its_base() -> None:
    base, x = torch.ones(1, 2, 4), torch.randn(1, 2, 4)
    Bottleneck(4, 2, zero_init_up=False)(x, base)
    assert torch.equal(base, torch.ones(1, 2, 4))


def plain(x: Tensor, down: Tensor, down_bias: Tensor, up: Tensor, up_bias: Tensor) -> Tensor:
    return F.linear(F.gelu(F.linear(x, down, down_bias)), up, up_bias)


def after(norm: nn.LayerNorm, h: Tensor) -> Normed:
    return Normed(h.detach(), norm.weight, norm.bias, norm.eps)


def test_gradients_behind_a_norm_equal_plain_operators() -> None:
    draw = torch.Generator().manual_seed(1)
    norm = nn.LayerNorm(6).double()
    norm.weight.data.normal_(1, 0.5, generator=draw)
    norm.bias.data.normal_(generator=draw)
    w = weights(draw, 6, 3)
    h = torch.randn(2, 4, 6, generator=draw, dtype=torch.float64, requires_grad=True)
    free = [h, *norm.parameters(), *w]

    def gradients(function: Callable[..., Tensor], **options: Normed) -> tuple[Tensor, ...]:
        x = norm(h)
        return torch.autograd.grad((x * 2 + function(x, *w, **options)).sin().sum(), free)

    for got, expected in zip(
        gradients(bottleneck, normed=after(norm, h)), gradients(plain), strict=True
    ):
        torch.testing.assert_close(got, expected)


def kept_by(run: Callable[[], object]) -> dict[int, int]:
    """Place and size of every storage that autograd keeps while `run` goes."""
    kept: dict[int, int] = {}

    def note(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        run()
    return kept


def test_a_bottleneck_keeps_nothing_wide_that_a_norm_does_not() -> None:
    module, norm = Bottleneck(64, 2), nn.LayerNorm(64)
    h = torch.randn(2, 8, 64, requires_grad=True)
    alone = kept_by(lambda: norm(h))
    normed: list[Tensor] = []
    both = kept_by(lambda: normed.append(norm(h)) or module(normed[0], normed=after(norm, h)))
    own = {p.data_ptr() for p in module.parameters()}
    more = [size for place, size in both.items() if place not in {*alone, *own}]
    # 64 bytes: the norm's own mean and deviation of 16 tokens. A waist would be 128.
    assert max(more) <= 64
    x = torch.randn(2, 8, 64)
    wide = [p for p, size in kept_by(lambda: module(x)).items() if size > 300 and p not in own]
    assert wide == [x.data_ptr()]


def test_conformer_equals_the_layers_of_the_paper() -> None:
    torch.manual_seed(0)
    module = Conformer(12, 4, kernel=5, zero_init_up=False).eval()
    module.inner_norm.running_mean.normal_()
    module.inner_norm.running_var.uniform_(0.5, 2)
    x = torch.randn(3, 7, 12)
    first = nn.Conv1d(12, 8, 1)
    first.weight.data, first.bias.data = module.down.weight.data[..., None], module.down.bias.data
    last = nn.Conv1d(4, 12, 1)
    last.weight.data, last.bias.data = module.up.weight.data[..., None], module.up.bias.data
    h = F.glu(first(module.input_norm(x).transpose(1, 2)), dim=1)
    expected = last(F.silu(module.inner_norm(module.depthwise(h)))).transpose(1, 2)
    torch.testing.assert_close(module(x), expected, atol=1e-6, rtol=1e-5)


def test_convolution_mixes_no_further_than_half_its_kernel() -> None:
    torch.manual_seed(0)
    module = Conformer(8, 4, kernel=31, zero_init_up=False).eval()
    x = torch.randn(1, 60, 8)
    other = x.clone()
    other[0, 30] = -other[0, 30]
    moved = (module(x) != module(other)).any(dim=-1)[0].nonzero().flatten().tolist()
    assert moved == list(range(15, 46))


def test_padding_changes_nothing_in_a_conformer() -> None:
    torch.manual_seed(0)
    module = Conformer(8, 4, kernel=7, zero_init_up=False)
    x = torch.randn(3, 9, 8)
    keep = torch.arange(9) < torch.tensor([9, 6, 4])[:, None]
    noisy = x + 5 * torch.randn_like(x) * ~keep.unsqueeze(-1)
    for mode in (True, False):  # statistics of training, then the running ones
        module.train(mode)
        start = copy.deepcopy(module.state_dict())
        first = module(x, keep=keep)[keep]
        moved = module.inner_norm.running_mean.clone()
        module.load_state_dict(start)
        torch.testing.assert_close(module(noisy, keep=keep)[keep], first)
        torch.testing.assert_close(module.inner_norm.running_mean, moved)


@given(st.integers(1, 300), st.integers(1, 400))
@settings(max_examples=50, deadline=None)
def test_a_waist_fits_or_says_so(width: int, reduction: int) -> None:
    b = round(width / reduction)
    if 1 <= b <= width:
        assert waist_of(width, float(reduction), None, default=64, floor=8) == b
    else:
        with pytest.raises(ConfigError, match="reduction") as error:
            waist_of(width, float(reduction), None, default=64, floor=8)
        assert str(width) in error.value.expected
