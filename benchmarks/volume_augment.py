"""A volume of 128 x 128 x 128 augmented (affine, gamma, gain, offset, noise) against MONAI and TorchIO.

One thread a side, as in a worker of a loader. TorchIO is measured where it is installed.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from importlib.metadata import version
from typing import Any

import numpy as np
import torch

from benchmarks.harness import alternate, write_result
from galenic.data import augment, warp3d

SIDE, EDGE, REPEATS = 128, 32, 5
DEGREES, SIZE, SHIFT = (8.0, 0.0, -12.0), 1.1, (3, -2, 5)
GAMMA, GAIN, OFFSET, NOISE = 0.9, 1.05, 0.02, 0.05
REACH = 0.8
WARP = {"degrees": list(DEGREES), "size": SIZE, "shear": [0.0] * 6, "voxel": [1.0] * 3}
MOVED = {
    "flip": False, "shift": list(SHIFT), "warp": WARP, "gain": 1.0, "offset": 0.0,
    "noise": (0.0, 0), "dropped": [],
}  # fmt: skip
DRAWN = MOVED | {"gamma": GAMMA, "gain": GAIN, "offset": OFFSET, "noise": (NOISE, 0)}
Change = Callable[[Any], Any]


def of_monai() -> tuple[Change, Change]:
    """Its affine map alone, and the whole pipeline."""
    import monai.transforms as peer

    back = np.eye(4)
    back[:3, :3] = np.linalg.inv(warp3d.matrix(WARP))
    back[:3, 3] = -back[:3, :3] @ SHIFT
    affine = peer.Affine(affine=back, padding_mode="reflection", image_only=True)
    intensity = [
        peer.AdjustContrast(GAMMA),
        peer.ScaleIntensity(minv=None, maxv=None, factor=GAIN - 1),
        peer.ShiftIntensity(OFFSET),
        peer.RandGaussianNoise(prob=1.0, std=NOISE, sample_std=False),
    ]
    return affine, peer.Compose([affine, *intensity])


def of_torchio() -> tuple[Change, Change]:
    """Its affine map alone, and the whole pipeline; the offset is the mean of its noise."""
    import SimpleITK
    import torchio as peer

    SimpleITK.ProcessObject.SetGlobalDefaultNumberOfThreads(1)
    # It moves first and scales then.
    affine = peer.Affine([SIZE] * 3, DEGREES, [by / SIZE for by in SHIFT])
    intensity = [
        peer.Gamma(GAMMA),
        peer.Lambda(lambda values: values * GAIN),
        peer.Noise(mean=OFFSET, std=NOISE, seed=0),
    ]
    return affine, peer.Compose([affine, *intensity])


def main() -> None:
    """Measure, check that the maps are the same, write the results."""
    torch.set_num_threads(1)
    values = np.random.default_rng(0).random((1, SIDE, SIDE, SIDE), np.float32)
    tensor = torch.from_numpy(values)
    inner = (slice(None), *[slice(EDGE, -EDGE)] * 3)
    peers = {"monai": of_monai, "torchio": of_torchio}
    for name, build in peers.items():
        if importlib.util.find_spec(name) is None:
            print(f"{name} is not installed: not measured")
            continue
        affine, pipeline = build()
        gap = float(np.abs(augment.apply(values, MOVED) - np.asarray(affine(tensor)))[inner].max())
        assert gap < 1e-4, f"the volumes differ by {gap}"

        def ours() -> None:
            for _ in range(REPEATS):
                augment.apply(values, DRAWN)

        def peer(pipeline: Change = pipeline) -> None:
            for _ in range(REPEATS):
                pipeline(tensor)

        write_result(
            name=f"volume_augment_{name}",
            unit=f"s for {REPEATS}",
            times=alternate(ours, peer, rounds=7),
            peer={"name": name, "version": version(name)},
            reach=f"at most {REACH}",
            met=lambda ratio: ratio <= REACH,
            same_result=f"{SIDE} cubed, one thread, the affine map alone inside the edges: "
            f"largest difference {gap:.1e}",
            module="volume_augment",
        )


if __name__ == "__main__":
    main()
