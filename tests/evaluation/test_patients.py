"""From slices to patients: the rule, its monotony, and prevalence arithmetic."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from galenic.evaluation.operating import rates
from galenic.evaluation.patients import (
    PatientRule,
    patient_scores,
    ppv_at,
    ptp,
    tuned_threshold,
    wilson,
)

RULES = [
    PatientRule(),
    PatientRule(min_slices=3),
    PatientRule(fraction=0.3),
    PatientRule(min_slices=2, fraction=0.5),
    PatientRule(min_slices=2, consecutive=True),
    PatientRule(min_slices=4, consecutive=True),
]


def slices(seed: int) -> tuple[np.ndarray, np.ndarray]:
    draw = np.random.default_rng(seed)
    patients = np.repeat(draw.permutation(12), draw.integers(1, 9, 12))
    return draw.random(len(patients)).round(1), patients


def called_by_hand(
    scores: np.ndarray, patients: np.ndarray, rule: PatientRule, t: float
) -> list[bool]:
    """The rule in words, patient by patient."""
    found = []
    for patient in np.unique(patients):
        counts = scores[patients == patient] >= t
        if rule.consecutive:
            m = rule.min_slices
            called = any(counts[k : k + m].all() for k in range(len(counts) - m + 1))
        else:
            called = counts.sum() >= rule.min_slices
            if rule.fraction is not None:
                called &= counts.mean() >= rule.fraction - 1e-12
        found.append(bool(called))
    return found


@settings(deadline=None, max_examples=40)
@given(st.integers(0, 10**6), st.sampled_from(RULES), st.sampled_from([0.1, 0.35, 0.5, 0.8, 1.0]))
def test_the_score_holds_the_decision_at_every_threshold(
    seed: int, rule: PatientRule, t: float
) -> None:
    scores, patients = slices(seed)
    called = patient_scores(scores, patients, rule) >= t
    assert called.tolist() == called_by_hand(scores, patients, rule, t)


def test_twice_the_slices_change_no_decision_by_the_surest() -> None:
    scores, patients = slices(0)
    twice = patient_scores(np.tile(scores, 2), np.tile(patients, 2), PatientRule())
    np.testing.assert_array_equal(twice, patient_scores(scores, patients, PatientRule()))


def test_the_order_of_slices_matters_to_neighbours_alone() -> None:
    scores, patients = slices(4)
    order = np.random.default_rng(1).permutation(len(scores))
    changed = [
        not np.array_equal(
            patient_scores(scores, patients, rule),
            patient_scores(scores[order], patients[order], rule),
        )
        for rule in RULES
    ]
    assert changed == [rule.consecutive for rule in RULES]


@settings(deadline=None, max_examples=30)
@given(st.integers(0, 10**6), st.sampled_from(["t", "m"]), st.booleans())
def test_stricter_rules_find_fewer_and_spare_more(seed: int, what: str, consecutive: bool) -> None:
    scores, patients = slices(seed)
    ill = (np.arange(12) % 3 == 0).astype(int)
    ladder = []
    for step in range(1, 6):
        m = step if what == "m" else 2
        t = 0.5 if what == "m" else step / 6
        found = patient_scores(scores, patients, PatientRule(min_slices=m, consecutive=consecutive))
        ladder.append(rates(ill, np.where(np.isfinite(found), found, -1), t, np.ones((1, 12)))[0])
    sensitivity, specificity = np.array(ladder)[:, 0], np.array(ladder)[:, 1]
    assert (np.diff(sensitivity) <= 0).all() and (np.diff(specificity) >= 0).all()


def test_a_patient_of_500_slices_counts_once() -> None:
    patients = np.r_[np.zeros(500, int), 1, 2, 3]
    scores = np.r_[np.full(500, 0.9), 0.9, 0.1, 0.1]
    ill = np.array([1, 0, 1, 0])
    found = patient_scores(scores, patients, PatientRule())
    figures, told = ptp(ill, found, 0.5, resamples=200, level=0.95, seed=0, prevalences=(0.5,))
    assert told["counts"] == {"tp": 1, "fp": 1, "fn": 1, "tn": 1}
    assert figures["ptp_accuracy"].value == 0.5 and figures["ptp_f1"].value == 0.5
    assert told["precision_at"]["0.5"]["value"] == pytest.approx(0.5)


def test_precision_at_a_prevalence_is_that_of_patients_drawn_so() -> None:
    draw = np.random.default_rng(0)
    for prevalence in (0.1, 0.3):
        ill = draw.random(400_000) < prevalence
        called = np.where(ill, draw.random(len(ill)) < 0.8, draw.random(len(ill)) < 0.1)
        counted = (ill & called).sum() / called.sum()
        assert ppv_at(0.8, 0.9, prevalence) == pytest.approx(counted, abs=0.005)
    assert math.isnan(ppv_at(0.0, 1.0, 0.5))


def test_the_threshold_lies_between_patients_and_decides_as_youden_does() -> None:
    ill = np.array([1, 1, 0, 0, 1])
    scores = np.array([0.9, 0.6, 0.2, 0.1, -np.inf])
    threshold = tuned_threshold(ill, scores)
    assert threshold == pytest.approx(0.4)
    assert (scores >= threshold).tolist() == [True, True, False, False, False]
    assert math.isnan(tuned_threshold(np.ones(3), scores[:3]))


def test_wilson_is_the_interval_of_the_score_test() -> None:
    # Its ends are the shares p at which (hits / n - p)^2 = z^2 p (1 - p) / n.
    z = 1.959963984540054
    for hits, total in ((0, 10), (3, 10), (10, 10), (27, 30)):
        for p in wilson(hits, total):
            assert (hits / total - p) ** 2 == pytest.approx(z**2 * p * (1 - p) / total, abs=1e-9)
    assert all(math.isnan(end) for end in wilson(0, 0))


def test_neighbours_and_shares_do_not_go_together() -> None:
    with pytest.raises(ValidationError, match="consecutive"):
        PatientRule(consecutive=True, fraction=0.1)
