"""Frozen work once: the same numbers, from the cache or not."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image as Pillow

from galenic import launch, tuners
from galenic.data import cohort as cohort_module
from galenic.data.cohort import Cohort
from galenic.models.backbone import Backbone, open_backbone
from galenic.models.prefix import Replay, capture, frozen_prefix
from galenic.pipeline.frozen import FrozenCache
from galenic.pipeline.inputs import Collate, Inputs


@pytest.fixture(scope="module")
def minilm() -> Backbone:
    return open_backbone("builtin:minilm").eval()


@pytest.mark.parametrize("block", [1, 3, 6])
def test_replay_equals_the_whole_forward(minilm: Backbone, block: int) -> None:
    batch = minilm.tokenize(["a cough", "a fracture of the left arm after a fall"])
    with torch.no_grad():
        whole = minilm(**batch).pooled
        hidden = capture(minilm, block, batch)
        with Replay(minilm, block)(hidden):
            again = minilm(**batch).pooled
        after = minilm(**batch).pooled
    torch.testing.assert_close(again, whole, atol=1e-6, rtol=0)
    assert torch.equal(after, whole)


def test_padding_does_not_change_a_feature(minilm: Backbone, tmp_path: Path) -> None:
    table = pd.DataFrame(
        {"note": ["a cough", "pain " * 40, "fever of unknown origin"], "label": ["a", "b", "a"]}
    )
    cohort = Cohort.open(table, inputs=["note"])
    cached = FrozenCache(tmp_path).pooled(minilm, Inputs(cohort, minilm), [0, 1, 2])
    with torch.no_grad():
        alone = [minilm(**minilm.tokenize([text])).pooled[0].numpy() for text in table["note"]]
    np.testing.assert_array_equal(cached, np.stack(alone))


def test_the_network_is_run_once(minilm: Backbone, tmp_path: Path, monkeypatch) -> None:
    table = pd.DataFrame(
        {"note": ["one day of cough", "two days of fever and pain"], "label": ["a", "b"]}
    )
    inputs = Inputs(Cohort.open(table, inputs=["note"]), minilm)
    first = FrozenCache(tmp_path).pooled(minilm, inputs, [0, 1])

    def forbidden(**_: torch.Tensor) -> None:
        raise AssertionError("the network was run again")

    monkeypatch.setattr(minilm, "forward", forbidden)
    np.testing.assert_array_equal(FrozenCache(tmp_path).pooled(minilm, inputs, [1, 0]), first[::-1])


@pytest.mark.parametrize("layers", [[1, 4, 5, 6], [0, 3, 5, 6]])
def test_a_state_that_a_side_network_keeps_is_not_computed_again(
    tmp_path: Path, monkeypatch, layers: list[int]
) -> None:
    table = pd.DataFrame(
        {
            "note": ["one day of cough", "two days of fever and pain", "a fall from a tree"],
            "label": ["a", "b", "a"],
        }
    )
    cohort, plain = Cohort.open(table, inputs=["note"]), open_backbone("builtin:minilm").eval()
    wanted = FrozenCache(tmp_path / "own").hidden(plain, Inputs(cohort, plain), [2, 0], 5)

    beside = open_backbone("builtin:minilm").eval()
    tuners.attach(beside, tuners.parse_tuner({"method": "unipt", "layers": layers}))
    cache = FrozenCache(tmp_path / "shared")
    cache.hidden(beside, Inputs(cohort, beside), [0, 1, 2], 6)
    monkeypatch.setattr(plain, "forward", None)
    found = cache.hidden(plain, Inputs(cohort, plain), [2, 0], 5)
    for ours, theirs in zip(found, wanted, strict=True):
        np.testing.assert_allclose(ours, theirs, atol=2e-5)

    pooled = FrozenCache(tmp_path / "own").pooled(
        open_backbone("builtin:minilm").eval(), Inputs(cohort, plain), [2, 0]
    )
    np.testing.assert_allclose(
        cache.pooled(plain, Inputs(cohort, plain), [2, 0]), pooled, atol=2e-6
    )

    # Another network's states, and states that were not kept, are computed.
    with pytest.raises(TypeError):
        cache.hidden(plain, Inputs(cohort, plain), [0], 2)
    other = open_backbone("builtin:minilm#random").eval()
    monkeypatch.setattr(other, "forward", None)
    with pytest.raises(TypeError):
        cache.hidden(other, Inputs(cohort, other), [2, 0], 5)


def test_the_prefix_ends_at_the_first_block_that_trains(minilm: Backbone) -> None:
    network = minilm.network
    state = {n: p.requires_grad for n, p in network.named_parameters()}
    try:
        network.requires_grad_(False)
        network.encoder.layer[4].requires_grad_(True)
        assert frozen_prefix(network) == 4
        network.embeddings.requires_grad_(True)
        assert frozen_prefix(network) == 0
    finally:
        for name, parameter in network.named_parameters():
            parameter.requires_grad_(state[name])


def test_a_tuned_last_block_scores_the_same_with_and_without_cache(tmp_path: Path) -> None:
    tables = []
    for cache in (True, False):
        run = launch.run(
            "ssf", "sample:icd10", out=tmp_path / str(cache), quick=True, cache=cache,
            overrides=["tuner.last_blocks=1", "schedule.precision=fp32"],
        )  # fmt: skip
        tables.append(pd.read_parquet(run.path / "predictions.parquet"))
    scores = [table.filter(like="score").to_numpy() for table in tables]
    np.testing.assert_allclose(scores[0], scores[1], atol=1e-5)


def test_each_missing_sample_is_decoded_once(tmp_path: Path, monkeypatch) -> None:
    rng = np.random.default_rng(0)
    names = [f"{place}.png" for place in range(4)]
    for name in names[:3]:
        pixels = rng.integers(0, 255, (40, 40), dtype=np.uint8)
        Pillow.fromarray(pixels).save(tmp_path / name)
    (tmp_path / names[3]).write_bytes((tmp_path / names[0]).read_bytes())
    cohort = Cohort.open(pd.DataFrame({"file": names, "label": list("abab")}), root=tmp_path)
    network = open_backbone("builtin:efficientnet-lite0#random", size=32).eval()
    decoded: list[str] = []
    whole = cohort_module.read
    monkeypatch.setattr(
        cohort_module, "read", lambda path: decoded.append(path.name) or whole(path)
    )
    cache = FrozenCache(tmp_path / "cache")
    first = cache.pooled(network, Inputs(cohort, network), [0, 1, 2, 3])
    assert sorted(decoded) == ["1.png", "2.png", "3.png"]
    decoded.clear()
    again = cache.pooled(network, Inputs(cohort, network), [3, 2, 1, 0])
    assert decoded == []
    np.testing.assert_array_equal(first[0], first[3])
    np.testing.assert_array_equal(again, first[::-1])


def test_a_key_follows_the_file_and_the_size(tmp_path: Path) -> None:
    def keys(size: int) -> list[str]:
        network = open_backbone("builtin:efficientnet-lite0#random", size=size)
        return Inputs(cohort, network).keys([0])

    Pillow.new("L", (8, 8), 3).save(tmp_path / "a.png")
    cohort = Cohort.open(pd.DataFrame({"file": ["a.png"] * 2, "label": ["a", "b"]}), root=tmp_path)
    first = keys(32)
    assert keys(32) == first
    assert keys(64) != first
    Pillow.new("L", (8, 8), 4).save(tmp_path / "a.png")
    assert keys(32) != first


@pytest.mark.parametrize("method", ["lst", "unipt"])
def test_states_computed_ahead_and_alone_train_a_side_network_to_the_same_bits(
    method: str, tmp_path: Path
) -> None:
    """Features and gradients, of texts that stand in other company when they are computed ahead."""
    texts = ["a cough", "fever of unknown origin", "pain in the left knee since a fall " * 2]
    cohort = Cohort.open(pd.DataFrame({"note": texts, "label": list("aba")}), inputs=["note"])
    backbone = open_backbone("builtin:minilm")
    inputs = Inputs(cohort, backbone)
    tuners.attach(backbone, tuners.parse_tuner({"method": method}))
    block = frozen_prefix(backbone.network)
    cache = FrozenCache(tmp_path)
    for row in range(3):
        cache.hidden(backbone, inputs, [row], block)
    ahead = cache.behind(backbone, inputs, range(3), np.zeros(3), block)
    collate = Collate.of(backbone)
    batch = collate([ahead[row] for row in range(3)])
    hidden = batch.pop("hidden")
    batch.pop("labels")
    weights = [p for p in backbone.parameters() if p.requires_grad]

    def learnt() -> list[torch.Tensor]:
        torch.manual_seed(0)
        pooled = backbone(**batch).pooled
        return [pooled, *torch.autograd.grad(pooled.square().sum(), weights)]

    live = learnt()
    with Replay(backbone, block)(hidden):
        cached = learnt()
    assert all(torch.equal(a, b) for a, b in zip(live, cached, strict=True))


def test_each_pool_has_features_of_its_own(tmp_path: Path) -> None:
    texts = ["one day of cough", "two days of fever and pain"]
    table = pd.DataFrame({"note": texts, "label": ["a", "b"]})
    cohort = Cohort.open(table, inputs=["note"])
    for pool in ("cls", "mean", "max"):
        backbone = open_backbone("builtin:minilm", modality="text", pool=pool).eval()
        found = FrozenCache(tmp_path).pooled(backbone, Inputs(cohort, backbone), [0, 1])
        with torch.no_grad():
            alone = [backbone(**backbone.tokenize([text])).pooled[0] for text in texts]
        np.testing.assert_array_equal(found, np.stack(alone))
