"""Settings of DVPT, as peft stores them in `adapter_config.json`."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from peft import PeftConfig

CHOICES = {
    "variant": ("auto", "paper", "repo", "repo-vit"),
    "pool": ("prompts+cls", "cls"),
}


@dataclass
class DVPTConfig(PeftConfig):
    """Dynamic visual prompt tuning.

    Source: He et al., "DVPT: Dynamic Visual Prompt Tuning of Large Pre-trained Models for
    Medical Image Analysis", 2023, arXiv 2307.09787.

    Args:
        variant: `paper` (attention of prompts inside the bottleneck), `repo` (attention over
            the tokens, added to the first ones), `repo-vit` (no attention), or `auto`.
        num_prompts: n; None: 50, and 10 for networks in stages.
        latent_dim: r; None: 20, and 10 for networks in stages.
        share_every: Neighbouring blocks of one width that share a bottleneck; None: 3, or 2.
        pool: `prompts+cls` puts the mean of class token and prompts in the place of the class
            token; `cls` leaves it. Prompts are taken out of the output either way.
        gate_init: Start of every gate.
        gate_prompts: Gate what `repo` adds to the first tokens.
        attn_scale: `rsqrt`, or a number.
        last_blocks: Only the last so many blocks.
        modules_to_save: Modules trained and saved whole, such as a head.
        placed: What is where; filled when the adapter is made, so that the saved file says it.

    Raises:
        ValueError: For a choice that is none, or a size below 1.
    """

    variant: str = field(default="auto")
    num_prompts: int | None = field(default=None)
    latent_dim: int | None = field(default=None)
    share_every: int | None = field(default=None)
    pool: str = field(default="prompts+cls")
    gate_init: float = field(default=0.0)
    gate_prompts: bool = field(default=True)
    attn_scale: str | float = field(default="rsqrt")
    last_blocks: int | None = field(default=None)
    modules_to_save: list[str] | None = field(default=None)
    target_modules: str | None = field(default="auto")
    placed: dict[str, Any] | None = field(default=None)

    def __post_init__(self) -> None:
        super().__post_init__()
        # A plain string: peft's enum of methods is closed.
        self.peft_type = "DVPT"
        self.target_modules = "auto"
        for key, known in CHOICES.items():
            if getattr(self, key) not in known:
                raise ValueError(f"{key} is {getattr(self, key)!r}; expected {', '.join(known)}")
        for key in ("num_prompts", "latent_dim", "share_every"):
            value = getattr(self, key)
            if value is not None and value < 1:
                raise ValueError(f"{key} is {value}; expected 1 or more")
        if isinstance(self.attn_scale, str) and self.attn_scale != "rsqrt":
            raise ValueError(f"attn_scale is {self.attn_scale!r}; expected 'rsqrt' or a number")
