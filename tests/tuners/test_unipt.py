"""UniPT against its card: the maths, the three forms, no graph in the backbone, the cache."""

from __future__ import annotations

import copy
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
import transformers as hf
from hypothesis import given, settings
from hypothesis import strategies as st
from peft import LoraConfig, PeftModel, get_peft_model
from PIL import Image as Pillow
from torch import Tensor, nn
from torch.nn import functional
from transformers import BertConfig, BertModel, ResNetConfig, ResNetModel

from galenic import launch, tuners
from galenic.core.errors import BackboneError, ConfigError, WeightsError
from galenic.core.inputs import InputSpec
from galenic.data import cohort as cohort_module
from galenic.data.cohort import Cohort
from galenic.models.backbone import Backbone, Opened, open_backbone
from galenic.models.prefix import Replay, capture, frozen_prefix
from galenic.pipeline.frozen import FrozenCache
from galenic.pipeline.inputs import Collate, Inputs
from galenic.tuners._hidden import Hidden, Layout, as_states, collect, survey
from galenic.tuners._merging import MergeError
from galenic.tuners._side import choose
from galenic.tuners.unipt import UniPTConfig
from galenic.tuners.unipt.functional import interact, masked_mean, pool_cells, similarity
from galenic.tuners.unipt.network import build


def draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def doubles(*shape: int, seed: int) -> Tensor:
    return draw(*shape, seed=seed).double().requires_grad_()


def tokens_layout(layers: int = 4, count: int = 5, width: int = 8) -> Layout:
    shapes = ((count, width),) * layers
    return Layout(tuple(f"b{i}" for i in range(layers - 1)), shapes, "tokens", width)


def maps_layout(sizes: tuple[int, ...] = (16, 8, 4, 2)) -> Layout:
    shapes = tuple((4 * (i + 1), size, size) for i, size in enumerate(sizes))
    return Layout(("b0", "b1", "b2"), shapes, "channels_first", shapes[-1][0])


def side(layout: Layout, **settings: Any) -> Any:
    torch.manual_seed(0)
    return build(UniPTConfig(**settings), layout).eval()


# The maths -------------------------------------------------------------------------------


def slow_interaction(anchor: Tensor, target: Tensor, mask: Tensor | None, eps: float) -> Tensor:
    """The card's sentences, a score at a time: S without its identity."""
    rows = torch.zeros(len(anchor), anchor.shape[1], target.shape[1], dtype=anchor.dtype)
    for b in range(len(anchor)):
        for i in range(anchor.shape[1]):
            for j in range(target.shape[1]):
                if mask is None or mask[b, j]:
                    rows[b, i, j] = max(float(anchor[b, i] @ target[b, j]), 0.0)
            rows[b, i] /= max(float(rows[b, i].sum()), eps)
    return rows


@settings(max_examples=25, deadline=None)
@given(st.integers(1, 3), st.integers(1, 6), st.integers(1, 5), st.integers(0, 99))
def test_rows_sum_to_one_or_to_nothing(batch: int, count: int, width: int, seed: int) -> None:
    anchor, target = draw(batch, count, width, seed=seed), draw(batch, count, width, seed=seed + 1)
    mask = (draw(batch, count, seed=seed + 2) > -0.5).long()
    rows = similarity(anchor, target, mask, 1e-6)
    torch.testing.assert_close(rows, slow_interaction(anchor, target, mask, 1e-6))
    assert (rows >= 0).all()
    assert (rows[mask[:, None].expand_as(rows) == 0] == 0).all()
    positive = (anchor @ target.transpose(1, 2)).masked_fill(mask[:, None] == 0, -1).amax(-1) > 1e-3
    sums = rows.sum(-1)
    torch.testing.assert_close(sums[positive], torch.ones_like(sums[positive]))
    none = (anchor @ target.transpose(1, 2)).masked_fill(mask[:, None] == 0, -1).amax(-1) <= 0
    assert (sums[none] == 0).all()


@pytest.mark.parametrize("identity", [True, False])
@pytest.mark.parametrize("chunk", [None, 1, 2, 99])
@pytest.mark.parametrize("masked", [True, False])
def test_interaction_has_the_values_and_gradients_of_the_plain_one(
    identity: bool, chunk: int | None, masked: bool
) -> None:
    anchor, target = doubles(2, 5, 3, seed=1), doubles(2, 5, 3, seed=2)
    weight = doubles(2, seed=3)
    mask = torch.tensor([[1, 1, 1, 0, 0], [1, 1, 1, 1, 1]]) if masked else None
    scores = torch.relu(anchor @ target.transpose(1, 2))
    if mask is not None:
        scores = scores * mask[:, None]
    rows = functional.normalize(scores, p=1, dim=-1, eps=1e-6)
    rows = rows + torch.eye(5) if identity else rows
    plain = weight[:, None, None] * (rows @ target)
    ours = interact(anchor, target, weight, mask, identity=identity, chunk=chunk)
    torch.testing.assert_close(ours, plain)
    slope = draw(2, 5, 3, seed=4).double()
    wanted = torch.autograd.grad(plain, (anchor, target, weight), slope)
    found = torch.autograd.grad(ours, (anchor, target, weight), slope)
    for got, expected in zip(found, wanted, strict=True):
        torch.testing.assert_close(got, expected)


def test_interaction_below_eps_divides_by_a_constant() -> None:
    anchor, target, weight = (doubles(*s, seed=9) for s in ((1, 2, 3), (1, 4, 3), (1,)))
    inputs = (anchor, target, weight)

    def small(a: Tensor, t: Tensor, w: Tensor) -> Tensor:
        return interact(a, t, w, None, eps=50.0, identity=False)

    assert torch.autograd.gradcheck(small, inputs)


def slow_pool(state: Tensor, query: Tensor, size: int) -> Tensor:
    """As the authors' code goes: unfold, normalise a cell, fold, weigh, sum-pool."""
    side = state.shape[-1]
    large = functional.interpolate(query, size=(side, side), mode="nearest")
    cells = functional.unfold((large * state).sum(1, keepdim=True), size, stride=size)
    cells = torch.relu(cells)
    cells = cells / cells.sum(1, keepdim=True).clamp(min=1e-6)
    weights = functional.fold(cells, (side, side), size, stride=size) + 1.0 / size**2
    return functional.avg_pool2d(weights * state, size, stride=size, divisor_override=1)


@pytest.mark.parametrize("size", [2, 4])
def test_pooling_into_cells_is_the_authors(size: int) -> None:
    state, query = draw(2, 3, 8, 8, seed=1), torch.relu(draw(2, 3, 8 // size, 8 // size, seed=2))
    torch.testing.assert_close(pool_cells(state, query), slow_pool(state, query, size))


def test_cells_may_be_oblong_and_must_be_whole() -> None:
    state = torch.ones(1, 2, 4, 9)
    # Equal likeness everywhere: each weight is 1/6 + 1/6, and a cell sums six ones.
    torch.testing.assert_close(
        pool_cells(state, torch.ones(1, 2, 2, 3)), torch.full((1, 2, 2, 3), 2.0)
    )
    with pytest.raises(ValueError, match="no whole cells"):
        pool_cells(state, torch.ones(1, 2, 3, 3))


def test_a_mean_over_no_token_is_zero() -> None:
    mask = torch.tensor([[0, 0], [1, 0]])
    tokens = torch.tensor([[[1.0], [2.0]], [[3.0], [4.0]]])
    assert masked_mean(tokens, mask).tolist() == [[0.0], [3.0]]


# The forms -------------------------------------------------------------------------------


def slow_merge(net: Any, anchor: Tensor, targets: list[Tensor], mask: Tensor | None) -> Tensor:
    keep = torch.ones(anchor.shape[:2]) if mask is None else mask.float()

    def mean(tokens: Tensor) -> Tensor:
        return (tokens * keep[..., None]).sum(1) / keep.sum(1, keepdim=True)

    scores = torch.cat([net.gate(mean(anchor) * mean(target)) for target in targets], 1)
    weights = torch.softmax(scores, 1)
    merged = torch.zeros_like(anchor)
    for place, target in enumerate(targets):
        rows = slow_interaction(anchor, target, mask, 1e-6) + torch.eye(anchor.shape[1])
        merged += weights[:, place, None, None] * (rows @ target)
    return merged


@pytest.mark.parametrize("masked", [True, False])
@pytest.mark.parametrize("proj", ["linear", "mlp"])
def test_tokens_form_is_the_card(masked: bool, proj: str) -> None:
    net = side(tokens_layout(), proj=proj)
    states = [draw(2, 5, 8, seed=i) for i in range(4)]
    mask = torch.tensor([[1, 1, 1, 0, 0], [1, 1, 1, 1, 1]]) if masked else None
    with torch.no_grad():
        *targets, anchor = [net.down[i](state) for i, state in enumerate(states)]
        merged = slow_merge(net, anchor, targets, mask)
        expected = net.up[1](torch.relu(anchor + net.proj(merged)))
        found = net(Hidden(states, None, mask))
    torch.testing.assert_close(found, expected)
    assert [tuple(down[0].weight.shape) for down in net.down] == [(4, 8)] * 4
    assert len(net.proj) == (2 if proj == "linear" else 4)


def test_grid_form_is_the_authors() -> None:
    net = side(maps_layout())
    for module in net.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.copy_(draw(module.num_features, seed=5))
    states = [draw(2, *shape, seed=i) for i, shape in enumerate(net.layout.shapes)]
    with torch.no_grad():
        anchor = net.down[-1](states[-1])
        flat = anchor.flatten(2).transpose(1, 2)
        targets = []
        for i, size in enumerate((8, 4, 2)):
            pooled = slow_pool(states[i], net.query[i](states[-1]), size)
            targets.append(net.down[i](pooled).flatten(2).transpose(1, 2))
        merged = slow_merge(net, flat, targets, None).transpose(1, 2).reshape(anchor.shape)
        expected = net.up(anchor + net.proj(merged))
        found = net(Hidden(states, None))
    torch.testing.assert_close(found, expected)


@pytest.mark.parametrize("token", ["first", "last"])
@pytest.mark.parametrize("pool", ["cls", "mean", "max"])
def test_pooled_form_is_the_card(token: str, pool: str) -> None:
    net = side(tokens_layout(), form="pooled", token=token, pool=pool, reduction_factor=1)
    states = [draw(2, 5, 8, seed=i) for i in range(4)]
    final = draw(2, 5, 8, seed=7)
    mask = torch.tensor([[1, 1, 1, 0, 0], [1, 1, 1, 1, 1]])
    with torch.no_grad():
        valid = [final[0, :3], final[1]]
        how = {"cls": lambda t: t[0], "mean": lambda t: t.mean(0), "max": lambda t: t.amax(0)}
        raw = torch.stack([how[pool](tokens) for tokens in valid])
        anchor = net.ask(raw)
        targets = [down(state) for down, state in zip(net.down, states, strict=True)]
        means = [torch.stack([t[0, :3].mean(0), t[1].mean(0)]) for t in targets]
        weights = torch.cat([net.gate(anchor * mean) for mean in means], 1).softmax(1)
        merged = torch.zeros(2, 8)
        for place, target in enumerate(targets):
            rows = slow_interaction(anchor[:, None], target, mask, 1e-6)
            own = target[:, 0] if token == "first" else torch.stack([target[0, 2], target[1, 4]])
            merged += weights[:, place, None] * ((rows @ target)[:, 0] + own)
        expected = raw + net.up[1](torch.relu(merged))
        found = net(Hidden(states, final, mask))
    torch.testing.assert_close(found, expected)


def test_what_stands_at_padding_changes_nothing() -> None:
    net = side(tokens_layout())
    states = [draw(2, 5, 8, seed=i) for i in range(4)]
    mask = torch.tensor([[1, 1, 1, 0, 0], [1, 1, 1, 1, 1]])
    dirty = [torch.where(mask[..., None] == 0, 1e3 * draw(2, 5, 8, seed=9), s) for s in states]
    with torch.no_grad():
        clean, other = net(Hidden(states, None, mask)), net(Hidden(dirty, None, mask))
    torch.testing.assert_close(other[mask == 1], clean[mask == 1], atol=1e-6, rtol=1e-6)
    alone = [state[:1, :3] for state in states]
    with torch.no_grad():
        torch.testing.assert_close(net(Hidden(alone, None)), clean[:1, :3], atol=1e-6, rtol=1e-6)


@pytest.mark.parametrize("token", ["first", "last"])
@pytest.mark.parametrize("pool", ["cls", "mean", "max"])
def test_padding_may_stand_on_the_left(token: str, pool: str) -> None:
    net = side(tokens_layout(), form="pooled", token=token, pool=pool)
    states, final = [draw(1, 5, 8, seed=i) for i in range(4)], draw(1, 5, 8, seed=7)
    mask = torch.tensor([[0, 0, 1, 1, 1]])
    with torch.no_grad():
        found = net(Hidden(states, final, mask))
        alone = net(Hidden([s[:, 2:] for s in states], final[:, 2:], mask[:, 2:]))
    torch.testing.assert_close(found, alone)


def test_a_mask_given_by_position_counts(tiny: SimpleNamespace) -> None:
    network = tiny.make("bert")
    ids, mask = tiny.inputs(network).values()
    mask[1, 5:] = 0
    model = get_peft_model(network, UniPTConfig(form="pooled")).eval()
    with torch.no_grad():
        named = model(input_ids=ids, attention_mask=mask).last_hidden_state
        assert torch.equal(model(ids, mask).last_hidden_state, named)


@pytest.mark.parametrize("name", ["T5Model", "CLIPModel"])
def test_a_network_that_reads_more_than_one_thing_is_refused(name: str) -> None:
    wide = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4}
    network: nn.Module = {
        "T5Model": lambda: hf.T5Model(
            hf.T5Config(vocab_size=50, d_model=32, d_kv=8, d_ff=64, num_layers=2, num_heads=4)
        ),
        "CLIPModel": lambda: hf.CLIPModel(
            hf.CLIPConfig(
                text_config=wide, vision_config={**wide, "image_size": 32, "patch_size": 8}
            )
        ),
    }[name]()
    with pytest.raises(BackboneError, match="does not run on input_ids"):
        get_peft_model(network, UniPTConfig())


def test_an_empty_sequence_is_no_nan() -> None:
    net = side(tokens_layout())
    states = [draw(2, 5, 8, seed=i) for i in range(4)]
    mask = torch.tensor([[0] * 5, [1] * 5])
    assert torch.isfinite(net(Hidden(states, None, mask))).all()


@settings(max_examples=6, deadline=None)
@given(st.permutations([0, 1, 2]))
def test_layers_have_no_order(order: list[int]) -> None:
    net = side(tokens_layout())
    states = [draw(2, 5, 8, seed=i) for i in range(4)]
    turned = copy.deepcopy(net)
    turned.down = nn.ModuleList([net.down[i] for i in order] + [net.down[3]])
    with torch.no_grad():
        before = net(Hidden(states, None))
        after = turned(Hidden([states[i] for i in order] + [states[3]], None))
    torch.testing.assert_close(after, before, atol=1e-5, rtol=1e-5)


def test_confidence_sums_to_one_and_a_gate_of_zero_is_fair() -> None:
    net = side(tokens_layout())
    anchor, targets = draw(3, 4, seed=1), [draw(3, 4, seed=i) for i in (2, 3, 4)]
    torch.testing.assert_close(net.confidence(anchor, targets).sum(1), torch.ones(3))
    nn.init.zeros_(net.gate.weight)
    torch.testing.assert_close(net.confidence(anchor, targets), torch.full((3, 3), 1 / 3))


# No graph in the backbone ----------------------------------------------------------------


def bert(inner: int = 64) -> BertModel:
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=50, hidden_size=32, num_hidden_layers=3, num_attention_heads=4,
        intermediate_size=inner,
    )  # fmt: skip
    return BertModel(config, add_pooling_layer=False)


WORDS = {
    "input_ids": torch.arange(16).reshape(2, 8) + 5,
    "attention_mask": torch.tensor([[1] * 8, [1] * 5 + [0] * 3]),
}


def leaves(loss: Tensor) -> set[int]:
    """Every tensor that the graph behind `loss` would give a gradient."""
    found, open_nodes, seen = set(), [loss.grad_fn], set()
    while open_nodes:
        node = open_nodes.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        if hasattr(node, "variable"):
            found.add(id(node.variable))
        open_nodes += [parent for parent, _ in node.next_functions]
    return found


def test_no_gradient_reaches_the_backbone_even_where_it_is_asked_for() -> None:
    model = get_peft_model(bert(), UniPTConfig()).train()
    base = model.get_base_model().base_layer
    base.requires_grad_(True)
    loss = model(**WORDS).last_hidden_state.square().mean()
    assert leaves(loss).isdisjoint({id(p) for p in base.parameters()})
    loss.backward()
    assert all(p.grad is None for p in base.parameters())
    assert all(p.grad is not None for p in model.get_base_model().sides.parameters())
    assert not base.training
    assert not any(module.training for module in base.modules())


def test_states_are_those_of_the_network_and_have_no_graph() -> None:
    network = bert().eval()
    layout = survey(network, "unipt")
    network.requires_grad_(True)
    hidden = collect(network, layout, lambda: network(**WORDS), mask=WORDS["attention_mask"])
    expected = network(**WORDS, output_hidden_states=True).hidden_states
    assert len(hidden.states) == len(expected) == 4
    for state, wanted in zip(hidden.states, expected, strict=True):
        assert not state.requires_grad
        assert torch.equal(state, wanted)


def saved_bytes(model: nn.Module) -> int:
    kept: dict[int, int] = {}

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    parameters = {p.untyped_storage().data_ptr() for p in model.parameters()}
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        loss = model(**WORDS).last_hidden_state.square().mean()
    assert loss.requires_grad
    return sum(size for place, size in kept.items() if place not in parameters)


def test_saved_bytes_do_not_grow_with_the_width_of_the_mlp() -> None:
    ours = []
    for inner in (64, 512):
        model = get_peft_model(bert(inner), UniPTConfig()).train()
        model.get_base_model().base_layer.requires_grad_(True)
        ours.append(saved_bytes(model))
    assert ours[0] == ours[1]
    lora = LoraConfig(target_modules="all-linear")
    theirs = [saved_bytes(get_peft_model(bert(inner), lora).train()) for inner in (64, 512)]
    assert theirs[1] > 1.5 * theirs[0]


def test_saved_bytes_hold_no_scores() -> None:
    def step(count: int) -> int:
        kept: dict[int, int] = {}

        def pack(tensor: Tensor) -> Tensor:
            kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
            return tensor

        net = side(tokens_layout(count=count)).train()
        states = [draw(2, count, 8, seed=i) for i in range(4)]
        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            net(Hidden(states, None)).sum()
        return sum(kept.values())

    # Linear in the number of tokens: [N, N] is nowhere kept.
    assert step(512) < 2.1 * step(256)


def test_batch_norms_of_the_backbone_stand_still() -> None:
    torch.manual_seed(0)
    config = ResNetConfig(embedding_size=8, hidden_sizes=[8, 16], depths=[1, 1], layer_type="basic")
    network = ResNetModel(config)
    before = {name: value.clone() for name, value in network.state_dict().items()}
    opened = Opened(network, InputSpec("pixel_values", "image", 3, (32, 32)))
    backbone = Backbone(opened, "resnet", "auto")
    tuners.attach(backbone, tuners.parse_tuner({"method": "unipt"}))
    backbone.train()
    adam = torch.optim.AdamW([p for p in backbone.parameters() if p.requires_grad], lr=1e-2)
    for _ in range(2):
        adam.zero_grad()
        backbone(pixel_values=draw(3, 3, 32, 32)).pooled.square().mean().backward()
        adam.step()
    after = backbone.network.get_base_model().base_layer.state_dict()
    assert all(torch.equal(after[name], value) for name, value in before.items())


# On networks -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    "family", ["vit", "ast", "bert", "dinov2", "clip", "roberta", "distilbert", "swin", "segformer"]
)
def test_peft_alone_saves_and_loads(tiny: SimpleNamespace, family: str, tmp_path: Path) -> None:
    network = tiny.make(family)
    batch = tiny.inputs(network)
    config = UniPTConfig()
    base = tiny.out(network, batch)
    model = get_peft_model(network, config).eval()
    assert config.read is None, "the caller's config came back as it went in"
    tiny.stir(model, "unipt_")
    new = tiny.out(model, batch)
    assert new.shape[0] == 2 and torch.isfinite(new).all()
    model.save_pretrained(tmp_path)
    again = PeftModel.from_pretrained(tiny.make(family), tmp_path).eval()
    assert torch.equal(tiny.out(again, batch), new)
    with model.disable_adapter():
        assert torch.equal(tiny.out(model, batch), base)
    assert torch.equal(tiny.out(model.unload(), batch), base)


def test_a_stage_is_read_before_it_halves_its_map(tiny: SimpleNamespace) -> None:
    network = tiny.make("swin")
    layout = survey(network, "unipt")
    assert layout.kind == "sequence"
    assert layout.shapes == ((16, 8, 8), (16, 8, 8), (32, 4, 4))
    assert choose("stages", layout) == [1, 2]
    assert choose("all", layout) == [0, 1, 2]
    assert choose([0, -1], layout) == [0, 2]


def test_a_sequence_is_a_map_of_the_image_s_shape() -> None:
    tokens = torch.arange(6.0).reshape(1, 6, 1)
    (grid,) = as_states([tokens], "sequence", (32, 48))
    assert grid[0, 0].tolist() == [[0, 1, 2], [3, 4, 5]]
    with pytest.raises(BackboneError, match="no grid"):
        as_states([torch.zeros(1, 7, 1)], "sequence", (32, 48))


class Overwriting(nn.Module):
    """A network that adds to a state in place after its block gave it."""

    main_input_name = "tokens"

    def __init__(self) -> None:
        super().__init__()
        part = nn.Sequential(nn.Linear(8, 8), nn.Tanh())
        self.layers = nn.ModuleList(copy.deepcopy(part) for _ in range(3))

    def forward(self, tokens: Tensor) -> Tensor:
        for layer in self.layers:
            tokens = layer(tokens)
            tokens += 1.0
        return tokens


def test_a_state_that_is_written_into_later_is_kept_as_it_was() -> None:
    network = Overwriting().eval()
    tokens = draw(2, 5, 8)
    layout = survey(network, "unipt", {"tokens": tokens})
    assert layout.writes
    hidden = collect(network, layout, lambda: network(tokens))
    with torch.no_grad():
        assert torch.equal(hidden.states[1], network.layers[0](tokens))


def test_two_adapters_and_another_name(tiny: SimpleNamespace, tmp_path: Path) -> None:
    network = tiny.make("bert")
    batch = tiny.inputs(network)
    model = get_peft_model(network, UniPTConfig()).eval()
    first = tiny.out(model, batch)
    model.save_pretrained(tmp_path)
    model.add_adapter("other", UniPTConfig(reduction_factor=4, layers=[1, 3]))
    assert torch.equal(tiny.out(model, batch), first)
    model.set_adapter("other")
    assert not torch.equal(tiny.out(model, batch), first)
    trains = {name for name, p in model.named_parameters() if p.requires_grad}
    assert trains and all(".unipt_side.other." in name for name in trains)
    model.load_adapter(str(tmp_path), adapter_name="third")
    model.set_adapter("third")
    assert torch.equal(tiny.out(model.eval(), batch), first)
    model.set_adapter("other")
    model.delete_adapter("third")
    with pytest.raises(MergeError, match="between the layers"):
        model.merge_and_unload()


def test_another_network_is_refused(tiny: SimpleNamespace, tmp_path: Path) -> None:
    get_peft_model(tiny.make("bert"), UniPTConfig()).save_pretrained(tmp_path)
    with pytest.raises(BackboneError, match="made for another network"):
        PeftModel.from_pretrained(tiny.make("vit"), tmp_path)


def test_a_zero_up_starts_the_pooled_form_at_the_backbone() -> None:
    backbone = tuned({"form": "pooled", "zero_init_up": True})
    plain = Backbone(Opened(bert(), InputSpec("input_ids", "tokens", max_length=16)), "b", "auto")
    with torch.no_grad():
        torch.testing.assert_close(backbone(**WORDS).pooled, plain.eval()(**WORDS).pooled)


def tuned(values: dict[str, Any]) -> Backbone:
    opened = Opened(bert(), InputSpec("input_ids", "tokens", max_length=16))
    backbone = Backbone(opened, "bert", "auto").eval()
    torch.manual_seed(3)
    tuners.attach(backbone, tuners.parse_tuner({"method": "unipt", **values}))
    return backbone.eval()


@pytest.mark.parametrize(
    ("values", "error", "match"),
    [
        ({"layers": [3]}, ConfigError, "at least two"),
        ({"layers": [0, 4]}, ConfigError, "states 0 to 3"),
        ({"form": "grid"}, BackboneError, "states are tokens"),
    ],
)
def test_what_cannot_be_is_said_before_anything_changes(
    values: dict[str, Any], error: type[Exception], match: str
) -> None:
    opened = Opened(bert(), InputSpec("input_ids", "tokens", max_length=16))
    backbone = Backbone(opened, "bert", "auto").train()
    with pytest.raises(error) as caught:
        tuners.attach(backbone, tuners.parse_tuner({"method": "unipt", **values}))
    assert match in f"{caught.value} {getattr(caught.value, 'expected', '')}"
    assert isinstance(backbone.network, BertModel)
    assert all(p.requires_grad for p in backbone.parameters())
    assert all(module.training for module in backbone.modules())


@pytest.mark.parametrize(
    "values",
    [
        {"reduction_factor": 0}, {"eps": 0.0}, {"chunk_size": 0}, {"form": "x"}, {"proj": "x"},
        {"layers": "some"}, {"pool": "x"}, {"token": "x"},
    ],
)  # fmt: skip
def test_a_wrong_setting_is_a_value_error(values: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=f"{next(iter(values))} is"):
        UniPTConfig(**values)


def test_a_pooled_residual_needs_the_network_s_width() -> None:
    with pytest.raises(ValueError, match="out_dim is 6"):
        side(tokens_layout(), form="pooled", out_dim=6)
    assert side(tokens_layout(), out_dim=6)(
        Hidden([draw(1, 5, 8, seed=i) for i in range(4)], None)
    ).shape == (1, 5, 6)


def test_maps_that_do_not_divide_are_refused() -> None:
    with pytest.raises(BackboneError, match="no whole cells"):
        side(maps_layout((15, 8, 4, 2)))


# Computed ahead --------------------------------------------------------------------------


def cohort_of(folder: Path, count: int = 6) -> Cohort:
    rng = np.random.default_rng(0)
    names = [f"{place}.png" for place in range(count)]
    for name in names:
        Pillow.fromarray(rng.integers(0, 255, (40, 40), dtype=np.uint8)).save(folder / name)
    return Cohort.open(pd.DataFrame({"file": names, "label": list("ab") * 3}), root=folder)


@pytest.mark.parametrize(
    "spec", ["builtin:efficientnet-lite0#random", "builtin:mobilenet-v2#random"]
)
def test_cached_maps_give_the_same_features(spec: str, tmp_path: Path, monkeypatch) -> None:
    torch.manual_seed(0)
    backbone = open_backbone(spec, size=64).eval()
    cohort = cohort_of(tmp_path)
    inputs = Inputs(cohort, backbone)
    tuners.attach(backbone, tuners.parse_tuner({"method": "unipt"}))
    backbone.eval()
    block = frozen_prefix(backbone.network)
    rows, labels = np.arange(6), np.zeros(6)
    ahead = FrozenCache(tmp_path / "cache").behind(backbone, inputs, rows, labels, block)
    collate = Collate.of(backbone)
    with torch.no_grad():
        live = backbone(**collate([inputs[row] for row in range(6)])).pooled
        monkeypatch.setattr(cohort_module, "read", lambda path: pytest.fail(f"{path} was read"))
        base = backbone.network.get_base_model().base_layer
        monkeypatch.setattr(base, "forward", lambda **_: pytest.fail("the network was run"))
        batch = collate([ahead[row] for row in range(6)])
        batch.pop("labels")
        hidden = batch.pop("hidden")
        with Replay(backbone, block)(hidden):
            cached = backbone(**batch).pooled
    torch.testing.assert_close(cached, live, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("form", ["tokens", "pooled"])
def test_cached_tokens_give_the_same_features_under_padding(form: str) -> None:
    backbone = tuned({"form": form})
    block = frozen_prefix(backbone.network)
    with torch.no_grad():
        live = backbone(**WORDS).pooled
        packed = capture(backbone, block, WORDS)
        # What stands at padding is not kept.
        packed[1, 5:] = 0
        with Replay(backbone, block)(packed):
            cached = backbone(attention_mask=WORDS["attention_mask"]).pooled
        after = backbone(**WORDS).pooled
    # Training would make more of a difference in rounding.
    assert torch.equal(cached, live)
    assert torch.equal(after, live)


def test_the_place_in_the_cache_follows_what_is_read() -> None:
    def place(**values: Any) -> str:
        return tuned(values).network.get_base_model().place

    assert place() == place(reduction_factor=4)
    assert len({place(), place(layers=[1, 3]), place(form="pooled")}) == 3


def test_a_run_scores_the_same_with_and_without_cache(tmp_path: Path) -> None:
    tables = []
    for cache in (True, False):
        run = launch.run(
            "unipt", "sample:icd10", out=tmp_path / str(cache), quick=True, cache=cache,
            overrides=["schedule.precision=fp32"],
        )  # fmt: skip
        tables.append(pd.read_parquet(run.path / "predictions.parquet"))
    scores = [table.filter(like="score").to_numpy() for table in tables]
    np.testing.assert_allclose(scores[0], scores[1], atol=1e-5)


def test_without_permission_nothing_is_cached() -> None:
    assert frozen_prefix(tuned({}).network) == 3
    assert frozen_prefix(tuned({"cache_features": False}).network) == 0


def test_damaged_tensors_are_named(tmp_path: Path) -> None:
    backbone = tuned({})
    config = tuners.parse_tuner({"method": "unipt"})
    tuners.save(backbone, config, tmp_path / "adapter")
    other = tuners.parse_tuner({"method": "unipt", "reduction_factor": 4})
    fresh = Backbone(Opened(bert(), InputSpec("input_ids", "tokens", max_length=16)), "b", "auto")
    with pytest.raises(WeightsError, match="shape"):
        tuners.load(fresh, other, tmp_path / "adapter")
