"""Deltas: exact on the way there and back, named errors, files."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from galenic.core.errors import WeightsError
from galenic.models.delta import Delta, Dense, LowRank, Sparse, state_of
from galenic.models.delta.entries import difference, plus

SIZES = st.floats(width=32, min_value=0.0009765625, max_value=1024) | st.just(0.0)
FLOATS = st.tuples(SIZES, st.sampled_from([-1.0, 1.0])).map(lambda pair: pair[0] * pair[1])


def network(seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Conv2d(2, 3, 3), nn.BatchNorm2d(3), nn.Flatten(), nn.Linear(12, 2))


def moved(base: nn.Module, share: float, seed: int) -> nn.Module:
    """A copy with a share of its parameters elsewhere."""
    draw = torch.Generator().manual_seed(seed)
    tuned = copy.deepcopy(base)
    with torch.no_grad():
        for parameter in tuned.parameters():
            mask = torch.rand(parameter.shape, generator=draw) < share
            parameter += mask * torch.randn(parameter.shape, generator=draw)
    return tuned


def same(first: nn.Module | dict[str, Tensor], second: nn.Module | dict[str, Tensor]) -> bool:
    a, b = state_of(first), state_of(second)
    return a.keys() == b.keys() and all(torch.equal(value, b[name]) for name, value in a.items())


@given(st.lists(st.tuples(FLOATS, FLOATS), min_size=1, max_size=20))
@settings(max_examples=200, deadline=None)
def test_the_difference_added_back_gives_every_bit(pairs: list[tuple[float, float]]) -> None:
    base, tuned = torch.tensor(pairs).T
    entry = difference(base, tuned)
    back = base if entry is None else plus(base, entry.dense())
    assert torch.equal(back, tuned)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("share", [0.05, 1.0])
def test_apply_gives_the_tuned_network_and_revert_the_base(
    share: float, dtype: torch.dtype
) -> None:
    base = network().to(dtype)
    tuned = moved(base, share, 1)
    delta = Delta.from_models(base, tuned)
    assert isinstance(delta.entries["0.weight"], Sparse if share < 0.5 else Dense)
    live = copy.deepcopy(base)
    delta.apply(live)
    assert same(live, tuned)
    delta.revert(live)
    assert same(live, base)
    before = {name: value.clone() for name, value in state_of(base).items()}
    assert same(delta.applied(state_of(base)), state_of(tuned))
    assert same(before, base)


def test_deltas_compose_in_any_order_and_as_a_sum() -> None:
    base = network()
    first = Delta.from_models(base, moved(base, 0.3, 1))
    second = Delta.from_models(base, moved(base, 0.3, 2))
    results = []
    for order in ([first, second], [second, first], [first + second]):
        live = copy.deepcopy(base)
        for delta in order:
            delta.apply(live)
        results.append(state_of(live))
    for other in results[1:]:
        for name, value in results[0].items():
            torch.testing.assert_close(other[name], value, atol=1e-6, rtol=0)


def test_what_lies_below_another_delta_can_be_taken_out() -> None:
    base = network()
    first, second = (Delta.from_models(base, moved(base, 0.4, seed)) for seed in (1, 2))
    live, alone = copy.deepcopy(base), copy.deepcopy(base)
    first.apply(live)
    second.apply(live)
    first.revert(live)
    second.apply(alone)
    assert same(live, alone)
    second.revert(live)
    assert same(live, base)


@pytest.mark.parametrize("kinds", [("sparse", "sparse"), ("sparse", "dense"), ("dense", "dense")])
def test_a_sum_is_the_sum_of_what_is_written_out(kinds: tuple[str, str]) -> None:
    base = network()
    deltas = [
        Delta.from_models(base, moved(base, 0.3, seed), form=kind)
        for seed, kind in enumerate(kinds)
    ]
    both = deltas[0] + deltas[1]
    for name, entry in both.entries.items():
        parts = [d.entries[name].dense() for d in deltas if name in d.entries]
        expected = torch.stack([part.double() for part in parts]).sum(0)
        torch.testing.assert_close(entry.dense().double(), expected, atol=1e-6, rtol=0)
    for name, entry in (0.5 * deltas[0]).entries.items():
        expected = 0.5 * deltas[0].entries[name].dense()
        assert torch.equal(entry.dense(), expected)
    # Adding the negative gives the base.
    nothing = deltas[0] + -deltas[0]
    assert nothing.count() == 0


def test_low_rank_is_its_product_and_adds_by_rank() -> None:
    draw = torch.Generator().manual_seed(0)
    make = lambda r: LowRank(  # noqa: E731
        torch.randn(3, r, generator=draw), torch.randn(r, 18, generator=draw), 0.5, (3, 2, 3, 3)
    )
    one, two = Delta({"0.weight": make(1)}), Delta({"0.weight": make(2)})
    both = (one + two).entries["0.weight"]
    assert isinstance(both, LowRank)
    assert both.b.shape == (3, 3)
    expected = one.entries["0.weight"].dense() + two.entries["0.weight"].dense()
    torch.testing.assert_close(both.dense(), expected)
    base = network()
    state = one.applied(state_of(base), check=False)
    entry = one.entries["0.weight"]
    assert isinstance(entry, LowRank)
    product = torch.zeros(3, 18)
    for row in range(3):
        for column in range(18):
            product[row, column] = 0.5 * sum(
                float(entry.b[row, r] * entry.a[r, column]) for r in range(1)
            )
    torch.testing.assert_close(
        state["0.weight"], state_of(base)["0.weight"] + product.view(3, 2, 3, 3)
    )


def test_overlap_and_density_count_entries() -> None:
    shape = (2, 4)
    first = Delta({"w": Sparse(torch.tensor([0, 3, 6]), torch.tensor([1.0, -1.0, 2.0]), shape)})
    second = Delta({"w": Sparse(torch.tensor([3, 6, 7]), torch.tensor([1.0, 5.0, 1.0]), shape)})
    found = first.overlap(second)
    assert (found.first, found.second, found.both, found.agree) == (3, 3, 2, 1)
    assert found.jaccard == 2 / 4
    assert first.density() == 3 / 8
    dense = Delta({"w": Dense(first.entries["w"].dense())})
    assert dense.overlap(second) == found
    assert dense.density() == first.density()


def test_small_changes_are_left_out() -> None:
    base = {"w": torch.zeros(4)}
    tuned = {"w": torch.tensor([0.0, 1e-8, 1e-6, 1.0])}
    for form in ("sparse", "dense"):
        assert Delta.from_models(base, tuned, eps=1e-7, form=form).count() == 2


def test_the_head_is_whole_and_can_be_left_out() -> None:
    base = network()
    tuned = moved(base, 0.5, 1)
    delta = Delta.from_models(base, tuned, absolute=["3"])
    assert set(delta.absolute) == {"3.weight", "3.bias"}
    live = copy.deepcopy(base)
    delta.apply(live, with_abs=False)
    assert same(live[3], base[3])  # type: ignore[index]
    assert not same(live[0], base[0])  # type: ignore[index]
    delta.revert(live)
    # Another head, as of another task, is no other base.
    nn.init.ones_(live[3].weight)  # type: ignore[index]
    before = copy.deepcopy(live)
    delta.apply(live)
    assert same(live, tuned)
    delta.revert(live)
    assert same(live, before)


def test_buffers_that_count_are_whole() -> None:
    base = network()
    tuned = copy.deepcopy(base)
    tuned(torch.randn(4, 2, 4, 4))
    delta = Delta.from_models(base, tuned)
    assert set(delta.absolute) == {"1.num_batches_tracked"}
    assert same(delta.applied(state_of(base), check=False), tuned)


def test_tied_tensors_are_written_once() -> None:
    base = nn.ModuleDict({"a": nn.Linear(3, 3), "b": nn.Linear(3, 3)})
    base["b"].weight = base["a"].weight
    tuned = copy.deepcopy(base)
    tuned["a"].weight.data += 1
    delta = Delta.from_models(base, tuned)
    live = copy.deepcopy(base)
    delta.apply(live)
    assert same(live, tuned)
    assert live["a"].weight is live["b"].weight
    delta.revert(live)
    assert same(live, base)


def test_one_tied_tensor_cannot_change_in_two_ways() -> None:
    base = nn.ModuleDict({"a": nn.Linear(3, 3), "b": nn.Linear(3, 3)})
    base["b"].weight = base["a"].weight
    live = copy.deepcopy(base)
    once, twice = (Dense(torch.full((3, 3), value)) for value in (1.0, 2.0))
    with pytest.raises(WeightsError, match=r"'a\.weight' and 'b\.weight' are one tied tensor"):
        Delta({"a.bias": Dense(torch.ones(3)), "a.weight": once, "b.weight": twice}).apply(
            live, check=False
        )
    assert same(live, base)
    one = LowRank(torch.ones(3, 1), torch.ones(1, 3), 1.0, (3, 3))
    delta = Delta({"a.weight": once, "b.weight": one})
    delta.apply(live, check=False)
    assert torch.equal(live["b"].weight, base["a"].weight + 1)
    delta.revert(live)
    assert same(live, base)


@pytest.mark.parametrize("share", [0.01, 1.0])
@pytest.mark.parametrize("value", [torch.nan, torch.inf])
def test_what_is_not_finite_is_no_difference(value: float, share: float) -> None:
    base = torch.zeros(300)
    base[:2] = torch.tensor([-torch.inf, torch.nan])
    tuned = base.clone()
    tuned[2 : 3 + int(share * 200)] = 0.5
    # A mask that stays as it is may hold anything.
    entry = difference(base, tuned)
    assert entry is not None
    assert entry.dense()[2] == 0.5
    tuned[299] = value
    with pytest.raises(WeightsError, match="'w' has 1 differences that are not finite"):
        Delta.from_models({"w": base}, {"w": tuned})


def test_another_base_is_refused_and_left_alone() -> None:
    base = network()
    delta = Delta.from_models(base, moved(base, 0.5, 1))
    other = network(7)
    before = copy.deepcopy(other)
    with pytest.raises(WeightsError) as error:
        delta.apply(other)
    assert delta.base in str(error.value)
    assert delta.fingerprint(state_of(other)) in str(error.value)
    assert same(other, before)
    with pytest.raises(WeightsError, match="another base"):
        delta + Delta.from_models(other, moved(other, 0.5, 1))


def test_names_and_shapes_that_do_not_fit_are_named() -> None:
    base = state_of(network())
    short = {name: value for name, value in base.items() if name != "3.bias"}
    with pytest.raises(WeightsError, match=r"'3\.bias' is missing in the tuned network"):
        Delta.from_models(base, short)
    with pytest.raises(WeightsError, match=r"'3\.bias' is missing in the base"):
        Delta.from_models(short, base)
    wide = {**base, "3.bias": torch.zeros(5)}
    with pytest.raises(WeightsError, match=r"'3\.bias' has shape \(5,\)"):
        Delta.from_models(base, wide)
    delta = Delta({"3.bias": Dense(torch.ones(2))})
    with pytest.raises(WeightsError, match=r"'3\.bias' is missing in the network"):
        delta.applied(short, check=False)
    with pytest.raises(WeightsError, match=r"'3\.bias' has shape \(5,\) in the network"):
        delta.applied(wide, check=False)


def test_twice_or_never_applied_is_an_error() -> None:
    base = network()
    delta = Delta.from_models(base, moved(base, 0.5, 1))
    with pytest.raises(WeightsError, match="not applied"):
        delta.revert(base)
    delta.apply(base)
    with pytest.raises(WeightsError, match="already"):
        delta.apply(base)


def test_two_heads_are_not_added() -> None:
    base = network()
    heads = [Delta.from_models(base, moved(base, 0.5, s), absolute=["3"]) for s in (1, 2)]
    with pytest.raises(WeightsError, match=r"replace '3\.\w+'"):
        heads[0] + heads[1]
    both = heads[0] + heads[1].without_absolute()
    assert torch.equal(both.absolute["3.bias"], heads[0].absolute["3.bias"])


def test_a_file_gives_back_every_value_and_shape(tmp_path: Path) -> None:
    base = network()
    delta = Delta.from_models(base, moved(base, 0.05, 1), absolute=["3"])
    entries = {
        **delta.entries,
        "low": LowRank(torch.randn(3, 1), torch.randn(1, 4), 0.25, (3, 2, 2)),
    }
    entries["dense"] = Dense(torch.randn(2, 2, dtype=torch.float64))
    delta = Delta(entries, delta.absolute, delta.base)
    delta.save(tmp_path / "skill.safetensors", {"task": "triage"})
    again = Delta.load(tmp_path / "skill.safetensors")
    assert again.base == delta.base
    assert again.note == {"task": "triage"}
    assert same(dict(again.absolute), dict(delta.absolute))
    assert again.entries.keys() == delta.entries.keys()
    for name, entry in delta.entries.items():
        found = again.entries[name]
        assert type(found) is type(entry)
        assert found.shape == entry.shape
        assert torch.equal(found.dense(), entry.dense())
        assert found.dense().dtype == entry.dense().dtype


@pytest.mark.parametrize(
    ("index", "fault"),
    [([3, 1], "ascending"), ([1, 1], "ascending"), ([0, 99], "outside"), ([-1, 2], "outside")],
)
def test_a_file_with_wrong_places_is_refused(tmp_path: Path, index: list[int], fault: str) -> None:
    path = tmp_path / "odd.safetensors"
    Delta({"w": Sparse(torch.tensor(index), torch.ones(2), (2, 4))}).save(path)
    with pytest.raises(WeightsError, match=f"'w'.*{fault}"):
        Delta.load(path)


def test_a_file_that_is_none_is_refused(tmp_path: Path) -> None:
    from safetensors.torch import save_file

    save_file({"w": torch.ones(1)}, tmp_path / "plain.safetensors")
    (tmp_path / "torn.safetensors").write_bytes(b"\x10\x00")
    for name, fault in (("plain", "no delta"), ("torn", "cannot be read")):
        with pytest.raises(WeightsError, match=fault):
            Delta.load(tmp_path / f"{name}.safetensors")
