"""A network in the layouts of other libraries."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from safetensors.torch import save_file

from galenic.core.files import atomic_folder
from galenic.models.backbone import Backbone
from galenic.models.huggingface import without_bars
from galenic.models.vit_keys import to_timm

TIMM = "timm.safetensors"


def export(backbone: Backbone, folder: Path) -> bool:
    """Write `config.json`, `model.safetensors` and the normalisation, as transformers reads them.

    A plain vision transformer is written in timm's layout too.

    Args:
        backbone: Its network must be an ordinary one: no tuner is attached.
        folder: Is made; what was there before goes.

    Returns:
        Whether the network is one of transformers; nothing is written of any other.
    """
    from transformers import PreTrainedModel

    network = backbone.network
    if not isinstance(network, PreTrainedModel):
        return False
    spec = backbone.inputs
    config: Any = network.config
    with atomic_folder(Path(folder)) as place, without_bars():
        network.save_pretrained(str(place))
        if spec.mean is not None and spec.std is not None:
            values = {"image_mean": list(spec.mean), "image_std": list(spec.std)}
            text = json.dumps(values, indent=2) + "\n"
            (place / "preprocessor_config.json").write_text(text, encoding="utf-8")
        if config.model_type == "vit":
            tensors = {name: tensor.detach().cpu() for name, tensor in network.state_dict().items()}
            timm = {name: tensor.contiguous() for name, tensor in to_timm(tensors).items()}
            save_file(timm, str(place / TIMM), metadata={"format": "pt"})
    return True
