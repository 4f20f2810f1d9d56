"""The one place that touches peft's tables."""

from __future__ import annotations

from typing import Any

from peft.mapping import (
    PEFT_TYPE_TO_CONFIG_MAPPING,
    PEFT_TYPE_TO_PREFIX_MAPPING,
    PEFT_TYPE_TO_TUNER_MAPPING,
)


def register(key: str, config: type, tuner: type, *, prefix: str) -> None:
    """Make `key` known to peft, as if it were one of its own methods.

    peft's own helper wants a member of its closed enum; a plain string in the same tables does
    all that `get_peft_model`, `save_pretrained` and `from_pretrained` ask for.

    Args:
        key: Upper-case name, as it stands in `adapter_config.json`.
        config: Subclass of `peft.PeftConfig`.
        tuner: Subclass of `peft.tuners.tuners_utils.BaseTuner`.
        prefix: What the names of the adapter's tensors start with.

    Raises:
        ValueError: If the key is taken by another method.
    """
    tables: dict[Any, Any] = PEFT_TYPE_TO_CONFIG_MAPPING
    known = tables.get(key)
    if known is not None and known.__qualname__ != config.__qualname__:
        raise ValueError(f"peft already has a method '{key}': {known.__module__}")
    for table, value in (
        (PEFT_TYPE_TO_CONFIG_MAPPING, config),
        (PEFT_TYPE_TO_TUNER_MAPPING, tuner),
        (PEFT_TYPE_TO_PREFIX_MAPPING, prefix),
    ):
        entries: dict[Any, Any] = table
        entries[key] = value
