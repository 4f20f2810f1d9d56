"""Read a recipe of mergekit's: the same keys and defaults, as galenic's own.

What mergekit's documentation says is kept; where its code does otherwise, a note says so.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from galenic.core.errors import ConfigError, nearest

# mergekit's name -> galenic's, and the parameters whose defaults differ.
METHODS: dict[str, tuple[str, dict[str, Any]]] = {
    "linear": ("linear", {}),
    "slerp": ("slerp", {"norm": "keep"}),
    "task_arithmetic": ("task_arithmetic", {"alpha": 1.0}),
    "ties": ("ties", {"granularity": "tensor", "density": 1.0}),
    "dare_ties": ("dare", {"consensus": "sum", "density": 1.0, "alpha": 1.0, "rescale": "l1"}),
    "dare_linear": ("dare", {"consensus": "none", "density": 1.0, "alpha": 1.0, "rescale": "l1"}),
    "breadcrumbs": ("breadcrumbs", {"density": 1.0, "gamma": 0.01, "alpha": 1.0}),
    "breadcrumbs_ties": (
        "breadcrumbs",
        {"consensus": "sum", "density": 1.0, "gamma": 0.01, "alpha": 1.0},
    ),
}
_TOP = {
    "merge_method", "base_model", "models", "slices", "parameters", "dtype", "out_dtype",
    "tokenizer_source", "name",
    # galenic's own keys may stand beside mergekit's.
    "missing", "shapes", "dtypes", "tokenizers", "exclude", "tied", "shard_gb", "verify", "seed",
}  # fmt: skip
_SCALES = ("task_arithmetic", "ties", "dare", "breadcrumbs")


def translate(values: Mapping[str, Any]) -> dict[str, Any]:
    """A recipe of galenic's with the same meaning.

    Raises:
        ConfigError: Naming what is not supported.
    """
    name = values["merge_method"]
    if name not in METHODS:
        raise ConfigError(
            f"mergekit's method {name!r} is not among those that are read. "
            f"{nearest(str(name), METHODS)}".strip(),
            where="merge_method",
            expected=", ".join(METHODS),
        )
    unknown = sorted(set(values) - _TOP)
    if unknown:
        raise ConfigError(
            f"mergekit's key '{unknown[0]}' is not read. {nearest(unknown[0], _TOP)}".strip(),
            where=unknown[0],
            expected=f"keys among {', '.join(sorted(_TOP))}",
        )
    method, defaults = METHODS[name]
    notes: list[str] = []
    result = {k: v for k, v in values.items() if k in _TOP and k not in _HANDLED}
    models, shared, layers = _models(values)
    base = values.get("base_model")
    if method != "linear":
        models = [m for m in models if m["model"] != base]
    parameters = {**defaults, **_parameters(method, shared, notes, "parameters")}
    made = []
    for model in models:
        own = _parameters(method, model.get("parameters") or {}, notes, str(model["model"]))
        # mergekit lets a model have what is the method's; the same for all is the same thing.
        for key in [k for k in own if k in ("alpha", "normalize", "rescale", "t")]:
            parameters[key] = own.pop(key)
        made.append({"model": model["model"], "parameters": own})
    if method == "breadcrumbs":
        _outliers(parameters, made, notes)
    result |= {"method": method, "models": made, "parameters": parameters}
    if base is not None:
        result["base_model"] = base
    kind = values.get("out_dtype") or values.get("dtype")
    if kind is not None:
        result["dtype"] = kind
    if layers is not None:
        result["layers"] = layers
    source = values.get("tokenizer_source")
    if source is not None:
        if source not in ("base", base):
            raise ConfigError(
                f"tokenizer_source: {source} is not supported.",
                where="tokenizer_source",
                expected="base, or none",
                next_step="Bring the models to one vocabulary first.",
            )
        result["tokenizers"] = "base"
    result["notes"] = notes
    return result


_HANDLED = {
    "merge_method", "base_model", "models", "slices", "parameters", "dtype", "out_dtype",
    "tokenizer_source", "name",
}  # fmt: skip


def _models(values: Mapping[str, Any]) -> tuple[list[dict[str, Any]], dict[str, Any], int | None]:
    """Models, shared parameters and the layers that one slice of all of them spans."""
    shared = dict(values.get("parameters") or {})
    if ("models" in values) == ("slices" in values):
        raise ConfigError(
            "The recipe has both or neither of 'models' and 'slices'.",
            expected="one of them",
        )
    if "models" in values:
        return [_model(m) for m in values["models"]], shared, None
    slices = values["slices"]
    sources = slices[0].get("sources", []) if isinstance(slices, list) and slices else []
    ranges = {tuple(source.get("layer_range", ())) for source in sources}
    span = ranges.pop() if len(ranges) == 1 else ()
    if len(slices) != 1 or len(span) != 2 or span[0] != 0:
        raise ConfigError(
            "Slices that take networks apart are not supported.",
            where="slices",
            expected="one slice, with the same layer_range [0, layers] of every source",
            next_step="List the models under 'models:'.",
        )
    shared |= slices[0].get("parameters") or {}
    return [_model(s) for s in sources], shared, int(span[1])


def _model(model: Any) -> dict[str, Any]:
    if isinstance(model, Mapping) and isinstance(model.get("model"), str):
        return dict(model)
    raise ConfigError(
        f"A model is {model!r}.", where="models", expected="- model: FOLDER, with its parameters"
    )


def _parameters(
    method: str, values: Mapping[str, Any], notes: list[str], where: str
) -> dict[str, Any]:
    found = dict(values)
    if found.pop("int8_mask", None) is not None:
        notes.append(f"{where}: int8_mask has no effect: masks are exact in one byte anyway.")
    if "lambda" in found and method in _SCALES:
        found["alpha"] = found.pop("lambda")
    if isinstance(found.get("rescale"), bool):
        found["rescale"] = "l1" if found["rescale"] else "none"
    return found


def _outliers(parameters: dict[str, Any], models: list[dict[str, Any]], notes: list[str]) -> None:
    """mergekit lowers gamma where density leaves no room for it."""
    for where in [parameters, *(m["parameters"] for m in models)]:
        density = where.get("density", parameters["density"])
        gamma = where.get("gamma", parameters["gamma"])
        if all(isinstance(x, int | float) for x in (density, gamma)) and density + gamma > 1:
            where["gamma"] = max(1 - density, 0.0)
            note = (
                f"gamma {gamma:g} was lowered to {where['gamma']:g}: density {density:g} leaves no "
                "more room, and mergekit lowers it too."
            )
            used = where is not parameters or any("density" not in m["parameters"] for m in models)
            if used and note not in notes:
                notes.append(note)
