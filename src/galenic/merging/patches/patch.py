"""A patch: what fine-tuning added to a network, to be added again to its later versions."""

from __future__ import annotations

import json
import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path

import torch
from torch import nn

from galenic.core.errors import ConfigError, WeightsError
from galenic.core.fingerprint import fingerprint_tensors
from galenic.merging.checkpoints import Checkpoint
from galenic.merging.patches.activations import Probe
from galenic.merging.patches.adapters import Adapter
from galenic.merging.patches.bases import (
    NOTE,
    Base,
    Facts,
    Passing,
    facts_of,
    fingerprint_of,
    open_base,
)
from galenic.merging.patches.checking import Allowed, examine
from galenic.merging.patches.fitting import Naming, fit
from galenic.merging.patches.gate import Gate, require_accepted
from galenic.merging.patches.portability import Portability
from galenic.merging.patches.porting import write_ported
from galenic.merging.patches.spectrum import folded, largest
from galenic.merging.sources import State, Weights, size_of
from galenic.merging.writing import Progress
from galenic.models.delta import FILE, Delta, Entry, LowRank, is_under, ledger, state_of
from galenic.models.delta.entries import difference

# In a file: what is known of the base.
_KEY = "patch"


@dataclass(frozen=True, eq=False)
class Patch:
    """What is added to a base, and what is put in whole.

    "PortLLM", ICLR 2025, arXiv 2410.10870: a patch dW that was trained on weights theta does on
    later weights theta' nearly what a patch trained there would do, without data and without a
    gradient: theta' + dW.

    Attributes:
        delta: The differences, with the fingerprint of the base that they were made on.
        facts: Config and vocabulary of that base, and what it has in the place of the differences,
            where they are known.
        unresolved: Values of which it is not known whether the base has them.
    """

    delta: Delta
    facts: Facts = field(default_factory=Facts)
    unresolved: tuple[str, ...] = ()

    @classmethod
    def from_peft(
        cls, folder: str | Path, base: Base | None = None, *, copied: Sequence[str] = ()
    ) -> Patch:
        """The patch in the folder of a LoRA adapter.

        Trained tensors that are values (`modules_to_save`, biases) become differences where `base`
        has them, and copies where it has not.

        Args:
            folder: What `PeftModel.save_pretrained` wrote.
            base: The network that the adapter was trained on: a folder, a file, tensors, or a
                module.
            copied: Names of modules that are put in whole though `base` has them, such as a head
                that was fresh when the training began.

        Raises:
            WeightsError: If it is no additive difference, with the reason, or does not fit `base`;
                names the tensor.
        """
        adapter = Adapter.open(Path(folder))
        whole = {n: t for n, t in adapter.whole.items() if is_under(n, copied)}
        open_values = {n: t for n, t in adapter.whole.items() if n not in whole}
        if base is None:
            made = Delta(adapter.entries({}), {**whole, **open_values}, adapter.base)
            return cls(made, unresolved=tuple(open_values))
        weights = open_base(base, "the base")
        there = set(weights.names())
        naming = Naming.between(adapter.targets, there)
        known = {n: naming(n) for n in [*adapter.targets, *open_values] if naming(n) in there}
        entries = adapter.entries({n: weights.source(at).shape for n, at in known.items()})
        for name, value in open_values.items():
            if name in known:
                old = weights.source(known[name])
                _require_same_rows(name, old.shape, tuple(value.shape))
                entry = difference(old.flat(0, size_of(old)).reshape(old.shape), value, name=name)
                entries |= {} if entry is None else {name: entry}
            else:
                whole[name] = value
        delta = Delta(entries, whole, fingerprint_of(weights))
        fit(delta, weights)
        return cls(delta, _facts(base, weights, {name: naming(name) for name in entries}))

    @classmethod
    def from_checkpoints(cls, base: Base, tuned: Base, rank: int | None = None) -> Patch:
        """The difference of two networks.

        Args:
            base: Before training.
            tuned: After it; tensors that it has beyond the base, such as a head, are copied.
            rank: Keep of every matrix only its largest singular values; None keeps all.

        Raises:
            WeightsError: If nothing differs, or a tensor is missing or resized; names it.
        """
        start, end = open_base(base, "the base"), open_base(tuned, "the tuned network")
        before, after = set(start.names()), set(end.names())
        for name in sorted(before & after):
            _require_same_rows(name, start.source(name).shape, end.source(name).shape)
        delta = Delta.from_models(
            Passing(start),
            Passing(end),
            absolute=sorted(after - before),
            fingerprint=fingerprint_of(start),
        )
        if not delta.entries and not delta.absolute:
            raise WeightsError(
                "The two networks are the same: the patch is empty.",
                expected="a base, and what was trained from it",
            )
        if rank is not None:
            small = {name: _of_rank(entry, rank) for name, entry in delta.entries.items()}
            delta = replace(delta, entries=small)
        return cls(delta, _facts(base, start, {name: name for name in delta.entries}))

    # Files ------------------------------------------------------------------------------

    @classmethod
    def open(cls, path: str | Path, base: Base | None = None) -> Patch:
        """What :meth:`save` wrote, or a tuner as a difference, or the folder of an adapter.

        The last as :meth:`from_peft`.

        Raises:
            WeightsError: If it is none of them.
        """
        path = Path(path)
        if path.is_dir():
            if not (path / FILE).is_file():
                return cls.from_peft(path, base)
            path = path / FILE
        delta = Delta.load(path)
        note = dict(delta.note)
        facts = json.loads(note.pop(_KEY, "{}"))
        return cls(
            replace(delta, note=note),
            Facts(
                facts.get("config", {}),
                facts.get("vocabulary", ""),
                changed=facts.get("changed", ""),
            ),
            tuple(facts.get("unresolved", ())),
        )

    def save(self, path: str | Path) -> None:
        """Write one safetensors file, whole or not at all."""
        facts = {
            "config": dict(self.facts.config),
            "vocabulary": self.facts.vocabulary,
            "changed": self.facts.changed,
            "unresolved": self.unresolved,
        }
        self.delta.save(Path(path), {_KEY: json.dumps(facts, sort_keys=True)})

    @cached_property
    def fingerprint(self) -> str:
        """Of the differences and copies, whatever their base."""
        tensors = {f"absolute/{name}": value for name, value in self.delta.absolute.items()}
        for name, entry in self.delta.entries.items():
            for key, value in vars(entry).items():
                tensors[f"{key}/{name}"] = torch.as_tensor(value)
        return fingerprint_tensors(tensors)

    # Porting ----------------------------------------------------------------------------

    def check(
        self,
        new: Base,
        old: Base | None = None,
        *,
        allow: Collection[Allowed] = (),
        gate: Gate | None = None,
        probe: Probe | None = None,
    ) -> Portability:
        """Whether the patch can go to `new`, and how far `new` is from the base it was made on.

        Args:
            new: The base that it goes to.
            old: The base that it was made on; without it the drift stays unknown.
            allow: What would be refused otherwise: `same`, a base that is the old one; `missing`, a
                target that `new` lacks; `config`, another config; `vocabulary`, a patch on the rows
                of another vocabulary. Missing targets and such rows are left out, and listed.
            gate: What `accepted` in the answer goes by.
            probe: Text for the drift of the activations.

        Raises:
            WeightsError: If it does not fit, with the reason and the names.
            ConfigError: If the gate asks for what is not measured.
        """
        return examine(self, new, old, allow, gate, probe)[2]

    def port(
        self,
        new: str | Path,
        out: str | Path,
        *,
        old: Base | None = None,
        scale: float = 1.0,
        allow: Collection[Allowed] = (),
        gate: Gate | None = None,
        probe: Probe | None = None,
        progress: Progress | None = None,
    ) -> Portability:
        """Write `new` with the patch in it as the new folder `out`, whole or not at all.

        Args:
            new: Folder or file of the base that it goes to.
            out: The folder; `port_report.json` is written into it.
            old: As for :meth:`check`.
            scale: Factor of the differences; 0 writes the base as it is.
            allow: As for :meth:`check`.
            gate: What is refused.
            probe: As for :meth:`check`.
            progress: Called after every tensor.

        Raises:
            WeightsError: As :meth:`check`; if the gate refuses, with the reasons; or if a sum is
                not finite.
            ConfigError: If `out` is the base, or the gate asks for what is not measured.
            RunError: If the disk is full.
        """
        require_finite(scale)
        weights, fitted, known = examine(self, new, old, allow, gate, probe)
        require_accepted(known, weights.label)
        assert isinstance(weights, Checkpoint)
        write_ported(weights, fitted, known, Path(out), scale, progress)
        return known

    def apply(
        self, network: nn.Module, scale: float = 1.0, *, allow: Collection[Allowed] = ()
    ) -> None:
        """Add to a live network, in place; :meth:`revert` takes back every bit of it.

        Args:
            network: The base that it goes to.
            scale: Factor of the differences; 0 changes nothing.
            allow: As for :meth:`check`.

        Raises:
            WeightsError: If it does not fit, or is applied already; names the tensor. The network
                is then as it was.
        """
        require_finite(scale)
        if self._on(network) is not None:
            raise WeightsError("This patch is applied already.", next_step="revert() it first.")
        state = State(state_of(network), type(network).__name__)
        fitted = fit(self.delta, state, self.unresolved, allow_missing="missing" in allow)
        entries, whole = (fitted.entries, fitted.copied) if scale else ({}, {})
        applied = Delta(entries, whole, note={NOTE: self.fingerprint})
        (applied if scale == 1 else applied * scale).apply(network, check=False)

    def revert(self, network: nn.Module) -> None:
        """Take back what :meth:`apply` did, to the bit.

        Raises:
            WeightsError: If the patch is not applied to `network`.
        """
        applied = self._on(network)
        if applied is None:
            raise WeightsError("This patch is not applied to the network.", next_step="apply() it.")
        applied.revert(network)

    def _on(self, network: nn.Module) -> Delta | None:
        found = (d for d in ledger.applied(network) if d.note.get(NOTE) == self.fingerprint)
        return next(found, None)


def _facts(base: Base, weights: Weights, names: Mapping[str, str]) -> Facts:
    """What is known of a base, with the fingerprint of the tensors that a patch changes."""
    return replace(facts_of(base, weights), changed=fingerprint_of(weights, names))


def _of_rank(entry: Entry, rank: int) -> Entry:
    """The nearest difference of that rank (Eckart and Young, 1936); a vector stays."""
    if len(entry.shape) < 2 or min(entry.shape[0], math.prod(entry.shape[1:])) <= rank:
        return entry
    u, s, vh = largest(folded(entry.dense().float()), rank)
    return LowRank((u * s).contiguous(), vh.contiguous(), 1.0, entry.shape)


def _require_same_rows(name: str, old: tuple[int, ...], new: tuple[int, ...]) -> None:
    if len(old) == len(new) and old[1:] == new[1:] and old[:1] != new[:1]:
        raise WeightsError(
            f"'{name}' was resized from {old[0]} to {new[0]} rows: new tokens, or new classes, are "
            "no difference from the base.",
            expected="the rows of the base",
            next_step="Train on the base's own vocabulary, or port the other tensors alone.",
        )


def require_finite(scale: float) -> None:
    """Refuse a factor that is no number.

    Raises:
        ConfigError: If it is infinite, or NaN.
    """
    if not math.isfinite(scale):
        raise ConfigError(f"The scale is {scale}.", where="scale", expected="a finite number")
