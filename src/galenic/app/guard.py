"""What the command line does with a fault: the way out on stderr, an exit code, no traceback."""

from __future__ import annotations

import errno
import functools
import sys
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import typer

from galenic.core.errors import GalenicError

INTERRUPTED = 130
F = TypeVar("F", bound=Callable[..., None])


def guarded(command: F) -> F:
    """Print a :class:`GalenicError` as its way out, and leave with its exit code."""

    @functools.wraps(command)
    def wrapper(*args: Any, **kwargs: Any) -> None:
        started = time.time()
        try:
            command(*args, **kwargs)
        except GalenicError as error:
            if kwargs.get("debug"):
                traceback.print_exc()
            _fail(error)
        except KeyboardInterrupt:
            _interrupted(kwargs, started)
        except BrokenPipeError:
            # The reader left (`galenic ls | head`); nothing more can be written there.
            sys.stderr.close()
            raise typer.Exit(0) from None
        except OSError as error:
            if kwargs.get("debug"):
                raise
            _fail(_of_system(error))
        except RuntimeError as error:
            if kwargs.get("debug") or type(error).__name__ != "OutOfMemoryError":
                raise
            _fail(_of_memory())

    return wrapper  # type: ignore[return-value]


def _fail(error: GalenicError) -> None:
    from galenic.app import screen

    screen.error(error)
    raise typer.Exit(error.exit_code) from None


def _interrupted(options: dict[str, Any], started: float) -> None:
    lines = ["Interrupted."]
    if options.get("recipes") and "resume" not in options:
        lines.append("next: run the same command again; frozen features that were computed stay.")
    elif "resume" in options:
        folder = options["resume"] or _newest(Path(options["out"]), started)
        if folder is not None:
            verb = folder.name.partition("-")[0] if options.get("recipes") else "run"
            lines.append(f"next: galenic {verb} --resume {folder}")
    typer.echo("\n".join(lines), err=True)
    raise typer.Exit(INTERRUPTED) from None


def _newest(out: Path, since: float) -> Path | None:
    """The run folder under `out` that this process wrote to last."""
    found = [(path.stat().st_mtime, path.parent) for path in out.glob("*/status.json")]
    # File systems round times, some to whole seconds.
    recent = [pair for pair in found if pair[0] >= since - 2]
    return max(recent)[1] if recent else None


def _of_system(error: OSError) -> GalenicError:
    # A name that is too long is a cell of words: a patient's, perhaps.
    where = "" if error.errno == errno.ENAMETOOLONG else str(error.filename or "")
    return GalenicError(f"The system refused: {error.strerror or error}.", where=where)


def _of_memory() -> GalenicError:
    return GalenicError(
        "The device has too little memory for this batch.",
        next_step="schedule.batch_size=8 schedule.accumulate=4, "
        "or schedule.gradient_checkpointing=true",
    )
