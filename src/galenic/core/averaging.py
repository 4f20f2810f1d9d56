"""The average of the weights at the end of the last epochs (Izmailov et al., UAI 2018)."""

from __future__ import annotations

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
        epoch: Steps of an epoch; epochs are counted from the end of the training.
    """

    def __init__(self, module: nn.Module, folder: Path, last: int, epoch: int) -> None:
        self.module, self.folder = module, folder
        self.last, self.epoch = last, epoch

    def after_step(self, done: int, total: int) -> None:
        """Keep the weights, if an epoch ends that counts."""
        left = total - done
        if left % self.epoch == 0 and left // self.epoch < self.last:
            self.folder.mkdir(parents=True, exist_ok=True)
            name = f"{left // self.epoch}.safetensors"
            atomic_write(self.folder / name, save(trained(self.module)))

    def put(self) -> None:
        """Put the average into the module; the files stay, for a run that is taken up here."""
        files = sorted(self.folder.glob("*.safetensors"))
        load_trained(self.module, average([load_file(file) for file in files]))


def average(states: Sequence[Mapping[str, Tensor]]) -> dict[str, Tensor]:
    """Mean of tensors by name, in the precision of the first; of integers the first alone."""
    return {
        name: torch.stack([state[name].double() for state in states]).mean(dim=0).to(first.dtype)
        if first.is_floating_point()
        else first
        for name, first in states[0].items()
    }
