"""Every method of pre-training through the same checks, found through the registry."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch
from torch import Tensor, nn

from galenic.core import registry
from galenic.core.config import Config
from galenic.core.errors import BackboneError
from galenic.core.prediction import evaluating
from galenic.models.backbone import Backbone, open_backbone
from galenic.objectives import pretraining

METHODS = registry.modules("galenic.objectives.pretraining")
SIDE = 64
NETWORKS = {
    "vit": f"builtin:vit?width=32&depth=2&heads=2&image={SIDE}&patch=16",
    "convolutional": "builtin:efficientnet-lite0#random",
}
# By default its three layers have 150 million weights.
NARROW = {"barlow_twins": {"dim": 256}}


@pytest.fixture(params=METHODS)
def method(request: pytest.FixtureRequest) -> str:
    name: str = request.param
    return name


def opened(family: str) -> Backbone:
    torch.manual_seed(0)
    size = SIDE if family == "convolutional" else None
    return open_backbone(NETWORKS[family], size=size)


def families(method: str) -> list[str]:
    enters = pretraining.capabilities(method).enters
    return list(NETWORKS) if "any" in enters else [name for name in NETWORKS if name in enters]


def built(method: str, seed: int = 0) -> tuple[Backbone, Config, nn.Module]:
    backbone = opened(families(method)[0])
    config = pretraining.parse({"method": method} | NARROW.get(method, {}))
    return backbone, config, pretraining.build(backbone, config, seed)


def batch(config: Config, size: int = 4) -> dict[str, Tensor]:
    draw = torch.Generator().manual_seed(0)
    views, side = pretraining.views(config), SIDE * pretraining.scale(config)
    shape = (size, views, 3, side, side) if views > 1 else (size, 3, side, side)
    found = {"pixel_values": torch.randn(shape, generator=draw), "draws": torch.arange(size)}
    tokenizer = pretraining.tokenizer(config)
    if tokenizer is not None:
        text = tokenizer(["a dark oval mass without a shadow"] * size, return_tensors="pt")
        words = [-1 if word is None else word for word in text.word_ids()]
        found |= {key: text[key] for key in ("input_ids", "attention_mask")}
        found["words"] = torch.tensor(words).expand(size, -1)
    return found


def test_names_its_paper_and_says_what_it_enters(method: str) -> None:
    declared = pretraining.capabilities(method)
    assert declared.paper and families(method)
    code = (
        "import sys\nfrom galenic.objectives import pretraining\n"
        f"pretraining.capabilities({method!r})\nprint('torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"


def test_loss_is_the_mean_of_the_losses_and_trains_what_requires_it(method: str) -> None:
    _, config, objective = built(method)
    assert not hasattr(objective, "config"), "the engine would write to it"
    outputs = objective.train()(**batch(config))
    assert outputs["loss"].ndim == 0 and outputs["loss"].isfinite()
    arrays = {name: value.detach().numpy() for name, value in outputs.items() if value.ndim}
    assert all(len(values) == 4 for values in arrays.values())
    whole = pretraining.together(config, arrays)
    assert (whole is None) == ("losses" in arrays)
    figure = arrays["losses"].mean() if whole is None else whole
    assert figure == pytest.approx(outputs["loss"].item(), rel=1e-5)
    outputs["loss"].backward()
    idle = [n for n, p in objective.named_parameters() if p.requires_grad and p.grad is None]
    assert idle == []


def test_a_batch_always_means_the_same(method: str) -> None:
    found: list[dict[str, Tensor]] = []
    for _ in range(2):
        _, config, objective = built(method)
        given = batch(config)
        with evaluating(objective), torch.no_grad():
            torch.manual_seed(len(found))
            found += [objective(**given), objective(**given)]
    assert all(torch.equal(one[name], found[0][name]) for one in found for name in found[0])


def test_the_network_is_an_ordinary_one_afterwards(method: str) -> None:
    backbone, config, objective = built(method)
    plain = opened(families(method)[0]).network
    objective.train()(**batch(config))["loss"].backward()
    free = [p for p in objective.parameters() if p.requires_grad]
    torch.optim.SGD(free, 1e-3).step()
    hook = pretraining.after_step(objective, config)
    if hook is not None:
        hook(1, 10)
    pretraining.finish(objective, config)
    plain.load_state_dict(backbone.network.state_dict(), strict=True)
    pixels = torch.randn(4, 3, SIDE, SIDE, generator=torch.Generator().manual_seed(0))
    backbone.eval()
    with torch.no_grad():
        trained = backbone(pixel_values=pixels).pooled
        again = opened(families(method)[0]).eval()
        again.network.load_state_dict(backbone.network.state_dict())
        torch.testing.assert_close(again(pixel_values=pixels).pooled, trained)


def test_pictures_are_those_of_the_batch(method: str) -> None:
    _, config, objective = built(method)
    given = batch(config)
    with evaluating(objective):
        shown = pretraining.pictures(objective, config, given)
    if shown is None:
        return
    assert shown.shape[0] == 4 and shown.shape[2:] == given["pixel_values"].shape[1:]
    assert torch.equal(torch.from_numpy(shown[:, 0]), given["pixel_values"])


@pytest.mark.parametrize("family", NETWORKS)
def test_a_family_that_it_does_not_enter_is_refused_unchanged(method: str, family: str) -> None:
    if family in families(method):
        pytest.skip("entered")
    backbone = opened(family)
    before = {name: tensor.clone() for name, tensor in backbone.network.state_dict().items()}
    with pytest.raises(BackboneError):
        pretraining.build(backbone, pretraining.parse({"method": method}), 0)
    after = backbone.network.state_dict()
    assert set(after) == set(before)
    assert all(torch.equal(after[name], tensor) for name, tensor in before.items())
