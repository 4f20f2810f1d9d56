"""Model Breadcrumbs: sum task vectors without their smallest and largest entries.

Source: Davari, Belilovsky, "Model Breadcrumbs: Scaling Multi-Task Model Merging with Sparse
Masks", ECCV 2024, arXiv 2312.06795.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, ClassVar, Literal

from pydantic import Field

from galenic.merging.methods import Capabilities, End, MergerConfig, Resolved
from galenic.merging.settings import Number, Share

if TYPE_CHECKING:
    from torch import Tensor

    from galenic.merging.jobs import Job

CAPABILITIES = Capabilities(
    paper="Davari, Belilovsky, Model Breadcrumbs, ECCV 2024, arXiv 2312.06795",
    needs_base=True,
    models=(1, None),
    symmetric=True,
    ends=(
        End("base", {"alpha": 0}),
        End(
            0,
            {"alpha": 1, "density": 1, "gamma": 0},
            each=({"weight": 1}, {"weight": 0}),
            exact=False,
        ),
    ),
)


class Config(MergerConfig):
    """The middle of every task vector's magnitudes, summed."""

    SETTINGS: ClassVar[tuple[str, ...]] = ("weight", "density", "gamma", "alpha")
    EACH: ClassVar[tuple[str, ...]] = ("weight", "density", "gamma")

    method: Literal["breadcrumbs"] = Field("breadcrumbs", description="This method.")
    weight: Number = Field(1.0, description="Factor of a task vector.")
    density: Share = Field(
        0.15,
        description="Share of the entries that is kept; what lies below it, 1 - density - gamma, "
        "is the paper's beta.",
    )
    gamma: Share = Field(0.006, description="Share of the largest entries that is dropped.")
    alpha: Number = Field(0.2, description="Factor of the sum.")
    granularity: Literal["tensor", "row"] = Field(
        "tensor",
        description="Rank over each tensor, as the paper, or over each row, as its code.",
    )
    consensus: Literal["none", "sum"] = Field(
        "none", description="sum elects signs as TIES, which the paper does not."
    )
    normalize: bool = Field(False, description="Divide by the weights that took part.")
    rescale: Literal["none", "l1", "l2"] = Field(
        "none", description="Scale what was kept back to the norm before."
    )

    def fits(self, values: Mapping[str, float]) -> None:
        """Check that the band lies inside.

        Raises:
            ValueError: If density and gamma are more than everything.
        """
        density, gamma = values["density"], values["gamma"]
        if density + gamma > 1 + 1e-9:
            raise ValueError(f"density {density:g} and gamma {gamma:g} sum to more than 1")


def combine(job: Job, each: Sequence[Resolved]) -> Iterator[Tensor]:
    """The base plus the sum of the bands, piece by piece."""
    from galenic.merging.family import Part, Plan, mix

    config = each[0].config
    plan = Plan(
        sparsify="band",
        granularity=config.granularity,
        rescale=config.rescale,
        consensus=config.consensus == "sum",
        normalize=config.normalize,
        alpha=each[0]["alpha"],
    )
    return mix(job, [Part(p["weight"], p["density"], p["gamma"]) for p in each], plan)
