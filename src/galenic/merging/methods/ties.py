"""TIES: trim task vectors, elect a sign for every entry, average those that agree.

Source: Yadav et al., "TIES-Merging: Resolving Interference When Merging Models", NeurIPS 2023,
arXiv 2306.01708.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from pydantic import Field, model_validator

from galenic.merging.methods import Capabilities, End, MergerConfig, Resolved
from galenic.merging.settings import Number, Share

if TYPE_CHECKING:
    from torch import Tensor

    from galenic.merging.jobs import Job

CAPABILITIES = Capabilities(
    paper="Yadav et al., TIES-Merging, NeurIPS 2023, arXiv 2306.01708",
    needs_base=True,
    models=(1, None),
    symmetric=True,
    ends=(
        End("base", {"alpha": 0}),
        End(0, {"alpha": 1, "density": 1}, each=({"weight": 1}, {"weight": 0}), exact=False),
    ),
)


class Config(MergerConfig):
    """Trim, elect, and the disjoint mean."""

    SETTINGS: ClassVar[tuple[str, ...]] = ("weight", "density", "alpha")
    EACH: ClassVar[tuple[str, ...]] = ("weight", "density")

    method: Literal["ties"] = Field("ties", description="This method.")
    weight: Number = Field(1.0, description="Factor of a task vector.")
    density: Share = Field(0.2, description="Share of the entries that trimming keeps.")
    alpha: Number = Field(1.0, description="Factor of what is added; lambda in the paper.")
    normalize: bool = Field(True, description="Mean of those that agree, or their sum.")
    granularity: Literal["model", "tensor", "row"] = Field(
        "model",
        description="Rank over the whole task vector, as the paper; over each tensor, as "
        "mergekit; or over each row.",
    )
    rescale: Literal["none", "l1", "l2"] = Field(
        "none", description="Scale what was kept back to the norm before."
    )

    @model_validator(mode="after")
    def _one_density(self) -> Config:
        if self.granularity == "model" and not isinstance(self.density, float | int):
            raise ValueError(
                "a density over the depth has no meaning where the whole model is ranked; "
                "granularity: tensor"
            )
        return self


def prepare(jobs: Sequence[Job], configs: dict[str, Config]) -> Any:
    """The cuts over whole task vectors; None where each tensor has its own."""
    from galenic.merging.family import model_cuts

    if next(iter(configs.values())).granularity != "model":
        return None
    densities = {key: float(config.density) for key, config in configs.items()}  # type: ignore[arg-type]
    return model_cuts(jobs, {key: d for key, d in densities.items() if d < 1})


def combine(job: Job, each: Sequence[Resolved]) -> Iterator[Tensor]:
    """The base plus the disjoint mean, piece by piece."""
    from galenic.merging.family import Part, Plan, mix

    config = each[0].config
    plan = Plan(
        sparsify="band",
        granularity=config.granularity,
        rescale=config.rescale,
        consensus=True,
        normalize=config.normalize,
        alpha=each[0]["alpha"],
    )
    return mix(job, [Part(p["weight"], p["density"]) for p in each], plan, each[0].found)
