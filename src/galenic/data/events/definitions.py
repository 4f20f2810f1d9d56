"""What is predicted for whom, from when on: tasks as small YAML files, and their labels.

A task has an anchor (an encounter), a cutoff and a question. Nothing at or after the cutoff is
visible, and nothing before it answers: what is seen and what is asked for never overlap. Times are
elapsed times, to the second.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from importlib import resources
from pathlib import Path
from typing import Annotated, Literal

import polars as pl
from pydantic import Field, StringConstraints, model_validator

from galenic.core.config import Config, apply_overrides, load_yaml, parse
from galenic.data.events.mapping import preset_or_file
from galenic.data.events.schema import DEATH, ORDER

PRESETS = Path(str(resources.files("galenic.data.events"))) / "tasks"

_SPAN = r"(\d+)\s*([smhd])"
_SECONDS = {"s": 1, "m": 60, "h": 3600, "d": 86400}
Span = Annotated[str, StringConstraints(pattern=f"^{_SPAN}$")]
Cutoff = Annotated[str, StringConstraints(pattern=rf"^(start|end)(\s*[+-]\s*{_SPAN})?$")]
Moment = Annotated[str, StringConstraints(pattern=rf"^(start|end|cutoff)(\s*[+-]\s*{_SPAN})?$")]


class Codes(Config):
    """Which events are meant; one of the three is enough."""

    prefix: list[str] = Field([], description="How the code starts: `ENCOUNTER//`, `ICD10CM//I1`.")
    regex: str | None = Field(None, description="Regular expression of the whole code.")
    exact: list[str] = Field([], description="The code itself.")

    @model_validator(mode="after")
    def _says_something(self) -> Codes:
        if not (self.prefix or self.regex or self.exact):
            raise ValueError("give prefix, regex or exact")
        try:
            pl.Series([""]).str.contains(self.regex or "")
        except pl.exceptions.PolarsError as error:
            raise ValueError(f"no regular expression: {error}") from None
        return self

    def match(self) -> pl.Expr:
        """Whether a row's code is meant."""
        code = pl.col("code")
        found = code.is_in(self.exact)
        for prefix in self.prefix:
            found |= code.str.starts_with(prefix)
        return found | code.str.contains(f"^(?:{self.regex})$") if self.regex else found


class Anchor(Config):
    """The events, one sample each, that the times of a task hang on."""

    codes: Codes
    which: Literal["each", "first", "last"] = "each"


class Happens(Config):
    """Positive where an event follows the cutoff."""

    codes: Codes
    since: Moment = Field("cutoff", description="Never before the cutoff.")
    until: Moment = Field(description="The last moment that counts.")


class Lasts(Config):
    """Positive where the anchor lasts at least so long, from its start to its end."""

    at_least: Span


class Definition(Config):
    """A task: who, until when, and what is asked.

    Left out are anchors whose cutoff or answer is not known, such as those of an open encounter,
    and those in `exclude`: `dead` before the cutoff; `ended` before the cutoff; `known`: what is
    asked for has been there before; `unfollowed`: the data end before the window, with no event.
    """

    name: str
    about: str = ""
    anchor: Anchor
    cutoff: Cutoff
    label: Happens | Lasts
    exclude: list[Literal["dead", "ended", "known", "unfollowed"]] = []


def load(task: str | Path, overrides: Sequence[str] = ()) -> Definition:
    """The definition of a preset's name or a YAML file.

    Args:
        task: `mortality`, `readmission`, `length_of_stay`, `conditions`, or a file.
        overrides: Such as `anchor.which=each`.

    Raises:
        ConfigError: If there is no such preset or file, or a key is wrong.
    """
    values = apply_overrides(load_yaml(preset_or_file(task, PRESETS)), overrides)
    return parse(Definition, values, where=f"task {task}")


def label(frame: pl.DataFrame, definition: Definition) -> pl.DataFrame:
    """The samples of a task, one for each patient and cutoff.

    Args:
        frame: The event table.
        definition: The task.

    Returns:
        `patient_id`, `cutoff` (datetime, us, UTC) and `label` (0 or 1), sorted.
    """
    return samples(judge(frame, definition))


def samples(judged: pl.DataFrame) -> pl.DataFrame:
    """Of what :func:`judge` says, what :func:`label` gives."""
    return judged.filter(pl.col("excluded").is_null()).drop("excluded")


def judge(frame: pl.DataFrame, definition: Definition) -> pl.DataFrame:
    """As :func:`label`, with what is left out; `excluded` says why, and is null for samples."""
    reasons = ("unknown", *definition.exclude)
    excluded = pl.coalesce(pl.when(pl.col(f"is_{name}")).then(pl.lit(name)) for name in reasons)
    return (
        _answered(frame, definition)
        .with_columns(excluded=excluded)
        .group_by("patient_id", "cutoff", "excluded")
        .agg(pl.col("label").max().cast(pl.Int8))
        .select("patient_id", "cutoff", "label", "excluded")
        .sort("patient_id", "cutoff", "excluded")
    )


def questions(frame: pl.DataFrame, definition: Definition) -> pl.DataFrame:
    """The samples of :func:`label`, and those whose answer is not known yet.

    The answer is not known yet where the anchor goes on, or the data end before the window does.
    Left out is what else is in `exclude`, and a cutoff that is not reached: later than a second
    after the last time in the data, or the last end of an encounter.

    Args:
        frame: The event table.
        definition: The task.

    Returns:
        As :func:`label`; `label` is null where the answer is not known yet.
    """
    keys = ["patient_id", "cutoff"]
    barred = [f"is_{name}" for name in definition.exclude if name != "unfollowed"]
    waiting = pl.col("label").is_null()
    if "unfollowed" in definition.exclude:
        waiting |= pl.col("is_unfollowed")
    ends = frame.filter(pl.col("source") == "encounter")["end"]
    # With their types: without any time both are null.
    last = [pl.lit(times.max(), times.dtype) for times in (frame["time"], ends)]
    reached = pl.max_horizontal(last) + pl.duration(seconds=1)
    told = label(frame, definition)
    untold = (
        _answered(frame, definition)
        .filter(waiting & (pl.col("cutoff") <= reached))
        .filter(~pl.any_horizontal(pl.lit(False), *(pl.col(n).fill_null(False) for n in barred)))
        .select(keys)
        .unique()
        .join(told, on=keys, how="anti")
        .with_columns(label=pl.lit(None, pl.Int8))
    )
    return pl.concat([told, untold]).sort(keys)


def visible(frame: pl.DataFrame, labels: pl.DataFrame) -> pl.DataFrame:
    """What may be seen of each sample: its patient's events strictly before the cutoff.

    An end at or after the cutoff was not known then: it is null, as that of an open encounter.

    Args:
        frame: The event table.
        labels: Samples, with `patient_id` and `cutoff`.

    Returns:
        The events with the `cutoff` of their sample, sorted by patient, cutoff and as the table.
    """
    cutoffs = labels.select("patient_id", "cutoff").unique()
    seen = frame.join(cutoffs, on="patient_id").filter(
        pl.col("time").is_null() | (pl.col("time") < pl.col("cutoff"))
    )
    seen = seen.with_columns(end=pl.when(pl.col("end") < pl.col("cutoff")).then("end"))
    return seen.sort("patient_id", "cutoff", *ORDER[1:], nulls_last=False)


def _answered(frame: pl.DataFrame, definition: Definition) -> pl.DataFrame:
    """The anchors with `label`, and `is_REASON` for all that can leave one out."""
    anchors = _anchors(frame, definition)
    rule = definition.label
    if isinstance(rule, Happens):
        anchors = _happens(anchors, frame, rule)
    else:
        long = pl.col("end") - pl.col("start") >= pl.duration(seconds=_seconds(rule.at_least))
        anchors = anchors.with_columns(label=long, until="end", known=False)
    death = frame.filter(pl.col("code") == DEATH).group_by("patient_id").agg(death=pl.min("time"))
    return anchors.join(death, on="patient_id", how="left").with_columns(
        is_unknown=pl.col("cutoff").is_null() | pl.col("label").is_null(),
        is_dead=pl.col("death") < pl.col("cutoff"),
        is_ended=pl.col("end") < pl.col("cutoff"),
        is_known=pl.col("known"),
        is_unfollowed=~pl.col("label") & (pl.col("until") > pl.lit(frame["time"].max())),
    )


def _anchors(frame: pl.DataFrame, definition: Definition) -> pl.DataFrame:
    """`patient_id, start, end, cutoff`, one row an anchor."""
    found = frame.filter(definition.anchor.codes.match() & pl.col("time").is_not_null())
    anchors = found.select("patient_id", pl.col("time").alias("start"), "end").sort(
        "patient_id", "start", "end", nulls_last=False
    )
    if definition.anchor.which != "each":
        anchors = anchors.unique("patient_id", keep=definition.anchor.which, maintain_order=True)
    return anchors.with_columns(cutoff=_moment(definition.cutoff)).with_row_index("anchor")


def _happens(anchors: pl.DataFrame, frame: pl.DataFrame, rule: Happens) -> pl.DataFrame:
    """Adds `label`, `until`, and `known`: whether the event was there before the cutoff."""
    anchors = anchors.with_columns(
        since=pl.max_horizontal(_moment(rule.since), "cutoff"), until=_moment(rule.until)
    )
    asked = frame.filter(rule.codes.match()).select("patient_id", "time")
    pairs = anchors.join(asked, on="patient_id").select(
        "anchor",
        label=pl.col("time").is_between("since", "until"),
        known=pl.col("time") < pl.col("cutoff"),
    )
    found = pairs.group_by("anchor").agg(pl.col("label").any(), pl.col("known").any())
    # Where the window has no end on the calendar, there is no answer.
    return (
        anchors.join(found, on="anchor", how="left")
        .with_columns(pl.col("label", "known").fill_null(False))
        .with_columns(label=pl.when(pl.col("until").is_not_null()).then("label"))
    )


def _moment(text: str) -> pl.Expr:
    base, sign, span = re.match(r"(\w+)\s*([+-]?)\s*(.*)", text).groups()  # type: ignore[union-attr]
    moment = pl.col(base)
    if not sign:
        return moment
    length = pl.duration(seconds=_seconds(span))
    return moment + length if sign == "+" else moment - length


def _seconds(span: str) -> int:
    number, unit = re.match(_SPAN, span).groups()  # type: ignore[union-attr]
    return int(number) * _SECONDS[unit]
