"""What is to be merged, and how: a recipe that reads like mergekit's."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, ValidationError, model_validator

from galenic.core.config import Config, load_yaml, parse
from galenic.core.errors import ConfigError, nearest
from galenic.merging import mergekit, methods
from galenic.merging.methods import MergerConfig

Policy = Literal["error", "base", "skip"]
# Fields that reading a recipe of mergekit's fills in.
_READ = ("layers", "outside", "notes")


class Model(Config):
    """One model that is merged."""

    model: str = Field(description="Folder, file, or id in the local cache.")
    name: str = Field("", description="What reports call it; by default its last part.")
    parameters: dict[str, Any] = Field({}, description="Coefficients of this model alone.")


class Recipe(Config):
    """One merge.

    A file with `method:` has the defaults of the papers; one with `merge_method:` is read as
    mergekit reads it.
    """

    method: str = Field(description="A module of galenic.merging.methods.")
    base_model: str | None = Field(None, description="The common ancestor.")
    models: list[Model] = Field(min_length=1, description="What is merged.")
    parameters: dict[str, Any] = Field({}, description="Coefficients of the method.")
    dtype: Literal["float64", "float32", "float16", "bfloat16"] | None = Field(
        None, description="Type of the output; by default that of the base, tensor by tensor."
    )
    missing: Policy = Field(
        "error",
        description="A tensor that a model lacks, or has beyond the base: refuse it; take the "
        "base's in its place; or leave the tensor as the base has it.",
    )
    shapes: Policy = Field("error", description="The same for a tensor of another shape.")
    dtypes: Literal["convert", "error"] = Field(
        "convert", description="Types that differ are converted and listed, or refused."
    )
    tokenizers: Literal["error", "base"] = Field(
        "error", description="Tokenizers that differ are refused, or the base's is taken."
    )
    exclude: list[str] = Field(
        [],
        description="Patterns of tensors that are not merged, such as classifier.*; the base's stay, "
        "and each model's are kept in heads/.",
    )
    tied: dict[str, str] = Field(
        {}, description="Tied tensors: {lm_head.weight: model.embed_tokens.weight}."
    )
    shard_gb: float = Field(5.0, gt=0, description="Most gigabytes of a file that is written.")
    verify: bool = Field(True, description="Compare digests of the shards where there are some.")
    seed: int = Field(0, ge=0, description="Of what a method draws.")
    layers: int | None = Field(None, ge=1, description="Layers that the base must have.")
    outside: float | None = Field(
        None,
        ge=0,
        le=1,
        description="Depth of tensors that are in no layer; by default 0 of embeddings, else 1.",
    )
    notes: list[str] = Field([], description="What reading the recipe left out or changed.")

    @model_validator(mode="after")
    def _known(self) -> Recipe:
        if self.method not in methods.names():
            hint = nearest(self.method, methods.names())
            raise ValueError(f"there is no method '{self.method}'. {hint}".strip())
        return self

    def keys(self) -> list[str]:
        """A name for every model, none of them twice."""
        short = [m.name or Path(m.model).name or m.model for m in self.models]
        long = [
            m.model if short.count(name) > 1 and not m.name else name
            for m, name in zip(self.models, short, strict=True)
        ]
        twice = {name for name in long if long.count(name) > 1}
        if twice:
            raise ConfigError(
                f"Two models are called '{min(twice)}'.",
                where="models",
                next_step="Give them a `name:` each.",
            )
        return long

    def config(self) -> MergerConfig:
        """The method's own config, of all models together.

        Raises:
            ConfigError: Naming each bad key and value.
        """
        return _parse(self.method, self.parameters, "parameters")

    def each(self) -> list[MergerConfig]:
        """The same of each model, with its own coefficients.

        Raises:
            ConfigError: Naming each bad key and value, and numbers that do not fit each other.
        """
        allowed = methods.method(self.method).Config.EACH
        made = []
        for key, model in zip(self.keys(), self.models, strict=True):
            where = f"models: {key}: parameters"
            for name in model.parameters:
                if name not in allowed:
                    raise ConfigError(
                        f"A model of '{self.method}' has no '{name}' of its own. "
                        f"{nearest(name, allowed)}".strip(),
                        where=where,
                        expected=", ".join(allowed) or "no parameters",
                    )
            config = _parse(self.method, {**self.parameters, **model.parameters}, where)
            try:
                config.check()
            except ValueError as error:
                raise ConfigError(f"{error}.".capitalize(), where=where) from None
            made.append(config)
        return made


def _parse(method: str, values: Mapping[str, Any], where: str) -> MergerConfig:
    kind = methods.method(method).Config
    try:
        made: MergerConfig = parse(kind, {**values, "method": method}, where)
    except ConfigError as error:
        fields = [name for name in kind.model_fields if name != "method"]
        raise ConfigError(
            error.found, where=error.where, expected=f"keys of {method}: {', '.join(fields)}"
        ) from None
    return made


def read(source: str | Path | Mapping[str, Any]) -> Recipe:
    """A recipe from a YAML file or a mapping, galenic's own or mergekit's.

    Raises:
        ConfigError: Naming each bad key and value, or what of mergekit is not supported.
    """
    if isinstance(source, Mapping):
        values, where = dict(source), "recipe"
    else:
        values, where = load_yaml(Path(source)), f"recipe file {Path(source).name}"
    if "merge_method" in values:
        values = mergekit.translate(values)
    try:
        recipe = parse(Recipe, _plain(values), where)
    except ConfigError as error:
        keys = [name for name in Recipe.model_fields if name not in _READ]
        raise ConfigError(
            error.found, where=error.where, expected=f"keys among {', '.join(keys)}"
        ) from None
    check(recipe)
    return recipe


def _plain(values: Mapping[str, Any]) -> dict[str, Any]:
    """`models: [./a, ./b]` is short for models without coefficients."""
    result = dict(values)
    if isinstance(result.get("models"), list):
        result["models"] = [{"model": m} if isinstance(m, str) else m for m in result["models"]]
    return result


def check(recipe: Recipe) -> None:
    """Check that the method has what it needs, and that every coefficient is one of its own.

    Raises:
        ConfigError: Naming what is missing, and each bad key and value.
    """
    declared = methods.capabilities(recipe.method)
    fewest, most = declared.models
    count = len(recipe.models)
    if declared.needs_base and recipe.base_model is None:
        raise ConfigError(
            f"'{recipe.method}' needs a base model.",
            where="base_model",
            expected="the network that every model was fine-tuned from",
        )
    if count < fewest or (most is not None and count > most):
        raise ConfigError(
            f"'{recipe.method}' got {count} models besides the base.",
            where="models",
            expected=f"{fewest}" if fewest == most else f"at least {fewest}",
            next_step=declared.gaps.get("more than two models", ""),
        )
    recipe.config()
    recipe.each()


def check_values(config: MergerConfig, values: Mapping[str, float], name: str) -> None:
    """Check resolved settings against each other.

    Raises:
        ConfigError: Naming the tensor at which they do not fit.
    """
    try:
        config.fits(values)
    except (ValueError, ValidationError) as error:
        raise ConfigError(f"At the tensor '{name}': {error}.", where="parameters") from None
