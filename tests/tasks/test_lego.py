"""Several inputs from one manifest: blocks, merged, fused, and with inputs missing."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

from galenic import launch
from galenic.core.errors import ConfigError, DataError
from galenic.core.prediction import predict
from galenic.core.run import Run
from galenic.data.cohort import Cohort
from galenic.models.lego import store
from galenic.pipeline.lego import presence, split_inputs
from galenic.pipeline.paired import PairedCollate, PairedRows
from galenic.pipeline.tokens import TokenEncoder
from galenic.tasks import lego

TINY = ["block.latent=[8,16]", "block.heads=2", "block.head_width=8", "score.resamples=20"]
GROUPS = ["tables.left=[a0,a1]", "tables.right=[b0,b1]"]


def cohort(kind: str, n: int = 300, missing: bool = False) -> pd.DataFrame:
    """Two pairs of measures; `four` classes need both, `xor` is in neither of them alone."""
    draw = np.random.default_rng(0)
    values = draw.normal(size=(n, 4))
    left, right = (values[:, 0] > 0).astype(int), (values[:, 2] > 0).astype(int)
    table = pd.DataFrame(values, columns=["a0", "a1", "b0", "b1"])
    if missing:
        table.loc[::3, ["a0", "a1"]] = np.nan
        table.loc[1::5, ["b0", "b1"]] = np.nan
        table.loc[table["a0"].isna() & table["b0"].isna(), "b1"] = 0.5
    label = 2 * left + right if kind == "four" else left ^ right
    return table.assign(label=[f"class {v}" for v in label], patient_id=np.arange(n))


def start(table: pd.DataFrame, folder: Path, *overrides: str, **columns) -> Run:
    folder.mkdir(exist_ok=True)
    table.to_csv(folder / "cohort.csv", index=False)
    return launch.run(
        "mm-lego", folder / "cohort.csv", out=folder / "runs", columns=columns,
        overrides=[*TINY, *overrides],
    )  # fmt: skip


def values(run: Run) -> dict[str, float]:
    return {arm["name"]: arm["test"]["value"] for arm in run.read_json("lego.json")["arms"]}


def scores_of(run: Run) -> np.ndarray:
    """Of the samples in test, in their order."""
    found = pd.read_parquet(run.path / "predictions.parquet")
    return found[found["split"] == "test"].filter(like="score").to_numpy()


def elsewhere(run: Run, table: pd.DataFrame, folder: Path) -> np.ndarray:
    """What `predict` says of the samples in test, as a manifest of their own without labels."""
    new = folder / "new.csv"
    rows = run.read_json("splits.json")["test"]
    table.iloc[rows].drop(columns="label").to_csv(new, index=False)
    made = launch.predict(run.path, new, out=folder / "predicted")
    return pd.read_csv(made.path / "predictions.csv").filter(regex="^p_").to_numpy()


def test_merged_knows_what_each_block_knows(tmp_path: Path) -> None:
    run = start(
        cohort("four"), tmp_path, *GROUPS, "merge.latents=sum",
        "schedule.epochs=8", "schedule.lr=5e-3",
    )  # fmt: skip
    found = values(run)
    assert list(found) == [
        "left", "right", "merged", "late", "merged without left", "merged without right",
    ]  # fmt: skip
    # A block tells two of four classes from the other two.
    assert found["left"] < 0.62 and found["right"] < 0.62
    assert found["merged"] > 0.75
    assert found["merged without left"] == found["right"]
    assert run.metrics["balanced_accuracy"].value == found["merged"]


@pytest.mark.parametrize("mode", ["stack", "weave"])
def test_fused_learns_what_is_in_no_block_alone(mode: str, tmp_path: Path) -> None:
    run = start(
        cohort("xor"), tmp_path, *GROUPS, f"fuse.mode={mode}", "schedule.epochs=2",
        "fuse.schedule.epochs=15", "fuse.schedule.lr=3e-3",
    )  # fmt: skip
    found = values(run)
    assert run.read_json("lego.json")["predicts"] == "fused"
    assert found["fused"] > 0.9
    assert max(found[name] for name in ("left", "right", "late", "merged")) < 0.75
    job, objective = lego.load(run)
    again = predict(
        objective, PairedRows(job.modalities, job.splits.test, job.targets),
        collate=PairedCollate(job.modalities),
    )["logits"]  # fmt: skip
    table = pd.read_parquet(run.path / "predictions.parquet")
    scores = table[table["split"] == "test"]["score_0"].to_numpy()
    np.testing.assert_allclose(1 / (1 + np.exp(-again)), scores, atol=1e-5)


def test_missing_inputs_go_all_the_way(tmp_path: Path) -> None:
    table = cohort("four", missing=True)
    run = start(
        table, tmp_path, *GROUPS, "fuse.mode=stack", "schedule.epochs=1", "fuse.schedule.epochs=1"
    )
    np.testing.assert_allclose(elsewhere(run, table, tmp_path), scores_of(run), atol=1e-5)
    with pytest.raises(DataError, match=r"No sample has 'left'"):
        elsewhere(run, table.assign(a0=np.nan, a1=np.nan, b0=1.0), tmp_path)
    present = run.provenance["data"]["present"]
    assert present["left"] == int(table[["a0", "a1"]].notna().any(axis=1).sum())
    assert present["right"] == int(table[["b0", "b1"]].notna().any(axis=1).sum())
    arms = {arm["name"]: arm for arm in run.read_json("lego.json")["arms"]}
    splits = run.read_json("splits.json")
    known = table[["a0", "a1"]].notna().any(axis=1).to_numpy()[splits["test"]].sum()
    assert arms["left"]["test_samples"] == known < len(splits["test"])
    for name in ("merged", "fused", "late"):
        assert arms[name]["test_samples"] == len(splits["test"])
    events = pd.read_json(run.path / "log.jsonl", lines=True)
    paired = int(events.loc[events["event"] == "fuse", "paired"].iloc[0])
    both = table[["a0", "a1"]].notna().any(axis=1) & table[["b0", "b1"]].notna().any(axis=1)
    assert paired == int(both.to_numpy()[splits["train"]].sum())
    # A sample with one input is predicted by the block of that input.
    frame = pd.read_parquet(run.path / "arms.parquet").set_index(["arm", "row"])
    row = next(row for row in splits["test"] if not known_of(table, row, "a"))
    scores = [f"score_{c}" for c in range(4)]
    np.testing.assert_allclose(
        frame.loc[("merged", row), scores].astype(float),
        frame.loc[("right", row), scores].astype(float), atol=1e-6,
    )  # fmt: skip

    # Late fusion is the mean of what there is.
    both_there = next(
        row for row in splits["test"] if known_of(table, row, "a") and known_of(table, row, "b")
    )
    mean = (frame.loc[("left", both_there), scores] + frame.loc[("right", both_there), scores]) / 2
    for at, expected in ((both_there, mean), (row, frame.loc[("right", row), scores])):
        np.testing.assert_allclose(
            frame.loc[("late", at), scores].astype(float), expected.astype(float), atol=1e-5
        )


def known_of(table: pd.DataFrame, row: int, group: str) -> bool:
    return bool(table.loc[row, [f"{group}0", f"{group}1"]].notna().any())


def test_text_and_table_with_frozen_and_with_tuned_encoders(tmp_path: Path) -> None:
    rows = range(60)
    words = ["cough and fever", "fracture of the arm", "rash on the skin"]
    table = pd.DataFrame(
        {
            "note": [f"{words[r % 3]} since {r} days" if r % 7 else None for r in rows],
            "age": [20 + r for r in rows],
            "label": [["lung", "bone", "skin"][r % 3] for r in rows],
        }
    )
    short = ["schedule.max_steps=3", "schedule.batch_size=8"]
    frozen = start(table, tmp_path, *short, inputs=["note", "age"])
    assert frozen.provenance["data"]["inputs"] == {"note": "text", "table": "table"}
    tuned = start(
        table, tmp_path, *short, "tuner.method=lora", "fuse.mode=stack",
        "fuse.schedule.max_steps=2", inputs=["note", "age"],
    )  # fmt: skip
    for run in (frozen, tuned):
        job, objective = lego.load(run)
        again = predict(
            objective, PairedRows(job.modalities, job.splits.test, job.targets),
            collate=PairedCollate(job.modalities),
        )["logits"]  # fmt: skip
        found = pd.read_parquet(run.path / "predictions.parquet")
        scores = found[found["split"] == "test"].filter(like="score").to_numpy()
        np.testing.assert_allclose(torch.from_numpy(again).softmax(-1).numpy(), scores, atol=2e-5)
        np.testing.assert_allclose(elsewhere(run, table, tmp_path), scores, atol=2e-5)
    size = (frozen.path / "lego" / "model.safetensors").stat().st_size
    assert size < 5e6
    assert frozen.read_json("cost.json")["trainable"] * 4 < size * 1.1


def test_a_block_trained_elsewhere_is_used_as_it_is(tmp_path: Path) -> None:
    table = cohort("four", 200)
    # Another seed, another training part: the table is encoded in another way there.
    short = ["schedule.epochs=2", "seed=1"]
    here = start(table.drop(columns=["b0", "b1"]), tmp_path / "a", *short, "tables.left=[a0,a1]")
    there = start(table.drop(columns=["a0", "a1"]), tmp_path / "b", *short, "tables.right=[b0,b1]")
    both = start(
        table, tmp_path / "c", *GROUPS, f"trained.left={here.path}", f"trained.right={there.path}"
    )
    assert both.read_json("cost.json")["steps"] == 0
    np.testing.assert_allclose(elsewhere(both, table, tmp_path), scores_of(both), atol=1e-5)
    for name, run in (("left", here), ("right", there)):
        own = pd.read_parquet(run.path / "predictions.parquet").set_index("row")
        seen = pd.read_parquet(both.path / "arms.parquet")
        seen = seen[seen["arm"] == name].set_index("row")
        rows = sorted(set(own.index[own["split"] == "test"]) & set(seen.index))
        assert rows
        np.testing.assert_allclose(
            seen.loc[rows].filter(like="score"), own.loc[rows].filter(like="score"), atol=1e-6
        )
    with pytest.raises(ConfigError, match="other classes"):
        renamed = table.assign(label=table["label"] + "!")
        start(renamed, tmp_path / "d", *GROUPS, f"trained.left={here.path}")
    with pytest.raises(ConfigError, match="another kind of label: multiclass"):
        measured = cohort("four", 200).assign(label=np.arange(200) / 3)
        start(measured, tmp_path / "e", *GROUPS, f"trained.left={here.path}")


def test_no_block_is_scored_on_what_it_was_trained_on(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    table, short = cohort("four", 80), ["schedule.max_steps=1"]
    first = start(table, tmp_path / "a", *GROUPS, *short)
    for other in ("seed=1", "split.test=0.4"):
        with pytest.raises(DataError, match="'left' was trained on") as error:
            start(table, tmp_path / "b", *GROUPS, f"trained={first.path}", other)
        assert "same seed and split" in error.value.message
    capsys.readouterr()
    start(table, tmp_path / "b", *GROUPS, f"trained={first.path}")
    assert "cannot be checked" not in capsys.readouterr().err
    start(table.iloc[:70], tmp_path / "c", *GROUPS, f"trained.right={first.path}", *short, "seed=1")
    assert "The blocks of 'right' come from another manifest" in capsys.readouterr().err


def test_blocks_count_in_the_unit_that_they_learnt(tmp_path: Path) -> None:
    table, short = cohort("four", 120), ["schedule.max_steps=3"]
    table["label"] = 50 + 10 * (table["a0"] + table["b0"])
    high = table[table["label"] > 50].reset_index(drop=True)
    first = start(table, tmp_path / "a", *GROUPS, *short)
    both, left = (
        start(high, tmp_path / key, *GROUPS, *short, f"{key}={first.path}")
        for key in ("trained", "trained.left")
    )
    for run in (both, left):
        assert run.read_json("metrics.json")["unit"] == first.read_json("metrics.json")["unit"]
    rows, new = both.read_json("splits.json")["test"], tmp_path / "new.csv"
    high.iloc[rows].drop(columns="label").to_csv(new, index=False)
    made = launch.predict(first.path, new, out=tmp_path / "predicted")
    said = pd.read_csv(made.path / "predictions.csv")["predicted"]
    np.testing.assert_allclose(said, scores_of(both)[:, 0], rtol=1e-5)
    second = start(high, tmp_path / "d", *GROUPS, *short)
    with pytest.raises(ConfigError, match="different units"):
        start(
            high, tmp_path / "e", *GROUPS, f"trained.left={first.path}",
            f"trained.right={second.path}",
        )  # fmt: skip


def test_a_fusion_begins_with_the_head_that_was_merged(tmp_path: Path) -> None:
    run = start(
        cohort("xor", 80), tmp_path, *GROUPS, "merge.weights={left: 0.9, right: 0.1}",
        "fuse.mode=weave", "schedule.max_steps=2", "fuse.schedule.max_steps=1",
    )  # fmt: skip
    job, _ = lego.load(run)
    job._make_fused()
    assert job.fused is not None
    for name, value in job.merged.head_state().items():
        assert torch.equal(job.fused.head.state_dict()[name], value), name


def test_all_blocks_of_one_run_are_merged_in_another_way(tmp_path: Path) -> None:
    table, short = cohort("four", 200), ["schedule.epochs=2"]
    first = start(table, tmp_path / "a", *GROUPS, *short)
    again = start(table, tmp_path / "b", *GROUPS, *short, f"trained={first.path}")
    by_sum = ["merge.latents=sum", f"trained={first.path}"]
    summed = start(table, tmp_path / "c", *GROUPS, *short, *by_sum)
    anew = start(table, tmp_path / "d", *GROUPS, *short, "merge.latents=sum")
    assert again.read_json("cost.json")["steps"] == 0
    assert values(again) == values(first)
    assert values(summed) == values(anew)


@pytest.mark.parametrize("chosen", ["left", "late", "concat"])
def test_each_arm_can_be_the_prediction(chosen: str, tmp_path: Path) -> None:
    table = cohort("four", 120)
    run = start(table, tmp_path, *GROUPS, "schedule.max_steps=4", f"predict={chosen}")
    np.testing.assert_allclose(elsewhere(run, table, tmp_path), scores_of(run), atol=1e-5)
    if chosen == "left":
        with pytest.raises(DataError, match="lack 'left'"):
            elsewhere(
                run, table.assign(a0=table["a0"].where(table.index % 2 == 0), a1=None), tmp_path
            )
    assert run.metrics["balanced_accuracy"].value == values(run)[chosen]
    job, objective = lego.load(run)
    if chosen == "concat":
        logits = predict(
            objective, PairedRows(job.modalities, job.splits.test, job.targets),
            collate=PairedCollate(job.modalities),
        )["logits"]  # fmt: skip
        shares = torch.from_numpy(logits).softmax(-1)
        np.testing.assert_allclose(shares, scores_of(run), atol=1e-5)


def test_the_best_input_is_chosen_on_validation(tmp_path: Path) -> None:
    table = cohort("four", 240)
    # `right` alone says everything in training and validation; `left` is noise.
    table["b1"] = table["label"].str[-1].astype(int) - 1.5 + 0.01 * table["b1"]
    run = start(table, tmp_path, *GROUPS, "schedule.epochs=4", "predict=best")
    document = run.read_json("lego.json")
    arms = {arm["name"]: arm["val"]["value"] for arm in document["arms"]}
    assert arms["right"] > arms["left"]
    assert document["predicts"] == "right"
    with pytest.raises(ConfigError, match="cannot be called 'merged'"):
        start(cohort("four", 80), tmp_path / "b", "tables.merged=[a0,a1]")


@pytest.mark.parametrize("kind", ["continuous", "multilabel", "binary"])
def test_every_kind_of_label(kind: str, tmp_path: Path) -> None:
    table = cohort("xor", 120, missing=True)
    label: str | list[str] = "label"
    if kind == "continuous":
        table["label"] = 100 + 7 * table["a0"].fillna(0) + np.arange(120) / 50
    elif kind == "multilabel":
        table["label"] = (np.arange(120) % 2).astype(int)
        table["other"] = (np.arange(120) % 3 == 0).astype(int)
        label = ["label", "other"]
    run = start(
        table, tmp_path, *GROUPS, "schedule.max_steps=3", "fuse.mode=weave",
        "fuse.schedule.max_steps=2", label=label,
    )  # fmt: skip
    assert all(np.isfinite(value) for value in values(run).values())
    if kind == "continuous":
        frame = pd.read_parquet(run.path / "arms.parquet")
        assert frame[frame["arm"] == "late"]["score_0"].between(60, 140).all()


def test_a_heart_is_read_from_its_tracing_its_report_and_its_owner(
    real_data: Path, tmp_path: Path
) -> None:
    pytest.importorskip("efficientnet_lite_pytorch")
    pytest.importorskip("wfdb")
    run = launch.run(
        "mm-lego", real_data / "ptbxl_500" / "records.csv", out=tmp_path, quick=True,
        columns={
            "inputs": ["filename_lr", "report", "age", "sex", "height", "weight"],
            "label": "diagnostic_superclass",
        },
        overrides=[*TINY, "inputs.filename_lr.size=64", "fuse.mode=stack"],
    )  # fmt: skip
    assert run.provenance["data"]["inputs"] == {
        "filename_lr": "ecg", "report": "text", "table": "table",
    }  # fmt: skip
    assert len(run.read_json("lego.json")["arms"]) == 3 + 3 + 6


@pytest.mark.parametrize("part", ["block-1", "fuse"])
def test_a_run_that_was_cut_off_goes_on_to_the_same_end(
    part: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    words = [*GROUPS, "fuse.mode=weave", "schedule.epochs=2", "fuse.schedule.epochs=2"]
    whole = start(cohort("xor", 120), tmp_path / "whole", *words)
    fit = lego.LegoJob._fit

    def cut(job, *args, **kwargs) -> None:
        if any(isinstance(arg, str) and arg.startswith(part) for arg in args):
            raise KeyboardInterrupt
        fit(job, *args, **kwargs)

    monkeypatch.setattr(lego.LegoJob, "_fit", cut)
    with pytest.raises(KeyboardInterrupt):
        start(cohort("xor", 120), tmp_path / "cut", *words)
    monkeypatch.undo()
    path = next((tmp_path / "cut" / "runs").glob("mm-lego*"))
    again = launch.run("mm-lego", resume=path)
    first, second = (pd.read_parquet(r.path / "arms.parquet") for r in (whole, again))
    pd.testing.assert_frame_equal(first, second, check_exact=True)


# Parts -------------------------------------------------------------------------------------


def test_inputs_are_split_and_presence_is_told() -> None:
    table = pd.DataFrame(
        {
            "note": ["a long note here", None, "another long note", " "] * 3,
            "age": [1.0, np.nan, 2.0, 3.0] * 3,
            "urea": [np.nan, np.nan, 4.0, 1.0] * 3,
            "label": ["x", "y"] * 6,
        }
    )
    whole = Cohort.open(table, inputs=["note", "age", "urea"])
    parts = split_inputs(whole, {"labs": ["urea"]})
    assert {name: dict(part.inputs) for name, part in parts.items()} == {
        "labs": {"labs": "table"}, "note": {"note": "text"}, "table": {"table": "table"},
    }  # fmt: skip
    assert parts["table"].feature_columns == ("age",)
    assert presence(parts["note"])[:4].tolist() == [True, False, True, False]
    assert presence(parts["table"])[:4].tolist() == [True, False, True, True]
    assert presence(parts["labs"])[:4].tolist() == [False, False, True, True]
    assert dict(whole.inputs) == {"note": "text", "table": "table"}
    assert "table" not in split_inputs(whole, {"labs": ["urea", "age"]})
    for tables, words in (
        ({"a": ["urea"], "b": ["urea"]}, "two places"),
        ({"a": ["label"]}, "two places"),
        ({"note": ["urea"]}, "group"),
    ):
        with pytest.raises(ConfigError, match=words):
            split_inputs(whole, tables)
    with pytest.raises(DataError, match="urea"):
        split_inputs(whole, {"labs": ["ureas"]})


def test_states_computed_ahead_are_those_of_the_network(tmp_path: Path) -> None:
    notes = ["a short note", "a much longer note of many more words than that", "words of a note"]
    table = pd.DataFrame({"note": notes * 20, "label": ["x", "y", "z"] * 20})
    run = start(table, tmp_path, "schedule.max_steps=1", inputs=["note"])
    job, _ = lego.load(run)
    note = job.modalities[0]
    encoder = TokenEncoder(note.backbone).eval()
    collate = PairedCollate([note])
    ahead = collate([PairedRows([note], np.arange(3), job.targets)[i] for i in range(3)])
    states, mask = encoder(ahead["0.tokens"], ahead["0.mask"])
    note.ahead.clear()
    live = collate([PairedRows([note], np.arange(3), job.targets)[i] for i in range(3)])
    parts = {k.partition(".")[2]: v for k, v in live.items() if k.startswith("0.")}
    with torch.no_grad():
        expected, there = encoder(**parts)
    assert torch.equal(mask, there.bool())
    torch.testing.assert_close(states[mask], expected[mask], atol=1e-4, rtol=1e-4)


# Bad input ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("overrides", "kind", "words"),
    [
        (["predict=fused"], ConfigError, "fuse.mode"),
        (["predict=middle"], ConfigError, "middle"),
        (["backbones.lft=builtin:table"], ConfigError, "left"),
        (["inputs.lft.size=8"], ConfigError, "left"),
        (["merge.weights={left: 1.0}"], ConfigError, "weights"),
        (["merge.latents=harmony"], ConfigError, "harmonic"),
        (["trained.middle=somewhere"], ConfigError, "middle"),
        (["head.kind=knn"], ConfigError, "head of its own"),
        (["head.dropout=0.5"], ConfigError, "without dropout"),
        (["head.grow_from=somewhere"], ConfigError, "without grow_from"),
        (["head.loss.kind=huber"], ConfigError, "head.loss.kind=huber"),
        (["head.pos_weight=2"], ConfigError, "to weigh"),
        (["schedule.layer_decay=0.5"], ConfigError, "layer_decay"),
        (["fuse.schedule.layer_decay=0.5"], ConfigError, "layer_decay"),
        (["fuse.mode=stack", "merge.head=ot"], ConfigError, "merge.head=ot"),
        (["fuse.mode=stack", "fuse.order=[left]"], ConfigError, "order"),
    ],
)
def test_a_wrong_word_is_named(overrides, kind, words: str, tmp_path: Path) -> None:
    with pytest.raises(kind) as error:
        start(cohort("four", 80), tmp_path, *GROUPS, "schedule.max_steps=1", *overrides)
    assert words in error.value.message


def test_samples_without_any_input_and_inputs_without_samples(tmp_path: Path) -> None:
    table = cohort("four", 80)
    table.loc[[3, 9], ["a0", "a1", "b0", "b1"]] = np.nan
    with pytest.raises(DataError, match="2 samples have none") as error:
        start(table, tmp_path / "a", *GROUPS)
    assert "rows 3, 9" in error.value.message
    table = cohort("four", 80)
    table[["a0", "a1"]] = np.nan
    with pytest.raises(DataError, match="No training sample has 'left'"):
        start(table, tmp_path / "b", *GROUPS)
    table = cohort("four", 80)
    table.loc[::2, ["a0", "a1"]] = np.nan
    table.loc[1::2, ["b0", "b1"]] = np.nan
    with pytest.raises(DataError, match="nothing to fuse on"):
        start(table, tmp_path / "c", *GROUPS, "fuse.mode=stack", "schedule.max_steps=1")
    # Said before anything is trained.
    for place, predicts in (("d", "left"), ("e", "best")):
        with pytest.raises(DataError, match="lack 'left'"):
            start(table, tmp_path / place, *GROUPS, f"predict={predicts}", "schedule.max_steps=1")
        logs = [path.read_text() for path in (tmp_path / place).rglob("log.jsonl")]
        assert not any('"part"' in text for text in logs)


def test_a_saved_block_can_be_read_without_the_task(tmp_path: Path) -> None:
    run = start(cohort("four", 80), tmp_path, *GROUPS, "schedule.max_steps=2")
    job, _ = lego.load(run)
    block = job.merged.block("left")
    found = store.load_block(run.path / "lego", "left", block.encoder).eval()
    x = {"table": torch.randn(3, 2)}
    assert torch.equal(found(x), block.eval()(x))
