"""Settings of PETL-AST, as peft stores them in `adapter_config.json`."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from peft import PeftConfig

from galenic.tuners.petl_ast import check

VARIANTS = ("conformer", "pfeiffer", "houlsby", "prompt", "deep-prompt", "prefix")
CHOICES = {
    "variant": VARIANTS,
    "sites": ("auto", "ffn", "mhsa", "both"),
    "placement": ("parallel", "sequential"),
    "norm": ("batch", "group"),
    "prompt_output": ("keep", "strip"),
}


@dataclass
class PETLASTConfig(PeftConfig):
    """Adapters, prompts and prefixes of PETL-AST.

    Source: Cappellazzo et al., "Parameter-Efficient Transfer Learning of Audio Spectrogram
    Transformers", IEEE MLSP 2024, arXiv 2312.03694.

    Args:
        variant: `conformer`, `pfeiffer`, `houlsby`, `prompt`, `deep-prompt` or `prefix`.
        sites: Sub-layers with an adapter: `ffn`, `mhsa`, `both`; `auto` is the variant's own.
        placement: `parallel` (on the sub-layer's input) or `sequential` (on its output).
        residual: Whether the adapter's input is added; None: in sequence only.
        reduction: Width over bottleneck; None: 64, and never below 8 channels.
        bottleneck: Channels of the waist; goes before `reduction`.
        kernel_size: Tokens that the depth-wise convolution spans.
        norm: `batch` or `group`, in the conformer.
        dropout: Behind the conformer.
        activation: Of the bottleneck.
        zero_init_up: Start silent.
        prompts: Number of prompts (25), or of keys and values together (24).
        drop_distillation: Prompts replace the distillation token.
        prompt_output: `keep` prompts among the output tokens, or `strip` them.
        train_layernorm: Train the norms that feed adapted sub-layers.
        train_final_norm: Train the norm behind the last block.
        encoder_eval: No dropout in frozen parts while training, as the authors do.
        last_blocks: Only the last so many blocks.
        modules_to_save: Modules trained and saved whole, such as a head.
        placed: What is where; filled when the adapter is made, so that the saved file says it.
        norms: Norms that are trained; filled likewise.

    Raises:
        ValueError: For a choice that is none, or a size that fits no network.
    """

    variant: str = field(default="conformer")
    sites: str = field(default="auto")
    placement: str = field(default="parallel")
    residual: bool | None = field(default=None)
    reduction: float | None = field(default=None)
    bottleneck: int | None = field(default=None)
    kernel_size: int = field(default=31)
    norm: str = field(default="batch")
    dropout: float = field(default=0.0)
    activation: str = field(default="gelu")
    zero_init_up: bool = field(default=True)
    prompts: int | None = field(default=None)
    drop_distillation: bool = field(default=True)
    prompt_output: str = field(default="keep")
    train_layernorm: bool = field(default=True)
    train_final_norm: bool = field(default=True)
    encoder_eval: bool = field(default=True)
    last_blocks: int | None = field(default=None)
    modules_to_save: list[str] | None = field(default=None)
    target_modules: str | None = field(default="auto")
    placed: dict[str, Any] | None = field(default=None)
    norms: list[str] | None = field(default=None)

    def __post_init__(self) -> None:
        super().__post_init__()
        # A plain string: peft's enum of methods is closed.
        self.peft_type = "PETL_AST"
        self.target_modules = "auto"
        for key, known in CHOICES.items():
            if getattr(self, key) not in known:
                raise ValueError(f"{key} is {getattr(self, key)!r}; expected {', '.join(known)}")
        check(self.variant, self.kernel_size, self.prompts)

    @property
    def adds_residual(self) -> bool:
        """Whether the adapter's input is added to what it gives."""
        return self.placement == "sequential" if self.residual is None else self.residual
