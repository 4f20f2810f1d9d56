"""Visits: encounters in order, those that overlap taken together, and the gaps between them."""

from __future__ import annotations

from datetime import UTC, datetime

import polars as pl

from galenic.data.events.schema import BIRTH
from galenic.data.events.vocabulary import LONG, MONTH, WEEK, WEEKS

# Weeks are counted from here (EHRMamba, 2024).
EPOCH = datetime(2020, 1, 1, tzinfo=UTC)
MONTH_DAYS, YEAR_DAYS = 30, 365
BY_VISIT = ["patient", "visit"]


def gap_token(days: pl.Expr) -> pl.Expr:
    """Token of so many whole days between two visits: weeks, then months, then long."""
    weeks, months = WEEK + days // 7, MONTH + days // MONTH_DAYS
    return (
        pl.when(days < 7 * WEEKS)
        .then(weeks)
        .when(days <= YEAR_DAYS)
        .then(months)
        .otherwise(LONG)
        .cast(pl.Int32)
    )


def gap_days(token: int) -> float:
    """Days that a gap token stands for: the middle of its range."""
    if token >= LONG:
        return 1.5 * YEAR_DAYS
    if token >= MONTH:
        begin = MONTH_DAYS * (token - MONTH)
        return (max(begin, 7 * WEEKS) + min(begin + MONTH_DAYS, YEAR_DAYS + 1)) / 2
    return (token - WEEK + 0.5) * 7


def encounters(events: pl.DataFrame, items: pl.DataFrame) -> pl.DataFrame:
    """Each encounter with the number of its visit.

    An encounter that begins before the one before has ended is of the same visit. One without an
    end ends with its last event.

    Args:
        events: With an integer `patient`.
        items: Those of `events` that become tokens.

    Returns:
        `patient`, `encounter_id`, `start`, `end`, `open` (whether it has no end), `visit` from 1;
        in order.
    """
    by = ["patient", "encounter_id"]
    rows = events.filter((pl.col("source") == "encounter") & pl.col("time").is_not_null())
    own = pl.format("#{}", pl.int_range(pl.len()))
    rows = rows.with_columns(pl.col("encounter_id").fill_null(own))
    found = rows.group_by(by).agg(start=pl.col("time").min(), end=pl.col("end").max())
    last = items.group_by(by).agg(last=pl.col("time").max())
    found = found.join(last, on=by, how="left").with_columns(open=pl.col("end").is_null())
    end = pl.max_horizontal("start", pl.coalesce("end", "last"))
    found = found.with_columns(end=end).sort("patient", "start", "end", "encounter_id")
    before = pl.col("end").cum_max().shift(1).over("patient")
    fresh = (pl.col("start") >= before).fill_null(True)
    return found.with_columns(visit=fresh.cum_sum().over("patient").cast(pl.Int32)).drop("last")


def visits(events: pl.DataFrame, encounters: pl.DataFrame) -> pl.DataFrame:
    """One row a visit, in order.

    Args:
        events: With an integer `patient`.
        encounters: Of :func:`encounters`.

    Returns:
        `patient`, `visit`, `start`, `end`, `open` (the last one, while it goes on), `gap` (token of
        the time since the visit before; null for the first), `age` (whole years, 0 where the birth
        is unknown) and `weeks` since 2020.
    """
    found = encounters.group_by(BY_VISIT, maintain_order=True).agg(
        pl.col("start").min(), pl.col("end").max(), pl.col("open").any()
    )
    births = events.filter((pl.col("code") == BIRTH) & pl.col("time").is_not_null())
    births = births.group_by("patient").agg(birth=pl.col("time").min())
    found = found.join(births, on="patient", how="left", maintain_order="left")
    last = pl.col("visit") == pl.col("visit").max().over("patient")
    days = (pl.col("start") - pl.col("end").shift(1).over("patient")).dt.total_days()
    weeks = (pl.col("start") - EPOCH).dt.total_microseconds() // (7 * 86_400 * 10**6)
    return found.with_columns(
        open=pl.col("open") & last,
        gap=pl.when(days.is_not_null()).then(gap_token(days)),
        age=_years(pl.col("birth"), pl.col("start")),
        weeks=weeks.cast(pl.Int32),
    ).drop("birth")


def placed(items: pl.DataFrame, encounters: pl.DataFrame, visits: pl.DataFrame) -> pl.DataFrame:
    """Events with their `visit`, and the `stamp` at which they count.

    An event is put into the limits of the encounter that it names. One that names none belongs to
    the visit that was going on; what is in no visit is left out.

    Args:
        items: With an integer `patient`, and their order in `row`.
        encounters: Of :func:`encounters`.
        visits: Of :func:`visits`.
    """
    limits = encounters.select("patient", "encounter_id", "visit", "start", "end")
    named = items.join(limits, on=["patient", "encounter_id"], how="inner")
    loose = items.filter(pl.col("encounter_id").is_null())
    going = visits.select(*BY_VISIT, "start", end=pl.when(~pl.col("open")).then("end"))
    found = loose.join_asof(
        going, left_on="time", right_on="start", by="patient", check_sortedness=False
    )
    inside = (pl.col("time") <= pl.col("end")) | pl.col("end").is_null()
    found = found.filter(pl.col("start").is_not_null() & inside)
    earliest = pl.min_horizontal("time", "end")
    return pl.concat([named, found.select(named.columns)]).with_columns(
        stamp=pl.max_horizontal("start", earliest)
    )


def _years(birth: pl.Expr, day: pl.Expr) -> pl.Expr:
    """Birthdays between two dates."""
    later, born = (100 * at.dt.month().cast(pl.Int32) + at.dt.day() for at in (day, birth))
    years = day.dt.year() - birth.dt.year() - (later < born).cast(pl.Int32)
    return years.clip(0).fill_null(0)
