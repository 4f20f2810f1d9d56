"""Every task: the same broken manifests give the same clear errors."""

from __future__ import annotations

from pathlib import Path

import pandas as pd
import pytest
from typer.testing import CliRunner

from galenic.app.cli import app
from galenic.core import registry
from galenic.core.recipes import list_recipes

# The cheapest recipe of each task: the one that trains nothing, or the first.
RECIPE_OF_TASK = {
    recipe.task: recipe.recipe for recipe in sorted(list_recipes(), key=lambda r: r.recipe == "knn")
}


def good() -> pd.DataFrame:
    rows = range(40)
    return pd.DataFrame(
        {
            "patient_id": [f"p{row}" for row in rows],
            "note": [f"{'cough' if row % 2 else 'fracture'} number {row}" for row in rows],
            "label": ["lung" if row % 2 else "bone" for row in rows],
        }
    )


def empty(table: pd.DataFrame) -> pd.DataFrame:
    return table.iloc[:0]


def one_class(table: pd.DataFrame) -> pd.DataFrame:
    return table.assign(label="lung")


def no_label_column(table: pd.DataFrame) -> pd.DataFrame:
    return table.drop(columns="label")


def misspelt_column(table: pd.DataFrame) -> pd.DataFrame:
    return table.rename(columns={"note": "notes"})


def missing_image(table: pd.DataFrame) -> pd.DataFrame:
    return table.assign(note=[f"images/{row}.png" for row in range(len(table))])


def patient_in_two_splits(table: pd.DataFrame) -> pd.DataFrame:
    parts = ["train", "val", "test", "train"] * 10
    return table.assign(patient_id=["p0"] * 4 + list(table["patient_id"][4:]), split=parts)


def label_only_in_test(table: pd.DataFrame) -> pd.DataFrame:
    parts = (["train"] * 4 + ["val"] * 2 + ["test"] * 4) * 4
    labels = [
        "heart" if part == "test" and row % 3 == 0 else label
        for row, (part, label) in enumerate(zip(parts, table["label"], strict=True))
    ]
    return table.assign(split=parts, label=labels)


# `predict` has no recipe, it takes a run: what it refuses stands with its own tests.
TASKS = [name for name in registry.modules("galenic.tasks") if name != "predict"]
# Tasks that read a cohort; the others say that they do not.
ON_COHORTS = [
    name for name in TASKS if getattr(registry.load("galenic.tasks", name), "READS_COHORT", True)
]
BROKEN = {
    empty: "no rows|empty",
    one_class: "one class|only",
    no_label_column: "label",
    misspelt_column: "notes",
    missing_image: "images/",
    patient_in_two_splits: "patient",
    label_only_in_test: "heart",
}


# Faults of the labels that a split alone does not meet.
ABOUT_LABELS = {label_only_in_test}


# Faults of classes, and a column of pictures beside one of words.
ABOUT_CLASSES = {one_class, label_only_in_test, missing_image}


def labels_of(task: str) -> str:
    return str(getattr(registry.load("galenic.tasks", task), "LABELS", "classes"))


def needs_labels(task: str) -> bool:
    return bool(getattr(registry.load("galenic.tasks", task), "NEEDS_LABELS", True))


@pytest.mark.parametrize("task", ON_COHORTS)
@pytest.mark.parametrize("breaks", BROKEN, ids=lambda f: f.__name__)
def test_broken_manifest_gives_a_clear_error(task: str, breaks, tmp_path: Path) -> None:
    if breaks in ABOUT_LABELS and not needs_labels(task):
        pytest.skip("no label is used")
    if breaks in ABOUT_CLASSES and labels_of(task) != "classes":
        pytest.skip(f"the labels of {task} are {labels_of(task)}, not classes")
    table = breaks(good())
    manifest = tmp_path / "cohort.csv"
    table.to_csv(manifest, index=False)
    extra = ["--split", "split"] if "split" in table else []
    done = CliRunner().invoke(
        app,
        [
            "run",
            RECIPE_OF_TASK[task],
            "--data",
            str(manifest),
            "--label",
            "label",
            *extra,
            "--inputs",
            "note",
            "--patient-id",
            "patient_id",
            "--out",
            str(tmp_path / "runs"),
        ],
    )
    assert done.exit_code == 3, done.output
    assert "Traceback" not in done.output
    assert any(word in done.output for word in BROKEN[breaks].split("|")), done.output
    assert "p0" not in done.output.replace("cohort", "")


@pytest.mark.parametrize("task", TASKS)
def test_missing_manifest_names_the_file(task: str, tmp_path: Path) -> None:
    done = CliRunner().invoke(
        app, ["run", RECIPE_OF_TASK[task], "--data", str(tmp_path / "nothing.csv")]
    )
    assert done.exit_code == 3
    assert "nothing.csv" in done.output
