"""A port from texts to scores: what is added to what, which arm carries what, what is refused."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoTokenizer, BertConfig, BertModel

from galenic import launch
from galenic.core.errors import ConfigError, GalenicError
from galenic.core.run import Run
from galenic.merging.patches import Patch
from galenic.models.backbone import open_backbone
from galenic.models.delta import Delta, Dense, Sparse, state_of
from galenic.tasks import port
from galenic.tasks._port_arms import gain_of, random_like


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small encoder, notes with a diagnosis and a ward, and other text."""
    folder = tmp_path_factory.mktemp("port")
    small = folder / "small"
    minilm = open_backbone("builtin:minilm")
    torch.manual_seed(0)
    shape = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4}
    config = BertConfig(**shape, intermediate_size=64, vocab_size=30522)
    BertModel(config, add_pooling_layer=False).save_pretrained(small)
    AutoTokenizer.from_pretrained(minilm.tokenizer.name_or_path).save_pretrained(small)
    words = ["cough and fever", "fracture of the arm", "rash on the skin"]
    rows = range(60)
    pd.DataFrame(
        {
            "note": [f"{words[row % 3]} since {row} days" for row in rows],
            "label": [["lung", "bone", "skin"][row % 3] for row in rows],
            "ward": [["north", "south"][row // 30] for row in rows],
        }
    ).to_csv(folder / "notes.csv", index=False)
    pd.DataFrame({"text": [f"a letter on dose {row}" for row in rows]}).to_csv(
        folder / "letters.csv", index=False
    )
    return folder


def start(place: Path, *overrides: str) -> Run:
    return launch.run(
        "portllm",
        place / "notes.csv",
        out=place / "runs",
        columns={"inputs": ["note"], "label": "label"},
        backbone=str(place / "small"),
        overrides=[
            "score.resamples=20",
            "schedule.epochs=2",
            "schedule.batch_size=8",
            "evolve.schedule.max_steps=3",
            f"evolve.data={place / 'letters.csv'}",
            "evolve.column=text",
            *overrides,
        ],
    )


@pytest.fixture(scope="module")
def five(place: Path) -> Run:
    return start(place)


def evolved(place: Path) -> dict[str, torch.Tensor]:
    (path,) = (place / "runs" / ".cache").glob("evolved-*.safetensors")
    return load_file(path)


def test_the_ported_network_is_the_new_base_and_the_old_patch(place: Path, five: Run) -> None:
    job, objective = port.load(five)
    new, old = evolved(place), open_backbone(str(place / "small")).network.state_dict()
    assert sum(not torch.equal(new[name], value) for name, value in old.items()) > 10
    patch = Patch.from_peft(five.path / "arms" / "old_patched" / "adapter")
    assert len(patch.delta.entries) == 8
    for name, value in job.backbone.network.state_dict().items():
        entry = patch.delta.entries.get(name)
        expected = new[name] if entry is None else new[name] + entry.dense()
        torch.testing.assert_close(value, expected, atol=1e-6, rtol=0)
    head = load_file(five.path / "arms" / "old_patched" / "head.safetensors")
    assert all(torch.equal(head[n], v) for n, v in objective.head.state_dict().items())
    cost = five.read_json("cost.json")
    assert (cost["trainable"], cost["steps"]) == (0, 0)


def test_five_arms_are_told_and_the_recovery_is_theirs(five: Run) -> None:
    told = five.read_json("recovery.json")
    values = told["arms"]
    for arm in ("old", "old_patched", "new", "retrained"):
        found = Run.open(five.path / "arms" / arm).metrics[told["metric"]].value
        assert values[arm] == found
    assert values["ported"] == five.metrics[told["metric"]].value
    room = values["retrained"] - values["new"]
    share = told["recovery"]["share"]
    assert share == (pytest.approx((values["ported"] - values["new"]) / room) if room > 0 else None)
    known = five.read_json("portability.json")
    assert 0 < known["drift"] < 0.5
    assert len(known["tensors"]) == known["added"] == 8


def test_the_drift_of_activations_is_that_of_both_bases_on_the_validation_texts(
    place: Path, five: Run
) -> None:
    known = five.read_json("portability.json")
    patch = Patch.from_peft(five.path / "arms" / "old_patched" / "adapter")
    layers = [name.removesuffix(".weight") for name in patch.delta.entries]
    assert [row["name"] for row in known["activations"]] == layers
    old = open_backbone(str(place / "small"))
    new = open_backbone(str(place / "small"))
    new.network.load_state_dict(evolved(place))
    notes = pd.read_csv(place / "notes.csv")["note"]
    rows = five.read_json("splits.json")["val"]
    # All at once, by the states that transformers itself gives.
    batch = old.tokenize([notes[row] for row in rows])
    keep = batch["attention_mask"].bool()
    with torch.no_grad():
        for layer in range(2):
            x, y = (
                net.network.eval()(**batch, output_hidden_states=True).hidden_states[layer][keep]
                for net in (old, new)
            )
            row = next(
                row
                for row in known["activations"]
                if row["name"] == f"encoder.layer.{layer}.attention.self.query"
            )
            assert row["drift"] == pytest.approx(((y - x).norm() / x.norm()).item(), rel=1e-3)
            cosine = torch.cosine_similarity(x.flatten(), y.flatten(), dim=0).item()
            assert row["cosine"] == pytest.approx(cosine, abs=1e-5)


def test_the_gate_is_told_on_validation_rows(place: Path, five: Run) -> None:
    assert five.read_json("portability.json")["accepted"] is True
    scores = {
        arm: Run.open(path).read_json("metrics.json")
        for arm, path in (("new", five.path / "arms" / "new"), ("ported", five.path))
    }
    main = scores["new"]["main"]
    ported, new = (scores[arm]["validation"][main]["value"] for arm in ("ported", "new"))
    assert five.read_json("portability.json")["gain"] == pytest.approx(ported - new)
    limits = ["gate.max_drift=0", "gate.min_cosine=1.0", f"gate.min_gain={ported - new + 0.01}"]
    # Both arms are scored for it, though none was asked for.
    known = start(place, "also=[]", *limits).read_json("portability.json")
    assert known["gain"] == pytest.approx(ported - new)
    assert known["accepted"] is False
    assert len(known["reasons"]) == 3
    enough = start(place, "also=[]", f"gate.min_gain={ported - new - 0.01}", "probe=0")
    known = enough.read_json("portability.json")
    assert (known["accepted"], known["activations"]) == (True, [])


@pytest.mark.parametrize(("metric", "sign"), [("balanced_accuracy", 1), ("mae", -1)])
def test_the_gain_is_of_validation_rows_and_positive_where_it_helps(metric: str, sign: int) -> None:
    def told(validation: float) -> dict[str, Any]:
        return {part: {metric: {"value": value}} for part, value in
                (("validation", validation), ("test", 0.5))}  # fmt: skip

    scores = {"new": told(0.25), "ported": told(0.75), "old": told(0.1)}
    assert gain_of(scores, metric) == 0.5 * sign
    del scores["new"]
    assert gain_of(scores, metric) is None


def test_arms_begin_alike_and_end_on_their_own_base(place: Path, five: Run) -> None:
    def network(arm: str) -> dict[str, torch.Tensor]:
        job, _ = port.load(Run.open(five.path / "arms" / arm))
        return state_of(job.backbone.network)

    name = "encoder.layer.0.output.dense.weight"
    old, new = open_backbone(str(place / "small")).network.state_dict()[name], evolved(place)[name]
    assert torch.equal(network("old")[name], old)
    assert torch.equal(network("new")[name], new)
    assert torch.equal(network("retrained")[f"base_model.model.{name}"], new)


def test_an_arm_alone_is_that_arm(place: Path, five: Run) -> None:
    alone = start(place, "predict=old_patched", "also=[ported]")
    told, before = (run.read_json("recovery.json") for run in (alone, five))
    for arm in ("old_patched", "ported"):
        assert told["arms"][arm] == before["arms"][arm]
    assert not (alone.path / "arms" / "old_patched").exists()


@pytest.mark.parametrize("arm", ["random_patch", "other_patch"])
def test_controls_change_the_patch_alone(place: Path, five: Run, arm: str) -> None:
    other = [f"other.data={place / 'notes.csv'}", "other.columns.label=ward"]
    run = start(place, f"predict={arm}", "also=[]", *other, "other.columns.inputs=[note]")
    state, new = port.load(run)[0].backbone.network.state_dict(), evolved(place)
    patch = Patch.from_peft(five.path / "arms" / "old_patched" / "adapter")
    for name, value in state.items():
        entry = patch.delta.entries.get(name)
        if entry is None:
            assert torch.equal(value, new[name])
            continue
        moved = value - new[name]
        assert not torch.allclose(moved, entry.dense(), atol=1e-4)
        if arm == "random_patch":
            torch.testing.assert_close(moved.norm(), entry.dense().norm(), rtol=1e-3, atol=0)


def test_a_random_patch_has_the_rank_and_the_norms_of_the_real_one(five: Run) -> None:
    patch = Patch.from_peft(five.path / "arms" / "old_patched" / "adapter")
    drawn = random_like(patch, 0)
    for name, entry in patch.delta.entries.items():
        found = drawn.delta.entries[name].dense()
        assert torch.linalg.matrix_rank(found) == torch.linalg.matrix_rank(entry.dense())
        torch.testing.assert_close(found.norm(), entry.dense().norm(), rtol=1e-5, atol=0)
    again = random_like(patch, 0)
    assert again.fingerprint == drawn.fingerprint != random_like(patch, 1).fingerprint


@pytest.mark.parametrize(
    ("overrides", "says"),
    [
        (["predict=other_patch", "also=[]"], "no other task"),
        (["predict=portet"], "predict"),
        (["head.kind=knn"], "linear head"),
        (["gate.min_cosine=0.5", "probe=0"], "needs text"),
        (["gate.max_drift=-1"], "max_drift"),
    ],
)
def test_what_cannot_be_asked_is_said(place: Path, overrides: Any, says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        start(place, *overrides)


SPARSE = "{method: composable_sft, proportion: 0.05, freeze: [norm, embeddings]}"


def moved(after: Mapping[str, torch.Tensor], before: Mapping[str, torch.Tensor]) -> dict[str, int]:
    """Entries that differ, by name of the tensors in which any does."""
    found = {name: int((tensor != before[name]).sum()) for name, tensor in after.items()}
    return {name: count for name, count in found.items() if count and not made_anew(name)}


def made_anew(name: str) -> bool:
    """The small encoder is stored without its pooler, which nothing reads."""
    return name.startswith("pooler")


def test_two_sparse_skills_add_up(place: Path, tmp_path: Path) -> None:
    """The new base moves in k entries, and the ported network is the base and both differences."""
    run = start(
        place, "also=[]", "probe=0", f"tuner={SPARSE}", f"evolve.tuner={SPARSE}",
        f"cache={tmp_path}", "evolve.schedule.max_steps=null", "evolve.schedule.epochs=1",
    )  # fmt: skip
    base = dict(open_backbone(str(place / "small")).network.named_parameters())
    (path,) = tmp_path.glob("evolved-*.safetensors")
    read = load_file(path)
    first = moved({name: read[name] for name in base}, base)
    patch = Patch.open(run.path / "arms" / "old_patched" / "adapter")
    second = {n: len(e.index) for n, e in patch.delta.entries.items() if isinstance(e, Sparse)}
    maskable = {n for n in base if "LayerNorm" not in n and not n.startswith("embeddings")}
    share = round(0.05 * sum(base[n].numel() for n in maskable))
    assert 0 < sum(first.values()) <= share and 0 < sum(second.values()) <= share
    assert set(first) | set(second) <= maskable
    job, _ = port.load(run)
    ported = state_of(job.backbone.network)
    for name, entry in patch.delta.entries.items():
        expected = read[name] + entry.dense().float()
        torch.testing.assert_close(ported[name], expected, atol=1e-6, rtol=0)
    assert set(moved({name: ported[name] for name in base}, read)) == set(second)


def test_a_patch_of_all_weights_is_their_difference(place: Path, tmp_path: Path) -> None:
    run = start(place, "also=[]", "probe=0", "tuner={method: full}", f"cache={tmp_path}")
    base = dict(open_backbone(str(place / "small")).network.named_parameters())
    tuned = load_file(run.path / "arms" / "old_patched" / "adapter" / "tensors.safetensors")
    (path,) = tmp_path.glob("evolved-*.safetensors")
    read, ported = load_file(path), state_of(port.load(run)[0].backbone.network)
    for name in [name for name in tuned if not made_anew(name)]:
        expected = read[name] + tuned[name] - base[name]
        torch.testing.assert_close(ported[name], expected, atol=1e-6, rtol=0)


def test_a_random_patch_keeps_places_and_norms_of_any_form(place: Path) -> None:
    draw = torch.Generator().manual_seed(0)
    values = torch.randn(3, 4, generator=draw)
    sparse = Sparse(torch.tensor([1, 5, 7]), values[0, :3], (3, 4))
    patch = Patch(Delta({"a": Dense(values), "b": sparse}))
    drawn = random_like(patch, 1).delta.entries
    for name, entry in patch.delta.entries.items():
        assert not torch.allclose(drawn[name].dense(), entry.dense())
        torch.testing.assert_close(drawn[name].dense().norm(), entry.dense().norm())
    assert torch.equal(drawn["b"].dense() != 0, sparse.dense() != 0)


def test_a_tuner_that_adds_nothing_is_refused(place: Path, tmp_path: Path) -> None:
    with pytest.raises(GalenicError, match="SSF"):
        start(place, "also=[]", "evolve.tuner={method: ssf}", f"cache={tmp_path}")
