"""Tuners: what of a backbone is trained.

Each module here is one method with a `Config`, `CAPABILITIES`, and
`attach(backbone, config)`, which changes `backbone.network` so that exactly the declared
tensors train. This file imports neither torch nor peft: `galenic ls` reads capabilities.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from galenic.core.config import Config
from galenic.core.registry import load as load_module
from galenic.core.registry import parse_method

if TYPE_CHECKING:
    from torch import Tensor, nn

    from galenic.models.backbone import Backbone


@dataclass(frozen=True)
class Capabilities:
    """What a tuner can do; the docs and the contract tests read the same declaration.

    Attributes:
        paper: Authors, title, year and identifier; '' for a plain baseline.
        mergeable: Whether the trained tensors fold into the backbone.
        exact_unmerge: Whether unmerging gives back every bit.
        identity_at_start: Whether the output is the backbone's before the first step.
        enters: Families of networks that the method can enter.
        gaps: What it cannot do, and why.
        reads_states: Whether it reads the states of all blocks of a frozen network: what a pass
            for it keeps serves other tuners too.
    """

    paper: str
    mergeable: bool
    exact_unmerge: bool
    identity_at_start: bool
    enters: tuple[str, ...]
    gaps: Mapping[str, str] = field(default_factory=dict)
    reads_states: bool = False


@dataclass(frozen=True)
class Stage:
    """One fit of a training that has several.

    Attributes:
        name: Of its folder of checkpoints.
        begin: Called before it; what earlier stages trained is in the network by then.
        schedule: Keys of the user's schedule that differ here.
        rewind_head: Whether the task puts its head back, before `begin`, to what it was when the
            stage before this one began. A tuner has no hold of the head.
    """

    name: str = "train"
    begin: Callable[[], None] = lambda: None
    schedule: Mapping[str, Any] = field(default_factory=dict)
    rewind_head: bool = False


@dataclass(frozen=True)
class Hooks:
    """What a tuner asks of the training; the default asks for nothing.

    Attributes:
        stages: Fits, one after the other.
        penalty: Scalar added to the loss of every training batch.
        after_step: Called with (optimiser steps done, steps in all).
    """

    stages: tuple[Stage, ...] = (Stage(),)
    penalty: Callable[[], Tensor] | None = None
    after_step: Callable[[int, int], None] | None = None

    def begun(self, head: nn.Module) -> Iterator[Stage]:
        """Each stage once its `begin` was called, with `head` put back where it asks for that."""
        before: dict[str, Tensor] = {}
        for stage in self.stages:
            if stage.rewind_head and before:
                head.load_state_dict(before)
            before = {name: tensor.clone() for name, tensor in head.state_dict().items()}
            stage.begin()
            yield stage


def parse_tuner(values: Mapping[str, Any]) -> Config:
    """The typed configuration in `values`, whose key `method` names the tuner.

    Raises:
        ConfigError: If the method or a key is unknown (naming the nearest) or a value is wrong.
    """
    return parse_method(__name__, values, "tuner", "ssf")


def capabilities(method: str) -> Capabilities:
    """What the tuner `method` declares."""
    declared: Capabilities = load_module(__name__, method).CAPABILITIES
    return declared


def attach(backbone: Backbone, config: Config) -> None:
    """Change `backbone.network` so that exactly the tensors of this tuner train.

    Raises:
        BackboneError: If the method cannot enter the network; says what was looked for.
        ConfigError: If a value does not fit the network (a rank too high, say).
    """
    load_module(__name__, _method(config)).attach(backbone, config)


def hooks(backbone: Backbone, config: Config) -> Hooks:
    """What the tuner that was attached to `backbone` asks of its training."""
    module = load_module(__name__, _method(config))
    found: Hooks = module.hooks(backbone, config) if hasattr(module, "hooks") else Hooks()
    return found


def save(backbone: Backbone, config: Config, folder: Path) -> None:
    """Write the trained tensors of `backbone` to the new `folder`.

    peft methods are written in peft's layout (`adapter_config.json`,
    `adapter_model.safetensors`), the others as `tensors.safetensors`; both with `tuner.json`.
    """
    from galenic.tuners import _store

    _store.save(backbone, config, folder)


def load(backbone: Backbone, config: Config, folder: Path) -> None:
    """Attach `config` to `backbone` where that is not done yet, and read what `save` wrote.

    Raises:
        WeightsError: If the folder belongs to another backbone or method, or a tensor is
            missing, extra, or of another shape; each is named.
    """
    from galenic.tuners import _store

    _store.load(backbone, config, folder)


def read(folder: Path) -> dict[str, Tensor]:
    """The tensors that :func:`save` wrote to `folder`, under the names that it writes.

    Raises:
        WeightsError: If there are none, or the file is damaged.
    """
    from galenic.tuners import _store

    return _store.read(folder)


def state(backbone: Backbone) -> dict[str, Tensor]:
    """Copies of the trained tensors of `backbone`, under the names that `save` writes."""
    from galenic.tuners import _store

    return _store.taken(backbone.network)


def put(backbone: Backbone, tensors: Mapping[str, Tensor]) -> None:
    """Put what :func:`state` took into `backbone`, to which the same tuner is attached.

    Raises:
        WeightsError: If a tensor is missing, extra, or of another shape; each is named.
    """
    from galenic.tuners import _store

    _store.put(backbone.network, dict(tensors), Path("state"))


def _method(config: Config) -> str:
    return str(getattr(config, "method", ""))
