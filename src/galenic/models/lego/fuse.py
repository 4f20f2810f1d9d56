"""LegoFuse: trained blocks in a row over one latent, for a little training on paired data."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import torch
from torch import Tensor, nn

from galenic.core.errors import ConfigError
from galenic.models.lego.assembly import Assembly
from galenic.models.lego.block import Input, LegoBlock, real
from galenic.models.lego.functional import HeadMethod
from galenic.models.lego.merge import LegoMerge

Mode = Literal["stack", "weave"]
Freeze = Literal["none", "encoder", "all"]


class LegoFuse(Assembly):
    """One latent that goes through all blocks.

    Hemker et al., ICLR 2025, arXiv 2405.19950. `stack`: the latent that a block gives, taken
    back from frequencies, is the one that the next begins with. `weave`: one layer of each block
    in turn, round after round, over a latent of its own. The head begins as the merged one. A
    missing modality is passed over.

    Args:
        blocks: By modality; copied, but for tensors that do not train, so that those given
            still do alone what they did.
        mode: `stack` or `weave`.
        order: Of the modalities; None for that of `blocks`.
        head: How the heads are merged to begin with.
        freeze: `none` lets train what trains in `blocks`; `encoder` holds the encoders; `all`
            holds the blocks, and head and woven latent train.

    Raises:
        ConfigError: If blocks do not fit together, or a name or mode is wrong.
    """

    def __init__(
        self,
        blocks: Mapping[str, LegoBlock],
        mode: Mode = "stack",
        order: Sequence[str] | None = None,
        head: HeadMethod = "slerp",
        freeze: Freeze = "none",
    ) -> None:
        names = list(blocks) if order is None else list(order)
        if sorted(names) != sorted(blocks):
            raise ConfigError(
                f"The order is {names}.", where="order", expected=f"each of: {', '.join(blocks)}"
            )
        if mode not in ("stack", "weave") or freeze not in ("none", "encoder", "all"):
            raise ConfigError(
                f"mode '{mode}' with freeze '{freeze}' is no fusion.",
                expected="stack or weave, with none, encoder or all",
            )
        merged = LegoMerge({name: blocks[name] for name in names}, head=_plain(head))
        super().__init__({name: _copied(blocks[name]) for name in names})
        self.mode: Mode = mode
        self.freeze: Freeze = freeze
        first = self.blocks[0]
        assert isinstance(first, LegoBlock)
        self.head: nn.Module = copy.deepcopy(first.head).requires_grad_(True)
        self.head.load_state_dict(merged.head_state())
        self.latent = nn.Parameter(torch.randn_like(first.latent)) if mode == "weave" else None
        for block in self.blocks:
            # Logits come from the fused head alone.
            block.head.requires_grad_(False)
            if freeze == "all":
                block.requires_grad_(False)
            elif freeze == "encoder":
                block.encoder.requires_grad_(False)
        if mode == "stack":
            # A latent that is never begun with would get no gradient; where the first modality
            # is missing, the next one begins with the latent that it learnt alone.
            for block in list(self.blocks)[1:]:
                block.latent.requires_grad_(False)
        else:
            for block in self.blocks:
                block.latent.requires_grad_(False)

    def logits(self, inputs: Mapping[str, Input]) -> Tensor:
        """As in :class:`Assembly`."""
        found: Tensor = self.head(real(self.encode(inputs)))
        return found

    def encode(self, inputs: Mapping[str, Input]) -> Tensor:
        """The latent [B, l_c, l_d] after all blocks of `inputs`, as blocks give it."""
        names = [name for name in self.names if name in inputs]
        if self.mode == "weave":
            return self._woven(names, inputs)
        latent = None
        for name in names:
            block = self.block(name)
            start = None if latent is None else block.back(latent)
            latent = block.encode(inputs[name], start)
        assert latent is not None
        return latent

    def _woven(self, names: Sequence[str], inputs: Mapping[str, Input]) -> Tensor:
        assert self.latent is not None
        read = {name: self.block(name).states(inputs[name]) for name in names}
        rounds = max(self.block(name).depth for name in names)
        turns = [
            (place, name)
            for place in range(rounds)
            for name in names
            if place < self.block(name).depth
        ]
        latent = self.latent.expand(len(read[names[0]][0]), -1, -1)
        for count, (place, name) in enumerate(turns):
            block = self.block(name)
            latent = block.layer(place, latent if count == 0 else block.back(latent), *read[name])
        return latent


def _plain(head: HeadMethod) -> HeadMethod:
    """Channels of latents that go from block to block have one order; only heads can be merged."""
    if head == "ot":
        raise ConfigError(
            "A fused model cannot reorder the channels of its blocks.",
            where="head",
            expected="slerp or linear",
        )
    return head


def _copied(block: LegoBlock) -> LegoBlock:
    """A copy that shares the tensors which do not train."""
    shared: dict[int, Any] = {id(p): p for p in block.encoder.parameters() if not p.requires_grad}
    return copy.deepcopy(block, shared)
