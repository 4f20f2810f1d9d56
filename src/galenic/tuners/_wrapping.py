"""What tuners share that wrap whole blocks or sub-layers, and so cannot be merged."""

from __future__ import annotations

from typing import ClassVar

from peft.utils.other import ModulesToSaveWrapper
from torch import nn
from torch.utils.hooks import RemovableHandle

from galenic.core.errors import BackboneError
from galenic.tuners._placing import PlacingTuner, T, TunerLayer, moved


class WrappingLayer(TunerLayer):
    """A module of the network and what one or more adapters do to it."""

    def __init__(self, base_layer: nn.Module, adapter_name: str) -> None:
        super().__init__()
        self.base_layer = base_layer
        self.merged_adapters: list[str] = []
        self._disable_adapters = False
        self._active_adapter = [adapter_name]

    def adopt(self, value: T) -> T:
        """A module or tensor on the device and in the type of the base layer."""
        for reference in self.base_layer.parameters():
            if reference.is_floating_point():
                return moved(value, reference.device, reference.dtype)
        return value

    def release(self) -> None:
        """Take away what was put on modules other than the base layer."""


class WrappingTuner(PlacingTuner):
    """A tuner of wrapping layers."""

    tuner_layer_cls = WrappingLayer
    method: ClassVar[str] = ""

    def _replace_module(
        self, parent: nn.Module, child_name: str, new_module: nn.Module, child: nn.Module
    ) -> None:
        if isinstance(child, WrappingLayer):
            child.release()
        super()._replace_module(parent, child_name, new_module, child)

    def _unload_and_optionally_merge(
        self,
        merge: bool = True,
        progressbar: bool = False,
        safe_merge: bool = False,
        adapter_names: list[str] | None = None,
    ) -> nn.Module:
        if merge:
            raise self._no_merge()
        for name in self.__dict__.pop("_whole", []):
            # peft would leave the trained copy; the backbone was asked for.
            parent, _, leaf = name.rpartition(".")
            holder = self.model.get_submodule(parent)
            setattr(holder, leaf, getattr(holder, leaf).original_module)
        network = super()._unload_and_optionally_merge(False, progressbar)
        for handle in self.__dict__.pop("_hooks", []):
            handle.remove()
        return network

    def merge_adapter(
        self, adapter_names: list[str] | None = None, safe_merge: bool = False
    ) -> None:
        """Refused.

        Raises:
            BackboneError: Always.
        """
        raise self._no_merge()

    def _no_merge(self) -> BackboneError:
        return BackboneError(
            f"'{self.method}' has nothing to merge: what it adds is no product with a weight.",
            expected="a method that is mergeable, such as lora or ssf",
            next_step="Keep the adapter apart, or `unload()` to get the backbone back.",
        )

    def keep_hook(self, handle: RemovableHandle) -> None:
        """Remember a hook on the network, so that `unload` takes it away."""
        self.__dict__.setdefault("_hooks", []).append(handle)

    def train_whole(self, model: nn.Module, names: list[str], adapter_name: str) -> None:
        """Train a copy of each of these modules, kept and switched with the adapter."""
        inference = bool(self.peft_config[adapter_name].inference_mode)
        active = adapter_name in self.active_adapters
        for name in names:
            parent, _, leaf = name.rpartition(".")
            holder = model.get_submodule(parent)
            module = getattr(holder, leaf)
            known = isinstance(module, ModulesToSaveWrapper)
            if known:
                module.update(adapter_name)
            else:
                module = ModulesToSaveWrapper(module, adapter_name)
                setattr(holder, leaf, module)
                self.__dict__.setdefault("_whole", []).append(name)
            if active:
                module.set_adapter(adapter_name, inference_mode=inference)
            elif not known:
                module.set_adapter([])
