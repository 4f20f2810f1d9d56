"""MoCo v2 and Barlow Twins against slow references."""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.utils.data import default_collate

from galenic.core.checkpoint import Moving
from galenic.core.errors import DataError
from galenic.core.prediction import predict
from galenic.models.backbone import Backbone, open_backbone
from galenic.objectives import pretraining
from galenic.objectives.pretraining._momentum import MomentumContrast, contrast
from galenic.objectives.pretraining._twins import BarlowTwins, redundancy

SPEC = (
    "monai:ResNet?block=basic&layers=[1,1,1,1]&block_inplanes=[4,8,8,16]&spatial_dims=2"
    "&n_input_channels=1&feed_forward=false"
)


def opened() -> Backbone:
    torch.manual_seed(0)
    return open_backbone(SPEC, size=32)


def batch(backbone: Backbone, size: int = 4, seed: int = 0, views: int = 2) -> dict[str, Tensor]:
    draw = torch.Generator().manual_seed(seed)
    pixels = torch.randn(size, views, 1, 32, 32, generator=draw)
    return {"draws": torch.arange(size), backbone.inputs.key: pixels}


def moco(backbone: Backbone, **settings: object) -> MomentumContrast:
    config = pretraining.parse({"method": "moco", "dim": 8, "queue": 6, **settings})
    assert pretraining.views(config) == 2
    found = pretraining.build(backbone, config, 0)
    assert isinstance(found, MomentumContrast)
    return found.train()


def test_contrast_is_the_cross_entropy_of_the_key() -> None:
    rng = np.random.default_rng(0)
    queries, keys, others = (rng.normal(size=(n, 5)) for n in (3, 3, 7))
    found = contrast(*map(torch.from_numpy, (queries, keys, others)), 0.2)
    for row in range(3):
        scores = [queries[row] @ keys[row] / 0.2, *(queries[row] @ o / 0.2 for o in others)]
        wanted = -scores[0] + np.log(np.sum(np.exp(scores)))
        assert found[row].item() == pytest.approx(wanted, rel=1e-5)


def test_the_queue_turns_and_the_slow_branch_follows() -> None:
    backbone = opened()
    objective = moco(backbone, momentum=0.75)
    first = objective.queue.clone()
    before = {name: p.clone() for name, p in objective.slow.named_parameters()}
    with torch.no_grad():
        for p in objective.fast.parameters():
            p.add_(1.0)
    objective(**batch(backbone))["loss"].backward()
    for name, p in objective.slow.named_parameters():
        torch.testing.assert_close(p, before[name] + 0.25)
        assert p.grad is None
    assert objective.place == 4
    assert torch.equal(objective.queue[4:], first[4:])
    torch.testing.assert_close(objective.queue[:4].norm(dim=1), torch.ones(4))
    second = objective.queue.clone()
    objective(**batch(backbone, seed=1))
    assert objective.place == 2
    assert torch.equal(objective.queue[2:4], second[2:4])
    assert not torch.isclose(objective.queue[[4, 5, 0, 1]], second[[4, 5, 0, 1]]).all(1).any()
    # Judging moves nothing.
    held = copy.deepcopy(objective.state_dict())
    losses = objective.eval()(**batch(backbone))["losses"]
    assert losses.shape == (4,)
    assert all(torch.equal(held[name], value) for name, value in objective.state_dict().items())


def test_a_checkpoint_holds_the_queue_and_the_slow_branch() -> None:
    def step(objective: MomentumContrast, seed: int) -> Tensor:
        adam = torch.optim.SGD(objective.fast.parameters(), lr=0.1)
        loss = objective(**batch(objective.fast.backbone, seed=seed))["loss"]
        loss.backward()
        adam.step()
        objective.zero_grad()
        found: Tensor = loss.detach()
        return found

    one, other = moco(opened(), momentum=0.5), moco(opened(), momentum=0.5)
    saves, loads = Moving(one), Moving(other)
    step(one, 0)
    step(one, 1)
    loads.put(saves.take())
    assert torch.equal(step(one, 2), step(other, 2))
    assert all(
        torch.equal(a, b)
        for a, b in zip(one.state_dict().values(), other.state_dict().values(), strict=True)
    )


def test_redundancy_is_the_double_sum() -> None:
    matrix = np.random.default_rng(0).normal(size=(5, 5))
    wanted = sum(
        (matrix[i, j] - 1) ** 2 if i == j else 0.01 * matrix[i, j] ** 2
        for i in range(5)
        for j in range(5)
    )
    assert redundancy(torch.from_numpy(matrix), 0.01).item() == pytest.approx(wanted)
    assert redundancy(torch.eye(4), 0.01) == 0


def test_twins_correlate_normed_features() -> None:
    backbone = opened()
    found = pretraining.build(backbone, pretraining.parse({"method": "barlow_twins", "dim": 6}), 0)
    assert isinstance(found, BarlowTwins)
    found.train()
    given = batch(backbone, 5)
    twin = copy.deepcopy(found)
    loss = found(**given)
    with torch.no_grad():
        pixels = given[backbone.inputs.key]
        views = [
            twin.head(twin.backbone(**{backbone.inputs.key: pixels[:, v]}).pooled).double().numpy()
            for v in range(2)
        ]
    normed = [(v - v.mean(0)) / np.sqrt(v.var(0) + 1e-5) for v in views]
    matrix = torch.from_numpy(normed[0].T @ normed[1] / 5)
    assert loss["loss"].item() == pytest.approx(redundancy(matrix, 0.0051).item(), rel=1e-3)
    loss["loss"].backward()
    with pytest.raises(DataError, match="one sample"):
        found(**batch(backbone, 1))


@pytest.mark.parametrize("size", [1, 4, 9])
def test_the_loss_of_twins_is_one_of_all_samples(size: int) -> None:
    backbone = opened()
    config = pretraining.parse({"method": "barlow_twins", "dim": 6})
    found = pretraining.build(backbone, config, 0).eval()
    whole = batch(backbone, 9)
    rows: Any = [{key: value[at] for key, value in whole.items()} for at in range(9)]
    outputs = predict(found, rows, collate=default_collate, batch_size=size)
    judged = pretraining.together(config, outputs)
    assert judged == pytest.approx(found(**whole)["loss"].item(), rel=1e-4)


@pytest.mark.parametrize("method", ["moco", "barlow_twins"])
def test_the_network_keeps_its_names_and_needs_two_views(method: str) -> None:
    backbone = opened()
    names = list(backbone.network.state_dict())
    objective = pretraining.build(backbone, pretraining.parse({"method": method}), 0)
    assert list(backbone.network.state_dict()) == names
    with pytest.raises(DataError, match="two views"):
        objective(**batch(backbone, views=3))
