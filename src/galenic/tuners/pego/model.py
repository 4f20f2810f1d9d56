"""PEGO as a peft tuner."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from galenic.tuners import _peft
from galenic.tuners._merging import merge_all, require_unshared
from galenic.tuners._placing import PlacingTuner
from galenic.tuners.pego.config import PEGOConfig
from galenic.tuners.pego.layer import PEGOLayer
from galenic.tuners.pego.placement import place


class PEGOModel(PlacingTuner):
    """A network with groups of low-rank updates on its projections."""

    prefix = "pego_"
    tuner_layer_cls = PEGOLayer

    def place(self, model: nn.Module, config: PEGOConfig) -> None:
        """See `galenic.tuners.pego.placement.place`."""
        config.placed = place(model, config)

    def _create_and_replace(
        self,
        peft_config: PEGOConfig,
        adapter_name: str,
        target: nn.Module,
        target_name: str,
        parent: nn.Module,
        current_key: str,
        parameter_name: str | None = None,
    ) -> None:
        parts = (peft_config.placed or {})[current_key]
        if isinstance(target, PEGOLayer):
            target.update_layer(adapter_name, peft_config, parts)
            return
        layer = PEGOLayer(target, adapter_name, peft_config, parts)
        if adapter_name not in self.active_adapters:
            layer.requires_grad_(False)
        layer.train(target.training)
        self._replace_module(parent, target_name, layer, target)

    def orthogonal_loss(self) -> Tensor:
        """Weighted orthogonality terms of all layers, to be added to the loss of the task."""
        losses = [m.orthogonal_loss() for m in self.model.modules() if isinstance(m, PEGOLayer)]
        return torch.stack(losses).sum()

    def merge_adapter(
        self, adapter_names: list[str] | None = None, safe_merge: bool = False
    ) -> None:
        """Add updates to the network's weights, all of them or none.

        Raises:
            MergeError: If one layer refuses; the others are then as they were.
        """
        require_unshared(self.model, PEGOLayer)
        layers = [m for m in self.model.modules() if isinstance(m, PEGOLayer)]
        merge_all(layers, adapter_names, safe=safe_merge)

    def _unload_and_optionally_merge(
        self,
        merge: bool = True,
        progressbar: bool = False,
        safe_merge: bool = False,
        adapter_names: list[str] | None = None,
    ) -> nn.Module:
        if merge:
            self.merge_adapter(adapter_names, safe_merge=safe_merge)
        else:
            self.unmerge_adapter()
        return super()._unload_and_optionally_merge(False, progressbar)


_peft.register("PEGO", PEGOConfig, PEGOModel, prefix="pego_")
