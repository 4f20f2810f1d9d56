"""Channels of irregular series: what is measured, and in which unit a network sees it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from itertools import chain
from typing import Any

import numpy as np
import polars as pl

from galenic.core.errors import DataError, nearest
from galenic.data.events.series import Array, Counts, Series, starts_of

# Kinds of event that are channels where none are named.
MEASURED = ("lab", "vital")


@dataclass(frozen=True)
class Channels:
    """What is measured, and in which unit a network sees it; learnt from training stays alone.

    Attributes:
        names: Codes, in the order of the columns.
        levels: Answers of a coded channel, in the order of their numbers 0, 1, ...
        mean: Of the measurements of each channel.
        spread: Their standard deviation; 1 where they never vary.
        units: Of the channels that come with one, as it was written.
    """

    names: tuple[str, ...]
    levels: Mapping[str, tuple[str, ...]]
    mean: tuple[float, ...]
    spread: tuple[float, ...]
    units: Mapping[str, str] = field(default_factory=dict)

    @classmethod
    def fit(
        cls,
        found: pl.DataFrame,
        train: Array,
        *,
        names: Sequence[str] = (),
        levels: Mapping[str, Sequence[str]] | None = None,
        least: float = 0.05,
    ) -> Channels:
        """Choose channels and learn their spread.

        Args:
            found: Of :func:`windows`.
            train: Training stays.
            names: Codes; () for every laboratory value and vital sign that at least a share
                `least` of the training stays has.
            levels: Order of the answers of coded channels; those that are not named are sorted.
            least: Between 0 and 1.

        Raises:
            DataError: If a channel was never measured in training, comes in two units, or there
                is none.
        """
        seen = found.filter(pl.col("stay").is_in(train.tolist()))
        chosen = tuple(names) or _common(seen, least * len(train))
        for name in names:
            if not (seen["code"] == name).any():
                known = seen.filter(pl.col("source") != "note")["code"].unique().to_list()
                raise DataError(
                    f"Channel '{name}' was not measured in any training stay. "
                    f"{nearest(name, known)}".strip(),
                    where="series.channels",
                    expected="a code of the event table",
                )
        if not chosen:
            raise DataError(
                f"No channel was measured in {least:.0%} of the training stays.",
                where="events of source lab or vital",
                next_step="Name some: series.channels=[CODE, ...], or check cutoff and window.",
            )
        for name in levels or {}:
            if name not in chosen:
                raise DataError(
                    f"'{name}' is no channel. {nearest(name, chosen)}".strip(),
                    where="series.levels",
                )
        units = _one_unit(found, chosen)
        answers = {n: tuple(v) for n, v in (levels or {}).items()} | _answers(seen, chosen, levels)
        unscaled = cls(chosen, answers, (0.0,) * len(chosen), (1.0,) * len(chosen))
        measured = unscaled.measured(seen)[0]
        by_channel = {
            row["channel"]: row
            for row in measured.group_by("channel")
            .agg(mean=pl.col("number").mean(), spread=pl.col("number").std(ddof=0))
            .to_dicts()
        }
        if dead := [n for at, n in enumerate(chosen) if at not in by_channel]:
            raise DataError(
                f"Channel '{dead[0]}' has no number and no known answer in any training stay.",
                where="series.channels",
            )
        rows = [by_channel[at] for at in range(len(chosen))]
        # A channel that never varies in training must not explode in test.
        spread = tuple(row["spread"] if row["spread"] > 1e-6 else 1.0 for row in rows)
        return cls(chosen, answers, tuple(row["mean"] for row in rows), spread, units)

    @classmethod
    def from_state(cls, state: Mapping[str, Any]) -> Channels:
        """The channels that gave a :meth:`state`; one without units knows none."""
        levels = {name: tuple(answers) for name, answers in state["levels"].items()}
        names, mean, spread = (tuple(state[key]) for key in ("names", "mean", "spread"))
        return cls(names, levels, mean, spread, dict(state.get("units", {})))

    @classmethod
    def joined(cls, parts: Sequence[Channels]) -> Channels:
        """The channels of all parts, in their order; :meth:`of` takes them apart again."""
        names, mean, spread = (
            tuple(chain.from_iterable(getattr(part, key) for part in parts))
            for key in ("names", "mean", "spread")
        )
        levels, units = (
            {name: value for part in parts for name, value in getattr(part, key).items()}
            for key in ("levels", "units")
        )
        return cls(names, levels, mean, spread, units)

    def of(self, places: Sequence[int]) -> Channels:
        """Some of the channels."""
        names = tuple(self.names[at] for at in places)
        levels = {name: answers for name, answers in self.levels.items() if name in names}
        units = {name: unit for name, unit in self.units.items() if name in names}
        mean, spread = (tuple(part[at] for at in places) for part in (self.mean, self.spread))
        return Channels(names, levels, mean, spread, units)

    def require_units(self, found: pl.DataFrame) -> None:
        """Check that what was measured comes in the units of training.

        Args:
            found: Of :func:`windows`.

        Raises:
            DataError: If a channel comes in two units, or in another one than in training.
        """
        came = _one_unit(found, self.names)
        if others := [name for name, unit in came.items() if self.units.get(name, unit) != unit]:
            name = others[0]
            raise DataError(
                f"Channel '{name}' comes in {came[name]}, and in training in {self.units[name]}.",
                where=f"{len(others)} channel(s) of the event table",
                expected="the units of training, in the same spelling",
                next_step="Convert the values, or correct the unit in the mapping.",
            )

    def measured(self, found: pl.DataFrame) -> tuple[pl.DataFrame, Counts]:
        """One row a stay, time and channel: `stay`, `hours`, `channel`, `number` (not scaled).

        Of several measurements at one time the mean counts, of several answers the highest.
        """
        place = {name: at for at, name in enumerate(self.names)}
        mine = found.filter(pl.col("code").is_in(self.names)).with_columns(
            channel=pl.col("code").replace_strict(place, return_dtype=pl.Int64, default=None)
        )
        coded = pl.col("code").is_in(list(self.levels))
        table = pl.DataFrame(
            [
                (name, answer, float(at))
                for name, answers in self.levels.items()
                for at, answer in enumerate(answers)
            ],
            schema={"code": pl.String, "text": pl.String, "level": pl.Float64},
            orient="row",
        )
        joined = mine.join(table, on=["code", "text"], how="left", maintain_order="left")
        numbers = joined.with_columns(
            number=pl.when(coded).then("level").otherwise("value"), coded=coded
        )
        good = numbers.filter(pl.col("number").is_finite().fill_null(value=False))
        one = good.group_by("stay", "hours", "channel").agg(
            number=pl.when(pl.col("coded").first())
            .then(pl.col("number").max())
            .otherwise(pl.col("number").mean())
        )
        bad = numbers.filter(~pl.col("number").is_finite().fill_null(value=False))
        counts = {
            "measured": len(one),
            "duplicates": len(good) - len(one),
            "without_number": int((~bad["coded"]).sum()),
            "unknown_answers": int(bad["coded"].sum()),
        }
        return one.sort("stay", "hours", "channel"), counts

    def series(self, found: pl.DataFrame, stays: int) -> tuple[Series, Counts]:
        """Standardised series of all stays, and what was left out on the way."""
        measured, counts = self.measured(found)
        stay = measured["stay"].to_numpy().astype(np.int64)
        hours = measured["hours"].to_numpy()
        channel = measured["channel"].to_numpy()
        new = np.ones(len(stay), bool)
        new[1:] = (np.diff(stay) != 0) | (np.diff(hours) != 0)
        row = np.cumsum(new) - 1
        shape = (int(new.sum()), len(self.names))
        values, mask = np.zeros(shape, np.float32), np.zeros(shape, bool)
        scaled = (measured["number"].to_numpy() - np.array(self.mean)[channel]) / np.array(
            self.spread
        )[channel]
        values[row, channel], mask[row, channel] = scaled, True
        starts = starts_of(stay[new], stays)
        counts["stays_without_measurements"] = int((np.diff(starts) == 0).sum())
        return Series(values, mask, hours[new].astype(np.float32), starts), counts

    def state(self) -> dict[str, Any]:
        """What was chosen and learnt, for JSON."""
        return asdict(self)


def _common(seen: pl.DataFrame, least: float) -> tuple[str, ...]:
    stays = (
        seen.filter(pl.col("source").is_in(MEASURED))
        .filter(pl.col("value").is_not_null() | pl.col("text").is_not_null())
        .group_by("code")
        .agg(pl.col("stay").n_unique())
    )
    return tuple(sorted(stays.filter(pl.col("stay") >= max(least, 1))["code"].to_list()))


def _one_unit(found: pl.DataFrame, names: Sequence[str]) -> dict[str, str]:
    """The unit of each channel that comes with one."""
    units = (
        found.filter(pl.col("code").is_in(names) & pl.col("unit").is_not_null())
        .group_by("code")
        .agg(pl.col("unit").unique().sort())
        .sort("code")
    )
    mixed = units.filter(pl.col("unit").list.len() > 1)
    if len(mixed):
        code, several = mixed.row(0)
        raise DataError(
            f"Channel '{code}' comes in {len(several)} units: {', '.join(several)}.",
            where=f"{len(mixed)} channel(s) of the event table",
            expected="one unit a channel",
            next_step="Convert the values, or leave the channel out: series.channels=[...]",
        )
    return {code: only for code, (only,) in units.iter_rows()}


def _answers(
    seen: pl.DataFrame, names: Sequence[str], given: Mapping[str, Sequence[str]] | None
) -> dict[str, tuple[str, ...]]:
    """Answers of the channels that have words and never a number, sorted."""
    words = (
        seen.filter(pl.col("code").is_in(names) & ~pl.col("code").is_in(list(given or {})))
        .group_by("code")
        .agg(
            numbers=pl.col("value").is_not_null().any(),
            answers=pl.col("text").drop_nulls().unique().sort(),
        )
        .filter(~pl.col("numbers") & (pl.col("answers").list.len() > 0))
    )
    return {name: tuple(answers) for name, _, answers in words.iter_rows()}
