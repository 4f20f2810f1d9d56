"""Errors that tell the way out.

Every fault a user can cause is a :class:`GalenicError` that says what was found, where,
what was expected, and what to do next. The command line prints these four and exits with
:attr:`GalenicError.exit_code`; no message may hold a patient identifier.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class GalenicError(Exception):
    """A fault with a way out.

    Args:
        found: What was found, in one sentence.
        where: File, row, column or key.
        expected: What would have been right.
        next_step: What the user can do now.
    """

    exit_code = 1

    def __init__(
        self, found: str, *, where: str = "", expected: str = "", next_step: str = ""
    ) -> None:
        self.found = found
        self.where = where
        self.expected = expected
        self.next_step = next_step
        super().__init__(self.message)

    @property
    def message(self) -> str:
        """All parts that are known, one a line."""
        parts = [
            ("", self.found),
            ("where: ", self.where),
            ("expected: ", self.expected),
            ("next: ", self.next_step),
        ]
        return "\n".join(label + text for label, text in parts if text)

    def __reduce__(self) -> tuple[object, ...]:
        # Errors cross process borders (data-loader workers); keyword arguments need help.
        return (_rebuild, (type(self), self.found, self.where, self.expected, self.next_step))


def _rebuild(
    kind: type[GalenicError], found: str, where: str, expected: str, next_step: str
) -> GalenicError:
    return kind(found, where=where, expected=expected, next_step=next_step)


class ConfigError(GalenicError):
    """A recipe, an override or an argument is wrong."""

    exit_code = 2


class DataError(GalenicError):
    """A manifest, a file or a label is wrong."""

    exit_code = 3


class WeightsError(GalenicError):
    """A checkpoint is damaged, unsafe or does not fit."""

    exit_code = 4


class BackboneError(GalenicError):
    """A network is unknown, or a method cannot enter it."""

    exit_code = 5


class RunError(GalenicError):
    """A run folder is taken, incomplete or not a run folder."""

    exit_code = 6


class MissingExtraError(GalenicError):
    """An optional package is not installed."""

    exit_code = 7

    @classmethod
    def of(cls, package: str, extra: str) -> MissingExtraError:
        """The error for `package`, which `galenic[extra]` brings."""
        return cls(
            f"The package '{package}' is not installed.",
            next_step=f'pip install "galenic[{extra}]"',
        )


class SimulationError(GalenicError):
    """A twin, a series or a control does not fit, or a simulation left the numbers."""

    exit_code = 8


def nearest(name: str, names: Iterable[str]) -> str:
    """'Did you mean ...?' for `name` among `names`, or '' where nothing is close."""
    close = difflib.get_close_matches(name, [str(n) for n in names], n=3, cutoff=0.5)
    return f"Did you mean {' or '.join(repr(c) for c in close)}?" if close else ""
