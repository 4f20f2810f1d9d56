"""The apps for several machines, each with a manifest of its own."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest
import yaml

pytest.importorskip("flwr")

from flwr.app import Context, RecordDict

from galenic.core.errors import ConfigError
from galenic.core.run import Run
from galenic.federation.driver import InProcessGrid
from galenic.launch import federation
from galenic.tasks import federate

ROOT = Path(__file__).resolve().parents[2]
WORDS = {"lung": "cough and fever", "bone": "fracture of the arm", "skin": "rash on the skin"}


def manifest(path: Path, names: list[str]) -> Path:
    rows = [(f"{WORDS[name]} day {r}", name) for r in range(30) for name in names]
    pd.DataFrame(rows, columns=["note", "label"]).to_csv(path, index=False)
    return path


def context(node: int, node_config: dict, run_config: dict) -> Context:
    return Context(1, node, node_config, RecordDict(), run_config)


def test_hospitals_train_on_manifests_that_the_server_never_sees(tmp_path: Path) -> None:
    recipe = tmp_path / "mine.yaml"
    config = {
        "columns": {"inputs": ["note"], "label": "label"}, "ranks": [3, 2], "rounds": 1,
        "clients": {"count": 3}, "schedule": {"epochs": 1, "max_steps": 1, "batch_size": 8},
        "score": {"resamples": 20}, "input": {"max_length": 16},
    }  # fmt: skip
    recipe.write_text(yaml.safe_dump({"recipe": "mine", "task": "federate", "config": config}))
    three = list(WORDS)
    own = [
        manifest(tmp_path / "north.csv", three),
        manifest(tmp_path / "south.csv", three),
        # The head has the same size, and other classes.
        manifest(tmp_path / "east.csv", ["lung", "bone", "skin"]),
    ]
    table = pd.read_csv(own[2])
    table.assign(label=table["label"].replace("skin", "eye")).to_csv(own[2], index=False)
    told = {"recipe": str(recipe)}
    grid = InProcessGrid(federation.client_app, 3)
    grid.contexts = {
        node + 1: context(node + 1, {"data": str(path), "client": node}, told)
        for node, path in enumerate(own)
    }
    server = {"data": str(manifest(tmp_path / "own.csv", three)), "out": str(tmp_path / "runs")}
    federation.server_app(grid, context(0, {}, {**told, **server}))
    run = Run.open(tmp_path / "runs" / "federation-0001")
    assert run.state == "finished" and run.provenance["recipe"] == "mine"
    last = run.read_json("rounds.json")["rounds"][1]
    assert last["counted"] == ["000", "001"]
    assert [r["client"] for r in last["refused"]] == ["node 3"]
    assert "another base" in last["refused"][0]["reason"]
    assert not (run.path / "clients.json").exists()


@pytest.mark.parametrize("command", ["flower-superlink", "flower-supernode"])
def test_options_in_the_guide_are_flowers_own(command: str) -> None:
    guide = (ROOT / "docs" / "federation.md").read_text(encoding="utf-8")
    called = re.findall(rf"^{command} (?:.*\\\n)*.*", guide, re.MULTILINE)
    wanted = set(re.findall(r"--[a-z-]+", " ".join(called)))
    script = Path(sys.executable).with_name(command)
    told = subprocess.run([script, "--help"], capture_output=True, text=True, check=True).stdout
    assert wanted
    assert wanted <= set(re.findall(r"--[a-z-]+", told))


@pytest.mark.parametrize("method", ["local", "pooled"])
def test_clients_elsewhere_are_asked_for_something(method: str, tmp_path: Path) -> None:
    config = federate.Config(data=str(manifest(tmp_path / "own.csv", list(WORDS))), method=method)
    with pytest.raises(ConfigError, match=f"method={method} has no rounds"):
        federate.make(config, Run.create(tmp_path, "x"), InProcessGrid(federation.client_app, 2))


def test_what_is_not_told_is_asked_for() -> None:
    with pytest.raises(ConfigError, match="No manifest"):
        federation.config_of(context(1, {}, {}), None)
    with pytest.raises(ConfigError, match="classify"):
        federation.config_of(context(1, {}, {"recipe": "lora"}), "x.csv")
