"""Linear: the weighted mean of the weights; with equal weights, a uniform model soup.

Source: Wortsman et al., "Model soups: averaging weights of multiple fine-tuned models improves
accuracy without increasing inference time", ICML 2022, arXiv 2203.05482.
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
    paper="Wortsman et al., Model soups, ICML 2022, arXiv 2203.05482",
    needs_base=False,
    models=(1, None),
    symmetric=True,
    ends=(
        End(0, each=({"weight": 1}, {"weight": 0})),
        End(1, each=({"weight": 0}, {"weight": 0.3}, {"weight": 0})),
    ),
    gaps={"greedy soup": "needs validation rows: `galenic merge --greedy`, with runs for models"},
)


class Config(MergerConfig):
    """The weighted mean of models."""

    SETTINGS: ClassVar[tuple[str, ...]] = ("weight",)
    EACH: ClassVar[tuple[str, ...]] = ("weight",)

    method: Literal["linear"] = Field("linear", description="This method.")
    weight: Number = Field(1.0, description="Factor of a model.")
    normalize: bool = Field(True, description="Divide by the sum of the weights.")


def combine(job: Job, each: Sequence[Resolved]) -> Iterator[Tensor]:
    """The weighted mean, piece by piece.

    Raises:
        ValueError: If the weights sum to zero and are to be normalised.
    """
    from galenic.merging.ops import normalized
    from galenic.merging.weighted import weighted

    factors = [part["weight"] for part in each]
    if each[0].config.normalize:
        factors = normalized(factors)
    return weighted(job, job.parents, factors)
