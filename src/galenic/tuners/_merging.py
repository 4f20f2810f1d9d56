"""What tuners share that fold into the weights of the layers they stand on."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from typing import Protocol

from torch import Tensor, nn

from galenic.core.errors import BackboneError


class MergeError(BackboneError, ValueError):
    """An adapter cannot be folded into its layer."""


class Mergeable(Protocol):
    """A layer of peft that folds and unfolds."""

    merged_adapters: list[str]

    def merge(self, safe_merge: bool = False, adapter_names: list[str] | None = None) -> None:
        """Fold."""

    def unmerge(self) -> None:
        """Take out again."""


def require_foldable(module: nn.Module) -> None:
    """Check that the weights of a layer are floating-point numbers, and its own.

    Raises:
        MergeError: If they are quantised, or computed from other tensors at each call.
    """
    weight = getattr(module, "weight", None)
    quantised = any(hasattr(module, key) for key in ("qweight", "W_q", "quant_state"))
    quantised = quantised or hasattr(weight, "quant_state")
    if quantised or (isinstance(weight, Tensor) and not weight.is_floating_point()):
        raise MergeError(
            f"The weights of {type(module).__name__} are quantised.",
            expected="floating-point weights to merge into",
            next_step="Keep the adapter apart, or load the backbone unquantised.",
        )
    # A weight norm, spectral norm or pruning leaves no parameter of that name.
    held = {*module._parameters, *module._buffers}
    if isinstance(weight, Tensor) and "weight" not in held:
        raise MergeError(
            f"The weight of a {type(module).__name__} is computed from other tensors.",
            expected="a weight that is a tensor of its own",
            next_step="Remove the weight norm (torch.nn.utils.parametrize."
            "remove_parametrizations), leave that layer out, or keep the adapter apart.",
        )


def require_unshared(model: nn.Module, kind: type[nn.Module]) -> None:
    """Refuse to fold into a tensor that another module uses too.

    Args:
        model: The network with layers of `kind`, each around a `base_layer`.
        kind: Of the layers that would fold.

    Raises:
        MergeError: Naming the modules that share it.
    """
    owners: dict[int, list[str]] = defaultdict(list)
    tuned: list[int] = []
    for name, module in model.named_modules():
        for key, parameter in module.named_parameters(recurse=False):
            mark = id(parameter) if parameter.is_meta else _address(parameter)
            owners[mark].append(f"{name}.{key}")
            parent = name.removesuffix(".base_layer")
            if parent != name and isinstance(model.get_submodule(parent), kind):
                tuned.append(mark)
    for mark in tuned:
        if len(owners[mark]) > 1:
            shared = ", ".join(owner.replace(".base_layer", "") for owner in owners[mark])
            raise MergeError(
                f"One tensor is used in several places: {shared}.",
                expected="a tensor of its own for every module that is merged",
                next_step="Untie it (clone it into one of them), or leave that module out.",
            )


def merge_all(
    layers: Sequence[Mergeable], names: list[str] | None = None, *, safe: bool = False
) -> None:
    """Fold adapters into all layers, or into none.

    Raises:
        MergeError: If one layer refuses; the others are then as they were.
    """
    done: list[tuple[Mergeable, list[str]]] = []
    try:
        for layer in layers:
            done.append((layer, list(layer.merged_adapters)))
            layer.merge(safe_merge=safe, adapter_names=names)
    except MergeError:
        for layer, before in done:
            layer.unmerge()
            if before:
                layer.merge(adapter_names=before)
        raise


def _address(parameter: Tensor) -> int:
    address = parameter.data_ptr()
    return address if address else id(parameter)
