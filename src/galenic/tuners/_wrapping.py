"""What tuners share that wrap whole blocks or sub-layers, and so cannot be merged."""

from __future__ import annotations

import copy
from typing import Any, ClassVar, TypeVar

from peft import PeftConfig
from peft.tuners.tuners_utils import BaseTuner, BaseTunerLayer
from peft.utils.other import ModulesToSaveWrapper
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from galenic.core.errors import BackboneError, nearest

T = TypeVar("T", nn.Module, Tensor)


class WrappingLayer(nn.Module, BaseTunerLayer):
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
                moved: Any = value
                return moved.to(reference.device, reference.dtype)
        return value

    def release(self) -> None:
        """Take away what was put on modules other than the base layer."""

    def __getattr__(self, name: str) -> Any:
        # Networks read attributes of their parts (`layer.attention_type`, `fc1.in_features`).
        try:
            return super().__getattr__(name)
        except AttributeError:
            if name == "base_layer" or name.startswith("__"):
                raise
            return getattr(super().__getattr__("base_layer"), name)


class WrappingTuner(BaseTuner):
    """A tuner that decides where to go before it changes anything."""

    tuner_layer_cls = WrappingLayer
    target_module_mapping: dict[str, list[str]] = {}
    method: ClassVar[str] = ""

    def place(self, model: nn.Module, config: Any) -> None:
        """Fill `config.placed` (a mapping from module names) and what belongs to it.

        Raises:
            BackboneError: If the method cannot enter the network.
            ConfigError: If a value does not fit it.
        """
        raise NotImplementedError

    def inject_adapter(
        self,
        model: nn.Module,
        adapter_name: str,
        autocast_adapter_dtype: bool = True,
        low_cpu_mem_usage: bool = False,
        state_dict: dict[str, Tensor] | None = None,
    ) -> None:
        """Decide on the places, then let peft put the layers in."""
        # A copy: the caller's config is his, and may go on to another network.
        config: Any = copy.deepcopy(self.peft_config[adapter_name])
        self.peft_config[adapter_name] = config
        if config.placed is None:
            self.place(model, config)
        else:
            _check_placed(model, config.placed)
        super().inject_adapter(
            model, adapter_name, autocast_adapter_dtype, low_cpu_mem_usage, state_dict
        )

    @staticmethod
    def _check_target_module_exists(peft_config: PeftConfig, key: str) -> bool:
        placed: Any = getattr(peft_config, "placed", None)
        return key in (placed or ())

    def _replace_module(
        self, parent: nn.Module, child_name: str, new_module: nn.Module, child: nn.Module
    ) -> None:
        if isinstance(child, WrappingLayer):
            child.release()
        setattr(parent, child_name, new_module)

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


def _check_placed(network: nn.Module, placed: dict[str, Any]) -> None:
    names = {name for name, _ in network.named_modules()}
    gone = [name for name in placed if name not in names]
    if gone:
        raise BackboneError(
            f"The adapter was made for another network: {type(network).__name__} has no "
            f"{', '.join(repr(g) for g in gone[:5])}. {nearest(gone[0], names)}".strip(),
            expected="the network that the adapter was trained on",
        )
