"""The bootstrap interval of an AUROC: all resamples at once against a loop over scikit-learn."""

from __future__ import annotations

from collections.abc import Iterable
from importlib.metadata import version

import numpy as np
from sklearn.metrics import roc_auc_score

from benchmarks.harness import alternate, write_result
from galenic.evaluation import weighted
from galenic.evaluation.bootstrap import counts_of, resampled

PATIENTS, RESAMPLES, CHECKED = 10_000, 10_000, 200


def main() -> None:
    """Measure, check that both sides give the same values on the same draws, write the result."""
    draw = np.random.default_rng(0)
    y = draw.integers(0, 2, PATIENTS)
    scores = draw.normal(size=PATIENTS) + y
    patients = np.arange(PATIENTS)

    def ours() -> None:
        values = resampled(lambda w: weighted.auroc(y, scores, w), patients, RESAMPLES, seed=0)
        np.quantile(values, [0.025, 0.975])

    def loop(drawn: Iterable[np.ndarray]) -> list[float]:
        return [roc_auc_score(y[rows], scores[rows]) for rows in drawn]

    def peer() -> None:
        again = np.random.default_rng(0)
        values = loop(again.integers(0, PATIENTS, PATIENTS) for _ in range(RESAMPLES))
        np.quantile(values, [0.025, 0.975])

    drawn = draw.integers(0, PATIENTS, (CHECKED, PATIENTS))
    got = weighted.auroc(y, scores, counts_of(drawn, PATIENTS))
    gap = float(np.abs(got - np.array(loop(drawn))).max())
    assert gap < 1e-9, f"the values differ by {gap}"
    write_result(
        name="bootstrap_auroc",
        unit="s",
        times=alternate(ours, peer, rounds=5, warmup=0),
        peer={"name": "a loop over scikit-learn", "version": version("scikit-learn")},
        reach="at most 1/50",
        met=lambda ratio: ratio <= 1 / 50,
        same_result=f"{CHECKED} resamples with the same draws, largest difference {gap:.1e}",
    )


if __name__ == "__main__":
    main()
