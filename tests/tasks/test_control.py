"""The task of steering a twin, end to end."""

from __future__ import annotations

from pathlib import Path

import pandas as pd
import pytest
import torch
from typer.testing import CliRunner

from galenic import launch
from galenic.app.cli import app
from galenic.core.run import Run
from galenic.simulation.rollout import on_twin
from galenic.tasks import control

NAME = "digital-twin-control"
UNITS = {"time": "tick", "grass": "cells", "sheep": "animals", "wolves": "animals"}


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Run:
    return launch.run(NAME, out=tmp_path_factory.mktemp("runs"), quick=True, seed=2)


def series(folder: Path, rows: int = 12, **columns: object) -> Path:
    table = pd.DataFrame(
        {
            "time [tick]": range(rows),
            "grass [cells]": [500 + 3 * row for row in range(rows)],
            "sheep [animals]": [100 - row for row in range(rows)],
            "wolves [animals]": [40 + row for row in range(rows)],
        }
    ).assign(**columns)
    path = folder / "patient.csv"
    table.to_csv(path, index=False)
    return path


def test_the_table_holds_what_the_loaded_controller_does(made: Run) -> None:
    twin, policy = control.load(made)
    table = pd.read_parquet(made.path / "trajectories.parquet")
    seeds = sorted(set(table["seed"]))
    again = on_twin(twin, policy, seeds, steps=30)
    for place, name in enumerate(("grass", "sheep", "wolves")):
        told = torch.tensor(table[name].to_numpy()).reshape(len(seeds), -1)
        assert torch.equal(told, again.x[..., place])
    assert not set(seeds) & set(range(4_000_000, 4_000_016))
    assert made.read_json("cost.json")["model_calls"] == 16


@pytest.mark.parametrize(
    "controller", ["fraction", "open_loop", "constant", "pid", "cma_es", "random", "none"]
)
def test_every_controller_runs(controller: str, tmp_path: Path) -> None:
    if controller in ("pid", "cma_es"):
        pytest.importorskip("cma")
    run = launch.run(NAME, out=tmp_path, quick=True, overrides=[f"controller={controller}"])
    calls = run.metrics["model_calls"].value
    assert (calls == 0) if controller in ("random", "none") else (0 < calls <= 16)


def test_the_metabolic_twin_runs(tmp_path: Path) -> None:
    recipe = tmp_path / "mine.yaml"
    recipe.write_text(
        "recipe: mine\ntask: control\nconfig:\n  data: twin:metabolic\n"
        "  targets: {product: 25000}\n  limits: {inflow: 2000}\n  route: metamodel\n"
    )
    run = launch.run(str(recipe), out=tmp_path, quick=True)
    assert run.read_json("metamodel.json")["fit_error"] < 0.05


def test_a_patient_changes_the_metamodel(tmp_path: Path) -> None:
    run = launch.run(
        NAME, out=tmp_path, quick=True, overrides=[f"patient={series(tmp_path)}", "route=metamodel"]
    )
    crowd, own = run.read_json("metamodel.json"), run.read_json("personal.json")
    assert crowd["equations"][:3] == own["equations"][:3]
    assert crowd["parameters"] != own["parameters"]


BAD_SERIES = {
    "no unit": lambda t: t.rename(columns={"sheep [animals]": "sheep"}),
    "given in kg": lambda t: t.rename(columns={"sheep [animals]": "sheep [kg]"}),
    "There is no column 'wolves'": lambda t: t.drop(columns="wolves [animals]"),
    "not one step apart": lambda t: t.assign(**{"time [tick]": t["time [tick]"] * 2}),
    "negative": lambda t: t.assign(**{"sheep [animals]": -1}),
    "no number": lambda t: t.assign(**{"sheep [animals]": "many"}),
    "2 rows": lambda t: t.iloc[:2],
    "row 4, 'remove_sheep'": lambda t: t.assign(
        **{"remove_sheep [share per tick]": [0.0, 0.0, 0.0, 1.4, *[0.0] * (len(t) - 4)]}
    ),
}


@pytest.mark.parametrize("match", BAD_SERIES)
def test_a_bad_series_is_named(match: str, tmp_path: Path) -> None:
    path = series(tmp_path)
    BAD_SERIES[match](pd.read_csv(path)).to_csv(path, index=False)
    told = ["run", NAME, f"patient={path}", "--quick", "--out", str(tmp_path)]
    done = CliRunner().invoke(app, told)
    assert done.exit_code == 3, done.output
    assert match in done.output
    assert "1.4" not in done.output
    assert "Traceback" not in done.output


@pytest.mark.parametrize(
    ("override", "match"),
    [
        ("data=twin:wolf_shep", "wolf_sheep"),
        ("rules.widht=5", "width"),
        ("limits={remove_lions: 0.1}", "remove_lions"),
        ("limits={remove_sheep: 2}", "limit of 'remove_sheep'"),
        ("limits={}", "at least 1"),
        ("targets={lions: 3}", "lions"),
        ("targets={}", "at least 1"),
        ("patient=nowhere.csv", "nowhere.csv"),
        ("budget=5", "do not cover"),
        ("rules={width: .nan}", "'width' is nan"),
        ("hidden=[-3]", "hidden.0"),
        ("hidden=[4, 0]", "hidden.1"),
    ],
)
def test_a_bad_config_is_named(override: str, match: str, tmp_path: Path) -> None:
    told = ["run", NAME, override, "--out", str(tmp_path)]
    done = CliRunner().invoke(app, told)
    assert done.exit_code != 0 and "Traceback" not in done.output
    assert match in done.output


def test_the_report_shows_trajectories_and_a_missed_target(made: Run) -> None:
    from galenic.app import report

    page = report.write(made.path).read_text()
    assert "sheep of held-out runs" in page
    assert "The target of sheep was not reached" in page


def test_controllers_are_compared_without_patients_to_pair(tmp_path: Path) -> None:
    done = CliRunner().invoke(
        app, ["compare", NAME, NAME, "--quick", "--out", str(tmp_path)], catch_exceptions=False
    )
    assert done.exit_code == 0, done.output
    assert Run.open(tmp_path / "compare-0001").read_json("leaderboard.json")["differences"] == []
    page = (tmp_path / "compare-0001" / "report.html").read_text()
    assert "8 simulated courses" in page
