"""A vision transformer with a distillation token beside its class token.

Touvron et al., "Training data-efficient image transformers & distillation through attention",
ICML 2021, arXiv 2012.12877.
"""

from __future__ import annotations

import torch
from torch import nn

from galenic.core.errors import BackboneError

TOKEN, PLACES = "embeddings.distillation_token", "embeddings.position_embeddings"


def with_token(network: nn.Module) -> nn.Module:
    """`network` as transformers' `DeiTModel`; one that is that already comes back.

    The new token is drawn as the authors draw both; were it a copy, a teacher that says what the
    labels say would never part the two. Its place begins as that of the class token.

    Raises:
        BackboneError: If it is neither a `ViTModel` nor a `DeiTModel`.
    """
    from transformers import DeiTConfig, DeiTModel, ViTModel

    if isinstance(network, DeiTModel):
        return network
    if not isinstance(network, ViTModel):
        raise BackboneError(
            f"{type(network).__name__} can be given no distillation token.",
            expected="a ViT or DeiT of transformers",
            next_step="backbone=builtin:vit?size=tiny",
        )
    known = DeiTConfig().to_dict()
    shape = {
        key: value
        for key, value in network.config.to_dict().items()
        if key in known and key != "model_type"
    }
    made = DeiTModel(DeiTConfig(**shape), add_pooling_layer=network.pooler is not None)
    state = dict(network.state_dict())
    places = state[PLACES]
    state[PLACES] = torch.cat([places[:, :1], places], dim=1)
    state[TOKEN] = torch.empty_like(state["embeddings.cls_token"])
    nn.init.trunc_normal_(state[TOKEN], std=network.config.initializer_range)
    made.load_state_dict(state)
    return made.train(network.training)
