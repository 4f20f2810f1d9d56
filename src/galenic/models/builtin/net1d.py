"""Net1D of ECGFounder, 30.6 M, with random weights: the published ones are opened by their path."""

from __future__ import annotations

from collections.abc import Sequence

from galenic.core.inputs import STANDARD_LEADS
from galenic.models.backbone import Opened
from galenic.models.ecg.net1d import Net1D, Net1DConfig
from galenic.models.ecg.published import inputs_of


def build(
    *,
    random: bool = False,
    channels: int | None = None,
    stem: int = Net1DConfig.stem,
    widths: Sequence[int] = Net1DConfig.widths,
    blocks: Sequence[int] = Net1DConfig.blocks,
    kernel: int = Net1DConfig.kernel,
    group_width: int = Net1DConfig.group_width,
) -> Opened:
    """A network for the twelve standard leads, or for `channels` where these are fewer.

    Args:
        random: Weights are random in any case.
        channels: Leads of the record.
        stem: Channels behind the first convolution.
        widths: Channels of each stage.
        blocks: Blocks of each stage.
        kernel: Taps of a convolution.
        group_width: Channels a group.

    Raises:
        BackboneError: If the sizes do not fit each other.
    """
    del random
    leads = min(channels or len(STANDARD_LEADS), len(STANDARD_LEADS))
    config = Net1DConfig(leads, stem, tuple(widths), tuple(blocks), kernel, group_width)
    return Opened(Net1D(config).eval(), inputs_of(leads))
