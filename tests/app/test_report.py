"""The report: one file, offline, escaped, tolerant of what is missing."""

from __future__ import annotations

import re
from html.parser import HTMLParser
from pathlib import Path

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


def test_the_model_card_says_what_it_is_not(run: Run) -> None:
    report.write(run.path)
    card = (run.path / "README.md").read_text(encoding="utf-8")
    assert "no medical device" in card
    assert "SECRET" not in card
