"""Irregular series and notes of a stay: time attention, gated with imputation, and their fusion.

Zhang et al., "Improving Medical Predictions by Irregular Multimodal Electronic Health Records
Modeling", ICML 2023, arXiv 2210.12156.
"""

from galenic.models.irregular.attention import TimeAttention, TimeEmbedding, time_attention
from galenic.models.irregular.fusion import Fusion
from galenic.models.irregular.stay import GridNetwork, ResidualHead, Sizes, StayNetwork
from galenic.models.irregular.utde import Gate, SeriesEmbedding

__all__ = [
    "Fusion",
    "Gate",
    "GridNetwork",
    "ResidualHead",
    "SeriesEmbedding",
    "Sizes",
    "StayNetwork",
    "TimeAttention",
    "TimeEmbedding",
    "time_attention",
]
