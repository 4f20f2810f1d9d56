"""How much of what a new training would bring a ported patch brings."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Recovery:
    """Five arms of one experiment, in one metric.

    Attributes:
        old: The old base, without the patch.
        old_patched: The old base with the patch that was trained on it.
        new: The new base, without the patch.
        ported: The new base with the old patch.
        retrained: The new base with a patch that was trained on it: the upper reference.
        share: (ported - new) / (retrained - new); None where training anew brings nothing, or
            harm, so that there is nothing to recover.
        lost: ported - retrained: what the missing training costs.
    """

    old: float
    old_patched: float
    new: float
    ported: float
    retrained: float
    share: float | None
    lost: float


def recovery(
    old: float,
    old_patched: float,
    new: float,
    ported: float,
    retrained: float,
    *,
    greater_is_better: bool = True,
) -> Recovery:
    """Set a ported patch between doing nothing and training anew.

    Without the last arm, the difference from the bare new base overstates what porting is worth.

    Args:
        old: Metric of the old base.
        old_patched: Of the old base with its patch.
        new: Of the new base.
        ported: Of the new base with the old patch.
        retrained: Of the new base with a new patch.
        greater_is_better: Which way the metric points.
    """
    room, won = retrained - new, ported - new
    useful = room > 0 if greater_is_better else room < 0
    share = won / room if useful else None
    return Recovery(old, old_patched, new, ported, retrained, share, ported - retrained)
