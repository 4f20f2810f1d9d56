"""MM-Lego: unimodal encoders as blocks of one multimodal model.

Hemker, Simidjievski, Jamnik, "Multimodal Lego: Model Merging and Fine-Tuning Across Topologies
and Modalities in Biomedicine", ICLR 2025, arXiv 2405.19950.
"""

from galenic.models.lego.block import LegoBlock
from galenic.models.lego.fuse import LegoFuse
from galenic.models.lego.layers import LegoHead
from galenic.models.lego.merge import LegoMerge

__all__ = ["LegoBlock", "LegoFuse", "LegoHead", "LegoMerge"]
