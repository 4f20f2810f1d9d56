"""Everything that the task `predict` can be told."""

from __future__ import annotations

from pydantic import Field

from galenic.core.config import Config as BaseConfig
from galenic.evaluation.protocol import ScoreConfig
from galenic.pipeline.config import Columns

# One row a sample, in the order of its manifest.
TABLE = "predictions.csv"


class Config(BaseConfig):
    """Everything that `predict` can be told."""

    trained: str = Field(description="Folder of a finished run.")
    data: str
    columns: Columns = Columns()
    score: ScoreConfig = ScoreConfig()
    batch_size: int | None = Field(None, ge=1, description="None: as the run was evaluated.")
    seed: int = Field(0, ge=0, description="Of the bootstrap.")
