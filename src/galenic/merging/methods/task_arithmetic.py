"""Task arithmetic: the base plus a weighted sum of task vectors.

Source: Ilharco et al., "Editing models with task arithmetic", ICLR 2023, arXiv 2212.04089.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, ClassVar, Literal

from pydantic import Field

from galenic.merging.methods import Capabilities, End, MergerConfig, Resolved
from galenic.merging.settings import Number

if TYPE_CHECKING:
    from torch import Tensor

    from galenic.merging.jobs import Job

CAPABILITIES = Capabilities(
    paper="Ilharco et al., Editing models with task arithmetic, ICLR 2023, arXiv 2212.04089",
    needs_base=True,
    models=(1, None),
    symmetric=True,
    ends=(
        End("base", {"alpha": 0}),
        End("base", each=({"weight": 0},)),
        End(0, {"alpha": 1}, each=({"weight": 1}, {"weight": 0}), exact=False),
    ),
)


class Config(MergerConfig):
    """base + alpha * sum of weight * (model - base)."""

    SETTINGS: ClassVar[tuple[str, ...]] = ("weight", "alpha")
    EACH: ClassVar[tuple[str, ...]] = ("weight",)

    method: Literal["task_arithmetic"] = Field("task_arithmetic", description="This method.")
    weight: Number = Field(1.0, description="Factor of a task vector; negative to forget it.")
    alpha: Number = Field(0.4, description="Factor of the sum.")
    normalize: bool = Field(False, description="Divide by the sum of the weights.")


def combine(job: Job, each: Sequence[Resolved]) -> Iterator[Tensor]:
    """The base plus the sum, piece by piece."""
    from galenic.merging.family import Part, Plan, mix

    plan = Plan(alpha=each[0]["alpha"], normalize=each[0].config.normalize)
    return mix(job, [Part(part["weight"]) for part in each], plan)
