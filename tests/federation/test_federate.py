"""The task: partition, rounds, folders, and the same federation in Flower's own simulation."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

pytest.importorskip("flwr")

from galenic import launch
from galenic.core.errors import ConfigError, DataError
from galenic.core.run import Run
from galenic.data.cohort import Cohort
from galenic.federation.aggregate import Aggregate
from galenic.federation.messages import Order
from galenic.federation.partition import by_patient, by_site
from galenic.tasks import federate
from galenic.tasks._federate_config import PrivacyConfig
from galenic.tasks._federate_models import backbone_of, require_still, sent, started

SHORT = ["schedule.max_steps=1", "schedule.batch_size=8", "score.resamples=20", "rounds=2",
         "clients.count=2", "ranks=[3, 2]", "input.max_length=16"]  # fmt: skip
WORDS = ("cough and fever", "fracture of the arm", "rash on the skin")


def table(n: int = 90) -> pd.DataFrame:
    rows = range(n)
    return pd.DataFrame(
        {
            "note": [f"{WORDS[r % 3]} day {r}" for r in rows],
            "label": [("lung", "bone", "skin")[r % 3] for r in rows],
            "patient_id": [f"p{r // 2}" for r in rows],
            "site": [("north", "south", "east")[(r // 2) % 3] for r in rows],
        }
    )


def start(folder: Path, *overrides: str) -> Run:
    folder.mkdir(exist_ok=True, parents=True)
    table().to_csv(folder / "cohort.csv", index=False)
    return launch.run(
        "flora", folder / "cohort.csv", out=folder / "runs",
        columns={"inputs": ["note"], "label": "label"}, overrides=[*SHORT, *overrides],
    )  # fmt: skip


@pytest.fixture(scope="module")
def stacked(tmp_path_factory: pytest.TempPathFactory) -> Run:
    return start(tmp_path_factory.mktemp("flora"))


def test_each_round_is_written(stacked: Run) -> None:
    rounds = stacked.read_json("rounds.json")["rounds"]
    assert [entry["number"] for entry in rounds] == [0, 1, 2]
    for entry in rounds[1:]:
        assert entry["counted"] == ["000", "001"] and entry["refused"] == []
        assert entry["error"] < 1e-6 and entry["rank"] == 5
        assert {"accuracy", "balanced_accuracy"} == set(entry["test"])
    # Ranks 3 and 2 of 24 projections 384 x 384, and the head twice; float32, and Flower's headers.
    assert rounds[1]["bytes_up"] == pytest.approx(4 * (5 * 24 * 768 + 2 * 3 * 385), rel=0.1)
    assert rounds[2]["bytes_down"] == pytest.approx(2 * rounds[1]["bytes_up"], rel=0.1)
    assert (stacked.path / "rounds" / "001" / "adapter_config.json").is_file()
    assert list((stacked.path / "checkpoints").iterdir()) == []


def test_the_saved_run_predicts_the_same_and_peft_reads_its_adapter(stacked: Run) -> None:
    job, objective = federate.load(stacked)
    logits = job._logits(objective, "test")
    found = pd.read_parquet(stacked.path / "predictions.parquet")
    scores = found[found["split"] == "test"].filter(like="score").to_numpy()
    np.testing.assert_allclose(torch.from_numpy(logits).softmax(-1), scores, atol=1e-6)

    from peft import PeftModel

    inputs = job.collate([job.inputs[row] for row in range(4)])
    plain = backbone_of(job.pristine).network
    with torch.no_grad():
        wanted = backbone_of(objective).network(**inputs).last_hidden_state
        held = PeftModel.from_pretrained(plain, str(stacked.path / "adapter")).eval()
        torch.testing.assert_close(held(**inputs).last_hidden_state, wanted)
        merged = held.merge_and_unload()
        torch.testing.assert_close(merged(**inputs).last_hidden_state, wanted, atol=1e-4, rtol=1e-4)


def test_clients_begin_with_the_same_weights_and_fresh_adapters(stacked: Run) -> None:
    job, _ = federate.load(stacked)
    state = {**sent(job.objective)}
    rank = 10
    begun = Aggregate(state, rank, 1.0)
    clients = [
        started(job.pristine, begun, job.config, rank=r, seed=s) for r, s in ((3, 1), (2, 9))
    ]
    before = dict(backbone_of(job.pristine).network.named_parameters())
    first, second = (
        {n: p for n, p in backbone_of(c).network.named_parameters() if "lora_" not in n}
        for c in clients
    )
    changed = 0
    for name, value in first.items():
        assert torch.equal(value, second[name]), name
        plain = name.removeprefix("base_model.model.").replace(".base_layer", "")
        layer = f"base_model.model.{plain}".removesuffix(".weight")
        if f"{layer}.lora_A.weight" in state:
            a, b = (state[f"{layer}.lora_{part}.weight"] for part in "AB")
            torch.testing.assert_close(value, before[plain] + b @ a, atol=1e-6, rtol=1e-6)
            changed += 1
        else:
            assert torch.equal(value, before[plain]), name
    assert changed == 24
    for client in clients:
        factors = sent(client)
        assert all(not t.any() for n, t in factors.items() if ".lora_B." in n)
        assert all(t.any() for n, t in factors.items() if ".lora_A." in n)


def test_a_client_whose_rank_is_too_high_is_the_reason(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="384"):
        start(tmp_path, "ranks=[4, 500]")


@pytest.mark.parametrize("method", ["fedit", "zeropad", "full", "local", "pooled"])
def test_every_method_goes_all_the_way(method: str, tmp_path: Path) -> None:
    words = ["ranks=2"] if method == "fedit" else []
    run = start(tmp_path, f"method={method}", *words, "rounds=1")
    assert np.isfinite(run.metrics["balanced_accuracy"].value)
    if method == "local":
        assert len(list((run.path / "clients").iterdir())) == 2
        with pytest.raises(ConfigError, match="as many networks"):
            federate.load(run)
        return
    if method != "pooled":
        assert run.read_json("rounds.json")["rounds"][1]["counted"] == ["000", "001"]
    job, objective = federate.load(run)
    logits = job._logits(objective, "test")
    found = pd.read_parquet(run.path / "predictions.parquet")
    scores = found[found["split"] == "test"].filter(like="score").to_numpy()
    np.testing.assert_allclose(torch.from_numpy(logits).softmax(-1), scores, atol=1e-6)


def test_layers_of_a_client_that_trains_all_have_rates_of_their_own(stacked: Run) -> None:
    job, _ = federate.load(stacked)
    schedule = job.config.schedule.model_copy(update={"layer_decay": 0.5})
    job.config = job.config.model_copy(update={"method": "full", "schedule": schedule})
    before = backbone_of(job.pristine).network.state_dict()
    after = job.client(0, Order(1, job._bare())).state
    first, last = (
        (after[name] - before[name]).abs().mean()
        for name in (f"encoder.layer.{place}.output.dense.weight" for place in (0, 5))
    )
    assert 0 < first < 0.1 * last


@pytest.mark.parametrize("privacy", [None, PrivacyConfig()])
def test_no_training_goes_on_from_other_noise(
    privacy: PrivacyConfig | None, stacked: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    job, _ = federate.load(stacked)
    job.config = job.config.model_copy(update={"method": "full", "privacy": privacy})
    left = stacked.path / "checkpoints" / "1-000"
    left.mkdir()
    found: list[bool] = []
    monkeypatch.setattr(job, "fit", lambda *_, **__: found.append(left.exists()))
    job.client(0, Order(1, job._bare()))
    assert found == [privacy is None]


def test_statistics_of_batches_are_not_noised(stacked: Run) -> None:
    job, _ = federate.load(stacked)
    whole = job.config.model_copy(update={"method": "full"})
    objective = started(job.pristine, job._bare(), whole, 1, 0)
    require_still(objective)
    backbone_of(objective).network.extra = torch.nn.BatchNorm1d(3)
    with pytest.raises(ConfigError, match=r"3 statistics .* extra.running_mean"):
        require_still(objective)


def test_a_private_run_tells_nothing_that_has_no_noise(tmp_path: Path) -> None:
    words = ["method=fedit", "ranks=2", "weighting=uniform", "privacy.noise=2.0", "rounds=1"]
    told = start(tmp_path, *words).read_json("rounds.json")
    assert told["rounds"][1]["counted"] == ["000", "001"] and told["privacy"]["epsilon"] > 0
    assert "error" not in told["rounds"][1]


def test_flowers_simulation_gives_the_same(stacked: Run, tmp_path: Path) -> None:
    pytest.importorskip("ray")
    # In a process of its own: Ray leaves pipes open behind it.
    code = f"from pathlib import Path; import test_federate; test_federate.start(Path({str(tmp_path)!r}), 'driver=ray')"
    subprocess.run([sys.executable, "-c", code], check=True, cwd=Path(__file__).parent, timeout=300)
    run = Run.open(tmp_path / "runs" / "flora-0001")
    ours, theirs = (r.read_json("rounds.json")["rounds"] for r in (stacked, run))
    assert [e.get("counted") for e in theirs] == [e.get("counted") for e in ours]
    first, second = (pd.read_parquet(r.path / "predictions.parquet") for r in (stacked, run))
    pd.testing.assert_frame_equal(first, second, atol=1e-5)


# Partition ---------------------------------------------------------------------------------


@pytest.mark.parametrize("concentration", [None, 0.2, 50.0])
def test_patients_are_parted_whole(concentration: float | None) -> None:
    cohort = Cohort.open(table(300), inputs=["note"], label="label")
    rows = np.arange(10, 300)
    parts = by_patient(cohort, rows, 4, 7, concentration)
    assert sorted(np.concatenate(parts).tolist()) == rows.tolist()
    patients = [set(cohort.patient_ids[part].tolist()) for part in parts]
    assert sum(map(len, patients)) == len(set.union(*patients))
    again = by_patient(cohort, rows, 4, 7, concentration)
    assert all(np.array_equal(a, b) for a, b in zip(parts, again, strict=True))


def test_a_low_concentration_parts_the_classes() -> None:
    frame = table(600)
    frame["patient_id"] = np.arange(600)
    cohort = Cohort.open(frame, inputs=["note"], label="label")

    def skew(concentration: float) -> float:
        parts = by_patient(cohort, np.arange(600), 5, 0, concentration)
        most = [np.bincount(cohort.targets()[p], minlength=3).max() / len(p) for p in parts]
        return float(np.mean(most))

    assert skew(0.1) > 0.7 > 0.45 > skew(1000.0)


def test_sites_are_clients() -> None:
    cohort = Cohort.open(table(), inputs=["note"], label="label", site="site")
    parts = by_site(cohort, np.arange(60))
    assert list(parts) == ["east", "north", "south"]
    for name, rows in parts.items():
        assert set(cohort.table["site"].iloc[rows]) == {name}
    plain = Cohort.open(table().drop(columns="site"), inputs=["note"], label="label")
    with pytest.raises(DataError, match="no column of sites"):
        by_site(plain, np.arange(60))
    with pytest.raises(DataError, match="cannot be parted"):
        by_patient(plain, np.arange(6), 4, 0)


@pytest.mark.parametrize(
    ("words", "match"),
    [
        (["method=fedit"], "one rank"),
        (["ranks=[]"], "1 or more"),
        (["ranks=0"], "1 or more"),
        (["head.standardise=true"], "leave the clients"),
        (["tuner.method=ssf"], "lora"),
        (["tuner={method: lora, rank: 4}"], "ranks"),
        (["method=zeropad", "compress_rank=4"], "flora"),
        (["privacy.noise=1.0"], "fedit or full"),
        (["method=full", "privacy.noise=1.0"], "uniform"),
    ],
)
def test_terms_that_cannot_work_are_refused(words: list[str], match: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=match):
        start(tmp_path, *words)


def test_an_order_of_the_wrong_shape_is_refused(stacked: Run) -> None:
    job, _ = federate.load(stacked)
    state = {n: t[:1] if ".lora_A." in n else t for n, t in sent(job.objective).items()}
    with pytest.raises(Exception, match="shape"):
        job.client(0, Order(1, Aggregate(state, 10, 1.0)))
