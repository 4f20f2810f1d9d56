"""Everything that the task `predict` can be told."""

from __future__ import annotations

from typing import Any

from pydantic import Field

from galenic.core.config import Config as BaseConfig
from galenic.evaluation.protocol import ScoreConfig
from galenic.pipeline.config import Columns

# One row a sample, in the order of its manifest.
TABLE = "predictions.csv"
# Keys of the config that say how events are read.
OF_EVENTS = ("stays", "mapping", "timezone")


class Config(BaseConfig):
    """Everything that `predict` can be told."""

    trained: str = Field(description="Folder of a finished run.")
    data: str
    columns: Columns = Columns()
    score: ScoreConfig = ScoreConfig()
    batch_size: int | None = Field(None, ge=1, description="None: as the run was evaluated.")
    seed: int = Field(0, ge=0, description="Of the bootstrap.")
    stays: str | None = Field(
        None,
        description="Of the task `stays`: manifest with the columns patient_id and cutoff, and "
        "labels where they are known; None: the definition of the run makes it of the new events.",
    )
    mapping: str | None = Field(
        None,
        description="Of tables to events, as `stays` and `forecast` take it; None: the run's own. "
        "'': none, where the new events are FHIR or MEDS.",
    )
    timezone: str | None = Field(
        None, description="Where clocks of events without a zone hang; None: the run's own."
    )

    def reading(self, mapping: str | None, timezone: str) -> dict[str, Any]:
        """How events are read: as was asked or, where nothing was, as the run read its own.

        Args:
            mapping: Of the run.
            timezone: Of the run.
        """
        return {
            "mapping": mapping if self.mapping is None else self.mapping or None,
            "timezone": timezone if self.timezone is None else self.timezone,
        }
