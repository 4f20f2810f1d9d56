"""WiSE: the straight line from the zero-shot model to the fine-tuned one.

Source: Wortsman et al., "Robust fine-tuning of zero-shot models", CVPR 2022, arXiv 2109.01903.
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
    paper="Wortsman et al., Robust fine-tuning of zero-shot models, CVPR 2022, arXiv 2109.01903",
    needs_base=True,
    models=(1, 1),
    symmetric=False,
    ends=(End("base", {"alpha": 0}), End(0, {"alpha": 1})),
    gaps={"several specialists": "add their task vectors: task_arithmetic"},
)


class Config(MergerConfig):
    """(1 - alpha) base + alpha tuned."""

    SETTINGS: ClassVar[tuple[str, ...]] = ("alpha",)

    method: Literal["wise"] = Field("wise", description="This method.")
    alpha: Share = Field(
        0.5,
        description="0 is the base, 1 the tuned model. A logit scale is stored as a logarithm and "
        "interpolated as such.",
    )


def combine(job: Job, each: Sequence[Resolved]) -> Iterator[Tensor]:
    """The line at `alpha`, piece by piece."""
    from galenic.merging.weighted import weighted

    (part,) = each
    alpha = part["alpha"]
    return weighted(job, (job.base, *job.parents), (1 - alpha, alpha))
