"""Runs side by side on one network, and what is merged of them: the task and the command."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
import yaml
from safetensors.torch import load_file
from transformers import AutoTokenizer, BertConfig, BertModel
from typer.testing import CliRunner, Result

from galenic import launch
from galenic.app import report
from galenic.app.cli import app
from galenic.core.errors import ConfigError, DataError, WeightsError
from galenic.core.run import Run
from galenic.launch.merged import of_runs
from galenic.models.backbone import open_backbone
from galenic.tasks import merge
from galenic.tasks._panel import Panel

FEW = ["score.resamples=20", "schedule.epochs=4", "schedule.batch_size=8", "schedule.lr=3e-3"]
ORGANS = ("notes.csv", {"inputs": ["note"], "label": "organ"})
WARDS = ("wards.csv", {"inputs": ["note"], "label": "ward"})


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two small encoders, and two cohorts of notes."""
    folder = tmp_path_factory.mktemp("merge")
    minilm = open_backbone("builtin:minilm")
    for seed, name in enumerate(("small", "stranger")):
        torch.manual_seed(seed)
        shape = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4}
        config = BertConfig(**shape, intermediate_size=64, vocab_size=30522)
        BertModel(config).save_pretrained(folder / name)
        AutoTokenizer.from_pretrained(minilm.tokenizer.name_or_path).save_pretrained(folder / name)
    organs = {"lung": "cough and fever", "bone": "fracture of the arm", "skin": "rash on the skin"}
    rows = range(60)
    pd.DataFrame(
        {
            "note": [f"{list(organs.values())[row % 3]} since {row} days" for row in rows],
            "organ": [list(organs)[row % 3] for row in rows],
        }
    ).to_csv(folder / "notes.csv", index=False)
    pd.DataFrame(
        {
            "note": [f"ward {['north', 'south'][row % 2]}, bed {row}" for row in rows],
            "ward": [["north", "south"][row % 2] for row in rows],
        }
    ).to_csv(folder / "wards.csv", index=False)
    return folder


def start(place: Path, recipe: str, cohort: Any = ORGANS, *overrides: str, **options: Any) -> Run:
    options.setdefault("backbone", str(place / "small"))
    return launch.run(
        recipe,
        place / cohort[0],
        columns=cohort[1],
        out=place / "runs",
        overrides=[*FEW, *overrides],
        **options,
    )


@pytest.fixture(scope="module")
def runs(place: Path) -> dict[str, Run]:
    return {
        "lora": start(place, "lora"),
        "organs": start(place, "full"),
        "wards": start(place, "full", WARDS),
        "probe": start(place, "linear", WARDS),
        "lower": start(place, "full", ORGANS, "schedule.lr=1e-3"),
    }


@pytest.fixture(scope="module")
def panel(runs: dict[str, Run], tmp_path_factory: pytest.TempPathFactory) -> Panel:
    return Panel(runs, tmp_path_factory.mktemp("panel") / "vectors")


# Side by side -----------------------------------------------------------------------------------


@pytest.mark.parametrize("method", ["task_arithmetic", "breadcrumbs", "ties", "dare"])
def test_no_step_is_the_pretrained_network_bit_for_bit(
    place: Path, panel: Panel, method: str
) -> None:
    panel.put(method, ["organs", "wards"], {"alpha": 0.9})
    panel.put(method, ["organs", "wards"], {"alpha": 0.0})
    state = panel.network.state_dict()
    for name, tensor in open_backbone(str(place / "small")).network.state_dict().items():
        assert torch.equal(state[name], tensor)


@pytest.mark.parametrize("name", ["organs", "wards", "lora", "lower"])
def test_a_whole_step_of_one_predicts_as_its_own_run(panel: Panel, name: str) -> None:
    panel.put("wise", [name], {"alpha": 1.0})
    expert = panel.experts[name]
    for part in ("val", "test"):
        np.testing.assert_allclose(expert.scores(part), expert.own[part], atol=1e-5)
    assert expert.normalised("val") == 1


def test_every_coefficient_gives_its_own_scores(panel: Panel) -> None:
    # The first run is a LoRA, which leaves the network frozen.
    assert next(iter(panel.experts)) == "lora"
    seen = []
    for alpha in (0.0, 0.5, 1.0):
        panel.put("task_arithmetic", ["organs", "wards"], {"alpha": alpha})
        seen.append(panel.experts["organs"].scores("val"))
    assert not np.allclose(seen[0], seen[1])
    assert not np.allclose(seen[1], seen[2])


def test_a_frozen_run_judges_and_adds_nothing(panel: Panel) -> None:
    panel.put("task_arithmetic", ["organs"], {"alpha": 1.0})
    alone = {name: t.clone() for name, t in panel.tensors.items()}
    panel.put("task_arithmetic", ["organs", "probe"], {"alpha": 1.0})
    assert all(torch.equal(t, alone[name]) for name, t in panel.tensors.items())
    panel.put("task_arithmetic", ["organs"], {"alpha": 0.0})
    probe = panel.experts["probe"]
    np.testing.assert_allclose(probe.scores("test"), probe.own["test"], atol=1e-5)
    with pytest.raises(ConfigError, match="networks of probe were frozen"):
        panel.put("task_arithmetic", ["probe"], {"alpha": 1.0})


def test_a_sweep_looks_at_validation_alone_and_reads_no_parent_again(
    place: Path, runs: dict[str, Run], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    copies = {}
    for name in ("organs", "wards"):
        shutil.copytree(runs[name].path, tmp_path / name)
        copies[name] = Run.open(tmp_path / name)
    panel, names = Panel(copies, tmp_path / "vectors"), list(copies)
    points = [{"density": d, "alpha": a} for d in (0.2, 1.0) for a in (0.5, 1.0)]
    before = panel.sweep("ties", names, points, names, {})
    for name, expert in panel.experts.items():
        shutil.rmtree(tmp_path / name)
        expert.job.targets[expert.job.splits.test] = 0
        expert.own["test"] = expert.own["test"] * np.nan
        rows = expert.job.rows

        def seen(part: str, rows: Any = rows) -> Any:
            assert part == "val"
            return rows(part)

        monkeypatch.setattr(expert.job, "rows", seen)
    after = panel.sweep("ties", names, points, names, {})
    assert json.dumps(before) == json.dumps(after)
    rows, best = after
    assert best["mean"] == max(row["mean"] for row in rows)
    assert best["mean"] == np.mean(list(best["normalised"].values()))


def test_the_mean_on_test_rows_is_that_of_the_ratios(panel: Panel) -> None:
    panel.put("task_arithmetic", ["organs", "wards"], {"alpha": 0.4})
    config = panel.experts["organs"].job.config.score
    found = panel.test(["organs", "wards"], config, 0)
    slow = []
    for name in ("organs", "wards"):
        expert = panel.experts[name]
        truth = expert.job.targets[expert.job.splits.test]
        right = [
            np.mean((s.argmax(1) if s.ndim == 2 else s >= 0.5) == truth)
            for s in (expert.scores("test"), expert.own["test"])
        ]
        slow.append(right[0] / right[1])
        assert found["tasks"][name]["normalised"] == pytest.approx(slow[-1])
    assert found["mean"]["value"] == pytest.approx(np.mean(slow))
    assert found["mean"]["low"] <= found["mean"]["value"] <= found["mean"]["high"]


def test_a_point_that_gives_no_numbers_loses(panel: Panel, monkeypatch: pytest.MonkeyPatch) -> None:
    names = ["organs", "wards"]
    put = Panel.put

    def broken(self: Panel, method: str, on: Any, settings: Any, **options: Any) -> None:
        put(self, method, on, settings, **options)
        if settings["alpha"] > 0.5:
            next(iter(self.tensors.values())).fill_(torch.nan)

    monkeypatch.setattr(Panel, "put", broken)
    rows, best = panel.sweep("ties", names, [{"alpha": a} for a in (0.9, 0.1, 0.7)], names, {})
    assert [np.isnan(row["mean"]) for row in rows] == [True, False, True]
    assert best["settings"] == {"alpha": 0.1}
    with pytest.raises(WeightsError, match="None of the 1 merges gives scores"):
        panel.sweep("ties", names, [{"alpha": 0.9}], names, {})


def test_a_task_that_learnt_nothing_does_not_judge(
    panel: Panel, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    names = ["organs", "wards"]
    wards = panel.experts["wards"]
    # As R2 is where a fit is worse than the mean.
    figure = wards.figure
    monkeypatch.setattr(wards, "figure", lambda part, scores: figure(part, scores) - 2)
    points = [{"alpha": alpha} for alpha in (0.0, 0.5, 1.0)]
    rows, best = panel.sweep("ties", names, points, names, {})
    assert "Left out of the mean" in capsys.readouterr().err
    assert [row["mean"] for row in rows] == [row["normalised"]["organs"] for row in rows]
    assert best["mean"] == max(row["mean"] for row in rows)
    with pytest.raises(ConfigError, match=r"No task can judge a merge: accuracy -\S+ of wards"):
        panel.sweep("ties", names, points, ["wards"], {})
    config = panel.experts["organs"].job.config.score
    monkeypatch.setattr(wards, "own", {"test": 1.0 - wards.targets("test")})
    found = panel.test(names, config, 0)
    assert found["tasks"]["wards"]["own"] == 0
    assert found["mean"]["value"] == found["tasks"]["organs"]["normalised"]
    with pytest.raises(ConfigError, match="No test figure of wards"):
        panel.test(["wards"], config, 0)


def test_who_cannot_take_part_is_told_why(
    place: Path, runs: dict[str, Run], tmp_path: Path
) -> None:
    near = start(place, "knn")
    with pytest.raises(ConfigError, match="no linear head, but one of the kind 'knn'"):
        Panel({"near": near}, tmp_path / "a")
    other = start(place, "full", WARDS, backbone=str(place / "stranger"))
    with pytest.raises(WeightsError, match="did not start from the same network"):
        Panel({"organs": runs["organs"], "other": other}, tmp_path / "b")
    prompts = start(place, "dvpt")
    with pytest.raises(ConfigError, match="does not fold"):
        Panel({"prompts": prompts}, tmp_path / "c")
    moved = tmp_path / "moved"
    shutil.copytree(runs["organs"].path, moved)
    values = yaml.safe_load((moved / "config.yaml").read_text())
    (moved / "config.yaml").write_text(yaml.safe_dump({**values, "seed": 5}))
    with pytest.raises(DataError, match="no longer those that it scored"):
        Panel({"moved": Run.open(moved)}, tmp_path / "d")


# The task ---------------------------------------------------------------------------------------

OTHERS = [
    "others.wards.data=wards.csv",
    "others.wards.columns={inputs: [note], label: ward}",
]


def merged(place: Path, *overrides: str, **options: Any) -> Run:
    return start(place, "model-breadcrumbs", ORGANS, *OTHERS, *overrides, **options)


def test_coefficients_are_chosen_on_the_first_and_hold_for_all(place: Path) -> None:
    third = ["others.again.data=notes.csv", "others.again.columns={inputs: [note], label: organ}"]
    run = merged(place, *third, "grid={alpha: [0.0, 0.5, 1.0], density: [0.5, 0.9]}")
    told = run.read_json("sweep.json")
    assert told["chosen_on"] == ["notes.csv", "wards"]
    assert len(told["points"]) == 6
    best = told["best"]
    assert best["mean"] == max(point["mean"] for point in told["points"])
    assert told["chosen"] == best["settings"]
    assert [(row["count"], list(row["tasks"])) for row in told["counts"]] == [
        (2, ["notes.csv", "wards"]),
        (3, ["notes.csv", "wards", "again"]),
    ]
    for name in ("normalised", "normalised_3"):
        assert run.metrics[name].value == told["test"]["mean"]["value"]
    # The run's own figures are those of the merged network on its first task.
    assert run.metrics["accuracy"].value == told["test"]["tasks"]["notes.csv"]["value"]
    page = report.write(run.path).read_text()
    assert "Merged tasks" in page
    assert "Mean normalised test figure against the number of tasks" in page
    job, _ = merge.load(run)
    state = load_file(run.path / "adapter" / "tensors.safetensors")
    assert all(torch.equal(job.backbone.network.state_dict()[n], t) for n, t in state.items())
    assert not (run.path / "work" / "vectors").exists()


def test_arms_share_their_fine_tunings(place: Path) -> None:
    merged(place)
    tuned = place / "runs" / ".cache" / "tuned"
    before = {path: path.stat().st_mtime_ns for path in tuned.glob("*/head.safetensors")}
    for method in ("random_mask", "soup"):
        merged(place, f"method={method}")
    assert {p: p.stat().st_mtime_ns for p in tuned.glob("*/head.safetensors")} == before
    merged(place, seed=1)
    assert len(list(tuned.iterdir())) == len(before) + 2
    assert not list(tuned.glob("*/checkpoints"))


def test_the_control_is_measured_by_what_true_labels_reach(
    place: Path,
) -> None:
    run = merged(place, shuffle_labels=True)
    told = run.read_json("sweep.json")["test"]["tasks"]
    config = (place / "runs" / ".cache" / "tuned").glob("*/config.yaml")
    true = {
        values["data"]: Run.open(path.parent).metrics["accuracy"].value
        for path in config
        if not (values := yaml.safe_load(path.read_text()))["shuffle_labels"]
        and values["seed"] == run.config["seed"]
    }
    assert told["notes.csv"]["own"] == true[str(place / "notes.csv")]
    assert told["wards"]["own"] == true[str(place / "wards.csv")]


def test_wise_is_the_line_to_the_tuned_one_judged_by_probes(place: Path) -> None:
    run = merged(
        place, "method=wise", "others.wards.tuner={method: none}",
        "grid={alpha: [0.0, 1.0]}",
    )  # fmt: skip
    base, tuned = run.read_json("sweep.json")["points"]
    # The probe's own network is the base; the first task's own is the tuned one.
    assert base["normalised"]["wards"] == 1
    assert tuned["normalised"]["notes.csv"] == 1


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("method=slerp", "breadcrumbs"),
        ("grid={alhpa: [1]}", "alhpa"),
        ("grid={density: [1.5]}", "density"),
        ("grid={alpha: []}", "alpha has no values"),
        ("parameters={gamma: 0.2}", "density 0.9 and gamma 0.2 sum to more than 1"),
        ("parameters={density: 0.9, gamma: x}", "gamma"),
        ("others={notes.csv: {data: wards.csv}}", "Two tasks are called"),
    ],
)
def test_a_wrong_word_is_named(place: Path, override: str, words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        start(place, "model-breadcrumbs", ORGANS, override)


# The command ------------------------------------------------------------------------------------


def command(folder: Path, recipe: dict[str, Any], *words: str) -> Result:
    (folder / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    return CliRunner().invoke(
        app, ["merge", str(folder / "recipe.yaml"), "--out", str(folder / "out"), *words]
    )


def of(runs: dict[str, Run], method: str, *names: str) -> dict[str, Any]:
    models = [{"model": str(runs[name].path), "name": name} for name in names]
    return {"method": method, "models": models}


def test_a_sweep_is_written_drawn_and_can_be_merged_again(
    runs: dict[str, Run], tmp_path: Path
) -> None:
    done = command(
        tmp_path, of(runs, "breadcrumbs", "organs", "wards"), "--sweep", "alpha=0:1:0.5",
        "--sweep", "density=0.2,0.9", "--on", str(runs["probe"].path),
    )  # fmt: skip
    assert done.exit_code == 0, done.output
    out = tmp_path / "out"
    told = json.loads((out / "sweep.json").read_text())
    assert len(told["points"]) == 6
    assert told["chosen_on"] == ["organs", "wards", runs["probe"].path.name]
    page = (out / "report.html").read_text()
    assert page.count("<svg") == 2
    assert not (out / "work").exists()
    again = CliRunner().invoke(
        app, ["merge", str(out / "recipe.yaml"), "--out", str(tmp_path / "again")]
    )
    assert again.exit_code == 0, again.output
    first, second = (
        load_file(folder / "adapter" / "tensors.safetensors")
        for folder in (out, tmp_path / "again")
    )
    assert all(torch.equal(first[name], second[name]) for name in first)
    opened = open_backbone(str(out)).network.state_dict()
    assert all(torch.equal(first[name], opened[name]) for name in first)


def test_a_greedy_soup_is_no_worse_than_the_best_alone(
    runs: dict[str, Run], tmp_path: Path
) -> None:
    done = command(tmp_path, of(runs, "linear", "organs", "lower", "lora"), "--greedy", "--json")
    assert done.exit_code == 0, done.output
    told = json.loads(done.stdout)
    figures = {
        name: runs[name].read_json("metrics.json")["validation"]["accuracy"]["value"]
        for name in ("organs", "lower", "lora")
    }
    assert told["best"]["settings"]["models"] == told["merged"]
    assert told["best"]["mean"] * figures["organs"] >= max(figures.values()) - 1e-9
    heads = [load_file(runs[name].path / "head.safetensors") for name in told["merged"]]
    mean = load_file(tmp_path / "out" / "heads" / "organs.safetensors")
    for name, tensor in mean.items():
        torch.testing.assert_close(tensor, torch.stack([h[name] for h in heads]).mean(0))


@pytest.mark.parametrize(
    ("method", "names", "words", "code", "told"),
    [
        ("linear", ["organs", "wards"], ["--greedy"], 2, "not of one task"),
        ("ties", ["organs"], ["--greedy"], 2, "plain mean"),
        ("ties", ["organs"], ["--sweep", "alhpa=0,1"], 2, "alhpa"),
        ("breadcrumbs", ["organs"], ["--sweep", "gamma=0.1,0.9"], 2, "sum to more than 1"),
        ("slerp", ["organs"], [], 2, "no base plus a sum"),
        ("wise", ["organs", "wards"], [], 2, "got 2 models"),
        ("task_arithmetic", ["probe"], [], 2, "nothing to merge"),
    ],
)
def test_what_cannot_be_merged_leaves_no_output(
    runs: dict[str, Run], tmp_path: Path, method: str, names: Any, words: Any, code: int, told: str
) -> None:
    done = command(tmp_path, of(runs, method, *names), *words)
    assert done.exit_code == code, done.output
    assert told in done.output
    assert "Traceback" not in done.output
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("models", ["5", "[1, null]", "[{name: a}]", "null"])
def test_a_recipe_without_models_has_no_runs(tmp_path: Path, models: str) -> None:
    (tmp_path / "r.yaml").write_text(f"method: linear\nmodels: {models}\n")
    assert not of_runs(tmp_path / "r.yaml")


def test_checkpoints_have_nothing_to_judge_them_by(tmp_path: Path) -> None:
    done = command(tmp_path, {"method": "linear", "models": ["a"]}, "--greedy")
    assert done.exit_code == 2
    assert "a checkpoint has none" in done.output
