"""Errors tell found, where, expected and next, and survive a process border."""

from __future__ import annotations

import pickle

import pytest

from galenic.core import errors
from galenic.core.errors import DataError, GalenicError, MissingExtraError, nearest


def kinds() -> list[type[GalenicError]]:
    found = [k for k in vars(errors).values() if isinstance(k, type)]
    return [k for k in found if issubclass(k, GalenicError)]


def test_message_has_all_parts_in_order() -> None:
    error = DataError("No column 'a'.", where="x.csv", expected="a label", next_step="--label b")
    assert str(error) == "No column 'a'.\nwhere: x.csv\nexpected: a label\nnext: --label b"


def test_message_leaves_out_what_is_not_known() -> None:
    assert str(DataError("Empty.")) == "Empty."


@pytest.mark.parametrize("kind", kinds())
def test_pickles_with_its_parts(kind: type[GalenicError]) -> None:
    error = pickle.loads(pickle.dumps(kind("f", where="w", expected="e", next_step="n")))
    assert type(error) is kind
    assert (error.found, error.where, error.expected, error.next_step) == ("f", "w", "e", "n")


def test_every_kind_has_its_own_exit_code() -> None:
    codes = [kind.exit_code for kind in kinds()]
    assert len(set(codes)) == len(codes)
    assert 0 not in codes


def test_missing_extra_gives_the_install_line() -> None:
    error = MissingExtraError.of("wfdb", "signals")
    assert 'pip install "galenic[signals]"' in str(error)
    assert "wfdb" in error.found


@pytest.mark.parametrize(
    ("name", "expected"),
    [("lables", "Did you mean 'labels'?"), ("zzzz", "")],
)
def test_nearest(name: str, expected: str) -> None:
    assert nearest(name, ["labels", "volumes"]) == expected
