"""How much of what a new training would bring a ported patch brings."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Recovery:
    """Five arms of one experiment, in one metric.

    Attributes:
        old: The old base, without the patch; None where it was not scored, as the next one.
        old_patched: The old base with the patch that was trained on it.
        new: The new base, without the patch.
        ported: The new base with the old patch.
        retrained: The new base with a patch that was trained on it: the upper reference; None
            where there is none.
        share: (ported - new) / (retrained - new); None where training anew brings nothing, or
            harm, so that there is nothing to recover, and where nothing was trained anew.
        lost: ported - retrained: what the missing training costs.
        gain: Of ported over new; positive is better, whichever way the metric points.
    """

    old: float | None
    old_patched: float | None
    new: float
    ported: float
    retrained: float | None
    share: float | None
    lost: float | None
    gain: float


def recovery(
    old: float | None,
    old_patched: float | None,
    new: float,
    ported: float,
    retrained: float | None,
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
        retrained: Of the new base with a new patch; None where there is none.
        greater_is_better: Which way the metric points.
    """
    gain = ported - new if greater_is_better else new - ported
    share = lost = None
    if retrained is not None:
        room, lost = retrained - new, ported - retrained
        if room > 0 if greater_is_better else room < 0:
            share = (ported - new) / room
    return Recovery(old, old_patched, new, ported, retrained, share, lost, gain)
