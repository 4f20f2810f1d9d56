"""The pooled feature of a backbone, from raw inputs or from what was computed ahead."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from galenic.core.errors import ConfigError
from galenic.models.backbone import Backbone, Features
from galenic.models.prefix import Replay, frozen_prefix, prefix_modules, unwrapped


class PooledEncoder(nn.Module):
    """Pooled features [B, width].

    Args:
        backbone: The network.
        block: How many leading blocks `hidden` stands for.
    """

    def __init__(self, backbone: Backbone, block: int = 0) -> None:
        super().__init__()
        self.backbone = backbone
        self._replay = Replay(backbone, block) if block else None
        count = frozen_prefix(backbone.network)
        self._prefix = prefix_modules(backbone.network, count) if count else []

    def train(self, mode: bool = True) -> PooledEncoder:
        """Training mode for what trains by now; the frozen beginning draws no dropout.

        So a frozen output is the same in every epoch, and can be computed once.
        """
        super().train(mode)
        network = self.backbone.network
        trains = any(p.requires_grad for p in network.parameters())
        for module in self._prefix if trains else [network]:
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
            assert self._replay is not None, "hidden states need the number of blocks"
            with self._replay(hidden):
                return self._of(self.backbone(**inputs))
        return self._of(self.backbone(**inputs))

    def _of(self, features: Features) -> Tensor:
        return features.pooled

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


class TokenPairEncoder(PooledEncoder):
    """Class and distillation token [B, 2, width] of a network that has both."""

    def _of(self, features: Features) -> Tensor:
        assert features.tokens is not None, "a vision transformer has tokens"
        return features.tokens[:, :2]
