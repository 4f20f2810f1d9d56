"""SparK: nothing of a masked cell is ever seen, and an unmasked network is the ordinary one."""

from __future__ import annotations

import copy
import threading
from contextlib import nullcontext

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers import (
    ConvNextConfig,
    ConvNextModel,
    ConvNextV2Config,
    ConvNextV2Model,
    EfficientNetConfig,
    EfficientNetModel,
    ResNetConfig,
    ResNetModel,
    SwinConfig,
    SwinModel,
)

from galenic.core.errors import BackboneError, ConfigError, DataError
from galenic.core.fingerprint import fingerprint_module
from galenic.core.inputs import InputSpec
from galenic.models.backbone import Backbone, Opened, open_backbone
from galenic.objectives import pretraining
from galenic.objectives.pretraining.spark.maps import find
from galenic.objectives.pretraining.spark.objective import Spark
from galenic.objectives.pretraining.spark.sparse import Sparse

FOUR = {"hidden_sizes": [16, 24, 32, 64], "depths": [1, 1, 1, 1]}
MONAI = (
    "monai:ResNet?block=basic&layers=[1,1,1,1]&block_inplanes=[4,8,8,16]&spatial_dims=3"
    "&n_input_channels=1&feed_forward=false&conv1_t_size=3"
)


def wrapped(network: nn.Module, size: tuple[int, ...] = (64, 64), channels: int = 3) -> Backbone:
    form = "image" if len(size) == 2 else "volume"
    spec = InputSpec("pixel_values", form, channels, size)
    return Backbone(Opened(network.eval(), spec), "given", "auto")


def opened(name: str) -> Backbone:
    torch.manual_seed(0)
    if name == "resnet":
        return wrapped(ResNetModel(ResNetConfig(embedding_size=8, **FOUR)))
    if name == "convnext":
        return wrapped(ConvNextModel(ConvNextConfig(drop_path_rate=0.1, **FOUR)))
    if name == "convnextv2":
        return wrapped(ConvNextV2Model(ConvNextV2Config(**FOUR)))
    if name == "efficientnet":  # with squeeze and excitation
        config = EfficientNetConfig(width_coefficient=0.5, depth_coefficient=0.3, hidden_dim=640)
        return wrapped(EfficientNetModel(config))
    if name == "monai":
        return open_backbone(MONAI, size=32)
    return open_backbone(f"builtin:{name}#random", size=64)


NETWORKS = (
    "resnet", "convnext", "convnextv2", "efficientnet", "efficientnet-lite0", "mobilenet-v2", "monai",
)  # fmt: skip


def spark(backbone: Backbone, **settings: object) -> Spark:
    values = {"method": "spark", "decoder_width": 32, "mask_ratio": 0.5, **settings}
    found = pretraining.build(backbone, pretraining.parse(values), 0)
    assert isinstance(found, Spark)
    return found.train()


def pixels(backbone: Backbone, batch: int = 3) -> Tensor:
    draw = torch.Generator().manual_seed(1)
    sides = backbone.inputs.size or ()
    return torch.randn(batch, backbone.inputs.channels, *sides, generator=draw)


def still(network: nn.Module) -> nn.Module:
    """No layer that draws, so that two passes can be compared; norms stay in training mode."""
    for module in network.modules():
        if "drop" in type(module).__name__.lower():
            module.eval()
    return network


def dense_of(
    objective: Spark, found: dict[tuple[int, ...], Tensor], active: Tensor
) -> list[Tensor]:
    sparse = Sparse(active, objective.maps.sides)
    dense = []
    for part, place in zip(
        objective.decoder.densify, reversed(objective.maps.places), strict=False
    ):
        region = sparse.first(found[place.stride])
        assert region is not None
        dense.append(part(found[place.stride], region.mask, sparse))
    return dense


@pytest.mark.parametrize("name", NETWORKS)
def test_masked_pixels_change_nothing_to_the_bit_and_the_mask_does_not_grow(name: str) -> None:
    backbone = opened(name)
    outcomes = []
    for filling in (0.0, 1e6, torch.nan):
        objective = spark(copy.deepcopy(backbone))
        still(objective)
        given, active = objective.masked(pixels(backbone), torch.arange(3))
        sparse = Sparse(active, objective.maps.sides)
        region = sparse.first(given)
        assert region is not None
        found = objective.encoded(given.masked_fill(~region.mask, filling), sparse)
        dense = dense_of(objective, found, active)
        outcomes.append([*found.values(), *dense, *objective.network.buffers()])
        for map_ in found.values():
            inside = sparse.first(map_)
            assert inside is not None
            assert inside.mask.float().mean() == active.float().mean()
            assert (map_.masked_select(~inside.mask.expand_as(map_)) == 0).all()
            assert map_.masked_select(inside.mask.expand_as(map_)).count_nonzero() > 0
    assert len(outcomes[0]) > 4
    for other in outcomes[1:]:
        assert all(torch.equal(a, b) for a, b in zip(outcomes[0], other, strict=True))


@pytest.mark.parametrize("mode", ["train", "eval"])
@pytest.mark.parametrize("name", NETWORKS)
def test_all_active_is_the_ordinary_network(name: str, mode: str) -> None:
    backbone = opened(name)
    given = pixels(backbone)
    maps = find(backbone)
    grid = [side // step for side, step in zip(given.shape[2:], maps.stride, strict=True)]
    everything = torch.ones(len(given), 1, *grid, dtype=torch.bool)
    results = []
    for scope in (nullcontext(), Sparse(everything, maps.sides)):
        network = still(copy.deepcopy(backbone.network).train(mode == "train"))
        with scope:
            output = network(**{backbone.inputs.key: given})
        last = output if isinstance(output, Tensor) else output.last_hidden_state
        last.square().sum().backward()
        gradients = [p.grad for p in network.parameters() if p.grad is not None]
        results.append([last.detach(), *network.buffers(), *gradients])
    for plain, sparse in zip(*results, strict=True):
        scale = plain.abs().max().clamp_min(1e-3)
        assert (plain - sparse).abs().max() <= 2e-3 * scale


@pytest.mark.parametrize("name", NETWORKS)
def test_a_trained_encoder_is_an_ordinary_network(name: str) -> None:
    backbone = opened(name)
    twin = copy.deepcopy(backbone.network)
    keys, before = list(backbone.network.state_dict()), fingerprint_module(backbone.network)
    objective = spark(backbone)
    assert fingerprint_module(backbone.network) == before
    adam = torch.optim.AdamW(objective.parameters(), lr=1e-3)
    objective(torch.arange(3), **{backbone.inputs.key: pixels(backbone)})["loss"].backward()
    adam.step()
    assert list(backbone.network.state_dict()) == keys
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in backbone.network.modules())
    twin.load_state_dict(backbone.network.state_dict(), strict=True)
    assert fingerprint_module(twin) != before


ACTIVE = torch.tensor([[[[1, 0], [0, 1]]], [[[0, 1], [1, 0]]]]).bool()
SIDES = [(8, 8), (4, 4), (2, 2)]


@pytest.mark.parametrize(
    "layer",
    [
        nn.Conv2d(6, 5, 3, padding=1),
        nn.Conv2d(6, 6, 5, stride=2, padding=2, groups=6),
        nn.MaxPool2d(3, 2, 1),
        nn.AvgPool2d(3, 2, 1),
        nn.AdaptiveAvgPool2d(1),
        nn.AdaptiveMaxPool2d(2),
        nn.BatchNorm2d(6),
        nn.GroupNorm(3, 6),
        nn.InstanceNorm2d(6, affine=True),
        nn.Sigmoid(),
        nn.Softplus(),
        nn.Hardtanh(0.5, 1.0),
        nn.Sequential(nn.ZeroPad2d(1), nn.Conv2d(6, 5, 3)),
    ],
    ids=lambda layer: type(layer).__name__,
)
def test_each_kind_of_layer_is_blind_and_leaves_zeros(layer: nn.Module) -> None:
    x = torch.randn(2, 6, 8, 8, generator=torch.Generator().manual_seed(0))
    mask = ACTIVE.repeat_interleave(4, 2).repeat_interleave(4, 3)
    # Poolings of the largest and norms read active positions alone; the others are handed zeros.
    blind = isinstance(layer, nn.MaxPool2d | nn.AdaptiveMaxPool2d | nn.GroupNorm) or hasattr(
        layer, "running_mean"
    )
    results = []
    for filling in (0.0, torch.nan if blind else 0.0):
        sparse = Sparse(ACTIVE, SIDES)
        given, fresh = x.masked_fill(~mask, filling), copy.deepcopy(layer)
        with sparse:
            out = fresh(given)
        results.append(out)
        region = sparse.first(out)
        if region is not None:
            assert (out.masked_select(~region.mask.expand_as(out)) == 0).all()
            assert out.masked_select(region.mask.expand_as(out)).count_nonzero() > 0
        assert out.isfinite().all()
    assert torch.equal(*results)
    fresh = copy.deepcopy(layer)
    with Sparse(torch.ones_like(ACTIVE), SIDES):
        everywhere = fresh(x)
    torch.testing.assert_close(everywhere, layer(x))


def test_batch_statistics_are_those_of_active_positions() -> None:
    x = torch.randn(2, 6, 8, 8, dtype=torch.float64) * 3 + 100
    mask = ACTIVE.repeat_interleave(4, 2).repeat_interleave(4, 3)
    norm = nn.BatchNorm2d(6).double()
    nn.init.uniform_(norm.bias, 1, 2)
    with Sparse(ACTIVE, SIDES):
        out = norm(x)
    for channel in range(6):
        values = x[:, channel][mask[:, 0]].numpy()
        assert values.size == 64
        wanted = (values - values.mean()) / np.sqrt(values.var() + 1e-5) + norm.bias[channel].item()
        found = out[:, channel][mask[:, 0]].detach().numpy()
        np.testing.assert_allclose(found, wanted, atol=1e-9)
        np.testing.assert_allclose(norm.running_mean[channel], 0.1 * values.mean(), rtol=1e-9)
        np.testing.assert_allclose(
            norm.running_var[channel], 0.9 + 0.1 * values.var(ddof=1), rtol=1e-9
        )


def test_norms_of_a_sample_see_its_active_positions() -> None:
    x = torch.randn(2, 6, 8, 8, dtype=torch.float64) + 5
    mask = ACTIVE.repeat_interleave(4, 2).repeat_interleave(4, 3)
    with Sparse(ACTIVE, SIDES):
        out = functional.group_norm(x, 3)
    for sample in range(2):
        for group in range(3):
            values = x[sample, 2 * group : 2 * group + 2][:, mask[sample, 0]].numpy()
            wanted = (values - values.mean()) / np.sqrt(values.var() + 1e-5)
            found = out[sample, 2 * group : 2 * group + 2][:, mask[sample, 0]].numpy()
            np.testing.assert_allclose(found, wanted, atol=1e-9)


def test_a_window_that_sees_nothing_passes_no_gradient() -> None:
    active = torch.eye(2, dtype=torch.bool).view(1, 1, 2, 2)
    scale, maps = torch.ones((), requires_grad=True), torch.randn(1, 3, 16, 16)
    with Sparse(active, [(16, 16), (8, 8)]):
        found = functional.avg_pool2d(functional.silu(maps * scale), 2)
    found.square().sum().backward()
    region = torch.eye(2).repeat_interleave(8, 0).repeat_interleave(8, 1)
    plain = torch.ones((), requires_grad=True)
    wanted = functional.avg_pool2d(functional.silu(maps * plain) * region, 2)
    wanted.square().sum().backward()
    torch.testing.assert_close(found, wanted)
    torch.testing.assert_close(scale.grad, plain.grad)


def test_pools_see_active_positions_only() -> None:
    x = -torch.rand(2, 6, 8, 8) - 1
    mask = ACTIVE.repeat_interleave(4, 2).repeat_interleave(4, 3)
    erased = x.masked_fill(~mask, 0)
    with Sparse(ACTIVE, SIDES):
        most = functional.max_pool2d(erased, 3, 2, 1)
        mean = functional.adaptive_avg_pool2d(erased, 1)
        also = erased.mean((2, 3))
    assert most[:, :, 1, 1][0].tolist() == x[0, :, 1:4, 1:4].amax((1, 2)).tolist()
    wanted = torch.stack([x[b][:, mask[b, 0]].mean(1) for b in range(2)])
    torch.testing.assert_close(mean.flatten(1), wanted)
    torch.testing.assert_close(also, wanted)


def test_gradients_are_those_of_a_multiplication() -> None:
    """The bits that erase are right both ways: compared with plain autograd."""
    x = torch.randn(2, 3, 8, 8, dtype=torch.float64)
    mask = ACTIVE.repeat_interleave(4, 2).repeat_interleave(4, 3)
    layer = nn.Conv2d(3, 4, 3, padding=1).double()
    weights = torch.randn(2, 4, 8, 8, dtype=torch.float64)
    plain = torch.autograd.grad((layer(x) * mask * weights).sum(), list(layer.parameters()))
    with Sparse(ACTIVE, SIDES):
        out = layer(x)
    found = torch.autograd.grad((out * weights).sum(), list(layer.parameters()))
    for a, b in zip(plain, found, strict=True):
        torch.testing.assert_close(a, b)


class Chain(nn.Sequential):
    """Layers one after the other, called as a backbone is."""

    def forward(self, pixel_values: Tensor) -> Tensor:
        """The map [B, C, H, W] of pixels [B, 3, H, W]."""
        return super().forward(pixel_values)


def test_what_mixes_positions_is_refused_by_name_and_nothing_changes() -> None:
    swin = SwinModel(
        SwinConfig(image_size=64, embed_dim=16, depths=[1, 1], num_heads=[2, 2], window_size=4)
    )
    squeezed = Chain(nn.Conv2d(3, 4, 3, 2, 1), nn.Upsample(scale_factor=2))
    both = Chain(nn.Conv2d(3, 4, 3, 2, 1), nn.SyncBatchNorm(4))
    for network, word in ((swin, "flatten"), (squeezed, "interpolate"), (both, "SyncBatchNorm")):
        backbone = wrapped(network)
        before = fingerprint_module(backbone.network)
        with pytest.raises(BackboneError, match=word):
            spark(backbone)
        assert fingerprint_module(backbone.network) == before


def test_bad_sizes_and_settings_say_what_would_fit() -> None:
    backbone = opened("resnet")
    for settings, word in (
        ({"cell": 48}, "cell"),
        ({"mask_ratio": 0.99}, "mask_ratio"),
        ({"decoder_width": 48}, "decoder_width"),
    ):
        with pytest.raises(ConfigError, match=word):
            spark(backbone, **settings)
    with pytest.raises(BackboneError, match="evenly"):
        spark(wrapped(backbone.network, (40, 40)))
    objective = spark(opened("resnet"))
    with pytest.raises(DataError, match="96"):
        objective(torch.arange(2), pixel_values=torch.zeros(2, 3, 96, 96))
    with pytest.raises(DataError, match="two"):
        spark(opened("resnet"), mask_ratio=0.75)(
            torch.arange(1), pixel_values=torch.randn(1, 3, 64, 64)
        )


def test_recomputing_is_refused() -> None:
    backbone = opened("convnext")
    objective = spark(backbone)
    assert not hasattr(objective, "gradient_checkpointing_enable")
    backbone.network.encoder.gradient_checkpointing = True
    with pytest.raises(ConfigError, match="recompute"):
        objective(torch.arange(3), pixel_values=pixels(backbone))


def test_loss_judges_masked_cells_alone() -> None:
    backbone = opened("resnet")
    objective = spark(backbone)
    given = pixels(backbone)
    draws = torch.arange(3)
    _, active = objective.masked(given, draws)
    mask = active.repeat_interleave(32, 2).repeat_interleave(32, 3)
    painted = torch.zeros_like(given).requires_grad_()
    objective.painted = lambda *_: painted  # type: ignore[method-assign]
    objective(draws, pixel_values=given)["loss"].backward()
    assert painted.grad is not None
    assert (painted.grad.masked_select(mask.expand_as(given)) == 0).all()
    assert (painted.grad.masked_select(~mask.expand_as(given)) != 0).all()

    # The perfect painting, by a slow loop over cells.
    perfect = given.clone()
    for b in range(3):
        for i in range(2):
            for j in range(2):
                cell = given[b, :, 32 * i : 32 * i + 32, 32 * j : 32 * j + 32]
                normed = (cell - cell.mean()) / (cell.var() + 1e-6).sqrt()
                perfect[b, :, 32 * i : 32 * i + 32, 32 * j : 32 * j + 32] = normed
    objective.painted = lambda *_: perfect  # type: ignore[method-assign]
    found = objective(draws, pixel_values=given)
    assert found["loss"] < 1e-10
    assert found["losses"].shape == (3,)
    # Gain and offset of the picture do not move the target.
    assert objective(draws, pixel_values=3 * given + 7)["loss"] < 1e-6


def test_masks_are_those_of_their_draws() -> None:
    objective = spark(opened("resnet"), cell=32)
    given = pixels(opened("resnet"), 4)
    _, first = objective.masked(given, torch.tensor([5, 6, 7, 8]))
    _, again = objective.masked(given.flip(0), torch.tensor([8, 7, 6, 5]))
    assert torch.equal(first, again.flip(0))
    assert (first.flatten(1).sum(1) == 2).all()
    assert len({tuple(row.flatten().tolist()) for row in first}) > 1


def test_a_hundred_cells_keep_what_the_paper_keeps() -> None:
    torch.manual_seed(0)
    network = ResNetModel(ResNetConfig(embedding_size=8, **FOUR))
    objective = spark(wrapped(network, (224, 224)), mask_ratio=0.6)
    assert (objective.grid, objective.seen) == ((7, 7), 20)


def test_networks_and_threads_do_not_see_each_others_masks() -> None:
    backbones = [opened("resnet"), opened("convnext")]
    objectives = [spark(backbone).eval() for backbone in backbones]
    jobs = [(objectives[k % 2], torch.arange(3) + 10 * k) for k in range(4)]
    given = pixels(backbones[0])

    def losses(job: tuple[Spark, Tensor]) -> Tensor:
        with torch.no_grad():
            found: Tensor = job[0](job[1], pixel_values=given)["losses"]
        return found

    alone = [losses(job) for job in jobs]
    assert not torch.equal(alone[0], alone[2])
    found: list[list[Tensor]] = [[] for _ in jobs]

    def work(place: int) -> None:
        for _ in range(5):
            found[place].append(losses(jobs[place]))

    threads = [threading.Thread(target=work, args=(place,)) for place in range(len(jobs))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for wanted, several in zip(alone, found, strict=True):
        assert len(several) == 5
        assert all(torch.equal(wanted, one) for one in several)


def test_the_dense_ablation_is_not_blind_to_the_edge_of_its_cells() -> None:
    """With `sparse: false` zeros count in batch norms, and the pattern of the mask is gone."""
    backbone = opened("resnet")
    objective = spark(backbone, sparse=False)
    given, active = objective.masked(pixels(backbone), torch.arange(3))
    sparse = Sparse(active, objective.maps.sides)
    fine = objective.encoded(given, sparse)[(4, 4)]
    region = sparse.first(fine)
    assert region is not None
    assert fine.masked_select(~region.mask.expand_as(fine)).count_nonzero() > 0


@pytest.mark.parametrize("name", ["resnet", "monai"])
def test_it_learns_and_shows_what_it_painted(name: str) -> None:
    backbone = opened(name)
    objective = spark(backbone)
    sides = backbone.inputs.size or ()
    ramp = torch.linspace(-1, 1, sides[-1]).expand(4, backbone.inputs.channels, *sides)
    batch = {"draws": torch.arange(4), backbone.inputs.key: ramp.contiguous()}
    adam = torch.optim.AdamW(objective.parameters(), lr=2e-3)
    losses = []
    for _ in range(20 if name == "resnet" else 8):
        adam.zero_grad()
        loss = objective(**batch)["loss"]
        loss.backward()
        adam.step()
        losses.append(loss.item())
    assert losses[-1] < 0.95 * losses[0]
    config = pretraining.parse({"method": "spark"})
    shown = pretraining.pictures(objective.eval(), config, batch)
    assert shown is not None
    assert shown.shape == (4, 3, backbone.inputs.channels, *sides)
    np.testing.assert_array_equal(shown[:, 0], ramp.numpy())
    seen = shown[:, 1] != 0
    np.testing.assert_array_equal(shown[:, 2][seen], shown[:, 0][seen])
