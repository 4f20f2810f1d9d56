"""A vision transformer that is run on some of its patches."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from galenic.core.errors import BackboneError
from galenic.core.prediction import evaluating
from galenic.models.anatomy import CONVOLUTIONS, anatomy
from galenic.models.backbone import Backbone
from galenic.objectives.pretraining._patches import patchify
from galenic.objectives.pretraining._positions import sin_cos

# What the parts of a network must give together, against the network itself.
CLOSE = 1e-4


class PatchEncoder(nn.Module):
    """The network of a backbone, from patches to tokens; its tensors stay where they are.

    Args:
        backbone: A transformer of patches: one convolution cuts them, learnt or fixed positions
            are added, blocks and a norm follow.

    Attributes:
        patch: Side of a patch in each dimension.
        grid: Patches in each dimension.
        width: Of a token.
        prefix: Tokens before the patches.

    Raises:
        BackboneError: If the network is built in another way; says what was looked for.
    """

    def __init__(self, backbone: Backbone) -> None:
        super().__init__()
        self.network = backbone.network
        self._name = backbone.spec
        names = anatomy(self.network)
        stem = self.network.get_submodule(names.stem) if names.stem else None
        if names.stem is None or not isinstance(stem, CONVOLUTIONS) or not _cuts(stem):
            raise self._refusal("no convolution that cuts patches: its stride is not its kernel")
        if not names.blocks or backbone.inputs.size is None:
            raise self._refusal("no chain of blocks, or pictures of any size")
        self.patch: tuple[int, ...] = tuple(int(side) for side in stem.kernel_size)
        self.grid = tuple(
            side // step for side, step in zip(backbone.inputs.size, self.patch, strict=True)
        )
        self.width = stem.out_channels
        self.channels = stem.in_channels
        self._stem, self._blocks = names.stem, names.blocks
        self._tokens, self._positions = self._find_tokens(), self._find_positions()
        self._norm = self._find_norm(names.norms)
        self.prefix = sum(part.shape[1] for part in self._prefix())
        self._check(backbone)

    @property
    def count(self) -> int:
        """Patches of a picture."""
        return math.prod(self.grid)

    @property
    def positions(self) -> nn.Parameter:
        """The network's own, [1, n + L, width], n of them for tokens before the patches."""
        return self.network.get_parameter(self._positions)

    def fix_positions(self) -> None:
        """Put sines and cosines in the place of the positions, zeros before the patches."""
        positions = self.positions
        with torch.no_grad():
            positions.zero_()
            positions[0, -self.count :] = sin_cos(self.grid, self.width).to(positions)
        positions.requires_grad_(False)

    def forward(self, patches: Tensor, places: Tensor) -> Tensor:
        """Tokens [B, prefix + k, width] of the patches at `places`, and of no others.

        Args:
            patches: [B, k, P * C], as :func:`patchify` orders them.
            places: Where they are from [B, k].
        """
        stem: Any = self.network.get_submodule(self._stem)
        kernel = stem.weight.movedim(1, -1).flatten(1)
        tokens = functional.linear(patches, kernel, stem.bias)
        positions, ahead = self.positions, self.positions.shape[1] - self.count
        tokens = tokens + positions[0, ahead:][places]
        if self.prefix:
            before = torch.cat(self._prefix(), dim=1)
            # Registers, which stand last, have no position.
            before = before + functional.pad(positions[:, :ahead], (0, 0, 0, self.prefix - ahead))
            tokens = torch.cat([before.expand(len(tokens), -1, -1), tokens], dim=1)
        for name in self._blocks:
            found = self.network.get_submodule(name)(tokens)
            tokens = found[0] if isinstance(found, tuple) else found
        return self.network.get_submodule(self._norm)(tokens) if self._norm else tokens

    # Finding the parts ------------------------------------------------------------------

    def _prefix(self) -> list[Tensor]:
        return [self.network.get_parameter(name) for name in self._tokens]

    def _find_tokens(self) -> list[str]:
        """Class, distillation and register tokens, in their order; mask tokens are none."""
        return [
            name
            for name, parameter in self.network.named_parameters()
            if "token" in (leaf := name.rpartition(".")[2])
            and "mask" not in leaf
            and parameter.ndim == 3
            and parameter.shape[-1] == self.width
        ]

    def _find_positions(self) -> str:
        found = [
            name
            for name, parameter in self.network.named_parameters()
            if "pos" in name.rpartition(".")[2]
            and parameter.ndim == 3
            and parameter.shape[-1] == self.width
            and parameter.shape[1] >= self.count
        ]
        if len(found) != 1:
            raise self._refusal(f"{len(found)} tables of positions for {self.count} patches")
        return found[0]

    def _find_norm(self, norms: tuple[str, ...]) -> str:
        """The last norm behind the blocks; '' where there is none."""
        places = list(dict(self.network.named_modules()))
        last = places.index(self._blocks[-1])
        chain = self._blocks[-1].rpartition(".")[0] + "."
        behind = [n for n in norms if places.index(n) > last and not n.startswith(chain)]
        return behind[-1] if behind else ""

    def _check(self, backbone: Backbone) -> None:
        """Compare the parts with the network: what they leave out must not matter."""
        example = backbone.example()
        pixels = example[backbone.inputs.key]
        draw = torch.Generator().manual_seed(0)
        pixels = torch.randn(pixels.shape, generator=draw).to(self.positions)
        places = torch.arange(self.count, device=pixels.device)[None]
        with evaluating(backbone), torch.no_grad():
            whole = backbone(**{backbone.inputs.key: pixels}).tokens
            try:
                parts = self(patchify(pixels, self.patch), places)
            except (RuntimeError, TypeError) as error:
                raise self._refusal(f"blocks that take more than tokens ({error})") from None
        if whole is None or whole.shape != parts.shape:
            raise self._refusal("tokens that do not stand for its patches one by one")
        if (whole - parts).abs().max() > CLOSE * whole.abs().max():
            raise self._refusal("something between patches, positions, blocks and norm")

    def _refusal(self, found: str) -> BackboneError:
        return BackboneError(
            f"'{self._name}' cannot be run on some of its patches; it has {found}.",
            expected="a vision transformer at its own size: patches, positions, blocks, a norm",
            next_step="backbone=builtin:vit?size=small",
        )


def _cuts(stem: Any) -> bool:
    return (
        tuple(stem.kernel_size) == tuple(stem.stride)
        and stem.groups == 1
        and set(stem.padding) == {0}
    )
