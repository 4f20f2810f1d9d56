"""Every recipe through the same checks, found through the registry."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from galenic import launch
from galenic.core import registry
from galenic.core.config import parse
from galenic.core.recipes import Recipe, list_recipes
from galenic.core.run import Run

RECIPES = {recipe.recipe: recipe for recipe in list_recipes()}
LEADS = ("I", "II", "III", "aVR", "aVL", "aVF", "V1", "V2", "V3", "V4", "V5", "V6")
FILES = (
    "config.yaml",
    "provenance.json",
    "status.json",
    "log.jsonl",
    "splits.json",
    "metrics.json",
    "cost.json",
    "predictions.parquet",
    "calibration.json",
    "mistakes.json",
    "head.safetensors",
)
# Their loss is one of all samples together, which has no interval.
OF_ALL_SAMPLES = ("barlow-twins",)


@pytest.fixture(params=RECIPES)
def recipe(request: pytest.FixtureRequest) -> Recipe:
    return RECIPES[request.param]


def cohort_for(recipe: Recipe, folder: Path) -> Path | str | None:
    """Something that the recipe works on."""
    task = registry.load("galenic.tasks", recipe.task)
    if not task.Config.model_fields["data"].is_required():
        return None
    modalities = recipe.about.modalities
    if modalities == ["events"]:
        return histories(folder)
    if recipe.task == "detect":
        return "sample:brain_slices"
    if recipe.task == "segment":
        return masked(folder)
    if "image" in modalities and "text" not in modalities:
        return pictures(folder)
    return tracings(folder) if modalities == ["ecg"] else "sample:icd10"


def histories(folder: Path) -> Path:
    """Sixty patients in hospital, one in three of whom dies there, as a folder of MEDS."""
    shard = folder / "meds" / "data" / "0.parquet"
    if shard.is_file():
        return shard.parents[1]
    rng = np.random.default_rng(0)
    first = pd.Timestamp("2026-01-01")
    rows = []
    for number in range(60):
        sick = number % 3 == 0
        end = first + pd.Timedelta(days=9 if sick else 4)
        own = [
            {"code": "MEDS_BIRTH", "time": pd.Timestamp("1960-06-01")},
            {"code": "ENCOUNTER//IMP", "time": first, "end": end},
        ]
        own += [
            {"code": "LAB//sodium", "time": first + pd.Timedelta(hours=hour),
             "numeric_value": 138 + 6 * sick + rng.normal()}
            for hour in range(1, 60, 6)
        ]  # fmt: skip
        own += [{"code": "MEDS_DEATH", "time": end}] * sick
        rows += [row | {"subject_id": number + 1} for row in own]
    shard.parent.mkdir(parents=True)
    pd.DataFrame(rows).to_parquet(shard)
    return shard.parents[1]


def pictures(folder: Path) -> Path:
    """Forty pictures of two patterns, and their manifest."""
    manifest = folder / "pictures.csv"
    if manifest.is_file():
        return manifest
    rng = np.random.default_rng(0)
    places = np.arange(48)
    rows = []
    for number in range(40):
        waves = np.sin(places / (2 + 3 * (number % 2)))[:, None] * np.cos(places / 4)
        pixels = 128 + 60 * waves + rng.normal(0, 8, waves.shape)
        name = f"p{number:02d}.png"
        Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(folder / name)
        rows.append({"patient_id": number, "image": name, "label": f"pattern {number % 2}"})
    pd.DataFrame(rows).to_csv(manifest, index=False)
    return manifest


def masked(folder: Path) -> Path:
    """Thirty pictures of a bright square each, their masks, and their manifest."""
    manifest = folder / "masked.csv"
    if manifest.is_file():
        return manifest
    rng = np.random.default_rng(0)
    rows = []
    for number in range(30):
        mask = np.zeros((48, 48), np.uint8)
        first, second = rng.integers(4, 24, 2)
        mask[first : first + 16, second : second + 16] = 1
        pixels = 90 + 90 * mask + rng.normal(0, 10, mask.shape)
        row = {"patient_id": number, "image": f"m{number}.png", "mask": f"m{number}-mask.png"}
        Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(folder / row["image"])
        Image.fromarray(mask).save(folder / row["mask"])
        rows.append(row)
    pd.DataFrame(rows).to_csv(manifest, index=False)
    return manifest


def tracings(folder: Path) -> Path:
    """Forty tracings of twelve leads, slow hearts and fast ones, and their manifest."""
    wfdb = pytest.importorskip("wfdb")
    manifest = folder / "tracings.csv"
    if manifest.is_file():
        return manifest
    rng = np.random.default_rng(0)
    seconds = np.arange(1000)[:, None] / 100
    rows = []
    for number in range(40):
        rate = 1 + number % 2
        beats = np.exp(-50 * np.sin(np.pi * rate * seconds) ** 2) * rng.uniform(0.5, 1.5, 12)
        wfdb.wrsamp(
            f"r{number:02d}",
            fs=100,
            units=["mV"] * 12,
            sig_name=list(LEADS),
            p_signal=beats + rng.normal(0, 0.02, beats.shape),
            fmt=["16"] * 12,
            write_dir=str(folder),
        )
        rows.append({"patient_id": number, "ecg": f"r{number:02d}.hea", "label": rate})
    pd.DataFrame(rows).to_csv(manifest, index=False)
    return manifest


def smaller(recipe: Recipe) -> list[str]:
    """Overrides that make a recipe cheap; it shows the same on small pictures in small batches."""
    modalities = recipe.about.modalities
    if "text" in modalities or not {"image", "ecg"} & set(modalities):
        return []
    found = ["schedule.batch_size=8"]
    if "vit" in str(recipe.config.get("backbone")):
        found += ["backbone=builtin:vit?width=48&depth=2&heads=3&image=96&patch=16"]
    elif "image" in modalities:
        found += ["input.size=96"]
    # Three layers of 8,192 features have 150 million weights.
    return [*found, "pretraining.dim=256"] if recipe.recipe == "barlow-twins" else found


@pytest.fixture(scope="session")
def quick_runs(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """One quick run a recipe and seed, made when first asked for."""
    out = tmp_path_factory.mktemp("runs")
    made: dict[tuple[str, int], Run] = {}

    def get(name: str, repeat: int = 0) -> Run:
        if (name, repeat) not in made:
            recipe = RECIPES[name]
            made[name, repeat] = launch.run(
                name,
                cohort_for(recipe, out),
                out=out,
                quick=True,
                seed=3,
                overrides=smaller(recipe),
            )
        return made[name, repeat]

    return get


def test_names_its_paper_and_validates(recipe: Recipe) -> None:
    assert recipe.about.paper
    assert recipe.about.summary.endswith(".")
    task = registry.load("galenic.tasks", recipe.task)
    parse(task.Config, {**recipe.config, "data": "cohort.csv"})


def test_quick_writes_every_file_of_a_run(recipe: Recipe, quick_runs: Any) -> None:
    run = quick_runs(recipe.recipe)
    assert run.state == "finished"
    files = getattr(registry.load("galenic.tasks", recipe.task), "FILES", FILES)
    assert [name for name in files if not (run.path / name).is_file()] == []
    main = run.read_json("metrics.json")["main"]
    estimate = run.metrics[main]
    if recipe.recipe in OF_ALL_SAMPLES:
        assert np.isnan([estimate.low, estimate.high]).all() and np.isfinite(estimate.value)
    else:
        assert estimate.low <= estimate.value <= estimate.high


def test_same_seed_gives_the_same_predictions(recipe: Recipe, quick_runs: Any) -> None:
    name = getattr(registry.load("galenic.tasks", recipe.task), "TABLE", "predictions.parquet")
    first = pd.read_parquet(quick_runs(recipe.recipe).path / name)
    again = pd.read_parquet(quick_runs(recipe.recipe, 1).path / name)
    pd.testing.assert_frame_equal(first, again, check_exact=True)


def test_no_patient_identifier_in_the_run_folder(recipe: Recipe, tmp_path: Path) -> None:
    if recipe.recipe != "knn":
        pytest.skip("all recipes of a task write the same files; the cheapest one stands for them")
    rows = range(60)
    table = pd.DataFrame(
        {
            "patient_id": [f"SECRET-{row // 2}" for row in rows],
            "note": [
                f"fever and cough day {row}" if row % 4 < 2 else f"knee {row}" for row in rows
            ],
            "label": ["lung" if row % 4 < 2 else "bone" for row in rows],
        }
    )
    manifest = tmp_path / "cohort.csv"
    table.to_csv(manifest, index=False)
    run = launch.run("knn", manifest, out=tmp_path / "runs", columns={"inputs": ["note"]})
    leaks = [
        path.name
        for path in run.path.rglob("*")
        if path.is_file() and b"SECRET" in path.read_bytes()
    ]
    assert leaks == []
