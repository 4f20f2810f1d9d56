"""Features of a teacher, distilled: what is equal costs nothing, and the teacher stays."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from galenic.core.errors import BackboneError, DataError
from galenic.models.backbone import Backbone, open_backbone
from galenic.objectives import pretraining
from galenic.objectives.pretraining._features import FeatureDistillation

STUDENT = "builtin:vit?width=24&depth=2&heads=2&image=32&patch=8"
TEACHER = "builtin:resnet10?width=4"


def built(
    student: str = STUDENT, teacher: str = TEACHER, **settings: object
) -> FeatureDistillation:
    torch.manual_seed(0)
    size = None if student == STUDENT else 64
    config = {"method": "feature_distillation", "teacher": teacher, **settings}
    backbone = open_backbone(student, size=size)
    found = pretraining.build(backbone, pretraining.parse(config), 0)
    assert isinstance(found, FeatureDistillation)
    return found


def batch(size: int = 6, side: int = 32) -> dict[str, Tensor]:
    draw = torch.Generator().manual_seed(1)
    pixels = torch.randn(size, 3, side, side, generator=draw)
    return {"draws": torch.arange(size), "pixel_values": pixels}


def agreed(objective: FeatureDistillation) -> FeatureDistillation:
    """The same, with heads that pass on what they get, standardised as the teacher's."""
    objective.pooled = objective.pooled_norm
    mapped = objective.mapped_norm

    class Places(nn.Module):
        def forward(self, tokens: Tensor) -> Tensor:
            channels = tokens.transpose(1, 2).unsqueeze(-1)
            return mapped(channels).squeeze(-1).transpose(1, 2)

    objective.mapped = Places()
    return objective


def test_a_student_that_is_its_teacher_has_no_loss() -> None:
    objective = agreed(built(student=TEACHER))
    student: Backbone = objective.backbone
    student.network.load_state_dict(objective._teacher[0].network.state_dict())
    objective.train()
    student.eval()
    losses = objective(**batch(side=64))
    assert losses["losses"].abs().max() < 1e-5
    with torch.no_grad():
        next(iter(student.network.parameters())).mul_(-1)
    assert objective(**batch(side=64))["losses"].min() > 1e-3


def test_the_loss_is_that_of_the_paper() -> None:
    objective = built(places=0.5).train()
    found = objective(**batch())
    teacher = objective._teacher[0]
    with torch.no_grad():
        wanted = teacher(pixel_values=(batch()["pixel_values"] * objective.scale + objective.shift))
        own = objective.backbone(pixel_values=batch()["pixel_values"])

    def standard(values: Tensor) -> Tensor:
        """Each channel, the last axis, with mean 0 and spread 1 over all others."""
        flat = values.reshape(-1, values.shape[-1])
        spread = (flat.var(dim=0, unbiased=False) + 1e-5).sqrt()
        return (values - flat.mean(dim=0)) / spread

    def cosine(a: Tensor, b: Tensor) -> Tensor:
        return (a * b).sum(-1) / (a.norm(dim=-1) * b.norm(dim=-1))

    pooled = 1 - cosine(objective.pooled(own.pooled), standard(wanted.pooled))
    torch.testing.assert_close(found["pooled_losses"], pooled, rtol=1e-4, atol=1e-5)
    # The teacher's map has one place at this size: the student's is its mean there.
    assert teacher.grid == (1, 1) and wanted.tokens.shape[1] == 1
    seen, target = objective.mapped(own.tokens[:, 1:].mean(dim=1)), standard(wanted.tokens[:, 0])
    gap = (seen - target).abs()
    smooth = torch.where(gap < 1, 0.5 * gap**2, gap - 0.5).mean(dim=-1)
    places = 0.9 * (1 - cosine(seen, target)) + 0.1 * smooth
    torch.testing.assert_close(found["place_losses"], places, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(found["losses"], pooled + 0.5 * places, rtol=1e-4, atol=1e-5)


def test_the_teacher_stays_and_is_no_part_of_what_is_saved() -> None:
    objective = built().train()
    teacher = objective._teacher[0]
    before = {name: value.clone() for name, value in teacher.state_dict().items()}
    objective(**batch())["loss"].backward()
    assert not teacher.training
    assert all(p.grad is None for p in teacher.parameters())
    assert all(torch.equal(before[name], value) for name, value in teacher.state_dict().items())
    assert not any("teacher" in name for name in objective.state_dict())
    trained = {id(p) for p in objective.parameters()}
    assert not trained & {id(p) for p in teacher.parameters()}
    # All of the student learns.
    backbone: Backbone = objective.backbone
    still = [name for name, p in backbone.network.named_parameters() if p.grad is None]
    assert still == []


def test_the_teacher_sees_pixels_in_its_own_units() -> None:
    objective = built(teacher="builtin:resnet10?width=4")
    student, teacher = objective.backbone.inputs, objective._teacher[0].inputs
    assert student.mean != teacher.mean
    picture = torch.rand(3, 32, 32)
    mean, std = (torch.tensor(side).view(3, 1, 1) for side in (student.mean, student.std))
    own = (picture - mean) / std
    theirs = (picture - 0.5) / 0.5
    torch.testing.assert_close(own * objective.scale + objective.shift, theirs)


def test_slices_of_a_volume_are_pictures() -> None:
    objective = built().train()
    given = batch(size=6)
    flat = objective(**given)
    volumes = given["pixel_values"].unflatten(0, (2, 3))
    found = objective(draws=torch.arange(2), pixel_values=volumes)
    for name in ("losses", "pooled_losses", "place_losses"):
        torch.testing.assert_close(found[name], flat[name].view(2, 3).mean(dim=1))
    # One volume of several slices can be trained on.
    assert objective(draws=torch.arange(1), pixel_values=volumes[:1])["loss"].isfinite()


def test_a_batch_of_one_picture_is_refused_in_training_alone() -> None:
    objective = built()
    assert objective.eval()(**batch(size=1))["losses"].shape == (1,)
    with pytest.raises(DataError, match="cannot be standardised"):
        objective.train()(**batch(size=1))


def test_networks_that_see_no_pictures_are_refused() -> None:
    with pytest.raises(BackboneError, match="reads tokens"):
        built(teacher="builtin:minilm")
    config = pretraining.parse({"method": "feature_distillation", "teacher": TEACHER})
    with pytest.raises(BackboneError, match="gives no map"):
        pretraining.build(open_backbone("builtin:minilm"), config, 0)
