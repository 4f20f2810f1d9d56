"""What differs from the schedule in one stage of a training."""

from __future__ import annotations

from typing import Any

from pydantic import Field

from galenic.core.config import Config


class Phase(Config):
    """What differs from the schedule in one phase."""

    epochs: float | None = Field(None, gt=0, description="None: as in the schedule.")
    max_steps: int | None = Field(None, ge=1, description="None: as in the schedule.")
    lr: float | None = Field(None, gt=0, description="None: as in the schedule.")

    def keys(self) -> dict[str, Any]:
        """The keys that differ."""
        return self.model_dump(exclude_none=True)
