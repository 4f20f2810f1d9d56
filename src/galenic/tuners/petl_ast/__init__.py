"""PETL-AST: adapters, prompts and prefixes for spectrogram transformers and their kin.

Source: Cappellazzo, Falavigna, Brutti, Ravanelli, "Parameter-Efficient Transfer Learning of
Audio Spectrogram Transformers", IEEE MLSP 2024, arXiv 2312.03694.

    peft.get_peft_model(network, PETLASTConfig())

works on any transformer, without the rest of galenic. The paper's other members are `lora`,
`bitfit`, `linear` and `full`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from pydantic import Field, model_validator

from galenic.core.config import Config as BaseConfig
from galenic.tuners import Capabilities
from galenic.tuners._lazy import lazily

if TYPE_CHECKING:
    from galenic.models.backbone import Backbone
    from galenic.tuners.petl_ast.config import PETLASTConfig
    from galenic.tuners.petl_ast.model import PETLASTModel

__all__ = ["CAPABILITIES", "Config", "PETLASTConfig", "PETLASTModel", "attach"]

CAPABILITIES = Capabilities(
    paper="Cappellazzo et al., PETL-AST, IEEE MLSP 2024, arXiv 2312.03694",
    mergeable=False,
    exact_unmerge=False,
    identity_at_start=True,
    enters=("vit", "swin", "bert"),
    gaps={
        "merge": "an adapter with an activation, and tokens, are no product with a weight",
        "cnn": "no attention and feed-forward sub-layers to stand beside",
        "convnext": "no attention and feed-forward sub-layers to stand beside",
        "prompts in swin": "windows have no room for tokens; variant: prefix and adapters enter",
        "identity of prompts": "variants prompt, deep-prompt and prefix change the first output",
        "recomputing": "norm: batch moves its running statistics twice; norm: group has none",
    },
)

Variant = Literal["conformer", "pfeiffer", "houlsby", "prompt", "deep-prompt", "prefix"]


class Config(BaseConfig):
    """Train small adapters, prompts or prefixes, and the norms that feed and end the network."""

    method: Literal["petl_ast"] = Field("petl_ast", description="This tuner.")
    variant: Variant = Field(
        "conformer",
        description="conformer, pfeiffer (bottleneck at the feed-forward), houlsby (at both "
        "sub-layers), prompt, deep-prompt or prefix.",
    )
    sites: Literal["auto", "ffn", "mhsa", "both"] = Field(
        "auto", description="Sub-layers with an adapter; auto: both for houlsby, else ffn."
    )
    placement: Literal["parallel", "sequential"] = Field(
        "parallel", description="Beside the sub-layer, on its input; or behind it, on its output."
    )
    residual: bool | None = Field(
        None, description="Add the adapter's input; None: in sequence yes, in parallel no."
    )
    reduction: float | None = Field(
        None, gt=0, description="Width over bottleneck; None: 64, with at least 8 channels."
    )
    bottleneck: int | None = Field(None, ge=1, description="Channels of the waist, instead.")
    kernel_size: int = Field(31, ge=1, description="Tokens a convolution spans; odd.")
    norm: Literal["batch", "group"] = Field(
        "batch", description="In the conformer's waist; group for very small batches."
    )
    dropout: float = Field(0.0, ge=0, lt=1, description="Behind the conformer.")
    activation: Literal["gelu", "relu", "silu", "quick_gelu"] = Field(
        "gelu", description="Of the bottleneck."
    )
    zero_init_up: bool = Field(True, description="Start as the backbone (adapters).")
    prompts: int | None = Field(
        None, ge=1, description="Prompts, or keys and values together; None: 25, 24 for prefix."
    )
    drop_distillation: bool = Field(
        True, description="Prompts take the place of the distillation token, where there is one."
    )
    prompt_output: Literal["auto", "keep", "strip"] = Field(
        "auto", description="Prompts among the output tokens; auto: kept, but for text."
    )
    train_layernorm: bool = Field(True, description="Train the norms that feed adapters.")
    train_final_norm: bool = Field(True, description="Train the norm behind the last block.")
    encoder_eval: bool = Field(True, description="No dropout in the frozen parts while training.")
    last_blocks: int | None = Field(
        None, ge=1, description="Only the last so many blocks; the rest is a frozen prefix."
    )

    @model_validator(mode="after")
    def _fits(self) -> Config:
        check(self.variant, self.kernel_size, self.prompts)
        return self


def check(variant: str, kernel_size: int, prompts: int | None) -> None:
    """Refuse sizes that fit no network.

    Raises:
        ValueError: If the kernel is even, or the prefix cannot be halved.
    """
    if kernel_size < 1 or kernel_size % 2 == 0:
        raise ValueError(f"kernel_size is {kernel_size}; expected an odd number, 1 or more")
    if prompts is not None and prompts < 1:
        raise ValueError(f"prompts is {prompts}; expected 1 or more")
    if variant == "prefix" and prompts is not None and prompts % 2:
        raise ValueError(
            f"prompts is {prompts}; a prefix is half keys and half values: expected an even "
            "number, 2 or more"
        )


def attach(backbone: Backbone, config: Config) -> None:
    """Put the adapters, prompts or prefixes into `backbone.network`.

    Raises:
        BackboneError: If the variant cannot enter the network.
        ConfigError: If a bottleneck does not fit its width.
    """
    from peft import get_peft_model

    from galenic.tuners._network import freeze
    from galenic.tuners.petl_ast.config import PETLASTConfig
    from galenic.tuners.petl_ast.model import PETLASTModel as _registers  # noqa: F401
    from galenic.tuners.petl_ast.placement import place

    settings = config.model_dump(exclude={"method"})
    if config.prompt_output == "auto":
        # The mask that pools a text has no place for prompts.
        settings["prompt_output"] = "strip" if backbone.inputs.form == "tokens" else "keep"
    peft_config = PETLASTConfig(**settings)
    place(backbone.network, peft_config, run=lambda: backbone(**backbone.example()))
    freeze(backbone.network)
    backbone.network = get_peft_model(backbone.network, peft_config)


__getattr__ = lazily(__name__, PETLASTConfig="model", PETLASTModel="model")
