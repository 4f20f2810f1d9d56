"""Deltas: the difference between two networks of one base, as a thing to add, scale and keep.

A delta maps names of tensors to differences, each dense, low-rank or sparse (Ansell et al.,
"Composable Sparse Fine-Tuning", ACL 2022, arXiv 2110.07560), and holds beside them absolute
tensors, such as a head, that replace instead of add. It knows the fingerprint of its base.

    delta = Delta.from_models(base, tuned)
    delta.apply(network)         # in place; delta.revert(network) gives back every bit
    state = delta.applied(state) # pure
    both = task + 0.5 * language
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import torch
from torch import Tensor, nn

from galenic.core.errors import WeightsError
from galenic.core.fingerprint import fingerprint_tensors
from galenic.models.delta import files, ledger
from galenic.models.delta.entries import (
    Dense,
    Entry,
    LowRank,
    Sparse,
    at,
    difference,
    numel,
    places,
    plus,
    scaled,
    total,
)

__all__ = [
    "FILE",
    "Delta",
    "Dense",
    "Entry",
    "LowRank",
    "Overlap",
    "Sparse",
    "is_under",
    "state_of",
]

State = Mapping[str, Tensor]
# In the folder of a tuner whose result is a delta.
FILE = "delta.safetensors"


@dataclass(frozen=True)
class Overlap:
    """What two deltas share.

    Attributes:
        first: Entries that the first changes.
        second: Entries that the second changes.
        both: Entries that both change.
        agree: Of these, how many both move the same way.
    """

    first: int
    second: int
    both: int
    agree: int

    @property
    def jaccard(self) -> float:
        """Shared entries over those that either changes."""
        return self.both / max(self.first + self.second - self.both, 1)


@dataclass(frozen=True, eq=False)
class Delta:
    """Differences by name of tensor.

    Attributes:
        entries: What is added, by name.
        absolute: What replaces, by name.
        base: Fingerprint of the weights that it is to be added to.
        note: Free text by key, kept in the file.
    """

    entries: Mapping[str, Entry]
    absolute: Mapping[str, Tensor] = field(default_factory=dict)
    base: str = ""
    note: Mapping[str, str] = field(default_factory=dict)

    @classmethod
    def from_models(
        cls,
        base: nn.Module | State,
        tuned: nn.Module | State,
        *,
        eps: float = 0.0,
        absolute: Sequence[str] = (),
        form: str = "auto",
        fingerprint: str | None = None,
    ) -> Delta:
        """The difference of two networks.

        Args:
            base: A network, or tensors by name.
            tuned: The same after training.
            eps: Changes up to this size are left out (1e-7 in the authors' code).
            absolute: Names of tensors, or of modules, that are kept whole.
            form: `dense`, `sparse`, or `auto`: whichever is smaller.
            fingerprint: Of the base; by default of the tensors of `base` but the absolute ones.

        Raises:
            WeightsError: If names or shapes differ, or a difference is not finite; each is named.
        """
        start, end = state_of(base), state_of(tuned)
        whole = {n: t.detach().clone() for n, t in end.items() if is_under(n, absolute)}
        start = {n: t for n, t in start.items() if not is_under(n, absolute)}
        end = {n: t for n, t in end.items() if n not in whole}
        _same(start, end, "the base", "the tuned network")
        found = {n: difference(t, end[n], eps, form, name=n) for n, t in start.items() if _adds(t)}
        for name, value in start.items():
            if not _adds(value) and not torch.equal(value, end[name]):
                # Counters and masks have no difference that could be scaled.
                whole[name] = end[name].detach().clone()
        mark = fingerprint_tensors(start) if fingerprint is None else fingerprint
        return cls({n: e for n, e in found.items() if e is not None}, whole, mark)

    # Applying ---------------------------------------------------------------------------

    def applied(
        self, state: State, *, with_abs: bool = True, check: bool = True
    ) -> dict[str, Tensor]:
        """`state` with the differences added; what does not change is given back as it is.

        Args:
            state: Tensors by name, left alone.
            with_abs: Whether absolute tensors replace theirs.
            check: Whether the fingerprint of `state` must be that of the base.

        Raises:
            WeightsError: If it is another base (both fingerprints are shown), or a tensor is
                missing or of another shape; each is named.
        """
        if check:
            self.check_base(self.fingerprint(state))
        self._fits(state, with_abs)
        result = dict(state)
        for name, entry in self.entries.items():
            result[name] = _added(state[name], entry)
        if with_abs:
            for name, value in self.absolute.items():
                result[name] = value.to(state[name].device, state[name].dtype, copy=True)
        return result

    def apply(self, network: nn.Module, *, with_abs: bool = True, check: bool = True) -> None:
        """Add to the tensors of `network`, in place; `revert` takes it back.

        Several deltas may be applied one after the other: the base is then that of the first.

        Raises:
            WeightsError: As :meth:`applied`, and if this delta is applied already, or changes a
                tied tensor in two ways; the network is then as it was.
        """
        state = state_of(network)
        known = ledger.base_of(network)
        if check and (known is None or known != self.base):
            self.check_base(self.fingerprint(state) if known is None else known)
        self._fits(state, with_abs)
        changes: dict[str, tuple[Tensor | None, Tensor]] = {}
        for name, entry in self.entries.items():
            flat = state[name].detach().reshape(-1)
            if isinstance(entry, Sparse):
                spot = entry.index.to(flat.device)
                changes[name] = (spot, plus(flat[spot], entry.values.to(flat.device)))
            else:
                changes[name] = (None, _added(state[name], entry))
        if with_abs:
            for name, value in self.absolute.items():
                changes[name] = (None, value.to(state[name].device, state[name].dtype))
        ledger.enter(network, self, self.base, with_abs, state, changes)

    def revert(self, network: nn.Module) -> None:
        """Take back what `apply` did, every bit of it, absolute tensors included.

        Other deltas that were applied after it stay, as if this one had never been there.

        Raises:
            WeightsError: If this delta is not applied to `network`.
        """
        for later, with_abs in ledger.leave(network, self, state_of(network)):
            later.apply(network, with_abs=with_abs, check=False)

    def fingerprint(self, state: State) -> str:
        """Fingerprint of the part of `state` that is no absolute tensor of this delta."""
        return fingerprint_tensors({n: t for n, t in state.items() if n not in self.absolute})

    def check_base(self, found: str) -> None:
        """Refuse another base.

        Raises:
            WeightsError: If `found` is not the fingerprint of the base.
        """
        if found != self.base:
            raise WeightsError(
                f"The delta belongs to another base: it was made on {self.base}, and these "
                f"weights are {found}.",
                expected=f"weights with fingerprint {self.base}",
                next_step="Open the network that the delta was trained on.",
            )

    def _fits(self, state: State, with_abs: bool) -> None:
        wanted = {name: entry.shape for name, entry in self.entries.items()}
        if with_abs:
            wanted.update({name: tuple(value.shape) for name, value in self.absolute.items()})
        _complain(
            sorted(set(wanted) - set(state)),
            [],
            [(n, s, tuple(state[n].shape)) for n, s in wanted.items() if n in state],
            "the delta",
            "the network",
        )

    # Arithmetic -------------------------------------------------------------------------

    def __add__(self, other: Delta) -> Delta:
        """The sum of both, on one base; absolute tensors come from whichever has them.

        Raises:
            WeightsError: If the bases or shapes differ, or both hold the same absolute tensor
                with unlike values.
        """
        self.check_base(other.base)
        shared = set(self.entries) & set(other.entries)
        pairs = [(n, self.entries[n].shape, other.entries[n].shape) for n in sorted(shared)]
        _complain([], [], pairs, "the first delta", "the second")
        for name in sorted(set(self.absolute) & set(other.absolute)):
            if not torch.equal(self.absolute[name], other.absolute[name]):
                raise WeightsError(
                    f"Both deltas replace '{name}', with unlike values.",
                    expected="one of them to bring it",
                    next_step="Add `other.without_absolute()`.",
                )
        entries = {**self.entries, **other.entries}
        entries.update({n: total(self.entries[n], other.entries[n]) for n in shared})
        absolute = {**other.absolute, **self.absolute}
        return Delta(entries, absolute, self.base, {**other.note, **self.note})

    def __mul__(self, factor: float) -> Delta:
        """Differences times `factor`; absolute tensors stay."""
        return replace(self, entries={n: scaled(e, factor) for n, e in self.entries.items()})

    __rmul__ = __mul__

    def __neg__(self) -> Delta:
        return self * -1.0

    def without_absolute(self) -> Delta:
        """The differences alone."""
        return replace(self, absolute={})

    def __deepcopy__(self, memo: object) -> Delta:
        # It never changes, and the copy of a network must know it again to revert it.
        return self

    def count(self) -> int:
        """Number of entries that change."""
        return sum(len(places(entry)) for entry in self.entries.values())

    def density(self) -> float:
        """Entries that change over all entries of the tensors that do."""
        return self.count() / max(sum(numel(e.shape) for e in self.entries.values()), 1)

    def overlap(self, other: Delta) -> Overlap:
        """How many entries both change, and how many of them in the same direction."""
        both = agree = 0
        for name in set(self.entries) & set(other.entries):
            mine, theirs = self.entries[name], other.entries[name]
            spots = places(mine)
            spots = spots[torch.isin(spots, places(theirs), assume_unique=True)]
            both += len(spots)
            agree += int((at(mine, spots).sign() == at(theirs, spots).sign()).sum())
        return Overlap(self.count(), other.count(), both, agree)

    # Files ------------------------------------------------------------------------------

    def save(self, path: Path, note: Mapping[str, str] | None = None) -> None:
        """Write one safetensors file, whole or not at all.

        Args:
            path: Of the file.
            note: Free text by key, added to that of the delta.
        """
        files.write(
            Path(path), self.entries, self.absolute, self.base, {**self.note, **(note or {})}
        )

    @classmethod
    def load(cls, path: Path) -> Delta:
        """Read what :meth:`save` wrote.

        Raises:
            WeightsError: If the file is damaged, or no delta; names the tensor.
        """
        entries, absolute, base, metadata = files.read(Path(path))
        own = ("format", "delta", "base_fingerprint", "layout")
        return cls(entries, absolute, base, {k: v for k, v in metadata.items() if k not in own})


def state_of(network: nn.Module | State) -> dict[str, Tensor]:
    """Parameters and buffers by name; a tensor with several names stands under each."""
    if not isinstance(network, nn.Module):
        return dict(network)
    state: dict[str, Tensor] = dict(network.named_parameters(remove_duplicate=False))
    state.update(network.named_buffers(remove_duplicate=False))
    return state


def _added(value: Tensor, entry: Entry) -> Tensor:
    if isinstance(entry, Sparse):
        flat = value.detach().reshape(-1).clone()
        spot = entry.index.to(flat.device)
        flat[spot] = plus(flat[spot], entry.values.to(flat.device))
        return flat.reshape(value.shape)
    return plus(value.detach(), entry.dense().to(value.device))


def _adds(value: Tensor) -> bool:
    return value.is_floating_point()


def is_under(name: str, parents: Sequence[str]) -> bool:
    """Whether `name` is one of `parents`, or inside one."""
    return any(name == parent or name.startswith(parent + ".") for parent in parents)


def _same(first: State, second: State, left: str, right: str) -> None:
    pairs = [
        (n, tuple(first[n].shape), tuple(second[n].shape)) for n in sorted(set(first) & set(second))
    ]
    _complain(
        sorted(set(first) - set(second)), sorted(set(second) - set(first)), pairs, left, right
    )


def _complain(
    missing: Sequence[str],
    extra: Sequence[str],
    pairs: Sequence[tuple[str, tuple[int, ...], tuple[int, ...]]],
    left: str,
    right: str,
) -> None:
    faults = [f"'{name}' is missing in {right}" for name in missing]
    faults += [f"'{name}' is missing in {left}" for name in extra]
    faults += [f"'{n}' has shape {b} in {right}, not {a}" for n, a, b in pairs if a != b]
    if faults:
        more = f" and {len(faults) - 5} more" if len(faults) > 5 else ""
        raise WeightsError(
            f"{left[0].upper()}{left[1:]} and {right} do not fit: {'; '.join(faults[:5])}{more}.",
            expected="the same tensors in both",
        )
