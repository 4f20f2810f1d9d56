"""The engine on files: what differs, what is refused or handled, what is written, memory."""

from __future__ import annotations

import json
import math
import os
import resource
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from safetensors.torch import load_file, save_file, save_model
from torch import Tensor, nn

from galenic.core.errors import ConfigError, RunError, WeightsError
from galenic.core.files import verify_folder
from galenic.merging import Checkpoint, Recipe, merge, merge_states
from galenic.merging.recipe import Model

State = dict[str, Tensor]


def base_state(seed: int = 0) -> State:
    draw = torch.Generator().manual_seed(seed)
    return {
        "embed.weight": torch.randn(12, 6, generator=draw),
        "layers.0.w": torch.randn(6, 6, generator=draw),
        "layers.1.w": torch.randn(6, 6, generator=draw),
        "norm.weight": torch.ones(6),
        "steps": torch.tensor(3),
    }


def moved(base: State, seed: int) -> State:
    draw = torch.Generator().manual_seed(seed)
    return {
        n: t + 0.05 * torch.randn(t.shape, generator=draw) if t.is_floating_point() else t
        for n, t in base.items()
    }


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    base = base_state()
    for name, state in {"base": base, "x": moved(base, 1), "y": moved(base, 2)}.items():
        put(tmp_path / name, state)
    return tmp_path


def put(path: Path, state: State, **files: Any) -> None:
    path.mkdir(exist_ok=True)
    save_file(state, path / "model.safetensors", metadata={"format": "pt"})
    (path / "config.json").write_text('{"dtype": "float32", "hidden_size": 6}')
    for name, content in files.items():
        (path / f"{name}.json").write_text(json.dumps(content))


def recipe(folder: Path, method: str = "task_arithmetic", **keys: Any) -> dict[str, Any]:
    return {
        "method": method,
        "base_model": str(folder / "base"),
        "models": [str(folder / "x"), str(folder / "y")],
        **keys,
    }


def change(folder: Path, name: str, drop: str = "", **tensors: Tensor) -> None:
    state = load_file(folder / name / "model.safetensors")
    state |= {key.replace("__", "."): value for key, value in tensors.items()}
    state.pop(drop, None)
    put(folder / name, state)


def out(folder: Path) -> State:
    return load_file(folder / "out" / "model.safetensors")


def test_a_merged_folder_is_whole_and_opens_like_its_base(folder: Path) -> None:
    (folder / "base" / "tokenizer_config.json").write_text("{}")
    for other in ("README.md", "cohort.json", "notes.txt"):
        (folder / "base" / other).write_text("{}")
    document = merge(recipe(folder), folder / "out")
    assert set(verify_folder(folder / "out")) == {
        "config.json",
        "merge_recipe.json",
        "merge_report.json",
        "model.safetensors",
        "tokenizer_config.json",
    }
    assert json.loads((folder / "out" / "merge_report.json").read_text()) == json.loads(
        json.dumps(document)
    )
    # The recipe that is kept beside it gives the same again.
    kept = json.loads((folder / "out" / "merge_recipe.json").read_text())
    merge(kept, folder / "again")
    assert all(torch.equal(a, out(folder)[n]) for n, a in Checkpoint.open(folder / "again").items())


def test_the_report_has_the_figures_of_a_slow_reference(folder: Path) -> None:
    settings = {"density": 0.25, "gamma": 0.1}
    document = merge(recipe(folder, "breadcrumbs", parameters=settings), folder / "out")
    base, x, y = (load_file(folder / n / "model.safetensors") for n in ("base", "x", "y"))
    rows = {row["name"]: row for row in document["tensors"]}
    assert set(rows) == {n for n, t in base.items() if t.is_floating_point()}
    for name, row in rows.items():
        b, dx, dy = (
            t.double().numpy().ravel()
            for t in (base[name], x[name] - base[name], y[name] - base[name])
        )
        assert row["norm"]["x"] == pytest.approx(np.linalg.norm(dx), rel=1e-5)
        assert row["cosine"]["x | y"] == pytest.approx(
            dx @ dy / np.linalg.norm(dx) / np.linalg.norm(dy), abs=1e-5
        )
        assert row["lineage"]["y"] == pytest.approx(
            b @ (b + dy) / np.linalg.norm(b) / np.linalg.norm(b + dy), abs=1e-5
        )
        assert row["kept"]["x"] == int(0.25 * b.size) / b.size
        band = np.sort(np.abs(dx))[::-1][int(0.1 * b.size) :][: int(0.25 * b.size)]
        assert row["norm_kept"]["x"] == pytest.approx(np.linalg.norm(band), rel=1e-5)
    assert document["copied"] == {"steps": "int64: no arithmetic"}
    assert document["warnings"] == []
    assert 0.2 < document["whole"]["kept"]["x"] <= 0.25


def test_a_model_of_another_lineage_is_a_warning_with_the_figure(folder: Path) -> None:
    put(folder / "y", base_state(seed=99))
    document = merge(recipe(folder), folder / "out")
    assert len(document["warnings"]) == 1
    cosine = document["whole"]["lineage"]["y"]
    assert (
        f"y seems to be of another lineage: the cosine of its weights with the base's is {cosine:.3f}"
        in document["warnings"][0]
    )
    assert abs(cosine) < 0.2


@pytest.mark.parametrize("policy", ["base", "skip"])
def test_a_missing_tensor_is_handled_as_the_user_says_and_noted(folder: Path, policy: str) -> None:
    change(folder, "x", drop="layers.0.w")
    change(folder, "y", ghost=torch.ones(2))
    with pytest.raises(WeightsError, match=r"'layers\.0\.w' is missing in x"):
        merge(recipe(folder), folder / "out")
    document = merge(recipe(folder, missing=policy, parameters={"alpha": 1}), folder / "out")
    base, y = (load_file(folder / n / "model.safetensors") for n in ("base", "y"))
    expected = base["layers.0.w"] if policy == "skip" else y["layers.0.w"]
    torch.testing.assert_close(out(folder)["layers.0.w"], expected)
    assert "ghost" not in out(folder)
    noted = " ".join(document["notes"])
    assert "'layers.0.w' is missing in x" in noted
    assert "'ghost' of y" in noted
    assert ("layers.0.w" in document["copied"]) == (policy == "skip")


@pytest.mark.parametrize("policy", ["base", "skip"])
def test_another_shape_is_handled_as_the_user_says(folder: Path, policy: str) -> None:
    change(folder, "x", embed__weight=torch.ones(14, 6))
    with pytest.raises(WeightsError, match=r"'embed.weight' has \(14, 6\) in x, not \(12, 6\)"):
        merge(recipe(folder), folder / "out")
    document = merge(recipe(folder, shapes=policy, parameters={"alpha": 1}), folder / "out")
    base, y = (load_file(folder / n / "model.safetensors") for n in ("base", "y"))
    expected = base if policy == "skip" else y
    torch.testing.assert_close(out(folder)["embed.weight"], expected["embed.weight"])
    assert any("'embed.weight' has (14, 6) in x" in note for note in document["notes"])


def test_other_types_are_converted_and_listed_or_refused(folder: Path) -> None:
    put(
        folder / "x",
        {n: t.half() if t.is_floating_point() else t for n, t in moved(base_state(), 1).items()},
    )
    document = merge(recipe(folder), folder / "out")
    assert out(folder)["layers.0.w"].dtype == torch.float32
    assert any("float16 in x, float32 in the base" in note for note in document["notes"])
    with pytest.raises(WeightsError, match="float16 in x, float32 in the base"):
        merge(recipe(folder, dtypes="error"), folder / "out2")


@pytest.mark.parametrize("exclude", [[], ["norm.*"]])
def test_a_number_that_float16_cannot_hold_is_an_error_wherever_it_comes_from(
    folder: Path, exclude: list[str]
) -> None:
    for name in ("base", "x", "y"):
        change(folder, name, norm__weight=torch.full((6,), 1e5))
    with pytest.raises(WeightsError, match=r"'norm\.weight' is beyond what float16 holds"):
        merge(recipe(folder, dtype="float16", exclude=exclude), folder / "out")


def test_the_type_of_the_output_is_the_user_s(folder: Path) -> None:
    merge(recipe(folder), folder / "wide")
    merge(recipe(folder, dtype="bfloat16"), folder / "out")
    wide = load_file(folder / "wide" / "model.safetensors")
    assert torch.equal(out(folder)["layers.0.w"], wide["layers.0.w"].bfloat16())
    assert out(folder)["steps"].dtype == torch.int64
    assert json.loads((folder / "out" / "config.json").read_text())["dtype"] == "bfloat16"


def test_what_float16_cannot_hold_is_an_error(folder: Path) -> None:
    with pytest.raises(WeightsError, match="beyond what float16 holds"):
        merge(recipe(folder, dtype="float16", parameters={"alpha": 1e7}), folder / "out")


def test_what_is_not_merged_passes_as_it_is(folder: Path) -> None:
    mask = torch.full((5, 5), -torch.inf, dtype=torch.float16).triu(1)
    for name in ("base", "x", "y"):
        change(folder, name, mask=mask)
    merge(recipe(folder, exclude=["mask"]), folder / "out")
    assert torch.equal(out(folder)["mask"], mask)


def test_heads_are_left_out_and_kept_apart(folder: Path) -> None:
    for name, classes in (("x", 3), ("y", 5)):
        change(folder, name, head__weight=torch.full((classes, 6), float(classes)))
    with pytest.raises(WeightsError, match=r"'head\.weight' of x is not in the base"):
        merge(recipe(folder), folder / "out")
    document = merge(recipe(folder, exclude=["head.*", "norm.*"]), folder / "out")
    assert "head.weight" not in out(folder)
    assert torch.equal(out(folder)["norm.weight"], base_state()["norm.weight"])
    assert document["copied"]["norm.weight"] == "excluded"
    heads = load_file(folder / "out" / "heads" / "y.safetensors")
    assert torch.equal(heads["head.weight"], torch.full((5, 6), 5.0))
    assert set(heads) == {"head.weight", "norm.weight"}


def test_a_tied_tensor_with_another_name_is_found(folder: Path) -> None:
    state = load_file(folder / "x" / "model.safetensors")
    state["lm_head.weight"] = state["embed.weight"].clone()
    put(folder / "x", state)
    with pytest.raises(WeightsError, match=r"'lm_head.weight' of x.*\n.*\n.*tied:"):
        merge(recipe(folder), folder / "out")
    tied = {"lm_head.weight": "embed.weight"}
    document = merge(recipe(folder, tied=tied), folder / "out")
    assert document["notes"] == []
    del state["embed.weight"]
    put(folder / "x", state)
    plain = out(folder)
    merge(recipe(folder, tied=tied), folder / "out")
    assert all(torch.equal(value, plain[n]) for n, value in out(folder).items())


@pytest.mark.parametrize("how", ["alias", "said"])
def test_a_head_of_its_own_beside_a_tied_one_is_not_lost(folder: Path, how: str) -> None:
    tied = {"lm_head.weight": "embed.weight"}
    if how == "alias":
        save_file(base_state(), folder / "base" / "model.safetensors", metadata=tied)
    told = {"tied": tied} if how == "said" else {}
    embed = load_file(folder / "x" / "model.safetensors")["embed.weight"]
    change(folder, "x", lm_head__weight=embed.clone())
    assert merge(recipe(folder, **told), folder / "out")["notes"] == []
    change(folder, "x", lm_head__weight=embed + 1)
    with pytest.raises(WeightsError, match=r"'lm_head\.weight' of x is not 'embed\.weight'"):
        merge(recipe(folder, **told), folder / "out")
    document = merge(recipe(folder, missing="base", **told), folder / "out")
    assert "'lm_head.weight' of x is not 'embed.weight'" in document["notes"][0]


class Tied(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(3, 3, bias=False), nn.Linear(3, 3, bias=False)
        self.b.weight = self.a.weight


def test_names_that_save_model_dropped_are_found(tmp_path: Path) -> None:
    torch.manual_seed(0)
    for name in ("base", "x", "y"):
        (tmp_path / name).mkdir()
        save_model(Tied(), str(tmp_path / name / "model.safetensors"))
    state = load_file(tmp_path / "x" / "model.safetensors")
    (only,) = state
    other = "b.weight" if only == "a.weight" else "a.weight"
    save_file({other: state[only]}, tmp_path / "x" / "model.safetensors", metadata={only: other})
    document = merge(recipe(tmp_path), tmp_path / "out")
    assert document["notes"] == []
    assert Checkpoint.open(tmp_path / "out").aliases == {other: only}


def test_integers_that_differ_are_noted_and_the_base_s_stay(folder: Path) -> None:
    change(folder, "x", steps=torch.tensor(8))
    document = merge(recipe(folder), folder / "out")
    assert out(folder)["steps"] == 3
    assert any("'steps' (int64) differs in x" in note for note in document["notes"])


def tokenizer(*words: str, **more: Any) -> dict[str, Any]:
    return {"model": {"vocab": {w: i for i, w in enumerate(words)}}, **more}


def test_another_vocabulary_is_refused_or_the_base_s_taken(folder: Path) -> None:
    for name, words in (("base", "ab"), ("x", "ab"), ("y", "ba")):
        path = folder / name / "tokenizer.json"
        path.write_text(json.dumps(tokenizer(*words, truncation={"max": len(name)})))
    with pytest.raises(WeightsError, match="tokenizer of y has another vocabulary"):
        merge(recipe(folder), folder / "out")
    document = merge(recipe(folder, tokenizers="base"), folder / "out")
    assert document["notes"] == ["the tokenizer of y differs; the base's is taken"]


def test_pairs_of_a_tokenizer_are_the_same_in_both_spellings(folder: Path) -> None:
    for name, merges in (("base", ["h e", "l l"]), ("x", [["h", "e"], ["l", "l"]]), ("y", ["h e"])):
        found = {"model": {"vocab": {"h": 0, "e": 1}, "merges": merges}}
        (folder / name / "tokenizer.json").write_text(json.dumps(found))
    document = merge(recipe(folder, tokenizers="base"), folder / "out")
    assert document["notes"] == ["the tokenizer of y differs; the base's is taken"]


def test_adapters_merge_into_an_adapter_unless_their_scales_differ(tmp_path: Path) -> None:
    base = {"q.lora_A.weight": torch.randn(2, 6), "q.lora_B.weight": torch.randn(6, 2)}
    for i, name in enumerate(("base", "x", "y")):
        (tmp_path / name).mkdir()
        save_file(moved(base, i), tmp_path / name / "adapter_model.safetensors")
        config = {"peft_type": "LORA", "r": 2, "lora_alpha": 4}
        (tmp_path / name / "adapter_config.json").write_text(json.dumps(config))
    document = merge(recipe(tmp_path, "linear"), tmp_path / "out")
    assert (tmp_path / "out" / "adapter_model.safetensors").is_file()
    assert (tmp_path / "out" / "adapter_config.json").is_file()
    assert "not the mean of their products" in document["notes"][0]
    config["lora_alpha"] = 8
    (tmp_path / "y" / "adapter_config.json").write_text(json.dumps(config))
    with pytest.raises(WeightsError, match="adapter of y has lora_alpha 8, the base's 4"):
        merge(recipe(tmp_path, "linear"), tmp_path / "out")


@pytest.mark.parametrize("peft_type", ["LORA", "OF_ANOTHER_TIME"])
def test_what_an_older_adapter_does_not_say_is_peft_s_default(
    tmp_path: Path, peft_type: str
) -> None:
    state = {"q.lora_A.weight": torch.ones(2, 6), "q.lora_B.weight": torch.ones(6, 2)}
    later = {"use_rslora": False, "use_dora": False, "rank_pattern": {}, "alpha_pattern": {}}
    for name, more in (("base", {}), ("x", later), ("y", {**later, "fan_in_fan_out": False})):
        (tmp_path / name).mkdir()
        save_file(state, tmp_path / name / "adapter_model.safetensors")
        config = {"peft_type": peft_type, "r": 2, "lora_alpha": 4, **more}
        (tmp_path / name / "adapter_config.json").write_text(json.dumps(config))
    if peft_type == "LORA":
        merge(recipe(tmp_path, "linear"), tmp_path / "out")
        config["use_rslora"] = True
        (tmp_path / "y" / "adapter_config.json").write_text(json.dumps(config))
    with pytest.raises(WeightsError, match="use_rslora"):
        merge(recipe(tmp_path, "linear"), tmp_path / "out")


def test_a_band_that_does_not_fit_is_refused_at_its_tensor(folder: Path) -> None:
    rules = [{"filter": "layers.1", "value": 0.9}, {"value": 0.1}]
    settings = {"density": 0.5, "gamma": rules}
    with pytest.raises(ConfigError, match=r"'layers.1.w': density 0.5 and gamma 0.9 sum to more"):
        merge(recipe(folder, "breadcrumbs", parameters=settings), folder / "out")
    assert not (folder / "out").exists()


def test_a_schedule_over_the_layers_holds_for_each(folder: Path) -> None:
    settings = {"alpha": [{"filter": "layers", "value": [0, 1]}, {"value": 0}]}
    values = recipe(folder, "wise", parameters=settings) | {"models": [str(folder / "x")]}
    merge(values, folder / "out")
    base, x = (load_file(folder / n / "model.safetensors") for n in ("base", "x"))
    for name, value in out(folder).items():
        assert torch.equal(value, x[name] if name == "layers.1.w" else base[name]), name


def test_the_layers_of_a_recipe_must_be_the_base_s(folder: Path) -> None:
    sources = [{"model": str(folder / n), "layer_range": [0, 9]} for n in ("base", "x")]
    values = {
        "merge_method": "slerp",
        "slices": [{"sources": sources}],
        "base_model": str(folder / "base"),
        "parameters": {"t": 0.5},
    }
    with pytest.raises(ConfigError, match="ends at 9, and the base has 2 layers"):
        merge(values, folder / "out")


def test_paths_are_taken_from_the_recipe_s_folder(folder: Path) -> None:
    values = {"method": "linear", "models": ["x", "y"]}
    (folder / "r.yaml").write_text(yaml.safe_dump(values))
    merge(folder / "r.yaml", folder / "out")
    x, y = (load_file(folder / n / "model.safetensors") for n in "xy")
    torch.testing.assert_close(out(folder)["layers.0.w"], (x["layers.0.w"] + y["layers.0.w"]) / 2)
    with pytest.raises(WeightsError, match="no checkpoint 'z'"):
        merge(values | {"models": ["z"]}, folder / "out")


def test_a_model_is_never_written_over(folder: Path) -> None:
    for target in (folder / "x", folder):
        with pytest.raises(ConfigError, match="is, or holds, a model"):
            merge(recipe(folder), target)
    assert torch.equal(load_file(folder / "x" / "model.safetensors")["steps"], torch.tensor(3))


def test_what_was_not_written_here_is_never_replaced(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    place = folder / "work"
    place.mkdir()
    for name in (folder / "r.yaml", place / "r.yaml"):
        name.write_text(yaml.safe_dump(recipe(folder)))
    with pytest.raises(ConfigError, match="or the recipe"):
        merge(place / "r.yaml", place)
    with pytest.raises(ConfigError, match="holds what no merge or port has written"):
        merge(folder / "r.yaml", place)
    with pytest.raises(ConfigError, match="holds what no merge or port has written"):
        merge(folder / "r.yaml", folder / "base" / "config.json")
    assert [path.name for path in place.iterdir()] == ["r.yaml"]
    (folder / "empty").mkdir()
    monkeypatch.chdir(folder / "empty")
    merge(folder / "r.yaml", ".")
    merge(folder / "r.yaml", folder / "empty")
    assert (folder / "empty" / "merge_report.json").is_file()


def test_a_recipe_in_python_is_checked_as_a_file_is(folder: Path) -> None:
    models = [Model(model=str(folder / name)) for name in "xy"]
    with pytest.raises(ConfigError, match="needs a base"):
        merge(Recipe(method="task_arithmetic", models=models), folder / "out")
    with pytest.raises(ConfigError, match="got 2 models"):
        merge(Recipe(method="wise", base_model="base", models=models), folder / "out")
    with pytest.raises(WeightsError, match=r"'embed\.weight' of x is not in the base"):
        merge_states("task_arithmetic", {}, {"x": base_state()})


def test_the_mean_of_running_statistics_is_noted(folder: Path) -> None:
    for name, var in (("base", 1.0), ("x", 0.4), ("y", 0.2)):
        change(folder, name, bn__running_var=torch.full((3,), var))
    document = merge(recipe(folder, parameters={"alpha": 1}), folder / "out")
    torch.testing.assert_close(out(folder)["bn.running_var"], torch.full((3,), 0.3))
    assert "1 running means and variances, such as 'bn.running_var'" in document["notes"][0]
    assert merge(recipe(folder, "linear"), folder / "out")["notes"] == []


def test_a_full_disk_in_the_middle_leaves_what_was_there(folder: Path) -> None:
    big = {"w": torch.ones(300, 300)}
    for name in ("base", "x", "y"):
        put(folder / name, big)
    merge(recipe(folder), folder / "out")
    before = (folder / "out" / "merge_report.json").read_bytes()
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, hard))
        with pytest.raises(RunError, match=r"(?s)disk is full.*merge again"):
            merge(recipe(folder, "linear"), folder / "out")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert (folder / "out" / "merge_report.json").read_bytes() == before
    verify_folder(folder / "out")
    assert sorted(p.name for p in folder.iterdir()) == ["base", "out", "x", "y"]


def test_progress_counts_every_tensor(folder: Path) -> None:
    seen: list[tuple[int, int, str]] = []
    merge(recipe(folder), folder / "out", progress=lambda *step: seen.append(step))
    assert [step[:2] for step in seen] == [(i, 5) for i in range(1, 6)]
    assert {step[2] for step in seen} == set(base_state())


@pytest.mark.parametrize("method", ["ties", "dare", "breadcrumbs"])
def test_threads_change_nothing(folder: Path, method: str, monkeypatch: pytest.MonkeyPatch) -> None:
    found = []
    for count in (1, 4):
        monkeypatch.setattr(os, "cpu_count", lambda count=count: count)
        report = merge(recipe(folder, method), folder / "out")
        del report["seconds"]
        found.append((report, (folder / "out" / "model.safetensors").read_bytes()))
    assert found[0] == found[1]


def test_base_may_be_none_for_a_method_without_one() -> None:
    a, b = base_state(), base_state(1)
    made = merge_states("linear", None, {"a": a, "b": b}, each={"a": {"weight": 3.0}})
    torch.testing.assert_close(made["layers.0.w"], 0.75 * a["layers.0.w"] + 0.25 * b["layers.0.w"])


MEMORY = """
import os, sys
# Each thread of a merge holds pieces of its own.
os.cpu_count = lambda: 2
from pathlib import Path
from galenic.core.meters import Meter
from galenic.merging import merge
folder, method = Path(sys.argv[1]), sys.argv[2]
keys = {"base_model": str(folder / "base"), "models": [str(folder / n) for n in ("x", "y", "z")]}
merge({"method": method, "base_model": str(folder / "tiny"), "models": [str(folder / "tiny")]}, folder / "o")
with Meter() as meter:
    merge({"method": method, **keys}, folder / "out")
print(meter.host_mb)
"""


@pytest.mark.parametrize("method", ["breadcrumbs", "linear"])
def test_memory_does_not_grow_with_the_checkpoint(tmp_path: Path, method: str) -> None:
    put(tmp_path / "tiny", {"w": torch.ones(70_000)})
    # Sparse files: three tensors of 80 MB each, a checkpoint of 240 MB four times.
    sides = 40_000_000
    for name in ("base", "x", "y", "z"):
        (tmp_path / name).mkdir()
        sparse(tmp_path / name / "model.safetensors", {f"{i}.w": sides // 1000 for i in range(3)})
    done = subprocess.run(
        [sys.executable, "-c", MEMORY, str(tmp_path), method],
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    # Less than one of the four.
    assert float(done.stdout) < 240


def sparse(path: Path, rows: dict[str, int]) -> None:
    """A bfloat16 checkpoint of zeros, without its bytes on the disk."""
    from galenic.merging.writing import Slot, header

    slots = [Slot(n, torch.bfloat16, (count, 1000)) for n, count in rows.items()]
    with path.open("wb") as file:
        file.write(header(slots, {"format": "pt"}))
        file.truncate(file.tell() + sum(slot.bytes for slot in slots))
    assert math.prod(Checkpoint.open(path)[slots[0].name].shape) == slots[0].bytes // 2
