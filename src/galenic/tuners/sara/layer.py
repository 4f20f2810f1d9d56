"""One parameter whose small entries train, one set of values a named adapter."""

from __future__ import annotations

from typing import Any

import torch
from peft.tuners.tuners_utils import BaseTunerLayer, check_adapters_to_merge
from torch import Tensor, nn

from galenic.tuners._sparse import Swap, gathered, place_of, vector, write
from galenic.tuners.sara.config import SaRAConfig
from galenic.tuners.sara.functional import nuclear_norm
from galenic.tuners.sara.placement import Mask


class SaRAMask(nn.Module):
    """Where the values of one adapter stand, and which still train.

    Attributes:
        index: int64 [k], flat places.
        original: [k], what the base has there, in its own type.
        free: Boolean [k], whether an entry still trains.
        kept: [k], the value of an entry that does not.
    """

    index: Tensor
    original: Tensor
    free: Tensor
    kept: Tensor

    def __init__(self, weight: Tensor, mask: Mask) -> None:
        super().__init__()
        index = mask.index.to(weight.device)
        original = weight.detach().reshape(-1)[index]
        self.threshold = mask.threshold
        # Not persistent: the base gives them again, and an adapter's file holds values only.
        self.register_buffer("index", index, persistent=False)
        self.register_buffer("original", original, persistent=False)
        self.register_buffer("free", torch.ones_like(index, dtype=torch.bool), persistent=False)
        wide = original.to(torch.promote_types(original.dtype, torch.float32), copy=True)
        self.register_buffer("kept", wide, persistent=False)


class SaRALayer(nn.Module, BaseTunerLayer):
    """A child of the module that owns the parameter, named `sara_<key>`.

    The parameter holds an adapter's values only while it is computed with: from the forward
    pass until the graph is gone. Outside of it every bit is the base's.

    Args:
        network: All of it.
        name: Of the parameter.
    """

    adapter_layer_names = ("sara_values",)
    other_param_names = ("sara_masks",)

    def __init__(self, network: nn.Module, name: str) -> None:
        super().__init__()
        self.sara_values = nn.ParameterDict()
        self.sara_masks = nn.ModuleDict()
        self.configs: dict[str, SaRAConfig] = {}
        self.merged_adapters: list[str] = []
        self._disable_adapters = False
        self._active_adapter: list[str] = []
        self._written: str | None = None
        self._leases = 0
        owner, key = place_of(network, name)
        owner.add_module(f"sara_{key}", self)
        self.swap = Swap(network, name, self)

    @property
    def weight(self) -> nn.Parameter:
        """The parameter."""
        return self.swap.weight

    def update_layer(self, adapter_name: str, config: SaRAConfig, mask: Mask) -> None:
        """Make the values of `adapter_name`, equal to the base's."""
        self.restore()
        self.configs[adapter_name] = config
        found = SaRAMask(self.weight, mask)
        self.sara_masks[adapter_name] = found
        self.sara_values[adapter_name] = vector(self.weight, found.index)

    def mask(self, adapter_name: str) -> SaRAMask:
        """Places and states of an adapter's values."""
        found = self.sara_masks[adapter_name]
        assert isinstance(found, SaRAMask)
        return found

    # Computing --------------------------------------------------------------------------

    def _wanted(self) -> str | None:
        if self.disable_adapters:
            return None
        names: Any = self.active_adapters
        active: list[str] = [name for name in names if name in self.sara_values]
        if len(active) > 1:
            raise ValueError(
                f"adapters {', '.join(active)} replace the same weights; one can be active"
            )
        return active[0] if active else None

    def enter(self, weight: Tensor) -> Tensor | None:
        """The parameter to compute with."""
        wanted = self._wanted()
        if self.disable_adapters and self.merged:
            self.unmerge()
        if self.merged:
            return None
        other = self._written is not None and self._written != wanted
        place = weight
        if other:
            # A graph still needs what stands in the parameter.
            place = weight.detach().clone()
            self._base(place)
        if wanted is None:
            return place if other else None
        self.settle(wanted)
        mask, values = self.mask(wanted), self.sara_values[wanted]
        write(place, mask.index, values)
        lease = None
        if not other:
            self._written = wanted
        if not (torch.is_grad_enabled() and values.requires_grad):
            return place if other else None
        if not other:
            lease = _Lease(self)
        return gathered(values, place, mask.index, mask.free, lease)

    def leave(self, weight: Tensor) -> None:
        """Put the base's values back, unless a graph needs the others."""
        if not self.merged and not self._leases:
            self.restore()

    def restore(self) -> None:
        """Put the base's values back."""
        if self._written is not None:
            self._base(self.weight)
            self._written = None

    def _base(self, weight: Tensor) -> None:
        assert self._written is not None
        mask = self.mask(self._written)
        write(weight, mask.index, mask.original)

    # Training ---------------------------------------------------------------------------

    @torch.no_grad()
    def settle(self, adapter_name: str) -> None:
        """Undo what momentum or decay did to values that no longer train."""
        mask, values = self.mask(adapter_name), self.sara_values[adapter_name]
        flat = values.data.view(-1)
        flat.copy_(torch.where(mask.free, flat, mask.kept))

    @torch.no_grad()
    def reselect(self, adapter_name: str) -> int:
        """Keep for ever what grew to the threshold; the rest trains on (section 3.3).

        Returns:
            How many values still train.
        """
        self.settle(adapter_name)
        mask, values = self.mask(adapter_name), self.sara_values[adapter_name].reshape(-1)
        mask.free &= values.abs() < mask.threshold
        mask.kept.copy_(values)
        return int(mask.free.sum())

    def has_rank(self, adapter_name: str) -> bool:
        """Whether the parameter is a matrix that is large enough for a nuclear norm."""
        if adapter_name not in self.sara_values or self.weight.ndim != 2:
            return False
        return min(self.weight.shape) > self.configs[adapter_name].min_rank_dim

    def rank_loss(self, adapter_name: str) -> Tensor:
        """Nuclear norm of the values that train, or of their change."""
        mask, values = self.mask(adapter_name), self.sara_values[adapter_name].reshape(-1)
        if self.configs[adapter_name].penalise == "delta":
            values = values - mask.original.to(values.dtype)
        rows, columns = self.weight.shape
        return nuclear_norm(values * mask.free, mask.index, (rows, columns))

    # Merging ----------------------------------------------------------------------------

    def merge(self, safe_merge: bool = False, adapter_names: list[str] | None = None) -> None:
        """Write the values into the parameter; the base's are kept for `unmerge`.

        Raises:
            ValueError: If a value is not finite (`safe_merge`); nothing is written then.
        """
        names = check_adapters_to_merge(self, adapter_names)
        for name in [name for name in names or [] if name in self.sara_values]:
            self.settle(name)
            if safe_merge and not bool(torch.isfinite(self.sara_values[name]).all()):
                raise ValueError(f"a value of '{self.swap.name}' is not finite; nothing was merged")
            if self.merged:
                raise ValueError(f"'{name}' replaces weights that are merged; unmerge them first")
            self.restore()
            write(self.weight, self.mask(name).index, self.sara_values[name])
            self._written = name
            self.merged_adapters.append(name)

    def unmerge(self) -> None:
        """Put the base's values back, every bit of them."""
        self.merged_adapters.clear()
        self.restore()

    def delete_adapter(self, adapter_name: str) -> None:
        """Remove an adapter; a merged one is unmerged first."""
        self.unmerge()
        self.configs.pop(adapter_name, None)
        super().delete_adapter(adapter_name)

    def release(self) -> None:
        """Leave the network, with what stands in the parameter now."""
        self.swap.remove()
        owner, key = self.swap.places[0]
        del owner._modules[f"sara_{key}"]


class _Lease:
    """Held by a graph: as long as it lives, the values stay in the parameter."""

    def __init__(self, layer: SaRALayer) -> None:
        self.layer = layer
        layer._leases += 1

    def __del__(self) -> None:
        self.layer._leases -= 1
        if not self.layer._leases and not self.layer.merged:
            self.layer.restore()
