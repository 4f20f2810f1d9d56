"""Vision transformer, 5.5 M, learnt from open medical pictures and an ImageNet network.

What it was trained on, how, and what it is not good for stand in docs/methods/vit-tiny.md.
"""

from __future__ import annotations

from importlib.resources import as_file, files

from galenic.models.backbone import Opened
from galenic.models.builtin import vit
from galenic.models.trained import load_into

FILE = "vit_tiny.safetensors"
# Side of the pictures that it was trained on; other sides have their positions interpolated.
IMAGE = 128


def build(*, random: bool = False, channels: int | None = None) -> Opened:
    """The network, with the weights that galenic carries.

    Args:
        random: Random weights instead.
        channels: Of the pictures; other counts than three are inflated later.
    """
    del channels
    opened = vit.build(size="tiny", image=IMAGE)
    if not random:
        with as_file(files("galenic.models.builtin") / FILE) as path:
            load_into(opened.network, path)
    return opened
