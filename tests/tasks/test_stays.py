"""Stays from events to predictions: what is learnt, kept, restored, explained and refused."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import polars as pl
import pytest
import torch
from torch import nn

from galenic import launch
from galenic.core.config import parse
from galenic.core.errors import ConfigError, DataError
from galenic.core.fingerprint import fingerprint_bytes
from galenic.core.prediction import predict
from galenic.core.run import Run
from galenic.data.cohort import Cohort
from galenic.data.events import ordered
from galenic.data.events.schema import SCHEMA
from galenic.models.backbone import open_backbone
from galenic.pipeline.encoder import PooledEncoder
from galenic.pipeline.stays import StayCollate, StayEncoder, note_inputs
from galenic.tasks import _stays_reading, stays
from galenic.tasks._stays_config import Config

START = datetime(2026, 1, 1, tzinfo=UTC)
TINY = [
    "network.width=16", "network.time_width=8", "network.heads=2", "network.layers=1",
    "network.dropout=0", "series.window_hours=24", "series.steps=8", "score.resamples=20",
    "schedule.lr=5e-3", "schedule.weight_decay=0",
]  # fmt: skip
WORDS = ("resting well, no complaints today", "septic shock, pressors were started")


def hospital(folder: Path, count: int = 160, notes: str = "some") -> dict[str, Any]:
    """Stays that end badly where sodium rises late, or, with `notes`, where a note says so."""
    draw = np.random.default_rng(0)
    rows, manifest = [], []
    for number in range(count):
        patient, bad = f"p{number}", bool(number % 2)
        for hour in np.sort(draw.uniform(0, 24, 6)):
            late = 2.0 if bad and hour > 12 and notes != "all" else 0.0
            rows.append((patient, hour, "sodium", 140 + late + draw.normal(0, 0.3), None, "lab"))
        if number % 3:
            rows.append((patient, draw.uniform(0, 24), "urea", draw.normal(5, 1), None, "lab"))
        if notes == "all" or (notes == "some" and number % 5):
            rows.append((patient, draw.uniform(1, 23), "NOTE", None, WORDS[bad], "note"))
        # Nothing may be seen of what is after the cutoff.
        rows.append((patient, 30.0, "sodium", 0.0 if bad else 300.0, None, "lab"))
        manifest.append({
            "patient_id": patient, "cutoff": (START + timedelta(hours=24)).isoformat(),
            "label": "died" if bad else "alive", "sepsis": int(bad), "stroke": number % 4 // 2,
        })  # fmt: skip
    return write(folder, rows) | manifest_of(folder, manifest)


def write(folder: Path, rows: list[tuple[Any, ...]]) -> dict[str, Any]:
    names = ("patient_id", "hour", "code", "value", "text", "source")
    table = pl.DataFrame(rows, schema=names, orient="row", infer_schema_length=None)
    table = table.with_columns(
        time=pl.lit(START) + pl.duration(seconds=(pl.col("hour") * 3600).cast(pl.Int64)),
        **{name: pl.lit(None) for name in ("unit", "encounter_id", "end")},
    )
    table = table.select(pl.col(name).cast(kind) for name, kind in SCHEMA.items())
    (folder / "events" / "data").mkdir(parents=True)
    ordered(table).write_parquet(folder / "events" / "data" / "0.parquet")
    return {"data": folder / "events"}


def manifest_of(folder: Path, rows: list[dict[str, Any]]) -> dict[str, Any]:
    pd.DataFrame(rows).to_csv(folder / "stays.csv", index=False)
    return {"stays": str(folder / "stays.csv")}


@pytest.fixture(scope="module")
def given(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    return hospital(tmp_path_factory.mktemp("some"))


def start(given: dict[str, Any], out: Path, *overrides: str, **more: Any) -> Run:
    return launch.run("irregular-ehr", out=out, overrides=[*TINY, *overrides], **given, **more)


@pytest.mark.parametrize("gate", ["batch_seq", "imputation"])
def test_a_late_rise_is_learnt_and_a_restored_run_predicts_the_same(
    gate: str, given: dict[str, Any], tmp_path: Path
) -> None:
    run = start(given, tmp_path, f"network.gate={gate}", "schedule.epochs=12")
    assert run.metrics["auroc"].value > 0.9
    job, objective = stays.load(run)
    again = predict(objective, job.rows("test"), collate=job.collate)["logits"]
    table = pd.read_parquet(run.path / "predictions.parquet")
    scores = table[table["split"] == "test"]["score_0"].to_numpy()
    np.testing.assert_allclose(1 / (1 + np.exp(-again)), scores, atol=1e-6)
    assert (run.path / "gates.parquet").is_file() == (gate == "batch_seq")
    assert (run.path / "attention.parquet").is_file() == (gate != "imputation")


@pytest.mark.parametrize("kind", ["gru", "trees"])
def test_baselines_learn_it_too(kind: str, given: dict[str, Any], tmp_path: Path) -> None:
    run = start(given, tmp_path, f"network.kind={kind}", "schedule.epochs=20")
    assert run.metrics["auroc"].value > 0.9
    job, objective = stays.load(run)
    again = predict(objective, job.rows("test"), collate=job.collate)["logits"]
    table = pd.read_parquet(run.path / "predictions.parquet")
    scores = table[table["split"] == "test"]["score_0"].to_numpy()
    np.testing.assert_allclose(1 / (1 + np.exp(-again)), scores, atol=1e-6)


def test_what_was_read_is_told(given: dict[str, Any], tmp_path: Path) -> None:
    run = start(given, tmp_path, "schedule.epochs=1", "network.gate=batch")
    counts = run.read_json("series.json")["counts"]
    assert counts["events_after"] == 160 and counts["events_before"] == 0
    assert counts["notes_inside"] == 128 and counts["stays_of_unknown_patients"] == 0
    assert run.provenance["data"]["events"] == counts
    channels = run.read_json("series.json")["channels"]["series"]
    assert channels["names"] == ["sodium", "urea"]
    assert channels["mean"][0] == pytest.approx(140.5, abs=0.3)
    gates = pd.read_parquet(run.path / "gates.parquet")
    assert sorted(gates["row"]) == run.read_json("splits.json")["test"]
    assert gates["gate"].between(0, 1).all() and gates["hour"].isna().all()
    shares = pd.read_parquet(run.path / "attention.parquet")
    assert shares["share"].sum() == pytest.approx(1, abs=1e-5)


def test_a_run_knows_its_event_table(tmp_path: Path) -> None:
    found = hospital(tmp_path / "h", 40, notes="none")
    asked = ("schedule.epochs=1", "network.kind=gru", "modalities=[series]")
    run = start(found, tmp_path / "runs", *asked)
    file = tmp_path / "h" / "events" / "data" / "0.parquet"
    table = pl.read_parquet(file)
    told = run.provenance["data"]["events_fingerprint"]
    assert told == fingerprint_bytes(table.write_csv())
    assert told != run.provenance["data"]["fingerprint"]
    stays.load(run)
    # One value of one event is another table, of which the stays say nothing.
    last = pl.int_range(pl.len()) == table["value"].drop_nulls().len() - 1
    table.with_columns(value=pl.when(last).then(0.5).otherwise("value")).write_parquet(file)
    with pytest.raises(DataError, match="not those that the run was trained on"):
        stays.load(run)
    assert run.provenance["data"]["events_fingerprint"] == told
    other = start(found, tmp_path / "runs", *asked).provenance["data"]
    assert other["events_fingerprint"] != told
    assert other["fingerprint"] == run.provenance["data"]["fingerprint"]


@pytest.mark.parametrize("fusion", ["interleaved", "mult"])
def test_stays_without_notes_are_kept_and_notes_are_read(
    fusion: str, small_text: str, tmp_path: Path
) -> None:
    found = hospital(tmp_path, 120, notes="some")
    run = start(
        found, tmp_path / "runs", "modalities=[series,notes]", f"network.fusion={fusion}",
        "schedule.epochs=8", backbone=small_text,
    )  # fmt: skip
    assert run.metrics["auroc"].value > 0.9
    counts = run.read_json("series.json")["counts"]
    assert counts["stays_without_notes"] == 24 and counts["notes_read"] == 96
    parts = run.read_json("splits.json")
    assert sum(len(parts[part]) for part in ("train", "val", "test")) == 120
    rows = pd.read_parquet(run.path / "predictions.parquet")["row"]
    assert {row for row in rows if row % 5 == 0}


def test_notes_alone_say_what_the_series_do_not(small_text: str, tmp_path: Path) -> None:
    found = hospital(tmp_path, 80, notes="all") | {"backbone": small_text}
    aucs = {
        name: start(found, tmp_path / name, f"modalities=[{name}]", "schedule.epochs=8")
        .metrics["auroc"]
        .value
        for name in ("notes", "series")
    }
    assert aucs["notes"] > 0.95 > 0.8 > aucs["series"]


def test_a_text_network_that_trains_is_saved_and_restored(small_text: str, tmp_path: Path) -> None:
    found = hospital(tmp_path, 40, notes="all")
    run = start(
        found, tmp_path / "runs", "modalities=[series,notes]", "schedule.epochs=1",
        "schedule.max_steps=2", "schedule.batch_size=4", tuner={"method": "full"},
        backbone=small_text,
    )  # fmt: skip
    job, objective = stays.load(run)
    again = predict(objective, job.rows("test"), collate=job.collate)["logits"]
    table = pd.read_parquet(run.path / "predictions.parquet")
    scores = table[table["split"] == "test"]["score_0"].to_numpy()
    np.testing.assert_allclose(1 / (1 + np.exp(-again)), scores, atol=1e-5)


def test_the_text_network_learns_in_even_epochs_only(
    small_text: str, given: dict[str, Any], tmp_path: Path
) -> None:
    run = start(
        given, tmp_path, "modalities=[series,notes]", "schedule.max_steps=1",
        "schedule.batch_size=2", tuner={"method": "full"}, backbone=small_text,
    )  # fmt: skip
    job, objective = stays.load(run)
    rows = job.rows("train", training=True)
    batch = job.collate([rows[at] for at in range(4)])
    for epoch in range(4):
        rows.set_epoch(epoch)
        objective.zero_grad(set_to_none=True)
        objective(**batch)["loss"].backward()
        words = [p.grad is not None for p in job.backbone.parameters()]
        assert any(words) == (epoch % 2 == 0)
        assert all(p.grad is not None for p in job.network.fusion.norms.parameters())
    # Its rate is a share of the others', and what is frozen for an epoch is still trained.
    depths = job._depths()
    assert depths is not None
    assert {d for n, d in depths.items() if n.startswith("encoder.text.")} == {0}
    assert {d for n, d in depths.items() if not n.startswith("encoder.text.")} == {1}
    assert all(p.requires_grad for p in job.backbone.parameters())


def test_notes_as_tokens_and_as_features_are_the_same(small_text: str) -> None:
    from galenic.data.events.series import Notes, Series, starts_of
    from galenic.pipeline.stays import Stays

    text = open_backbone(small_text, modality="text").eval()
    notes = Notes([*WORDS, "a"], np.array([1, 2, 3], np.float32), np.array([0, 2, 2, 3]))
    nothing = Series(
        np.zeros((0, 2), np.float32), np.zeros((0, 2), bool), np.zeros(0, np.float32),
        starts_of(np.zeros(0), 3),
    )  # fmt: skip
    inputs = note_inputs(notes, text)
    seen: list[dict[str, torch.Tensor]] = []

    class Spy(nn.Module):
        def forward(self, **batch: torch.Tensor) -> torch.Tensor:
            seen.append(batch)
            return batch["notes.features"]

    encoder = StayEncoder(Spy(), PooledEncoder(text)).eval()
    with torch.no_grad():
        features = text(**StayCollate(text).tokens([inputs[at] for at in range(3)])).pooled.numpy()  # type: ignore[misc]
        for read in (inputs, features):
            found = Stays({"series": nothing}, 24, 4, notes, read)
            encoder(**StayCollate(text)([found[at] for at in range(3)]))
    one, other = seen
    assert torch.allclose(one["notes.features"], other["notes.features"], atol=1e-5)
    assert one["notes.mask"].tolist() == [[True, True], [False, False], [True, False]]
    assert (one["notes.features"][1] == 0).all()
    assert one["series.values"].shape == (3, 1, 2) and not one["series.mask"].any()
    assert one["notes.times"][0].tolist() == pytest.approx([1 / 24, 2 / 24])


def test_several_phenotypes_and_unknown_ones(tmp_path: Path) -> None:
    found = hospital(tmp_path)
    table = pd.read_csv(found["stays"])
    table.loc[::7, "stroke"] = np.nan
    table.to_csv(found["stays"], index=False)
    columns = {"label": ["sepsis", "stroke"], "kind": "multilabel"}
    for kind in ("irregular", "trees"):
        run = start(
            found, tmp_path / kind, "schedule.epochs=6", f"network.kind={kind}", columns=columns
        )
        assert {"auroc", "auprc", "macro_f1"} <= set(run.metrics)
        labels = {row["label"]: row for row in run.read_json("labels.json")}
        assert labels["sepsis"]["metrics"]["auroc"]["value"] > 0.9
        assert labels["stroke"]["n"] < labels["sepsis"]["n"]


def test_labs_on_a_clock_of_their_own_and_thinned_series(
    given: dict[str, Any], tmp_path: Path
) -> None:
    panel = ("modalities=[series,panel]", "series.panel=[urea]", "schedule.epochs=1")
    run = start(given, tmp_path, *panel)
    assert set(run.read_json("series.json")["channels"]) == {"series", "panel"}
    thin = stays.load(start(given, tmp_path, "series.keep=0.3", "schedule.epochs=1"))[0]
    whole = stays.load(run)[0]
    kept = thin.stays.series["series"].mask.sum()
    every = sum(series.mask.sum() for series in whole.stays.series.values())
    assert kept / every == pytest.approx(0.3, abs=0.05)


def test_a_definition_makes_cutoffs_and_labels(tmp_path: Path) -> None:
    rows: list[tuple[Any, ...]] = []
    ends = []
    for number in range(60):
        patient, bad = f"p{number}", number % 2 == 0
        rows += [(patient, float(h), "na", 140.0 + 3 * bad + h % 2, None, "lab") for h in range(40)]
        rows.append((patient, 0.0, "ENCOUNTER//IMP", None, None, "encounter"))
        ends.append((patient, 100.0))
        if bad:
            rows.append((patient, 90.0, "MEDS_DEATH", None, None, "patient"))
    given = write(tmp_path, rows)
    file = tmp_path / "events" / "data" / "0.parquet"
    table = pl.read_parquet(file)
    until = pl.when(pl.col("code") == "ENCOUNTER//IMP").then(pl.lit(START + timedelta(hours=100)))
    ordered(table.with_columns(end=until.cast(SCHEMA["end"]))).write_parquet(file)
    run = start(given, tmp_path / "runs", "schedule.epochs=8")
    assert run.metrics["auroc"].value > 0.95
    assert run.read_json("series.json")["counts"]["stays"] == 60
    assert run.read_json("series.json")["counts"]["events_before"] == 60 * 25


def test_real_laboratory_series_with_a_mapping_and_a_definition(
    real_data: Path, tmp_path: Path
) -> None:
    run = start(
        {"data": real_data / "eicu_demo_subset"}, tmp_path, "mapping=eicu",
        "definition=length_of_stay", "schedule.epochs=1",
    )  # fmt: skip
    found = run.read_json("series.json")
    assert found["counts"]["events_after"] > found["counts"]["events_inside"] > 1000
    assert "LAB//potassium" in found["channels"]["series"]["names"]
    assert 0 <= run.metrics["auroc"].value <= 1


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (["series.channels=[sodum]"], "'sodum' was not measured.*'sodium'"),
        (["modalities=[series,panel]", "series.panel=[iron]"], "'iron' is no channel"),
        (["series.channels=[sodium]", "modalities=[series,panel]", "series.panel=[sodium]"], "left"),
        (["network.heads=3"], "does not divide"),
        (["modalities=[series,series]"], "twice"),
        (["modalities=[panel]"], "go together"),
        (["network.kind=gru", "modalities=[notes]"], "alone"),
        (["series.levels.eyes=[a, b]"], "'eyes' is no channel"),
        (["tuner.method=full"], "no text network"),
        (["head.kind=knn"], "head of its own"),
        (["network.kind=trees", "head.loss.kind=focal"], "not grown by"),
    ],
)  # fmt: skip
def test_what_does_not_fit_is_named(
    overrides: list[str], words: str, given: dict[str, Any], tmp_path: Path
) -> None:
    with pytest.raises((ConfigError, DataError), match=words):
        start(given, tmp_path, *overrides)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda t: t.drop(columns="cutoff"), "no column 'cutoff'"),
        (lambda t: t.assign(cutoff=["soon", *t["cutoff"][1:]]), "1 stay.*cutoff"),
        (lambda t: t.assign(cutoff=range(len(t))), "cutoff"),
        (lambda t: t.assign(patient_id=t["patient_id"] + "x"), "None of the 160 stays"),
    ],
)
def test_a_manifest_that_does_not_fit_the_events_is_named(
    change: Any, words: str, given: dict[str, Any], tmp_path: Path
) -> None:
    file = tmp_path / "stays.csv"
    change(pd.read_csv(given["stays"])).to_csv(file, index=False)
    with pytest.raises(DataError, match=words):
        start({**given, "stays": str(file)}, tmp_path / "runs")


@pytest.mark.parametrize(
    ("cutoffs", "hour"),
    [
        (["2026-07-01 12:00", "2026-07-01T12:00:00.000"], 10),
        (["2026-07-01 12:00:00Z", "2026-07-01T14:00:00+02:00"], 12),
        (pd.to_datetime(["2026-07-01 12:00"] * 2), 10),
        (pd.to_datetime(["2026-07-01 12:00"] * 2, utc=True), 12),
    ],
)
def test_cutoffs_without_a_zone_hang_on_the_clock_of_the_events(cutoffs: Any, hour: int) -> None:
    table = pd.DataFrame({"patient_id": ["a", "b"], "cutoff": cutoffs})
    cohort = Cohort.open(table, inputs=["cutoff"])
    found = _stays_reading.cutoffs(cohort, "Europe/Rome")["cutoff"]
    assert found.to_list() == [datetime(2026, 7, 1, hour, tzinfo=UTC)] * 2


def test_without_a_note_the_notes_are_refused(tmp_path: Path) -> None:
    found = hospital(tmp_path, 40, notes="none")
    with pytest.raises(DataError, match="No stay has a note"):
        start(found, tmp_path / "runs", "modalities=[series,notes]")


def test_the_config_says_what_goes_together() -> None:
    assert parse(Config, {"data": "x"}).modalities == ["series"]
    with pytest.raises(ConfigError):
        parse(Config, {"data": "x", "modalities": ["series", "panel", "notes"]})
