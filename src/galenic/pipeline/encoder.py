"""The pooled feature of a backbone, from raw inputs or from what was computed ahead."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from galenic.core.errors import ConfigError
from galenic.models.backbone import Backbone
from galenic.models.prefix import frozen_prefix, prefix_modules, replay, unwrapped


class PooledEncoder(nn.Module):
    """Pooled features [B, width].

    Args:
        backbone: The network.
        block: How many leading blocks `hidden` stands for.
    """

    def __init__(self, backbone: Backbone, block: int = 0) -> None:
        super().__init__()
        self.backbone = backbone
        self.block = block
        network = backbone.network
        if not any(p.requires_grad for p in network.parameters()):
            self._still: list[nn.Module] = [network]
        else:
            count = frozen_prefix(network)
            self._still = prefix_modules(network, count) if count else []

    def train(self, mode: bool = True) -> PooledEncoder:
        """Training mode for what trains; the frozen beginning draws no dropout.

        So a frozen output is the same in every epoch, and can be computed once.
        """
        super().train(mode)
        for module in self._still:
            module.eval()
        return self

    def forward(
        self, features: Tensor | None = None, hidden: Tensor | None = None, **inputs: Tensor
    ) -> Tensor:
        """Pooled features, entering the network as late as the arguments allow.

        Args:
            features: Pooled features [B, width], given back as they are.
            hidden: Hidden states behind the first `block` blocks [B, N, D].
            **inputs: What the backbone takes.
        """
        if features is not None:
            return features
        if hidden is not None:
            with replay(self.backbone, self.block, hidden):
                return self.backbone(**inputs).pooled
        return self.backbone(**inputs).pooled

    def gradient_checkpointing_enable(self) -> None:
        """Recompute activations in the backward pass.

        Raises:
            ConfigError: If the network does not know how.
        """
        network: Any = unwrapped(self.backbone.network)
        if not getattr(network, "supports_gradient_checkpointing", False):
            raise ConfigError(
                f"{type(network).__name__} cannot recompute its activations.",
                where="schedule.gradient_checkpointing",
                next_step="schedule.gradient_checkpointing=false",
            )
        network.gradient_checkpointing_enable({"use_reentrant": False})
