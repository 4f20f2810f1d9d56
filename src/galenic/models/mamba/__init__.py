"""Mamba: a selective scan in plain torch, transformers' network on it, histories as its input."""

from galenic.models.mamba.build import Sizes, build
from galenic.models.mamba.mixer import SelectiveMixer, accelerate
from galenic.models.mamba.scan import selective_scan
from galenic.models.mamba.streams import EventMamba, StreamEmbedding

__all__ = [
    "EventMamba",
    "SelectiveMixer",
    "Sizes",
    "StreamEmbedding",
    "accelerate",
    "build",
    "selective_scan",
]
