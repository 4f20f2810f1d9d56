"""Settings of ladder side-tuning, as peft stores them in `adapter_config.json`."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from peft import PeftConfig


@dataclass
class LSTConfig(PeftConfig):
    """Ladder side-tuning (LST).

    Source: Sung, Cho, Bansal, "LST: Ladder Side-Tuning for Parameter and Memory Efficient
    Transfer Learning", NeurIPS 2022, arXiv 2206.06522.

    Args:
        reduction_factor: The side network is the backbone's width divided by this wide.
        layers: `all`, or indices of states: 0 before the first block, i after block i. One side
            block a state but the first; leaving some out is the paper's layer dropping.
        heads: Of each side block; None takes the backbone's number, or the next lower divisor.
        ratio: Width of the side blocks' feed-forward layer, in widths of the side network.
        temperature: Of the gates.
        dropout: In the side blocks.
        cache_features: Whether states may be computed ahead and kept.
        read: What the network's states look like; filled by a probe when the adapter is made.
    """

    reduction_factor: int = field(default=8)
    layers: str | list[int] = field(default="all")
    heads: int | None = field(default=None)
    ratio: float = field(default=4.0)
    temperature: float = field(default=0.1)
    dropout: float = field(default=0.0)
    cache_features: bool = field(default=True)
    read: dict[str, Any] | None = field(default=None)

    def __post_init__(self) -> None:
        super().__post_init__()
        # A plain string: peft's enum of methods is closed.
        self.peft_type = "LST"
        if isinstance(self.layers, str):
            if self.layers != "all":
                raise ValueError(f"layers is {self.layers!r}; expected 'all' or indices")
        else:
            self.layers = [int(index) for index in self.layers]
        if self.reduction_factor < 1:
            raise ValueError(f"reduction_factor is {self.reduction_factor}; expected 1 or more")
        for name in ("ratio", "temperature"):
            if not getattr(self, name) > 0:
                raise ValueError(f"{name} is {getattr(self, name)}; expected more than 0")
        if not 0 <= self.dropout < 1:
            raise ValueError(f"dropout is {self.dropout}; expected 0 to below 1")
