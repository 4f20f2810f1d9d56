"""PEGO as a peft tuner."""

from __future__ import annotations

import copy

import torch
from peft.tuners.tuners_utils import BaseTuner
from torch import Tensor, nn

from galenic.core.errors import BackboneError, nearest
from galenic.tuners import _peft
from galenic.tuners._merging import merge_all, require_unshared
from galenic.tuners.pego.config import PEGOConfig
from galenic.tuners.pego.layer import PEGOLayer
from galenic.tuners.pego.placement import place


class PEGOModel(BaseTuner):
    """A network with groups of low-rank updates on its projections."""

    prefix = "pego_"
    tuner_layer_cls = PEGOLayer
    target_module_mapping: dict[str, list[str]] = {}

    def inject_adapter(
        self,
        model: nn.Module,
        adapter_name: str,
        autocast_adapter_dtype: bool = True,
        low_cpu_mem_usage: bool = False,
        state_dict: dict[str, Tensor] | None = None,
    ) -> None:
        """Find the layers that get groups, then let peft put them in."""
        # A copy: the caller's config is his, and may go on to another network.
        config = copy.deepcopy(self.peft_config[adapter_name])
        self.peft_config[adapter_name] = config
        if config.placed is None:
            config.placed = place(model, config)
        names = {name for name, _ in model.named_modules()}
        gone = [name for name in config.placed if name not in names]
        if gone:
            raise BackboneError(
                f"The adapter was made for another network: {type(model).__name__} has no "
                f"'{gone[0]}'. {nearest(gone[0], names)}".strip(),
                expected="the network that the adapter was trained on",
            )
        super().inject_adapter(
            model, adapter_name, autocast_adapter_dtype, low_cpu_mem_usage, state_dict
        )

    @staticmethod
    def _check_target_module_exists(peft_config: PEGOConfig, key: str) -> bool:
        return key in (peft_config.placed or {})

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
        if isinstance(target, PEGOLayer):
            target.update_layer(adapter_name, peft_config)
            return
        parts = (peft_config.placed or {})[current_key]
        layer = PEGOLayer(target, adapter_name, peft_config, parts)
        if adapter_name not in self.active_adapters:
            layer.requires_grad_(False)
        layer.train(target.training)
        setattr(parent, target_name, layer)

    def _replace_module(
        self, parent: nn.Module, child_name: str, new_module: nn.Module, child: nn.Module
    ) -> None:
        setattr(parent, child_name, new_module)

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


_peft.register("PEGO", PEGOConfig, PEGOModel, prefix="pego_", mixed=True)
