"""The columns of a table as they are: for probes, neighbours and baselines."""

from __future__ import annotations

from torch import Tensor, nn

from galenic.core.inputs import InputSpec
from galenic.models.backbone import Opened


class Identity(nn.Module):
    """Gives the standardised columns back."""

    def forward(self, table: Tensor) -> Tensor:
        """[B, F] as it came."""
        return table


def build(*, random: bool = False, channels: int | None = None) -> Opened:
    """No weights; `channels` is the number of columns."""
    del random
    return Opened(Identity(), InputSpec("table", "table", channels=channels or 1))
