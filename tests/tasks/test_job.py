"""What every task does alike: quick copies, rates by layer, and options that are not ignored."""

from __future__ import annotations

import numpy as np
import pytest
from torch import nn

from galenic.core.config import parse
from galenic.core.errors import ConfigError
from galenic.core.schedule import Schedule
from galenic.data.splits import Splits
from galenic.models.backbone import open_backbone
from galenic.tasks import _noise_mask_config, detect, forecast, lego, pretrain
from galenic.tasks._job import QUICK, QUICK_RESAMPLES, layer_depths, quickened, warn_of_few_judges


@pytest.mark.parametrize(
    ("config", "schedules"),
    [
        (lego.Config(data="x.csv"), ["schedule", "fuse.schedule"]),
        (_noise_mask_config.Config(data="x.csv"), ["schedule", "finetune"]),
        (forecast.Config(data="events"), ["schedule", "pretraining"]),
        (pretrain.Config(data="x.csv"), ["schedule"]),
    ],
)
def test_a_quick_copy_is_short_in_every_schedule(config, schedules: list[str]) -> None:
    before, quick = config.model_dump(), quickened(config).model_dump()
    for name in schedules:
        here, there = quick, before
        for key in name.split("."):
            here, there = here[key], there[key]
        assert here == there | QUICK
    scored = quick if "resamples" in quick else quick["score"]
    assert scored["resamples"] == QUICK_RESAMPLES
    assert config.model_dump() == before


def test_a_parameter_outside_the_backbone_has_the_rate_of_its_end() -> None:
    backbone = open_backbone("builtin:vit?size=tiny#random", modality="image")
    objective = nn.ModuleDict(
        {"deep": nn.ModuleDict({"inside": backbone}), "head": nn.Linear(2, 1)}
    )
    assert layer_depths(objective, backbone.network, Schedule()) is None
    depths = layer_depths(objective, backbone.network, Schedule(layer_decay=0.5))
    assert depths is not None
    assert set(depths) == {name for name, _ in objective.named_parameters()}
    first = {d for name, d in depths.items() if name.startswith("deep.inside.network.embeddings")}
    assert first == {0}
    assert depths["head.weight"] == depths["head.bias"] == max(depths.values()) == 13


def test_a_control_moves_labels_of_training_and_validation_alone() -> None:
    splits = Splits(np.arange(0, 60), np.arange(60, 80), np.arange(80, 99))
    source = splits.shuffled(100, seed=3)
    assert (source[80:] == np.arange(80, 100)).all()
    assert sorted(source[:80]) == list(range(80))
    assert (source[:60] >= 60).any()
    assert (source[:80] != np.arange(80)).mean() > 0.9
    assert (source == splits.shuffled(100, seed=3)).all()
    assert (source != splits.shuffled(100, seed=4)).any()


@pytest.mark.parametrize(
    ("kind", "values"),
    [
        (pretrain.Config, {"data": "x.csv", "schedule": {"layer_decay": 0.5}}),
        (pretrain.Config, {"data": "x.csv", "schedule": {"balance": True}}),
        (forecast.Config, {"data": "events", "schedule": {"balance": True}}),
        (forecast.Config, {"data": "events", "pretraining": {"layer_decay": 0.5}}),
        (
            detect.Config,
            {"data": "x.csv", "detector": {"kind": "hub/yolos"}, "schedule": {"layer_decay": 0.5}},
        ),
    ],
)
def test_what_a_task_cannot_heed_is_refused(kind, values) -> None:
    with pytest.raises(ConfigError, match="layer_decay"):
        parse(kind, values)


def test_a_handful_of_judges_is_told_of(capsys: pytest.CaptureFixture[str]) -> None:
    told = []
    for count, schedule in (
        (3, Schedule()),
        (0, Schedule()),
        (4, Schedule(keep_best=False)),
        (5, Schedule(**QUICK)),
        (20, Schedule()),
    ):
        warn_of_few_judges(np.repeat(np.arange(count), 50), schedule)
        told.append(capsys.readouterr().err)
    assert "Validation holds 3 patient(s)" in told[0]
    assert told[1:] == [""] * 4
