"""Side networks: a frozen network, and a small trained one that reads its hidden states.

The peft tuner wraps the whole network in one `SideLayer`, since a side network stands beside
all layers and inside none. A method gives the module that turns `Hidden` into features.
"""

from __future__ import annotations

import copy
import hashlib
import itertools
import json
from abc import abstractmethod
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from peft import PeftConfig
from peft.tuners.tuners_utils import BaseTuner
from torch import Tensor, nn
from transformers.modeling_outputs import BaseModelOutput

from galenic.core.errors import BackboneError, ConfigError
from galenic.models.backbone import Backbone
from galenic.tuners._hidden import Hidden, Layout, collect, image_size, survey
from galenic.tuners._merging import MergeError
from galenic.tuners._network import given
from galenic.tuners._placing import TunerLayer, moved, require_modules


class SideNetwork(nn.Module):
    """From the hidden states of a network to its features.

    Attributes:
        layout: The states of the network.
        layers: Which states are read, in order; the last is always the last one read.
        final: Whether the network's own output is read too.
    """

    def __init__(self, layout: Layout, layers: Sequence[int], *, final: bool = False) -> None:
        super().__init__()
        self.layout = layout
        self.layers = tuple(layers)
        self.final = final

    @abstractmethod
    def forward(self, hidden: Hidden) -> Tensor:
        """Features [B, N, E] of tokens, [B, E, h, w] of maps, or [B, E].

        Args:
            hidden: Only the states in `layers`, in that order.
        """

    @property
    def place(self) -> str:
        """Name of what is read, for caches: the same name, the same arrays."""
        what = json.dumps([self.layout.to_dict(), self.layers, self.final])
        return f"states-{hashlib.sha256(what.encode()).hexdigest()[:12]}"

    @property
    def columns(self) -> dict[int, tuple[int, int]]:
        """Columns of what `pack` gives that hold the tokens behind a block, counted from 1."""
        if self.layout.maps or self.layout.writes or self.layout.exits != self.layout.blocks:
            return {}
        ends = list(itertools.accumulate(self.layout.widths[layer] for layer in self.layers))
        columns = zip([0, *ends], ends, strict=False)
        return {layer: found for layer, found in zip(self.layers, columns, strict=True) if layer}

    def pack(self, hidden: Hidden) -> Tensor:
        """All that is read as one array a sample: [B, N, sum of d] of tokens, else [B, sum].

        Raises:
            BackboneError: If a map is not of the size that the layout tells.
        """
        if not self.layout.maps:
            extra = [self._output(hidden)] if self.final else []
            return torch.cat([*hidden.states, *extra], dim=-1)
        for state, layer in zip(hidden.states, self.layers, strict=True):
            if tuple(state.shape[1:]) != self.layout.shapes[layer]:
                raise BackboneError(
                    f"A hidden state has shape {tuple(state.shape[1:])}.",
                    expected=f"{self.layout.shapes[layer]}, as for the backbone's own input size",
                    next_step="tuner.cache_features=false",
                )
        return torch.cat([state.flatten(1) for state in hidden.states], dim=1)

    def unpack(self, packed: Tensor, mask: Tensor | None) -> Hidden:
        """What `pack` was given, laid out in memory as there: a view of one array rounds otherwise."""
        shapes = [self.layout.shapes[layer] for layer in self.layers]
        if not self.layout.maps:
            sizes = [shape[-1] for shape in shapes] + ([self.layout.width] if self.final else [])
            parts = [part.contiguous() for part in packed.split(sizes, dim=-1)]
            return Hidden(parts[: len(shapes)], parts[-1] if self.final else None, mask)
        flat = packed.split([int(torch.Size(shape).numel()) for shape in shapes], dim=1)
        states = [
            part.unflatten(1, shape).contiguous() for part, shape in zip(flat, shapes, strict=True)
        ]
        return Hidden(states, None)

    @staticmethod
    def _output(hidden: Hidden) -> Tensor:
        output = hidden.output
        if output is None or output.shape[:2] != hidden.states[-1].shape[:2]:
            found = None if output is None else tuple(output.shape)
            raise BackboneError(
                f"The network's output is {found}.", expected="tokens [B, N, E], one for each state"
            )
        return output


class _Collected(Exception):  # noqa: N818
    """Ends a forward pass once the states are known."""

    def __init__(self, packed: Tensor, tokens: Tensor | None) -> None:
        self.packed = packed
        self.tokens = tokens


class SideLayer(TunerLayer):
    """A frozen network and its named side networks; one of them gives the features.

    The network runs in evaluation mode and without a graph, whatever its parameters say.

    Args:
        base_layer: The whole network.
    """

    adapter_layer_names: tuple[str, ...] = ()
    other_param_names: tuple[str, ...] = ()

    def __init__(self, base_layer: nn.Module) -> None:
        super().__init__()
        self.base_layer = base_layer
        self.merged_adapters: list[str] = []
        self._disable_adapters = False
        self._active_adapter: list[str] = []
        self._packed: Tensor | None = None
        self._only_collect = False
        self.galenic_chain = True
        setattr(self, self.adapter_layer_names[0], nn.ModuleDict())
        base_layer.eval()

    @property
    def sides(self) -> nn.ModuleDict:
        """The side networks by adapter."""
        return getattr(self, self.adapter_layer_names[0])

    @property
    def side(self) -> SideNetwork:
        """The active side network.

        Raises:
            ConfigError: If several are active.
        """
        names = [name for name in self.active_adapters if name in self.sides]
        if len(names) != 1:
            raise ConfigError(
                f"{len(names)} side networks are active.", expected="one: their features do not add"
            )
        return self.sides[names[0]]  # type: ignore[return-value]

    def train(self, mode: bool = True) -> SideLayer:
        """Training mode of the side networks; the network stays in evaluation mode."""
        super().train(mode)
        self.base_layer.eval()
        return self

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """The features of the active side network as `last_hidden_state`."""
        if self.disable_adapters or not self.active_adapters:
            return self.base_layer(*args, **kwargs)
        side = self.side
        mask = given(self.base_layer, "attention_mask", args, kwargs)
        if self._packed is not None:
            hidden = side.unpack(self._packed, mask)
        else:
            size = image_size(kwargs) or image_size(args)
            hidden = collect(
                self.base_layer,
                side.layout,
                lambda: self.base_layer(*args, **kwargs),
                size=size,
                mask=mask,
            )
            chosen = [hidden.states[layer] for layer in side.layers]
            hidden = Hidden(chosen, hidden.output, mask)
        if self._only_collect:
            output = hidden.output
            tokens = output if output is not None and output.ndim == 3 else None
            raise _Collected(side.pack(hidden), None if side.layout.maps else tokens)
        return BaseModelOutput(last_hidden_state=side(hidden))

    # For the cache of frozen outputs (galenic.models.prefix) -----------------------------

    @property
    def place(self) -> str:
        """Name of the states that are read."""
        return self.side.place

    @property
    def columns(self) -> dict[int, tuple[int, int]]:
        """Where single states stand in what `capture` gives."""
        return self.side.columns

    def capture(self, call: Callable[[], Any]) -> tuple[Tensor, Tensor | None]:
        """All states that the side network reads, packed, and the network's own tokens.

        The side network does not run itself.

        Args:
            call: Runs this layer.
        """
        self._only_collect = True
        try:
            call()
        except _Collected as collected:
            return collected.packed, collected.tokens
        finally:
            self._only_collect = False
        raise BackboneError("The forward pass never reached the side network.")

    @contextmanager
    def replay(self, packed: Tensor) -> Iterator[None]:
        """Inside, the side network reads `packed`, and the network is not run."""
        self._packed = packed
        try:
            yield
        finally:
            self._packed = None

    def merge(self, safe_merge: bool = False, adapter_names: list[str] | None = None) -> None:
        """Not possible.

        Raises:
            MergeError: Always.
        """
        raise MergeError(
            "A side network reads the states between the layers.",
            expected="a tuner inside the layers",
            next_step="Keep the side network: it stays at inference.",
        )

    def unmerge(self) -> None:
        """Nothing is ever merged."""


class SideModel(BaseTuner):
    """peft tuner whose model is one `SideLayer` around the whole network."""

    model: Any

    tuner_layer_cls: type[SideLayer] = SideLayer
    target_module_mapping: dict[str, list[str]] = {}

    @abstractmethod
    def build(self, config: Any, layout: Layout, network: nn.Module) -> SideNetwork:
        """The side network of one adapter."""

    def inject_adapter(
        self,
        model: nn.Module,
        adapter_name: str,
        autocast_adapter_dtype: bool = True,
        low_cpu_mem_usage: bool = False,
        state_dict: dict[str, Tensor] | None = None,
    ) -> None:
        """Probe the network where that was not done yet, and set a side network beside it."""
        # A copy: the caller's config is his, and may go on to another network.
        config = copy.deepcopy(self.peft_config[adapter_name])
        self.peft_config[adapter_name] = config
        layer = self.model if isinstance(self.model, SideLayer) else None
        network = model if layer is None else layer.base_layer
        method = str(config.peft_type).lower()
        if config.read is None:
            config.read = survey(network, method).to_dict()
        layout = Layout.of(config.read)
        require_modules(network, layout.blocks)
        side = self.build(config, layout, network)
        if layer is None:
            layer = self.tuner_layer_cls(network)
            self.model = layer
        parameter = next(network.parameters(), torch.zeros(0))
        layer.sides[adapter_name] = moved(side, parameter.device)
        layer.galenic_chain = bool(config.cache_features)
        self.set_adapter(self.active_adapters, inference_mode=config.inference_mode)
        self._mark_only_adapters_as_trainable(layer)

    def _create_and_replace(self, *args: Any, **kwargs: Any) -> None:
        raise NotImplementedError("a side network enters no single layer")

    def _unload_and_optionally_merge(
        self,
        merge: bool = True,
        progressbar: bool = False,
        safe_merge: bool = False,
        adapter_names: list[str] | None = None,
    ) -> nn.Module:
        if merge:
            self.model.merge()
        network: nn.Module = self.model.base_layer
        return network

    @classmethod
    def _remove_adapter_name_from_key(cls, key: str, adapter_name: str) -> str:
        container = cls.tuner_layer_cls.adapter_layer_names[0]
        return key.replace(f"{container}.{adapter_name}.", f"{container}.", 1)


def attach(backbone: Backbone, config: PeftConfig, method: str) -> None:
    """Set a side network beside `backbone.network`; its features become the backbone's.

    Raises:
        BackboneError: If the hidden states cannot be read.
        ConfigError: If `layers` names fewer than two states, or unknown ones.
    """
    from peft import get_peft_model

    from galenic.tuners._network import freeze

    network = backbone.network
    inputs: dict[str, Any] = backbone.example()
    if backbone._interpolates and backbone.inputs.size is not None:
        inputs["interpolate_pos_encoding"] = True
    config.read = survey(network, method, inputs).to_dict()
    # peft freezes the network only once the side network stands: an error leaves it as it was.
    backbone.network = get_peft_model(network, config)
    freeze(network)


def choose(
    wish: str | Sequence[int], layout: Layout, *, first: int = 0, where: str = "tuner.layers"
) -> list[int]:
    """Indices of the states to read, in order, the last always among them.

    Args:
        wish: `all`; `stages` (the last state of each size of map); or indices, where 0 is the
            input of the first block and i the output of block i; negative ones count back.
        layout: Of the network.
        first: Lowest index that may be read.
        where: Key, for errors.

    Raises:
        ConfigError: For an unknown index, or fewer than two states.
    """
    count = len(layout.shapes)
    if wish == "all":
        chosen = list(range(first, count))
    elif wish == "stages":
        sizes = [shape[1:] if layout.maps else (i,) for i, shape in enumerate(layout.shapes)]
        chosen = [i for i in range(count) if i + 1 == count or sizes[i] != sizes[i + 1]]
    else:
        asked = [int(index) for index in wish]
        wrong = [index for index in asked if not -count <= index < count]
        if wrong:
            raise ConfigError(
                f"layers names {wrong}, but the network has states 0 to {count - 1}.",
                where=where,
                expected=f"indices from 0 (before the first block) to {count - 1}",
            )
        chosen = sorted({index % count for index in asked})
    if len(chosen) < 2:
        raise ConfigError(
            f"layers gives {len(chosen)} state.",
            where=where,
            expected="at least two: one to start from, and one to add",
        )
    return chosen
