"""Every tuner on every family of networks: what it declares is what it does."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from peft import PeftModel
from torch import Tensor, nn
from transformers import (
    BertConfig,
    BertModel,
    ConvNextConfig,
    ConvNextModel,
    SwinConfig,
    SwinModel,
    ViTConfig,
    ViTModel,
)

from galenic import tuners
from galenic.core import registry
from galenic.core.errors import BackboneError, ConfigError, WeightsError
from galenic.core.inputs import InputSpec
from galenic.language.prompted import PromptedNetwork
from galenic.models.backbone import Backbone, Opened
from galenic.pipeline.encoder import PooledEncoder

SMALL = {
    "hidden_size": 32, "num_hidden_layers": 3, "num_attention_heads": 4, "intermediate_size": 64,
}  # fmt: skip
PIXELS = InputSpec("pixel_values", "image", 3, (32, 32))
TOKENS = InputSpec("input_ids", "tokens", max_length=16)


def vit() -> Opened:
    network = ViTModel(ViTConfig(**SMALL, image_size=32, patch_size=8), add_pooling_layer=False)
    return Opened(network, PIXELS, prefix_tokens=1)


def bert() -> Opened:
    return Opened(BertModel(BertConfig(**SMALL, vocab_size=50), add_pooling_layer=False), TOKENS)


def swin() -> Opened:
    config = SwinConfig(
        image_size=32, patch_size=4, embed_dim=16, depths=[2, 2], num_heads=[2, 2], window_size=4
    )
    return Opened(SwinModel(config, add_pooling_layer=False), PIXELS)


def convnext() -> Opened:
    config = ConvNextConfig(hidden_sizes=[8, 16], depths=[2, 2], num_stages=2)
    return Opened(ConvNextModel(config), PIXELS)


def cloze() -> Opened:
    template: Any = SimpleNamespace(soft_ids=[7, None, 8])
    return Opened(PromptedNetwork(bert().network, nn.Linear(32, 32), template), TOKENS)


FAMILIES: dict[str, Callable[[], Opened]] = {
    "vit": vit, "bert": bert, "swin": swin, "convnext": convnext, "cloze": cloze,
}  # fmt: skip
# What any tuner may enter or must refuse; a cloze is a network around one of these.
PLAIN = ("vit", "bert", "swin", "convnext")
METHODS = registry.modules("galenic.tuners")


@cache
def weights(family: str) -> dict[str, Tensor]:
    torch.manual_seed(0)
    network = FAMILIES[family]().network
    # Norms and biases away from one and zero, so that a slip in folding them would show.
    for parameter in network.parameters():
        if parameter.ndim == 1:
            parameter.data += 0.1 * torch.randn_like(parameter)
    return {name: value.clone() for name, value in network.state_dict().items()}


def untouched(family: str) -> Backbone:
    opened = FAMILIES[family]()
    opened.network.load_state_dict(weights(family))
    return Backbone(opened, family, "auto").eval()


def batch(family: str) -> dict[str, Tensor]:
    draw = torch.Generator().manual_seed(1)
    if family in ("bert", "cloze"):
        mask = torch.ones(4, 8, dtype=torch.long)
        mask[1, 6:] = 0
        ids = torch.randint(5, 50, (4, 8), generator=draw)
        texts = {"input_ids": ids, "attention_mask": mask}
        if family == "bert":
            return texts
        slots = torch.tensor([0, 1, 2, 3, 0, 0, 0, 0]).expand(4, 8)
        return {**texts, "slots": slots, "mask_at": torch.tensor([4, 4, 5, 5])}
    return {"pixel_values": torch.randn(4, 3, 32, 32, generator=draw)}


def tuned(method: str, family: str) -> tuple[Backbone, tuners.Config]:
    backbone = untouched(family)
    config = tuners.parse_tuner({"method": method})
    torch.manual_seed(3)
    tuners.attach(backbone, config)
    return backbone, config


def pooled(backbone: Backbone, family: str) -> Tensor:
    backbone.eval()
    with torch.no_grad():
        return backbone(**batch(family)).pooled


def taught(method: str, family: str) -> tuple[Backbone, tuners.Config]:
    """A few steps of all stages, with decay, as `classify` goes through them."""
    backbone, config = tuned(method, family)
    hooks = tuners.hooks(backbone, config)
    torch.manual_seed(5)
    target = torch.randn(4, backbone.width)
    for stage in hooks.stages:
        stage.begin()
        free = [p for p in backbone.parameters() if p.requires_grad]
        if not free:
            continue
        adam = torch.optim.AdamW(free, lr=1e-2, weight_decay=0.1)
        backbone.train()
        for step in range(1, 4):
            loss = (backbone(**batch(family)).pooled - target).square().mean()
            if hooks.penalty is not None:
                loss = loss + hooks.penalty()
            adam.zero_grad()
            loss.backward()
            adam.step()
            if hooks.after_step is not None:
                hooks.after_step(step, 3)
    return backbone, config


def pairs() -> Iterator[tuple[str, str]]:
    for method in METHODS:
        for family in FAMILIES:
            if enters(method, family):
                yield method, family


def enters(method: str, family: str) -> bool:
    declared = tuners.capabilities(method).enters
    return "any" in declared or family in declared


PAIRS = list(pairs())
TRAINED = [pair for pair in PAIRS if pair[0] != "none"]


@pytest.mark.parametrize("method", METHODS)
def test_it_declares_what_it_is(method: str) -> None:
    declared = tuners.capabilities(method)
    assert declared.enters
    assert declared.mergeable or "merge" in declared.gaps, "a gap has a reason"
    assert not (declared.exact_unmerge and not declared.mergeable)


@pytest.mark.parametrize(
    ("method", "family"), [(m, f) for m in METHODS for f in PLAIN if not enters(m, f)]
)
def test_what_it_cannot_enter_is_refused_and_left_alone(method: str, family: str) -> None:
    backbone = untouched(family)
    with pytest.raises(BackboneError) as error:
        tuners.attach(backbone, tuners.parse_tuner({"method": method}))
    assert error.value.expected
    state = backbone.network.state_dict()
    assert all(torch.equal(value, state[name]) for name, value in weights(family).items())
    assert all(p.requires_grad for p in backbone.parameters())


@pytest.mark.parametrize(("method", "family"), PAIRS)
def test_it_starts_as_the_backbone_where_it_says_so(method: str, family: str) -> None:
    if not tuners.capabilities(method).identity_at_start:
        pytest.skip("declared: it does not start as the backbone")
    before = pooled(untouched(family), family)
    torch.testing.assert_close(
        pooled(tuned(method, family)[0], family), before, atol=1e-6, rtol=1e-6
    )


@pytest.mark.parametrize(("method", "family"), TRAINED)
def test_only_what_trains_gets_gradients_and_moves(method: str, family: str) -> None:
    backbone, _ = tuned(method, family)
    still = {name: p for name, p in backbone.named_parameters() if not p.requires_grad}
    before = {name: p.detach().clone() for name, p in backbone.named_parameters()}
    backbone.train()
    backbone(**batch(family)).pooled.square().mean().backward()
    assert all(p.grad is None for p in still.values())
    assert any(p.grad is not None for p in backbone.parameters())
    after = dict(taught(method, family)[0].named_parameters())
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert changed
    assert not changed & set(still)


@pytest.mark.parametrize(("method", "family"), TRAINED)
def test_saved_and_loaded_gives_the_same(method: str, family: str, tmp_path: Path) -> None:
    backbone, config = taught(method, family)
    tuners.save(backbone, config, tmp_path / "adapter")
    again = untouched(family)
    tuners.load(again, config, tmp_path / "adapter")
    assert torch.equal(pooled(again, family), pooled(backbone, family))
    assert not torch.equal(pooled(again, family), pooled(untouched(family), family))


@pytest.mark.parametrize("method", [m for m in METHODS if m != "none"])
def test_another_base_is_refused(method: str, tmp_path: Path) -> None:
    family = next(f for m, f in PAIRS if m == method)
    backbone, config = taught(method, family)
    tuners.save(backbone, config, tmp_path / "adapter")
    other = untouched(family)
    next(p for p in other.parameters() if p.ndim > 1).data += 1
    stranger = Backbone(Opened(other.network, other.inputs), family, "auto")
    with pytest.raises(WeightsError, match="another backbone"):
        tuners.load(stranger, config, tmp_path / "adapter")


@pytest.mark.parametrize(("method", "family"), TRAINED)
def test_merged_equals_apart_and_unmerged_every_bit(method: str, family: str) -> None:
    declared = tuners.capabilities(method)
    if not declared.mergeable:
        pytest.skip(declared.gaps["merge"])
    backbone, _ = taught(method, family)
    apart = pooled(backbone, family)
    base = copy.deepcopy(backbone.network.state_dict())
    tuner = backbone.network.base_model
    tuner.merge_adapter()
    torch.testing.assert_close(pooled(backbone, family), apart, atol=1e-5, rtol=1e-4)
    with warnings.catch_warnings():
        if not declared.exact_unmerge:
            warnings.simplefilter("ignore")  # peft says so itself
        tuner.unmerge_adapter()
    after = backbone.network.state_dict()
    if declared.exact_unmerge:
        assert all(torch.equal(value, after[name]) for name, value in base.items())
        assert torch.equal(pooled(backbone, family), apart)
    merged = backbone.network.merge_and_unload()
    assert not isinstance(merged, PeftModel)
    backbone.network = merged
    torch.testing.assert_close(pooled(backbone, family), apart, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize(("method", "family"), TRAINED)
def test_disabled_it_is_the_base(method: str, family: str) -> None:
    backbone, _ = taught(method, family)
    if not isinstance(backbone.network, PeftModel):
        pytest.skip("it trains the backbone's own tensors: there is nothing to disable")
    with backbone.network.disable_adapter():
        without = pooled(backbone, family)
    torch.testing.assert_close(without, pooled(untouched(family), family), atol=1e-6, rtol=1e-6)


@pytest.mark.parametrize(("method", "family"), TRAINED)
def test_it_works_in_bfloat16(method: str, family: str) -> None:
    backbone, _ = tuned(method, family)
    backbone.train()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = backbone(**batch(family)).pooled.float().square().mean()
    loss.backward()
    grads = [p.grad for p in backbone.parameters() if p.grad is not None]
    assert grads
    assert all(torch.isfinite(grad).all() for grad in grads)


@pytest.mark.parametrize(("method", "family"), TRAINED)
def test_recomputing_gives_the_same_gradients(method: str, family: str) -> None:
    def gradients(recompute: bool) -> dict[str, Tensor]:
        backbone, _ = tuned(method, family)
        backbone.train()
        without_dropout(backbone)
        if recompute:
            PooledEncoder(backbone).gradient_checkpointing_enable()
        backbone(**batch(family)).pooled.square().mean().backward()
        return {n: p.grad for n, p in backbone.named_parameters() if p.grad is not None}

    if family == "convnext":
        with pytest.raises(ConfigError, match="recompute"):
            gradients(True)
        return
    plain, again = gradients(False), gradients(True)
    assert plain.keys() == again.keys()
    for name, value in plain.items():
        torch.testing.assert_close(again[name], value, atol=1e-5, rtol=1e-4)


MERGEABLE = [method for method in METHODS if tuners.capabilities(method).mergeable]


class Pooled(nn.Module):
    """A backbone as a function of one tensor, for the exporter."""

    def __init__(self, backbone: Backbone) -> None:
        super().__init__()
        self.backbone = backbone

    def forward(self, inputs: Tensor) -> Tensor:
        return self.backbone(**{self.backbone.inputs.key: inputs}).pooled


@pytest.mark.parametrize("method", MERGEABLE)
@pytest.mark.filterwarnings("ignore")
def test_merged_and_exported_to_onnx_it_is_the_same(method: str) -> None:
    pytest.importorskip("onnxscript")
    from onnx.reference import ReferenceEvaluator

    family = next(f for m, f in PAIRS if m == method)
    backbone, _ = taught(method, family)
    apart = pooled(backbone, family)
    network = backbone.network
    backbone.network = network.merge_and_unload() if isinstance(network, PeftModel) else network
    inputs = batch(family)[backbone.inputs.key]
    program = torch.onnx.export(Pooled(backbone).eval(), (inputs,), dynamo=True, verbose=False)
    graph = program.model_proto
    (again,) = ReferenceEvaluator(graph).run(None, {graph.graph.input[0].name: inputs.numpy()})
    torch.testing.assert_close(torch.from_numpy(again), apart, atol=1e-4, rtol=1e-4)


def without_dropout(module: nn.Module) -> None:
    for part in module.modules():
        if isinstance(part, nn.Dropout):
            part.p = 0.0


@pytest.mark.parametrize("method", METHODS)
def test_the_config_comes_back_as_it_went_in(method: str) -> None:
    family = next(f for m, f in PAIRS if m == method)
    config = tuners.parse_tuner({"method": method})
    before = config.model_dump_json()
    tuners.attach(untouched(family), config)
    assert config.model_dump_json() == before
