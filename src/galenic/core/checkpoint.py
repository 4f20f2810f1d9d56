"""What training moves: taken out of a module, put back, and kept on disk with digests.

A checkpoint is a folder that appears whole (:func:`galenic.core.files.atomic_folder`). Weights
are safetensors with a digest per tensor in `tensors.json`; its manifest of file digests is
written last, and without one the folder does not count.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import shutil
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from galenic.core.errors import WeightsError
from galenic.core.files import atomic_json, verify_folder

WEIGHTS, BEST, DIGESTS = "model.safetensors", "best.safetensors", "tensors.json"
PREFIX = "checkpoint-"
KEPT = 2


class Moving:
    """The tensors of a module that training moves.

    These are the parameters with gradients, the buffers, and any frozen parameter that was
    changed in place since this object was made, as the teacher of a self-distillation is.
    Such a change is seen by torch's own version counter; one made through `.data` is not.

    Args:
        module: Whose tensors.
    """

    def __init__(self, module: nn.Module) -> None:
        self.module = module
        self._versions = {n: p._version for n, p in module.named_parameters()}
        self._also: set[str] = set()

    def names(self) -> set[str]:
        """Names of all that moves, as far as is known by now."""
        for name, parameter in self.module.named_parameters():
            if parameter._version != self._versions.get(name):
                self._also.add(name)
        trains = {n for n, p in self.module.named_parameters() if p.requires_grad}
        return trains | {n for n, _ in self.module.named_buffers()} | self._also

    def take(self) -> dict[str, Tensor]:
        """Copies on the CPU, by name."""
        return _copies(self.module, self.names())

    def put(self, state: Mapping[str, Tensor]) -> None:
        """Put back what :meth:`take` took.

        Raises:
            WeightsError: If a tensor is missing, unknown or of another shape; names it.
        """
        load_trained(self.module, state)
        self._also |= {n for n in state if n in self._versions}


def trained(module: nn.Module) -> dict[str, Tensor]:
    """Copies of all that training moves: parameters with gradients, and buffers."""
    return _copies(module, _must(module))


def _must(module: nn.Module) -> set[str]:
    trains = {n for n, p in module.named_parameters() if p.requires_grad}
    return trains | {n for n, _ in module.named_buffers()}


def _copies(module: nn.Module, names: Iterable[str]) -> dict[str, Tensor]:
    places = _places(module)
    # A clone of its own: safetensors refuses views that share storage.
    return {n: places[n].detach().cpu().clone().contiguous() for n in sorted(names)}


def _places(module: nn.Module) -> dict[str, Tensor]:
    return {**dict(module.named_parameters()), **dict(module.named_buffers())}


def load_trained(module: nn.Module, state: Mapping[str, Tensor]) -> None:
    """Put back what :func:`trained` took; nothing is changed if anything does not fit.

    Raises:
        WeightsError: If a tensor is missing, unknown or of another shape; names it.
    """
    places = _places(module)
    odd = sorted((_must(module) - set(state)) | (set(state) - set(places)))
    if odd:
        raise WeightsError(
            f"The checkpoint is of another objective: {len(odd)} tensors differ, first '{odd[0]}'.",
            next_step="Resume with the config that the run was started with.",
        )
    for name, value in state.items():
        if places[name].shape != value.shape:
            raise WeightsError(
                f"The checkpoint is of another objective: '{name}' has another shape.",
                expected=f"{tuple(places[name].shape)}, got {tuple(value.shape)}",
                next_step="Resume with the config that the run was started with.",
            )
    with torch.no_grad():
        for name, value in state.items():
            places[name].copy_(value)


# Files ------------------------------------------------------------------------------------


def write_weights(
    folder: Path, weights: Mapping[str, Tensor], best: Mapping[str, Tensor] | None
) -> None:
    """Write the weights, those of the best epoch if they are others, and all their digests."""
    digests = {}
    for name, state in ((WEIGHTS, weights), (BEST, best)):
        if state is not None:
            save_file(dict(state), folder / name)
            digests[name] = {key: digest(value) for key, value in state.items()}
    atomic_json(folder / DIGESTS, digests)


def read_weights(folder: Path) -> tuple[dict[str, Tensor], dict[str, Tensor] | None]:
    """What :func:`write_weights` wrote; the second is None where it was."""
    best = folder / BEST
    return load_file(folder / WEIGHTS), load_file(best) if best.is_file() else None


def digest(value: Tensor) -> str:
    """SHA-256 of the bytes, shape and type of a tensor."""
    plain = value.detach().cpu().contiguous()
    made = hashlib.sha256(f"{plain.dtype}{tuple(plain.shape)}".encode())
    made.update(plain.reshape(-1).view(torch.uint8).numpy().data)
    return made.hexdigest()


def verify(folder: Path) -> None:
    """Check a checkpoint against its manifest.

    Raises:
        WeightsError: Naming the damaged tensor, or the file where that is all one can tell.
    """
    try:
        verify_folder(folder)
    except WeightsError as error:
        bad = _damaged_tensor(folder)
        if bad is None:
            raise
        raise WeightsError(
            f"The tensor '{bad[1]}' in '{folder.name}/{bad[0]}' is damaged: its digest is not "
            "the one that was saved.",
            where=error.where,
            next_step=error.next_step,
        ) from None


def _damaged_tensor(folder: Path) -> tuple[str, str] | None:
    with contextlib.suppress(OSError, ValueError, TypeError, AttributeError):
        for file, digests in json.loads((folder / DIGESTS).read_text()).items():
            with (
                contextlib.suppress(OSError, SafetensorError),
                safe_open(folder / file, "pt") as tensors,
            ):
                for name, wanted in digests.items():
                    if digest(tensors.get_tensor(name)) != wanted:
                        return file, name
    return None


def checkpoints(folder: Path) -> list[Path]:
    """The checkpoints in `folder`, oldest first, whole or not."""
    found = [p for p in folder.glob(f"{PREFIX}*") if p.name.removeprefix(PREFIX).isdigit()]
    return sorted(found, key=lambda path: int(path.name.removeprefix(PREFIX)))


def newest_whole(folder: Path, warn: Callable[[dict[str, Any]], None]) -> Path | None:
    """The newest checkpoint that is whole; None where there is none at all.

    Args:
        folder: Where they are.
        warn: Receives an event for each damaged one that is passed over.

    Raises:
        WeightsError: If there are checkpoints and every one is damaged.
    """
    first: WeightsError | None = None
    for path in reversed(checkpoints(folder)):
        try:
            verify(path)
        except WeightsError as error:
            first = first or error
            warn({"event": "damaged checkpoint", "name": path.name, "why": error.found})
        else:
            return path
    if first is None:
        return None
    raise WeightsError(
        f"No checkpoint is whole. {first.found}",
        where=first.where,
        next_step="Start the run anew, without resume.",
    )


def rotate(folder: Path, kept: int = KEPT) -> None:
    """Remove all but the newest checkpoints: one to use, one in case it is damaged."""
    for old in checkpoints(folder)[:-kept]:
        shutil.rmtree(old, ignore_errors=True)
