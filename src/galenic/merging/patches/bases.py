"""The networks that a patch lies between: files, state dicts or live modules, seen the same way."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from galenic.core.fingerprint import fingerprint_tensors
from galenic.merging.checkpoints import Checkpoint
from galenic.merging.compare import vocabulary
from galenic.merging.folders import locate
from galenic.merging.sources import State, Weights, close, size_of
from galenic.models.delta import ledger, state_of

Base = str | Path | Mapping[str, Tensor] | nn.Module
# In the header of a checkpoint: fingerprints of the patches that it holds.
PATCHES = "galenic_patches"
# In the note of a delta that is applied to a live network: the fingerprint of its patch.
NOTE = "patch"
# Of a config, what changes nothing that a weight means.
_IDLE = ("architectures", "dtype", "torch_dtype", "id2label", "label2id", "num_labels", "use_cache",
         "problem_type", "finetuning_task", "vocab_size", "auto_map", "output_attentions",
         "output_hidden_states", "return_dict", "gradient_checkpointing")  # fmt: skip


@dataclass(frozen=True)
class Facts:
    """What is known of a network beside its weights.

    Attributes:
        config: Of the architecture; empty where there is none.
        vocabulary: Digest of which token has which number; '' without a tokenizer.
        patches: Fingerprints of the patches that it holds.
        changed: Fingerprint of the tensors that a patch of it changes; '' where that is unknown.
    """

    config: Mapping[str, Any] = field(default_factory=dict)
    vocabulary: str = ""
    patches: tuple[str, ...] = ()
    changed: str = ""

    def differs(self, other: Facts) -> dict[str, tuple[Any, Any]]:
        """Fields of the configs that change what a weight means, with both values."""
        if not self.config or not other.config:
            return {}
        old, new = _filled(self.config), _filled(other.config)
        names = sorted(set(old) | set(new))
        pairs = {n: (old.get(n), new.get(n)) for n in names if _counts(n)}
        return {name: pair for name, pair in pairs.items() if pair[0] != pair[1]}


def open_base(base: Base, label: str) -> Weights:
    """The tensors of a network; those of a file are read piece by piece.

    Raises:
        WeightsError: If there is no such checkpoint, or it is damaged.
    """
    if isinstance(base, str | Path):
        return Checkpoint.open(locate(str(base), Path.cwd()))
    return State(state_of(base), label)


def facts_of(base: Base, weights: Weights) -> Facts:
    """Config, vocabulary and patches of a network."""
    if isinstance(weights, Checkpoint):
        try:
            config = json.loads((weights.folder / "config.json").read_text(encoding="utf-8"))
        except (OSError, ValueError):
            config = {}
        patches = json.loads(weights.metadata.get(PATCHES, "[]"))
        return Facts(config, vocabulary(weights.folder) or "", tuple(patches))
    held = ledger.applied(base) if isinstance(base, nn.Module) else ()
    patches = tuple(delta.note[NOTE] for delta in held if NOTE in delta.note)
    return Facts(_plain(getattr(base, "config", None)), patches=patches)


def fingerprint_of(weights: Weights, names: Mapping[str, str] | None = None) -> str:
    """Fingerprint of all tensors, one in memory at a time.

    Args:
        weights: Of the network.
        names: Only those that it has under these values, each by its key: files and live networks,
            with a head and without, then have one fingerprint.
    """
    if names is None:
        return fingerprint_tensors(Passing(weights))
    there = set(weights.names())
    return fingerprint_tensors(Passing(weights, {n: at for n, at in names.items() if at in there}))


class Passing(Mapping[str, Tensor]):
    """Weights as a mapping that lets go of a tensor when the next one is asked for.

    Args:
        weights: Of the network.
        names: What some of them are called here; None for all, by their own names.
    """

    def __init__(self, weights: Weights, names: Mapping[str, str] | None = None) -> None:
        self._weights = weights
        self._names = {name: name for name in weights.names()} if names is None else names
        self._last: Any = None

    def __getitem__(self, name: str) -> Tensor:
        if self._last is not None:
            close(self._last)
        self._last = self._weights.source(self._names[name])
        return self._last.flat(0, size_of(self._last)).reshape(self._last.shape)

    def __iter__(self) -> Iterator[str]:
        return iter(self._names)

    def __len__(self) -> int:
        return len(self._names)


def _filled(config: Mapping[str, Any]) -> Mapping[str, Any]:
    """A config with the defaults that its file leaves out, where the architecture is known."""
    from transformers import AutoConfig

    try:
        return _plain(AutoConfig.for_model(**config))
    except (ValueError, TypeError, KeyError, AttributeError):
        return config


def _plain(config: Any) -> dict[str, Any]:
    # As a file would have it: integer keys are text there.
    values = config.to_dict() if hasattr(config, "to_dict") else {}
    found: dict[str, Any] = json.loads(json.dumps(values, default=str))
    return found


def _counts(name: str) -> bool:
    # Names of versions and paths begin with a stroke; token numbers belong to the tokenizer.
    idle = name in _IDLE or name.startswith("_") or name.endswith(("version", "token_id"))
    return not idle and "dropout" not in name
