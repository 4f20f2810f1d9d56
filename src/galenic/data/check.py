"""`galenic check`: what is wrong with a cohort before a model learns it."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np

from galenic.core.errors import DataError, GalenicError
from galenic.data.box_cohort import boxes_of, sizes_of
from galenic.data.cohort import Cohort
from galenic.data.duplicates import near_across
from galenic.data.labels import missing, require_seen, unknown
from galenic.data.manifest import present
from galenic.data.masks import MOST_VALUES, survey
from galenic.data.seen import Seen, everything
from galenic.data.splits import PARTS, SplitConfig, Splits, make_splits

Array = np.ndarray[Any, np.dtype[Any]]
Level = Literal["error", "warning", "info"]
# A robust z-score beyond which a pixel spacing is worth a look.
OUTLIER = 5.0
SHOWN_ROWS = 20
RARE_CLASS = 5
# The commonest class has so many times the samples of the rarest: accuracy says little.
IMBALANCE = 10


@dataclass(frozen=True)
class Finding:
    """One thing that was noticed.

    Attributes:
        level: An error will break or mislead a training; a warning may.
        code: Short name, stable between versions.
        message: One sentence, without any patient identifier.
        rows: Rows of the manifest, the first twenty.
    """

    level: Level
    code: str
    message: str
    rows: tuple[int, ...] = ()


@dataclass(frozen=True)
class Report:
    """All findings, and plain facts about the cohort."""

    findings: tuple[Finding, ...]
    facts: dict[str, Any] = field(default_factory=dict)


def check(
    cohort: Cohort,
    splits: Splits | None = None,
    look: Callable[[Cohort], Seen] = everything,
) -> Report:
    """Look at every file once, and report what is wrong or odd.

    Args:
        cohort: What to look at.
        splits: The parts; None for the manifest's own, where it has them.
        look: How far to look: :func:`~galenic.data.seen.everything`, or
            :func:`~galenic.data.seen.headers`, which finds neither copies nor broken content.
    """
    findings = [Finding("warning", "assumed", note) for note in cohort.notes]
    part = np.full(len(cohort), -1)
    if splits is None and cohort.split_column:
        try:
            splits = make_splits(cohort, SplitConfig(how="given"), seed=0)
        except GalenicError as error:
            code = "patient-leak" if "patient" in error.found else "splits"
            findings.append(Finding("error", code, error.message.replace("\n", "; ")))
    if splits is not None:
        for place, name in enumerate(PARTS):
            part[getattr(splits, name)] = place
    findings += _labels(cohort, splits)
    findings += _missing(cohort)
    findings += _elsewhere(cohort)
    seen = look(cohort)
    findings += _unreadable(seen)
    findings += _copies(cohort, seen, part)
    findings += _spacing(seen)
    findings += [
        Finding("warning", "tracing", f"{text} ({len(rows)} row(s))", _rows(rows))
        for text, rows in seen.odd.items()
    ]
    if len(seen.shapes) > 1:
        common = max(seen.shapes, key=lambda shape: seen.shapes[shape])
        text = f"{len(seen.shapes)} different sizes; the commonest is {_by(common)}."
        findings.append(Finding("info", "sizes", text))
    order = {"error": 0, "warning": 1, "info": 2}
    findings.sort(key=lambda finding: order[finding.level])
    return Report(tuple(findings), _facts(cohort))


def _facts(cohort: Cohort) -> dict[str, Any]:
    facts: dict[str, Any] = {
        "rows": len(cohort),
        "patients": len(np.unique(cohort.patient_ids)),
        "inputs": dict(cohort.inputs),
    }
    if cohort.label is not None:
        facts["label"] = cohort.label.kind
        facts["counts"] = _counts(cohort)
    return facts


def _counts(cohort: Cohort) -> dict[str, int]:
    assert cohort.label is not None
    targets = cohort.targets()
    if cohort.label.kind == "continuous":
        return {"known": int((~np.isnan(targets)).sum())}
    if cohort.label.kind == "boxes":
        return {"with boxes": int(targets.sum()), "without": int((targets == 0).sum())}
    if cohort.label.kind == "mask":
        return {"with masks": int((targets >= 0).sum())}
    if cohort.label.kind == "multilabel":
        return {n: int((targets[:, i] == 1).sum()) for i, n in enumerate(cohort.label.classes)}
    return {n: int((targets == i).sum()) for i, n in enumerate(cohort.label.classes)}


def _labels(cohort: Cohort, splits: Splits | None) -> list[Finding]:
    if cohort.label is None:
        return [Finding("warning", "no-label", "The cohort has no label column.")]
    if cohort.label.kind == "boxes":
        return _boxes(cohort)
    if cohort.label.kind == "mask":
        return _masks(cohort)
    found = []
    targets = cohort.targets()
    if splits is not None:
        try:
            require_seen(cohort.label, targets, splits)
        except DataError as error:
            found.append(Finding("error", "unseen-class", error.found))
    blank = missing(targets)
    if blank.any():
        text = f"{int(blank.sum())} of {len(cohort)} rows have no label; they are left out."
        found.append(Finding("warning", "missing-label", text, _rows(np.flatnonzero(blank))))
    rare = {name: n for name, n in _counts(cohort).items() if n < RARE_CLASS}
    if rare:
        names = ", ".join(f"{name} ({n})" for name, n in list(rare.items())[:8])
        found.append(Finding("warning", "rare-class", f"Classes with under {RARE_CLASS}: {names}."))
    return found + _classes(cohort, targets)


def _classes(cohort: Cohort, targets: Array) -> list[Finding]:
    """Classes out of balance, of few patients, or in an order that nobody gave."""
    label = cohort.label
    if label is None or label.kind not in ("binary", "multiclass", "ordinal"):
        return []
    found = []
    counts = {name: n for name, n in _counts(cohort).items() if n}
    most, least = max(counts, key=counts.__getitem__), min(counts, key=counts.__getitem__)
    if counts[most] >= IMBALANCE * counts[least]:
        text = (
            f"'{most}' has {counts[most]} samples and '{least}' {counts[least]}: accuracy hides the "
            "rare class; look at macro F1 and at the recall of each."
        )
        found.append(Finding("warning", "imbalance", text))
    patients = [
        (name, len(np.unique(cohort.patient_ids[targets == place])))
        for place, name in enumerate(label.classes)
    ]
    few = [f"{name} ({n})" for name, n in patients if n < RARE_CLASS <= counts.get(name, 0)]
    if few:
        text = f"Classes of under {RARE_CLASS} patients, whatever their samples: {', '.join(few)}."
        found.append(Finding("warning", "few-patients", text))
    if label.kind == "ordinal" and not all(_is_number(name) for name in label.classes):
        text = f"The grades are words; they are taken in this order: {', '.join(label.classes)}."
        found.append(Finding("warning", "order", text))
    return found


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


def _boxes(cohort: Cohort) -> list[Finding]:
    try:
        faults = boxes_of(cohort, sizes_of(cohort))[1]
    except DataError as error:
        return [Finding("error", "boxes", error.message.replace("\n", "; "))]
    found = []
    for code, rows, text in (
        ("box-empty", faults.flat, "boxes without area"),
        ("box-outside", faults.outside, "boxes that reach beyond the image"),
    ):
        if len(rows):
            text = f"{len(rows)} of {len(cohort)} images have {text}."
            found.append(Finding("warning", code, text, _rows(rows)))
    return found


def _masks(cohort: Cohort) -> list[Finding]:
    seen = survey(cohort)
    faults = seen.faults
    kinds: tuple[tuple[Level, str, Sequence[int], str], ...] = (
        ("error", "mask-size", faults.size, "masks have another size than their pictures"),
        ("error", "mask-spacing", faults.spacing, "masks have another spacing than their pictures"),
        ("error", "mask-place", faults.place, "masks lie elsewhere in space than their pictures"),
        ("warning", "mask-missing", faults.missing, "rows name no mask; they are left out"),
        ("warning", "mask-empty", faults.empty, "masks are background everywhere"),
    )
    found = [
        Finding(level, code, f"{len(rows)} of {len(cohort)} {text}.", _rows(rows))
        for level, code, rows, text in kinds
        if rows
    ]
    if len(seen.values) > MOST_VALUES:
        text = f"The masks hold {len(seen.values)} values: greys of one structure need a threshold."
        found.append(Finding("warning", "mask-greys", text))
    return found + _unreadable(Seen(broken=list(faults.broken)))


def _missing(cohort: Cohort) -> list[Finding]:
    columns = [c for c in (*cohort.inputs, *cohort.feature_columns) if c in cohort.table]
    found = []
    for column in columns:
        empty = cohort.table[column].isna().to_numpy()
        if empty.any():
            level: Level = "info" if column in cohort.feature_columns else "error"
            text = f"Column '{column}' is empty in {int(empty.sum())} of {len(cohort)} rows."
            found.append(Finding(level, "missing-value", text, _rows(np.flatnonzero(empty))))
    return found


def _elsewhere(cohort: Cohort) -> list[Finding]:
    """Columns of files of which none is where it should be, and all may be a folder further down."""
    found = []
    for column in (c for c, kind in cohort.inputs.items() if kind not in ("text", "table")):
        values = cohort.table[column]
        if present(values, cohort.root):
            continue
        folders = sorted(path for path in cohort.root.iterdir() if path.is_dir())
        holds = next((folder for folder in folders if present(values, folder)), None)
        if holds is not None:
            text = (
                f"The files of column '{column}' lie in '{holds.name}/': put it in front of their "
                "names."
            )
            found.append(Finding("error", "elsewhere", text))
    return found


def _unreadable(seen: Seen) -> list[Finding]:
    by_reason: dict[str, list[int]] = defaultdict(list)
    for row, reason in seen.broken:
        by_reason[reason].append(row)
    return [
        Finding("error", "unreadable", f"{reason} ({len(rows)} row(s))", _rows(rows))
        for reason, rows in by_reason.items()
    ]


def _copies(cohort: Cohort, seen: Seen, part: Array) -> list[Finding]:
    """Same content across parts or patients, and pictures that look alike across parts."""
    # Sets: a row of several inputs may repeat in each of them.
    crossing: set[int] = set()
    repeated: set[int] = set()
    torn: set[int] = set()
    targets = np.empty((len(cohort), 0)) if cohort.label is None else cohort.targets()
    known_label: Array = np.logical_not(unknown(targets).any(axis=1))
    for rows in seen.content.values():
        if len(rows) < 2:
            continue
        if len({targets[row].tobytes() for row in rows if known_label[row]}) > 1:
            torn.update(rows)
        parts = set(part[rows].tolist()) - {-1}
        if len(parts) > 1:
            crossing.update(rows)
        elif len(set(cohort.patient_ids[rows].tolist())) > 1:
            repeated.update(rows)
    found = []
    if crossing:
        text = f"{len(crossing)} rows have the same content on two sides of the split."
        found.append(Finding("error", "content-leak", text, _rows(sorted(crossing))))
    if repeated:
        text = f"{len(repeated)} rows repeat the content of another patient's row."
        found.append(Finding("warning", "same-content", text, _rows(sorted(repeated))))
    if torn:
        text = f"{len(torn)} rows have the same content and different labels."
        found.append(Finding("warning", "label-conflict", text, _rows(sorted(torn))))
    pairs, alike = near_across(seen.look, part, sorted(crossing | repeated))
    if pairs:
        text = f"{pairs} pairs of pictures on two sides of the split look nearly the same."
        found.append(Finding("warning", "near-duplicate", text, _rows(alike)))
    return found


def _spacing(seen: Seen) -> list[Finding]:
    if len(seen.spacing) < RARE_CLASS:
        return []
    logs = np.log([[max(side, 1e-6) for side in spacing[-2:]] for _, spacing in seen.spacing])
    away = np.abs(logs - np.median(logs, axis=0))
    # At least one per cent of spread: identical scanners must not make rounding an outlier.
    spread = np.maximum(1.4826 * np.median(away, axis=0), 0.01)
    odd = np.flatnonzero((away / spread > OUTLIER).any(axis=1))
    if not len(odd):
        return []
    rows = [seen.spacing[place][0] for place in odd]
    text = f"{len(odd)} of {len(seen.spacing)} pixel spacings are far from the others."
    return [Finding("warning", "spacing", text, _rows(rows))]


def _rows(rows: Sequence[int] | Array) -> tuple[int, ...]:
    return tuple(int(row) for row in sorted(set(rows))[:SHOWN_ROWS])


def _by(shape: tuple[int, ...]) -> str:
    return " x ".join(map(str, shape))
