"""The gate: what a port must keep to, or it is refused."""

from __future__ import annotations

import math
from dataclasses import replace

from pydantic import Field

from galenic.core.config import Config
from galenic.core.errors import WeightsError
from galenic.merging.patches.activations import ActivationDrift
from galenic.merging.patches.portability import Portability


class Gate(Config):
    """Floors and ceilings of a port; what is None is not asked, and what is unknown fails."""

    max_drift: float | None = Field(
        None,
        ge=0,
        description="Largest |dTheta| / |theta| of the new base, over all patched matrices.",
    )
    min_cosine: float | None = Field(
        None,
        ge=-1,
        le=1,
        description="Smallest cosine, over the patched layers, of their inputs in the old base with "
        "those in the new one.",
    )
    min_gain: float | None = Field(
        None,
        allow_inf_nan=False,
        description="Smallest gain of the ported patch over the bare new base, in the metric.",
    )

    def reasons(self, known: Portability) -> tuple[str, ...]:
        """Why a port is refused; empty where it is accepted."""
        found = []
        if known.other_base and (self.max_drift is not None or self.min_cosine is not None):
            found.append("the old base that was named is not the one that the patch was made on")
        if self.max_drift is not None and not _least(known.drift, self.max_drift):
            moved = "by an unknown part" if known.drift is None else f"by {known.drift:.3g}"
            found.append(f"the base has moved {moved} of its norm; {self.max_drift:g} is the most")
        if self.min_cosine is not None:
            rows = [row for row in known.activations if row.drift is not None]
            low = [row for row in rows if not _least(self.min_cosine, row.cosine)]
            if not rows:
                found.append("the drift of the activations is unknown")
            elif low:
                worst = min(low, key=_closeness)
                found.append(
                    f"the inputs of {len(low)} of {len(rows)} layers have moved too far: those of "
                    f"'{worst.name}' have a cosine of {_number(worst.cosine)}; "
                    f"{self.min_cosine:g} is the least"
                )
        if self.min_gain is not None and not _least(self.min_gain, known.gain):
            found.append(
                f"the gain over the bare new base is {_number(known.gain)}; "
                f"{self.min_gain:g} is the least"
            )
        return tuple(found)

    @property
    def before(self) -> Gate:
        """What can be asked before anything is scored."""
        return self.model_copy(update={"min_gain": None})


def judged(known: Portability, gate: Gate | None) -> Portability:
    """`known` with the word of the gate."""
    reasons = () if gate is None else gate.reasons(known)
    return replace(known, accepted=not reasons, reasons=reasons)


def require_accepted(known: Portability, label: str) -> None:
    """Refuse a port that its gate refused.

    Args:
        known: Of the port.
        label: What the new base is called.

    Raises:
        WeightsError: With every reason.
    """
    if not known.accepted:
        raise WeightsError(
            f"The port onto {label} is refused: {'; '.join(known.reasons)}.",
            expected="a base near enough to the old one for the patch to do what it did",
            next_step="Train the patch anew on this base, or move the limit.",
        )


def _closeness(row: ActivationDrift) -> float:
    return -math.inf if row.cosine is None or math.isnan(row.cosine) else row.cosine


def _least(low: float | None, high: float | None) -> bool:
    # Unknown, and not a number, is never enough.
    return low is not None and high is not None and low <= high


def _number(value: float | None) -> str:
    return "unknown" if value is None else f"{value:.3g}"
