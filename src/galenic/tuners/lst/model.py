"""Ladder side-tuning as a peft tuner."""

from __future__ import annotations

from typing import Any

from torch import nn

from galenic.tuners import _peft
from galenic.tuners._hidden import Layout
from galenic.tuners._side import SideLayer, SideModel, SideNetwork
from galenic.tuners.lst.config import LSTConfig
from galenic.tuners.lst.network import build


class LSTLayer(SideLayer):
    """A frozen network and its ladders, one a named adapter."""

    adapter_layer_names = ("lst_side",)


class LSTModel(SideModel):
    """A frozen network with a ladder beside it."""

    prefix = "lst_"
    tuner_layer_cls = LSTLayer

    def build(self, config: Any, layout: Layout, network: nn.Module) -> SideNetwork:
        """The side network of one adapter."""
        return build(config, layout, network)


_peft.register("LST", LSTConfig, LSTModel, prefix="lst_")
