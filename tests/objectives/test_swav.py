"""SwAV against slow references."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional

from galenic.core.checkpoint import Moving
from galenic.core.errors import BackboneError, ConfigError, DataError
from galenic.models.backbone import Backbone, open_backbone
from galenic.objectives import pretraining
from galenic.objectives.pretraining._swapping import SwappedAssignments, sinkhorn, swapped

SPEC = (
    "monai:ResNet?block=basic&layers=[1,1,1,1]&block_inplanes=[4,8,8,16]&spatial_dims=2"
    "&n_input_channels=1&feed_forward=false"
)
TINY = {"method": "swav", "prototypes": 5, "dim": 6, "hidden": 12}


def opened() -> Backbone:
    torch.manual_seed(0)
    return open_backbone(SPEC, size=32)


def swav(**settings: object) -> SwappedAssignments:
    config = pretraining.parse({**TINY, **settings})
    assert pretraining.views(config) == 2
    found = pretraining.build(opened(), config, 0)
    assert isinstance(found, SwappedAssignments)
    return found.train()


def batch(size: int = 4, seed: int = 0, local: int = 0) -> dict[str, Tensor]:
    draw = torch.Generator().manual_seed(seed)
    key = opened().inputs.key
    found = {
        "draws": torch.arange(size),
        key: torch.randn(size, 2, 1, 32, 32, generator=draw),
    }
    if local:
        found["local"] = torch.randn(size, local, 1, 16, 16, generator=draw)
    return found


def points_of(objective: SwappedAssignments, given: dict[str, Tensor]) -> list[Tensor]:
    """Of each view [B, dim], by plain loops over a copy in the same mode."""
    twin = copy.deepcopy(objective)
    key = twin.key
    with torch.no_grad():
        whole = torch.cat([given[key][:, 0], given[key][:, 1]])
        pooled = [twin.backbone(**{key: whole}).pooled]
        if "local" in given:
            small = torch.cat([given["local"][:, n] for n in range(given["local"].shape[1])])
            pooled.append(twin.backbone(**{key: small}).pooled)
        found = twin.head(torch.cat(pooled))
    return list((found / found.norm(dim=1, keepdim=True)).split(len(given["draws"])))


def slow_codes(scores: Tensor, epsilon: float = 0.05, iterations: int = 3) -> np.ndarray:
    """The published code, in double precision."""
    q = np.exp(scores.double().numpy() / epsilon).T
    clusters, samples = q.shape
    q /= q.sum()
    for _ in range(iterations):
        q /= q.sum(axis=1, keepdims=True) * clusters
        q /= q.sum(axis=0, keepdims=True) * samples
    return (q * samples).T


def slow_loss(views: list[Tensor], prototypes: Tensor, temperature: float = 0.1) -> np.ndarray:
    found, pairs = np.zeros(len(views[0])), 0
    scores = [view.double() @ prototypes.double().T for view in views]
    for place in range(2):
        codes = slow_codes(scores[place])
        for other in range(len(views)):
            if other == place:
                continue
            logits = scores[other].numpy() / temperature
            said = logits - np.log(np.exp(logits).sum(axis=1, keepdims=True))
            found -= (codes * said).sum(axis=1)
            pairs += 1
    return found / pairs


@given(st.integers(0, 10_000), st.integers(1, 12), st.integers(2, 7))
def test_sinkhorn_is_the_published_loop(seed: int, samples: int, clusters: int) -> None:
    scores = torch.rand(samples, clusters, generator=torch.Generator().manual_seed(seed)) * 2 - 1
    np.testing.assert_allclose(sinkhorn(scores, 0.05, 3), slow_codes(scores), atol=1e-4)


def test_every_sample_shares_out_one_and_every_prototype_gets_as_much() -> None:
    scores = torch.rand(24, 6, generator=torch.Generator().manual_seed(1)) * 2 - 1
    three, many = sinkhorn(scores, 0.05, 3), sinkhorn(scores, 0.05, 500)
    for codes in (three, many):
        torch.testing.assert_close(codes.sum(dim=1), torch.ones(24))
    torch.testing.assert_close(many.sum(dim=0), torch.full((6,), 4.0), rtol=1e-3, atol=0)
    # Three rounds come closer than none.
    plain = (scores / 0.05).softmax(dim=1).sum(dim=0)
    assert (three.sum(dim=0) - 4).abs().max() < (plain - 4).abs().max()
    # Where all samples ask for one prototype, they still get all of them.
    alike = torch.tensor([[1.0, -1.0]]).repeat(8, 1)
    torch.testing.assert_close(sinkhorn(alike, 0.05, 3), torch.full((8, 2), 0.5))
    assert sinkhorn(scores * 1e3, 1e-3, 3).isfinite().all()


@pytest.mark.parametrize("local", [0, 3])
def test_the_loss_is_the_double_loop(local: int) -> None:
    objective, found = swav(), batch(local=local)
    wanted = slow_loss(points_of(objective, found), objective.prototypes.weight.detach())
    outputs = objective(**found)
    np.testing.assert_allclose(outputs["losses"].detach(), wanted, rtol=1e-3)
    assert outputs["loss"].item() == pytest.approx(wanted.mean(), rel=1e-3)


def test_swapped_views_have_the_same_loss() -> None:
    objective, found = swav(), batch(local=2)
    turned = found | {objective.key: found[objective.key].flip(1)}
    one, other = (copy.deepcopy(objective)(**given)["losses"] for given in (found, turned))
    torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)
    # A swap in one sample alone is another batch: its codes are balanced with others.
    turned[objective.key] = found[objective.key].clone()
    turned[objective.key][0] = found[objective.key][0].flip(0)
    assert not torch.allclose(copy.deepcopy(objective)(**turned)["losses"][1:], one[1:])


def test_no_gradient_flows_through_the_codes() -> None:
    objective, found = swav(), batch()
    taught = copy.deepcopy(objective)
    objective(**found)["loss"].backward()
    points = taught._points(found[taught.key].transpose(0, 1), None)
    scores = taught._scores(points)
    codes = torch.stack([torch.from_numpy(slow_codes(view.detach())) for view in scores])
    # Codes of another program, which no gradient can enter.
    swapped(scores, codes.float(), 0.1).mean().backward()
    for (name, ours), theirs in zip(objective.named_parameters(), taught.parameters(), strict=True):
        assert ours.grad is not None and theirs.grad is not None
        torch.testing.assert_close(ours.grad, theirs.grad, rtol=1e-2, atol=1e-5, msg=name)


def test_prototypes_have_length_one_and_wait_for_the_second_epoch() -> None:
    config = pretraining.parse({**TINY, "freeze_epochs": 1})
    objective = swav()
    hook = pretraining.after_step(objective, config)
    assert hook is not None
    adam = torch.optim.AdamW(objective.parameters(), lr=0.1, weight_decay=0.5)
    first = objective.prototypes.weight.detach().clone()
    norm = torch.ones(5)

    def step(epoch: int) -> None:
        objective.set_epoch(epoch)
        adam.zero_grad()
        objective(**batch(seed=epoch))["loss"].backward()
        adam.step()
        hook(1, 2)
        torch.testing.assert_close(objective.prototypes.weight.norm(dim=1), norm)

    torch.testing.assert_close(first.norm(dim=1), norm)
    before = [p.detach().clone() for p in objective.backbone.parameters()]
    step(0)
    torch.testing.assert_close(objective.prototypes.weight, first, rtol=0, atol=1e-6)
    assert any(
        not torch.equal(p, old)
        for p, old in zip(objective.backbone.parameters(), before, strict=True)
    )
    step(1)
    assert (objective.prototypes.weight - first).abs().max() > 1e-3


def test_a_full_queue_shares_the_prototypes(monkeypatch: pytest.MonkeyPatch) -> None:
    objective = swav(queue=6, queue_epochs=2)
    assert objective.queue.shape == (6, 2, 6)
    objective.set_epoch(1)
    objective(**batch())
    assert objective.filled == 0 and not objective.queue.any()
    objective.set_epoch(2)
    kept = [points_of(objective, batch(seed=seed)) for seed in (0,)]
    objective(**batch())
    assert (objective.filled, objective.place) == (4, 4)
    torch.testing.assert_close(objective.queue[:4], torch.stack(kept[0], dim=1))
    kept.append(points_of(objective, batch(seed=1)))
    objective(**batch(seed=1))
    assert (objective.filled, objective.place) == (6, 2)
    seen: list[Tensor] = []
    real = sinkhorn

    def spy(scores: Tensor, *rest: float) -> Tensor:
        seen.append(scores)
        return real(scores, *rest)  # type: ignore[arg-type]

    monkeypatch.setattr("galenic.objectives.pretraining._swapping.sinkhorn", spy)
    earlier, views = objective.queue.clone(), points_of(objective, batch(seed=2))
    losses = objective(**batch(seed=2))["losses"].detach()
    # The codes are those of the batch, balanced together with what was there before.
    weight = objective.prototypes.weight.detach()
    scores = [view @ weight.T for view in views]
    wanted = sum(
        -(slow_codes(torch.cat([earlier[:, place] @ weight.T, scores[place]]))[6:]
          * (scores[1 - place] / 0.1).log_softmax(dim=1).numpy()).sum(axis=1) / 2
        for place in range(2)
    )  # fmt: skip
    np.testing.assert_allclose(losses, wanted, rtol=1e-3)
    for view, scores in enumerate(seen):
        assert scores.shape == (10, 5)
        wanted = functional.linear(earlier[:, view], objective.prototypes.weight)
        torch.testing.assert_close(scores[:6], wanted)
    # Judging moves nothing, and reads no queue.
    held, seen[:] = copy.deepcopy(objective.state_dict()), []
    objective.eval()(**batch())
    assert [len(scores) for scores in seen] == [4, 4]
    assert all(torch.equal(held[name], value) for name, value in objective.state_dict().items())


def test_a_checkpoint_holds_the_queue() -> None:
    one, other = swav(queue=4, queue_epochs=0), swav(queue=4, queue_epochs=0)
    saves, loads = Moving(one), Moving(other)
    one(**batch())
    loads.put(saves.take())
    assert torch.equal(one(**batch(seed=1))["losses"], other(**batch(seed=1))["losses"])
    assert torch.equal(one.queue, other.queue) and one.queue.any()


def test_views_of_one_sample_come_to_one_cluster() -> None:
    """Far below log K, which is the loss of a network to which all samples are one."""
    objective = swav(prototypes=8, dim=16, hidden=32)
    hook = pretraining.after_step(objective, pretraining.parse(TINY))
    assert hook is not None
    adam = torch.optim.AdamW(objective.parameters(), lr=3e-3)
    draw = torch.Generator().manual_seed(0)
    plain = functional.interpolate(torch.randn(32, 1, 8, 8, generator=draw), (32, 32))
    for step in range(40):
        objective.set_epoch(int(step > 5))
        noise = 0.3 * torch.randn(32, 2, 1, 32, 32, generator=draw)
        adam.zero_grad()
        loss = objective(torch.arange(32), **{objective.key: plain[:, None] + noise})["loss"]
        loss.backward()
        adam.step()
        hook(step + 1, 40)
    assert loss.item() < np.log(8) / 2


def test_what_cannot_be_is_named() -> None:
    with pytest.raises(DataError, match="One sample"):
        swav()(**batch(1))
    assert swav().eval()(**batch(1))["losses"].shape == (1,)
    names = list(opened().network.state_dict())
    objective = swav()
    assert list(objective.backbone.network.state_dict()) == names
    with pytest.raises(DataError, match="two views"):
        objective(draws=torch.arange(4), **{objective.key: torch.randn(4, 3, 1, 32, 32)})
    with pytest.raises(ConfigError, match="crop"):
        pretraining.parse({**TINY, "local": {"crop": [0.5, 0.1]}})
    backbone = open_backbone("builtin:vit?width=16&depth=1&heads=2&image=32&patch=16")
    config = pretraining.parse({**TINY, "local": {"share": 0.25}})
    before = {name: value.clone() for name, value in backbone.state_dict().items()}
    with pytest.raises(BackboneError, match="8 x 8"):
        pretraining.build(backbone, config, 0)
    assert all(torch.equal(before[n], value) for n, value in backbone.state_dict().items())
