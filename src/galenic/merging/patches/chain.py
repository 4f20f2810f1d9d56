"""One patch for a series of versions of its base: once onto each, never onto a ported one."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from pathlib import Path

import torch
from torch import nn

from galenic.core.errors import ConfigError, WeightsError
from galenic.core.files import atomic_json, plain
from galenic.merging.checkpoints import Checkpoint
from galenic.merging.folders import locate, require_apart
from galenic.merging.patches.activations import Probe
from galenic.merging.patches.checking import Allowed, examine
from galenic.merging.patches.fitting import Fitted
from galenic.merging.patches.gate import Gate, judged, require_accepted
from galenic.merging.patches.patch import Patch, require_finite
from galenic.merging.patches.portability import Portability
from galenic.merging.patches.porting import write_ported
from galenic.merging.patches.recovery import Recovery, recovery
from galenic.merging.sources import Weights
from galenic.merging.writing import Progress

REPORT = "chain_report.json"
# Where the old base stands with its patch while it is scored; never kept.
_OLD = ".old-patched"
Network = str | Path | nn.Module


@dataclass(frozen=True)
class Evaluation:
    """How the arms of a chain are scored.

    Attributes:
        score: From a network to a figure. It gets what the chain was given: a module, with or
            without the patch in it, or a folder, which is the base's or a ported one's.
        greater_is_better: Which way the figure points.
        retrained: By name of version, the same base with a patch that was trained on it: without
            it a version has no recovery share.
    """

    score: Callable[[Network], float]
    greater_is_better: bool = True
    retrained: Mapping[str, Network] = field(default_factory=dict)


@dataclass(frozen=True)
class Version:
    """What became of one version.

    Attributes:
        name: Of the version.
        portability: Of the patch onto it; says whether the port was accepted, or why not.
        folder: Where the ported network is; None where it was refused, or none was to be written.
        recovery: The arms, where an evaluation was given and the weights passed the gate.
    """

    name: str
    portability: Portability
    folder: Path | None = None
    recovery: Recovery | None = None


def chain(
    patch: Patch,
    bases: Mapping[str, Network],
    *,
    old: Network | None = None,
    out: str | Path | None = None,
    scale: float = 1.0,
    allow: Collection[Allowed] = (),
    gate: Gate | None = None,
    probe: Probe | None = None,
    evaluation: Evaluation | None = None,
    progress: Progress | None = None,
) -> tuple[Version, ...]:
    """Port one patch to every version of its base, each from the version as it was released.

    All versions are checked before the first is written. One that the gate refuses is reported and
    left out; the others go on. A live network has the patch while it is scored, and every bit of
    its own afterwards.

    Args:
        patch: Made once, on `old`.
        bases: theta', theta'', ... by name: folders, files or cached ids, or live networks.
        old: The base that the patch was made on, for the drift and the first two arms.
        out: Gets a folder for each version, by its name, and `chain_report.json`; None writes
            nothing.
        scale: Factor of the differences.
        allow: As for :meth:`Patch.check`.
        gate: What is refused.
        probe: Text for the drift of the activations.
        evaluation: Scores the arms of every version.
        progress: Called after every tensor that is written.

    Raises:
        ConfigError: If there are no bases, a name is no name of a folder, `out` would replace what
            is read, folders are to be scored and `out` is not given, or the gate asks for what is
            not measured.
        WeightsError: If the patch does not fit a version, a version is named twice, or one holds
            the patch already; nothing is written then.
    """
    require_finite(scale)
    place = None if out is None else Path(out)
    _require_places(bases, old, place, evaluation)
    if gate is not None and gate.min_gain is not None and evaluation is None:
        raise ConfigError("The gain is not measured.", where="min_gain", expected="an evaluation")
    before = None if gate is None else gate.before
    found = {name: examine(patch, base, old, allow, before, probe) for name, base in bases.items()}
    _require_unlike({name: known.new for name, (_, _, known) in found.items()})
    runner = _Chain(patch, scale, allow, gate, evaluation, place, progress)
    start = runner.start(old) if evaluation is not None else (None, None)
    versions = tuple(runner.version(n, bases[n], found[n], start) for n in bases)
    if place is not None:
        place.mkdir(parents=True, exist_ok=True)
        atomic_json(place / REPORT, {"patch": patch.fingerprint, "scale": scale,
                                     "versions": plain(versions)})  # fmt: skip
    return versions


class _ScoredError(Exception):
    """Ends the writing of a folder that was to be scored, and not kept."""


@dataclass(frozen=True)
class _Chain:
    patch: Patch
    scale: float
    allow: Collection[Allowed]
    gate: Gate | None
    evaluation: Evaluation | None
    out: Path | None
    progress: Progress | None

    def start(self, old: Network | None) -> tuple[float | None, float | None]:
        """Figures of the old base, without and with the patch; None where it is not known."""
        if old is None:
            return None, None
        bare = self._score(old)
        if isinstance(old, nn.Module):
            with self._patched(old):
                return bare, self._score(old)
        weights, fitted, known = examine(self.patch, old, None, {*self.allow, "same"})
        patched: list[float] = []

        def judge(folder: Path) -> Portability:
            patched.append(self._score(folder))
            raise _ScoredError

        with suppress(_ScoredError):
            self._write(weights, fitted, known, _OLD, judge)
        return bare, patched[0]

    def version(
        self,
        name: str,
        base: Network,
        found: tuple[Weights, Fitted, Portability],
        start: tuple[float | None, float | None],
    ) -> Version:
        """One port, from the base as it is."""
        weights, fitted, known = found
        version = Version(name, known)
        live = isinstance(base, nn.Module)
        if not known.accepted or (self.evaluation is None and (live or self.out is None)):
            return version
        bare = None if self.evaluation is None else self._score(base)

        def judge(ported: Network) -> Portability:
            nonlocal version
            if bare is not None:
                arms = self._arms(name, start, bare, ported)
                told = judged(replace(known, gain=arms.gain), self.gate)
                version = replace(version, portability=told, recovery=arms)
                if not live:
                    require_accepted(told, weights.label)
            return version.portability

        if isinstance(base, nn.Module):
            with self._patched(base):
                judge(base)
            return version
        try:
            self._write(weights, fitted, known, name, judge)
        except WeightsError:
            if version.portability.accepted:
                raise
            return version
        assert self.out is not None
        return replace(version, folder=self.out / name)

    def _arms(
        self, name: str, start: tuple[float | None, float | None], bare: float, ported: Network
    ) -> Recovery:
        assert self.evaluation is not None
        again = self.evaluation.retrained.get(name)
        retrained = None if again is None else self._score(again)
        better = self.evaluation.greater_is_better
        return recovery(*start, bare, self._score(ported), retrained, greater_is_better=better)

    @contextmanager
    def _patched(self, network: nn.Module) -> Iterator[None]:
        self.patch.apply(network, self.scale, allow=self.allow)
        try:
            yield
        finally:
            self.patch.revert(network)

    def _write(
        self,
        weights: Weights,
        fitted: Fitted,
        known: Portability,
        name: str,
        judge: Callable[[Path], Portability],
    ) -> None:
        assert isinstance(weights, Checkpoint)
        assert self.out is not None
        threads = torch.get_num_threads()

        def unhurried(folder: Path) -> Portability:
            # Writing takes one thread; scoring has them all.
            torch.set_num_threads(threads)
            return judge(folder)

        write_ported(
            weights, fitted, known, self.out / name, self.scale, self.progress, judge=unhurried
        )

    def _score(self, network: Network) -> float:
        assert self.evaluation is not None
        return float(self.evaluation.score(network))


def _require_places(
    bases: Mapping[str, Network],
    old: Network | None,
    out: Path | None,
    evaluation: Evaluation | None,
) -> None:
    if not bases:
        raise ConfigError("There is no base to port to.", expected="later versions by name")
    for name in bases:
        if not name or name.startswith(".") or Path(name).name != name:
            raise ConfigError(f"'{name}' is no name of a folder.", expected="such as model-1.1")
    for name in evaluation.retrained if evaluation is not None else ():
        if name not in bases:
            raise ConfigError(f"'{name}' was trained anew, and is no version of the chain.",
                              expected=", ".join(bases))  # fmt: skip
    networks = [b for b in (*bases.values(), old) if b is not None]
    files = [b for b in networks if not isinstance(b, nn.Module)]
    if files and evaluation is not None and out is None:
        raise ConfigError("Folders are scored as they are written, and no output was named.",
                          where="out", expected="a folder")  # fmt: skip
    if out is not None:
        read = [locate(str(file), Path.cwd()) for file in files]
        for name in bases:
            # Else a later version would be read with the patch in it.
            require_apart(out / name, read)


def _require_unlike(marks: Mapping[str, str]) -> None:
    """Refuse the same weights under two names."""
    first: dict[str, str] = {}
    for name, mark in marks.items():
        if mark in first:
            raise WeightsError(
                f"The versions '{first[mark]}' and '{name}' are the same weights.",
                expected="every version once",
            )
        first[mark] = name
