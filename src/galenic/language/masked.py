"""Masked language models: an encoder, and the head that names the word behind a mask."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from galenic.core import registry
from galenic.core.errors import BackboneError
from galenic.models.backbone import BUILTIN, Backbone

HEADS = "BERT, RoBERTa, DeBERTa or ModernBERT"


@dataclass(frozen=True)
class MaskedHead:
    """The head of a masked language model, in two parts.

    Attributes:
        transform: From a hidden state to what the last layer reads.
        decoder: The last layer, to the vocabulary.
        fresh: Whether it has never been trained.
    """

    transform: nn.Module
    decoder: nn.Linear
    fresh: bool


def open_head(backbone: Backbone) -> MaskedHead:
    """The head that belongs to a text network; a fresh one, tied to its embeddings, if it has none.

    Raises:
        BackboneError: If the network is of no family with such a head.
    """
    from transformers import AutoModelForMaskedLM

    network: Any = backbone.network
    try:
        model: Any = AutoModelForMaskedLM.from_config(network.config)
    except (AttributeError, ValueError):
        raise BackboneError(
            f"'{backbone.spec}' is no masked language model.", expected=HEADS
        ) from None
    inner: Any = getattr(model, model.base_model_prefix)
    inner.load_state_dict(network.state_dict(), strict=False)
    trained = _trained(backbone)
    head = {n: t for n, t in trained.items() if not n.startswith(f"{model.base_model_prefix}.")}
    if head:
        model.load_state_dict(head, strict=False)
    else:
        model.tie_weights()
    model.eval()
    found = _split(model)
    _require_same(model, inner, found, backbone)
    return MaskedHead(*found, fresh=not head)


def _trained(backbone: Backbone) -> dict[str, Tensor]:
    """Tensors of the trained model with its head; empty where it comes without one."""
    name, _, variant = backbone.spec.partition("#")
    if variant:
        return {}
    if name.startswith("builtin:"):
        module = registry.load(BUILTIN, name.removeprefix("builtin:"))
        found: dict[str, Tensor] = module.masked_head() if hasattr(module, "masked_head") else {}
        return found
    from transformers import AutoModelForMaskedLM

    model, facts = AutoModelForMaskedLM.from_pretrained(name, output_loading_info=True)
    inner = f"{model.base_model_prefix}."
    if any(not key.startswith(inner) for key in facts["missing_keys"]):
        return {}
    state: dict[str, Tensor] = model.state_dict()
    return state


def _split(model: Any) -> tuple[nn.Module, nn.Linear]:
    """The head without its last layer, and that layer."""
    decoder = model.get_output_embeddings()
    base = getattr(model, model.base_model_prefix)
    parts = [child for child in model.children() if child is not base]
    head = nn.Sequential(*parts)
    path = next((name for name, module in head.named_modules() if module is decoder), None)
    if path is None or not isinstance(decoder, nn.Linear):
        raise BackboneError(f"{type(model).__name__} has a head of its own kind.", expected=HEADS)
    kept = nn.Linear(decoder.in_features, decoder.out_features, decoder.bias is not None)
    kept.load_state_dict(decoder.state_dict())
    parent, _, leaf = path.rpartition(".")
    setattr(head.get_submodule(parent), leaf, nn.Identity())
    transform = copy.deepcopy(head)
    setattr(head.get_submodule(parent), leaf, decoder)
    return transform.eval(), kept


def _require_same(
    model: Any, inner: Any, found: tuple[nn.Module, nn.Linear], backbone: Backbone
) -> None:
    """Check on one input that the two parts are the whole head."""
    transform, decoder = found
    with torch.no_grad():
        batch = backbone.example()
        hidden = inner(**batch).last_hidden_state
        ours, theirs = decoder(transform(hidden)), model(**batch).logits
    if not torch.allclose(ours, theirs, atol=1e-4):
        raise BackboneError(f"{type(model).__name__} has a head of its own kind.", expected=HEADS)
