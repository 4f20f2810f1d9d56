"""The baseline of tables: gradient boosting on a summary of every channel."""

from __future__ import annotations

from typing import Any

import numpy as np
from scipy.special import logit
from sklearn.ensemble import HistGradientBoostingClassifier

from galenic.core.errors import ConfigError

Array = np.ndarray[Any, np.dtype[Any]]


def tree_logits(kind: str, table: Array, targets: Array, train: Array, seed: int) -> Array:
    """Logits of every row, from trees that saw the training rows.

    Args:
        kind: Of the label.
        table: [n, F], NaN where nothing was measured.
        targets: [n] (binary), or [n, C] with NaN for unknown (multilabel).
        train: Training rows.
        seed: Of the trees.

    Returns:
        float32 [n, 1] or [n, C].

    Raises:
        ConfigError: If the label is of another kind.
    """
    if kind not in ("binary", "multilabel"):
        raise ConfigError(
            f"network.kind=trees cannot predict a {kind} label.",
            expected="a label that is binary or multilabel",
            next_step="network.kind=irregular",
        )
    columns = targets.reshape(len(targets), -1).astype(np.float64)
    found = []
    for column in columns.T:
        rows = train[~np.isnan(column[train])]
        model = HistGradientBoostingClassifier(random_state=seed)
        model.fit(table[rows], column[rows].astype(int))
        found.append(model.predict_proba(table)[:, 1])
    return logit(np.clip(np.stack(found, axis=1), 1e-6, 1 - 1e-6)).astype(np.float32)
