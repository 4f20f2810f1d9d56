"""DVPT as a peft tuner."""

from __future__ import annotations

from typing import Any

from torch import nn

from galenic.tuners import _peft
from galenic.tuners._prompts import owner_of
from galenic.tuners._sublayers import final_norm
from galenic.tuners._wrapping import WrappingTuner
from galenic.tuners.dvpt.config import DVPTConfig
from galenic.tuners.dvpt.layer import DVPTBlock
from galenic.tuners.dvpt.placement import place


class DVPTModel(WrappingTuner):
    """A transformer with dynamic prompts."""

    prefix = "dvpt_"
    method = "dvpt"
    tuner_layer_cls = DVPTBlock

    def place(self, model: nn.Module, config: DVPTConfig) -> None:
        """See `galenic.tuners.dvpt.placement.place`."""
        place(model, config)

    def connect(self, model: nn.Module, config: Any, adapter_name: str) -> None:
        """Take prompt tokens out of what the network gives."""
        for name, spot in config.placed.items():
            if spot["role"] != "insert":
                continue
            layer: Any = model.get_submodule(name)
            owner = model.get_submodule(owner_of(model, name, final_norm(model)))
            if not any(hook == layer.read for hook in owner._forward_hooks.values()):
                self.keep_hook(owner.register_forward_hook(layer.read))

    def _create_and_replace(
        self,
        peft_config: DVPTConfig,
        adapter_name: str,
        target: nn.Module,
        target_name: str,
        parent: nn.Module,
        current_key: str,
        parameter_name: str | None = None,
    ) -> None:
        spot = (peft_config.placed or {})[current_key]
        layer = target if isinstance(target, DVPTBlock) else DVPTBlock(target, adapter_name)
        layer.update_layer(adapter_name, peft_config, spot, self.model.get_submodule)
        if adapter_name not in self.active_adapters:
            layer.requires_grad_(False)
        if layer is not target:
            layer.train(target.training)
            self._replace_module(parent, target_name, layer, target)


_peft.register("DVPT", DVPTConfig, DVPTModel, prefix="dvpt_")
