"""Methods of the engine against slow references in NumPy, and against what mergekit computes."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from galenic.core.errors import ConfigError
from galenic.merging import merge_states, selection
from galenic.merging.recipe import read

State = dict[str, Tensor]


def pair(*shape: int, models: int = 3, seed: int = 0) -> tuple[State, dict[str, State]]:
    draw = torch.Generator().manual_seed(seed)
    base = {"layers.0.w": torch.randn(*shape, generator=draw)}
    return base, {
        f"m{i}": {"layers.0.w": base["layers.0.w"] + torch.randn(*shape, generator=draw)}
        for i in range(models)
    }


def trimmed(delta: np.ndarray, density: float, gamma: float = 0.0) -> np.ndarray:
    """Keep ranks [int(gamma n), int(gamma n) + int(density n)) of the magnitudes."""
    flat = delta.reshape(-1)
    order = np.argsort(-np.abs(flat), kind="stable")
    first = int(gamma * len(flat))
    kept = np.zeros_like(flat)
    place = order[first : first + int(density * len(flat))]
    kept[place] = flat[place]
    return kept.reshape(delta.shape)


def deltas(base: State, models: dict[str, State]) -> list[np.ndarray]:
    return [
        (m["layers.0.w"].double() - base["layers.0.w"].double()).numpy() for m in models.values()
    ]


def check(made: State, expected: np.ndarray) -> None:
    np.testing.assert_allclose(made["layers.0.w"].numpy(), expected, atol=2e-6)


@pytest.mark.parametrize("small", [True, False])
@pytest.mark.parametrize("shape", [(1,), (7,), (5, 9), (40, 50)])
def test_breadcrumbs(shape: tuple[int, ...], small: bool, monkeypatch) -> None:
    if not small:
        monkeypatch.setattr(selection, "_SMALL", 4)
        monkeypatch.setattr(selection, "_SAMPLE", 64)
    base, models = pair(*shape)
    made = merge_states("breadcrumbs", base, models, {"density": 0.3, "gamma": 0.05, "alpha": 0.7})
    total = sum(trimmed(d, 0.3, 0.05) for d in deltas(base, models))
    check(made, base["layers.0.w"].numpy() + 0.7 * total)


@pytest.mark.parametrize("gamma", [0.0, 0.006, 0.1])
@pytest.mark.parametrize("size", [1, 2, 3, 6, 10, 100, 166, 167, 1000])
def test_breadcrumbs_keeps_exactly_its_ranks_of_small_tensors_too(size: int, gamma: float) -> None:
    base, models = pair(size, models=1)
    made = merge_states("breadcrumbs", base, models, {"density": 0.5, "gamma": gamma, "alpha": 1})
    moved = (made["layers.0.w"] != base["layers.0.w"]).numpy()
    (delta,) = deltas(base, models)
    assert moved.sum() == int(0.5 * size)
    assert (moved == (trimmed(delta, 0.5, gamma) != 0)).all()


def test_breadcrumbs_without_a_band_is_task_arithmetic() -> None:
    base, models = pair(9, 11)
    every = merge_states("breadcrumbs", base, models, {"density": 1, "gamma": 0, "alpha": 0.3})
    plain = merge_states("task_arithmetic", base, models, {"alpha": 0.3})
    assert torch.equal(every["layers.0.w"], plain["layers.0.w"])


def test_breadcrumbs_by_rows_is_the_authors_code() -> None:
    base, models = pair(6, 40, models=1)
    settings = {"density": 0.2, "gamma": 0.1, "alpha": 1, "granularity": "row"}
    made = merge_states("breadcrumbs", base, models, settings)
    (delta,) = deltas(base, models)
    rows = np.stack([trimmed(row, 0.2, 0.1) for row in delta])
    check(made, base["layers.0.w"].numpy() + rows)


@pytest.mark.parametrize("norm", ["l1", "l2"])
def test_rescaling_gives_a_task_vector_its_norm_back(norm: str) -> None:
    base, models = pair(40, 50, models=1)
    made = merge_states("breadcrumbs", base, models, {"alpha": 1, "rescale": norm})
    order = 1 if norm == "l1" else 2
    (delta,) = deltas(base, models)
    moved = (made["layers.0.w"] - base["layers.0.w"]).double().numpy().reshape(-1)
    assert np.linalg.norm(moved, order) == pytest.approx(
        np.linalg.norm(delta.reshape(-1), order), rel=1e-4
    )


@pytest.mark.parametrize("normalize", [True, False])
def test_ties_by_tensor(normalize: bool) -> None:
    base, models = pair(13, 17)
    weights = {"m0": 0.5, "m1": 1.0, "m2": 2.0}
    made = merge_states(
        "ties",
        base,
        models,
        {"granularity": "tensor", "density": 0.4, "normalize": normalize, "alpha": 0.8},
        each={name: {"weight": w} for name, w in weights.items()},
    )
    rows = [
        w * trimmed(d, 0.4) for w, d in zip(weights.values(), deltas(base, models), strict=True)
    ]
    expected = np.zeros_like(rows[0])
    for place in np.ndindex(expected.shape):
        terms = [row[place] for row in rows]
        sign = 1 if sum(terms) >= 0 else -1
        chosen = [i for i, term in enumerate(terms) if term * sign > 0]
        share = sum(list(weights.values())[i] for i in chosen)
        expected[place] = sum(terms[i] for i in chosen) / (share if normalize and chosen else 1)
    check(made, base["layers.0.w"].numpy() + 0.8 * expected)


@pytest.mark.parametrize("weights", [(1.0, 1.0), (1.0, 0.5)])
def test_ties_counts_a_sum_of_zero_as_positive(weights: tuple[float, float]) -> None:
    base = {"w": torch.zeros(3)}
    moves = torch.tensor([[1.0, -2.0, 0.0], [-1.0, 2.0, 0.0]]) / torch.tensor(weights)[:, None]
    models = {f"m{i}": {"w": move} for i, move in enumerate(moves)}
    each = {f"m{i}": {"weight": w} for i, w in enumerate(weights)}
    made = merge_states("ties", base, models, {"density": 1}, each)
    assert made["w"].tolist() == [moves[0, 0], moves[1, 1], 0.0]


@pytest.mark.parametrize("ties", [False, True])
def test_ties_ranks_the_whole_model_as_the_paper(ties: bool, monkeypatch) -> None:
    monkeypatch.setattr("galenic.merging.sources.BLOCK", 16)
    draw = torch.Generator().manual_seed(0)
    shapes = {"b": (9, 4), "a": (31,), "c": (2, 2)}
    base = {n: torch.zeros(s) for n, s in shapes.items()}
    tuned = {n: torch.randn(s, generator=draw) * (1 + i) for i, (n, s) in enumerate(shapes.items())}
    if ties:
        tuned = {n: t.round() for n, t in tuned.items()}
    made = merge_states("ties", base, {"m": tuned}, {"density": 0.3})
    flat = np.concatenate([tuned[n].numpy().reshape(-1) for n in sorted(tuned)])
    expected = trimmed(flat, 0.3)
    got = np.concatenate([made[n].numpy().reshape(-1) for n in sorted(made)])
    np.testing.assert_array_equal(got, expected)


def test_dare_keeps_its_expectation_and_what_it_keeps_is_scaled() -> None:
    base = {"w": torch.zeros(200, 500)}
    tuned = {"w": torch.ones(200, 500)}
    made = merge_states("dare", base, {"m": tuned}, {"density": 0.25, "alpha": 1})["w"]
    assert set(made.unique().tolist()) == {0.0, 4.0}
    share = (made != 0).float().mean().item()
    assert abs(share - 0.25) < 4 * (0.25 * 0.75 / 1e5) ** 0.5


def test_dare_draws_apart_for_every_model_and_tensor_but_alike_for_tied_ones() -> None:
    base = {"a": torch.zeros(50, 50), "b": torch.zeros(50, 50)}
    tuned = {n: torch.ones(50, 50) for n in base}
    made = merge_states("dare", base, {"x": tuned}, {"density": 0.5})
    other = merge_states("dare", base, {"y": tuned}, {"density": 0.5})
    assert not torch.equal(made["a"], made["b"])
    assert not torch.equal(made["a"], other["a"])
    tied = merge_states("dare", base, {"x": tuned}, {"density": 0.5}, tied={"b": "a"})
    assert torch.equal(tied["a"], tied["b"])


def test_a_soup_of_equal_weights_is_the_mean() -> None:
    _, models = pair(5, 6)
    made = merge_states("linear", None, models)
    check(made, np.mean([m["layers.0.w"].numpy() for m in models.values()], axis=0))
    with pytest.raises(ConfigError, match=r"layers.0.w.*sum to zero"):
        merge_states("linear", None, models, each={"m0": {"weight": -2.0}})


METHODS = ["task_arithmetic", "breadcrumbs", "ties", "dare"]
SETTINGS: dict[str, dict[str, Any]] = {
    "task_arithmetic": {},
    "breadcrumbs": {"density": 0.5, "gamma": 0.1, "consensus": "sum", "rescale": "l1"},
    "ties": {"density": 0.5},
    "dare": {"density": 0.2},
}


@settings(deadline=None, max_examples=25)
@given(
    method=st.sampled_from(METHODS),
    alpha=st.floats(0, 1),
    weights=st.lists(st.floats(0, 3), min_size=3, max_size=3),
    seed=st.integers(0, 99),
)
def test_no_variance_of_a_batch_norm_leaves_the_range_of_its_parents(
    method: str, alpha: float, weights: list[float], seed: int
) -> None:
    draw = torch.Generator().manual_seed(seed)
    variances = torch.rand(4, 50, generator=draw) + 0.01
    base, *tuned = ({"n.running_var": v, "n.weight": v} for v in variances)
    models = {f"m{i}": state for i, state in enumerate(tuned)}
    each = {name: {"weight": w} for name, w in zip(models, weights, strict=True)}
    made = merge_states(method, base, models, {**SETTINGS[method], "alpha": alpha}, each)
    found = made["n.running_var"]
    assert (found >= variances.amin(0) - 1e-6).all()
    assert (found <= variances.amax(0) + 1e-6).all()
    if sum(weights) > 1:
        mean = sum(w * t["n.running_var"] for w, t in zip(weights, tuned, strict=True)) / sum(
            weights
        )
        torch.testing.assert_close(found, base["n.running_var"].lerp(mean, alpha))


def test_statistics_of_a_batch_norm_are_not_ranked_by_ties() -> None:
    base = {"w": torch.zeros(10), "n.running_mean": torch.zeros(10)}
    tuned = {"w": torch.arange(1.0, 11), "n.running_mean": torch.full((10,), 1e3)}
    made = merge_states("ties", base, {"m": tuned}, {"density": 0.3})
    assert (made["w"] != 0).sum() == 3
    assert torch.equal(made["n.running_mean"], tuned["n.running_mean"])
    lone = {"running_var": torch.ones(3)}
    assert merge_states("ties", lone, {"m": lone})["running_var"].tolist() == [1, 1, 1]


def test_a_model_that_is_forgotten_is_left_by_its_statistics_too() -> None:
    base, tuned = {"running_mean": torch.zeros(2)}, {"running_mean": torch.ones(2)}
    made = merge_states("task_arithmetic", base, {"m": tuned}, {"alpha": 1}, {"m": {"weight": -2}})
    assert made["running_mean"].tolist() == [-1, -1]


@pytest.mark.parametrize("method", METHODS)
def test_a_tensor_without_entries_is_merged_by_rows_too(method: str) -> None:
    base = {"w": torch.zeros(3, 0), "v": torch.zeros(2, 2)}
    rows = {"granularity": "row"} if method in ("breadcrumbs", "ties") else {}
    made = merge_states(method, base, {"m": {**base, "v": torch.ones(2, 2)}}, rows)
    assert made["w"].shape == (3, 0)


@pytest.mark.parametrize("method", ["linear", "task_arithmetic", "ties"])
def test_a_model_of_weight_zero_is_not_read(method: str) -> None:
    base, models = pair(5, 6)
    without = {k: m for k, m in models.items() if k != "m1"}
    models["m1"] = {"layers.0.w": torch.full((5, 6), torch.nan)}
    made = merge_states(method, base, models, each={"m1": {"weight": 0}})
    assert torch.equal(made["layers.0.w"], merge_states(method, base, without)["layers.0.w"])


def test_wise_is_the_line() -> None:
    base, models = pair(5, 6, models=1)
    made = merge_states("wise", base, models, {"alpha": 0.3})
    check(made, 0.7 * base["layers.0.w"].numpy() + 0.3 * models["m0"]["layers.0.w"].numpy())


# What mergekit 0.1.5 computes, written out ------------------------------------------------


def kit_sparsify(delta: np.ndarray, kind: str, density: float, gamma: float) -> np.ndarray:
    if density >= 1:
        return delta
    n = delta.size
    order = np.argsort(np.abs(delta.reshape(-1)), kind="stable")
    mask = np.zeros(n)
    if kind == "magnitude":
        mask[order[::-1][: max(1, int(density * n))]] = 1
    else:
        kept = int(density * n)
        low = max(0, n - kept - int(gamma * n))
        mask[order[low : low + kept]] = 1
    return delta * mask.reshape(delta.shape)


def kit(method: str, base: State, models: dict[str, State], each: list[dict[str, float]],
        normalize: bool = False, lambda_: float = 1.0) -> np.ndarray:  # fmt: skip
    rows = []
    for delta, own in zip(deltas(base, models), each, strict=True):
        kind = {"ties": "magnitude", "breadcrumbs": "outliers", "breadcrumbs_ties": "outliers"}
        if method in kind:
            delta = kit_sparsify(delta, kind[method], own.get("density", 1), own.get("gamma", 0.01))
        rows.append(own["weight"] * delta)
    stack = np.stack(rows)
    weights = np.array([own["weight"] for own in each]).reshape(-1, 1, 1)
    if method.endswith("ties"):
        agree = np.sign(stack) == np.where(stack.sum(0) >= 0, 1, -1)
        mixed, divisor = (stack * agree).sum(0), (weights * agree).sum(0)
    else:
        mixed, divisor = stack.sum(0), np.broadcast_to(weights.sum(0), stack.shape[1:])
    if normalize:
        mixed = mixed / np.where(np.abs(divisor) < 1e-8, 1, divisor)
    return base["layers.0.w"].double().numpy() + lambda_ * mixed


def run_kit(values: dict[str, Any], base: State, models: dict[str, State]) -> State:
    """Merge in memory what a recipe of mergekit's says."""
    recipe = read({**values, "base_model": "base"})
    return merge_states(
        recipe.method,
        base,
        models,
        recipe.parameters,
        {m.model: m.parameters for m in recipe.models},
        outside=recipe.outside,
    )


@pytest.mark.parametrize(
    ("method", "normalize"),
    [
        ("task_arithmetic", False),
        ("ties", True),
        ("ties", False),
        ("breadcrumbs", False),
        ("breadcrumbs_ties", False),
    ],
)
def test_recipes_of_mergekit_give_what_mergekit_computes(method: str, normalize: bool) -> None:
    base, models = pair(20, 30)
    each = [{"weight": 0.5}, {"weight": 1.0}, {"weight": 0.3}]
    if method != "task_arithmetic":
        each = [e | {"density": 0.4} for e in each]
    if "breadcrumbs" in method:
        each = [e | {"gamma": 0.02} for e in each]
    made = run_kit(
        {
            "merge_method": method,
            "models": [
                {"model": "base"},
                *({"model": n, "parameters": e} for n, e in zip(models, each, strict=True)),
            ],
            "parameters": {"normalize": normalize, "lambda": 0.9, "int8_mask": True},
        },
        base,
        models,
    )
    check(made, kit(method, base, models, each, normalize, 0.9))


@pytest.mark.parametrize("density", [0.3, 0.5, 0.9])
@pytest.mark.parametrize("shape", [(5, 6), (40, 50)])
def test_small_tensors_too_are_what_mergekit_computes(
    shape: tuple[int, ...], density: float
) -> None:
    base, models = pair(*shape, models=2)
    own = {"weight": 1.0, "density": density}
    values = {
        "merge_method": "breadcrumbs",
        "models": [{"model": name, "parameters": own} for name in models],
        "parameters": {"gamma": 0.05},
    }
    check(
        run_kit(values, base, models), kit("breadcrumbs", base, models, [own | {"gamma": 0.05}] * 2)
    )


def test_ties_keeps_nothing_of_a_tensor_where_mergekit_keeps_one_entry() -> None:
    base, models = pair(2, 2, models=1)
    own = {"weight": 1.0, "density": 0.2}
    values = {"merge_method": "ties", "models": [{"model": "m0", "parameters": own}]}
    made, theirs = run_kit(values, base, models), kit("ties", base, models, [own], normalize=True)
    assert torch.equal(made["layers.0.w"], base["layers.0.w"])
    assert (theirs != base["layers.0.w"].double().numpy()).sum() == 1


def test_a_list_of_mergekit_s_holds_its_first_number_outside_the_layers() -> None:
    base = {name: torch.zeros(3) for name in ("embed.w", "layers.0.w", "layers.1.w", "head.w")}
    tuned = {name: torch.ones(3) for name in base}
    own = {"weight": [0.25, 0.75]}
    values = {"merge_method": "task_arithmetic", "models": [{"model": "m", "parameters": own}]}
    made = run_kit(values, base, {"m": tuned})
    assert [t[0].item() for t in made.values()] == [0.25, 0.25, 0.75, 0.25]
    ours = merge_states("task_arithmetic", base, {"m": tuned}, {"alpha": 1}, {"m": own})
    assert ours["head.w"][0] == 0.75


def test_slerp_of_a_mergekit_recipe_keeps_the_parents_norms() -> None:
    base, models = pair(6, 7, models=1)
    made = run_kit(
        {
            "merge_method": "slerp",
            "models": [{"model": "m0"}],
            "parameters": {"t": [{"filter": "nowhere", "value": 0}, {"value": 0.3}]},
        },
        base,
        models,
    )
    a, b = base["layers.0.w"].numpy().ravel(), models["m0"]["layers.0.w"].numpy().ravel()
    omega = np.arccos(a @ b / np.linalg.norm(a) / np.linalg.norm(b))
    expected = (np.sin(0.7 * omega) * a + np.sin(0.3 * omega) * b) / np.sin(omega)
    check(made, expected.reshape(6, 7))


def test_dare_of_a_mergekit_recipe_has_the_norm_before() -> None:
    base, models = pair(40, 50, models=1)
    own = {"weight": 1.0, "density": 0.3}
    made = run_kit(
        {"merge_method": "dare_linear", "models": [{"model": "m0", "parameters": own}]},
        base,
        models,
    )
    (delta,) = deltas(base, models)
    moved = (made["layers.0.w"] - base["layers.0.w"]).abs().sum().item()
    assert moved == pytest.approx(np.abs(delta).sum(), rel=1e-4)
