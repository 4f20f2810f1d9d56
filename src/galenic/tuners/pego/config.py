"""Settings of PEGO, as peft stores them in `adapter_config.json`."""

from __future__ import annotations

from dataclasses import dataclass, field

from peft import PeftConfig

NORMS = ("l1_sum", "l1_mean", "fro2")


@dataclass
class PEGOConfig(PeftConfig):
    """A group of low-rank updates a projection, with orthogonality terms.

    Source: Hu et al., "Learn to Preserve and Diversify", ECCV 2024, arXiv 2407.15085.

    Args:
        rank: Of each update.
        groups: Updates a projection.
        target_modules: `qv`, a list of names, or a pattern that a full name must match.
        weight: Lambda, of the orthogonality terms.
        norm: `l1_sum` (the paper), `l1_mean` or `fro2`.
        preserve: Whether updates are kept apart from the weight.
        diversify: Whether the updates of a group are kept apart.
        modules_to_save: Modules trained and saved whole, such as a head.
        last_blocks: Only the last so many blocks.
        placed: Rows of each layer's output that carry a group, by full name; filled when the
            adapter is made, so that the saved file names them.
    """

    rank: int = field(default=4)
    groups: int = field(default=4)
    target_modules: list[str] | str | None = field(default="qv")
    weight: float = field(default=1e-3)
    norm: str = field(default="l1_sum")
    preserve: bool = field(default=True)
    diversify: bool = field(default=True)
    modules_to_save: list[str] | None = field(default=None)
    last_blocks: int | None = field(default=None)
    placed: dict[str, list[list[int]]] | None = field(default=None)

    def __post_init__(self) -> None:
        super().__post_init__()
        # A plain string: peft's enum of methods is closed.
        self.peft_type = "PEGO"
        if self.target_modules is None:
            self.target_modules = "qv"
        if isinstance(self.target_modules, (set, tuple)):
            self.target_modules = sorted(self.target_modules)
        if self.norm not in NORMS:
            raise ValueError(f"norm is {self.norm!r}; expected one of {', '.join(NORMS)}")
        if self.rank < 1 or self.groups < 1:
            raise ValueError(f"rank is {self.rank} and groups {self.groups}; expected 1 or more")
        if self.weight < 0:
            raise ValueError(f"weight is {self.weight}; expected 0 or more")
