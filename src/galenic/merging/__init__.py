"""Merging: arithmetic on checkpoints, tensor by tensor, whatever the network.

merging.merge("recipe.yaml", "merged/")                       # files, in little memory
merging.merge_states("breadcrumbs", base, {"a": a, "b": b})   # state dicts
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from galenic.merging.checkpoints import Checkpoint
    from galenic.merging.engine import merge, merge_states
    from galenic.merging.recipe import Recipe

__all__ = ["Checkpoint", "Recipe", "merge", "merge_states"]

_PLACES = {
    "Checkpoint": "checkpoints",
    "merge": "engine",
    "merge_states": "engine",
    "Recipe": "recipe",
}


def __getattr__(name: str) -> Any:
    # Lazy: listing the methods must not import torch.
    if name in _PLACES:
        from importlib import import_module

        return getattr(import_module(f"{__name__}.{_PLACES[name]}"), name)
    raise AttributeError(f"module '{__name__}' has no attribute '{name}'")
