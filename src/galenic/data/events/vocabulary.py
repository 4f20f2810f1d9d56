"""The tokens of coded histories: fitted on training patients, kept as one file.

"EHRMamba", 2024, arXiv 2405.14567, section on tokenisation. A number becomes its code and the
quantile bin that it falls in; both are learnt from the training patients alone.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from enum import IntEnum
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, NamedTuple

import polars as pl
from pydantic import Field

from galenic.core.config import Config, parse
from galenic.core.errors import DataError
from galenic.core.files import atomic_json
from galenic.core.fingerprint import fingerprint_bytes


class Kind(IntEnum):
    """Of a token: the numbers of the type stream."""

    PAD = 0
    CLS = 1
    VS = 2
    VE = 3
    GAP = 4
    LAB = 5
    MED = 6
    PROC = 7
    REG = 8


Source = Literal["lab", "vital", "medication", "procedure"]
KINDS: dict[Source, Kind] = {
    "lab": Kind.LAB,
    "vital": Kind.LAB,
    "medication": Kind.MED,
    "procedure": Kind.PROC,
}
MEASURED = ("lab", "vital")
# Numbers of the special tokens; weeks and months go on from the first.
PAD, UNK, CLS, VS, VE, REG, WEEK, MONTH, LONG = 0, 1, 2, 3, 4, 5, 6, 10, 23
WEEKS, MONTHS = MONTH - WEEK, LONG - MONTH
SPECIAL: dict[str, Kind] = {
    "[PAD]": Kind.PAD,
    "[UNK]": Kind.PAD,
    "[CLS]": Kind.CLS,
    "[VS]": Kind.VS,
    "[VE]": Kind.VE,
    "[REG]": Kind.REG,
    **{f"[W_{k}]": Kind.GAP for k in range(WEEKS)},
    **{f"[M_{k}]": Kind.GAP for k in range(MONTHS)},
    "[LT]": Kind.GAP,
}


class TokenConfig(Config):
    """What becomes a token, and how."""

    sources: list[Source] = Field(
        list(KINDS), min_length=1, description="Conditions are labels, and notes are no codes."
    )
    bins: int = Field(5, ge=2, description="Quantile bins of the values of a code.")
    units: Literal["drop", "split"] = Field(
        "drop",
        description="drop: a code in several units is left out; split: each unit has its bins.",
    )
    min_patients: int = Field(
        1, ge=1, description="Training patients that a code needs; what has fewer is [UNK]."
    )


class Binned(NamedTuple):
    """The tokens of a code with values.

    Attributes:
        code: The code.
        unit: In which; empty where none was written.
        first: Token of the lowest bin; the others follow.
        edges: Right edges of all bins but the last, ascending.
    """

    code: str
    unit: str
    first: int
    edges: tuple[float, ...]


@dataclass(frozen=True)
class Vocabulary:
    """Tokens by number.

    Attributes:
        config: What it was fitted with.
        tokens: Names; specials, prompts of tasks, codes, codes with bins.
        kinds: Kind of each token.
        prompts: Token of each task by its name.
        plain: Token of each code without a value.
        binned: Tokens of codes with values.
        dropped: Codes that were left out for their units.
    """

    config: TokenConfig
    tokens: tuple[str, ...]
    kinds: tuple[int, ...]
    prompts: dict[str, int]
    plain: dict[str, int]
    binned: tuple[Binned, ...]
    dropped: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.tokens)

    @cached_property
    def codes(self) -> dict[int, str]:
        """The code behind each token that has one."""
        found = {token: code for code, token in self.plain.items()}
        for binned in self.binned:
            bins = range(binned.first, binned.first + len(binned.edges) + 1)
            found |= dict.fromkeys(bins, binned.code)
        return found

    @classmethod
    def fit(
        cls, events: pl.DataFrame, config: TokenConfig, prompts: Iterable[str] = ()
    ) -> Vocabulary:
        """Learn tokens and bins.

        Args:
            events: Event table of the training patients, and of nobody else.
            config: What becomes a token.
            prompts: Names of tasks; each has a token, so that the network has room for it.

        Raises:
            DataError: If no event can become a token.
        """
        rows = candidates(events, config.sources)
        rows, dropped = _one_unit(rows) if config.units == "drop" else (rows, ())
        seen = pl.col("patient_id").n_unique().over("code") >= config.min_patients
        rows = rows.filter(seen)
        if rows.is_empty():
            raise DataError(
                "No event of the training patients can become a token.",
                expected=f"events of {', '.join(config.sources)} with a time",
                next_step="Widen tokens.sources, or lower tokens.min_patients.",
            )
        tokens, kinds = list(SPECIAL), list(map(int, SPECIAL.values()))
        prompt_ids = {name: len(tokens) + place for place, name in enumerate(prompts)}
        tokens += [f"[{name}]" for name in prompt_ids]
        kinds += [Kind.CLS] * len(prompt_ids)
        kind_of = dict(rows.group_by("code").agg(pl.col("kind").min()).iter_rows())
        plain = rows.filter(pl.col("value").is_null())["code"].unique().sort().to_list()
        plain_ids = {code: len(tokens) + place for place, code in enumerate(plain)}
        tokens += plain
        kinds += [kind_of[code] for code in plain]
        binned = []
        for code, unit, *edges in _edges(rows, config.bins):
            inner = _inner(edges)
            binned.append(Binned(code, unit, len(tokens), inner))
            name = f"{code} [{unit}]" if unit and config.units == "split" else code
            tokens += [f"{name}_{place}" for place in range(len(inner) + 1)]
            kinds += [kind_of[code]] * (len(inner) + 1)
        return cls(
            config, tuple(tokens), tuple(kinds), prompt_ids, plain_ids, tuple(binned), dropped
        )

    def lookup(self, rows: pl.DataFrame) -> pl.DataFrame:
        """`rows` with `token` and `kind`; what was never seen, or in another unit, is [UNK].

        Args:
            rows: With `code`, `value`, `unit` and `kind`.
        """
        rows = rows.join(self._plain, on="code", how="left").join(
            self._binned, on=["code", "unit"], how="left"
        )
        bin_ = pl.sum_horizontal(
            pl.lit(0, pl.Int32),
            *((pl.col("value") > pl.col(name)).fill_null(False) for name in self._edge_names),
        )
        token = (
            pl.when(pl.col("value").is_null()).then("plain").otherwise(pl.col("first") + bin_)
        ).fill_null(UNK)
        return rows.with_columns(token.alias("token")).drop("plain", "first", *self._edge_names)

    # Files ------------------------------------------------------------------------------

    @cached_property
    def fingerprint(self) -> str:
        """Of everything that decides which token an event becomes."""
        return fingerprint_bytes(json.dumps(self._document(), sort_keys=True))

    def save(self, path: Path) -> None:
        """Write one JSON file, with its fingerprint."""
        atomic_json(path, {"fingerprint": self.fingerprint, **self._document()})

    @classmethod
    def load(cls, path: Path, fingerprint: str | None = None) -> Vocabulary:
        """Read what :meth:`save` wrote.

        Args:
            path: The file.
            fingerprint: That it must have; None for the one in the file.

        Raises:
            DataError: If it is not there, was changed, or is another one.
        """
        try:
            found = json.loads(path.read_text(encoding="utf-8"))
            stated = found.pop("fingerprint")
            vocabulary = cls._of(found)
        except (OSError, ValueError, KeyError, TypeError, AttributeError):
            raise DataError(
                "The vocabulary cannot be read.",
                where=str(path),
                expected="a file that a run of `forecast` wrote",
            ) from None
        if vocabulary.fingerprint != stated:
            raise DataError(
                "The vocabulary was changed after it was written.",
                where=str(path),
                expected=f"fingerprint {stated[:12]}, not {vocabulary.fingerprint[:12]}",
            )
        if fingerprint not in (None, stated):
            raise DataError(
                "This is another vocabulary than the one the network was trained with.",
                where=str(path),
                expected=f"fingerprint {str(fingerprint)[:12]}, not {stated[:12]}",
                next_step="Use the vocabulary.json of the same run folder.",
            )
        return vocabulary

    def _document(self) -> dict[str, Any]:
        return {**asdict(self), "config": self.config.model_dump(mode="json")}

    @classmethod
    def _of(cls, found: Mapping[str, Any]) -> Vocabulary:
        return cls(
            parse(TokenConfig, found["config"]),
            tuple(found["tokens"]),
            tuple(found["kinds"]),
            found["prompts"],
            found["plain"],
            tuple(Binned(c, u, f, tuple(e)) for c, u, f, e in found["binned"]),
            tuple(found["dropped"]),
        )

    # Tables -----------------------------------------------------------------------------

    @property
    def _edge_names(self) -> list[str]:
        return [f"edge_{place}" for place in range(self.config.bins - 1)]

    @cached_property
    def _plain(self) -> pl.DataFrame:
        schema = {"code": pl.String, "plain": pl.Int32}
        return pl.DataFrame(list(self.plain.items()), schema=schema, orient="row")

    @cached_property
    def _binned(self) -> pl.DataFrame:
        names = self._edge_names
        rows = [
            (b.code, b.unit, b.first, *b.edges, *[None] * (len(names) - len(b.edges)))
            for b in self.binned
        ]
        if self.config.units == "drop":
            # A value without a unit is taken to be in the only one that its code has.
            rows += [(row[0], "", *row[2:]) for row in rows if row[1]]
        edges: dict[str, Any] = dict.fromkeys(names, pl.Float64)
        schema = {"code": pl.String, "unit": pl.String, "first": pl.Int32, **edges}
        return pl.DataFrame(rows, schema=schema, orient="row")


def candidates(events: pl.DataFrame, sources: Iterable[Source]) -> pl.DataFrame:
    """Events that can become tokens, with their `kind`; units that are missing are empty.

    Only what was measured keeps its value, where that is finite: a dose is no result.
    """
    kinds = {source: int(KINDS[source]) for source in sources}
    known = pl.col("time").is_not_null()
    return events.filter(pl.col("source").is_in(list(kinds)) & known).with_columns(
        kind=pl.col("source").replace_strict(kinds, return_dtype=pl.Int8),
        value=pl.when(pl.col("value").is_finite() & pl.col("source").is_in(MEASURED)).then("value"),
        unit=pl.col("unit").fill_null(""),
    )


def _one_unit(rows: pl.DataFrame) -> tuple[pl.DataFrame, tuple[str, ...]]:
    """Rows of the codes with one unit at most, and the codes with more."""
    written = rows.filter(pl.col("value").is_not_null() & (pl.col("unit") != ""))
    units = written.group_by("code").agg(n=pl.col("unit").n_unique(), only=pl.col("unit").first())
    several = units.filter(pl.col("n") > 1)["code"].sort()
    kept = rows.filter(~pl.col("code").is_in(several.implode()))
    kept = kept.join(units.select("code", "only"), on="code", how="left", maintain_order="left")
    return kept.with_columns(unit=pl.col("only").fill_null("")), tuple(several)


def _edges(rows: pl.DataFrame, bins: int) -> Iterable[tuple[Any, ...]]:
    """(code, unit, lowest, quantiles, highest) of each code with values."""
    value = pl.col("value")
    quantiles = [value.quantile(k / bins, "linear").alias(f"q{k}") for k in range(bins + 1)]
    numbers = rows.filter(value.is_not_null())
    return numbers.group_by("code", "unit").agg(quantiles).sort("code", "unit").iter_rows()


def _inner(quantiles: list[float]) -> tuple[float, ...]:
    """The distinct edges between the lowest value and the highest, as of pandas' `qcut`."""
    low, high = quantiles[0], quantiles[-1]
    return tuple(sorted({edge for edge in quantiles if low < edge < high}))
