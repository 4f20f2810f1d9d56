"""The distillation token, the losses of a taught student, and what a teacher is not."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers import DeiTModel, ViTConfig, ViTModel

from galenic.core.errors import BackboneError
from galenic.models.heads import LinearHead
from galenic.models.token import with_token
from galenic.objectives.classification import Classifier
from galenic.objectives.distillation import SEEN, Distiller, TwoHeads, soft, together

CONFIG = ViTConfig(
    hidden_size=32, num_hidden_layers=2, num_attention_heads=4, intermediate_size=64,
    image_size=16, patch_size=8,
)  # fmt: skip


class Pair(nn.Module):
    """Two tokens [B, 2, 6] of an input [B, 4]."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(4, 12)

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x).tanh().unflatten(1, (2, 6))


class First(nn.Module):
    def __init__(self, pair: Pair) -> None:
        super().__init__()
        self.pair = pair

    def forward(self, x: Tensor) -> Tensor:
        return self.pair(x)[:, 0]


def student(kind: Any = "multiclass", **options: Any) -> Distiller:
    torch.manual_seed(0)
    heads = TwoHeads(6, 1 if kind == "binary" else 3)
    for parameter in heads.parameters():
        nn.init.normal_(parameter)
    return Distiller(Classifier(Pair(), heads, kind), **options)


def batch(classes: int = 3) -> dict[str, Tensor]:
    torch.manual_seed(1)
    return {"x": torch.randn(8, 4), "labels": torch.arange(8) % classes}


def test_losses_are_those_of_a_loop() -> None:
    given, answers = batch(), torch.randn(8, 3)
    for mode, tau in (("hard", 3.0), ("soft", 2.0)):
        model = student(mode=mode, alpha=0.3, tau=tau)
        pair = model.head(model.encoder(given["x"])).detach().double().numpy()
        total = 0.0
        for (own, taught), said, label in zip(pair, answers.numpy(), given["labels"], strict=True):
            total -= 0.7 * (own[label] - np.log(np.exp(own).sum()))
            log_student = taught / tau - np.log(np.exp(taught / tau).sum())
            target = np.exp(said / tau) / np.exp(said / tau).sum()
            if mode == "hard":
                total -= 0.3 * (taught[said.argmax()] - np.log(np.exp(taught).sum()))
            else:
                total += 0.3 * tau**2 * (target * (np.log(target) - log_student)).sum()
        found = model(**given, teacher=answers)["loss"].item()
        assert found == pytest.approx(total / 8, rel=1e-5)


def test_agreement_costs_nothing_and_the_temperature_keeps_the_gradient() -> None:
    logits = torch.randn(5, 4, requires_grad=True)
    assert soft(logits, logits.detach(), 2.5).item() == pytest.approx(0, abs=1e-6)
    other = torch.randn(5, 4)
    # For a high temperature it is half the squared distance of centred logits over the classes.
    far = soft(logits.double(), other.double(), 1e3)
    gap = (logits - logits.mean(1, keepdim=True)) - (other - other.mean(1, keepdim=True))
    assert far.item() == pytest.approx((gap**2).sum(1).mean().item() / 8, rel=1e-2)


def test_without_a_share_of_the_teacher_the_class_head_trains_plainly() -> None:
    given = batch()
    model = student(alpha=0.0, mode="soft")
    model(**given, teacher=torch.randn(8, 3))["loss"].backward()
    plain = Classifier(First(model.encoder), model.head.own, "multiclass")
    found = {n: p.grad.clone() for n, p in model.named_parameters()}
    model.zero_grad()
    plain(**given)["loss"].backward()
    for name, parameter in model.head.own.named_parameters():
        assert torch.equal(found[f"head.own.{name}"], parameter.grad)
    torch.testing.assert_close(found["encoder.layer.weight"], model.encoder.layer.weight.grad)
    assert not any(found[f"head.taught.linear.{leaf}"].any() for leaf in ("weight", "bias"))


@pytest.mark.parametrize("kind", ["binary", "multiclass"])
def test_the_prediction_is_the_mean_of_both_softmaxes(kind: str) -> None:
    model = student(kind)
    given = batch()["x"]
    own, taught = model.head(model.encoder(given)).unbind(1)
    logits = model(x=given)["logits"]
    if kind == "binary":
        mean = (own.sigmoid() + taught.sigmoid())[:, 0] / 2
        torch.testing.assert_close(logits.sigmoid(), mean)
    else:
        torch.testing.assert_close(logits.softmax(1), (own.softmax(1) + taught.softmax(1)) / 2)
    sure = torch.tensor([300.0])
    assert together(sure, -sure).item() == pytest.approx(0.0, abs=1e-4)


@pytest.mark.parametrize("mode", ["hard", "soft"])
def test_a_binary_student_learns_as_one_of_two_classes(mode: Any) -> None:
    given, answers = batch(2), torch.randn(8)
    model = student("binary", mode=mode, alpha=1.0)
    two = student("multiclass", mode=mode, alpha=1.0)
    taught = model.head(model.encoder(given["x"]))[:, 1, 0]
    pair = (torch.stack([v * 0, v], dim=1) for v in (taught, answers))
    expected = two._lesson(*pair)
    torch.testing.assert_close(model(**given, teacher=answers)["loss"], expected)


def test_no_gradient_and_no_training_mode_reach_the_teacher() -> None:
    given = batch()
    inner = nn.Sequential(nn.Linear(4, 6), nn.BatchNorm1d(6), nn.Dropout(0.5))

    class Plain(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = inner

        def forward(self, y: Tensor) -> Tensor:
            return self.inner(y)

    teacher = Classifier(Plain(), LinearHead(6, 3), "multiclass").train()
    nn.init.normal_(teacher.head.linear.weight)
    before = {n: t.clone() for n, t in teacher.state_dict().items()}
    model = student(mode="soft")
    model.learn_from(teacher)
    model.train()
    found = model(**given, **{SEEN + "y": given["x"]})
    found["loss"].backward()
    assert not any(part.training for part in teacher.modules())
    assert all(p.grad is None for p in teacher.parameters())
    assert all(torch.equal(before[n], t) for n, t in teacher.state_dict().items())
    assert len(list(model.parameters())) == 2 + 4
    ahead = model(**given, teacher=teacher(y=given["x"])["logits"])
    torch.testing.assert_close(found["loss"], ahead["loss"])


def test_both_tokens_differ_though_the_teacher_says_what_the_labels_say() -> None:
    torch.manual_seed(0)
    network = with_token(ViTModel(CONFIG, add_pooling_layer=False)).train()
    optimiser = torch.optim.AdamW(network.parameters(), lr=1e-2)
    heads = TwoHeads(32, 2)
    optimiser.add_param_group({"params": list(heads.parameters())})
    pixels, labels = torch.randn(6, 3, 16, 16), torch.arange(6) % 2
    for _ in range(4):
        own, taught = heads(network(pixels).last_hidden_state[:, :2]).unbind(1)
        loss = functional.cross_entropy(own, labels) + functional.cross_entropy(taught, labels)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    state = network.state_dict()
    gap = state["embeddings.distillation_token"] - state["embeddings.cls_token"]
    assert gap.abs().max() > 1e-3
    tokens = network.eval()(pixels).last_hidden_state
    assert (tokens[:, 0] - tokens[:, 1]).abs().max() > 1e-2


def test_a_vit_becomes_a_deit_with_its_own_weights() -> None:
    torch.manual_seed(2)
    vit = ViTModel(CONFIG, add_pooling_layer=False).eval()
    nn.init.normal_(vit.embeddings.cls_token)
    before = {name: tensor.clone() for name, tensor in vit.state_dict().items()}
    made = with_token(vit)
    assert isinstance(made, DeiTModel)
    assert with_token(made) is made
    assert all(torch.equal(before[name], tensor) for name, tensor in vit.state_dict().items())
    after = made.state_dict()
    new = {"embeddings.distillation_token", "embeddings.position_embeddings"}
    assert all(torch.equal(before[name], after[name]) for name in set(after) - new)
    places, old = after["embeddings.position_embeddings"], before["embeddings.position_embeddings"]
    assert torch.equal(places[:, 1:], old)
    assert torch.equal(places[:, :1], old[:, :1])
    # Told to be the class token, the new one gives what that gives.
    made.embeddings.distillation_token.data.copy_(made.embeddings.cls_token)
    tokens = made(torch.randn(2, 3, 16, 16)).last_hidden_state
    assert tokens.shape == (2, 2 + 4, 32)
    torch.testing.assert_close(tokens[:, 0], tokens[:, 1])
    with pytest.raises(BackboneError, match="Linear can be given no distillation token"):
        with_token(nn.Linear(2, 2))
