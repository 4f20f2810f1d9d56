"""The weights of `builtin:vit-tiny`, from the run that trained them.

    python evidence/prepare/open_pictures.py DATA PICTURES
    galenic run mae-thorax --data PICTURES/manifest.csv --inputs image --label kind \\
        --patient-id patient_id --name mae "backbone=builtin:vit?size=tiny&image=128" \\
        pretraining.mask_ratio=0.75 pretraining.norm_pix=true \\
        "pretraining.decoder={dim: 192, depth: 1, heads: 3}" "input.augment.crop=[0.3,1]" \\
        schedule.epochs=16 schedule.batch_size=64 schedule.lr=1e-3 schedule.warmup=0.1 \\
        split.val=0.03 split.test=0.03 resamples=0
    galenic run feature-distillation --data PICTURES/manifest.csv --inputs image --label kind \\
        --patient-id patient_id --name vit backbone=runs/mae schedule.epochs=9 \\
        schedule.batch_size=64 schedule.lr=1e-3 split.val=0.03 split.test=0.03 resamples=0
    python evidence/prepare/vit_tiny.py runs/vit src/galenic/models/builtin/vit_tiny.safetensors
"""

from __future__ import annotations

import sys
from pathlib import Path

import torch
from safetensors.torch import save

from galenic.core.files import atomic_write
from galenic.core.run import Run
from galenic.models.backbone import open_backbone


def main(run: Path, target: Path) -> None:
    """Write every tensor in half precision."""
    state = open_backbone(str(run)).network.state_dict()
    half = {name: tensor.to(torch.float16).contiguous() for name, tensor in state.items()}
    told = {"galenic": Run.open(run).provenance["versions"]["galenic"], "license": "Apache-2.0"}
    atomic_write(target, save(half, told))


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
