"""A finished run on other samples; the data that it was trained on need not be there."""

from __future__ import annotations

import time
from pathlib import Path

from galenic.core.errors import ConfigError
from galenic.core.meters import Meter
from galenic.core.run import Run
from galenic.tasks import _predict_boxes, _predict_classes, _predict_lego, _predict_masks
from galenic.tasks._job import write_cost
from galenic.tasks._predict_config import OF_EVENTS, TABLE, Config
from galenic.tasks._predict_parts import PARTS

__all__ = ["TABLE", "Config", "run"]


def _stays(config: Config, finished: Run, run: Run) -> int:
    # Events need the extra `records`, without which all else is predicted too.
    from galenic.tasks import _predict_stays

    return _predict_stays.apply(config, finished, run)


def _forecast(config: Config, finished: Run, run: Run) -> int:
    from galenic.tasks import _predict_forecast

    return _predict_forecast.apply(config, finished, run)


WAYS = {
    **dict.fromkeys(PARTS, _predict_classes.apply),
    "segment": _predict_masks.apply,
    "detect": _predict_boxes.apply,
    "stays": _stays,
    "lego": _predict_lego.apply,
    "forecast": _forecast,
}
# Those that read events.
OVER_EVENTS = ("stays", "forecast")


def run(config: Config, run: Run) -> None:
    """Open, predict and, where there are labels, score; every file of `run` is written.

    Raises:
        GalenicError: For anything the user can put right.
    """
    started = time.perf_counter()
    trained = Run.open(Path(config.trained))
    task = trained.provenance.get("task")
    if task not in WAYS or trained.state != "finished":
        fault = trained.state if task in WAYS else f"of the task '{task}'"
        raise ConfigError(
            f"'{trained.path.name}' is {fault}.",
            where=str(trained.path),
            expected=f"a finished run of {', '.join(WAYS)}, such as `galenic run linear`",
        )
    told = [key for key in OF_EVENTS if getattr(config, key) is not None]
    if told and task not in OVER_EVENTS:
        raise ConfigError(
            f"'{trained.path.name}' is of the task '{task}', which reads no events.",
            where=", ".join(told),
            expected=f"a run of {' or '.join(OVER_EVENTS)}, such as `galenic run irregular-ehr`",
        )
    with Meter() as meter:
        parameters = WAYS[task](config, trained, run)
    write_cost(run, time.perf_counter() - started, meter, (0, parameters))
