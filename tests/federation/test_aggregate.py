"""Aggregation of adapters: exactness, baselines, compression, and what is refused."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from galenic.core.errors import DataError, GalenicError, WeightsError
from galenic.federation.aggregate import (
    Aggregate,
    aggregate,
    compress,
    continued,
    error,
    joined,
    shares,
    truncated,
    widest,
)
from galenic.federation.update import Update

A, B = "m.lora_A.weight", "m.lora_B.weight"
HEAD = "head.linear.weight"


def update(
    client: int, rank: int, samples: int = 10, scale: float = 2.0, o: int = 6, d: int = 5, **more
) -> Update:
    draw = torch.Generator().manual_seed(client)
    state = {
        A: torch.randn(rank, d, generator=draw),
        B: torch.randn(o, rank, generator=draw),
        HEAD: torch.randn(3, generator=draw),
    }
    return Update(f"{client:03d}", samples, {**state, **more}, rank, scale, "base")


def dense(given: Aggregate | Update) -> np.ndarray:
    return given.scale * given.state[B].double().numpy() @ given.state[A].double().numpy()


def exact(updates: list[Update]) -> np.ndarray:
    """The slow reference: one entry at a time."""
    total = sum(u.samples for u in updates)
    rows, columns = updates[0].state[B].shape[0], updates[0].state[A].shape[1]
    found = np.zeros((rows, columns))
    for u in updates:
        a, b = u.state[A].double().numpy(), u.state[B].double().numpy()
        for i in range(rows):
            for j in range(columns):
                for r in range(u.rank):
                    found[i, j] += u.samples / total * u.scale * b[i, r] * a[r, j]
    return found


@settings(max_examples=60, deadline=None)
@given(
    st.lists(
        st.tuples(st.integers(1, 9), st.integers(1, 500), st.floats(0.1, 8.0)),
        min_size=1, max_size=6,
    ),
    st.integers(1, 8),
    st.integers(1, 8),
    st.randoms(use_true_random=False),
)  # fmt: skip
def test_a_stack_is_the_weighted_sum(clients, o: int, d: int, order) -> None:
    updates = [update(k, r, n, s, o, d) for k, (r, n, s) in enumerate(clients)]
    stack = aggregate(updates)
    assert stack.state[A].shape == (sum(c[0] for c in clients), d)
    assert stack.state[B].shape == (o, sum(c[0] for c in clients))
    wanted = exact(updates)
    assert np.linalg.norm(dense(stack) - wanted) <= 1e-6 * max(np.linalg.norm(wanted), 1e-3)
    mixed = list(updates)
    order.shuffle(mixed)
    again = aggregate(mixed)
    assert all(torch.equal(stack.state[name], again.state[name]) for name in stack.state)
    assert math.isclose(sum(shares(updates)), 1.0)
    heads = sum(p * u.state[HEAD] for p, u in zip(shares(updates), updates, strict=True))
    torch.testing.assert_close(stack.state[HEAD], heads)


def test_a_width_that_equals_a_rank_changes_nothing() -> None:
    updates = [update(k, r, o=4, d=4) for k, r in enumerate((4, 2, 4))]
    np.testing.assert_allclose(dense(aggregate(updates)), exact(updates), rtol=1e-5, atol=1e-6)


def test_averaged_factors_have_cross_terms() -> None:
    updates = [update(k, 4, n) for k, n in enumerate((10, 30))]
    found = aggregate(updates, "average")
    p = shares(updates)
    a = sum(w * u.state[A].double().numpy() for w, u in zip(p, updates, strict=True))
    b = sum(w * u.state[B].double().numpy() for w, u in zip(p, updates, strict=True))
    np.testing.assert_allclose(dense(found), 2.0 * b @ a, atol=1e-6)
    gap = np.linalg.norm(2.0 * b @ a - exact(updates)) / np.linalg.norm(exact(updates))
    assert gap > 0.1
    assert error(updates, found) == pytest.approx(gap, rel=1e-5)
    assert error(updates, aggregate(updates)) < 1e-6


def test_average_is_exact_for_one_client_and_for_one_a() -> None:
    alone = [update(0, 4)]
    np.testing.assert_allclose(dense(aggregate(alone, "average")), dense(alone[0]), rtol=1e-5)
    common = torch.randn(4, 5)
    ffa = [update(k, 4, 5 + k, **{A: common}) for k in range(3)]
    np.testing.assert_allclose(
        dense(aggregate(ffa, "average")), dense(aggregate(ffa)), rtol=1e-4, atol=1e-5
    )


def test_padding_is_the_average_of_padded_factors() -> None:
    updates = [update(0, 4), update(1, 2, samples=30)]
    found = aggregate(updates, "pad")
    a = np.zeros((4, 5))
    b = np.zeros((6, 4))
    for u, p in zip(updates, (0.25, 0.75), strict=True):
        a[: u.rank] += p * u.state[A].numpy()
        b[:, : u.rank] += p * u.state[B].numpy()
    np.testing.assert_allclose(found.state[A], a, atol=1e-6)
    np.testing.assert_allclose(found.state[B], b, atol=1e-6)
    cut = truncated(found.state, 2)
    assert cut[A].shape == (2, 5) and cut[B].shape == (6, 2)
    assert torch.equal(cut[HEAD], found.state[HEAD])


@given(st.integers(1, 6), st.integers(1, 6))
def test_what_nobody_trained_stays_as_it_was_sent(trained: int, held: int) -> None:
    sent, given_ = (Aggregate(update(k, r).state, r, 2.0) for k, r in enumerate((held, trained)))
    found = continued(given_, sent)
    assert found.rank == len(found.state[A]) == max(trained, held)
    assert torch.equal(truncated(found.state, trained)[A], given_.state[A])
    rest = [(1.0, given_.state, slice(0, None)), (1.0, sent.state, slice(trained, None))]
    wanted = sum(w * s[B][:, part] @ s[A][part] for w, s, part in rest)
    torch.testing.assert_close(found.state[B] @ found.state[A], wanted)
    assert torch.equal(found.state[HEAD], given_.state[HEAD])


def test_dense_weights_are_averaged() -> None:
    updates = [Update(str(k), n, {"w": torch.full((2, 2), float(k))}) for k, n in enumerate((1, 3))]
    assert torch.equal(aggregate(updates, "average").state["w"], torch.full((2, 2), 0.75))


@pytest.mark.parametrize("rank", [1, 2, 3, 5, 6, 40])
def test_compression_leaves_out_the_smallest_singular_values(rank: int) -> None:
    stack = aggregate([update(k, r) for k, r in enumerate((7, 8, 3))])
    small = compress(stack, rank)
    values = np.linalg.svd(dense(stack), compute_uv=False)
    lost = np.linalg.norm(dense(small) - dense(stack))
    assert lost == pytest.approx(np.sqrt((values[rank:] ** 2).sum()), rel=1e-4, abs=1e-4)
    assert small.rank == min(rank, stack.rank)


def test_stacks_of_two_rounds_add_up() -> None:
    first, second = (aggregate([update(k, 2), update(k + 1, 3)]) for k in (0, 5))
    both = joined(first, second)
    np.testing.assert_allclose(dense(both), dense(first) + dense(second), atol=1e-5)
    assert torch.equal(both.state[HEAD], second.state[HEAD])
    nothing = Aggregate({HEAD: torch.zeros(3)}, 0, 1.0)
    np.testing.assert_array_equal(dense(joined(nothing, second)), dense(second))
    assert widest(both.state) == 5


def test_convolutions_and_biases() -> None:
    def conv(client: int, rank: int) -> Update:
        draw = torch.Generator().manual_seed(client)
        state = {
            A: torch.randn(rank, 3, 2, 2, generator=draw),
            B: torch.randn(4, rank, 1, 1, generator=draw),
            "m.lora_B.bias": torch.randn(4, generator=draw),
        }
        return Update(str(client), 1, state, rank, 3.0, "base")

    updates = [conv(0, 2), conv(1, 5)]
    stack = aggregate(updates)
    image = torch.randn(1, 3, 6, 6)

    def through(given: Update | Aggregate) -> Tensor:
        inner = torch.nn.functional.conv2d(image, given.state[A])
        bias = given.state["m.lora_B.bias"]
        return given.scale * torch.nn.functional.conv2d(inner, given.state[B], bias)

    wanted = sum(0.5 * through(u) for u in updates)
    torch.testing.assert_close(through(stack), wanted, atol=1e-5, rtol=1e-5)
    assert compress(stack, 2).state[A].shape == (2, 3, 2, 2)


def test_the_stack_is_what_peft_adds_up() -> None:
    from peft import LoraConfig, get_peft_model, get_peft_model_state_dict

    ranks = {"one": 4, "two": 2, "three": 3}
    model = None
    for name, rank in ranks.items():
        config = LoraConfig(r=rank, lora_alpha=rank * 3, target_modules=["0"])
        if model is None:
            model = get_peft_model(torch.nn.Sequential(torch.nn.Linear(5, 6)), config, name)
        else:
            model.add_adapter(name, config)
    assert model is not None
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter)
    updates = []
    for client, (name, rank) in enumerate(ranks.items()):
        state = get_peft_model_state_dict(model, adapter_name=name)
        updates.append(Update(str(client), 1 + client, state, rank, 3.0, "base"))
    model.add_weighted_adapter(list(ranks), shares(updates), "all", combination_type="cat")
    theirs = get_peft_model_state_dict(model, adapter_name="all")
    ours = aggregate(updates)
    a, b = (f"base_model.model.0.lora_{part}.weight" for part in "AB")
    torch.testing.assert_close(ours.state[b] @ ours.state[a], theirs[b] @ theirs[a])


@pytest.mark.parametrize(
    ("second", "kind", "words"),
    [
        (update(1, 2, samples=0), DataError, "001.*0 samples"),
        (update(1, 2, samples=-3), DataError, "-3"),
        (update(1, 2, **{B: torch.full((6, 2), math.nan)}), WeightsError, "001.*lora_B"),
        (update(1, 2, **{HEAD: torch.full((3,), math.inf)}), WeightsError, "001.*head"),
        (update(1, 0), WeightsError, "rank 0"),
        (update(1, 2, **{A: torch.randn(3, 5)}), WeightsError, "rank 3"),
        (update(1, 2, o=7), WeightsError, "lora_B.*shape"),
        (update(1, 2, **{"n.lora_A.weight": torch.ones(2, 5)}), WeightsError, "n.lora_A"),
        (update(1, 2, scale=math.nan), WeightsError, "scaling"),
        (update(1, 2, **{"m.lora_magnitude_vector": torch.ones(6)}), WeightsError, "magnitude"),
        (update(0, 2), DataError, "twice"),
    ],
)  # fmt: skip
def test_what_would_spoil_an_aggregate_is_named(second: Update, kind, words: str) -> None:
    with pytest.raises(kind, match=words):
        aggregate([update(0, 3), second])


def test_other_faults_are_named() -> None:
    other = update(1, 3)
    stranger = Update(other.client, 5, other.state, 3, 2.0, "another base")
    with pytest.raises(WeightsError, match="another base"):
        aggregate([update(0, 3), stranger])
    with pytest.raises(DataError, match="no client"):
        aggregate([])
    with pytest.raises(WeightsError, match="rank 3"):
        aggregate([update(0, 2), update(1, 3)], "average")
    for method in ("average", "pad"):
        with pytest.raises(WeightsError, match="scaling"):
            aggregate([update(0, 2), update(1, 2, scale=1.0)], method)  # type: ignore[arg-type]
    with pytest.raises(GalenicError, match="rank 0"):
        compress(aggregate([update(0, 2)]), 0)
