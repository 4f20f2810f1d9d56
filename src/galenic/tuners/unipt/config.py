"""Settings of UniPT, as peft stores them in `adapter_config.json`."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from peft import PeftConfig

FORMS = ("auto", "tokens", "grid", "pooled")


@dataclass
class UniPTConfig(PeftConfig):
    """Universal Parallel Tuning (UniPT): a small network that reads all states of a frozen one.

    Source: Diao et al., "UniPT: Universal Parallel Tuning for Transfer Learning with Efficient
    Parameter and Memory", CVPR 2024, arXiv 2308.14316.

    Args:
        reduction_factor: The side network is `out_dim // reduction_factor` wide.
        layers: `auto` (all states of tokens; the last of each size of maps), `all`, `stages`, or
            indices: 0 before the first block, i after block i. The last one is the anchor.
        form: `tokens`, `grid` (maps), `pooled` (a residual to the pooled feature of the frozen
            network), or `auto`: tokens or grid, as the network has it.
        out_dim: Channels of the new features; None keeps the network's.
        proj: `linear`, one layer before the sum with the anchor, or `mlp`, two.
        eps: Smallest sum that a row is divided by.
        zero_init_up: Start the last layer at zero: in `pooled` form the frozen network's feature.
        chunk_size: Queries at a time; None takes as many as memory is small for.
        pool: How `pooled` finds the frozen feature: `cls`, `mean` or `max`.
        prefix_tokens: Tokens that `pool` leaves out at the front, where there is no mask.
        token: Which token of each layer `pooled` adds: the `first` or the `last` valid one.
        cache_features: Whether states may be computed ahead and kept.
        read: What the network's states look like; filled by a probe when the adapter is made.
    """

    reduction_factor: int = field(default=2)
    layers: str | list[int] = field(default="auto")
    form: str = field(default="auto")
    out_dim: int | None = field(default=None)
    proj: str = field(default="linear")
    eps: float = field(default=1e-6)
    zero_init_up: bool = field(default=False)
    chunk_size: int | None = field(default=None)
    pool: str = field(default="mean")
    prefix_tokens: int = field(default=0)
    token: str = field(default="first")
    cache_features: bool = field(default=True)
    read: dict[str, Any] | None = field(default=None)

    def __post_init__(self) -> None:
        super().__post_init__()
        # A plain string: peft's enum of methods is closed.
        self.peft_type = "UNIPT"
        _one_of("form", self.form, FORMS)
        _one_of("proj", self.proj, ("linear", "mlp"))
        _one_of("pool", self.pool, ("cls", "mean", "max"))
        _one_of("token", self.token, ("first", "last"))
        if isinstance(self.layers, str):
            _one_of("layers", self.layers, ("auto", "all", "stages"))
        else:
            self.layers = [int(index) for index in self.layers]
        if self.reduction_factor < 1:
            raise ValueError(f"reduction_factor is {self.reduction_factor}; expected 1 or more")
        if not self.eps > 0:
            raise ValueError(f"eps is {self.eps}; expected more than 0")
        if self.chunk_size is not None and self.chunk_size < 1:
            raise ValueError(f"chunk_size is {self.chunk_size}; expected 1 or more")


def _one_of(name: str, value: str, known: tuple[str, ...]) -> None:
    if value not in known:
        raise ValueError(f"{name} is {value!r}; expected {' or '.join(repr(k) for k in known)}")
