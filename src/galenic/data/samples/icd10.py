"""Diagnosis phrases of ICD-10-CM (April 2026) and the chapter each belongs to."""

from __future__ import annotations

from functools import cache

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
    return SampleCohort(
        table=_chosen().copy(),
        inputs=["phrase"],
        label="chapter",
        patient_id="category",
        title="ICD-10-CM, April 2026: name the chapter of a diagnosis phrase",
        license="ICD-10-CM is in the public domain; the carrying package is MIT",
    )


@cache
def _chosen() -> pd.DataFrame:
    """Category, phrase and chapter; walking the 75,000 codes takes as long as a small training."""
    import simple_icd_10_cm as icd

    chapters: dict[str, str | None] = {}
    rows = []
    for code in icd.get_all_codes(with_dots=True):
        if icd.is_leaf(code):
            category = code.partition(".")[0]
            if category not in chapters:
                chapters[category] = _chapter(category)
            rows.append((category, code, chapters[category]))
    table = pd.DataFrame(rows, columns=["category", "code", "chapter"]).dropna(ignore_index=True)
    draw = rng(SEED, "icd10")
    table = table.iloc[draw.permutation(len(table))]
    # Round robin over categories within a chapter: rare categories are seen as well as common.
    turn = table.groupby("category").cumcount()
    table = table.assign(turn=turn).sort_values("turn", kind="stable")
    each = PHRASES // table["chapter"].nunique() + 1
    chosen = table.groupby("chapter", sort=True).head(each)
    phrases = [icd.get_description(code) for code in chosen["code"]]
    chosen = chosen.assign(phrase=phrases).sort_values(["category", "phrase"])
    return chosen[["category", "phrase", "chapter"]].reset_index(drop=True)


def _chapter(category: str) -> str | None:
    """Title of the chapter of a three-character category, without its range of codes."""
    import simple_icd_10_cm as icd

    if not (icd.is_valid_item(category) and icd.is_category(category) and len(category) == 3):
        return None
    top = icd.get_ancestors(category)[-1]
    title: str = icd.get_description(top)
    return title.rpartition(" (")[0] if icd.is_chapter(top) else None
