"""Read a recipe of mergekit's: the same keys and defaults, as galenic's own.

What mergekit's documentation says is kept; where its code does otherwise, a note says so.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, TypeGuard

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
# What is the method's alone, by galenic's name.
_SHARED = ("alpha", "normalize", "rescale", "t")
_SCALES = ("task_arithmetic", "ties", "dare", "breadcrumbs")


def translate(values: Mapping[str, Any]) -> dict[str, Any]:
    """A recipe of galenic's with the same meaning.

    Raises:
        ConfigError: Naming what is not supported.
    """
    name = values["merge_method"]
    if not isinstance(name, str) or name not in METHODS:
        raise ConfigError(
            f"mergekit's method {name!r} is not among those that are read. "
            f"{nearest(str(name), METHODS)}".strip(),
            where="merge_method",
            expected=", ".join(METHODS),
        )
    unknown = sorted(map(str, set(values) - _TOP))
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
        where = str(model["model"])
        own = _parameters(
            method, _mapping(model.get("parameters"), f"{where}: parameters"), notes, where
        )
        for key in [k for k in own if k in _SHARED]:
            del own[key]
            word = "lambda" if key == "alpha" else key
            notes.append(f"{where}: {word} has no effect under a model, as in mergekit.")
        made.append({"model": model["model"], "parameters": own})
    if method == "breadcrumbs":
        _outliers(parameters, made, notes)
    if method == "slerp" and "t" not in parameters:
        raise ConfigError(
            "mergekit's slerp needs a 't'.", where="parameters", expected="parameters: {t: 0.5}"
        )
    result |= {"method": method, "models": made, "parameters": parameters}
    if base is not None:
        result["base_model"] = base
    kind = values.get("out_dtype") or values.get("dtype")
    if kind is not None:
        result["dtype"] = kind
    if layers is not None:
        result["layers"] = layers
    # A list over the depth: mergekit takes its first number for all that is in no layer.
    result["outside"] = 0.0
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
    shared = _mapping(values.get("parameters"), "parameters")
    models, slices = values.get("models"), values.get("slices")
    if (models is None) == (slices is None):
        raise ConfigError(
            "The recipe has both or neither of 'models' and 'slices'.",
            expected="one of them",
        )
    if slices is None:
        return [_model(m) for m in _list(models, "models")], shared, None
    parts = [_mapping(part, "slices") for part in _list(slices, "slices")]
    sources = [_model(s) for part in parts for s in _list(part.get("sources"), "sources")]
    spans = [source.get("layer_range") for source in sources]
    span = spans[0] if spans else None
    if len(parts) != 1 or spans.count(span) != len(spans) or not _is_whole(span):
        raise ConfigError(
            "Slices that take networks apart are not supported.",
            where="slices",
            expected="one slice, with the same layer_range [0, layers] of every source",
            next_step="List the models under 'models:'.",
        )
    shared |= _mapping(parts[0].get("parameters"), "slices: parameters")
    return sources, shared, span[1]


def _is_whole(span: Any) -> TypeGuard[list[int]]:
    """Whether a layer_range is [0, layers]."""
    numbers = isinstance(span, list) and all(type(end) is int for end in span)
    return numbers and len(span) == 2 and span[0] == 0


def _mapping(value: Any, where: str) -> dict[str, Any]:
    if value is None:
        return {}
    if isinstance(value, Mapping):
        return dict(value)
    raise ConfigError(f"'{where}' is {value!r}.", where=where, expected="keys with their values")


def _list(value: Any, where: str) -> list[Any]:
    if isinstance(value, list):
        return value
    raise ConfigError(f"'{where}' is {value!r}.", where=where, expected="a list")


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
    """mergekit lowers gamma where density leaves no room for it, model by model."""
    for own in (m["parameters"] for m in models):
        density = own.get("density", parameters["density"])
        gamma = own.get("gamma", parameters["gamma"])
        if all(isinstance(x, int | float) for x in (density, gamma)) and density + gamma > 1:
            own["gamma"] = max(1 - density, 0.0)
            note = (
                f"gamma {gamma:g} was lowered to {own['gamma']:g}: density {density:g} leaves no "
                "more room, and mergekit lowers it too."
            )
            if note not in notes:
                notes.append(note)
