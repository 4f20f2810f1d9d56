"""Activation drift: how far the inputs of the patched layers moved between two bases."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from galenic.core.errors import ConfigError, WeightsError
from galenic.core.prediction import evaluating, to_device
from galenic.merging.patches.bases import Base
from galenic.merging.patches.fitting import Naming
from galenic.models.backbone import open_backbone

Batch = Mapping[str, Any]
MASK = "attention_mask"


@dataclass(frozen=True)
class ActivationDrift:
    """What the update of the base did to the inputs x of one layer, over all tokens of a text.

    Attributes:
        name: Of the layer.
        drift: |x' - x| / |x|, in the Frobenius norm; None where the layer was not called, as the
            head of a network that is opened without it.
        cosine: Of x with x'; None there, and where one of them is zero.
    """

    name: str
    drift: float | None
    cosine: float | None


@dataclass(frozen=True)
class Probe:
    """Unlabelled text, and the old base that reads it beside each new one.

    Attributes:
        old: The network that the patch was made on.
        batches: Keywords of its `forward`. Padding that `attention_mask` [B, L] marks is not
            counted.
    """

    old: nn.Module
    batches: Sequence[Batch]

    @classmethod
    def of_texts(cls, old: str | Path, texts: Sequence[str], batch_size: int = 16) -> Probe:
        """Texts in the tokens of the old base.

        Args:
            old: Folder, or cached id.
            texts: Cut at the window of the base.
            batch_size: Texts that are read at once.

        Raises:
            ConfigError: If there are no texts.
            BackboneError: If `old` cannot be opened, or reads no text.
        """
        if not texts:
            raise ConfigError("There is no text to read.", expected="one text a line")
        opened = open_backbone(str(old))
        starts = range(0, len(texts), batch_size)
        parts = [opened.tokenize(list(texts[start : start + batch_size])) for start in starts]
        return cls(opened.network, parts)

    def drift(self, targets: Iterable[str], new: Base) -> tuple[ActivationDrift, ...]:
        """As :func:`activation_drift`; a new base that is a folder is opened.

        Raises:
            ConfigError: If `new` is tensors alone, which read nothing.
            BackboneError: If `new` cannot be opened.
        """
        if isinstance(new, Mapping):
            raise ConfigError(
                "Tensors alone read no text.", where="the new base", expected="a module or a folder"
            )
        network = new if isinstance(new, nn.Module) else open_backbone(str(new)).network
        return activation_drift(targets, self.old, network, self.batches)


def activation_drift(
    targets: Iterable[str], old: nn.Module, new: nn.Module, batches: Iterable[Batch]
) -> tuple[ActivationDrift, ...]:
    """One row for every layer of `targets`, in their order.

    Both networks read each batch, in evaluation mode and without gradients; sums are kept and
    activations are not, so that one batch of one network is in memory at a time. The networks are
    left as they were.

    Args:
        targets: Names of the tensors that a patch changes, such as `layer.0.query.weight`.
        old: theta.
        new: theta'.
        batches: Keywords of `forward`.

    Raises:
        WeightsError: If a layer reads inputs of other shapes in `new` than in `old`; names it.
    """
    layers = list(dict.fromkeys(name.rpartition(".")[0] for name in targets))
    pair = (_found(layers, old), _found(layers, new))
    sums = {layer: _Sums() for layer in layers}
    with torch.no_grad(), evaluating(old), evaluating(new):
        for batch in batches:
            _compare((old, new), pair, batch, sums)
    return tuple(found.row(layer) for layer, found in sums.items())


def _compare(
    networks: tuple[nn.Module, nn.Module],
    layers: tuple[Mapping[str, nn.Module], Mapping[str, nn.Module]],
    batch: Batch,
    sums: Mapping[str, _Sums],
) -> None:
    """Let both networks read one batch; what the old one showed goes as the new one shows it."""
    waiting: dict[str, deque[Tensor]] = {layer: deque() for layer in sums}

    def keep(layer: str, x: Tensor) -> None:
        # A copy: what follows may write into it.
        waiting[layer].append(x.clone())

    def add(layer: str, x: Tensor) -> None:
        before = waiting[layer].popleft() if waiting[layer] else None
        sums[layer].add(layer, before, x)

    for network, found, hear in zip(networks, layers, (keep, add), strict=True):
        device = next(network.parameters(), torch.zeros(0)).device
        with _listening(found, batch, hear):
            network(**to_device(batch, device))
    for layer, left in waiting.items():
        for x in left:
            sums[layer].add(layer, x, None)


class _Sums:
    """Running sums over the calls of one layer, in float64."""

    def __init__(self) -> None:
        self.old = self.new = self.moved = self.both = 0.0
        self.calls = 0

    def add(self, layer: str, old: Tensor | None, new: Tensor | None) -> None:
        shapes = [None if x is None else tuple(x.shape) for x in (old, new)]
        if old is None or new is None or shapes[0] != shapes[1]:
            raise WeightsError(
                f"The layer '{layer}' read {shapes[0]} in the old base and {shapes[1]} in the new.",
                expected="two versions of one network",
            )
        x, y = old.double(), new.double().to(old.device)
        self.old += x.square().sum().item()
        self.new += y.square().sum().item()
        self.moved += (y - x).square().sum().item()
        self.both += (x * y).sum().item()
        self.calls += 1

    def row(self, layer: str) -> ActivationDrift:
        if not self.calls:
            return ActivationDrift(layer, None, None)
        whole, moved = math.sqrt(self.old), math.sqrt(self.moved)
        drift = moved / whole if whole > 0 else (math.inf if moved > 0 else 0.0)
        norms = whole * math.sqrt(self.new)
        return ActivationDrift(layer, drift, self.both / norms if norms > 0 else None)


def _found(layers: Collection[str], network: nn.Module) -> dict[str, nn.Module]:
    """Modules of a network by the names of the layers, a prefix more or less."""
    there = dict(network.named_modules())
    naming = Naming.between(layers, there)
    return {layer: there[naming(layer)] for layer in layers if naming(layer) in there}


@contextmanager
def _listening(
    layers: Mapping[str, nn.Module], batch: Batch, hear: Callable[[str, Tensor], None]
) -> Iterator[None]:
    """Call `hear(layer, x)` with the input of each layer, whenever one is called."""
    keep = batch.get(MASK)

    def hook(layer: str) -> Any:
        def enter(_module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            given = [x for x in (*args, *kwargs.values()) if isinstance(x, Tensor)]
            if given:
                hear(layer, _kept(given[0].detach(), keep))

        return enter

    with ExitStack() as stack:
        for layer, module in layers.items():
            handle = module.register_forward_pre_hook(hook(layer), with_kwargs=True)
            stack.callback(handle.remove)
        yield


def _kept(x: Tensor, mask: Tensor | None) -> Tensor:
    """Without the tokens that are padding, where `x` is [B, L, ...] as the mask is."""
    if mask is None or x.shape[:2] != mask.shape:
        return x
    return x[mask.to(x.device).bool()]
