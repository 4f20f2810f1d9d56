"""DARE: drop entries of a task vector at random and rescale the rest.

Source: Yu et al., "Language Models are Super Mario: Absorbing Abilities from Homologous Models as
a Free Lunch", ICML 2024, arXiv 2311.03099.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, ClassVar, Literal

from pydantic import Field

from galenic.merging.methods import Capabilities, End, MergerConfig, Resolved
from galenic.merging.settings import Number, Share

if TYPE_CHECKING:
    from torch import Tensor

    from galenic.merging.jobs import Job

CAPABILITIES = Capabilities(
    paper="Yu et al., Language Models are Super Mario (DARE), ICML 2024, arXiv 2311.03099",
    needs_base=True,
    models=(1, None),
    symmetric=True,
    ends=(
        End("base", {"alpha": 0}),
        End(0, {"alpha": 1, "density": 1}, each=({"weight": 1}, {"weight": 0}), exact=False),
    ),
    seeded=True,
)


class Config(MergerConfig):
    """Random masks, rescaled so that each task vector keeps its expectation."""

    SETTINGS: ClassVar[tuple[str, ...]] = ("weight", "density", "alpha")
    EACH: ClassVar[tuple[str, ...]] = ("weight", "density")

    method: Literal["dare"] = Field("dare", description="This method.")
    weight: Number = Field(1.0, description="Factor of a task vector.")
    density: Share = Field(0.1, description="Probability that an entry is kept: 1 - p.")
    alpha: Number = Field(0.4, description="Factor of the sum.")
    consensus: Literal["none", "sum"] = Field(
        "none", description="none as DARE with task arithmetic, sum as DARE with TIES."
    )
    normalize: bool = Field(False, description="Divide by the weights that took part.")
    rescale: Literal["expected", "none", "l1", "l2"] = Field(
        "expected",
        description="Divide by the density, as the paper; or scale to the norm before (l1 is "
        "mergekit's); or not at all.",
    )


def combine(job: Job, each: Sequence[Resolved]) -> Iterator[Tensor]:
    """The base plus the sum of what was drawn, piece by piece."""
    from galenic.merging.family import Part, Plan, mix

    config = each[0].config
    plan = Plan(
        sparsify="random",
        rescale=config.rescale,
        consensus=config.consensus == "sum",
        normalize=config.normalize,
        alpha=each[0]["alpha"],
        seed=each[0].seed,
    )
    return mix(job, [Part(p["weight"], p["density"]) for p in each], plan)
