"""Recipes: schedules, mergekit's files, faults that name the key."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from galenic.core.errors import ConfigError
from galenic.merging.recipe import Recipe, read
from galenic.merging.settings import Depths, Rule, resolve

NAMES = [
    "model.embed_tokens.weight",
    *(f"model.layers.{i}.{part}.weight" for i in range(5) for part in ("self_attn.q", "mlp.up")),
    "model.norm.weight",
    "lm_head.weight",
]
# The schedule of the README of Lu et al.
SCHEDULE: list[Rule] = [
    Rule(filter="self_attn", value=[0, 0.5, 0.3, 0.7, 1]),
    Rule(filter="mlp", value=[1, 0.5, 0.7, 0.3, 0]),
    Rule(value=0.5),
]


def test_anchors_run_from_the_first_layer_to_the_last() -> None:
    depths = Depths(NAMES)
    assert depths.layers == 5
    for i, (attention, mlp) in enumerate(
        zip([0, 0.5, 0.3, 0.7, 1], [1, 0.5, 0.7, 0.3, 0], strict=True)
    ):
        for part, wanted in (("self_attn.q", attention), ("mlp.up", mlp)):
            name = f"model.layers.{i}.{part}.weight"
            assert resolve(SCHEDULE, name, depths.of(name)) == pytest.approx(wanted)
    for name in ("model.embed_tokens.weight", "lm_head.weight"):
        assert resolve(SCHEDULE, name, depths.of(name)) == 0.5


def test_between_anchors_a_list_is_linear() -> None:
    assert resolve([0.0, 1.0], "x", 0.25) == 0.25
    assert resolve([0.0, 1.0, 0.0], "x", 0.75) == 0.5
    assert resolve([0.4], "x", 0.9) == 0.4


def test_what_is_in_no_layer_stands_at_the_front_or_the_end() -> None:
    depths = Depths(NAMES)
    assert depths.of("model.embed_tokens.weight") == 0
    assert depths.of("model.norm.weight") == 1
    assert Depths(["0.weight", "3.bias"]).of("3.bias") == 1
    assert Depths(["only.weight"]).of("only.weight") == 1


@pytest.mark.parametrize(
    ("name", "depth"),
    [
        ("bert.embeddings.word_embeddings.weight", 0),
        ("vit.embeddings.cls_token", 0),
        ("mask_token", 0),
        ("pos_embed", 0),
        ("cls.predictions.decoder.weight", 1),
        ("cls.seq_relationship.weight", 1),
        ("predictions.embedding.weight", 1),
        ("embed_out.weight", 1),
        ("mask_decoder.out.weight", 1),
    ],
)
def test_heads_stand_at_the_end(name: str, depth: float) -> None:
    assert Depths([*NAMES, name]).of(name) == depth
    # mergekit has one place for all that is in no layer.
    assert Depths([*NAMES, name], outside=0.0).of(name) == 0


def test_a_list_of_mergekit_s_begins_at_what_is_in_no_layer() -> None:
    values = {"merge_method": "slerp", "base_model": "b", "models": [{"model": "x"}]}
    assert read({**values, "parameters": {"t": [0.0, 1.0]}}).outside == 0
    own = {"method": "slerp", "base_model": "b", "models": ["x"], "parameters": {"t": [0.0, 1.0]}}
    assert read(own).outside is None


def test_rules_that_fit_nothing_say_so() -> None:
    with pytest.raises(ConfigError, match=r"No rule of 't' fits.*'head'"):
        resolve([Rule(filter="mlp", value=1.0)], "head", 1.0, "t")


BASE: dict[str, Any] = {"method": "breadcrumbs", "base_model": "b", "models": ["x", "y"]}


@pytest.mark.parametrize(
    ("change", "match"),
    [
        ({"method": "breadcrumb"}, "Did you mean 'breadcrumbs'"),
        ({"base_model": None}, "needs a base"),
        ({"model": []}, "Unknown key 'model'. Did you mean 'models'"),
        ({"models": []}, "models"),
        ({"parameters": {"denisty": 0.2}}, "Did you mean 'density'"),
        ({"parameters": {"density": 1.2}}, "density.*not between 0 and 1"),
        ({"parameters": {"weight": float("inf")}}, "weight.*finite"),
        ({"parameters": {"density": []}}, "empty"),
        ({"method": "wise", "models": ["x", "y"]}, "2 models"),
        ({"models": [{"model": "x", "parameters": {"alpha": 1}}]}, "no 'alpha' of its own"),
        ({"models": ["x", "x"]}, "Two models are called 'x'"),
        ({"dtype": "int8"}, "dtype"),
        ({"method": "ties", "parameters": {"density": [0.1, 0.2]}}, "granularity: tensor"),
        ({"parameters": {"density": 0.9, "gamma": 0.2}}, "Density 0.9 and gamma 0.2 sum to more"),
    ],
)
def test_faults_are_named(change: dict[str, Any], match: str) -> None:
    with pytest.raises(ConfigError, match=match):
        read({**BASE, **change}).keys()


def test_models_of_one_folder_name_are_told_apart() -> None:
    assert read({**BASE, "models": ["a/net", "b/net", "c/other"]}).keys() == [
        "a/net",
        "b/net",
        "other",
    ]


def test_a_file_is_read(tmp_path: Path) -> None:
    file = tmp_path / "r.yaml"
    file.write_text(
        "method: linear\nmodels:\n  - model: a\n    parameters: {weight: 2}\n  - model: b\n"
    )
    recipe = read(file)
    assert [c.weight for c in recipe.each()] == [2, 1]
    file.write_text("method: [")
    with pytest.raises(ConfigError, match=r"r\.yaml"):
        read(file)


SLICES = [
    {
        "sources": [
            {"model": "b", "layer_range": [0, 5]},
            {"model": "x", "layer_range": [0, 5]},
        ]
    }
]


def test_the_slerp_recipe_of_mergekit_s_readme_is_read() -> None:
    recipe = read(
        {
            "slices": SLICES,
            "merge_method": "slerp",
            "base_model": "b",
            "parameters": {"t": [r.model_dump() for r in SCHEDULE]},
            "dtype": "bfloat16",
        }
    )
    assert (recipe.method, recipe.base_model, recipe.layers) == ("slerp", "b", 5)
    assert [m.model for m in recipe.models] == ["x"]
    assert recipe.dtype == "bfloat16"
    assert recipe.config().norm == "keep"  # type: ignore[attr-defined]


def ranged(span: Any) -> dict[str, Any]:
    sources = [{"model": name, "layer_range": span} for name in "xy"]
    return {"slices": [{"sources": sources}], "models": None}


@pytest.mark.parametrize(
    ("change", "match"),
    [
        ({"merge_method": "model_stock"}, "model_stock"),
        ({"modules": {}}, "'modules'"),
        ({"chat_template": "auto"}, "'chat_template'"),
        ({"tokenizer_source": "union"}, "union"),
        ({"slices": [SLICES[0], SLICES[0]]}, "both or neither"),
        ({"slices": [SLICES[0], SLICES[0]], "models": None}, "take networks apart"),
        ({"models": [{"model": {"path": "x"}}]}, "A model is"),
        ({"models": 5}, "'models' is 5"),
        ({"models": None}, "both or neither"),
        ({"models": [{"model": "x", "parameters": [1]}]}, r"'x: parameters' is \[1\]"),
        ({"merge_method": ["x"]}, r"method \['x'\] is not among"),
        ({"parameters": [1]}, r"'parameters' is \[1\]"),
        ({"slices": ["a"], "models": None}, "'slices' is 'a'"),
        ({"slices": 3, "models": None}, "'slices' is 3"),
        ({"slices": [{"sources": ["a", "b"]}], "models": None}, "A model is 'a'"),
        ({"slices": [{"sources": [{"model": "x"}]}], "models": None}, "take networks apart"),
        (ranged(4), "take networks apart"),
        (ranged([0, "x"]), "take networks apart"),
        (ranged([1, 5]), "take networks apart"),
        ({"merge_method": "slerp", "models": [{"model": "x", "parameters": {"t": 1}}]}, "a 't'"),
        ({1: 2}, "'1' is not read"),
    ],
)
def test_what_of_mergekit_is_not_read_is_named(change: dict[str, Any], match: str) -> None:
    values = {"merge_method": "ties", "base_model": "b", "models": [{"model": "x"}], **change}
    values = {k: v for k, v in values.items() if v is not None}
    with pytest.raises(ConfigError, match=match):
        read(values)


def test_gamma_is_lowered_where_mergekit_lowers_it_and_that_is_noted() -> None:
    values = {"merge_method": "breadcrumbs", "base_model": "b", "models": [{"model": "x"}]}
    recipe = read(values)
    assert gammas(recipe) == [0]
    assert "gamma 0.01 was lowered to 0" in recipe.notes[0]
    own = {**values, "parameters": {"density": 0.7, "gamma": 0.4}}
    assert gammas(read(own)) == pytest.approx([0.3])


def gammas(recipe: Recipe) -> list[float]:
    return [config.gamma for config in recipe.each()]  # type: ignore[attr-defined]


def test_gamma_is_lowered_by_each_model_s_own_density() -> None:
    own: list[dict[str, Any]] = [
        {"density": 0.9},
        {"density": 0.98},
        {},
        {"density": 0.9, "gamma": 0.2},
    ]
    models = [{"model": f"m{i}", "parameters": {"weight": 1.0, **e}} for i, e in enumerate(own)]
    values = {"merge_method": "breadcrumbs", "base_model": "b", "parameters": {"gamma": 0.05}}
    recipe = read({**values, "models": models})
    assert gammas(recipe) == pytest.approx([0.05, 0.02, 0, 0.1])
    assert len(recipe.notes) == 3


def test_what_mergekit_has_for_the_whole_method_is_not_taken_from_a_model() -> None:
    own = {"weight": 1.0, "lambda": 0.5, "normalize": False, "rescale": True}
    recipe = read(
        {
            "merge_method": "dare_ties",
            "base_model": "b",
            "models": [{"model": "x", "parameters": own}, {"model": "y"}],
            "parameters": {"normalize": True},
        }
    )
    assert (recipe.parameters["alpha"], recipe.parameters["normalize"]) == (1.0, True)
    assert recipe.models[0].parameters == {"weight": 1.0}
    for key in ("lambda", "normalize", "rescale"):
        assert f"x: {key} has no effect under a model, as in mergekit." in recipe.notes
