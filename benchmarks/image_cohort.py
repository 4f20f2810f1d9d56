"""Cohorts of pictures decoded, resized and normalised: galenic's loader against DataLoader and PIL."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import PIL
import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional
from torch.utils.data import DataLoader, Dataset, Subset

from benchmarks.harness import alternate, write_result
from galenic.data.cohort import Cohort
from galenic.models.backbone import Backbone, open_backbone
from galenic.pipeline.inputs import Collate, Inputs

DATA = Path(os.environ.get("GALENIC_DATA", Path(__file__).parents[2] / "shared" / "data"))
# Grey PNG, coloured PNG and coloured JPEG: manifest and column of the pictures.
COHORTS = {
    "covid_cxr_ccby/manifest.csv": "image",
    "busi_256_subset/manifest.csv": "image",
    "bccd_blood_cells/images.csv": "file",
}
BACKBONE, BATCH, FIRST = "builtin:mobilenet-v2", 32, 100


class Plain(Dataset[Tensor]):
    """What is written without galenic: PIL decodes, torch resizes and normalises."""

    def __init__(self, paths: Sequence[Path], backbone: Backbone) -> None:
        self.paths, self.size = paths, backbone.inputs.size
        assert backbone.inputs.mean is not None and backbone.inputs.std is not None
        self.mean, self.std = (
            torch.tensor(values)[:, None, None]
            for values in (backbone.inputs.mean, backbone.inputs.std)
        )

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, row: int) -> Tensor:
        pixels = np.asarray(Image.open(self.paths[row]).convert("RGB"))
        picture = torch.from_numpy(pixels.transpose(2, 0, 1).astype(np.float32) / 255)
        resized = functional.interpolate(
            picture[None], self.size, mode="bilinear", antialias=True, align_corners=False
        )[0]
        return (resized - self.mean) / self.std


def main() -> None:
    """Measure, check that both sides give the same pixels, write the result."""
    torch.set_num_threads(1)
    backbone = open_backbone(BACKBONE)
    loaders: dict[str, list[DataLoader[Any]]] = {"ours": [], "peer": []}
    for manifest, column in COHORTS.items():
        cohort = Cohort.open(DATA / manifest, inputs=[column])
        paths = [cohort.root / name for name in cohort.table[column][:FIRST]]
        inputs = Subset(Inputs(cohort, backbone), range(FIRST))
        collate = Collate.of(backbone)
        loaders["ours"].append(DataLoader(inputs, batch_size=BATCH, collate_fn=collate))
        loaders["peer"].append(DataLoader(Plain(paths, backbone), batch_size=BATCH))

    def read(side: str) -> None:
        for loader in loaders[side]:
            for _ in loader:
                pass

    gap = 0.0
    for ours, peer in zip(loaders["ours"], loaders["peer"], strict=True):
        for batch, plain in zip(ours, peer, strict=True):
            gap = max(gap, float((batch[backbone.inputs.key] - plain).abs().max()))
    assert gap < 1e-5, f"the pixels differ by {gap}"
    write_result(
        name="image_cohort",
        unit=f"s for {FIRST * len(COHORTS)} pictures",
        times=alternate(lambda: read("ours"), lambda: read("peer")),
        peer={
            "name": "torch DataLoader + PIL",
            "version": f"{torch.__version__}, {PIL.__version__}",
        },
        reach="at most 1.0",
        met=lambda ratio: ratio <= 1.0,
        same_result=f"grey PNG, coloured PNG and JPEG, one thread, no worker: largest difference of "
        f"a normalised pixel {gap:.1e}",
    )


if __name__ == "__main__":
    main()
