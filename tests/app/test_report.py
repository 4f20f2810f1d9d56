"""The report: one file, offline, escaped, tolerant of what is missing."""

from __future__ import annotations

import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from galenic import launch
from galenic.app import report
from galenic.core.run import Run

SCRIPT = "<script>alert(1)</script>"
VOID = {"meta", "img", "line", "circle", "polyline", "br"}


class Balanced(HTMLParser):
    """Fails where a tag is closed that was not opened."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.seen: set[str] = set()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.seen.add(tag)
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        if tag not in VOID:
            assert self.open.pop() == tag


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    folder = tmp_path_factory.mktemp("report")
    rows = range(60)
    table = pd.DataFrame(
        {
            "patient_id": [f"SECRET-{row // 2}" for row in rows],
            "note": [f"a cough {SCRIPT} of {row % 7} days, {row}" for row in rows],
            "label": [SCRIPT if row % 4 < 2 else "bone" for row in rows],
        }
    )
    table.to_csv(folder / "cohort.csv", index=False)
    return launch.run(
        "knn", folder / "cohort.csv", columns={"inputs": ["note"]}, out=folder, quick=True
    )


def test_report_is_whole_escaped_offline_and_names_nobody(run: Run) -> None:
    text = report.write(run.path).read_text(encoding="utf-8")
    page = Balanced()
    page.feed(text)
    assert page.open == []
    assert "script" not in page.seen
    assert "&lt;script&gt;" in text
    assert not re.search(r"(src|href)=[\"']?(https?:)?//", text)
    assert "SECRET" not in text
    assert "nan" not in " ".join(re.findall(r"(?:points|cx|cy|x1|y1)=\"([^\"]*)\"", text))


def test_a_run_without_its_numbers_still_has_a_report(run: Run, tmp_path: Path) -> None:
    import shutil

    bare = tmp_path / "bare"
    bare.mkdir()
    for name in ("config.yaml", "provenance.json", "status.json", "log.jsonl"):
        shutil.copy(run.path / name, bare / name)
    assert "No metrics were written" in report.write(bare).read_text(encoding="utf-8")


@pytest.mark.parametrize(
    ("recipe", "task", "config"),
    [
        ("trees", "classify", {}),
        ("compare", "compare", {"recipes": ["knn", "linear"]}),
        ("curve", "curve", {"seeds": 3, "shots": [1]}),
        ("sites", "sites", {"seeds": 3}),
        ("digital-twin-control", "control", {}),
        ("merge", "merged", {}),
        ("yolo", "detect", {}),
        ("lora", "predict", {}),
    ],
)
def test_what_failed_before_its_data_were_described_has_a_report(
    tmp_path: Path, recipe: str, task: str, config: dict[str, Any]
) -> None:
    run = Run.create(tmp_path, "cut")
    run.start(config, recipe=recipe, task=task)
    run.fail("interrupted")
    text = report.write(run.path).read_text(encoding="utf-8")
    assert "This run is failed. interrupted" in text
    page = Balanced()
    page.feed(text)
    assert page.open == []


def test_a_control_run_that_was_cut_off_while_it_wrote_has_a_report(tmp_path: Path) -> None:
    run = Run.create(tmp_path, "cut")
    run.start({}, recipe="digital-twin-control", task="control")
    run.write_json("metrics.json", {"main": "control_cost", "kind": "control", "classes": [],
                                    "test": {}})  # fmt: skip
    run.write_json("control.json", {"twin": "wolf_sheep"})
    assert "This run is running" in report.write(run.path).read_text(encoding="utf-8")


@pytest.mark.parametrize("name", ["my-probe", "knn"])
def test_a_recipe_of_ones_own_has_a_card_with_its_title_and_paper(
    tmp_path: Path, name: str
) -> None:
    mine = tmp_path / "mine.yaml"
    mine.write_text(
        f"recipe: {name}\ntitle: Neighbours of mine\ntask: classify\nabout:\n"
        f"  paper: Me, 2026\n  summary: It asks around.\n"
    )
    made = launch.run(str(mine), "sample:breast-fna", out=tmp_path, quick=True)
    # The card is of the run as it was, wherever the file is.
    mine.unlink()
    report.write(made.path)
    card = (made.path / "README.md").read_text(encoding="utf-8")
    assert "# Neighbours of mine on " in card
    assert "It asks around. Method: Me, 2026.\n" in card


def test_a_recipe_that_says_nothing_of_itself_has_a_card(tmp_path: Path) -> None:
    mine = tmp_path / "mine.yaml"
    mine.write_text("recipe: my-probe\ntask: classify\n")
    made = launch.run(str(mine), "sample:breast-fna", out=tmp_path, quick=True)
    report.write(made.path)
    card = (made.path / "README.md").read_text(encoding="utf-8")
    assert "# my-probe on " in card and "Method" not in card


def test_the_model_card_says_what_it_is_not(run: Run) -> None:
    report.write(run.path)
    card = (run.path / "README.md").read_text(encoding="utf-8")
    assert "no medical device" in card
    assert "SECRET" not in card
