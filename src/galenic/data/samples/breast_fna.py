"""Breast masses under the needle: 30 measures of cell nuclei, benign or malignant."""

from __future__ import annotations

from galenic.data.samples._sample import SampleCohort


def build() -> SampleCohort:
    """The 569 fine-needle aspirates of Wisconsin that scikit-learn carries."""
    from sklearn.datasets import load_breast_cancer

    found = load_breast_cancer(as_frame=True)
    table = found.data.copy()
    table["diagnosis"] = ["benign" if value else "malignant" for value in found.target]
    return SampleCohort(
        table=table,
        inputs=list(found.data.columns),
        label="diagnosis",
        title="Wisconsin breast cancer: benign or malignant from cell nuclei",
        license="CC BY 4.0 (UCI), carried by scikit-learn",
    )
