"""Composable sparse fine-tuning (LT-SFT): the entries that a first training moved most.

Source: Ansell, Ponti, Korhonen, Vulić, "Composable Sparse Fine-Tuning for Cross-Lingual
Transfer", ACL 2022, arXiv 2110.07560.

A dense training, a choice of the k entries that changed most, a rewind to the start, and a
training of these entries alone. What comes out is a sparse difference
(:class:`galenic.models.delta.Delta`), which adds up with those of other skills. For a training
loop of one's own there is :class:`LotteryTicket`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from pydantic import Field

from galenic.core.config import Config as BaseConfig
from galenic.tuners import Capabilities, Hooks
from galenic.tuners._lazy import lazily
from galenic.tuners._phase import Phase

if TYPE_CHECKING:
    from pathlib import Path

    from galenic.models.backbone import Backbone
    from galenic.tuners.composable_sft.ticket import LotteryTicket

__all__ = ["CAPABILITIES", "Config", "LotteryTicket", "Phase", "attach", "hooks", "read", "write"]

CAPABILITIES = Capabilities(
    paper="Ansell et al., LT-SFT, ACL 2022, arXiv 2110.07560",
    mergeable=False,
    exact_unmerge=False,
    identity_at_start=True,
    enters=("any",),
    gaps={
        "merge": "the values stand in the backbone's own tensors; Delta.apply and revert, exact "
        "to the bit, are its merge and unmerge",
        "memory": "the first phase is dense: it costs what full fine-tuning costs",
        "tied tensors": "one that also serves in a frozen place or a head stays frozen",
        "min_steps": "a phase has epochs or steps at most, not at least",
        "linear decay": "the engine's rate falls along a cosine; the paper's along a line",
    },
)


class Config(BaseConfig):
    """Train the entries that a dense training would move most."""

    method: Literal["composable_sft"] = Field("composable_sft", description="This tuner.")
    k: int | None = Field(None, ge=1, description="Entries that train; None: by proportion.")
    proportion: float = Field(
        0.01, gt=0, le=1, description="Share of the maskable entries, where k is not given."
    )
    iterations: int = Field(
        1, ge=1, description="Rounds of both phases; each frees its part of the k entries."
    )
    mask: Literal["lottery", "random", "magnitude"] = Field(
        "lottery",
        description="lottery: by change. random, or the largest weights: without a dense phase.",
    )
    maskable: str = Field(
        "encoder", description="encoder (all outside heads), or a pattern of full names."
    )
    freeze: list[str] = Field(
        ["norm", "lm_head"],
        description="Never trained: norm (every normalisation layer), or names of modules.",
    )
    l1_dense: float = Field(0.0, ge=0, description="Pull towards the start in the dense phase.")
    l1_sparse: float = Field(0.0, ge=0, description="Pull towards the start in the sparse phase.")
    phase1: Phase = Field(Phase(epochs=3), description="Of the dense phase.")
    phase2: Phase = Field(Phase(epochs=10), description="Of the sparse phase.")
    on_top_of: str | None = Field(
        None, description="File of a delta that is applied first, without its head."
    )


def attach(backbone: Backbone, config: Config) -> None:
    """Let the maskable tensors of `backbone.network` train; the stages do the rest.

    Raises:
        BackboneError: If no tensor is maskable.
        ConfigError: If k is more than there is.
        WeightsError: If the delta of `on_top_of` belongs to another base.
    """
    from galenic.tuners.composable_sft.ticket import LotteryTicket, ticket_of

    if ticket_of(backbone.network) is not None:
        return
    LotteryTicket(
        backbone.network,
        k=config.k,
        proportion=config.proportion,
        maskable=config.maskable,
        freeze=config.freeze,
        mask=config.mask,
        on_top_of=config.on_top_of,
    )


def hooks(backbone: Backbone, config: Config) -> Hooks:
    """A dense and a sparse stage a round, and the pull towards the start."""
    from galenic.tuners.composable_sft.ticket import require_ticket

    return require_ticket(backbone.network).hooks(config)


def write(backbone: Backbone, path: Path, metadata: dict[str, str]) -> int:
    """Write the difference from the start as a delta; gives the number of its tensors."""
    from galenic.tuners.composable_sft.ticket import require_ticket

    delta = require_ticket(backbone.network).delta(backbone.fingerprint)
    delta.save(path, {"method": metadata["method"]})
    return len(delta.entries)


def read(backbone: Backbone, path: Path) -> None:
    """Put the difference that `write` wrote on the start.

    Raises:
        WeightsError: If a tensor is unknown or of another shape; names it.
    """
    from galenic.models.delta import Delta
    from galenic.tuners.composable_sft.ticket import require_ticket

    require_ticket(backbone.network).put(Delta.load(path))


__getattr__ = lazily(__name__, LotteryTicket="ticket")
