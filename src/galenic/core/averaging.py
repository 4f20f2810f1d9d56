"""The average of the weights at the end of the last epochs (Izmailov et al., UAI 2018)."""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from safetensors.torch import load_file, save
from torch import Tensor, nn

from galenic.core.checkpoint import load_trained, trained
from galenic.core.files import atomic_write


class LastEpochs:
    """Keeps what training moves, on disk, at the end of each of the last epochs.

    On disk, so that a training that was cut off has the same average as one that was not.

    Args:
        module: What is trained.
        folder: Where the weights wait.
        last: How many epochs.
        epochs: Of the whole training.
    """

    def __init__(self, module: nn.Module, folder: Path, last: int, epochs: float) -> None:
        self.module, self.folder = module, folder
        self.last, self.epochs = last, epochs

    def after_step(self, done: int, total: int) -> None:
        """Keep the weights, if an epoch ends that counts."""
        every = max(1, round(total / self.epochs))
        left = total - done
        if left % every == 0 and left // every < self.last:
            self.folder.mkdir(parents=True, exist_ok=True)
            atomic_write(self.folder / f"{left // every}.safetensors", save(trained(self.module)))

    def put(self) -> None:
        """Put the average into the module, and remove what waited."""
        files = sorted(self.folder.glob("*.safetensors"))
        load_trained(self.module, average([load_file(file) for file in files]))
        shutil.rmtree(self.folder)


def average(states: Sequence[Mapping[str, Tensor]]) -> dict[str, Tensor]:
    """Mean of tensors by name, in the precision of the first; of integers the first alone."""
    return {
        name: torch.stack([state[name].double() for state in states]).mean(dim=0).to(first.dtype)
        if first.is_floating_point()
        else first
        for name, first in states[0].items()
    }
