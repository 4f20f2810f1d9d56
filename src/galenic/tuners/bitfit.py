"""BitFit: train the biases and nothing else.

Source: Ben Zaken, Goldberg, Ravfogel, "BitFit: Simple Parameter-efficient Fine-tuning for
Transformer-based Masked Language-models", ACL 2022, arXiv 2106.10199.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Literal

from pydantic import Field

from galenic.core.config import Config as BaseConfig
from galenic.tuners import Capabilities

if TYPE_CHECKING:
    from galenic.models.backbone import Backbone

# The last two are those of recurrent layers; bias_k and bias_v of attention are tokens.
_BIAS = re.compile(r"bias|.*_bias|bias_[ih]h_.*")

CAPABILITIES = Capabilities(
    paper="Ben Zaken et al., BitFit, ACL 2022, arXiv 2106.10199",
    mergeable=False,
    exact_unmerge=False,
    identity_at_start=True,
    enters=("vit", "swin", "bert", "convnext", "cnn"),
    gaps={"merge": "the backbone's own biases are trained: there is nothing apart to merge"},
)


class Config(BaseConfig):
    """Train every bias of the backbone."""

    method: Literal["bitfit"] = Field("bitfit", description="This tuner.")
    norm_weights: bool = Field(False, description="Train the scales of the norms too.")
    last_blocks: int | None = Field(
        None, ge=1, description="Only the last so many blocks; the rest is a frozen prefix."
    )


def attach(backbone: Backbone, config: Config) -> None:
    """Freeze `backbone.network` but its biases.

    A pooler that the objective does not use has biases too; they are left frozen, since they
    would train nothing.

    Raises:
        BackboneError: If the network has no bias at all.
    """
    from galenic.tuners._network import cannot_enter, freeze, last
    from galenic.tuners.ssf.placement import axis_of, in_head, is_norm

    network = backbone.network
    # Choose before changing: an error must leave the network as it was.
    allowed = None if config.last_blocks is None else last(network, config.last_blocks)
    chosen = []
    biases = 0
    for name, module in network.named_modules():
        if in_head(name) or (allowed is not None and name not in allowed):
            continue
        own = dict(module.named_parameters(recurse=False))
        found = [p for key, p in own.items() if _BIAS.fullmatch(key)]
        biases += len(found)
        chosen += found
        if config.norm_weights and is_norm(module) and axis_of(module) is not None:
            chosen += [p for key, p in own.items() if key == "weight"]
    if not biases:
        raise cannot_enter(
            network,
            "bitfit",
            "at least one parameter named 'bias'",
            "Use ssf, which brings its own shift, or a backbone with biases.",
        )
    freeze(network)
    for parameter in chosen:
        parameter.requires_grad_(True)
