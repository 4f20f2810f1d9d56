"""Runs that trained the blocks of others: whether these fit, and whether they saw what is scored."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from galenic.core.errors import ConfigError, DataError
from galenic.core.progress import tell
from galenic.data.cohort import Cohort
from galenic.data.labels import LabelSpec
from galenic.tasks._predict_results import Trained

Array = np.ndarray[Any, np.dtype[Any]]


def require_unseen(origins: Mapping[str, Trained], cohort: Cohort, held: Array) -> None:
    """Check that no block was trained on a sample that it is scored on.

    Args:
        origins: By input, the run that trained its block.
        cohort: Of this run.
        held: Its rows of validation and test.

    Raises:
        DataError: If one was.
    """
    unknown = []
    for name, origin in origins.items():
        run = origin.run
        if run.provenance["data"]["fingerprint"] != cohort.fingerprint:
            unknown.append(f"'{name}'")
            continue
        parts = run.read_json("splits.json")
        if met := len(np.intersect1d(parts["train"], held)):
            raise DataError(
                f"The block of '{name}' was trained on {met} of the {len(held)} samples of "
                "validation and test.",
                where=f"trained.{name}: {run.path.name}",
                expected=f"the split of that run: split.how={parts['how']}, seed={parts['seed']}",
                next_step="Give this run the same seed and split, or train the block in it.",
            )
    if unknown:
        tell(
            f"The blocks of {', '.join(unknown)} come from another manifest: whether they were "
            "trained on patients of validation or test here cannot be checked."
        )


def require_alike(origins: Mapping[str, Trained], label: LabelSpec) -> None:
    """Check that all blocks say what `label` does, in one unit.

    Raises:
        ConfigError: If one has another kind of label, other classes, or another unit.
    """
    for name, origin in origins.items():
        for what, found, expected in (
            ("another kind of label", [origin.kind], [label.kind]),
            ("other classes", origin.classes, label.classes),
        ):
            if list(found) != list(expected):
                raise ConfigError(
                    f"The run that trained '{name}' has {what}: {', '.join(found)}.",
                    where=f"trained.{name}",
                    expected=", ".join(expected),
                )
    units = {origin.unit for origin in origins.values()}
    if len(units) > 1:
        said = ", ".join(f"{mean:g} +- {spread:g}" for mean, spread in sorted(units))
        raise ConfigError(
            f"The blocks count in different units, each the mean and deviation of its run: {said}.",
            where="trained",
            expected="blocks of one run, or of runs with the same training labels",
            next_step="Train them together.",
        )
