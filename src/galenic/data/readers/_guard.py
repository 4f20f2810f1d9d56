"""What every reader does about broken files."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from galenic.core.errors import DataError, GalenicError

Array = np.ndarray[Any, np.dtype[Any]]
# Larger than any clinical image or volume that fits beside a network in memory.
MOST_ELEMENTS = 2**30


@contextmanager
def guarded(path: Path, what: str) -> Iterator[None]:
    """Turn whatever a format library raises on a broken file into a DataError.

    The library's own message is left out: it may repeat what stands in the file.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    except GalenicError:
        raise
    except MemoryError:
        raise DataError(f"The {what} declares a size that does not fit in memory.") from None
    except Exception as error:
        raise DataError(
            f"The {what} '{path.name}' cannot be read ({type(error).__name__}).",
            expected=f"a whole {what}",
            next_step="Export it again; `galenic check` lists every unreadable file.",
        ) from None


def require_size(shape: tuple[int, ...], what: str) -> None:
    """Check a declared size before anything is allocated.

    Raises:
        DataError: If an axis is empty or the whole too large.
    """
    elements = 1
    for side in shape:
        elements *= int(side)
    if not shape or min(shape) < 1 or elements > MOST_ELEMENTS:
        raise DataError(
            f"The {what} declares the size {'x'.join(map(str, shape))}.",
            expected=f"at most {MOST_ELEMENTS} values, no empty axis",
        )


def require_finite(values: Array, what: str) -> Array:
    """`values`, if all of them are finite.

    Raises:
        DataError: With the number that are not.
    """
    bad = values.size - int(np.isfinite(values).sum()) if values.dtype.kind == "f" else 0
    if bad:
        raise DataError(
            f"The {what} has {bad} of {values.size} values that are NaN or infinite.",
            next_step="Repair it, or leave the row out.",
        )
    return values
