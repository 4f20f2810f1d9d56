"""Config: typed, frozen, unknown keys are errors that name the nearest."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import Field, ValidationError

from galenic.core.config import Config, apply_overrides, dump_yaml, load_yaml, merge, parse
from galenic.core.errors import ConfigError


class Inner(Config):
    rank: int = Field(8, ge=1)
    rate: float = 0.1


class Outer(Config):
    name: str
    tuner: Inner = Inner()


def test_parse_fills_defaults() -> None:
    assert parse(Outer, {"name": "x"}).tuner.rank == 8


def test_config_is_frozen() -> None:
    config = Inner()
    with pytest.raises(ValidationError):
        config.rank = 3


@pytest.mark.parametrize(
    ("values", "parts"),
    [
        ({"name": "x", "tunr": {}}, ["Unknown key 'tunr'", "Did you mean 'tuner'?"]),
        ({"name": "x", "tuner": {"rnk": 2}}, ["Unknown key 'tuner.rnk'", "'rank'"]),
        ({"name": "x", "tuner": {"rank": "many"}}, ["'tuner.rank' got 'many'", "integer"]),
        ({"name": "x", "tuner": {"rank": 0}}, ["'tuner.rank' got 0", "greater than or equal to 1"]),
        ({}, ["Key 'name' is missing"]),
    ],
)
def test_bad_values_are_named(values: dict[str, object], parts: list[str]) -> None:
    with pytest.raises(ConfigError) as caught:
        parse(Outer, values, where="recipe x")
    for part in parts:
        assert part in str(caught.value)
    assert "where: recipe x" in str(caught.value)


def test_all_faults_are_told_at_once() -> None:
    with pytest.raises(ConfigError, match=r"(?s)one.*two|two.*one"):
        parse(Outer, {"name": "x", "one": 1, "two": 2})


@pytest.mark.parametrize(
    ("override", "expected"),
    [
        ("a.b=3", {"a": {"b": 3}}),
        ("a.b=1e-3", {"a": {"b": 1e-3}}),
        ("a.b='1e-3'", {"a": {"b": "1e-3"}}),
        ('a.b="3.0"', {"a": {"b": "3.0"}}),
        ("a.b=true", {"a": {"b": True}}),
        ("a.b=null", {"a": {"b": None}}),
        ("a.b=[1, 2]", {"a": {"b": [1, 2]}}),
        ("a.b=x=y", {"a": {"b": "x=y"}}),
        ("new.key=v", {"a": {"b": 0}, "new": {"key": "v"}}),
    ],
)
def test_overrides(override: str, expected: dict[str, object]) -> None:
    before = {"a": {"b": 0}}
    assert apply_overrides(before, [override]) == expected
    assert before == {"a": {"b": 0}}


@pytest.mark.parametrize("override", ["a", "=3", "a.b.c=1", "a=[1"])
def test_bad_overrides(override: str) -> None:
    with pytest.raises(ConfigError):
        apply_overrides({"a": {"b": 0}}, [override])


def test_merge_is_deep_and_changes_nothing() -> None:
    base, over = {"a": {"b": 1, "c": 2}, "d": 3}, {"a": {"b": 9}, "e": [1]}
    assert merge(base, over) == {"a": {"b": 9, "c": 2}, "d": 3, "e": [1]}
    assert base == {"a": {"b": 1, "c": 2}, "d": 3}
    assert over == {"a": {"b": 9}, "e": [1]}


# Control characters and Unicode's own line ends do not survive libyaml's folding.
letters = st.characters(exclude_categories=["Cc", "Cs", "Zl", "Zp"])
text = st.text(letters)
leaves = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | text
trees = st.dictionaries(st.text(letters, min_size=1), leaves | st.lists(leaves), max_size=5)


@given(values=trees)
def test_yaml_round_trip(
    tmp_path_factory: pytest.TempPathFactory, values: dict[str, object]
) -> None:
    path = tmp_path_factory.mktemp("yaml") / "x.yaml"
    path.write_text(dump_yaml(values), encoding="utf-8")
    assert load_yaml(path) == values


@pytest.mark.parametrize(
    ("content", "part"),
    [
        (b"a: [1", "is not YAML"),
        (b"- 1\n- 2\n", "holds list"),
        (b"\xff\xfe\x00bad", "cannot be read"),
        (b"a: !!python/object/apply:os.system ['true']", "is not YAML"),
        (None, "There is no file"),
    ],
)
def test_bad_yaml(tmp_path: Path, content: bytes | None, part: str) -> None:
    path = tmp_path / "x.yaml"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(ConfigError, match=part):
        load_yaml(path)


def test_a_folder_is_no_yaml_file(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"is a folder(.|\n)*galenic report"):
        load_yaml(tmp_path)
