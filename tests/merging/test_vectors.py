"""Task vectors that are kept: any coefficient is the merge itself, and no parent is read again."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from galenic.core.errors import ConfigError, WeightsError
from galenic.merging import merge, merge_states
from galenic.merging.grid import parse, points
from galenic.merging.vectors import TaskVectors, along, tensors_of

METHODS: dict[str, dict[str, Any]] = {
    "task_arithmetic": {},
    "breadcrumbs": {"density": 0.3, "gamma": 0.05},
    "ties": {"density": 0.4},
    "dare": {"density": 0.5},
}


def states(count: int = 3) -> tuple[dict[str, Tensor], dict[str, dict[str, Tensor]]]:
    draw = torch.Generator().manual_seed(0)
    base = {
        "layers.0.w": torch.randn(30, 20, generator=draw),
        "layers.1.b": torch.randn(20, generator=draw).bfloat16(),
        "scale": torch.full((8,), -0.0),
    }
    models = {
        name: {
            k: (t + 0.1 * torch.randn(t.shape, generator=draw)).to(t.dtype) for k, t in base.items()
        }
        for name in "abc"[:count]
    }
    return base, models


def kept(folder: Path, count: int = 3) -> tuple[TaskVectors, dict[str, Tensor], Any]:
    base, models = states(count)
    vectors = TaskVectors(folder / "vectors", base)
    for name, state in models.items():
        vectors.add(name, state)
    return vectors, base, models


def at(
    vectors: TaskVectors, base: dict[str, Tensor], method: str, names: Any, **parameters: Any
) -> Any:
    target = {name: torch.full_like(t, torch.nan) for name, t in base.items()}
    settings, alpha = along(method, parameters)
    vectors.apply(target, vectors.combine(list(names), method, settings, seed=3), alpha)
    return target


@pytest.mark.parametrize("method", METHODS)
def test_no_step_is_the_base_bit_for_bit(tmp_path: Path, method: str) -> None:
    vectors, base, models = kept(tmp_path)
    found = at(vectors, base, method, models, alpha=0.0, **METHODS[method])
    for name, tensor in base.items():
        assert torch.equal(found[name], tensor)
        assert torch.equal(found[name].signbit(), tensor.signbit())


@pytest.mark.parametrize(
    ("method", "parameters"),
    [("task_arithmetic", {"alpha": 1.0}), ("wise", {"alpha": 1.0}), ("linear", {}),
     ("breadcrumbs", {"alpha": 1.0, "density": 1.0, "gamma": 0.0})],
)  # fmt: skip
def test_a_whole_step_of_one_is_the_tuned_model(
    tmp_path: Path, method: str, parameters: Any
) -> None:
    vectors, base, models = kept(tmp_path, 1)
    for name, tensor in at(vectors, base, method, "a", **parameters).items():
        torch.testing.assert_close(tensor, models["a"][name])


@pytest.mark.parametrize("alpha", [0.0, 0.3, 1.0, 1.7])
@pytest.mark.parametrize("method", METHODS)
def test_every_coefficient_is_the_merge_of_files(tmp_path: Path, method: str, alpha: float) -> None:
    vectors, base, models = kept(tmp_path)
    for name, state in {"base": base, **models}.items():
        save_file(state, tmp_path / f"{name}.safetensors")
    parameters = {**METHODS[method], "alpha": alpha}
    recipe = {
        "method": method,
        "base_model": str(tmp_path / "base.safetensors"),
        "models": [{"model": str(tmp_path / f"{n}.safetensors"), "name": n} for n in models],
        "parameters": parameters,
        "seed": 3,
    }
    merge(recipe, tmp_path / "out")
    expected = load_file(tmp_path / "out" / "base.safetensors")
    for name, tensor in at(vectors, base, method, models, **parameters).items():
        torch.testing.assert_close(
            tensor, expected[name], atol=1e-6, rtol=1e-2 if tensor.dtype == torch.bfloat16 else 1e-6
        )


def test_a_mean_is_the_mean(tmp_path: Path) -> None:
    vectors, base, models = kept(tmp_path)
    found = at(vectors, base, "linear", "ac")
    expected = merge_states("linear", None, {n: models[n] for n in "ac"})
    for name in base:
        torch.testing.assert_close(found[name], expected[name])


def test_parents_are_not_read_again(tmp_path: Path) -> None:
    vectors, base, models = kept(tmp_path)
    before = at(vectors, base, "ties", models, density=0.4, alpha=0.7)
    for tensor in [t for state in (base, *models.values()) for t in state.values()]:
        tensor.fill_(torch.nan)
    after = at(vectors, base, "ties", models, density=0.4, alpha=0.7)
    for name in base:
        assert torch.equal(before[name], after[name])
        assert after[name].isfinite().all()


def test_a_schedule_over_the_layers_is_a_part_of_the_vector(tmp_path: Path) -> None:
    vectors, base, models = kept(tmp_path)
    found = at(vectors, base, "task_arithmetic", models, alpha=[0.0, 1.0])
    expected = merge_states("task_arithmetic", base, models, {"alpha": [0.0, 1.0]})
    for name in base:
        torch.testing.assert_close(found[name], expected[name], atol=1e-6, rtol=1e-2)


@pytest.mark.parametrize(
    ("method", "parameters"), [("slerp", {}), ("linear", {"normalize": False})]
)
def test_what_is_no_sum_of_vectors_is_refused(method: str, parameters: Any) -> None:
    with pytest.raises(ConfigError, match="no base plus a sum"):
        along(method, parameters)


def test_other_tensors_are_named(tmp_path: Path) -> None:
    vectors, base, _ = kept(tmp_path, 0)
    with pytest.raises(WeightsError, match="'scale' is missing in odd"):
        vectors.add("odd", {n: t for n, t in base.items() if n != "scale"})
    with pytest.raises(WeightsError, match=r"'layers.0.w' is \(20, 30\) in odd"):
        vectors.add("odd", {**base, "layers.0.w": base["layers.0.w"].T})


def test_a_network_gives_tied_tensors_once_and_no_integers() -> None:
    network = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3), nn.BatchNorm1d(3))
    network[1].weight = network[0].weight
    found = tensors_of(network)
    assert set(found) == {
        "0.weight", "0.bias", "1.bias", "2.weight", "2.bias", "2.running_mean", "2.running_var"
    }  # fmt: skip
    found["0.weight"].fill_(7)
    assert (network[1].weight == 7).all()


@pytest.mark.parametrize(
    ("word", "values"),
    [
        ("alpha=0:1:0.25", [0, 0.25, 0.5, 0.75, 1]),
        ("alpha=0.1:0.3:0.1", [0.1, 0.2, 0.3]),
        ("alpha=0:1:0.3", [0, 0.3, 0.6, 0.9]),
        ("alpha=0:1:0.4", [0, 0.4, 0.8]),
        ("alpha=0:1:0.15", [0, 0.15, 0.3, 0.45, 0.6, 0.75, 0.9]),
        ("alpha=0.5", [0.5]),
        ("alpha=1,0.5", [1, 0.5]),
    ],
)
def test_a_span_has_both_ends_where_a_step_meets_them(word: str, values: list[float]) -> None:
    assert parse([word]) == {"alpha": values}


@pytest.mark.parametrize("word", ["alpha", "alpha=", "alpha=1:0:0.1", "alpha=0:1:0", "alpha=0:1", "=1", "alpha=x", "alpha=0:inf:0.1", "alpha=nan", "alpha=0.1,inf"])  # fmt: skip
def test_a_word_that_spans_nothing_is_refused(word: str) -> None:
    with pytest.raises(ConfigError, match="spans no values"):
        parse([word])


def test_alpha_runs_fastest() -> None:
    found = points({"alpha": [0, 1], "density": [0.1, 0.2]})
    assert [(p["density"], p["alpha"]) for p in found] == [(0.1, 0), (0.1, 1), (0.2, 0), (0.2, 1)]
    assert points({}) == [{}]


@given(
    start=st.integers(0, 100),
    steps=st.integers(0, 40),
    step=st.integers(1, 50),
    rest=st.integers(0, 49),
)
def test_no_value_of_a_span_is_beyond_its_stop(
    start: int, steps: int, step: int, rest: int
) -> None:
    stop = start + steps * step + rest % step
    (found,) = parse([f"alpha={start / 100}:{stop / 100}:{step / 100}"]).values()
    assert found == pytest.approx([(start + i * step) / 100 for i in range(steps + 1)])


def test_a_key_is_swept_once() -> None:
    with pytest.raises(ConfigError, match="'alpha' is swept twice"):
        parse(["alpha=0.1,0.2", "density=1", "alpha=0.9"])


def test_a_variance_of_several_is_their_mean_at_every_coefficient(tmp_path: Path) -> None:
    base = {"w": torch.zeros(20), "n.running_var": torch.ones(4)}
    vectors = TaskVectors(tmp_path / "vectors", base)
    for name, var in (("a", 0.2), ("b", 0.3), ("c", 0.4)):
        vectors.add(name, {"w": torch.ones(20), "n.running_var": torch.full((4,), var)})
    for method, parameters in METHODS.items():
        found = at(vectors, base, method, "abc", alpha=0.5, **parameters)
        torch.testing.assert_close(found["n.running_var"], torch.full((4,), 0.65))
