"""The selective scan against the plain recurrence, step by step."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from galenic.models.mamba.scan import Plan, plan_for, selective_scan, sweep

PLANS = [Plan(1, 1), Plan(4, 1), Plan(8, 4), Plan(64, 1), Plan(64, 8)]
TOLERANCE = {torch.float32: 1e-5, torch.float64: 1e-10}


def operands(
    length: int, *, batch: int = 2, width: int = 3, states: int = 4, seed: int = 0,
    dtype: torch.dtype = torch.float64,
) -> list[Tensor]:  # fmt: skip
    draw = torch.Generator().manual_seed(seed)
    shapes = {
        "x": (batch, length, width), "dt": (batch, length, width), "A": (width, states),
        "B": (batch, length, states), "C": (batch, length, states), "state": (batch, width, states),
    }  # fmt: skip
    made = {k: torch.randn(s, generator=draw, dtype=torch.float64) for k, s in shapes.items()}
    made["dt"], made["A"] = made["dt"].exp() * 0.3, -made["A"].exp()
    return [v.to(dtype).requires_grad_() for v in made.values()]


def recurrence(
    x: Tensor, dt: Tensor, A: Tensor, B: Tensor, C: Tensor, state: Tensor
) -> tuple[Tensor, Tensor]:
    """The two equations, for every batch row and channel apart."""
    outputs = []
    for t in range(x.shape[1]):
        rows = []
        for b in range(x.shape[0]):
            channels = [
                torch.exp(dt[b, t, d] * A[d]) * state[b, d] + dt[b, t, d] * B[b, t] * x[b, t, d]
                for d in range(x.shape[2])
            ]
            rows.append(torch.stack(channels))
        state = torch.stack(rows)
        outputs.append(torch.einsum("bdn,bn->bd", state, C[:, t]))
    return torch.stack(outputs, 1), state


def results(scan: Any, inputs: list[Tensor]) -> list[Tensor]:
    """Output, last state, and the gradients of a function of both."""
    y, last = scan(*inputs)
    draw = torch.Generator().manual_seed(7)
    weights = [torch.randn(v.shape, generator=draw, dtype=torch.float64).to(v) for v in (y, last)]
    loss = (y * weights[0]).sum() + (last * weights[1]).sum()
    return [y.detach(), last.detach(), *torch.autograd.grad(loss, inputs)]


def assert_close(found: list[Tensor], expected: list[Tensor]) -> None:
    for a, b in zip(found, expected, strict=True):
        a, b = a.detach(), b.detach()
        assert a.shape == b.shape
        assert a.dtype == b.dtype
        scale = max(float(b.abs().max()), 1.0)
        assert float((a - b).abs().max()) / scale < TOLERANCE[b.dtype]


@settings(max_examples=40, deadline=None)
@given(
    length=st.integers(1, 37), batch=st.integers(1, 3), width=st.integers(1, 4),
    states=st.integers(1, 5), lanes=st.integers(1, 5), span=st.integers(1, 5),
    dtype=st.sampled_from([torch.float32, torch.float64]), seed=st.integers(0, 99),
)  # fmt: skip
def test_any_cut_equals_the_recurrence(
    length: int, batch: int, width: int, states: int, lanes: int, span: int,
    dtype: torch.dtype, seed: int,
) -> None:  # fmt: skip
    inputs = operands(length, batch=batch, width=width, states=states, seed=seed, dtype=dtype)
    plan = Plan(lanes * span, span)
    found = results(lambda *v: selective_scan(*v, plan=plan), inputs)
    assert_close(found, results(recurrence, inputs))


@pytest.mark.parametrize("plan", PLANS)
@pytest.mark.parametrize("length", [1, 11])
def test_gradients_against_finite_differences(plan: Plan, length: int) -> None:
    inputs = operands(length, width=2, states=3)
    assert torch.autograd.gradcheck(lambda *v: selective_scan(*v, plan=plan), inputs)


def test_without_a_state_it_starts_from_zero() -> None:
    *inputs, state = operands(9)
    found = selective_scan(*inputs)
    assert_close(list(found), list(recurrence(*inputs, torch.zeros_like(state))))


@pytest.mark.parametrize("plan", PLANS)
def test_a_decay_of_zero_forgets_exactly(plan: Plan) -> None:
    x, dt, A, B, C, state = operands(20, dtype=torch.float32)
    with torch.no_grad():
        A.fill_(-1e6)
        dt.clamp_(min=0.1)
    y, last, *grads = results(lambda *v: selective_scan(*v, plan=plan), [x, dt, A, B, C, state])
    alone = dt * x * (B * C).sum(-1, keepdim=True)
    torch.testing.assert_close(y, alone, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(last, (dt * x)[:, -1, :, None] * B[:, -1, None])
    assert all(torch.isfinite(g).all() for g in grads)
    assert not grads[-1].any(), "nothing is left of the first state"


@pytest.mark.parametrize("plan", PLANS)
def test_strong_and_weak_decays_side_by_side(plan: Plan) -> None:
    inputs = operands(50, width=4, states=2, dtype=torch.float32)
    with torch.no_grad():
        rates = torch.tensor([-1e-7, -1e-2, -10.0, -1e3])
        inputs[2].copy_(rates[:, None].expand(4, 2))
    exact = [v.detach().double().requires_grad_() for v in inputs]
    found = results(lambda *v: selective_scan(*v, plan=plan), inputs)
    assert_close(found, [v.float() for v in results(recurrence, exact)])


@pytest.mark.parametrize("plan", PLANS)
def test_what_comes_later_changes_nothing_before(plan: Plan) -> None:
    inputs = operands(21, dtype=torch.float32)
    before, _ = selective_scan(*inputs, plan=plan)
    changed = [v.detach().clone() for v in inputs]
    for value in (changed[0], changed[1], changed[3], changed[4]):
        value[:, 13:] += 1
    after, _ = selective_scan(*changed, plan=plan)
    assert torch.equal(before[:, :13], after[:, :13])
    assert not torch.equal(before[:, 13], after[:, 13])


@settings(max_examples=20, deadline=None)
@given(cut=st.integers(1, 29), plan=st.sampled_from(PLANS))
def test_going_on_from_a_state_equals_one_scan(cut: int, plan: Plan) -> None:
    x, dt, A, B, C, state = operands(30)

    def two_parts(*v: Tensor) -> tuple[Tensor, Tensor]:
        x, dt, A, B, C, state = v
        first, middle = selective_scan(
            x[:, :cut], dt[:, :cut], A, B[:, :cut], C[:, :cut], state, plan=plan
        )
        second, last = selective_scan(
            x[:, cut:], dt[:, cut:], A, B[:, cut:], C[:, cut:], middle, plan=plan
        )
        return torch.cat([first, second], 1), last

    inputs = [x, dt, A, B, C, state]
    whole = results(lambda *v: selective_scan(*v, plan=plan), inputs)
    assert_close(results(two_parts, inputs), whole)


@pytest.mark.parametrize("length", [1, 40])
def test_autocast_does_not_reach_the_scan(length: int) -> None:
    inputs = operands(length, dtype=torch.float32)
    outside = results(selective_scan, inputs)
    with torch.autocast("cpu", torch.bfloat16):
        inside = results(selective_scan, inputs)
    assert all(torch.equal(a, b) for a, b in zip(outside, inside, strict=True))


def test_16_bit_input_is_scanned_in_float32() -> None:
    inputs = operands(40, dtype=torch.bfloat16)
    y, last = selective_scan(*inputs)
    assert (y.dtype, last.dtype) == (torch.bfloat16, torch.float32)
    exact, state = selective_scan(*(v.float() for v in inputs))
    assert torch.equal(y, exact.bfloat16())
    assert torch.equal(last, state)


def test_only_the_starts_of_the_chunks_are_kept() -> None:
    inputs = operands(256, batch=1, width=8, states=16, dtype=torch.float32)
    kept: dict[int, int] = {}

    def keep(value: Tensor) -> Tensor:
        storage = value.untyped_storage()
        kept[storage.data_ptr()] = storage.nbytes()
        return value

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda value: value):
        selective_scan(*inputs, plan=Plan(32, 1))
    every_state = 256 * 8 * 16 * 4
    of_inputs = sum(v.nbytes for v in inputs)
    assert sum(kept.values()) <= of_inputs + every_state / 32


@settings(max_examples=60, deadline=None)
@given(
    steps=st.integers(1, 30), span=st.integers(1, 12), reverse=st.booleans(),
    seed=st.integers(0, 99),
)  # fmt: skip
def test_a_sweep_is_a_loop(steps: int, span: int, reverse: bool, seed: int) -> None:
    draw = torch.Generator().manual_seed(seed)
    decay, entering = torch.rand(2, steps, 3, generator=draw, dtype=torch.float64)
    start = torch.rand(3, generator=draw, dtype=torch.float64)
    expected, state, given_decay = torch.empty_like(entering), start, decay.clone()
    for t in reversed(range(steps)) if reverse else range(steps):
        state = decay[t] * state + entering[t]
        expected[t] = state
    sweep(decay, entering, start, span, reverse=reverse)
    torch.testing.assert_close(entering, expected, rtol=1e-12, atol=1e-12)
    assert torch.equal(decay, given_decay)


@settings(max_examples=60, deadline=None)
@given(values=st.integers(1, 2**24), device=st.sampled_from(["cpu", "cuda"]))
def test_a_plan_has_whole_lanes_and_chunks_that_bound_memory(values: int, device: str) -> None:
    chunk, span = plan_for(torch.device(device), values)
    assert chunk % span == 0
    assert chunk >= 12
    assert chunk * values <= 2**24 or chunk <= 16


def test_lanes_save_calls_where_a_call_is_dear() -> None:
    chunk, span = plan_for(torch.device("cuda"), 2 * 256 * 16)
    assert 2 * span + chunk // span < chunk / 4
