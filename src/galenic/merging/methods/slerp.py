"""SLERP: the arc between two models, tensor by tensor.

Source: Lu, Luu, Buehler, "Fine-tuning large language models for domain adaptation", npj
Computational Materials 2025, arXiv 2409.03444; the formula is Shoemake's, SIGGRAPH 1985.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, ClassVar, Literal

from pydantic import Field

from galenic.merging.methods import Capabilities, End, MergerConfig, Resolved
from galenic.merging.settings import Share

if TYPE_CHECKING:
    from torch import Tensor

    from galenic.merging.jobs import Job

CAPABILITIES = Capabilities(
    paper="Lu et al., Fine-tuning LLMs for domain adaptation, 2025, arXiv 2409.03444",
    needs_base=True,
    models=(1, 1),
    symmetric=False,
    ends=(End("base", {"t": 0}), End(0, {"t": 1})),
    gaps={"more than two models": "an arc has two ends; use linear"},
)


class Config(MergerConfig):
    """The arc between the base and one model."""

    SETTINGS: ClassVar[tuple[str, ...]] = ("t",)

    method: Literal["slerp"] = Field("slerp", description="This method.")
    t: Share = Field(0.5, description="Place on the arc: 0 is the base, 1 the other model.")
    norm: Literal["geometric", "keep"] = Field(
        "geometric",
        description="Norm of the result: the parents' geometric mean, as the paper; or whatever "
        "the sum of the parents as they are has, as mergekit.",
    )
    lerp_threshold: float = Field(
        0.9995, ge=0, le=1, description="From this |cosine| on the arc is a straight line."
    )


def combine(job: Job, each: Sequence[Resolved]) -> Iterator[Tensor]:
    """The arc at `t`, piece by piece."""
    from galenic.merging.ops import slerp_factors
    from galenic.merging.weighted import inner, weighted

    (part,) = each
    (other,) = job.parents
    t = part["t"]
    # At the ends nothing needs to be known of the angle.
    figures = (0.0, 0.0, 0.0) if t in (0, 1) else inner(job, job.base, other)
    factors = slerp_factors(t, *figures, part.config.norm, part.config.lerp_threshold)
    return weighted(job, (job.base, other), factors)
