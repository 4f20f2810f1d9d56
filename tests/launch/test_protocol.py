"""The radiology protocol in one call, for classes and for masks."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from galenic.app import report
from galenic.core.errors import BackboneError, ConfigError
from galenic.launch.curve import curve
from galenic.launch.protocol import MASKS, protocol

TINY = ["input.size=64", "schedule.epochs=1", "schedule.batch_size=16"]
NETWORK = "builtin:resnet10?width=4"


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Squares, bright or dark, with their masks; two pictures a patient."""
    folder = tmp_path_factory.mktemp("squares")
    rng = np.random.default_rng(0)
    rows = []
    for number in range(48):
        pixels, mask = rng.normal(120, 8, (32, 32)), np.zeros((32, 32), np.uint8)
        bright, (y, x) = number // 2 % 2, rng.integers(2, 18, 2)
        mask[y : y + 12, x : x + 12] = 1
        pixels[mask == 1] += 80 if bright else -80
        Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(folder / f"{number}.png")
        Image.fromarray(mask).save(folder / f"{number}-mask.png")
        rows.append(
            {
                "image": f"{number}.png",
                "mask": f"{number}-mask.png",
                "label": f"kind {bright}",
                "patient_id": number // 2,
            }
        )
    pd.DataFrame(rows).to_csv(folder / "cohort.csv", index=False)
    return folder / "cohort.csv"


def test_classes_on_two_networks(pictures: Path, tmp_path: Path) -> None:
    networks = [NETWORK, "builtin:resnet10?width=2"]
    made = protocol(
        pictures, backbones=networks, recipes=["knn", "dinov2-radiology", "lora"],
        shots=["all", 2], seeds=2, out=tmp_path, overrides=TINY[:1],
        columns={"inputs": ["image"]},
    )  # fmt: skip
    found = made.read_json("curve.json")
    names = [f"{recipe} on {name}" for name in networks for recipe in ("knn", "dinov2-radiology")]
    assert list(dict.fromkeys(p["recipe"] for p in found["points"])) == names
    assert [p["shots"] for p in found["points"][:2]] == [2, "all"]
    assert set(found["left_out"]) == {f"lora on {name}" for name in networks}
    table = pd.read_csv(made.path / "curve.csv")
    assert table["value"].tolist() == pytest.approx([p["value"] for p in found["points"]])
    assert {"low", "high"} <= set(table)
    page = report.write(made.path).read_text(encoding="utf-8")
    assert "2 a class" in page and "lora on" in page and page.count("<polyline") == 4


def test_masks_are_seen_by_the_label(pictures: Path, tmp_path: Path) -> None:
    made = protocol(
        pictures, backbones=[NETWORK], shots=[3], seeds=2, out=tmp_path, overrides=TINY,
        columns={"inputs": ["image"], "label": "mask"},
    )  # fmt: skip
    found = made.read_json("curve.json")
    assert found["metric"] == "dice" and found["of"] == "in all"
    assert [p["recipe"] for p in found["points"]] == list(MASKS)
    assert not found["left_out"]
    assert "3 in all" in report.write(made.path).read_text(encoding="utf-8")


def test_what_no_network_takes_is_an_error(pictures: Path, tmp_path: Path) -> None:
    columns = {"inputs": ["image"]}
    with pytest.raises(BackboneError, match="'lora' cannot enter"):
        protocol(pictures, backbones=[NETWORK], recipes=["lora"], out=tmp_path, columns=columns)
    with pytest.raises(ConfigError, match="or 'all'"):
        curve(["knn"], pictures, shots=["many"], out=tmp_path, columns=columns)
