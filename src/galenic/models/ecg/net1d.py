"""Net1D: a residual network of grouped convolutions over time, in the shape of a RegNet.

Hong et al., "HOLMES", KDD 2020; sizes of ECGFounder (arXiv 2410.04133). The published class also
holds batch norms and dropouts, which its checkpoints were trained without; there are none here.
Modules are named as in the published checkpoints.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor, nn
from torch.nn import functional

from galenic.core.errors import BackboneError


@dataclass(frozen=True)
class Net1DConfig:
    """Sizes of a network; the defaults are those of ECGFounder.

    Attributes:
        leads: Channels of the input.
        stem: Channels behind the first convolution.
        widths: Channels of each stage.
        blocks: Blocks of each stage; the first one halves the length.
        kernel: Taps of the first convolution and of the grouped ones.
        group_width: Channels a group.

    Raises:
        BackboneError: If there is no stage, or the sizes do not fit each other.
    """

    leads: int = 12
    stem: int = 64
    widths: tuple[int, ...] = (64, 160, 160, 400, 400, 1024, 1024)
    blocks: tuple[int, ...] = (2, 2, 2, 3, 3, 4, 4)
    kernel: int = 16
    group_width: int = 16

    def __post_init__(self) -> None:
        if len(self.widths) != len(self.blocks) or not self.widths:
            raise BackboneError(
                f"Net1D got {len(self.widths)} widths and {len(self.blocks)} counts of blocks.",
                expected="one of each a stage",
            )
        counts = (self.leads, self.stem, self.kernel, self.group_width, *self.blocks)
        if min(counts) < 1:
            raise BackboneError("A size of Net1D is below 1.", expected="at least 1 each")
        if any(width < 2 or width % self.group_width for width in self.widths):
            raise BackboneError(
                f"Net1D got the widths {list(self.widths)}.",
                expected=f"multiples of group_width, which is {self.group_width}",
            )
        if list(self.widths) != sorted(self.widths) or self.stem > self.widths[0]:
            raise BackboneError(
                f"Net1D got the widths {[self.stem, *self.widths]}.",
                expected="no width below the one before: a shortcut adds channels, and drops none",
            )


class SameConv1d(nn.Module):
    """A convolution whose output has ceil(T / stride) samples.

    Of the zeros that are missing for that, the left side gets the smaller half.
    """

    def __init__(
        self, inputs: int, outputs: int, kernel: int, stride: int = 1, groups: int = 1
    ) -> None:
        super().__init__()
        self.conv = nn.Conv1d(inputs, outputs, kernel, stride, groups=groups)

    def forward(self, x: Tensor) -> Tensor:
        """[B, C, T] to [B, outputs, ceil(T / stride)]."""
        (stride,), (kernel,) = self.conv.stride, self.conv.kernel_size
        length = x.shape[-1]
        missing = max(0, (-(-length // stride) - 1) * stride + kernel - length)
        return self.conv(functional.pad(x, (missing // 2, missing - missing // 2)))


def shortcut(x: Tensor, stride: int, channels: int) -> Tensor:
    """The way around a block: the largest of each `stride` samples, zeros for new channels.

    Args:
        x: [B, C, T].
        stride: Of the block.
        channels: At least C; the C old ones stand in the middle.

    Returns:
        [B, channels, ceil(T / stride)].
    """
    if stride > 1:
        # Zeros, as published, and not minus infinity: the last window of an odd length sees one.
        missing = stride - 1
        x = functional.max_pool1d(functional.pad(x, (missing // 2, missing - missing // 2)), stride)
    more = channels - x.shape[1]
    return functional.pad(x, (0, 0, more // 2, more - more // 2)) if more else x


class Block(nn.Module):
    """Narrow, grouped and narrow convolution, weighed by channel, beside a shortcut.

    Args:
        inputs: Channels in.
        outputs: Channels out.
        config: Kernel and width of a group.
        stride: Of the grouped convolution.
        leading: Whether an activation comes first; it does but in the first block of all.
    """

    def __init__(
        self, inputs: int, outputs: int, config: Net1DConfig, stride: int, leading: bool
    ) -> None:
        super().__init__()
        self.stride, self.leading = stride, leading
        self.conv1 = SameConv1d(inputs, outputs, 1)
        self.conv2 = SameConv1d(
            outputs, outputs, config.kernel, stride, outputs // config.group_width
        )
        self.conv3 = SameConv1d(outputs, outputs, 1)
        self.se_fc1 = nn.Linear(outputs, outputs // 2)
        self.se_fc2 = nn.Linear(outputs // 2, outputs)

    def forward(self, x: Tensor) -> Tensor:
        """[B, inputs, T] to [B, outputs, ceil(T / stride)]."""
        out = self.conv1(functional.silu(x) if self.leading else x)
        out = self.conv3(functional.silu(self.conv2(functional.silu(out))))
        squeezed = functional.silu(self.se_fc1(out.mean(dim=-1)))
        out = out * self.se_fc2(squeezed).sigmoid().unsqueeze(-1)
        return out + shortcut(x, self.stride, out.shape[1])


class Stage(nn.Module):
    """Blocks of one width; the first one halves the length."""

    def __init__(
        self, inputs: int, width: int, count: int, config: Net1DConfig, first: bool
    ) -> None:
        super().__init__()
        self.block_list = nn.ModuleList(
            Block(
                width if place else inputs,
                width,
                config,
                stride=1 if place else 2,
                leading=not first or place > 0,
            )
            for place in range(count)
        )

    def forward(self, x: Tensor) -> Tensor:
        """[B, inputs, T] to [B, width, ceil(T / 2)]."""
        for block in self.block_list:
            x = block(x)
        return x


class Net1D(nn.Module):
    """The network without its head.

    Args:
        config: Sizes; None for those of ECGFounder.
    """

    def __init__(self, config: Net1DConfig | None = None) -> None:
        super().__init__()
        self.config = config = config or Net1DConfig()
        self.first_conv = SameConv1d(config.leads, config.stem, config.kernel, stride=2)
        before = (config.stem, *config.widths)
        self.stage_list = nn.ModuleList(
            Stage(before[place], width, count, config, first=place == 0)
            for place, (width, count) in enumerate(zip(config.widths, config.blocks, strict=True))
        )

    def forward(self, signal: Tensor) -> Tensor:
        """Features over time [B, T', width] of tracings [B, leads, T].

        T is halved, and rounded up, once at the stem and once a stage: 5000 samples give 20.
        The published feature is their mean over time.
        """
        state = functional.silu(self.first_conv(signal))
        for stage in self.stage_list:
            state = stage(state)
        return state.transpose(1, 2)
