"""Self-supervised pre-training: what a network learns from samples without labels.

Each module here is one method with a `Config` (field `method`), `CAPABILITIES`, and
`build(backbone, config, seed)`. This file imports no torch: capabilities are read without it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from galenic.core.config import Config
from galenic.core.registry import load as load_module
from galenic.core.registry import parse_method

if TYPE_CHECKING:
    from torch import Tensor, nn

    from galenic.models.backbone import Backbone

Array = np.ndarray[Any, np.dtype[Any]]


@dataclass(frozen=True)
class Capabilities:
    """What a method can do; the docs and the contract tests read the same declaration.

    Attributes:
        paper: Authors, title, year and identifier.
        enters: Families of networks that it can train.
        gaps: What it cannot do, and why.
    """

    paper: str
    enters: tuple[str, ...]
    gaps: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class LocalViews:
    """Small views of a sample beside its whole ones.

    Attributes:
        count: How many.
        crop: Least and largest share of the picture's area that one keeps.
        share: Its sides, in those that the network sees.
    """

    count: int
    crop: tuple[float, float]
    share: float


def parse(values: Mapping[str, Any]) -> Config:
    """The typed configuration in `values`, whose key `method` names the method.

    Raises:
        ConfigError: If the method or a key is unknown (naming the nearest) or a value is wrong.
    """
    return parse_method(__name__, values, "pretraining", "mae")


def capabilities(method: str) -> Capabilities:
    """What `method` declares."""
    declared: Capabilities = load_module(__name__, method).CAPABILITIES
    return declared


def build(backbone: Backbone, config: Config, seed: int) -> nn.Module:
    """The objective that trains `backbone.network`, in place.

    Its `forward(**batch)` takes the backbone's own inputs, [B, ...] or [B, V, ...] where
    :func:`views` says V > 1, and `draws` [B], one integer a sample: whatever is random of a
    sample is drawn from a generator seeded with it, so that a batch always means the same. It
    returns the scalar `loss` and, for validation, `losses` [B], whose mean it is; parts of the
    losses [B] under names of their own become figures too. Where no sample has a loss of its own,
    there are no `losses`, and :func:`together` makes one of the other outputs. It has no attribute
    `config`: the engine would write to it. Its `set_epoch`, where it has one, is called with the number of every
    epoch of training.

    Args:
        backbone: Its network must be an ordinary one again, to the names of its state dict, once
            :func:`finish` was called.
        config: Of :func:`parse`.
        seed: Of what the method adds to the network.

    Raises:
        BackboneError: If the method cannot enter the network; nothing was changed.
    """
    objective: nn.Module = _module(config).build(backbone, config, seed)
    return objective


def views(config: Config) -> int:
    """How many random views of each sample a batch holds."""
    asked = getattr(_module(config), "views", None)
    return 1 if asked is None else int(asked(config))


def local_views(config: Config) -> LocalViews | None:
    """Smaller views that a batch also holds, as `local` [B, n, ...]; None where there are none."""
    asked = getattr(_module(config), "local_views", None)
    found: LocalViews | None = None if asked is None else asked(config)
    return found


def scale(config: Config) -> int:
    """Sides of the pixels of a batch, in those that the network sees."""
    asked = getattr(_module(config), "scale", None)
    return 1 if asked is None else int(asked(config))


def tokenizer(config: Config) -> Any | None:
    """What cuts the captions that the method reads beside the pictures; None if it reads none.

    Where there is one, a batch also holds `input_ids`, `attention_mask` and `words` [B, L], the
    number of the word that each token is part of, and -1 for none.
    """
    asked = getattr(_module(config), "tokenizer", None)
    return None if asked is None else asked(config)


def together(config: Config, outputs: Mapping[str, Array]) -> float | None:
    """The loss of all samples as one batch, however they were batched; None where each has its own.

    Args:
        config: Of the method.
        outputs: Of all samples.
    """
    asked = getattr(_module(config), "together", None)
    return None if asked is None else float(asked(config, outputs))


def after_step(objective: nn.Module, config: Config) -> Callable[[int, int], None] | None:
    """What is called with (steps done, steps in all) after every optimiser step, if anything."""
    hook = getattr(_module(config), "after_step", None)
    return None if hook is None else lambda step, steps: hook(objective, step, steps)


def finish(objective: nn.Module, config: Config) -> None:
    """Take away whatever the method put into the network."""
    hook = getattr(_module(config), "finish", None)
    if hook is not None:
        hook(objective)


def pictures(objective: nn.Module, config: Config, batch: Mapping[str, Tensor]) -> Array | None:
    """What the method makes of a batch [B, k, C, ...], in the network's units; None for nothing.

    The k pictures of a sample stand side by side in the report: its input, what the network saw
    of it, and what it made of that.
    """
    hook = getattr(_module(config), "pictures", None)
    return None if hook is None else np.asarray(hook(objective, batch))


def _module(config: Config) -> Any:
    return load_module(__name__, str(getattr(config, "method", "")))
