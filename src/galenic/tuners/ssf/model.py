"""SSF as a peft tuner."""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from peft.tuners.tuners_utils import BaseTuner
from torch import Tensor, nn

from galenic.core.errors import BackboneError, nearest
from galenic.tuners import _peft
from galenic.tuners._merging import merge_all, require_unshared
from galenic.tuners._network import attention
from galenic.tuners.ssf.config import SSFConfig
from galenic.tuners.ssf.layer import SSFLayer
from galenic.tuners.ssf.placement import place


@dataclass
class MergeReport:
    """What `merge_and_unload` did to the network.

    Attributes:
        merged: Modules that a pair was folded into.
        created: Tensors that the network had not, such as the bias of a layer without one.
    """

    merged: list[str] = field(default_factory=list)
    created: list[str] = field(default_factory=list)


class SSFModel(BaseTuner):
    """A network with a scale and a shift after its operators."""

    prefix = "ssf_"
    tuner_layer_cls = SSFLayer
    target_module_mapping: dict[str, list[str]] = {}
    merge_report: MergeReport | None = None

    def inject_adapter(
        self,
        model: nn.Module,
        adapter_name: str,
        autocast_adapter_dtype: bool = True,
        low_cpu_mem_usage: bool = False,
        state_dict: dict[str, Tensor] | None = None,
    ) -> None:
        """Find the modules that get a pair, then let peft put them in."""
        # A copy: the caller's config is his, and may go on to another network.
        config = copy.deepcopy(self.peft_config[adapter_name])
        self.peft_config[adapter_name] = config
        if config.placed is None:
            config.placed = place(
                model,
                config.target_modules,
                exclude_modules=config.exclude_modules,
                modules_to_save=config.modules_to_save,
                last_blocks=config.last_blocks,
            )
        else:
            _check_placed(model, config.placed)
        super().inject_adapter(
            model, adapter_name, autocast_adapter_dtype, low_cpu_mem_usage, state_dict
        )

    @staticmethod
    def _check_target_module_exists(peft_config: SSFConfig, key: str) -> bool:
        return key in (peft_config.placed or ())

    def _create_and_replace(
        self,
        peft_config: SSFConfig,
        adapter_name: str,
        target: nn.Module,
        target_name: str,
        parent: nn.Module,
        current_key: str,
        parameter_name: str | None = None,
    ) -> None:
        if isinstance(target, SSFLayer):
            target.update_layer(adapter_name, peft_config)
            return
        safe = not any(getattr(module, "inplace", False) for module in self.model.modules())
        # Attention keeps its result, which is what goes into the output projection.
        inner = current_key in attention(self.model, ("out",))
        layer = SSFLayer(target, adapter_name, peft_config, safe=safe, keep_input=inner)
        if adapter_name not in self.active_adapters:
            layer.requires_grad_(False)
        layer.train(target.training)
        self._replace_module(parent, target_name, layer, target)

    def _replace_module(
        self, parent: nn.Module, child_name: str, new_module: nn.Module, child: nn.Module
    ) -> None:
        # peft's own copies weight and bias onto whatever it puts back, which a norm without
        # affine terms does not have.
        setattr(parent, child_name, new_module)

    def _check_merge_allowed(self) -> None:
        require_unshared(self.model, SSFLayer)

    def _unload_and_optionally_merge(
        self,
        merge: bool = True,
        progressbar: bool = False,
        safe_merge: bool = False,
        adapter_names: list[str] | None = None,
    ) -> nn.Module:
        if not merge:
            for module in self.model.modules():
                if isinstance(module, SSFLayer):
                    module.unmerge()
            return super()._unload_and_optionally_merge(merge, progressbar)
        self.merge_adapter(adapter_names, safe_merge=safe_merge)
        report = MergeReport()
        for name, module in self.model.named_modules():
            if isinstance(module, SSFLayer):
                report.merged.append(name)
                report.created += [f"{name}.{key}" for key in module.created()]
        network = super()._unload_and_optionally_merge(False, progressbar)
        self.merge_report = report
        return network

    def merge_adapter(
        self, adapter_names: list[str] | None = None, safe_merge: bool = False
    ) -> None:
        """Fold adapters into the network, all of it or nothing.

        Raises:
            MergeError: If one module refuses; the others are then unmerged again.
        """
        self._check_merge_allowed()
        layers = [m for m in self.model.modules() if isinstance(m, SSFLayer)]
        merge_all(layers, adapter_names, safe=safe_merge)


def merge_change(model: nn.Module, inputs: Mapping[str, Any]) -> float:
    """Largest absolute change of any output tensor that merging makes on a probe batch.

    The model is left unmerged, every bit as it was.

    Args:
        model: What `peft.get_peft_model` gave, unmerged.
        inputs: Keyword arguments of its forward.
    """
    tuner: Any = model.base_model
    training = model.training
    model.eval()
    try:
        with torch.no_grad():
            apart = _tensors(model(**inputs))
            tuner.merge_adapter()
            merged = _tensors(model(**inputs))
    finally:
        with contextlib.suppress(AttributeError):
            tuner.unmerge_adapter()
        model.train(training)
    gaps = [float((a - b).abs().max()) for a, b in zip(apart, merged, strict=True) if a.numel()]
    return max(gaps, default=0.0)


def _tensors(output: Any) -> list[Tensor]:
    if isinstance(output, Tensor):
        return [output]
    values = output.values() if isinstance(output, Mapping) else output
    return [value for value in values if isinstance(value, Tensor)]


def _check_placed(network: nn.Module, placed: list[str]) -> None:
    names = {name for name, _ in network.named_modules()}
    gone = [name for name in placed if name not in names]
    if gone:
        raise BackboneError(
            f"The adapter was made for another network: {type(network).__name__} has no "
            f"{', '.join(repr(g) for g in gone[:5])}. {nearest(gone[0], names)}".strip(),
            expected="the network that the adapter was trained on",
        )


_peft.register("SSF", SSFConfig, SSFModel, prefix="ssf_", mixed=True)
