"""Settings of SaRA, as peft stores them in `adapter_config.json`."""

from __future__ import annotations

from dataclasses import dataclass, field

from peft import PeftConfig

PAPER = 2e-3
_WORDS = {
    "scope": ("global", "per_tensor"),
    "select": ("smallest", "largest", "random"),
    "rank_sample": ("one", "all"),
    "penalise": ("values", "delta"),
}


@dataclass
class SaRAConfig(PeftConfig):
    """Progressive sparse low-rank adaptation (SaRA).

    Source: Hu et al., "SaRA: High-Efficient Diffusion Model Fine-tuning with Progressive Sparse
    Low-Rank Adaptation", ICLR 2025, arXiv 2409.06633.

    Args:
        threshold: Weights of smaller magnitude train; 2e-3 where `proportion` is not given.
        proportion: Share of the weights that trains, instead of a threshold.
        scope: Whether the proportion is of all weights together (`global`) or `per_tensor`.
        select: `smallest` (the paper), `largest` or `random`; the last two need a proportion.
        target: `all` outside heads, or a pattern that the full name of a parameter must match.
        last_blocks: Only the last so many blocks and what follows them.
        lambda_rank: Weight of the nuclear norm.
        rank_sample: `one` random matrix a step (as the authors' code) or `all`.
        min_rank_dim: Matrices with both sides above this have a nuclear norm.
        penalise: The norm of the trained `values` (the paper), or of their change (`delta`).
        seed: Of `select="random"`.
        modules_to_save: Modules trained and saved whole, such as a head.
        placed: Number of trained values by full name of the parameter; filled when the adapter
            is made.
        mask: Fingerprint of which values these are; filled then too. The mask itself is not
            saved: the base's weights give it again.
    """

    threshold: float | None = field(default=None)
    proportion: float | None = field(default=None)
    scope: str = field(default="global")
    select: str = field(default="smallest")
    target: str = field(default="all")
    last_blocks: int | None = field(default=None)
    lambda_rank: float = field(default=5e-4)
    rank_sample: str = field(default="one")
    min_rank_dim: int = field(default=64)
    penalise: str = field(default="values")
    seed: int = field(default=0)
    modules_to_save: list[str] | None = field(default=None)
    placed: dict[str, int] | None = field(default=None)
    mask: str | None = field(default=None)

    def __post_init__(self) -> None:
        super().__post_init__()
        # A plain string: peft's enum of methods is closed.
        self.peft_type = "SARA"
        if self.threshold is not None and self.proportion is not None:
            raise ValueError("give threshold or proportion, not both")
        if self.threshold is None and self.proportion is None:
            self.threshold = PAPER
        if self.threshold is not None and not self.threshold > 0:
            raise ValueError(f"threshold is {self.threshold}; expected more than 0")
        if self.proportion is not None and not 0 < self.proportion <= 1:
            raise ValueError(f"proportion is {self.proportion}; expected more than 0, 1 at most")
        for key, words in _WORDS.items():
            if getattr(self, key) not in words:
                found = getattr(self, key)
                raise ValueError(f"{key} is {found!r}; expected one of {', '.join(words)}")
        if self.select != "smallest" and self.proportion is None:
            raise ValueError(f"select={self.select!r} needs a proportion")
        if self.lambda_rank < 0:
            raise ValueError(f"lambda_rank is {self.lambda_rank}; expected 0 or more")
