"""The radiology protocol: every way of using a frozen or tuned network, on few labels and on all.

Baharoon et al., 2023, arXiv 2312.02366: nearest neighbours, linear probes, parameter-efficient and
full fine-tuning for classes; a linear and a U-Net-like decoder, and both kinds of tuning, for masks.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from galenic.core.errors import BackboneError
from galenic.core.progress import tell
from galenic.core.recipes import open_recipe
from galenic.core.run import Run
from galenic.launch.curve import ALL, Arm, curve

CLASSES = ("knn", "dinov2-radiology", "bitfit", "lora", "full")
MASKS = ("segment", "segment-unet", "segment-bitfit", "segment-full")
SHOTS = (1, 5, 10, ALL)


def protocol(
    data: str | Path,
    *,
    backbones: Sequence[str] = ("auto",),
    recipes: Sequence[str] = (),
    shots: Sequence[int | str] = SHOTS,
    columns: Mapping[str, Any] | None = None,
    **options: Any,
) -> Run:
    """Run the whole protocol on a cohort, and write one table and one figure.

    Each point is the mean over seeds with Student's interval; whatever is chosen is chosen on
    validation patients, and the test patients of a seed are the same for all.

    Args:
        data: As for `run`; a label of masks makes it the protocol of segmentation.
        backbones: Networks that are compared.
        recipes: Instead of the protocol's own.
        shots: Training patients a class (of masks: in all), or `all`.
        columns: As for `run`.
        **options: As for `curve`.

    Returns:
        The folder of the curve, with `curve.json` and `curve.csv`.

    Raises:
        GalenicError: As for `curve`, or if no recipe can enter any of the networks.
    """
    from galenic.data.cohort import Cohort
    from galenic.pipeline.config import DEFAULT_BACKBONES
    from galenic.pipeline.inputs import single_input

    known = {key: value for key, value in (columns or {}).items() if value is not None}
    cohort = Cohort.open(data, **known)
    masks = cohort.label is not None and cohort.label.kind == "mask"
    modality = single_input(cohort)[1]
    arms, left_out = [], {}
    for asked in backbones:
        backbone = DEFAULT_BACKBONES[modality] if asked == "auto" else asked
        for recipe in recipes or (MASKS if masks else CLASSES):
            name = recipe if len(backbones) == 1 else f"{recipe} on {backbone}"
            try:
                _enter(recipe, backbone, modality)
            except BackboneError as error:
                left_out[name] = error.found
                tell(f"{name} is left out: {error.found}")
                refused = error
                continue
            arms.append(Arm(name, recipe, (f"backbone={backbone}",)))
    if not arms:
        raise refused
    return curve(arms, data, shots=shots, left_out=left_out, columns=columns, **options)


def _enter(recipe: str, backbone: str, modality: str) -> None:
    """See that the recipe's tuner can enter a network.

    Raises:
        BackboneError: If it cannot.
    """
    from galenic import tuners
    from galenic.models.backbone import open_backbone

    tuner = tuners.parse_tuner(open_recipe(recipe).config.get("tuner", {"method": "none"}))
    tuners.attach(open_backbone(backbone, modality=modality), tuner)
