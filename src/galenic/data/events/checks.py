"""What can only be judged when all rows of a patient are there; no rule depends on their order."""

from __future__ import annotations

from collections.abc import Mapping

import polars as pl

from galenic.data.events import rejection
from galenic.data.events.rejection import Rejections
from galenic.data.events.schema import BIRTH, COLUMNS, DEATH, ordered

_DAY = pl.duration(days=1)
_RESOURCE = ("kind", "record")
_PLACE = ("file", "place")


def finish(
    staged: pl.DataFrame, medications: Mapping[str, str], rejections: Rejections
) -> pl.DataFrame:
    """The event table of staged rows.

    Args:
        staged: All rows of some patients, in any order.
        medications: Codes of Medication resources, by id.
        rejections: Counts what is left out, or kept in doubt.
    """
    frame = _coded(staged, medications, rejections)
    undated = pl.col("code").is_in([BIRTH, DEATH]) & pl.col("time").is_null()
    frame = _without(frame, undated, rejection.NO_TIME, rejections)
    frame = _one_of_each(frame, rejections)
    frame = _with_ends(frame, rejections)
    return ordered(_in_life(frame, rejections))


class Units:
    """Counts the units of each code, to tell where they disagree."""

    def __init__(self) -> None:
        self._seen: list[pl.DataFrame] = []

    def add(self, frame: pl.DataFrame) -> None:
        """Count the units of an event table."""
        measured = frame.filter(pl.col("unit").is_not_null() & pl.col("value").is_not_null())
        self._seen.append(measured.group_by("code", "unit").len())

    def report(self, rejections: Rejections) -> None:
        """Count the rows whose unit is not the usual one of their code."""
        total = pl.concat(self._seen).group_by("code", "unit").agg(pl.col("len").sum())
        split = total.filter(pl.len().over("code") > 1).sort(
            "len", "unit", descending=[True, False]
        )
        for code, group in split.group_by("code", maintain_order=True):
            names = ", ".join(group["unit"].head(5))
            others = int(group["len"].sum()) - int(group["len"][0])
            reason = f"{rejection.UNITS}: {code[0]} in {names}"
            rejections.add(reason, count=others, kept=True)


def _without(
    frame: pl.DataFrame, fault: pl.Expr, reason: str, rejections: Rejections
) -> pl.DataFrame:
    rejections.add_rows(frame.filter(fault), reason)
    return frame.filter(~fault)


def _coded(
    frame: pl.DataFrame, medications: Mapping[str, str], rejections: Rejections
) -> pl.DataFrame:
    codes = pl.DataFrame(
        {"medication": list(medications), "_code": list(medications.values())},
        schema={"medication": pl.String(), "_code": pl.String()},
    )
    frame = frame.join(codes, on="medication", how="left")
    frame = frame.with_columns(code=pl.coalesce("code", "_code")).drop("_code")
    return _without(frame, pl.col("code").is_null(), rejection.NO_CODE, rejections)


def _one_of_each(frame: pl.DataFrame, rejections: Rejections) -> pl.DataFrame:
    """One version of each resource: the latest, and among equals the same one in any order."""
    versions = (
        frame.filter(pl.col("record").is_not_null())
        .with_columns(_content=pl.struct(COLUMNS).hash())
        .group_by(*_RESOURCE, *_PLACE)
        .agg(pl.col("_content").sum(), pl.col("updated").max())
        .filter(pl.len().over(_RESOURCE) > 1)
        .sort(*_RESOURCE, "updated", "_content", *_PLACE, nulls_last=False)
    )
    if versions.is_empty():
        return frame
    kept = versions.group_by(_RESOURCE, maintain_order=True).last()
    others = versions.join(kept, on=(*_RESOURCE, *_PLACE), how="anti").join(
        kept.select(*_RESOURCE, _kept="_content"), on=_RESOURCE
    )
    same = pl.col("_content") == pl.col("_kept")
    rejections.add_rows(others.filter(same), rejection.COPY)
    rejections.add_rows(others.filter(~same), rejection.CLASH)
    return frame.join(others, on=(*_RESOURCE, *_PLACE), how="anti")


def _with_ends(frame: pl.DataFrame, rejections: Rejections) -> pl.DataFrame:
    negative = pl.col("end") < pl.col("time")
    rejections.add_rows(frame.filter(negative), rejection.NEGATIVE, kept=True)
    frame = frame.with_columns(end=pl.when(~negative).then("end"))
    unended = (pl.col("source") == "encounter") & pl.col("end").is_null()
    rejections.add_rows(frame.filter(unended), rejection.OPEN, kept=True)
    return frame


def _in_life(frame: pl.DataFrame, rejections: Rejections) -> pl.DataFrame:
    """One birth and one death a patient, and nothing more than a day outside of them."""
    birth, frame = _first(frame, BIRTH, rejections)
    death, frame = _first(frame, DEATH, rejections)
    both = birth.join(death, on="patient_id", suffix="_death")
    # A birth is often a day without an hour, in another zone than the death.
    odd = both.filter(pl.col("time_death") < pl.col("time") - _DAY).select("patient_id")
    for rows in (birth, death):
        rejections.add_rows(rows.join(odd, on="patient_id", how="semi"), rejection.DEATH_FIRST)
    birth, death = (rows.join(odd, on="patient_id", how="anti") for rows in (birth, death))
    frame = frame.join(birth.select("patient_id", _birth="time"), on="patient_id", how="left").join(
        death.select("patient_id", _death="time"), on="patient_id", how="left"
    )
    # Where a date is missing the comparison is null, and the row stays.
    unborn = (pl.col("time") < pl.col("_birth") - _DAY).fill_null(False)
    late = (pl.col("time") > pl.col("_death") + _DAY).fill_null(False)
    frame = _without(frame, unborn, rejection.UNBORN, rejections)
    frame = _without(frame, late, rejection.PAST_DEATH, rejections)
    return pl.concat([frame.drop("_birth", "_death"), birth, death])


def _first(
    frame: pl.DataFrame, code: str, rejections: Rejections
) -> tuple[pl.DataFrame, pl.DataFrame]:
    """The rows of `code`, one a patient, and all others of `frame`.

    The first day counts, and on it the last moment: a date without an hour is its first moment.
    """
    rows = frame.filter(pl.col("code") == code).with_columns(_day=pl.col("time").dt.date())
    rows = rows.sort("_day", "time", *_PLACE, descending=[False, True, False, False])
    again = ~pl.col("patient_id").is_first_distinct()
    other_day = pl.col("_day") != pl.col("_day").first().over("patient_id")
    rejections.add_rows(rows.filter(again & other_day), rejection.SEVERAL)
    rejections.add_rows(rows.filter(again & ~other_day), rejection.TOLD_AGAIN)
    return rows.filter(~again).drop("_day"), frame.filter(pl.col("code") != code)
