"""A run inside another one: an arm, or a teacher, with a folder of its own."""

from __future__ import annotations

from pathlib import Path

from galenic.core.config import Config
from galenic.core.run import Run


def side_run(path: Path, config: Config, *, recipe: str, task: str, seed: int) -> Run:
    """The run in the folder `path`: a new one that has started, one taken up, or a finished one.

    Args:
        path: Its folder; the last part is its name.
        config: Written where it is new.
        recipe: Whose settings it has.
        task: The module that reads `config`.
        seed: Of it.

    Raises:
        RunError: If another process is at it.
    """
    if path.exists():
        side = Run.open(path)
        if side.state != "finished":
            side.resume()
        return side
    side = Run.create(path.parent, path.name, path=path)
    side.start(config.model_dump(mode="json"), recipe=recipe, task=task, seed=seed)
    return side
