"""PETL-AST as a peft tuner."""

from __future__ import annotations

from typing import Any

from peft.utils.other import ModulesToSaveWrapper
from torch import nn

from galenic.tuners import _peft
from galenic.tuners._wrapping import WrappingLayer, WrappingTuner
from galenic.tuners.petl_ast.config import PETLASTConfig
from galenic.tuners.petl_ast.layer import AdapterLayer, PrefixLayer, PromptLayer, TokenMask
from galenic.tuners.petl_ast.placement import place


class PETLASTModel(WrappingTuner):
    """A transformer with adapters, prompts or prefixes."""

    prefix = "petl_"
    method = "petl_ast"

    def place(self, model: nn.Module, config: PETLASTConfig) -> None:
        """See `galenic.tuners.petl_ast.placement.place`."""
        place(model, config)

    def connect(self, model: nn.Module, config: Any, adapter_name: str) -> None:
        """Train the norms that go with the layers, and let these see which tokens are real."""
        if config.variant == "conformer" and "_hooks" not in self.__dict__:
            self.keep_hook(model.register_forward_pre_hook(self._token_mask(), with_kwargs=True))
        self.train_whole(model, config.norms or [], adapter_name)
        for name, spot in config.placed.items():
            layer: Any = model.get_submodule(name)
            if spot.get("norm") and isinstance(layer, AdapterLayer):
                layer.follow(model.get_submodule(spot["norm"]))

    def _create_and_replace(
        self,
        peft_config: PETLASTConfig,
        adapter_name: str,
        target: nn.Module,
        target_name: str,
        parent: nn.Module,
        current_key: str,
        parameter_name: str | None = None,
    ) -> None:
        spot = (peft_config.placed or {})[current_key]
        kinds = {"adapter": AdapterLayer, "prefix": PrefixLayer}
        kind: Any = kinds.get(spot["role"], PromptLayer)
        layer: Any = target
        if not isinstance(target, kind):
            mask = [self._token_mask()] if kind is AdapterLayer else []
            layer = kind(target, adapter_name, *mask)
        if spot.get("tap"):
            layer.listen(self.model.get_submodule(spot["tap"][0]), spot["tap"][1])
        layer.update_layer(adapter_name, peft_config, spot)
        if adapter_name not in self.active_adapters:
            layer.requires_grad_(False)
        if layer is not target:
            layer.train(target.training)
            self._replace_module(parent, target_name, layer, target)

    def _token_mask(self) -> TokenMask:
        """One for all layers and adapters."""
        mask: TokenMask = self.__dict__.setdefault("_mask", TokenMask())
        return mask

    def train(self, mode: bool = True) -> PETLASTModel:
        """Training mode for what trains; the frozen parts draw no dropout, as with the authors.

        Blocks themselves stay in training mode: that is how transformers tells whether to
        compute activations again.
        """
        super().train(mode)
        settings: Any = [self.peft_config[name] for name in self.active_adapters]
        if not mode or not all(config.encoder_eval for config in settings):
            return self
        ours: set[nn.Module] = set()
        for module in self.model.modules():
            if isinstance(module, WrappingLayer):
                for key in module.adapter_layer_names:
                    ours.update(getattr(module, key).modules())
            elif isinstance(module, ModulesToSaveWrapper):
                ours.update(module.modules_to_save.modules())
        for module in self.model.modules():
            if module not in ours and not hasattr(module, "gradient_checkpointing"):
                module.training = False
        return self


_peft.register("PETL_AST", PETLASTConfig, PETLASTModel, prefix="petl_")
