"""Settings are tried on validation patients, the same number for every arm."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from galenic import launch
from galenic.core.errors import ConfigError, DataError
from galenic.core.recipes import open_recipe
from galenic.launch.search import search

DATA = "sample:breast-fna"


def test_every_arm_tries_as_many_settings_and_the_first_are_its_own(tmp_path: Path) -> None:
    made = launch.compare(["linear", "knn"], DATA, out=tmp_path, budget=2, seed=1)
    for name in ("linear", "knn"):
        found = _read(made.path / "search" / name / "search.json")
        assert len(found["tried"]) == found["budget"] == 2
        first = found["tried"][0]["settings"]
        config = open_recipe(name).config
        for key, value in first.items():
            own: Any = config
            for part in key.split("."):
                own = own[part]
            assert value == own
        best = max(found["tried"], key=lambda row: row["value"])
        arm = next(row for row in made.rows if row["recipe"] == name)
        used = (made.path / arm["run"] / "config.yaml").read_text(encoding="utf-8")
        for key, value in best["settings"].items():
            assert f"{key.rpartition('.')[2]}: {value}" in used
    assert not list((made.path / "search").rglob("trial-*"))


def test_the_search_is_decided_on_validation_patients_only(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    scores = iter([(0.6, 0.9), (0.7, 0.1), (0.5, 0.95)])
    monkeypatch.setattr(launch, "run", lambda *_, path, **__: _Done(*next(scores)))
    best = search("linear", DATA, 3, tmp_path, seed=0)
    tried = _read(tmp_path / "search.json")["tried"]
    assert best == [f"{k}={v}" for k, v in tried[1]["settings"].items()]


def test_what_the_user_fixed_is_not_varied(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[list[str]] = []

    def run(*_: Any, overrides: list[str], **__: Any) -> Any:
        seen.append(overrides)
        return _Done(0.5, 0.5)

    monkeypatch.setattr(launch, "run", run)
    key = next(iter(open_recipe("lora").search))
    search("lora", DATA, 2, tmp_path, overrides=[f"{key}=7"])
    for words in seen:
        assert [word for word in words if word.startswith(f"{key}=")] == [f"{key}=7"]


def test_a_setting_that_fails_is_told_and_the_others_go_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    results: Iterator[Any] = iter([DataError("too wide"), _Done(0.4, 0.4)])

    def run(*_: Any, **__: Any) -> Any:
        result = next(results)
        if isinstance(result, Exception):
            raise result
        return result

    monkeypatch.setattr(launch, "run", run)
    best = search("linear", DATA, 2, tmp_path)
    tried = _read(tmp_path / "search.json")["tried"]
    assert "too wide" in tried[0]["error"]
    assert best == [f"{k}={v}" for k, v in tried[1]["settings"].items()]


@pytest.mark.parametrize("values", [[None, 0.4], [None, None]])
def test_what_validation_cannot_tell_is_no_figure(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, values: list[float | None]
) -> None:
    given = iter(values)
    monkeypatch.setattr(launch, "run", lambda *_, **__: _Done(next(given), 0.9))
    if values[1] is None:
        with pytest.raises(DataError, match="auroc is not defined on the validation patients"):
            search("linear", DATA, 2, tmp_path)
    else:
        best = search("linear", DATA, 2, tmp_path)
        tried = _read(tmp_path / "search.json")["tried"]
        assert best == [f"{k}={v}" for k, v in tried[1]["settings"].items()]


def test_when_every_setting_fails_the_first_error_is_raised(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    errors = iter([DataError("first"), DataError("second")])

    def run(*_: Any, **__: Any) -> Any:
        raise next(errors)

    monkeypatch.setattr(launch, "run", run)
    with pytest.raises(DataError, match="first"):
        search("linear", DATA, 2, tmp_path)


def test_a_search_over_nothing_says_what_to_write(tmp_path: Path) -> None:
    recipe = tmp_path / "mine.yaml"
    text = (Path(launch.__file__).parents[1] / "recipes" / "knn.yaml").read_text(encoding="utf-8")
    recipe.write_text(text.split("search:")[0], encoding="utf-8")
    with pytest.raises(ConfigError, match="nothing to search"):
        search(str(recipe), DATA, 2, tmp_path)
    with pytest.raises(ConfigError, match="1 or more"):
        search("knn", DATA, 0, tmp_path)


def _read(path: Path) -> Any:
    return json.loads(path.read_text(encoding="utf-8"))


class _Done:
    """A run of which only the metrics are asked."""

    def __init__(self, validation: float | None, test: float) -> None:
        self.metrics = {
            "main": "auroc",
            "validation": {"auroc": {"value": validation}},
            "test": {"auroc": {"value": test}},
        }

    def read_json(self, name: str) -> Any:
        assert name == "metrics.json"
        return self.metrics
