"""Networks of MONAI and timm."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

from galenic.core.errors import BackboneError, MissingExtraError, WeightsError, nearest
from galenic.core.inputs import InputSpec
from galenic.models.backbone import Opened, arguments_of
from galenic.models.weights import read_state


def open_monai(text: str) -> Opened:
    """A network of `monai.networks.nets`: `ViT?in_channels=1&img_size=[32,32]&patch_size=8`.

    Args:
        text: Class name and keyword arguments; `weights=FILE` loads safetensors or a plain
            state dict.

    Raises:
        BackboneError: If there is no such class, or it refuses the arguments.
        WeightsError: If the weights do not fit or would run code.
    """
    try:
        from monai.networks import nets
    except ImportError:
        raise MissingExtraError.of("monai", "imaging") from None
    name, _, query = text.partition("?")
    kind = getattr(nets, name, None)
    if kind is None:
        known = [found for found in dir(nets) if found[0].isupper()]
        raise BackboneError(f"MONAI has no network '{name}'. {nearest(name, known)}".strip())
    arguments = arguments_of(query)
    weights = arguments.pop("weights", None)
    try:
        network = kind(**arguments)
    except (TypeError, ValueError) as error:
        raise BackboneError(f"MONAI's {name} refused its arguments: {error}.") from None
    if weights is not None:
        _load(network, str(weights))
    size = arguments.get("img_size", (96,) * int(arguments.get("spatial_dims", 3)))
    sides = tuple(size) if isinstance(size, list | tuple) else (size,) * 3
    form: Literal["volume", "image"] = "volume" if len(sides) == 3 else "image"
    channels = int(arguments.get("in_channels", 1))
    key = next(iter(_parameters(network)))
    return Opened(network.eval(), InputSpec(key, form, channels=channels, size=sides))


def _parameters(network: Any) -> list[str]:
    import inspect

    return list(inspect.signature(network.forward).parameters)


def _load(network: Any, path: str) -> None:
    state = read_state(Path(path))
    try:
        network.load_state_dict(state)
    except RuntimeError as error:
        raise WeightsError(f"The weights do not fit: {error}", where=path) from None


def open_timm(name: str, random: bool = False) -> Opened:
    """A network of timm, without its head.

    Raises:
        MissingExtraError: If timm is not installed.
        BackboneError: If there is no such network.
    """
    try:
        import timm
    except ImportError:
        raise MissingExtraError.of("timm", "timm") from None
    try:
        network = timm.create_model(name, pretrained=not random, num_classes=0)
    except RuntimeError as error:
        raise BackboneError(f"timm cannot make '{name}': {error}.") from None
    data = timm.data.resolve_model_data_config(network)
    channels, *sides = data["input_size"]
    spec = InputSpec("x", "image", channels, tuple(sides), tuple(data["mean"]), tuple(data["std"]))
    return Opened(network.eval(), spec)
