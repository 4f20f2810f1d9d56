"""The arithmetic against slow, obvious references."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from galenic.merging import ops, selection
from galenic.merging.selection import Taker, cuts


def slow_band(values: np.ndarray, density: float, gamma: float) -> np.ndarray:
    """Sort with the index as the second key, and take the ranks."""
    order = sorted(range(len(values)), key=lambda i: (-abs(values[i]), i))
    first = int(gamma * len(values))
    mask = np.zeros(len(values), dtype=bool)
    mask[order[first : first + int(density * len(values))]] = True
    return mask


SHARES = st.floats(0, 1)


@given(
    st.lists(st.integers(-3, 3) | st.floats(-2, 2, width=32), min_size=1, max_size=40),
    SHARES,
    SHARES,
)
@settings(max_examples=200, deadline=None)
def test_the_band_is_that_of_a_sort(values: list[float], density: float, gamma: float) -> None:
    gamma = min(gamma, 1 - density)
    delta = torch.tensor(values, dtype=torch.float32)
    expected = slow_band(delta.numpy(), density, gamma)
    assert ops.band(delta, density, gamma).tolist() == expected.tolist()


@pytest.mark.parametrize("ties", [0, 3, 40, 100_000])
@pytest.mark.parametrize("share", [0.001, 0.15, 0.5, 0.9, 0.99999])
def test_a_large_tensor_is_cut_at_the_rank_of_a_sort(share: float, ties: int, monkeypatch) -> None:
    monkeypatch.setattr(selection, "_SMALL", 100)
    monkeypatch.setattr(selection, "_SAMPLE", 512)
    draw = np.random.default_rng(int(share * 100) + ties)
    values = np.abs(draw.normal(size=20_000)).astype(np.float32)
    if ties:
        values = np.floor(values * ties) / np.float32(ties)
    rank = int(share * len(values))
    pieces = np.array_split(values, 7)
    (cut,) = cuts(lambda: pieces, len(values), [rank])
    taker = Taker(cut)
    mask = np.concatenate([taker.take(piece) for piece in pieces])
    expected = np.zeros(len(values), dtype=bool)
    expected[np.argsort(-values, kind="stable")[:rank]] = True
    assert (mask == expected).all()


@pytest.mark.parametrize("kind", ["sorted", "constant", "mostly zero", "one outlier"])
def test_tensors_that_mislead_a_sample_are_cut_exactly(kind: str, monkeypatch) -> None:
    monkeypatch.setattr(selection, "_SMALL", 10)
    monkeypatch.setattr(selection, "_SAMPLE", 16)
    n = 5000
    values = {
        "sorted": np.arange(n, dtype=np.float32),
        "constant": np.ones(n, dtype=np.float32),
        "mostly zero": np.where(np.arange(n) % 997 == 0, 1.0, 0.0).astype(np.float32),
        "one outlier": np.r_[np.full(n - 1, 0.5), 9.0].astype(np.float32),
    }[kind]
    for rank in (0, 1, 2, 5, 7, 2500, n - 1, n, n + 3):
        outer, inner = cuts(lambda: [values[:2000], values[2000:]], n, [rank, rank // 2])
        for cut, wanted in ((outer, rank), (inner, rank // 2)):
            expected = np.zeros(n, dtype=bool)
            expected[np.argsort(-values, kind="stable")[:wanted]] = True
            assert (Taker(cut).take(values) == expected).all(), (kind, wanted)


@pytest.mark.parametrize("told", [0.0, 0.3, 50.0])
def test_a_sample_that_lies_costs_a_pass_and_nothing_else(told: float, monkeypatch) -> None:
    monkeypatch.setattr(selection, "_SMALL", 10)
    values = np.abs(np.random.default_rng(1).normal(size=3000)).astype(np.float32)
    for rank in (1, 50, 1500, 2999):
        (cut,) = cuts(lambda: [values], 3000, [rank], lambda _: np.full(90, told, np.float32))
        assert Taker(cut).take(values).sum() == rank
        assert cut.value == np.sort(values)[-rank]


def test_gamma_zero_keeps_the_top_of_any_size() -> None:
    # A slice that ends at -int(gamma * n) is empty where that is zero.
    for n in range(1, 200):
        delta = torch.randn(n, generator=torch.Generator().manual_seed(n))
        for gamma in (0.0, 0.004):
            assert int(ops.band(delta, 0.5, gamma).sum()) == int(0.5 * n)


def test_the_band_depends_on_magnitude_alone() -> None:
    delta = torch.randn(9, 31, generator=torch.Generator().manual_seed(0))
    mask = ops.band(delta, 0.2, 0.1)
    assert torch.equal(ops.band(-delta, 0.2, 0.1), mask)
    assert torch.equal(ops.band(delta * 8, 0.2, 0.1), mask)
    kept = delta[mask].abs()
    ranks = delta.abs().flatten().sort(descending=True).values
    assert torch.equal(kept.sort(descending=True).values, ranks[27 : 27 + 55])


def test_rows_are_those_of_the_authors_code() -> None:
    delta = torch.randn(6, 40, generator=torch.Generator().manual_seed(0))
    density, gamma = 0.2, 0.1
    # TaskVectorMiddleKeep: zero the top k of each row, then keep the top k of what remains.
    rest = delta.clone()
    rest.scatter_(1, delta.abs().topk(int(40 * gamma), dim=1).indices, 0)
    kept = torch.zeros_like(delta)
    index = rest.abs().topk(int(40 * density), dim=1).indices
    kept.scatter_(1, index, rest.gather(1, index))
    assert torch.equal(delta * ops.band(delta, density, gamma, "row"), kept)


def test_a_scalar_is_kept_and_nothing_has_no_mask() -> None:
    assert ops.band(torch.tensor(3.0), 0.1, 0.5).item()
    assert ops.band(torch.empty(0, 3), 0.1, 0.5).shape == (0, 3)


def test_a_random_mask_keeps_its_share_and_is_the_same_again() -> None:
    first, second = (ops.random_mask((100, 300), 0.3, np.random.default_rng(5)) for _ in range(2))
    assert torch.equal(first, second)
    assert abs(first.float().mean().item() - 0.3) < 4 * math.sqrt(0.21 / 30_000)


@pytest.mark.parametrize(("norm", "order"), [("l1", 1), ("l2", 2)])
def test_rescaling_gives_back_the_norm(norm, order) -> None:
    delta = torch.randn(50, generator=torch.Generator().manual_seed(0))
    scaled = ops.rescale(delta, ops.magnitude(delta, 0.3), norm)
    assert scaled.norm(order).item() == pytest.approx(delta.norm(order).item(), rel=1e-6)
    nothing = torch.zeros(50, dtype=torch.bool)
    assert not ops.rescale(delta, nothing, norm).any()


def slow_ties(deltas: np.ndarray, weights: list[float], normalize: bool) -> np.ndarray:
    result = np.zeros(deltas.shape[1])
    for j in range(deltas.shape[1]):
        terms = [w * d for w, d in zip(weights, deltas[:, j], strict=True)]
        sign = 1 if sum(terms) >= 0 else -1
        chosen = [i for i, term in enumerate(terms) if term * sign > 0]
        value = sum(terms[i] for i in chosen)
        share = sum(weights[i] for i in chosen)
        result[j] = value / share if normalize and share != 0 else value
    return result


@given(st.integers(1, 4), st.integers(1, 12), st.booleans(), st.integers(0, 10**6))
@settings(max_examples=100, deadline=None)
def test_ties_is_the_double_loop(tasks: int, n: int, normalize: bool, seed: int) -> None:
    draw = np.random.default_rng(seed)
    deltas = draw.normal(size=(tasks, n)) * (draw.random((tasks, n)) < 0.6)
    weights = draw.uniform(0.1, 2, tasks).tolist()
    got = ops.combine(torch.from_numpy(deltas), weights, consensus=True, normalize=normalize)
    np.testing.assert_allclose(got.numpy(), slow_ties(deltas, weights, normalize), atol=1e-12)


def test_a_plain_sum_is_a_sum() -> None:
    deltas = torch.randn(3, 4, 5, dtype=torch.float64)
    weights = [0.5, -1.0, 2.0]
    expected = 0.5 * deltas[0] - deltas[1] + 2 * deltas[2]
    torch.testing.assert_close(ops.combine(deltas, weights), expected)
    torch.testing.assert_close(ops.combine(deltas, weights, normalize=True), expected / 1.5)


PARENTS = {
    "generic": (torch.tensor([1.0, 2.0, -3.0]), torch.tensor([0.5, -1.0, 1.0])),
    "parallel": (torch.tensor([1.0, 2.0]), torch.tensor([2.0, 4.0])),
    "opposite": (torch.tensor([1.0, 2.0]), torch.tensor([-1.0, -2.0])),
    "first zero": (torch.zeros(2), torch.tensor([1.0, 2.0])),
    "both zero": (torch.zeros(2), torch.zeros(2)),
    "bfloat16": (torch.randn(9).bfloat16(), torch.randn(9).bfloat16()),
}


@pytest.mark.parametrize("convention", ["keep", "geometric"])
@pytest.mark.parametrize("kind", PARENTS)
def test_the_ends_of_an_arc_are_the_parents_and_it_can_be_turned_round(kind, convention) -> None:
    a, b = PARENTS[kind]
    assert torch.equal(ops.slerp(a, b, 0, convention), a)
    assert torch.equal(ops.slerp(a, b, 1, convention), b)
    for t in (0.2, 0.5, 0.9):
        there, back = ops.slerp(a, b, t, convention), ops.slerp(b, a, 1 - t, convention)
        torch.testing.assert_close(there, back)
        assert there.dtype == a.dtype
        assert there.isfinite().all()


@given(st.floats(0.01, 0.99), st.integers(0, 10**6), st.floats(0.1, 10))
@settings(max_examples=50, deadline=None)
def test_the_arc_has_the_paper_s_norm_and_angle(t: float, seed: int, factor: float) -> None:
    draw = torch.Generator().manual_seed(seed)
    a, b = (torch.randn(20, generator=draw, dtype=torch.float64) for _ in range(2))
    b = b * factor
    omega = math.acos((a @ b / (a.norm() * b.norm())).item())
    found = ops.slerp(a, b, t, "geometric")
    length = a.norm().item() ** (1 - t) * b.norm().item() ** t
    assert found.norm().item() == pytest.approx(length, rel=1e-9)
    angle = math.acos(min((found @ a / (found.norm() * a.norm())).item(), 1))
    assert angle == pytest.approx(t * omega, abs=1e-6)


def test_with_equal_norms_both_conventions_agree_and_keep_it() -> None:
    draw = torch.Generator().manual_seed(0)
    a, b = (torch.nn.functional.normalize(torch.randn(30, generator=draw), dim=0) for _ in "ab")
    keep, geometric = (ops.slerp(a, b, 0.3, c) for c in ("keep", "geometric"))
    torch.testing.assert_close(keep, geometric)
    assert keep.norm().item() == pytest.approx(1, abs=1e-6)


def test_interpolation_is_linear_and_neutral_on_itself() -> None:
    a, b = torch.randn(8, dtype=torch.float64), torch.randn(8, dtype=torch.float64)
    middle = ops.interpolate(a, b, 0.5)
    torch.testing.assert_close(ops.interpolate(a, middle, 0.5), ops.interpolate(a, b, 0.25))
    torch.testing.assert_close(ops.interpolate(a, a, 0.3), a)
    assert torch.equal(ops.interpolate(a, b, 0), a)
    assert torch.equal(ops.interpolate(a, b, 1), b)


def test_a_soup_is_the_mean_in_float32() -> None:
    parts = [
        torch.randn(100, generator=torch.Generator().manual_seed(i)).bfloat16()
        for i in "123"
        for i in [int(i)]
    ]
    mean = torch.stack([p.double() for p in parts]).mean(0).bfloat16()
    soup = ops.linear(parts, [1, 1, 1])
    assert soup.dtype == torch.bfloat16
    # Rounding each step to bfloat16 would move more than a few entries by a place.
    assert (soup != mean).float().mean() < 0.02
    with pytest.raises(ValueError, match="sum to zero"):
        ops.linear(parts, [1, -1, 0])


def test_a_small_change_survives_the_difference() -> None:
    base = torch.tensor([1.0]).half()
    tuned = torch.tensor([1.0]).half() + torch.tensor([2**-10]).half()
    delta: Tensor = ops.task_vector(tuned, base)
    assert delta.dtype == torch.float32
    assert delta.item() == 2**-10
