"""What a user's bad files get from the command line: a message that helps, and an exit code."""

from __future__ import annotations

import gzip
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image
from typer.testing import CliRunner, Result

from galenic.app.cli import app

ROWS = 24


def run(manifest: Path, *words: str, recipe: str = "knn") -> Result:
    out = str(manifest.parent / "runs")
    return CliRunner().invoke(
        app,
        ["run", recipe, "--data", str(manifest), "--label", "label", "--out", out, *words],
    )


def cohort(folder: Path, name: str, write: Callable[[Path, int], None]) -> Path:
    """A manifest of `ROWS` files, each written by `write`."""
    paths = [f"{name.format(row)}" for row in range(ROWS)]
    for row, path in enumerate(paths):
        write(folder / path, row)
    labels = ["ill" if row % 2 else "well" for row in range(ROWS)]
    patients = [f"p{row}" for row in range(ROWS)]
    manifest = folder / "cohort.csv"
    table = pd.DataFrame({"patient_id": patients, "file": paths, "label": labels})
    table.to_csv(manifest, index=False)
    return manifest


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def png(path: Path, row: int) -> None:
    noise = np.random.default_rng(row).integers(0, 255, (40, 40), dtype=np.uint8)
    Image.fromarray(noise).save(path)


def dicom(path: Path, row: int) -> None:
    from pydicom.data import get_testdata_file

    shutil.copy(get_testdata_file("CT_small.dcm"), path)


def nifti(path: Path, row: int, fill: float = 0.0) -> None:
    import nibabel

    voxels = np.random.default_rng(row).normal(size=(12, 12, 4)).astype(np.float32)
    voxels[0, 0, 0] = fill
    nibabel.save(nibabel.Nifti1Image(voxels, np.eye(4)), path)


@pytest.mark.parametrize(
    ("name", "write"),
    [("{}.png", png), ("{}.dcm", dicom), ("{}.nii.gz", nifti)],
    ids=["png", "dicom", "nifti"],
)
def test_a_truncated_file_is_named(
    name: str, write: Callable[[Path, int], None], tmp_path: Path
) -> None:
    manifest = cohort(tmp_path, name, write)
    cut(tmp_path / name.format(7))
    done = run(manifest, "input.size=32")
    assert done.exit_code == 3, done.output
    assert name.format(7) in done.stderr
    assert "Traceback" not in done.output


def test_a_truncated_ecg_is_named(real_data: Path, tmp_path: Path) -> None:
    from_here = sorted((real_data / "ptbxl_500").rglob("*.hea"))[:ROWS]
    if len(from_here) < ROWS:
        pytest.skip("the ECG records are not here")

    def write(path: Path, row: int) -> None:
        source = from_here[row]
        header = source.read_text().replace(f"{source.stem}.dat", f"{path.stem}.dat")
        path.write_text(header.replace(source.stem, path.stem))
        shutil.copy(source.with_suffix(".dat"), path.with_suffix(".dat"))

    manifest = cohort(tmp_path, "e{}.hea", write)
    cut(tmp_path / "e7.dat")
    done = run(manifest)
    assert done.exit_code == 3, done.output
    assert "e7" in done.stderr


def test_infinite_intensities_are_named(tmp_path: Path) -> None:
    manifest = cohort(tmp_path, "{}.nii.gz", nifti)
    nifti(tmp_path / "7.nii.gz", 7, fill=np.inf)
    done = run(manifest, "input.size=32")
    assert done.exit_code == 3, done.output
    assert "7.nii.gz" in done.stderr
    assert "finite" in done.stderr or "infinite" in done.stderr


def test_a_channel_count_that_differs_is_named(tmp_path: Path) -> None:
    def write(path: Path, row: int) -> None:
        noise = np.random.default_rng(row).integers(0, 255, (20, 20, 4), dtype=np.uint8)
        Image.fromarray(noise, mode="RGBA").save(path)

    done = run(cohort(tmp_path, "{}.png", write), "input.channels=5")
    assert done.exit_code == 3, done.output
    assert "channel" in done.stderr
    assert "5" in done.stderr


def test_how_much_of_a_long_text_is_cut_is_said(tmp_path: Path) -> None:
    manifest = tmp_path / "notes.csv"
    words = ["cough fever " * (2 + 100 * (row % 3 == 0)) for row in range(30)]
    labels = ["ill" if row % 2 else "well" for row in range(30)]
    pd.DataFrame({"note": words, "label": labels}).to_csv(manifest, index=False)
    done = run(manifest, "input.max_length=32", "score.resamples=20")
    assert done.exit_code == 0, done.output
    assert "10 of 30 texts are longer than the 32 tokens" in done.stderr


def test_a_network_that_a_tuner_cannot_enter_lists_what_was_found() -> None:
    done = CliRunner().invoke(app, ["run", "ssf", "--data", "sample:breast-fna", "--quick"])
    assert done.exit_code == 5, done.output
    assert "'ssf' cannot enter" in done.stderr
    assert "it found" in done.stderr


@pytest.mark.parametrize(
    ("words", "parts"),
    [
        (["schedule.lrr=1e-3"], ["Unknown key 'schedule.lrr'", "Did you mean 'lr'"]),
        (["tuner.rnk=4"], ["Unknown key", "rank"]),
        (["schedule.epochs=many"], ["schedule.epochs", "many"]),
        (["tuner.rank=-1"], ["rank", "greater than or equal to 1"]),
        (["tuner.method=lorra"], ["Did you mean 'lora'"]),
    ],
)
def test_a_wrong_key_names_the_right_one(words: list[str], parts: list[str]) -> None:
    done = CliRunner().invoke(app, ["run", "lora", "--data", "sample:icd10", "--quick", *words])
    assert done.exit_code == 2, done.output
    for part in parts:
        assert part in done.stderr


def test_a_run_folder_that_exists_is_left_alone(tmp_path: Path) -> None:
    taken = tmp_path / "mine"
    taken.mkdir()
    (taken / "thesis.txt").write_text("two years")
    words = ["run", "knn", "--data", "sample:breast-fna", "--out", str(tmp_path), "--name", "mine"]
    done = CliRunner().invoke(app, words)
    assert done.exit_code == 6, done.output
    assert "exists already" in done.stderr
    assert [path.name for path in taken.iterdir()] == ["thesis.txt"]


class Payload:
    """What unpickles to a call."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Callable[..., object], tuple[object, ...]]:
        return (Path.write_text, (self.path, "executed"))


def test_a_checkpoint_that_would_run_code_is_not_run(tmp_path: Path) -> None:
    import torch
    from transformers import ViTConfig

    backbone = tmp_path / "backbone"
    ViTConfig(hidden_size=32, num_hidden_layers=1, num_attention_heads=2).save_pretrained(backbone)
    torch.save({"weight": Payload(tmp_path / "trace")}, backbone / "pytorch_model.bin")
    done = run(cohort(tmp_path, "{}.png", png), f"backbone={backbone}")
    assert done.exit_code == 4, done.output
    assert "pickle that would run code" in done.stderr
    assert not (tmp_path / "trace").exists()


def test_files_that_are_not_there_do_not_fill_the_screen(tmp_path: Path) -> None:
    manifest = cohort(tmp_path, "{}.png", lambda path, row: None)
    done = CliRunner().invoke(app, ["check", str(manifest)])
    assert done.exit_code == 1
    assert done.output.count("There is no file") == 10
    assert f"{ROWS - 10} more of 'unreadable'" in done.output
    assert f"{ROWS} errors" in done.output


def test_a_packed_manifest_that_breaks_off_is_named(tmp_path: Path) -> None:
    whole = cohort(tmp_path, "{}.png", lambda path, row: None)
    packed = tmp_path / "packed.csv.gz"
    packed.write_bytes(gzip.compress(whole.read_bytes()))
    cut(packed)
    done = run(packed)
    assert done.exit_code == 3, done.output
    assert "The manifest cannot be read: EOFError." in done.output
