"""Diagnosis phrases of ICD-10-CM (April 2026) and the chapter each belongs to."""

from __future__ import annotations

import pandas as pd

from galenic.core.seeding import rng
from galenic.data.samples._sample import SampleCohort

PHRASES = 2000
SEED = 2026


def build() -> SampleCohort:
    """About 2,000 phrases of billable codes, evenly over 22 chapters.

    The three-character category plays the patient: phrases of one category are near copies of
    each other, so a category must stand on one side of a split.
    """
    import simple_icd_10_cm as icd

    rows = []
    for code in icd.get_all_codes(with_dots=True):
        if not icd.is_leaf(code):
            continue
        ancestors = icd.get_ancestors(code)
        category = next((a for a in [code, *ancestors] if icd.is_category(a) and len(a) == 3), None)
        if category is None or not icd.is_chapter(ancestors[-1]):
            continue
        chapter = icd.get_description(ancestors[-1]).rpartition(" (")[0]
        rows.append((category, icd.get_description(code), chapter))
    table = pd.DataFrame(rows, columns=["category", "phrase", "chapter"])
    draw = rng(SEED, "icd10")
    table = table.iloc[draw.permutation(len(table))]
    # Round robin over categories within a chapter: rare categories are seen as well as common.
    turn = table.groupby("category").cumcount()
    table = table.assign(turn=turn).sort_values("turn", kind="stable")
    each = PHRASES // table["chapter"].nunique() + 1
    chosen = table.groupby("chapter", sort=True).head(each).sort_values(["category", "phrase"])
    return SampleCohort(
        table=chosen[["category", "phrase", "chapter"]].reset_index(drop=True),
        inputs=["phrase"],
        label="chapter",
        patient_id="category",
        title="ICD-10-CM, April 2026: name the chapter of a diagnosis phrase",
        license="ICD-10-CM is in the public domain; the carrying package is MIT",
    )
