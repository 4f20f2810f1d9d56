"""MM-Lego: the maths against slow references, and what the method promises."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file
from torch import nn

from galenic.core.errors import BackboneError, ConfigError, WeightsError
from galenic.models.lego import LegoBlock, LegoFuse, LegoHead, LegoMerge, functional, store
from galenic.models.lego.block import real

SMALL = {"latent": (6, 8), "heads": 2, "head_width": 4}


def block(seed: int, width: int = 5, outputs: int = 3, encoder: nn.Module | None = None, **options):
    torch.manual_seed(seed)
    made = LegoBlock(encoder, width, outputs, **{**SMALL, **options}).eval()
    with torch.no_grad():
        for value in made.head.parameters():
            value.add_(torch.randn_like(value) * 0.3)
    return made


@pytest.fixture
def blocks() -> dict[str, LegoBlock]:
    return {
        "image": block(1, 5),
        "ecg": block(2, 4, encoder=nn.Linear(7, 4)),
        "table": block(3, 2),
    }


@pytest.fixture
def inputs() -> dict[str, torch.Tensor]:
    torch.manual_seed(9)
    return {
        "image": torch.randn(4, 3, 5),
        "ecg": torch.randn(4, 6, 7),
        "table": torch.randn(4, 2),
    }


def complexes(seed: int, count: int) -> list[torch.Tensor]:
    draw = torch.Generator().manual_seed(seed)
    return [torch.randn(2, 3, 4, dtype=torch.complex128, generator=draw) for _ in range(count)]


# Frequencies -------------------------------------------------------------------------------


def test_there_and_back_is_the_same() -> None:
    latent = torch.randn(3, 64, 8)
    back = functional.from_frequency(functional.to_frequency(latent))
    torch.testing.assert_close(back.real, latent, atol=1e-5, rtol=0)
    assert back.imag.abs().max() < 1e-5


def test_frequencies_of_a_padded_sequence_are_its_own() -> None:
    states = torch.randn(3, 7, 2, dtype=torch.float64)
    lengths = [7, 4, 1]
    mask = torch.tensor([[place < n for place in range(7)] for n in lengths])
    found = functional.real_frequency(states, mask)
    for row, length in enumerate(lengths):
        for k in range(7):
            slow = sum(
                states[row, t] * math.cos(2 * math.pi * k * t / length) for t in range(length)
            )
            expected = slow if k < length else torch.zeros(2, dtype=torch.float64)
            torch.testing.assert_close(found[row, k], expected)
    whole = functional.real_frequency(states)
    torch.testing.assert_close(whole[0], found[0])
    torch.testing.assert_close(whole, functional.real_frequency(states, torch.ones(3, 7)))


@pytest.mark.parametrize("depth", [1, 2, 5])
@pytest.mark.parametrize("weight_sharing", [True, False])
def test_silent_layers_give_the_frequencies_of_the_start(depth: int, weight_sharing: bool) -> None:
    made = block(0, depth=depth, normalise=False, weight_sharing=weight_sharing)
    for part in [*made.attention, *made.feed_forward]:
        nn.init.zeros_(part.out.weight)
        nn.init.zeros_(part.out.bias)
    start = torch.randn(2, 6, 8)
    found = made.encode(torch.randn(2, 3, 5), start)
    torch.testing.assert_close(found, torch.fft.fft(start, dim=1))
    torch.testing.assert_close(
        made.encode(torch.randn(2, 3, 5)).real, torch.fft.fft(made.latent.expand(2, -1, -1), dim=1).real
    )  # fmt: skip


def test_one_layer_against_its_equations() -> None:
    made = block(4, depth=1)
    x = torch.randn(2, 3, 5)
    start = made.latent / made.latent.norm(dim=0, keepdim=True)
    z = torch.fft.fft(start.expand(2, -1, -1), dim=1)
    keys = torch.fft.fft(made.encoder(x), dim=1).real
    attention = made.attention[0]
    q = attention.query(attention.norm(z.real))
    k, v = attention.key_value(attention.norm_context(keys)).chunk(2, dim=-1)
    heads = []
    for head in range(2):
        part = slice(4 * head, 4 * head + 4)
        scores = (q[..., part] @ k[..., part].transpose(1, 2)) / 2.0
        heads.append(scores.softmax(-1) @ v[..., part])
    latent = z.real + attention.out(torch.cat(heads, dim=-1))
    forward = made.feed_forward[0]
    a, gate = forward.inner(forward.norm(latent)).chunk(2, dim=-1)
    latent = latent + forward.out(a * torch.selu(gate))
    found = made.encode(x)
    torch.testing.assert_close(found.real, latent)
    torch.testing.assert_close(found.imag, z.imag)
    normed = made.head.norm(latent.mean(dim=1))
    torch.testing.assert_close(made(x), made.head.linear(normed))


def test_padding_changes_no_logit() -> None:
    class Padded(nn.Module):
        def forward(self, states, mask):
            return states, mask

    made = block(5, encoder=Padded())
    x = torch.randn(1, 3, 5)
    alone = made({"states": x, "mask": torch.ones(1, 3, dtype=torch.bool)})
    wide = torch.cat([x, torch.full((1, 4, 5), 7.0)], dim=1)
    mask = torch.tensor([[True] * 3 + [False] * 4])
    torch.testing.assert_close(made({"states": wide, "mask": mask}), alone)


# Merging latents ---------------------------------------------------------------------------


@settings(max_examples=25, deadline=None)
@given(st.integers(1, 5), st.integers(0, 10_000), st.sampled_from(["harmonic", "mean"]))
def test_merged_latents_against_a_loop(count: int, seed: int, method) -> None:
    latents = complexes(seed, count)
    weights = np.random.default_rng(seed).dirichlet(np.ones(count)).tolist()
    found = functional.merge_latents(latents, weights, method).numpy()
    for index in np.ndindex(found.shape):
        values = [complex(x[index]) for x in latents]
        if method == "mean":
            expected = sum(w * v for w, v in zip(weights, values, strict=True))
        else:
            size = 1 / sum(w / abs(v) for w, v in zip(weights, values, strict=True))
            turn = sum(w * v / abs(v) for w, v in zip(weights, values, strict=True))
            expected = size * turn / abs(turn)
        assert abs(found[index] - expected) < 1e-10


def test_sum_and_product_take_every_latent() -> None:
    a, b, c = complexes(0, 3)
    third = [1 / 3] * 3
    torch.testing.assert_close(functional.merge_latents([a, b, c], third, "sum"), a + b + c)
    torch.testing.assert_close(functional.merge_latents([a, b, c], third, "product"), a * b * c)


@pytest.mark.parametrize("count", [2, 3, 4])
def test_the_harmonic_mean_of_a_latent_with_itself_is_that_latent(count: int) -> None:
    latent = complexes(3, 1)[0]
    found = functional.merge_latents([latent] * count, [1 / count] * count)
    torch.testing.assert_close(found, latent)


def test_all_weight_on_one_gives_that_one_bit_for_bit() -> None:
    a, b = complexes(1, 2)
    for method in ("harmonic", "mean", "sum", "product"):
        assert functional.merge_latents([a, b], [1.0, 0.0], method) is a
        assert functional.merge_latents([a, b], [0.0, 1.0], method) is b


def test_phases_are_averaged_on_the_circle() -> None:
    close = [math.pi - 0.1, -math.pi + 0.1]
    values = [torch.polar(torch.tensor([[[2.0]]]), torch.tensor([[[phase]]])) for phase in close]
    found = functional.merge_latents(values, [0.5, 0.5])
    assert abs(abs(float(found.angle())) - math.pi) < 1e-6
    assert abs(float(found.abs()) - 2.0) < 1e-6
    opposite = functional.merge_latents([values[0], -values[0]], [0.5, 0.5])
    torch.testing.assert_close(opposite, torch.tensor([[[2.0 + 0.0j]]]))


def test_a_latent_of_zeros_makes_no_nan() -> None:
    a = complexes(2, 1)[0].requires_grad_()
    found = functional.merge_latents([a, torch.zeros_like(a)], [0.5, 0.5])
    assert torch.equal(found, torch.zeros_like(a))
    found.abs().sum().backward()
    assert torch.isfinite(torch.view_as_real(a.grad)).all()
    assert torch.equal(functional.normalise(torch.zeros(1, 3, 2)), torch.zeros(1, 3, 2))


# Merging heads -----------------------------------------------------------------------------


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 6), st.integers(0, 10_000), st.floats(0, 1))
def test_slerp_against_its_closed_form(size: int, seed: int, t: float) -> None:
    draw = np.random.default_rng(seed)
    a, b = draw.normal(size=size), draw.normal(size=size)
    u, v = a / np.linalg.norm(a), b / np.linalg.norm(b)
    angle = math.acos(np.clip(u @ v, -1, 1))
    if math.sin(angle) < 1e-3:
        expected = (1 - t) * a + t * b
    else:
        turn = (math.sin((1 - t) * angle) * u + math.sin(t * angle) * v) / math.sin(angle)
        expected = ((1 - t) * np.linalg.norm(a) + t * np.linalg.norm(b)) * turn
    found = functional.slerp(torch.from_numpy(a), torch.from_numpy(b), t).numpy()
    np.testing.assert_allclose(found, expected, atol=2e-6)


def test_slerp_ends_are_the_parents_bit_for_bit() -> None:
    same, zero = torch.ones(8), torch.zeros(8)
    pairs = [
        (torch.randn(3, 4), torch.randn(3, 4)),
        (same, same.clone()),
        (zero, zero.clone()),
        (zero, torch.randn(8)),
        (same, -same),
    ]
    for a, b in pairs:
        assert torch.equal(functional.slerp(a, b, 0.0), a)
        assert torch.equal(functional.slerp(a, b, 1.0), b)
        assert torch.isfinite(functional.slerp(a, b, 0.4)).all()
    assert torch.equal(functional.slerp(same, same.clone(), 0.3), same)
    assert torch.equal(functional.slerp(zero, zero.clone(), 0.3), zero)
    torch.testing.assert_close(functional.slerp(same, -same, 0.25), 0.5 * same)


def test_a_spherical_mean_knows_no_order_and_balances_its_tangents() -> None:
    draw = torch.Generator().manual_seed(0)
    tensors = [torch.rand(6, dtype=torch.float64, generator=draw) + 0.1 for _ in range(4)]
    weights = [0.1, 0.2, 0.3, 0.4]
    found = functional.spherical_mean(tensors, weights)
    turned = functional.spherical_mean(tensors[::-1], weights[::-1])
    torch.testing.assert_close(found, turned)
    unit = found / found.norm()
    pull = torch.zeros(6, dtype=torch.float64)
    for x, w in zip(tensors, weights, strict=True):
        u = x / x.norm()
        angle = torch.acos(u @ unit)
        pull += w * angle * (u - (u @ unit) * unit) / torch.sin(angle)
    assert pull.norm() < 1e-9
    mean = sum(w * x.norm() for x, w in zip(tensors, weights, strict=True))
    torch.testing.assert_close(found.norm(), mean)


# LegoMerge ---------------------------------------------------------------------------------


@pytest.mark.parametrize("merge", ["harmonic", "mean", "sum", "product"])
@pytest.mark.parametrize("head", ["slerp", "linear"])
def test_the_order_of_modalities_changes_nothing(blocks, inputs, merge, head) -> None:
    first = LegoMerge(blocks, merge, head=head)
    other = LegoMerge(dict(reversed(blocks.items())), merge, head=head)
    torch.testing.assert_close(first.encode(inputs), other.encode(inputs), atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(first(inputs), other(inputs), atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("head", ["slerp", "linear", "ot"])
@pytest.mark.parametrize("merge", ["harmonic", "mean", "sum", "product"])
def test_one_modality_alone_is_its_block(blocks, inputs, merge, head) -> None:
    whole = LegoMerge(blocks, merge, head=head)
    for name, made in blocks.items():
        alone = made(inputs[name])
        assert torch.equal(LegoMerge({name: made}, merge, head=head)({name: inputs[name]}), alone)
        torch.testing.assert_close(whole({name: inputs[name]}), alone)
        sure = LegoMerge(blocks, merge, {n: float(n == name) for n in blocks}, head)
        torch.testing.assert_close(sure(inputs), alone)


def test_reordered_channels_are_undone_by_transport(inputs) -> None:
    first = block(1)
    order = torch.randperm(8, generator=torch.Generator().manual_seed(3))
    other = block(1)
    with torch.no_grad():
        for name in ("norm.weight", "norm.bias"):
            other.head.get_parameter(name).copy_(first.head.get_parameter(name)[order])
        other.head.linear.weight.copy_(first.head.linear.weight[:, order])
    found = LegoMerge({"a": first, "b": other}, head="ot").head_state()
    for name, value in first.head.state_dict().items():
        torch.testing.assert_close(found[name], value)
    plain = LegoMerge({"a": first, "b": other}, head="linear").head_state()
    assert not torch.allclose(plain["linear.weight"], first.head.linear.weight)


def test_channels_in_another_order_are_the_same_block_after_transport(inputs) -> None:
    first, other = block(1), block(1)
    order = torch.randperm(8, generator=torch.Generator().manual_seed(4))
    with torch.no_grad():
        other.latent.copy_(first.latent[:, order])
        for (name, mine), theirs in zip(other.named_modules(), first.modules(), strict=True):
            if name.startswith("encoder"):
                continue
            if isinstance(mine, nn.LayerNorm) and mine.normalized_shape == (8,):
                mine.weight.copy_(theirs.weight[order])
                mine.bias.copy_(theirs.bias[order])
            elif isinstance(mine, nn.Linear) and mine.in_features == 8:
                mine.weight.copy_(theirs.weight[:, order])
        for part, model in zip(
            [*other.attention, *other.feed_forward],
            [*first.attention, *first.feed_forward],
            strict=True,
        ):
            part.out.weight.copy_(model.out.weight[order])
            part.out.bias.copy_(model.out.bias[order])
    x = inputs["image"]
    torch.testing.assert_close(other.encode(x), first.encode(x)[..., order])
    given = {"a": x, "b": x}
    for merge in ("harmonic", "mean"):
        found = LegoMerge({"a": first, "b": other}, merge, head="ot")(given)
        torch.testing.assert_close(found, first(x), atol=1e-5, rtol=1e-5)
        plain = LegoMerge({"a": first, "b": other}, merge, head="linear")(given)
        assert not torch.allclose(plain, first(x), atol=1e-2)


def test_samples_that_lack_a_modality_are_as_if_alone(blocks) -> None:
    torch.manual_seed(5)
    shapes = {"image": (3, 5), "ecg": (6, 7), "table": (2,)}
    inputs = {name: torch.randn(7, *shape) for name, shape in shapes.items()}
    present = {
        "image": torch.tensor([1, 0, 1, 0, 0, 1, 1]).bool(),
        "table": torch.tensor([0, 1, 1, 0, 1, 0, 1]).bool(),
    }
    spoilt = {name: value.clone() for name, value in inputs.items()}
    for name, there in present.items():
        spoilt[name][~there] = torch.nan
    for model in (LegoMerge(blocks), LegoFuse(blocks).eval(), LegoFuse(blocks, "weave").eval()):
        found = model(spoilt, present)
        for row in range(7):
            names = [n for n in blocks if n not in present or present[n][row]]
            alone = model({name: inputs[name][row : row + 1] for name in names})
            torch.testing.assert_close(found[row : row + 1], alone)


def test_a_forward_pass_changes_nothing(blocks, inputs) -> None:
    for model in (LegoMerge(blocks), LegoFuse(blocks), LegoFuse(blocks, "weave")):
        state = {name: value.clone() for name, value in model.state_dict().items()}
        given = {name: value.clone() for name, value in inputs.items()}
        handed = dict(given)
        first = model(handed)
        assert list(handed) == list(inputs)
        assert all(handed[name] is given[name] for name in inputs)
        assert all(torch.equal(given[name], inputs[name]) for name in inputs)
        assert all(torch.equal(state[n], v) for n, v in model.state_dict().items())
        half = model({name: value[:2] for name, value in inputs.items()})
        torch.testing.assert_close(half, first[:2])


def test_without_frequencies_everything_is_real(inputs) -> None:
    plain = {
        "image": block(1, frequency_domain=False),
        "table": block(2, 2, frequency_domain=False),
    }
    for merge in ("harmonic", "mean", "sum", "product"):
        model = LegoMerge(plain, merge)
        assert not model.encode({n: inputs[n] for n in plain}).is_complex()
    latent = torch.full((1, 6, 8), 2.0)
    merged = functional.merge_latents([latent, -3 * latent], [0.25, 0.75])
    torch.testing.assert_close(merged, torch.full_like(latent, -1 / (0.25 / 2 + 0.75 / 6)))


# LegoFuse ----------------------------------------------------------------------------------


def test_gradients_reach_the_first_latent_of_a_stack(blocks, inputs) -> None:
    fused = LegoFuse(blocks, order=["table", "image", "ecg"])
    fused(inputs).square().sum().backward()
    assert fused.names == ("table", "image", "ecg")
    assert fused.block("table").latent.grad.abs().sum() > 0
    for name, value in fused.named_parameters():
        assert value.requires_grad == (value.grad is not None), name
    assert blocks["table"].latent.grad is None


def test_a_stack_hands_its_latent_on(blocks, inputs) -> None:
    fused = LegoFuse(blocks).eval()
    latent = None
    for name in blocks:
        start = None if latent is None else torch.fft.ifft(latent, dim=1)
        latent = blocks[name].encode(inputs[name], start)
    torch.testing.assert_close(fused.encode(inputs), latent)
    expected = LegoMerge(blocks).head_state()
    for name, value in fused.head.state_dict().items():
        torch.testing.assert_close(value, expected[name])


def test_a_weave_takes_one_layer_of_each_in_turn(inputs) -> None:
    blocks = {"image": block(1, depth=3), "table": block(3, 2, depth=1)}
    fused = LegoFuse(blocks, "weave").eval()
    latent = fused.latent.expand(4, -1, -1)
    states = {name: made.states(inputs[name]) for name, made in blocks.items()}
    for name, place in [("image", 0), ("table", 0), ("image", 1), ("image", 2)]:
        latent = blocks[name].layer(place, latent, *states[name])
        last = latent
        latent = torch.fft.ifft(latent, dim=1)
    torch.testing.assert_close(fused.encode({n: inputs[n] for n in blocks}), last)
    fused({n: inputs[n] for n in blocks}).sum().backward()
    assert fused.latent.grad.abs().sum() > 0


@pytest.mark.parametrize("mode", ["stack", "weave"])
def test_what_is_frozen_stays_bit_for_bit(blocks, inputs, mode) -> None:
    before = {
        name: {n: v.clone() for n, v in made.state_dict().items()} for name, made in blocks.items()
    }
    for freeze, trained in (
        ("none", {"encoder", "attention"}),
        ("encoder", {"attention"}),
        ("all", set()),
    ):
        fused = LegoFuse(blocks, mode, freeze=freeze)
        trains = [p for p in fused.parameters() if p.requires_grad]
        start = {n: v.clone() for n, v in fused.state_dict().items()}
        optimiser = torch.optim.SGD(trains, lr=1.0)
        fused(inputs).square().sum().backward()
        optimiser.step()
        moved = {n for n, v in fused.state_dict().items() if not torch.equal(v, start[n])}
        kinds = {n.split(".")[2] for n in moved if n.startswith("blocks.")}
        assert kinds & {"encoder", "attention"} == trained
        assert {"head.linear.weight"} <= moved
        for name, made in blocks.items():
            assert all(torch.equal(before[name][n], v) for n, v in made.state_dict().items())


def test_frozen_encoders_are_shared_and_not_copied(blocks) -> None:
    blocks["ecg"].encoder.requires_grad_(False)
    fused = LegoFuse(blocks)
    assert fused.block("ecg").encoder.weight is blocks["ecg"].encoder.weight
    assert fused.block("ecg").latent is not blocks["ecg"].latent


def test_training_under_bfloat16_autocast(blocks, inputs) -> None:
    fused = LegoFuse(blocks, "weave")
    with torch.autocast("cpu", dtype=torch.bfloat16):
        logits = fused(inputs)
        merged = LegoMerge(blocks)(inputs)
    logits.float().sum().backward()
    assert torch.isfinite(merged).all()
    assert all(torch.isfinite(p.grad).all() for p in fused.parameters() if p.grad is not None)


# On disk -----------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["merge", "stack", "weave"])
def test_what_was_saved_predicts_the_same(blocks, inputs, kind, tmp_path: Path) -> None:
    model = LegoMerge(blocks, "mean", {"image": 1, "ecg": 2, "table": 3}, "linear")
    if kind != "merge":
        model = LegoFuse(blocks, kind, order=["ecg", "table", "image"], freeze="encoder")
    store.save(model, tmp_path / "model")
    again = store.load(tmp_path / "model", {"ecg": nn.Linear(7, 4)}).eval()
    assert torch.equal(again(inputs), model.eval()(inputs))
    assert again.names == model.names
    config = json.loads((tmp_path / "model" / "lego_config.json").read_text())
    assert config["blocks"]["image"]["latent"] == [6, 8]


def test_a_block_is_read_alone(blocks, inputs, tmp_path: Path) -> None:
    frozen = nn.Linear(7, 4).requires_grad_(False)
    blocks["ecg"] = block(2, 4, encoder=frozen)
    store.save(LegoMerge(blocks), tmp_path / "model", encoders="trained")
    found = store.load_block(tmp_path / "model", "image").eval()
    assert torch.equal(found(inputs["image"]), blocks["image"](inputs["image"]))
    same = nn.Linear(7, 4)
    same.load_state_dict(blocks["ecg"].encoder.state_dict())
    found = store.load_block(tmp_path / "model", "ecg", same).eval()
    assert torch.equal(found(inputs["ecg"]), blocks["ecg"](inputs["ecg"]))
    with pytest.raises(WeightsError, match="other weights"):
        store.load_block(tmp_path / "model", "ecg", nn.Linear(7, 4))


def test_of_an_encoder_only_what_trained_is_written(blocks, inputs, tmp_path: Path) -> None:
    def encoder() -> nn.Module:
        torch.manual_seed(0)
        made = nn.Sequential(nn.Linear(7, 6), nn.Linear(6, 4))
        made[0].requires_grad_(False)
        return made

    blocks["ecg"] = block(2, 4, encoder=encoder())
    fused = LegoFuse(blocks, freeze="encoder").eval()
    with torch.no_grad():
        fused.block("ecg").encoder[1].weight.add_(1.0)
    store.save(fused, tmp_path / "model", encoders="trained")
    held = load_file(tmp_path / "model" / "model.safetensors")
    place = list(blocks).index("ecg")
    assert {n for n in held if n.startswith(f"blocks.{place}.encoder")} == {
        f"blocks.{place}.encoder.1.weight",
        f"blocks.{place}.encoder.1.bias",
    }
    again = store.load(tmp_path / "model", {"ecg": encoder()}).eval()
    assert torch.equal(again(inputs), fused(inputs))


def test_a_folder_that_does_not_fit_says_why(blocks, tmp_path: Path) -> None:
    folder = tmp_path / "model"
    store.save(LegoMerge(blocks), folder)
    with pytest.raises(WeightsError, match="Did you mean 'image'"):
        store.load_block(folder, "imag")
    with pytest.raises(WeightsError, match="encoder of 'ecg'"):
        store.load(folder)
    with pytest.raises(WeightsError, match="its own encoder"):
        store.load_block(folder, "image", nn.Linear(5, 5))
    with pytest.raises(WeightsError, match="does not fit"):
        store.load_block(folder, "ecg", nn.Linear(8, 4))
    whole = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    with pytest.raises(WeightsError, match="damaged"):
        store.load_block(folder, "image")


# Bad input ---------------------------------------------------------------------------------


def test_blocks_that_do_not_fit_are_refused(blocks) -> None:
    with pytest.raises(ConfigError, match="no block to assemble"):
        LegoMerge({})
    odd = [
        (block(4, latent=(6, 4)), "latent"),
        (block(4, latent=(3, 8)), "latent"),
        (block(4, outputs=2), "outputs"),
        (block(4, frequency_domain=False), "frequency_domain"),
        (block(4, head=nn.Sequential(nn.Flatten(), nn.Linear(48, 3))), "heads"),
    ]
    for other, words in odd:
        for kind in (LegoMerge, LegoFuse):
            with pytest.raises(ConfigError, match=words):
                kind({**blocks, "other": other})


def test_wrong_words_are_refused(blocks, inputs) -> None:
    merged = LegoMerge(blocks)
    with pytest.raises(ConfigError, match="Did you mean 'image'"):
        merged({"imge": inputs["image"]})
    with pytest.raises(ConfigError, match="No modality"):
        merged({})
    with pytest.raises(ConfigError, match="1 of 4 samples"):
        merged({"image": inputs["image"]}, {"image": torch.tensor([True, True, True, False])})
    with pytest.raises(ConfigError, match="weights"):
        LegoMerge(blocks, weights={"image": 1.0})
    with pytest.raises(ConfigError, match="weights"):
        LegoMerge(blocks, weights={"image": 1.0, "ecg": -0.5, "table": 1.0})
    with pytest.raises(ConfigError, match="harmonics"):
        LegoMerge(blocks, "harmonics")
    with pytest.raises(ConfigError, match="order"):
        LegoFuse(blocks, order=["image", "image", "ecg"])
    with pytest.raises(ConfigError, match="pile"):
        LegoFuse(blocks, "pile")
    with pytest.raises(ConfigError, match="reorder"):
        LegoFuse(blocks, head="ot")
    with pytest.raises(ConfigError, match="sizes"):
        LegoBlock(None, 5, 3, depth=0)
    with pytest.raises(BackboneError, match="encoder_dim"):
        block(1, width=9, encoder=nn.Linear(7, 4))(inputs["ecg"])


def test_a_head_of_another_kind_is_merged_too(inputs) -> None:
    def head() -> nn.Module:
        return nn.Sequential(nn.Flatten(), nn.Linear(48, 4), nn.ReLU(), nn.Linear(4, 3))

    made = {"image": block(1, head=head()), "table": block(2, 2, head=head())}
    merged = LegoMerge(made)
    given = {name: inputs[name] for name in made}
    state = merged.head_state()
    for name, value in made["image"].head.state_dict().items():
        expected = functional.slerp(value, made["table"].head.state_dict()[name], 0.5)
        torch.testing.assert_close(state[name], expected)
    assert merged(given).shape == (4, 3)
    torch.testing.assert_close(merged({"image": inputs["image"]}), made["image"](inputs["image"]))
    with pytest.raises(ConfigError, match="LegoHead"):
        LegoMerge(made, head="ot")


def test_the_head_is_a_mean_a_norm_and_a_line() -> None:
    head = LegoHead(4, 2)
    latent = torch.randn(3, 5, 4)
    mean = latent.numpy().mean(axis=1)
    spread = np.sqrt(mean.var(axis=1, keepdims=True) + 1e-5)
    normed = (mean - mean.mean(axis=1, keepdims=True)) / spread
    weight, bias = (p.detach().numpy() for p in head.linear.parameters())
    np.testing.assert_allclose(head(latent).detach().numpy(), normed @ weight.T + bias, atol=1e-5)
    assert torch.equal(real(torch.complex(latent, latent)), latent)
