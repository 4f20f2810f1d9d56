"""What merged and fused models share: named blocks that fit, and samples that lack some."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence

import torch
from torch import Tensor, nn

from galenic.core.errors import ConfigError, nearest
from galenic.models.lego.block import Input, LegoBlock

# Options that have to be equal for latents to be comparable.
COMMON = ("latent", "outputs", "frequency_domain", "track_imaginary")


class Assembly(nn.Module):
    """Blocks of several modalities behind one head.

    Args:
        blocks: By modality.

    Raises:
        ConfigError: If there is no block, or their latents or heads do not fit together.
    """

    def __init__(self, blocks: Mapping[str, LegoBlock]) -> None:
        super().__init__()
        check_blocks(blocks)
        self.names = tuple(blocks)
        self.blocks = nn.ModuleList(blocks.values())

    def block(self, name: str) -> LegoBlock:
        """The block of a modality.

        Raises:
            ConfigError: If there is none, naming the nearest.
        """
        self.require([name])
        found = self.blocks[self.names.index(name)]
        assert isinstance(found, LegoBlock)
        return found

    def require(self, names: Iterable[str]) -> None:
        """Check that these modalities are known.

        Raises:
            ConfigError: Naming the first that is not, and the nearest.
        """
        for name in names:
            if name not in self.names:
                raise ConfigError(
                    f"There is no block for '{name}'. {nearest(name, self.names)}".strip(),
                    expected=", ".join(self.names),
                )

    def forward(
        self, inputs: Mapping[str, Input], present: Mapping[str, Tensor] | None = None
    ) -> Tensor:
        """Logits [B, outputs].

        Args:
            inputs: By modality; one that is absent is missing in every sample.
            present: Per modality bool [B], which samples have it; one that is absent is there in
                every sample. What stands in `inputs` for the others is not looked at.

        Raises:
            ConfigError: If a modality is unknown, or a sample has none at all.
        """
        self.require([*inputs, *(present or {})])
        given = [name for name in self.names if name in inputs]
        if not given:
            raise ConfigError("No modality was given.", expected=", ".join(self.names))
        masks = {name: mask for name, mask in (present or {}).items() if name in inputs}
        if not masks:
            return self.logits({name: inputs[name] for name in given})
        parts, places = [], []
        for names, rows in _patterns(given, masks):
            parts.append(self.logits({name: _rows(inputs[name], rows) for name in names}))
            places.append(rows)
        return torch.cat(parts)[torch.argsort(torch.cat(places))]

    def logits(self, inputs: Mapping[str, Input]) -> Tensor:
        """Logits [B, outputs] of samples that have all of `inputs`, in the order of the blocks."""
        raise NotImplementedError


def check_blocks(blocks: Mapping[str, LegoBlock]) -> None:
    """Check that latents of `blocks` can be put together, and their heads merged.

    Raises:
        ConfigError: Naming the first two that do not fit, and in what.
    """
    if not blocks:
        raise ConfigError("There is no block to assemble.", expected="at least one LegoBlock")
    (first, reference), *others = blocks.items()
    for name, block in others:
        for option in COMMON:
            if block.options[option] != reference.options[option]:
                raise ConfigError(
                    f"Block '{first}' has {option} {reference.options[option]}, block '{name}' has "
                    f"{block.options[option]}.",
                    expected=f"blocks that were trained with the same {option}",
                )
        mine, theirs = _signature(reference.head), _signature(block.head)
        if mine != theirs:
            raise ConfigError(
                f"The heads of '{first}' and '{name}' are built differently.",
                where=f"{_difference(mine, theirs)}",
                expected="layers of the same types and shapes, in the same order",
            )


def _signature(head: nn.Module) -> list[tuple[str, str, str]]:
    """Name, type and shapes of every layer."""
    return [
        (name, type(layer).__name__, str([tuple(p.shape) for p in layer.parameters(recurse=False)]))
        for name, layer in head.named_modules()
    ]


def _difference(mine: Sequence[tuple[str, ...]], theirs: Sequence[tuple[str, ...]]) -> str:
    pairs = zip(mine, theirs, strict=False)
    a, b = next(((a, b) for a, b in pairs if a != b), (mine[-1], theirs[-1]))
    return f"{' '.join(a)} against {' '.join(b)}".strip()


def _patterns(
    given: Sequence[str], masks: Mapping[str, Tensor]
) -> Iterator[tuple[list[str], Tensor]]:
    """The samples that have the same modalities, together."""
    one = next(iter(masks.values()))
    whole = torch.ones(len(one), dtype=torch.bool, device=one.device)
    table = torch.stack([masks.get(name, whole).bool() for name in given], dim=1)
    lacking = ~table.any(dim=1)
    if lacking.any():
        raise ConfigError(
            f"{int(lacking.sum())} of {len(table)} samples have none of the modalities.",
            expected=f"at least one of: {', '.join(given)}",
        )
    for pattern in torch.unique(table, dim=0):
        rows = (table == pattern).all(dim=1).nonzero().squeeze(1)
        yield [name for name, there in zip(given, pattern.tolist(), strict=True) if there], rows


def _rows(inputs: Input, rows: Tensor) -> Input:
    if isinstance(inputs, Mapping):
        return {key: value[rows] for key, value in inputs.items()}
    return inputs[rows]
