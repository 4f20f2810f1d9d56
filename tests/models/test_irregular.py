"""Time attention, gates and fusion against loops and closed forms."""

from __future__ import annotations

import copy
import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from galenic.models.irregular import (
    Fusion,
    Gate,
    ResidualHead,
    SeriesEmbedding,
    Sizes,
    StayNetwork,
    TimeAttention,
    TimeEmbedding,
    time_attention,
)
from galenic.models.irregular.fusion import Layer

B, L, D, T, W, H = 3, 7, 5, 6, 16, 4


def observations(seed: int = 0, dtype: torch.dtype = torch.float32) -> dict[str, Tensor]:
    draw = torch.Generator().manual_seed(seed)
    mask = torch.rand(B, L, D, generator=draw) < 0.6
    mask[0, :, 1] = False
    return {
        "values": torch.randn(B, L, D, generator=draw, dtype=dtype),
        "mask": mask,
        "times": torch.rand(B, L, generator=draw, dtype=dtype).sort(dim=1).values,
    }


def reference(scores: Tensor, values: Tensor, mask: Tensor) -> np.ndarray:
    """A softmax over the observed times, one feature and query at a time."""
    s, x, m = scores.numpy(), values.numpy(), mask.numpy()
    found = np.zeros((*s.shape[:3], x.shape[2]))
    for b, h, q, c in np.ndindex(found.shape):
        known = [i for i in range(x.shape[1]) if m[b, i, c]]
        if known:
            weight = np.exp([s[b, h, q, i] - max(s[b, h, q, k] for k in known) for i in known])
            found[b, h, q, c] = (weight / weight.sum()) @ x[b, known, c]
    return found


@pytest.fixture
def attention() -> TimeAttention:
    torch.manual_seed(0)
    return TimeAttention(D, W, time_width=8, heads=H).eval()


@pytest.fixture
def phi() -> TimeEmbedding:
    torch.manual_seed(1)
    return TimeEmbedding(8)


def attended(attention: TimeAttention, phi: TimeEmbedding, one: dict[str, Tensor]) -> Tensor:
    queries = phi(torch.linspace(0, 1, T))
    return attention(one["values"], one["mask"], phi(one["times"]), queries)


@given(st.integers(0, 10_000), st.floats(0.1, 8))
def test_time_attention_is_a_softmax_a_feature(seed: int, sharpness: float) -> None:
    one = observations(seed, torch.float64)
    draw = torch.Generator().manual_seed(seed)
    scores = torch.randn(B, H, T, L, generator=draw, dtype=torch.float64) * sharpness
    found = time_attention(scores, one["values"], one["mask"])
    np.testing.assert_allclose(
        found, reference(scores, one["values"], one["mask"]), rtol=1e-9, atol=1e-12
    )


def test_time_embedding_and_scores_are_the_equations(
    attention: TimeAttention, phi: TimeEmbedding
) -> None:
    times = torch.rand(B, L)
    found = phi(times)
    w, b = phi.periodic.weight[:, 0], phi.periodic.bias
    assert torch.allclose(found[..., 0], phi.linear.weight[0, 0] * times + phi.linear.bias)
    assert torch.allclose(found[..., 3], torch.sin(w[2] * times + b[2]))
    queries = phi(torch.linspace(0, 1, T))
    scores = attention.scores(queries, found)
    q, k = attention.query(queries), attention.key(found)
    for h in range(H):
        part = slice(2 * h, 2 * h + 2)
        wanted = torch.stack([q[:, part] @ k[i, :, part].T for i in range(B)]) / math.sqrt(2)
        assert torch.allclose(scores[:, h], wanted, atol=1e-6)


def test_order_of_observations_and_empty_rows_change_nothing(
    attention: TimeAttention, phi: TimeEmbedding
) -> None:
    one = observations()
    order = torch.randperm(L)
    shuffled = {name: value[:, order] for name, value in one.items()}
    longer = {
        "values": torch.cat([one["values"], torch.full((B, 2, D), 1e6)], dim=1),
        "mask": torch.cat([one["mask"], torch.zeros(B, 2, D, dtype=torch.bool)], dim=1),
        "times": torch.cat([one["times"], torch.tensor([[-3.0, 9.0]] * B)], dim=1),
    }
    wanted = attended(attention, phi, one)
    for other in (shuffled, longer):
        assert torch.allclose(attended(attention, phi, other), wanted, atol=1e-6)


def test_one_observation_is_given_back_and_many_are_mixed_within_their_range(
    attention: TimeAttention, phi: TimeEmbedding
) -> None:
    one = observations()
    one["mask"][1, :, 2] = False
    one["mask"][1, 4, 2] = True
    queries = phi(torch.linspace(0, 1, T))
    found = attention.averages(one["values"], one["mask"], phi(one["times"]), queries)
    assert torch.allclose(found[1, :, :, 2], one["values"][1, 4, 2].expand(H, T))
    low = one["values"].masked_fill(~one["mask"], torch.inf).amin(dim=1)[:, None, None]
    high = one["values"].masked_fill(~one["mask"], -torch.inf).amax(dim=1)[:, None, None]
    seen = one["mask"].any(dim=1)[:, None, None].expand_as(found)
    inside = (found >= low - 1e-6) & (found <= high + 1e-6)
    assert inside[seen].all() and seen.sum() < seen.numel()


@pytest.mark.parametrize("garbage", [1e30, math.inf, math.nan])
def test_a_channel_that_was_never_observed_is_zero_whatever_stands_there(
    garbage: float, attention: TimeAttention, phi: TimeEmbedding
) -> None:
    one = observations()
    dirty = {**one, "values": one["values"].masked_fill(~one["mask"], garbage)}
    queries = phi(torch.linspace(0, 1, T))
    found = attention.averages(dirty["values"], dirty["mask"], phi(dirty["times"]), queries)
    assert (found[0, :, :, 1] == 0).all()
    assert torch.equal(attended(attention, phi, dirty), attended(attention, phi, one))


def test_a_masked_value_has_no_gradient(attention: TimeAttention, phi: TimeEmbedding) -> None:
    one = observations()
    values = one["values"].requires_grad_()
    attended(attention, phi, {**one, "values": values}).square().sum().backward()
    assert values.grad is not None
    assert (values.grad[~one["mask"]] == 0).all()
    assert (values.grad[one["mask"]] != 0).any()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in attention.parameters())


def test_scores_far_apart_stay_finite() -> None:
    """A channel seen only where others get all the weight still gives its own value."""
    scores = torch.tensor([0.0, -500.0]).expand(1, 1, 1, 2).clone().requires_grad_()
    mask = torch.tensor([[[True, False], [True, True]]])
    found = time_attention(scores, torch.tensor([[[1.0, 9.0], [2.0, 5.0]]]), mask)
    assert found.flatten().tolist() == [1.0, 5.0]
    found.sum().backward()
    assert scores.grad is not None and scores.grad.isfinite().all()


def test_the_score_of_a_time_without_a_measurement_takes_no_weight_away() -> None:
    scores = torch.tensor([0.0, 2.0, 1e4]).expand(1, 1, 1, 3)
    mask = torch.tensor([[[True], [True], [False]]])
    found = time_attention(scores, torch.tensor([[[1.0], [0.0], [7.0]]]), mask)
    assert found.item() == pytest.approx(1 / (1 + math.exp(2)))


def test_one_observation_comes_back_in_half_precision(
    attention: TimeAttention, phi: TimeEmbedding
) -> None:
    one = observations()
    one["mask"][:] = False
    one["mask"][:, 3] = True
    with torch.autocast("cpu", torch.bfloat16):
        queries = phi(torch.linspace(0, 1, T))
        found = attention.averages(one["values"], one["mask"], phi(one["times"]), queries)
    assert torch.allclose(found, one["values"][:, None, None, 3].expand_as(found), atol=1e-6)


def test_the_mask_beside_the_values_says_what_was_ever_observed(
    attention: TimeAttention, phi: TimeEmbedding
) -> None:
    """The published form attends to [X ; mask] with the mask doubled; here it is written down."""
    one = observations()
    queries = phi(torch.linspace(0, 1, T))
    doubled = torch.cat([one["values"], one["mask"].float()], dim=-1)
    scores = attention.scores(queries, phi(one["times"]))
    heads = reference(scores.detach(), doubled, one["mask"].repeat(1, 1, 2))
    flat = torch.from_numpy(heads).float().transpose(1, 2).flatten(2)
    assert torch.allclose(attention.out(flat), attended(attention, phi, one), atol=1e-5)


# Gates --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("level", "shape"),
    [("batch", (B, 1, 1)), ("batch_seq", (B, T, 1)), ("batch_seq_feature", (B, T, W))],
)
def test_gates_have_the_shape_of_their_level(level, shape) -> None:
    gate = Gate(level, W).eval()
    both = torch.randn(2, B, T, W)
    found = gate(both[0], both[1])
    assert found.shape == shape and (found > 0).all() and (found < 1).all()
    if level == "batch":
        turned = both[:, :, torch.randperm(T)]
        assert torch.allclose(gate(turned[0], turned[1]), found)


@pytest.mark.parametrize(("bias", "branch"), [(40.0, "attended"), (-40.0, "imputed")])
@pytest.mark.parametrize("level", ["batch", "batch_seq", "batch_seq_feature"])
def test_an_open_gate_is_one_branch_and_a_closed_one_the_other(level, bias, branch) -> None:
    embed, phi = SeriesEmbedding(D, W, level=level, time_width=8, heads=H).eval(), TimeEmbedding(8)
    one = observations()
    grid, observed = torch.randn(B, T, D), torch.rand(B, T, D) < 0.5
    queries = phi(torch.linspace(0, 1, T))
    assert embed.gate is not None and embed.attention is not None
    nn.init.zeros_(embed.gate.mlp[3].weight)
    nn.init.constant_(embed.gate.mlp[3].bias, bias)
    found, gate = embed(one["values"], one["mask"], phi(one["times"]), queries, grid, observed)
    wanted = {
        "attended": embed.attention(one["values"], one["mask"], phi(one["times"]), queries),
        "imputed": embed.imputation(torch.cat([grid, observed.float()], dim=-1)),
    }[branch]
    assert gate is not None
    assert torch.allclose(found, wanted, atol=1e-6)


# Fusion -------------------------------------------------------------------------------------


def fusion(count: int = 2, method="interleaved") -> Fusion:
    torch.manual_seed(0)
    return Fusion(count, T, W, method=method, layers=2, heads=H).eval()


def everyone(count: int) -> Tensor:
    return torch.ones(B, count, dtype=torch.bool)


def test_a_silent_cross_attention_leaves_two_independent_encoders() -> None:
    both, states = fusion(), torch.randn(2, B, T, W)
    for layer in both.stacks[0].layers:
        for cross in layer.cross:
            nn.init.zeros_(cross.attention.out_proj.weight)
            nn.init.zeros_(cross.attention.out_proj.bias)
    found = both(list(states), everyone(2)).chunk(2, dim=-1)
    for at in range(2):
        alone = fusion(1)
        alone.positions.data = both.positions.data
        alone.norms[0].load_state_dict(both.norms[at].state_dict())
        for own, layer in zip(alone.stacks[0].layers, both.stacks[0].layers, strict=True):
            own.own[0].load_state_dict(layer.own[at].state_dict())
            own.forth[0].load_state_dict(layer.forth[at].state_dict())
        assert torch.allclose(alone([states[at]], everyone(1)), found[at], atol=1e-6)


@pytest.mark.parametrize("method", ["interleaved", "concat", "mult"])
def test_swapped_modalities_with_swapped_weights_swap_the_outputs(method) -> None:
    both, states = fusion(method=method), torch.randn(2, B, T, W)
    turned = copy.deepcopy(both)

    def swap(modules: nn.ModuleList) -> None:
        first, second = modules[0], modules[1]
        modules[0], modules[1] = second, first

    swap(turned.norms)
    if method == "interleaved":
        for layer in turned.stacks[0].layers:
            for part in (layer.own, layer.cross, layer.forth):
                swap(part)
    else:
        swap(turned.stacks)
        if method == "mult":
            swap(turned.crossings)
    first, second = both(list(states), everyone(2)).chunk(2, dim=-1)
    found = turned([states[1], states[0]], everyone(2))
    assert torch.allclose(found, torch.cat([second, first], dim=-1), atol=1e-6)


def test_both_cross_attentions_read_the_states_before_either() -> None:
    torch.manual_seed(0)
    layer, ones = Layer(2, W, H, 0.0).eval(), [torch.ones(B, 1, 1)] * 2
    series, text = torch.randn(2, B, T, W)
    a, b = (x + attend(x) for x, attend in zip((series, text), layer.own, strict=True))
    wanted = a + layer.cross[0](a, b), b + layer.cross[1](b, a)
    wanted = [x + forth(x) for x, forth in zip(wanted, layer.forth, strict=True)]
    for x, y in zip(layer([series, text], ones), wanted, strict=True):
        assert torch.allclose(x, y, atol=1e-6)


@pytest.mark.parametrize("method", ["interleaved", "concat", "mult"])
def test_a_missing_modality_is_looked_at_by_nobody(method) -> None:
    both, states = fusion(method=method), torch.randn(2, B, T, W)
    present = everyone(2)
    present[1, 1] = False
    found = both(list(states), present)
    other = states.clone()
    other[1, 1] = 1e3
    assert torch.equal(both(list(other), present), found)
    assert (found[1, W:] == 0).all() and (found[1, :W] != 0).any()
    full = both(list(states), everyone(2))
    assert torch.allclose(found[[0, 2]], full[[0, 2]], atol=1e-6)


def test_every_position_learns() -> None:
    both = fusion()
    both(list(torch.randn(2, B, T, W)), everyone(2)).square().sum().backward()
    assert both.positions.grad is not None
    assert (both.positions.grad.abs().sum(dim=1) > 0).all()


# The whole ----------------------------------------------------------------------------------


def batch(notes: bool = True) -> dict[str, Tensor]:
    one = observations()
    found = {f"series.{name}": value for name, value in one.items()}
    found |= {"series.grid": torch.randn(B, T, D), "series.observed": torch.rand(B, T, D) < 0.5}
    if notes:
        mask = torch.tensor([[True, True], [True, False], [False, False]])
        found |= {
            "notes.features": torch.randn(B, 2, 9),
            "notes.mask": mask,
            "notes.times": torch.rand(B, 2),
        }
    return found


def network(notes: int | None = 9, **options) -> StayNetwork:
    torch.manual_seed(0)
    sizes = Sizes(steps=T, width=W, time_width=8, layers=2, heads=H)
    return StayNetwork({"series": D}, notes, sizes=sizes, **options).eval()


def test_a_stay_without_notes_does_not_depend_on_the_text_branch() -> None:
    first, second, one = network(), network(), batch()
    assert second.notes is not None
    for parameter in second.notes.parameters():
        nn.init.normal_(parameter)
    one["notes.features"][2] = math.nan
    found, other = first(**one), second(**one)
    assert found.isfinite().all()
    assert torch.equal(found[2], other[2])
    assert not torch.allclose(found[0], other[0])


def test_nothing_observed_at_all_is_a_defined_feature() -> None:
    one = batch()
    one["series.mask"][:] = False
    one["notes.mask"][:] = False
    assert (network()(**one) == 0).all()


@pytest.mark.parametrize("level", ["batch_seq_feature", "batch", "mtand", "imputation"])
@pytest.mark.parametrize("method", ["interleaved", "concat", "mult"])
def test_every_parameter_gets_a_gradient(level, method) -> None:
    model = network(level=level, fusion=method).train()
    head = ResidualHead(model.width, 2)
    head(model(**batch())).square().sum().backward()
    # The last states alone are read: of the time embedding nothing is lost by that.
    missing = [n for n, p in model.named_parameters() if p.grad is None or not p.grad.any()]
    keys_have_no_bias = [n for n in missing if not n.endswith(("in_proj_bias", "key.bias"))]
    assert keys_have_no_bias == []


def test_explained_gates_are_those_of_the_forward_pass_and_shares_sum_to_one() -> None:
    model, one = network(level="batch_seq"), batch()
    gate, shares = model.explain("series", **one)
    embed = model.series["series"]
    arguments = (
        one["series.values"], one["series.mask"], model.time(one["series.times"]),
        model.time(model.queries), one["series.grid"], one["series.observed"],
    )  # fmt: skip
    assert gate is not None and shares is not None
    assert torch.equal(gate, embed(*arguments)[1].squeeze(-1))
    assert torch.allclose(shares.sum(dim=1), torch.ones(B)) and shares[0, 1] == 0
    # A channel that alone has a weight in the embedding has the whole share.
    weight = embed.attention.out.weight.data.unflatten(1, (H, 2 * D))
    kept = weight[:, :, 3].clone()
    weight[:] = 0
    weight[:, :, 3] = kept
    assert model.explain("series", **one)[1][:, 3].tolist() == [1.0] * B
    assert network(level="imputation").explain("series", **one) == (None, None)
