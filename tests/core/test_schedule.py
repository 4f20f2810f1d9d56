"""The schedule is data: typed, bounded, and closed."""

from __future__ import annotations

import pytest

from galenic.core.config import parse
from galenic.core.errors import ConfigError
from galenic.core.schedule import Schedule


@pytest.mark.parametrize(
    "values",
    [
        {"lr": 0}, {"lr": "fast"}, {"epochs": 0}, {"batch_size": 0}, {"accumulate": 0},
        {"layer_decay": 1.5}, {"clip_norm": 0}, {"precision": "int8"}, {"workers": -1},
        {"patience": 0}, {"max_steps": 0}, {"warmup": -1}, {"weight_decay": -0.1},
    ],
)  # fmt: skip
def test_what_cannot_be_is_refused_by_name(values: dict[str, object]) -> None:
    with pytest.raises(ConfigError, match=next(iter(values))):
        parse(Schedule, values)


def test_a_wrong_key_names_the_right_one() -> None:
    with pytest.raises(ConfigError, match="'weight_decay'"):
        parse(Schedule, {"weigth_decay": 0.1})


def test_every_field_of_effect_is_described() -> None:
    obvious = {"eval_batch_size", "gradient_checkpointing"}
    silent = {name for name, f in Schedule.model_fields.items() if not f.description}
    assert silent <= obvious
