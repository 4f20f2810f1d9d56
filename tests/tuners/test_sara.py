"""SaRA against its card: start, masks, re-selection, nuclear norm, files."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel, get_peft_model
from torch import Tensor, nn
from transformers import ViTConfig, ViTModel

from galenic import tuners
from galenic.core.errors import BackboneError
from galenic.tuners.sara import Config, SaRAConfig, SaRAModel
from galenic.tuners.sara.functional import nuclear_norm
from galenic.tuners.sara.placement import choose

PIXELS = torch.randn(2, 3, 16, 16, generator=torch.Generator().manual_seed(1))
TAU = 4e-3


def vit() -> nn.Module:
    torch.manual_seed(0)
    config = ViTConfig(
        hidden_size=32, num_hidden_layers=2, num_attention_heads=4, intermediate_size=64,
        image_size=16, patch_size=8,
    )  # fmt: skip
    network = ViTModel(config, add_pooling_layer=False).eval()
    for parameter in network.parameters():
        if parameter.ndim == 1:
            parameter.data += 0.1 * torch.randn_like(parameter)
    return network


def out(model: nn.Module) -> Tensor:
    with torch.no_grad():
        found: Tensor = model(pixel_values=PIXELS).last_hidden_state
    return found


def loss(model: nn.Module) -> Tensor:
    found: Tensor = model(pixel_values=PIXELS).last_hidden_state
    return (found - torch.linspace(-1, 1, 32)).square().mean()


def state(model: nn.Module) -> dict[str, Tensor]:
    """The base's tensors, copied, by their name in the base."""
    prefix = "base_model.model."
    return {
        name.removeprefix(prefix): value.detach().clone()
        for name, value in model.named_parameters()
        if "sara_values" not in name
    }


def tuned(**settings: Any) -> PeftModel:
    return get_peft_model(vit(), SaRAConfig(**{"threshold": TAU, "min_rank_dim": 16, **settings}))


def train(model: PeftModel, steps: int, weight_decay: float = 0.1, rank: bool = True) -> Any:
    free = [p for p in model.parameters() if p.requires_grad]
    adam = torch.optim.AdamW(free, lr=1e-3, weight_decay=weight_decay)
    for _ in range(steps):
        adam.zero_grad()
        total = loss(model)
        if rank:
            total = total + model.base_model.rank_loss()
        total.backward()
        adam.step()
    return adam


def merged(model: PeftModel) -> dict[str, Tensor]:
    model.base_model.merge_adapter()
    found = state(model)
    model.base_model.unmerge_adapter()
    return found


def layers(model: PeftModel) -> list[Any]:
    return list(model.base_model.layers())


# Start ------------------------------------------------------------------------------------


def test_the_start_is_the_base_bit_for_bit_sign_included() -> None:
    base = vit()
    before, weights = out(base), {n: p.detach().clone() for n, p in base.named_parameters()}
    model = get_peft_model(base, SaRAConfig(threshold=TAU))
    assert torch.equal(out(model), before)
    for found in (state(model), merged(model)):
        assert found.keys() == weights.keys()
        for name, value in weights.items():
            assert torch.equal(found[name], value), name


def test_the_count_is_that_of_the_small_weights() -> None:
    base = vit()
    expected = sum(int((p.abs() < TAU).sum()) for p in base.parameters())
    model = get_peft_model(base, SaRAConfig(threshold=TAU))
    trained, _ = model.get_nb_trainable_parameters()
    assert trained == expected
    optimiser = train(model, 2)
    states = [t.numel() for s in optimiser.state.values() for t in s.values() if t.ndim]
    assert sum(states) == 2 * expected


@pytest.mark.parametrize("scope", ["global", "per_tensor"])
def test_a_proportion_is_met_with_its_smallest_weights(scope: str) -> None:
    base = vit()
    masks = choose(base, SaRAConfig(proportion=0.1, scope=scope))
    sizes = {n: p.numel() for n, p in base.named_parameters()}
    if scope == "global":
        every = torch.cat([p.detach().abs().reshape(-1) for p in base.parameters()])
        k = round(0.1 * len(every))
        assert sum(len(m.index) for m in masks.values()) == k
        worst = float(every.sort().values[k - 1])
        for name, mask in masks.items():
            values = base.get_parameter(name).detach().abs().reshape(-1)[mask.index]
            assert float(values.max()) <= worst < mask.threshold
    else:
        assert {n: len(m.index) for n, m in masks.items()} == {
            n: max(round(0.1 * size), 1) for n, size in sizes.items()
        }


def test_the_masks_it_is_compared_with_have_the_same_size() -> None:
    base = vit()
    sizes = {}
    for select in ("smallest", "largest", "random"):
        masks = choose(base, SaRAConfig(proportion=0.05, select=select))
        sizes[select] = sum(len(m.index) for m in masks.values())
        means = [
            base.get_parameter(n).detach().abs().reshape(-1)[m.index] for n, m in masks.items()
        ]
        sizes[f"{select} mean"] = float(torch.cat(means).mean())
    assert sizes["smallest"] == sizes["largest"] == sizes["random"]
    assert sizes["smallest mean"] < sizes["random mean"] < sizes["largest mean"]


# Training ---------------------------------------------------------------------------------


def test_nothing_but_the_small_weights_moves_before_and_after_reselection() -> None:
    model = tuned(lambda_rank=0.1)
    start = state(model)
    train(model, 3)
    assert all(torch.equal(value, start[n]) for n, value in state(model).items())
    small = {name: value.abs() < TAU for name, value in start.items()}

    def check() -> dict[str, Tensor]:
        after = merged(model)
        moved = {name: after[name] != value for name, value in start.items()}
        assert any(bool(mask.any()) for mask in moved.values())
        for name, mask in moved.items():
            assert not bool((mask & ~small[name]).any()), name
        return after

    halfway = check()
    # Some grew past the threshold; these are never touched again.
    grown = {n: (halfway[n].abs() >= TAU) & small[n] for n in start}
    assert sum(int(mask.sum()) for mask in grown.values()) > 10
    before = sum(int(layer.mask("default").free.sum()) for layer in layers(model))
    free = model.base_model.reselect()
    assert free == before - sum(int(mask.sum()) for mask in grown.values())
    train(model, 3, weight_decay=0.5)
    model.base_model.settle()
    end = check()
    for name, mask in grown.items():
        assert torch.equal(end[name][mask], halfway[name][mask]), name
        rest = small[name] & ~mask
        assert not bool(rest.any()) or not torch.equal(end[name][rest], halfway[name][rest])
    # A second re-selection closes more, and opens none.
    masks = [layer.mask("default").free.clone() for layer in layers(model)]
    assert model.base_model.reselect() <= free
    for layer, earlier in zip(layers(model), masks, strict=True):
        assert not bool((layer.mask("default").free & ~earlier).any())


def test_without_the_norm_it_is_masked_adamw_bit_for_bit() -> None:
    """The reference: dense AdamW whose masked-out entries are put back after every step."""
    plain = vit()
    start = {n: p.detach().clone() for n, p in plain.named_parameters()}
    adam = torch.optim.AdamW(plain.parameters(), lr=1e-3, weight_decay=0.1)
    for _ in range(4):
        adam.zero_grad()
        loss(plain).backward()
        adam.step()
        with torch.no_grad():
            for name, parameter in plain.named_parameters():
                parameter.copy_(torch.where(start[name].abs() < TAU, parameter, start[name]))
    model = tuned(lambda_rank=0.0)
    train(model, 4)
    found = merged(model)
    for name, parameter in plain.named_parameters():
        assert torch.equal(found[name], parameter.detach()), name


def test_a_large_norm_shrinks_the_rank() -> None:
    def norm(model: PeftModel) -> float:
        total = 0.0
        for layer in layers(model):
            if layer.has_rank("default"):
                matrix = torch.zeros(layer.weight.numel())
                values = layer.sara_values["default"].detach().reshape(-1)
                matrix[layer.mask("default").index] = values
                total += float(torch.linalg.svdvals(matrix.view(layer.weight.shape)).sum())
        return total

    with_norm, without = tuned(lambda_rank=100.0, rank_sample="all"), tuned(lambda_rank=0.0)
    start = norm(without)
    for model in (with_norm, without):
        train(model, 5, weight_decay=0.0)
    assert norm(with_norm) < 0.6 * start < norm(without)


@pytest.mark.parametrize("shape", [(5, 9), (9, 5), (6, 6)])
def test_the_norm_and_its_slope(shape: tuple[int, int]) -> None:
    draw = torch.Generator().manual_seed(0)
    index = (torch.rand(shape[0] * shape[1], generator=draw) < 0.6).nonzero().squeeze(1)
    values = torch.randn(len(index), generator=draw, dtype=torch.float64, requires_grad=True)
    matrix = torch.zeros(shape[0] * shape[1], dtype=torch.float64)
    matrix[index] = values.detach()
    u, s, vt = torch.linalg.svd(matrix.view(shape), full_matrices=False)
    norm = nuclear_norm(values, index, shape)
    torch.testing.assert_close(norm.detach(), s.sum())
    norm.backward()
    slope = values.grad
    assert slope is not None
    torch.testing.assert_close(slope, (u @ vt).reshape(-1)[index], atol=1e-6, rtol=0)
    for place in range(0, len(index), 3):
        step = torch.zeros_like(values)
        step[place] = 1e-5
        with torch.no_grad():
            rise = nuclear_norm(values + step, index, shape)
            fall = nuclear_norm(values - step, index, shape)
        assert float(slope[place]) == pytest.approx(float(rise - fall) / 2e-5, abs=1e-4)


def test_the_norm_of_a_matrix_without_full_rank_has_a_finite_slope() -> None:
    values = torch.ones(6, requires_grad=True)
    norm = nuclear_norm(values, torch.tensor([0, 1, 4, 5, 8, 9]), (4, 4))
    norm.backward()
    # Rank one, of ones: sqrt(3) * sqrt(2), and 1 / that everywhere.
    assert norm.item() == pytest.approx(6**0.5, rel=1e-5)
    torch.testing.assert_close(values.grad, torch.full((6,), 6**-0.5), atol=1e-5, rtol=0)
    zeros = torch.zeros(3, requires_grad=True)
    nuclear_norm(zeros, torch.tensor([0, 1, 2]), (4, 4)).backward()
    assert torch.equal(zeros.grad, torch.zeros(3))  # type: ignore[arg-type]


def test_a_random_matrix_stands_for_all_in_the_mean() -> None:
    one, every = tuned(lambda_rank=1.0), tuned(lambda_rank=1.0, rank_sample="all")
    torch.manual_seed(0)
    drawn = {round(one.base_model.rank_loss().item(), 4) for _ in range(60)}
    each = [layer.rank_loss("default").item() for layer in layers(one) if layer.has_rank("default")]
    assert drawn <= {round(value, 4) for value in each}
    assert len(drawn) > 3
    assert every.base_model.rank_loss().item() == pytest.approx(sum(each), rel=1e-5)
    change = tuned(lambda_rank=1.0, rank_sample="all", penalise="delta")
    assert change.base_model.rank_loss().item() == 0.0


def test_hooks_reselect_half_way_and_set_the_rate() -> None:
    from galenic.core.inputs import InputSpec
    from galenic.models.backbone import Backbone, Opened

    network = Opened(vit(), InputSpec("pixel_values", "image", 3, (16, 16)), prefix_tokens=1)
    backbone = Backbone(network, "x", "auto")
    config = Config(threshold=TAU, lr_rule="paper", progressive_step=0.5)
    tuners.attach(backbone, config)
    hooks = tuners.hooks(backbone, config)
    assert hooks.stages[0].schedule["lr"] == pytest.approx(1e-3 * 2.718281828 ** (-350 * TAU))
    tuner: Any = backbone.network.base_model
    with torch.no_grad():
        for layer in tuner.layers():
            layer.sara_values["default"] += 1.0
    assert hooks.after_step is not None
    free = []
    for step in range(1, 11):
        hooks.after_step(step, 10)
        free.append(sum(int(layer.mask("default").free.sum()) for layer in tuner.layers()))
    assert free[:4] == [free[0]] * 4
    assert free[0] > 0
    assert free[4:] == [0] * 6
    bare = tuners.hooks(backbone, Config(lambda_rank=0, progressive_step=None))
    assert bare.penalty is None
    assert bare.after_step is None


# Use --------------------------------------------------------------------------------------


def test_saved_and_loaded_and_refused_by_another_base(tmp_path: Path) -> None:
    model = tuned()
    train(model, 3)
    model.base_model.reselect()
    train(model, 2)
    expected = out(model)
    model.save_pretrained(tmp_path)
    assert not list(tmp_path.glob("*.bin"))
    again = PeftModel.from_pretrained(vit(), tmp_path).eval()
    assert torch.equal(out(again), expected)
    other = vit()
    # One weight crosses the threshold: the values would land in other places.
    weight = next(p for p in other.parameters() if p.ndim == 2)
    weight.data.view(-1)[weight.abs().argmin()] = 1.0
    before = {n: p.detach().clone() for n, p in other.named_parameters()}
    with pytest.raises(BackboneError, match="another network"):
        PeftModel.from_pretrained(other, tmp_path)
    assert {n for n, _ in other.named_parameters()} == before.keys()
    assert all(torch.equal(p, before[n]) for n, p in other.named_parameters())


def test_merge_and_unload_is_a_plain_network_with_the_values() -> None:
    base = vit()
    kinds = [type(module) for module in base.modules()]
    model = get_peft_model(base, SaRAConfig(threshold=TAU))
    train(model, 3)
    expected = out(model)
    start = state(model)
    plain = model.merge_and_unload()
    assert [type(module) for module in plain.modules()] == kinds
    assert torch.equal(out(plain), expected)
    assert not any(m._forward_pre_hooks for m in plain.modules())
    model = tuned()
    train(model, 3)
    bare = model.unload()
    assert all(torch.equal(p, start[n]) for n, p in bare.named_parameters())


def test_the_base_can_run_between_forward_and_backward() -> None:
    """As preference training does with its reference model."""
    expected = tuned()
    train(expected, 2)
    loss(expected).backward()
    model = tuned()
    train(model, 2)
    total = loss(model)
    with model.disable_adapter(), torch.no_grad():
        reference = model(pixel_values=PIXELS).last_hidden_state
    assert torch.equal(reference, out(vit()))
    total.backward()
    ours = dict(model.named_parameters())
    for name, parameter in expected.named_parameters():
        if parameter.grad is not None:
            torch.testing.assert_close(ours[name].grad, parameter.grad)


def test_two_adapters_take_turns() -> None:
    model = tuned()
    train(model, 3)
    first = out(model)
    model.add_adapter("second", SaRAConfig(proportion=0.02))
    model.set_adapter("second")
    assert torch.equal(out(model), out(vit()))
    train(model, 3, rank=False)
    second = out(model)
    model.set_adapter("default")
    assert torch.equal(out(model), first)
    model.set_adapter("second")
    assert torch.equal(out(model), second)
    model.delete_adapter("second")
    model.set_adapter("default")
    assert torch.equal(out(model), first)
    assert all(torch.equal(p, dict(vit().named_parameters())[n]) for n, p in state(model).items())


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_a_base_in_half_precision_has_values_in_float32(dtype: torch.dtype) -> None:
    base = vit().to(dtype)
    before = copy.deepcopy(base)
    model = get_peft_model(base, SaRAConfig(threshold=TAU))
    values = [p for n, p in model.named_parameters() if p.requires_grad]
    assert all(p.dtype == torch.float32 for p in values)
    for name, value in merged(model).items():
        assert torch.equal(value, dict(before.named_parameters())[name])
    with torch.no_grad():
        for value in values:
            value += 1e-3
    model.base_model.merge_adapter()
    model.base_model.unmerge_adapter()
    for name, value in state(model).items():
        assert torch.equal(value, dict(before.named_parameters())[name])


def test_what_cannot_be_chosen_is_said() -> None:
    with pytest.raises(ValueError, match="threshold is 0"):
        SaRAConfig(threshold=0)
    with pytest.raises(ValueError, match="not both"):
        SaRAConfig(threshold=1e-3, proportion=0.1)
    with pytest.raises(BackboneError, match="smaller than 1e-12"):
        get_peft_model(nn.Sequential(nn.Linear(4, 4, bias=False)), SaRAConfig(threshold=1e-12))
    with pytest.raises(BackboneError, match="cannot enter"):
        get_peft_model(vit(), SaRAConfig(target="nothing"))
    with torch.device("meta"):
        bare = nn.Sequential(nn.Linear(4, 4))
    with pytest.raises(BackboneError, match="none yet"):
        get_peft_model(bare, SaRAConfig())
    zeros = nn.Sequential(nn.Linear(4, 4))
    zeros[0].weight.data.zero_()
    with pytest.warns(UserWarning, match="exact zeros"):
        get_peft_model(zeros, SaRAConfig())


def test_the_caller_s_config_comes_back_as_it_went_in() -> None:
    config = SaRAConfig(threshold=TAU)
    before = config.to_dict()
    model = get_peft_model(vit(), config)
    assert config.to_dict() == before
    assert isinstance(model.base_model, SaRAModel)
    assert sum(model.peft_config["default"].placed.values()) > 0  # type: ignore[union-attr]


class Objective(nn.Module):
    """What the engine trains; falls over at a step if it is told to."""

    def __init__(self) -> None:
        super().__init__()
        self.model = tuned(lambda_rank=1.0)
        self.cut: int | None = None

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        tokens = self.model(pixel_values=x).last_hidden_state
        target = torch.linspace(-1, 1, 32)
        return {"loss": (tokens - target).square().mean() + self.model.base_model.rank_loss()}

    def after_step(self, done: int, _: int) -> None:
        if done == 3:
            self.model.base_model.reselect()
        if done == self.cut:
            raise KeyboardInterrupt


@pytest.mark.parametrize("cut", [3, 5])
def test_a_training_that_is_cut_off_goes_on_to_the_same_end(cut: int, tmp_path: Path) -> None:
    from galenic.core.schedule import Schedule
    from galenic.core.trainer import fit

    rows = [{"x": value} for value in torch.randn(12, 3, 16, 16)]

    def train(objective: Objective, folder: Path, resume: bool = False) -> None:
        fit(
            objective, rows, schedule=Schedule(epochs=1, batch_size=2, checkpoint_steps=2, lr=1e-3),
            collate=lambda found: {"x": torch.stack([row["x"] for row in found])},
            folder=folder, seed=0, after_step=objective.after_step, resume=resume,
        )  # fmt: skip

    whole, first, again = Objective(), Objective(), Objective()
    train(whole, tmp_path / "whole")
    first.cut = cut
    with pytest.raises(KeyboardInterrupt):
        train(first, tmp_path / "cut")
    train(again, tmp_path / "cut", resume=True)
    closed = sum(int((~layer.mask("default").free).sum()) for layer in layers(whole.model))
    assert closed > 0
    expected, found = whole.state_dict(), again.state_dict()
    assert all(torch.equal(value, found[name]) for name, value in expected.items())
    ours, theirs = merged(again.model), merged(whole.model)
    assert all(torch.equal(value, ours[name]) for name, value in theirs.items())
