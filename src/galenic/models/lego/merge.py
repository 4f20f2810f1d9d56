"""LegoMerge: one model of several trained blocks, without training."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor
from torch.func import functional_call

from galenic.core.errors import ConfigError
from galenic.models.lego import functional
from galenic.models.lego.assembly import Assembly
from galenic.models.lego.block import Input, LegoBlock, real
from galenic.models.lego.functional import HeadMethod, MergeMethod
from galenic.models.lego.layers import LegoHead


class LegoMerge(Assembly):
    """Latents merged element by element, heads merged tensor by tensor.

    Hemker et al., ICLR 2025, arXiv 2405.19950: every block reads its own modality, the latents
    are merged as frequencies (harmonic mean of magnitudes, mean of phases), and their real part
    goes to a head between those of the blocks. Where modalities are missing, latents and heads
    of those that are there are merged, with their weights scaled to sum 1, so that one modality
    alone gives what its block gives.

    Args:
        blocks: By modality; they are used, not copied.
        merge: How latents are merged (see :func:`.functional.merge_latents`).
        weights: Share of each modality; None for equal shares. `sum` and `product` weigh
            nothing but the heads, and leave out a modality of weight 0.
        head: `slerp` on the sphere, `linear`, or `ot`: the channels of every latent are first
            brought into the order that fits the head of the first block.

    Raises:
        ConfigError: If blocks do not fit together, or a name, weight or method is wrong.
    """

    def __init__(
        self,
        blocks: Mapping[str, LegoBlock],
        merge: MergeMethod = "harmonic",
        weights: Mapping[str, float] | None = None,
        head: HeadMethod = "slerp",
    ) -> None:
        super().__init__(blocks)
        for value, known in ((merge, MergeMethod), (head, HeadMethod)):
            if value not in known.__args__:  # type: ignore[attr-defined]
                raise ConfigError(
                    f"'{value}' is no way to merge.",
                    expected=", ".join(known.__args__),  # type: ignore[attr-defined]
                )
        if head == "ot" and not all(type(block.head) is LegoHead for block in blocks.values()):
            raise ConfigError("Channels are brought into order by LegoHeads only.", where="head")
        self.merge: MergeMethod = merge
        self.head: HeadMethod = head
        self.weights = self._checked(weights)

    def _checked(self, weights: Mapping[str, float] | None) -> dict[str, float]:
        if weights is None:
            return dict.fromkeys(self.names, 1.0 / len(self.names))
        self.require(weights)
        total = sum(weights.values())
        if set(weights) != set(self.names) or min(weights.values()) < 0 or not total > 0:
            raise ConfigError(
                f"The weights are {dict(weights)}.",
                where="weights",
                expected=f"one of at least 0 for each of {', '.join(self.names)}, not all of them 0",
            )
        return {name: weights[name] / total for name in self.names}

    def shares(self, names: Sequence[str]) -> list[float]:
        """The weights of the modalities that are there, with sum 1."""
        total = sum(self.weights[name] for name in names)
        if total == 0:
            return [1.0 / len(names)] * len(names)
        return [self.weights[name] / total for name in names]

    def encode(self, inputs: Mapping[str, Input]) -> Tensor:
        """The merged latent [B, l_c, l_d], as blocks give it, of samples with all of `inputs`."""
        names = [name for name in self.names if name in inputs]
        shares = self.shares(names)
        # A block without a say is not run.
        kept = [(name, share) for name, share in zip(names, shares, strict=True) if share > 0]
        latents = [self.block(name).encode(inputs[name]) for name, _ in kept]
        if self.head == "ot" and len(kept) > 1:
            orders = self._orders([name for name, _ in kept])
            latents = [x[..., order] for x, order in zip(latents, orders, strict=True)]
        return functional.merge_latents(latents, [share for _, share in kept], self.merge)

    def head_state(self, names: Sequence[str] | None = None) -> dict[str, Tensor]:
        """Tensors of the head between those of `names`; None for all blocks."""
        names = list(self.names if names is None else names)
        shares = self.shares(names)
        kept = [(name, share) for name, share in zip(names, shares, strict=True) if share > 0]
        states = [dict(self.block(name).head.state_dict()) for name, _ in kept]
        if self.head == "ot" and len(kept) > 1:
            orders = self._orders([name for name, _ in kept])
            states = [_ordered(s, order) for s, order in zip(states, orders, strict=True)]
        return functional.merge_states(states, [share for _, share in kept], self.head)

    def logits(self, inputs: Mapping[str, Input]) -> Tensor:
        """As in :class:`Assembly`."""
        state = self.head_state([name for name in self.names if name in inputs])
        latent = real(self.encode(inputs))
        found: Tensor = functional_call(self.blocks[0].head, state, (latent,))  # type: ignore[arg-type]
        return found

    def _orders(self, names: Sequence[str]) -> list[Tensor]:
        """Per block, the order of its channels that fits the head of the first."""
        columns = [_columns(self.block(name).head.state_dict()) for name in names]
        return [functional.transport(columns[0], found) for found in columns]


def _columns(head: Mapping[str, Tensor]) -> Tensor:
    """What a LegoHead does with each channel, [l_d, 2 + outputs]."""
    return torch.cat(
        [head["norm.weight"][:, None], head["norm.bias"][:, None], head["linear.weight"].T], dim=1
    )


def _ordered(head: Mapping[str, Tensor], order: Tensor) -> dict[str, Tensor]:
    return {
        "norm.weight": head["norm.weight"][order],
        "norm.bias": head["norm.bias"][order],
        "linear.weight": head["linear.weight"][:, order],
        "linear.bias": head["linear.bias"],
    }
