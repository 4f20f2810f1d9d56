"""Whether a patch fits a base: names, shapes, types; what does not fit is named."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, field

from torch import Tensor

from galenic.core.errors import WeightsError
from galenic.merging.sources import Source, Weights
from galenic.models.delta import Delta, Entry

_SHOWN = 5


@dataclass(frozen=True)
class Naming:
    """How names in a network become names in a base: one prefix less, or one more.

    A network with a head calls `bert.encoder.x` what the bare encoder calls `encoder.x`.

    Attributes:
        less: Text that is taken off the front.
        more: Text that is put there.
    """

    less: str = ""
    more: str = ""

    def __call__(self, name: str) -> str:
        return self.more + name.removeprefix(self.less)

    @classmethod
    def between(cls, wanted: Collection[str], present: Collection[str]) -> Naming:
        """The naming under which most of `wanted` are `present`; none where that is as good."""
        there, names = set(present), set(wanted)
        if names <= there:
            return cls()
        # Each name by its ends, so that the work does not grow with the square of their number.
        less = {cls(less=start) for name in names for start, end in _cuts(name) if end in there}
        more = {cls(more=start) for name in there for start, end in _cuts(name) if end in names}
        options = {cls(), *less, *more}
        ordered = sorted(options, key=lambda naming: (len(naming.less + naming.more), naming.more))
        return max(ordered, key=lambda naming: sum(naming(name) in there for name in wanted))


def _cuts(name: str) -> Iterator[tuple[str, str]]:
    """A name in two, after each of its dots."""
    for at, sign in enumerate(name):
        if sign == ".":
            yield name[: at + 1], name[at + 1 :]


@dataclass(frozen=True)
class Fitted:
    """A patch by the names of one base.

    Attributes:
        entries: What is added.
        copied: What is put in, or put in the place of something.
        left_out: Targets that are not applied, with the reason.
    """

    entries: dict[str, Entry]
    copied: dict[str, Tensor]
    left_out: dict[str, str] = field(default_factory=dict)


def fit(
    delta: Delta,
    base: Weights,
    unresolved: Collection[str] = (),
    *,
    allow_missing: bool = False,
    unwanted: Mapping[str, str] | None = None,
) -> Fitted:
    """Find the target of every difference in `base`.

    Args:
        delta: By the names of the network that it was trained in.
        base: Where it goes.
        unresolved: Names of values of `delta` that may be differences or copies.
        allow_missing: Leave out what `base` lacks, instead of refusing.
        unwanted: Targets to leave out, with the reason.

    Raises:
        WeightsError: If a target is missing, of another shape, or quantised; names it.
    """
    present = base.names()
    naming = Naming.between(delta.entries, present)
    there = set(present)
    fitted = Fitted({}, {naming(name): value for name, value in delta.absolute.items()})
    fitted.left_out.update(unwanted or {})
    faults = []
    for name, entry in delta.entries.items():
        if name in fitted.left_out:
            continue
        target = naming(name)
        if target not in there:
            fitted.left_out[name] = f"missing in {base.label}"
            faults += [] if allow_missing else [f"'{name}' is missing"]
            continue
        fault = _fault(name, entry.shape, base.source(target))
        faults += [fault] if fault else []
        fitted.entries[target] = entry
    for name in unresolved:
        if naming(name) in there:
            faults.append(f"'{name}' is a trained value, and without the old base no difference")
    for name, value in fitted.copied.items():
        fault = _fault(name, tuple(value.shape), base.source(name)) if name in there else ""
        faults += [fault] if fault else []
    if faults:
        more = f" and {len(faults) - _SHOWN} more" if len(faults) > _SHOWN else ""
        raise WeightsError(
            f"The patch does not fit {base.label}: {'; '.join(faults[:_SHOWN])}{more}.",
            expected="a base of the same architecture, with the same names and shapes",
            next_step="Take a later version of the network that the patch was trained on.",
        )
    return fitted


def _fault(name: str, shape: tuple[int, ...], source: Source) -> str:
    if not source.dtype.is_floating_point:
        kind = str(source.dtype).removeprefix("torch.")
        return f"'{name}' is {kind}, quantised it seems: keep the adapter apart on such a base"
    if source.shape == shape:
        return ""
    if source.shape == shape[::-1]:
        return f"'{name}' is transposed: {source.shape} there, {shape} in the patch"
    return f"'{name}' has shape {source.shape} there, {shape} in the patch"
