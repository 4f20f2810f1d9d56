"""Networks of the Hugging Face formats: a folder on disk, or an id that is in the local cache."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from galenic.core.errors import BackboneError, WeightsError
from galenic.core.inputs import InputSpec
from galenic.models.backbone import Opened

SAFE = "*.safetensors"
# Mean and deviation of AudioSet's log mel energies; AST divides by twice the latter.
AUDIOSET = (-4.2677393, 4.5689974)


def open_huggingface(name: str, random: bool = False) -> Opened:
    """Open a folder, or an id whose files are in the local cache; downloads if it can.

    Args:
        name: Folder or `organisation/model`.
        random: Build from the config with random weights.

    Raises:
        BackboneError: If it is neither here nor to be had.
        WeightsError: If the weights would run code, or are damaged.
    """
    from transformers import AutoConfig, AutoModel

    folder = Path(name)
    with opening(name, "a folder with config.json and model.safetensors, or an id in the cache"):
        config = AutoConfig.from_pretrained(name)
        vision = getattr(config, "vision_config", None)
        if vision is not None:
            config = vision
        if random:
            network = AutoModel.from_config(config)
        else:
            network = AutoModel.from_pretrained(name, config=config)
    network.eval()
    if config.model_type == "mamba":
        from galenic.models.mamba import accelerate

        accelerate(network)
    main = network.main_input_name
    if main == "input_ids":
        return _text(name, network, config)
    return Opened(
        network,
        pixels_of(folder, main, config),
        pool="cls" if _has_class_token(network) else "mean",
        prefix_tokens=_prefix_tokens(network, config),
    )


@contextmanager
def opening(name: str, expected: str) -> Iterator[None]:
    """Open a checkpoint inside: no code of it runs, no bar is drawn, and faults are errors of ours.

    Args:
        name: Folder or id.
        expected: What it should have been.

    Raises:
        BackboneError: If it is neither here nor to be had.
        WeightsError: If the weights of a folder would run code, or are damaged.
    """
    from safetensors import SafetensorError

    if Path(name).is_dir():
        refuse_pickle(Path(name))
    try:
        with without_bars():
            yield
    except SafetensorError as error:
        raise WeightsError(
            f"The weights are damaged: {error}.", where=name, next_step="Fetch them again."
        ) from None
    except (OSError, ValueError, KeyError, ImportError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise BackboneError(
            f"'{name}' could not be opened: {reason}",
            expected=expected,
            next_step="Give the folder's path, or connect to the hub once.",
        ) from None


@contextmanager
def without_bars() -> Iterator[None]:
    """Keep transformers' progress bars to itself inside."""
    from transformers.utils import logging

    bars = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        if bars:
            logging.enable_progress_bar()


def refuse_pickle(folder: Path) -> None:
    """Check that the weights of a folder load without running code.

    Raises:
        WeightsError: If the only weights are a pickle that `weights_only=True` refuses.
    """
    import pickle
    import warnings

    import torch

    if any(folder.glob(SAFE)):
        return
    for path in [*folder.glob("*.bin"), *folder.glob("*.pt"), *folder.glob("*.pth")]:
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                torch.load(path, map_location="meta", weights_only=True)
        except (pickle.UnpicklingError, RuntimeError, EOFError):
            raise WeightsError(
                f"'{path.name}' is a pickle that would run code, or is damaged.",
                where=str(folder),
                expected="safetensors, or a checkpoint of plain tensors",
                next_step="Ask its authors for safetensors; it was not executed.",
            ) from None


def _text(name: str, network: Any, config: Any) -> Opened:
    from transformers import AutoTokenizer

    from galenic.models.attention import even

    even(network)
    tokenizer = AutoTokenizer.from_pretrained(name)
    positions = getattr(config, "max_position_embeddings", None) or 10**6
    window = min(tokenizer.model_max_length, positions)
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    spec = InputSpec("input_ids", "tokens", channels=1, max_length=int(window))
    return Opened(network, spec, tokenizer, pool="mean")


def pixels_of(folder: Path, key: str, config: Any) -> InputSpec:
    """What a network of pictures or spectrograms wants.

    Args:
        folder: Of the checkpoint, for its processor's mean and spread.
        key: Name of its main input.
        config: Of transformers.
    """
    if getattr(config, "num_mel_bins", None) and key == "input_values":
        size = (config.max_length, config.num_mel_bins)
        values = _processor(folder)
        mean, spread = values.get("mean", AUDIOSET[0]), 2 * values.get("std", AUDIOSET[1])
        return InputSpec(key, "spectrogram", 1, size, (mean,), (spread,), rate_hz=16000.0)
    side = getattr(config, "image_size", None) or 224
    size = tuple(side) if isinstance(side, list | tuple) else (side, side)
    channels = getattr(config, "num_channels", 3)
    mean, std = _normalisation(folder, channels)
    return InputSpec(key, "image", channels=channels, size=size, mean=mean, std=std)


def _normalisation(folder: Path, channels: int) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and spread as the checkpoint's own processor has them, else 0.5 and 0.5."""
    values = _processor(folder)
    mean = tuple(values.get("image_mean") or (0.5,) * channels)
    std = tuple(values.get("image_std") or (0.5,) * channels)
    return (mean[:1] * channels, std[:1] * channels) if len(mean) != channels else (mean, std)


def _processor(folder: Path) -> dict[str, Any]:
    path = folder / "preprocessor_config.json"
    values: dict[str, Any] = {}
    if path.is_file():
        values = json.loads(path.read_text(encoding="utf-8"))
    return values


def _has_class_token(network: Any) -> bool:
    return any(
        name.rpartition(".")[2] in ("cls_token", "class_embedding")
        for name, _ in network.named_parameters()
    )


def _prefix_tokens(network: Any, config: Any) -> int:
    names = {name.rpartition(".")[2] for name, _ in network.named_parameters()}
    count = len(names & {"cls_token", "class_embedding", "distillation_token"})
    return count + (getattr(config, "num_register_tokens", 0) or 0)
