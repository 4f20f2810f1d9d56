"""Task vectors that are computed once: every coefficient is then one addition to the network.

A method of the family gives base + alpha * v, where v depends on the task vectors alone. Merging
the vectors themselves on a base of zeros gives v, by the code that merges checkpoints.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from galenic.core.errors import ConfigError, WeightsError
from galenic.merging import methods, writing
from galenic.merging.checkpoints import Checkpoint
from galenic.merging.engine import merge_states
from galenic.merging.ops import task_vector
from galenic.merging.sources import spans
from galenic.merging.writing import Slot


class TaskVectors:
    """The task vectors of one base, in files that are read by memory map.

    Args:
        folder: A new folder for the files.
        base: Tensors of the base, all of a floating type, by name.
    """

    def __init__(self, folder: Path, base: Mapping[str, Tensor]) -> None:
        folder.mkdir(parents=True)
        self.folder = folder
        slots = [Slot(name, t.dtype, tuple(t.shape)) for name, t in base.items()]
        self._base = self._written("base", slots, base)
        self._vectors: dict[str, Checkpoint] = {}

    def __contains__(self, name: object) -> bool:
        return name in self._vectors

    def add(self, name: str, tuned: Mapping[str, Tensor]) -> None:
        """Keep the task vector of one model, in float32.

        Raises:
            WeightsError: If its tensors are not those of the base; names the first.
        """
        shapes = {key: tuple(t.shape) for key, t in tuned.items()}
        wanted = {key: entry.shape for key, entry in self._base.entries.items()}
        if shapes != wanted:
            odd = next(k for k in {**wanted, **shapes} if shapes.get(k) != wanted.get(k))
            raise WeightsError(
                f"The tensor '{odd}' is {shapes.get(odd, 'missing')} in {name}, and "
                f"{wanted.get(odd, 'missing')} in the base.",
                expected="the same tensors in the base and every model",
            )
        slots = [Slot(key, torch.float32, shape) for key, shape in wanted.items()]
        stem = f"vector-{len(self._vectors)}"
        self._vectors[name] = self._written(stem, slots, tuned, self._base)

    def combine(
        self,
        names: Sequence[str],
        method: str,
        parameters: Mapping[str, Any],
        *,
        each: Mapping[str, Mapping[str, Any]] | None = None,
        seed: int = 0,
    ) -> dict[str, Tensor]:
        """What a method makes of the vectors `names`: v of base + v, by name of the tensor.

        Args:
            names: Of models that were added.
            method: A name of `galenic.merging.methods` that :func:`along` takes.
            parameters: Of the method.
            each: Of each model.
            seed: Of what the method draws.
        """
        vectors = {name: self._vectors[name] for name in names}
        zeros = {key: torch.zeros(()).expand(e.shape) for key, e in self._base.entries.items()}
        needed = methods.capabilities(method).needs_base
        return merge_states(
            method, zeros if needed else None, vectors, parameters, each, seed=seed
        )  # fmt: skip

    @torch.no_grad()
    def apply(
        self, target: Mapping[str, Tensor], vector: Mapping[str, Tensor], alpha: float
    ) -> None:
        """Write base + alpha * vector into `target`; with `alpha` 0, the base bit for bit."""
        for name, base in self._base.items():
            if alpha == 0:
                target[name].copy_(base)
            else:
                target[name].copy_(
                    torch.add(base.to(vector[name].dtype), vector[name], alpha=alpha)
                )

    def _written(
        self,
        stem: str,
        slots: Sequence[Slot],
        tensors: Mapping[str, Tensor],
        base: Checkpoint | None = None,
    ) -> Checkpoint:
        """The file of `tensors`, or of what they differ from `base`."""

        def stream(slot: Slot) -> Any:
            flat = tensors[slot.name].detach().cpu().reshape(-1)
            source = None if base is None else base.source(slot.name)
            for start, stop in spans(flat.numel()):
                piece = flat[start:stop]
                if source is not None:
                    piece = task_vector(piece, source.flat(start, stop)).to(slot.dtype)
                yield piece

        total = sum(slot.bytes for slot in slots) + 1
        writing.write(self.folder, slots, stream, stem=stem, shard_bytes=total)
        return Checkpoint.open(self.folder / f"{stem}.safetensors", verify=False)


def along(method: str, parameters: Mapping[str, Any]) -> tuple[dict[str, Any], float]:
    """Parameters of the combined vector, and the factor that it is added with.

    Raises:
        ConfigError: If the method is no sum of task vectors, or is told not to be.
    """
    found = dict(parameters)
    settings = methods.method(method).Config.SETTINGS
    if method == "linear" and found.get("normalize", True):
        return found, 1.0
    if "alpha" not in settings:
        raise ConfigError(
            f"'{method}' is no base plus a sum of task vectors.",
            where="method",
            expected=", ".join(n for n in methods.names() if _is_sum(n)),
        )
    alpha = found.get("alpha", methods.method(method).Config.model_fields["alpha"].default)
    if not isinstance(alpha, int | float):
        # A schedule over the layers is a part of the vector.
        return found, 1.0
    return found | {"alpha": 1.0}, float(alpha)


def _is_sum(method: str) -> bool:
    return method == "linear" or "alpha" in methods.method(method).Config.SETTINGS


def tensors_of(network: nn.Module) -> dict[str, Tensor]:
    """The floating tensors of a network's state, tied ones under their first name alone.

    Writing to one changes the network.
    """
    found: dict[str, Tensor] = {}
    seen: set[tuple[int, tuple[int, ...]]] = set()
    for name, tensor in network.state_dict().items():
        place = (tensor.data_ptr(), tuple(tensor.shape))
        if tensor.is_floating_point() and place not in seen:
            seen.add(place)
            found[name] = tensor
    return found
