"""Event tables as rows of tokens with coherent streams.

"EHRMamba", 2024, arXiv 2405.14567, section on tokenisation:

    [CLS] [VS] e1 e2 ... [VE] [REG] [gap] [VS] ... [VE] [REG]

A visit that goes on at the end of the table has no [VE] yet.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import polars as pl

from galenic.core.errors import DataError
from galenic.data.events.visits import BY_VISIT, encounters, placed, visits
from galenic.data.events.vocabulary import CLS, REG, VE, VS, Kind, Vocabulary, candidates

Array = np.ndarray[Any, np.dtype[Any]]
History = dict[str, Array]

# Type by stream; `elapsed` is hours since the start of the visit, -1 at [VS], -2 at other specials.
STREAMS: dict[str, Any] = {
    "input_ids": pl.Int32(),
    "types": pl.Int8(),
    "ages": pl.Int32(),
    "times": pl.Int32(),
    "segments": pl.Int8(),
    "positions": pl.Int32(),
    "elapsed": pl.Float32(),
}
# What a network reads.
INPUTS = ("input_ids", "types", "ages", "times", "segments", "positions")
AT_START, AT_SPECIAL = -1.0, -2.0
# Order within a visit.
_CLS, _GAP, _VS, _EVENT, _VE, _REG = range(6)


@dataclass(frozen=True)
class Histories:
    """Token histories of many patients, end to end.

    Attributes:
        subjects: `patient_id`, and `cutoff` where the events had one, of each; who has no encounter
            is not among them.
        offsets: Where each begins, and the end [n + 1].
        streams: Each of :data:`STREAMS`, of all histories.
        unplaced: Events in no visit; they are left out.
    """

    subjects: pl.DataFrame
    offsets: Array
    streams: Mapping[str, Array]
    unplaced: int

    def __len__(self) -> int:
        return len(self.subjects)

    def __getitem__(self, index: int) -> History:
        begin, end = self.offsets[index], self.offsets[index + 1]
        return {name: values[begin:end] for name, values in self.streams.items()}

    @property
    def lengths(self) -> Array:
        """Tokens of each [n]."""
        return np.diff(self.offsets)


def encode(events: pl.DataFrame, vocabulary: Vocabulary) -> Histories:
    """Turn an event table into histories; conditions, notes and what has no time are left out.

    Args:
        events: Event table, in order; with a column `cutoff`, as :func:`visible` gives it, each
            patient and cutoff is a history of its own.
        vocabulary: Fitted on training patients.

    Raises:
        DataError: If the table is not in order.
    """
    if not events["patient_id"].is_sorted():
        raise DataError(
            "The events are not in the order of their patients.",
            next_step="galenic.data.events.ordered(frame)",
        )
    keys = [name for name in ("patient_id", "cutoff") if name in events.columns]
    events = events.with_columns(patient=pl.struct(keys).rle_id().cast(pl.Int64))
    items = candidates(events, vocabulary.config.sources).drop("end")
    items = items.filter(~pl.col("code").is_in(list(vocabulary.dropped))).with_row_index("row")
    held = encounters(events, items)
    stays = visits(events, held)
    found = placed(items, held, stays)
    rows = pl.concat([_specials(stays), _items(found, stays, vocabulary)])
    rows = rows.sort("patient", "visit", "rank", "stamp", "row", nulls_last=False)
    runs = rows["patient"].rle().struct
    subjects = events.unique("patient", keep="first", maintain_order=True).select(keys)
    offsets = np.concatenate([np.zeros(1), runs.field("len").cum_sum().to_numpy()])
    return Histories(
        subjects[runs.field("value")],
        offsets.astype(np.int64),
        {name: rows[name].to_numpy() for name in STREAMS},
        len(items) - len(found),
    )


def _items(found: pl.DataFrame, stays: pl.DataFrame, vocabulary: Vocabulary) -> pl.DataFrame:
    """Rows of the events."""
    begun = stays.select(*BY_VISIT, "age", "weeks", begun="start")
    rows = vocabulary.lookup(found).join(begun, on=BY_VISIT, how="left")
    hours = (pl.col("stamp") - pl.col("begun")).dt.total_microseconds() / (3600 * 10**6)
    streams = _streams(pl.col("token"), pl.col("kind"), hours)
    return rows.select(*_keys(_EVENT), "stamp", "row", **streams)


def _specials(stays: pl.DataFrame) -> pl.DataFrame:
    """Rows of all tokens that are no events."""
    first = stays.filter(pl.col("visit") == 1)
    before = pl.col("visit") - 1
    weeks = stays.with_columns(weeks=pl.col("weeks").shift(1).over("patient"))
    nothing = pl.lit(0)
    outside = {"ages": nothing, "segments": nothing}
    parts = [
        _special(first, _CLS, CLS, Kind.CLS, **outside, positions=nothing),
        _special(
            weeks.filter(pl.col("gap").is_not_null()), _GAP, pl.col("gap"), Kind.GAP,
            **outside, positions=before,
        ),
        _special(stays, _VS, VS, Kind.VS),
        _special(stays.filter(~pl.col("open")), _VE, VE, Kind.VE),
        _special(stays, _REG, REG, Kind.REG),
    ]  # fmt: skip
    return pl.concat(parts)


def _special(
    stays: pl.DataFrame, rank: int, token: int | pl.Expr, kind: Kind, **other: pl.Expr
) -> pl.DataFrame:
    token = pl.lit(token) if isinstance(token, int) else token
    elapsed = pl.lit(AT_START if kind == Kind.VS else AT_SPECIAL)
    streams = _streams(token, pl.lit(int(kind)), elapsed, **other)
    no_time = pl.lit(None, stays.schema["start"]).alias("stamp")
    return stays.select(*_keys(rank), no_time, pl.lit(0, pl.UInt32).alias("row"), **streams)


def _keys(rank: int) -> tuple[pl.Expr, ...]:
    return pl.col("patient"), pl.col("visit"), pl.lit(rank, pl.Int8).alias("rank")


def _streams(
    token: pl.Expr, kind: pl.Expr, elapsed: pl.Expr, **other: pl.Expr
) -> dict[str, pl.Expr]:
    """Of a token within its visit, but for what `other` says."""
    found = {
        "input_ids": token,
        "types": kind,
        "ages": pl.col("age"),
        "times": pl.col("weeks"),
        "segments": segment(pl.col("visit")),
        "positions": pl.col("visit"),
        "elapsed": elapsed,
    } | other
    return {name: expr.cast(STREAMS[name]) for name, expr in found.items()}


def segment(visit: Any) -> Any:
    """1 for odd visits, 2 for even ones."""
    return 2 - visit % 2


def truncate(history: History, length: int) -> History:
    """The most recent tokens, as a history of its own: with [CLS], [VS] and visits from 1.

    Args:
        history: Of any length.
        length: At most so many tokens; 5 or more.
    """
    kinds = history["types"]
    if len(kinds) <= length:
        return history
    begin = len(kinds) - (length - 1)
    if kinds[begin] != Kind.VS:
        begin += 1  # room for [VS]
        while kinds[begin] in (Kind.VE, Kind.REG, Kind.GAP):
            begin += 1  # a visit of which only the end is left says nothing
    tail = {name: values[begin:] for name, values in history.items()}
    if kinds[begin] != Kind.VS:
        tail = _headed(tail, input_ids=VS, types=Kind.VS, elapsed=AT_START)
    positions = tail["positions"] - (tail["positions"][0] - 1)
    inside = tail["segments"] > 0
    segments = np.where(inside, segment(positions), 0).astype(tail["segments"].dtype)
    return _headed(
        {**tail, "positions": positions, "segments": segments},
        input_ids=CLS,
        types=Kind.CLS,
        ages=0,
        segments=0,
        positions=0,
        elapsed=AT_SPECIAL,
    )


def prompted(history: History, token: int) -> History:
    """`history` with the token of a task in the first place and in the last.

    The last token of any history is [REG], so no event is lost; truncate before.
    """
    ids = history["input_ids"].copy()
    ids[[0, -1]] = token
    return {**history, "input_ids": ids}


def _headed(history: History, **changed: float) -> History:
    """`history` with its first token before it once more, but for what is changed."""
    return {
        name: np.concatenate([np.full(1, changed.get(name, values[0]), values.dtype), values])
        for name, values in history.items()
    }
