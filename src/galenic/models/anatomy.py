"""Where a network's parts are, whatever its family calls them."""

from __future__ import annotations

from dataclasses import dataclass

from torch import nn

CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)


@dataclass(frozen=True)
class Anatomy:
    """Module names of a network's parts.

    Attributes:
        blocks: The repeated blocks (or stages), in the order of the forward pass.
        norms: Every normalisation layer.
        stem: First convolution, or first embedding; None where there is neither.
        family: `transformer`, `convolutional` or `other`.
    """

    blocks: tuple[str, ...]
    norms: tuple[str, ...]
    stem: str | None
    family: str


def anatomy(network: nn.Module) -> Anatomy:
    """Find the parts of `network` by structure; works below a PEFT wrapper too."""
    names = dict(network.named_modules())
    blocks = _blocks(names)
    norms = tuple(name for name, module in names.items() if is_norm(module))
    stem = next((n for n, m in names.items() if isinstance(m, (*CONVOLUTIONS, nn.Embedding))), None)
    attends = any("attention" in type(module).__name__.lower() for module in names.values())
    convolves = sum(isinstance(module, CONVOLUTIONS) for module in names.values())
    family = "transformer" if attends else "convolutional" if convolves > 1 else "other"
    return Anatomy(blocks, norms, stem, family)


def is_norm(module: nn.Module) -> bool:
    """Whether a module normalises, by its kind's name: RMS norms have no common base class."""
    return "norm" in type(module).__name__.lower() and not any(module.children())


def _blocks(names: dict[str, nn.Module]) -> tuple[str, ...]:
    """The outermost chain of like modules that holds most of the parameters."""
    best: tuple[int, tuple[str, ...]] = (0, ())
    for name, module in names.items():
        if not isinstance(module, nn.ModuleList | nn.Sequential) or len(module) < 2:
            continue
        if len({type(child) for child in module}) != 1:
            continue
        weight = sum(p.numel() for p in module.parameters())
        # Strictly more: an inner chain of one outer block never displaces the outer one.
        if weight > best[0] and any(True for _ in module[0].children()):
            best = (weight, tuple(f"{name}.{i}" for i in range(len(module))))
    return best[1]


def depths(network: nn.Module) -> dict[str, int]:
    """Depth of every parameter: 0 before the blocks, 1..L inside, L+1 after them."""
    blocks = anatomy(network).blocks
    found: dict[str, int] = {}
    seen = False
    for name, _ in network.named_parameters():
        inside = next((i for i, b in enumerate(blocks) if name.startswith(b + ".")), None)
        if inside is not None:
            seen = True
            found[name] = inside + 1
        else:
            found[name] = len(blocks) + 1 if seen else 0
    return found
