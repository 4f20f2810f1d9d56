"""What tuners share that stand on modules of a network."""

from __future__ import annotations

import copy
from collections.abc import Iterable
from typing import Any, TypeVar

import torch
from peft import PeftConfig
from peft.tuners.tuners_utils import BaseTuner, BaseTunerLayer
from torch import Tensor, nn

from galenic.core.errors import BackboneError, nearest

T = TypeVar("T", nn.Module, Tensor)


def moved(value: T, device: torch.device, dtype: torch.dtype | None = None) -> T:
    """A module or tensor on a device and in a type.

    What is on the meta device stays there: peft puts loaded tensors in its place.
    """
    cast: Any = value.to(dtype=dtype)
    if isinstance(value, Tensor):
        return cast if cast.is_meta else cast.to(device)
    return cast._apply(lambda tensor: tensor if tensor.is_meta else tensor.to(device))


class TunerLayer(nn.Module, BaseTunerLayer):
    """A module of the network and what adapters do to it; what it has not, the module has."""

    def __getattr__(self, name: str) -> Any:
        # Networks read attributes of their parts (`config`, `fc1.in_features`, `norm.eps`).
        try:
            return super().__getattr__(name)
        except AttributeError:
            if name == "base_layer" or name.startswith("__"):
                raise
            return getattr(super().__getattr__("base_layer"), name)


class PlacingTuner(BaseTuner):
    """A tuner that decides where to go before it changes anything."""

    target_module_mapping: dict[str, list[str]] = {}

    def place(self, model: nn.Module, config: Any) -> None:
        """Fill `config.placed` with the full names of modules, and what belongs to them.

        Raises:
            BackboneError: If the method cannot enter the network.
            ConfigError: If a value does not fit it.
        """
        raise NotImplementedError

    def connect(self, model: nn.Module, config: Any, adapter_name: str) -> None:
        """What else a method ties to the network, once its layers are in."""

    def inject_adapter(
        self,
        model: nn.Module,
        adapter_name: str,
        autocast_adapter_dtype: bool = True,
        low_cpu_mem_usage: bool = False,
        state_dict: dict[str, Tensor] | None = None,
    ) -> None:
        """Decide on the places, then let peft put the layers in, and connect them."""
        # A copy: the caller's config is his, and may go on to another network.
        config: Any = copy.deepcopy(self.peft_config[adapter_name])
        self.peft_config[adapter_name] = config
        if config.placed is None:
            self.place(model, config)
        else:
            require_modules(model, config.placed)
        super().inject_adapter(
            model, adapter_name, autocast_adapter_dtype, low_cpu_mem_usage, state_dict
        )
        self.connect(model, config, adapter_name)

    @staticmethod
    def _check_target_module_exists(peft_config: PeftConfig, key: str) -> bool:
        placed: Any = getattr(peft_config, "placed", None)
        return key in (placed or ())

    def _replace_module(
        self, parent: nn.Module, child_name: str, new_module: nn.Module, child: nn.Module
    ) -> None:
        # peft's own copies weight and bias onto whatever it puts back, which a block, or a norm
        # without affine terms, does not have.
        setattr(parent, child_name, new_module)


def require_modules(network: nn.Module, names: Iterable[str]) -> None:
    """Check that a network has the modules that an adapter stands on.

    Raises:
        BackboneError: Naming those that are not there.
    """
    known = {name for name, _ in network.named_modules()}
    gone = [name for name in names if name not in known]
    if gone:
        raise BackboneError(
            f"The adapter was made for another network: {type(network).__name__} has no "
            f"{', '.join(repr(g) for g in gone[:5])}. {nearest(gone[0], known)}".strip(),
            expected="the network that the adapter was trained on",
        )
