"""Progression of diabetes one year on, from ten baseline measures."""

from __future__ import annotations

from galenic.data.samples._sample import SampleCohort


def build() -> SampleCohort:
    """The 442 patients of Efron et al. (2004) that scikit-learn carries."""
    from sklearn.datasets import load_diabetes

    found = load_diabetes(as_frame=True, scaled=False)
    table = found.data.copy()
    table["progression"] = found.target
    return SampleCohort(
        table=table,
        inputs=list(found.data.columns),
        label="progression",
        kind="continuous",
        title="Diabetes: progression one year after baseline",
        license="BSD-3-Clause, carried by scikit-learn",
    )
