"""How the tables of a source become events, as a small YAML file.

Every value is a template, in which `{column}` stands for a cell, or a list of templates, of which
the first counts that has no blank cell. A column that is not in the table is an error, except in a
list, where another may be.
"""

from __future__ import annotations

import re
from importlib import resources
from pathlib import Path
from typing import Literal

import polars as pl
from pydantic import Field

from galenic.core.config import Config, load_yaml, parse
from galenic.core.errors import ConfigError, DataError, nearest
from galenic.data.events.schema import SOURCES

Template = str | list[str]

_CELL = re.compile(r"\{([^{}]+)\}")
PRESETS = Path(str(resources.files("galenic.data.events"))) / "mappings"


class Event(Config):
    """One kind of event that a row of a table stands for."""

    code: Template
    source: Literal[SOURCES] = "other"  # type: ignore[valid-type]
    time: Template | None = Field(None, description="None: the event is static.")
    end: Template | None = None
    value: Template | None = None
    text: Template | None = None
    unit: Template | None = None
    encounter: Template | None = None
    needs: list[str] = Field([], description="Columns; blank in one: no such event in this row.")
    where: dict[str, list[str]] = Field({}, description="Cells that a column must hold one of.")


class Join(Config):
    """Columns of another table of the folder, found by a key."""

    file: str
    by: dict[str, str] = Field(description="Column of this table: column of the other.")
    columns: list[str]
    optional: bool = Field(False, description="Without the file the columns are blank.")


class Clock(Config):
    """Where times are numbers since a moment of the row."""

    zero: Template = Field(description="That moment.")
    minus: Template | None = Field(None, description="A number to take off it.")
    unit: Literal["minutes", "hours", "days"]


class Table(Config):
    """One table, or several of one form."""

    file: str = Field(description="Name without suffix; may hold `*`.")
    patient: Template
    id: Template | None = Field(None, description="What makes a row one record.")
    join: Join | None = None
    wide: str | None = Field(
        None,
        description="Regular expression of the columns that are turned into rows, of `{column}` "
        "and `{cell}`; blank cells are left out.",
    )
    clock: Clock | None = None
    translate: dict[str, dict[str, str]] = Field({}, description="Column: {cell: other cell}.")
    events: list[Event]


class Mapping(Config):
    """The tables of a source."""

    about: str = ""
    tables: list[Table]


def load(name: str | Path) -> Mapping:
    """The mapping of a preset's name or a YAML file.

    Raises:
        ConfigError: If there is no such preset or file, or a key is wrong.
    """
    return parse(Mapping, load_yaml(preset_or_file(name, PRESETS)), where=f"mapping {name}")


def preset_or_file(name: str | Path, presets: Path) -> Path:
    """The YAML file that `name` stands for: a preset in `presets`, or a path.

    Raises:
        ConfigError: If it is neither.
    """
    shipped = presets / f"{name}.yaml"
    if shipped.is_file():
        return shipped
    if Path(name).is_file():
        return Path(name)
    known = sorted(path.stem for path in presets.glob("*.yaml"))
    raise ConfigError(
        f"There is no '{name}'. {nearest(str(name), known)}".strip(),
        expected=f"a YAML file, or one of {', '.join(known)}",
    )


def filled(template: Template | None, columns: list[str], where: str) -> pl.Expr:
    """The text of `template` for each row; null where it is None or a cell is blank.

    Raises:
        DataError: If the table has not the columns of any of its templates.
    """
    templates = [template] if isinstance(template, str) else template or []
    fits = [one for one in templates if not _missing(one, columns)]
    if templates and not fits:
        missing = _missing(templates[0], columns)[0]
        raise DataError(
            f"The table has no column '{missing}'. {nearest(missing, columns)}".strip(),
            where=where,
            expected=", ".join(columns),
            next_step="Correct the mapping, or choose another: --mapping",
        )
    nothing = pl.lit(None, dtype=pl.String)
    return pl.coalesce([*(_text(one) for one in fits), nothing])


def _missing(template: str, columns: list[str]) -> list[str]:
    return [name for name in _CELL.findall(template) if name not in columns]


def _text(template: str) -> pl.Expr:
    # Splitting at a group gives literals and names in turn.
    pieces = enumerate(_CELL.split(template))
    return pl.concat_str([pl.col(piece) if place % 2 else pl.lit(piece) for place, piece in pieces])
