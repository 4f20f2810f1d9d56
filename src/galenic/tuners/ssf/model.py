"""SSF as a peft tuner."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from galenic.tuners import _peft
from galenic.tuners._merging import merge_all, require_unshared
from galenic.tuners._network import attention
from galenic.tuners._placing import PlacingTuner
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


class SSFModel(PlacingTuner):
    """A network with a scale and a shift after its operators."""

    prefix = "ssf_"
    tuner_layer_cls = SSFLayer
    merge_report: MergeReport | None = None

    def place(self, model: nn.Module, config: SSFConfig) -> None:
        """See `galenic.tuners.ssf.placement.place`."""
        config.placed = place(
            model,
            config.target_modules or "auto",
            exclude_modules=config.exclude_modules,
            modules_to_save=config.modules_to_save,
            last_blocks=config.last_blocks,
        )

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


_peft.register("SSF", SSFConfig, SSFModel, prefix="ssf_")
