"""Every merge method through the same checks, found through the registry."""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from galenic.core.errors import ConfigError, GalenicError, WeightsError
from galenic.core.fingerprint import fingerprint_tensors
from galenic.merging import merge, merge_states, methods
from galenic.merging.methods import Capabilities

METHODS = methods.names()
State = dict[str, Tensor]


def state(seed: int, dtype: torch.dtype = torch.float32) -> State:
    draw = torch.Generator().manual_seed(seed)
    return {
        "embed.weight": torch.randn(11, 6, generator=draw).to(dtype),
        "layers.0.w": torch.randn(6, 8, generator=draw).to(dtype),
        "layers.1.w": torch.randn(2, 3, 4, generator=draw).to(dtype),
        "layers.1.b": torch.randn(3, generator=draw).to(dtype),
        "one": torch.randn(1, generator=draw).to(dtype),
        "scale": torch.randn((), generator=draw).to(dtype),
        "empty": torch.zeros(0, 3, dtype=dtype),
        "steps": torch.tensor([seed, 7]),
        "mask": torch.tensor([True, seed % 2 == 0]),
    }


def tuned(base: State, seed: int, size: float = 0.1) -> State:
    draw = torch.Generator().manual_seed(seed)
    return {
        n: (t.float() + size * torch.randn(t.shape, generator=draw)).to(t.dtype)
        if t.is_floating_point()
        else t + (seed if t.dtype == torch.int64 else 0)
        for n, t in base.items()
    }


def family(method: str, dtype: torch.dtype = torch.float32) -> tuple[State, dict[str, State]]:
    """A base and as many models as the method takes, up to three."""
    base = state(0, dtype)
    most = methods.capabilities(method).models[1] or 3
    return base, {f"m{i}": tuned(base, i + 1) for i in range(min(most, 3))}


def spread(each: tuple[Any, ...], models: dict[str, State]) -> dict[str, dict[str, Any]]:
    """What `End.each` says of each model; its last holds for all that follow."""
    return {name: dict(each[min(i, len(each) - 1)]) for i, name in enumerate(models)}


def write(path: Path, tensors: State, shards: int = 1) -> Path:
    path.mkdir(parents=True)
    (path / "config.json").write_text('{"architectures": ["Net"], "dtype": "float32"}')
    if shards == 1:
        save_file(tensors, path / "model.safetensors", metadata={"format": "pt"})
        return path
    names, where = list(tensors), {}
    for i in range(shards):
        file = f"model-{i + 1:05}-of-{shards:05}.safetensors"
        part = names[i::shards]
        save_file({n: tensors[n] for n in part}, path / file, metadata={"format": "pt"})
        where |= dict.fromkeys(part, file)
    (path / "model.safetensors.index.json").write_text(
        json.dumps({"metadata": {}, "weight_map": where})
    )
    return path


def recipe(method: str, folder: Path, models: dict[str, State], **keys: Any) -> dict[str, Any]:
    return {
        "method": method,
        "base_model": str(folder / "base"),
        "models": [{"model": str(folder / name)} for name in models],
        **keys,
    }


def read(folder: Path) -> State:
    found: State = {}
    for file in folder.glob("model*.safetensors"):
        found |= load_file(file)
    return found


def equal(first: State, second: State) -> bool:
    return first.keys() == second.keys() and all(
        first[n].dtype == second[n].dtype and torch.equal(first[n], second[n]) for n in first
    )


def test_every_method_is_declared_and_reading_that_imports_no_torch() -> None:
    code = (
        "import sys\nfrom galenic.merging import methods\n"
        "for name in methods.names():\n"
        "    c = methods.capabilities(name)\n    assert c.paper and c.ends, name\n"
        "    assert methods.method(name).Config().method == name\n"
        "print('torch' in sys.modules, len(methods.names()))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["False", str(len(METHODS))]
    assert {"linear", "slerp", "task_arithmetic", "ties", "dare", "breadcrumbs", "wise"} <= set(
        METHODS
    )


ENDS = [(m, end) for m in METHODS for end in methods.capabilities(m).ends]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize(("method", "end"), ENDS)
def test_the_ends_of_the_path_are_the_parents(method: str, end: Any, dtype: torch.dtype) -> None:
    base, models = family(method, dtype)
    parameters = dict(end.parameters)
    made = merge_states(method, base, models, parameters, spread(end.each, models))
    parent = base if end.returns == "base" else list(models.values())[end.returns]
    for name, value in made.items():
        if not value.is_floating_point():
            assert torch.equal(value, base[name]), name
        elif end.exact:
            assert torch.equal(value, parent[name]), name
        else:
            torch.testing.assert_close(value, parent[name])


@pytest.mark.parametrize("method", METHODS)
def test_the_order_of_the_models_changes_nothing_where_declared(method: str) -> None:
    declared: Capabilities = methods.capabilities(method)
    if not declared.symmetric:
        # An order that matters: base and model do not play the same part.
        assert declared.models[1] == 1
        return
    base, models = family(method, torch.bfloat16)
    each = {name: {"weight": 0.3 + i} for i, name in enumerate(models)}
    first = merge_states(method, base, models, each=each)
    turned = dict(reversed(models.items()))
    assert equal(first, merge_states(method, base, turned, each=each))


@pytest.mark.parametrize("method", METHODS)
def test_sharded_equals_unsharded_equals_in_memory(method: str, tmp_path: Path) -> None:
    base, models = family(method, torch.bfloat16)
    for kind, shards in (("whole", 1), ("parts", 3)):
        write(tmp_path / kind / "base", base, shards)
        for name, tensors in models.items():
            write(tmp_path / kind / name, tensors, 1 if kind == "whole" else 2)
    merge(recipe(method, tmp_path / "whole", models), tmp_path / "out1")
    small = recipe(method, tmp_path / "parts", models, shard_gb=2e-7)
    merge(small, tmp_path / "out2")
    assert len(list((tmp_path / "out2").glob("*.safetensors"))) > 1
    first, second = read(tmp_path / "out1"), read(tmp_path / "out2")
    assert equal(first, second)
    assert equal(first, merge_states(method, base, models))


@pytest.mark.parametrize("method", METHODS)
def test_pieces_do_not_show(method: str, monkeypatch) -> None:
    base, models = family(method)
    whole = merge_states(method, base, models)
    for module in ("sources", "selection"):
        name = {"sources": "BLOCK", "selection": "_SMALL"}[module]
        monkeypatch.setattr(f"galenic.merging.{module}.{name}", 5)
    parts = merge_states(method, base, models)
    for name, value in whole.items():
        torch.testing.assert_close(parts[name], value, atol=1e-6, rtol=1e-6)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("method", METHODS)
def test_half_in_half_out_float32_between(method: str, dtype: torch.dtype) -> None:
    base, models = family(method, dtype)
    made = merge_states(method, base, models)
    wide = merge_states(
        method,
        {n: t.float() if t.is_floating_point() else t for n, t in base.items()},
        {
            k: {n: t.float() if t.is_floating_point() else t for n, t in m.items()}
            for k, m in models.items()
        },
    )
    for name, value in made.items():
        assert value.dtype == base[name].dtype
        if value.is_floating_point():
            # One rounding, of the result; a step in half precision would differ somewhere.
            assert torch.equal(value, wide[name].to(dtype)), name


@pytest.mark.parametrize("method", METHODS)
def test_nothing_of_the_caller_s_changes_and_nothing_is_shared(method: str, tmp_path: Path) -> None:
    base, models = family(method)
    before = [fingerprint_tensors(s) for s in (base, *models.values())]
    made = merge_states(method, base, models)
    for value in made.values():
        if value.is_floating_point():
            value.fill_(9)
        else:
            value.zero_()
    assert [fingerprint_tensors(s) for s in (base, *models.values())] == before
    for name, tensors in {"base": base, **models}.items():
        write(tmp_path / name, tensors)

    def digests() -> list[str]:
        files = sorted(p for p in tmp_path.glob("*/*") if "out" not in p.parts[-2])
        return [hashlib.sha256(p.read_bytes()).hexdigest() for p in files]

    files = digests()
    merge(recipe(method, tmp_path, models), tmp_path / "out")
    assert digests() == files


@pytest.mark.parametrize("method", METHODS)
def test_a_seeded_method_repeats_and_another_seed_differs(method: str) -> None:
    base, models = family(method)
    first, again, other = (merge_states(method, base, models, seed=s) for s in (3, 3, 4))
    assert equal(first, again)
    assert equal(first, other) != methods.capabilities(method).seeded


@pytest.mark.parametrize("method", METHODS)
def test_integers_and_scalars_survive(method: str) -> None:
    base, models = family(method)
    made = merge_states(method, base, models)
    for name in ("steps", "mask", "empty"):
        assert torch.equal(made[name], base[name])
    assert made["scale"].shape == ()
    assert made["scale"] != base["scale"]


@pytest.mark.parametrize("method", METHODS)
def test_what_does_not_fit_is_named(method: str) -> None:
    base, models = family(method)
    victim = next(iter(models))

    def with_(change: State, drop: str = "") -> dict[str, State]:
        changed = {n: t for n, t in {**models[victim], **change}.items() if n != drop}
        return {**models, victim: changed}

    nan = base["one"] * torch.nan
    inf = base["layers.0.w"].clone()
    inf[0, 0] = torch.inf
    for models_, match in [
        (with_({}, "layers.1.b"), f"'layers.1.b' is missing in {victim}"),
        (with_({"ghost": torch.ones(1)}), f"'ghost' of {victim}"),
        (with_({"one": torch.ones(2)}), "'one'"),
        (with_({"one": torch.ones(1, dtype=torch.int64)}), "'one' is int64"),
        (with_({"one": nan}), f"'one' of {victim} is not finite"),
        (with_({"layers.0.w": inf}), f"'layers.0.w' of {victim} is not finite"),
    ]:
        with pytest.raises(WeightsError, match=match):
            merge_states(method, base, models_)


@pytest.mark.parametrize("method", METHODS)
def test_coefficients_out_of_range_are_named(method: str) -> None:
    base, models = family(method)
    kind = methods.method(method).Config
    for key in kind.SETTINGS:
        shares = key in ("density", "gamma", "t") or (method, key) == ("wise", "alpha")
        for bad in (float("nan"), *((1.5, -0.1, [0.5, 2.0]) if shares else (float("inf"),))):
            with pytest.raises(ConfigError, match=key):
                merge_states(method, base, models, {key: bad})
    with pytest.raises(ConfigError, match="Unknown key"):
        merge_states(method, base, models, {"densty": 1})


@pytest.mark.parametrize("method", METHODS)
def test_a_fault_in_the_middle_leaves_no_half_output(method: str, tmp_path: Path) -> None:
    base, models = family(method)
    victim = next(iter(models))
    models[victim]["layers.1.w"][0, 0, 0] = torch.nan
    for name, tensors in {"base": base, **models}.items():
        write(tmp_path / name, tensors)
    with pytest.raises(GalenicError, match="not finite"):
        merge(recipe(method, tmp_path, models), tmp_path / "out")
    assert sorted(p.name for p in tmp_path.iterdir()) == sorted({"base", *models})
