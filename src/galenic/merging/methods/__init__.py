"""Merge methods: one module each, with `Config`, `CAPABILITIES` and `combine`.

`combine(job, each)` yields the merged tensor as flat pieces in float32 (float64 for float64).
`each` has the config of every parent, with its settings resolved at this tensor. Reading
`CAPABILITIES` does not import torch.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from types import ModuleType
from typing import TYPE_CHECKING, Any, ClassVar

from galenic.core.config import Config as BaseConfig
from galenic.core.registry import load as load_module
from galenic.core.registry import modules

if TYPE_CHECKING:
    from torch import Tensor

    from galenic.merging.jobs import Job


class MergerConfig(BaseConfig):
    """Base of every method's config.

    Attributes:
        SETTINGS: Fields that may be a schedule over the depth or rules by name.
        EACH: Fields that a model of the recipe may have of its own.
    """

    SETTINGS: ClassVar[tuple[str, ...]] = ()
    EACH: ClassVar[tuple[str, ...]] = ()

    def fits(self, values: Mapping[str, float]) -> None:
        """Check settings that were resolved at a tensor against each other.

        Raises:
            ValueError: Saying what does not fit.
        """

    def check(self) -> None:
        """The same where all are plain numbers; what depends on the tensor is checked there.

        Raises:
            ValueError: Saying what does not fit.
        """
        values = {key: getattr(self, key) for key in self.SETTINGS}
        if all(isinstance(value, int | float) for value in values.values()):
            self.fits(values)


@dataclass(frozen=True)
class End:
    """Coefficients at which a method returns one of its parents.

    Attributes:
        returns: `base`, or the place of the model.
        parameters: Of the method.
        each: Of each model in turn; the last holds for all that follow.
        exact: Whether bit for bit, or within rounding.
    """

    returns: str | int
    parameters: Mapping[str, Any] = field(default_factory=dict)
    each: tuple[Mapping[str, Any], ...] = ({},)
    exact: bool = True


@dataclass(frozen=True)
class Capabilities:
    """What a merge method can do; the docs and the contract tests read the same declaration.

    Attributes:
        paper: Authors, title, year and identifier.
        needs_base: Whether there must be a common ancestor.
        models: Fewest and most models besides the base; None for any number.
        symmetric: Whether the order of the models is irrelevant.
        ends: Where it returns its parents.
        seeded: Whether it draws.
        gaps: What it cannot do, and why.
    """

    paper: str
    needs_base: bool
    models: tuple[int, int | None]
    symmetric: bool
    ends: tuple[End, ...]
    seeded: bool = False
    gaps: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Resolved:
    """The config of one parent at one tensor.

    Attributes:
        config: As the recipe has it.
        values: Its settings at this tensor.
        seed: Of the recipe.
        found: What `prepare` of the method found, if it has one.
    """

    config: Any
    values: Mapping[str, float]
    seed: int = 0
    found: Any = None

    def __getitem__(self, key: str) -> float:
        return self.values[key]


def names() -> list[str]:
    """All methods."""
    return modules(__name__)


def method(name: str) -> ModuleType:
    """The module of a method.

    Raises:
        ConfigError: If there is none, naming the nearest.
    """
    return load_module(__name__, name)


def capabilities(name: str) -> Capabilities:
    """What a method declares."""
    declared: Capabilities = method(name).CAPABILITIES
    return declared


def combine(name: str, job: Job, each: Sequence[Resolved]) -> Iterator[Tensor]:
    """The merged tensor, as flat pieces."""
    pieces: Iterator[Tensor] = method(name).combine(job, each)
    return pieces
