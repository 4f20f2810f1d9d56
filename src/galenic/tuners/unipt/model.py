"""UniPT as a peft tuner."""

from __future__ import annotations

from typing import Any

from torch import nn

from galenic.tuners import _peft
from galenic.tuners._hidden import Layout
from galenic.tuners._side import SideLayer, SideModel, SideNetwork
from galenic.tuners.unipt.config import UniPTConfig
from galenic.tuners.unipt.network import build


class UniPTLayer(SideLayer):
    """A frozen network and its UniPT side networks, one a named adapter."""

    adapter_layer_names = ("unipt_side",)


class UniPTModel(SideModel):
    """A frozen network with UniPT beside it."""

    prefix = "unipt_"
    tuner_layer_cls = UniPTLayer

    def build(self, config: Any, layout: Layout, network: nn.Module) -> SideNetwork:
        """The side network of one adapter."""
        return build(config, layout)


_peft.register("UNIPT", UniPTConfig, UniPTModel, prefix="unipt_")
