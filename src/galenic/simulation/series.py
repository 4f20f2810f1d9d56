"""A patient's series: one row a step, every column with its unit."""

from __future__ import annotations

import re
from pathlib import Path

import pandas as pd
import torch
from torch import Tensor

from galenic.core.errors import DataError
from galenic.simulation.rollout import Paths
from galenic.simulation.twin import Control, State, Twin, bounds

_HEADER = re.compile(r"^\s*(?P<name>[^\[\]]+?)\s*\[(?P<unit>[^\[\]]+)\]\s*$")


def read_series(path: Path, twin: Twin) -> Paths:
    """Counts and controls of one patient, from a CSV or Parquet file.

    Columns are named `name [unit]`: `time [tick]`, every state, and the controls that were used;
    a control without a column was 0. Rows follow each other by one step of the twin. A control in a
    row acts until the next row; that of the last row has no effect.

    Raises:
        DataError: If the file, a column, a unit, a time or a value is wrong; values are not repeated.
    """
    table = _open(path)
    time = _column(table, "time", twin.time_unit, path, needed=True)
    gaps = time[1:] - time[:-1]
    wrong = ((gaps - twin.dt).abs() > 1e-6 * twin.dt).nonzero()
    if len(time) < 3 or len(wrong):
        raise DataError(
            f"The series has {len(time)} rows."
            if len(time) < 3
            else "Two rows are not one step apart.",
            where=f"{path.name}, row {int(wrong[0]) + 2 if len(wrong) else 1}",
            expected=f"3 rows or more, each {twin.dt:g} {twin.time_unit} after the one before",
        )
    x = _columns(table, twin.states, path, needed=True)
    u = _columns(table, twin.controls, path, needed=False)[:-1]
    negative = (x < 0).nonzero()
    if len(negative):
        row, state = negative[0].tolist()
        raise DataError(
            "A count is negative.", where=f"{path.name}, row {row + 1}, '{twin.states[state].name}'"
        )
    low, high = bounds(twin.controls)
    beyond = ((u < low) | (u > high)).nonzero()
    if len(beyond):
        row, place = beyond[0].tolist()
        control = twin.controls[place]
        raise DataError(
            "A control is out of bounds.",
            where=f"{path.name}, row {row + 1}, '{control.name}'",
            expected=f"{control.low:g} to {control.high:g} {control.unit}",
        )
    return Paths(x[None], u[None])


def _open(path: Path) -> pd.DataFrame:
    try:
        return pd.read_parquet(path) if path.suffix == ".parquet" else pd.read_csv(path)
    except FileNotFoundError:
        raise DataError(f"There is no file '{path.name}'.", where=str(path)) from None
    except (OSError, ValueError) as error:
        raise DataError(
            f"'{path.name}' is no table: {type(error).__name__}.", where=str(path)
        ) from None


def _columns(
    table: pd.DataFrame, parts: tuple[State, ...] | tuple[Control, ...], path: Path, *, needed: bool
) -> Tensor:
    found = [_column(table, part.name, part.unit, path, needed=needed) for part in parts]
    return torch.stack(found, dim=1).float()


def _column(table: pd.DataFrame, name: str, unit: str, path: Path, *, needed: bool) -> Tensor:
    """One column as float64 [rows]; zeros where it is not needed and not there."""
    units = {m["name"]: (m["unit"], c) for c in table.columns if (m := _HEADER.match(str(c)))}
    if name in table.columns:
        raise DataError(
            f"Column '{name}' says no unit.", where=path.name, expected=f"{name} [{unit}]"
        )
    if name not in units:
        if not needed:
            return torch.zeros(len(table), dtype=torch.float64)
        raise DataError(
            f"There is no column '{name}'.", where=path.name, expected=f"{name} [{unit}]"
        )
    given, column = units[name]
    if given != unit:
        raise DataError(
            f"'{name}' is given in {given}.", where=path.name, expected=f"{name} [{unit}]"
        )
    numbers = pd.to_numeric(table[column], errors="coerce")
    values = torch.tensor(numbers.to_numpy(dtype="float64", na_value=float("nan")))
    wrong = (~torch.isfinite(values)).nonzero()
    if len(wrong):
        raise DataError(
            "A value is missing, infinite or no number.",
            where=f"{path.name}, row {int(wrong[0]) + 1}, '{name}'",
        )
    return values
