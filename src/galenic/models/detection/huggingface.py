"""Detectors of transformers: YOLOS, DETR, Deformable DETR, RT-DETR (v2), D-FINE and their like."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from galenic.core.errors import BackboneError
from galenic.core.inputs import InputSpec
from galenic.models.detection.boxes import best
from galenic.models.huggingface import opening, pixels_of


class TransformersDetector(nn.Module):
    """A set-prediction detector with its own matching loss.

    Args:
        network: Of `AutoModelForObjectDetection`, with as many labels as there are classes.
        inputs: What it wants.
        most: Detections of an image.
        overlap: Intersection over union from which one of two boxes of a class goes; queries
            seldom repeat a box, so that little depends on it.
    """

    def __init__(
        self, network: Any, inputs: InputSpec, *, most: int = 100, overlap: float = 0.6
    ) -> None:
        super().__init__()
        self.network, self.inputs = network, inputs
        self.most, self.overlap = most, overlap

    def loss(self, pixels: Tensor, boxes: Tensor, classes: Tensor) -> Tensor:
        """The network's own loss.

        Args:
            pixels: [B, C, H, W].
            boxes: Corners in pixels [B, M, 4].
            classes: [B, M]; -1 for none.
        """
        size = _size(pixels)
        labels = []
        for corners, names in zip(boxes, classes, strict=True):
            known = names >= 0
            shares = corners[known] / size
            middle = (shares[:, :2] + shares[:, 2:]) / 2
            sides = shares[:, 2:] - shares[:, :2]
            labels.append(
                {"class_labels": names[known], "boxes": torch.cat([middle, sides], dim=1)}
            )
        loss: Tensor = self.network(**{self.inputs.key: pixels}, labels=labels).loss
        return loss

    def detect(self, pixels: Tensor) -> Tensor:
        """Detections [B, most, 6] of pixels [B, C, H, W], see :func:`best`."""
        outputs = self.network(**{self.inputs.key: pixels})
        kinds = self.network.config.num_labels
        if outputs.logits.shape[-1] > kinds:  # the last class is "no object"
            scores = outputs.logits.softmax(-1)[..., :kinds]
        else:
            scores = outputs.logits.sigmoid()
        middle, sides = outputs.pred_boxes.split(2, dim=-1)
        boxes = torch.cat([middle - sides / 2, middle + sides / 2], dim=-1).clamp(0, 1)
        return best(
            boxes * _size(pixels),
            scores,
            most=self.most,
            candidates=scores[0].numel(),
            threshold=self.overlap,
        )


def _size(pixels: Tensor) -> Tensor:
    height, width = pixels.shape[-2:]
    return pixels.new_tensor([width, height, width, height])


def open_detector(
    spec: str, classes: tuple[str, ...], *, most: int = 100, overlap: float = 0.6
) -> TransformersDetector:
    """Open a detector of transformers with a fresh head for these classes.

    Args:
        spec: Folder or id; a trailing `#random` takes its architecture with random weights.
        classes: Names of the classes.
        most: Detections of an image.
        overlap: As for :class:`TransformersDetector`.

    Raises:
        BackboneError: If it is neither here nor to be had, or detects nothing.
        WeightsError: If its weights would run code, or are damaged.
    """
    from transformers import AutoConfig, AutoModelForObjectDetection
    from transformers.utils import logging

    name, _, variant = spec.partition("#")
    if variant not in ("", "random"):
        raise BackboneError(f"'#{variant}' is no variant of '{name}'.", expected="#random")
    level = logging.get_verbosity()
    # A head that does not fit these classes is what is wanted, and no fault to tell of.
    logging.set_verbosity_error()
    try:
        with opening(name, "fcos, or a folder or cached id of a detection model of transformers"):
            config = AutoConfig.from_pretrained(name)
            config.id2label = dict(enumerate(classes))
            config.label2id = {label: place for place, label in enumerate(classes)}
            if variant:
                network = AutoModelForObjectDetection.from_config(config)
            else:
                network = AutoModelForObjectDetection.from_pretrained(
                    name, config=config, ignore_mismatched_sizes=True
                )
    finally:
        logging.set_verbosity(level)
    inputs = pixels_of(Path(name), network.main_input_name, config)
    return TransformersDetector(network, inputs, most=most, overlap=overlap)
