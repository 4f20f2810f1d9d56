"""One linear layer with its groups, one set of groups a named adapter."""

from __future__ import annotations

import math
from typing import Any

import torch
from peft.tuners.tuners_utils import check_adapters_to_merge
from torch import Tensor, nn
from torch.nn import functional

from galenic.tuners._merging import MergeError, require_foldable
from galenic.tuners._network import is_transposed, widths
from galenic.tuners._placing import TunerLayer
from galenic.tuners.pego.config import PEGOConfig
from galenic.tuners.pego.functional import orthogonal_terms


class PEGOLayer(TunerLayer):
    """`W x + sum_i B_i A_i x` on chosen rows of the output.

    Args:
        base_layer: Linear layer, or transformers' `Conv1D`.
        adapter_name: First adapter.
        config: Its settings.
        parts: Ranges of output rows that carry a group of it; all of one width.
    """

    adapter_layer_names = ("pego_A", "pego_B")
    other_param_names = ()

    def __init__(
        self,
        base_layer: nn.Module,
        adapter_name: str,
        config: PEGOConfig,
        parts: list[list[int]],
    ) -> None:
        super().__init__()
        self.base_layer = base_layer
        self.parts: dict[str, list[tuple[int, int]]] = {}
        self.transposed = is_transposed(base_layer)
        self.pego_A = nn.ParameterDict()
        self.pego_B = nn.ParameterDict()
        self.configs: dict[str, PEGOConfig] = {}
        self.merged_adapters: list[str] = []
        self._disable_adapters = False
        self._active_adapter = [adapter_name]
        self._original: Tensor | None = None
        self.update_layer(adapter_name, config, parts)

    def update_layer(
        self, adapter_name: str, config: PEGOConfig, parts: list[list[int]], **_: Any
    ) -> None:
        """Make the groups of `adapter_name` on `parts`: A Kaiming-uniform, B zero."""
        self.parts[adapter_name] = [(start, end) for start, end in parts]
        weight: Any = self.base_layer.weight
        inputs = widths(self.base_layer)[0]
        width = parts[0][1] - parts[0][0]
        dtype = weight.dtype if weight.is_floating_point() else torch.float32
        made = {"device": weight.device, "dtype": dtype}
        shape = (len(parts), config.groups)
        down = torch.empty(*shape, config.rank, inputs, **made)
        # kaiming_uniform_(a=sqrt(5)) of each [rank, inputs]: a bound of 1 / sqrt(inputs).
        down.uniform_(-1 / math.sqrt(inputs), 1 / math.sqrt(inputs))
        self.pego_A[adapter_name] = nn.Parameter(down)
        self.pego_B[adapter_name] = nn.Parameter(torch.zeros(*shape, width, config.rank, **made))
        self.configs[adapter_name] = config
        self.set_adapter(self.active_adapters, inference_mode=config.inference_mode)

    def forward(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        """The layer's output with the updates of the active adapters."""
        if self.disable_adapters and self.merged:
            self.unmerge()
        result: Tensor = self.base_layer(x, *args, **kwargs)
        if self.disable_adapters or self.merged:
            return result
        for name in self.active_adapters:
            if name in self.pego_A:
                result = self._add(result, x, name)
        return result

    def _add(self, result: Tensor, x: Tensor, name: str) -> Tensor:
        down, up, parts = self.pego_A[name], self.pego_B[name], self.parts[name]
        hidden = functional.linear(x.to(down.dtype), down.flatten(0, 2))
        # Side by side, the groups of one part are one update of rank groups x rank.
        joined = up.transpose(1, 2).flatten(2)
        updates = [
            functional.linear(part, matrix).to(result.dtype)
            for part, matrix in zip(hidden.chunk(len(parts), -1), joined, strict=True)
        ]
        if parts == [(0, result.shape[-1])]:
            return result + updates[0]
        pieces, at = [], 0
        for (start, end), update in zip(parts, updates, strict=True):
            pieces += [result[..., at:start], result[..., start:end] + update]
            at = end
        return torch.cat([*pieces, result[..., at:]], dim=-1)

    def delta(self, adapter_name: str) -> Tensor:
        """The update [d_out, d_in] in float32 at least, zero on rows that carry no group."""
        wide = torch.promote_types(self.pego_A[adapter_name].dtype, torch.float32)
        down, up = self.pego_A[adapter_name].to(wide), self.pego_B[adapter_name].to(wide)
        inputs, outputs = widths(self.base_layer)
        full = down.new_zeros(outputs, inputs)
        for (start, end), a, b in zip(self.parts[adapter_name], down, up, strict=True):
            full[start:end] = torch.einsum("nor,nri->oi", b, a)
        return full

    def orthogonal_loss(self) -> Tensor:
        """Both terms of the active adapters, without their weight."""
        weight: Any = self.base_layer.weight
        weight = weight.detach().T if self.transposed else weight.detach()
        total = weight.new_zeros((), dtype=torch.float32)
        for name in self.active_adapters:
            if name not in self.pego_A:
                continue
            config = self.configs[name]
            for (start, end), down, up in zip(
                self.parts[name], self.pego_A[name], self.pego_B[name], strict=True
            ):
                preserve, diversify = orthogonal_terms(weight[start:end], down, up, config.norm)
                if config.preserve:
                    total = total + config.weight * preserve
                if config.diversify:
                    total = total + config.weight * diversify
        return total

    def merge(self, safe_merge: bool = False, adapter_names: list[str] | None = None) -> None:
        """Add updates to the weight; the original is kept for `unmerge`.

        Raises:
            MergeError: If the base is quantised, or the result is not finite (`safe_merge`).
        """
        names = check_adapters_to_merge(self, adapter_names)
        names = [name for name in names or [] if name in self.pego_A]
        if not names:
            return
        require_foldable(self.base_layer)
        weight: Any = self.base_layer.weight
        merged = weight.data.to(torch.promote_types(weight.dtype, torch.float32))
        for name in names:
            delta = self.delta(name)
            merged = merged + (delta.T if self.transposed else delta)
        merged = merged.to(weight.dtype)
        if safe_merge and not bool(torch.isfinite(merged).all()):
            raise MergeError(
                f"Merging {', '.join(names)} gives a weight that is not finite.",
                next_step="The adapter is damaged or training diverged; nothing was merged.",
            )
        if self._original is None:
            self._original = weight.data
        weight.data = merged
        self.merged_adapters.extend(names)

    def unmerge(self) -> None:
        """Put the original weight back, every bit of it."""
        if self._original is not None:
            weight: Any = self.base_layer.weight
            weight.data = self._original
        self._original = None
        self.merged_adapters.clear()

    def delete_adapter(self, adapter_name: str) -> None:
        """Remove an adapter; a merged one is unmerged first."""
        if adapter_name in self.merged_adapters:
            self.unmerge()
        self.configs.pop(adapter_name, None)
        self.parts.pop(adapter_name, None)
        super().delete_adapter(adapter_name)
