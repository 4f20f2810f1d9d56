"""A run inside another one: an arm, or a teacher, with a folder of its own."""

from __future__ import annotations

import shutil
from pathlib import Path

from galenic.core.config import Config
from galenic.core.run import Run
from galenic.tasks import classify


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
    if (path / "status.json").is_file():
        side = Run.open(path)
        if side.state != "finished":
            side.resume()
        return side
    # A kill before the first file leaves an empty folder.
    shutil.rmtree(path, ignore_errors=True)
    side = Run.create(path.parent, path.name, path=path)
    side.start(config.model_dump(mode="json"), recipe=recipe, task=task, seed=seed)
    return side


def classified(path: Path, config: classify.Config, *, recipe: str = "") -> Run:
    """The finished `classify` run in a folder: carried out there, or as it is.

    Raises:
        GalenicError: As `classify.run`; or if another process is at it.
    """
    side = side_run(path, config, recipe=recipe, task="classify", seed=config.seed)
    if side.state != "finished":
        with side.working():
            classify.run(config, side)
        shutil.rmtree(path / "checkpoints", ignore_errors=True)
    return side
