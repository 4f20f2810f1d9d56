"""From what a reader gives to what a network takes."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.nn import functional

from galenic.core.errors import DataError
from galenic.core.fingerprint import fingerprint_bytes
from galenic.core.inputs import InputSpec
from galenic.data import augment as augmentation
from galenic.data import ecg, leads
from galenic.data.augment import AugmentConfig
from galenic.data.crop import Box, cut
from galenic.data.spectrogram import log_mel, log_spectrogram, resample
from galenic.data.values import Image, Signal, Value, Volume

Array = np.ndarray[Any, np.dtype[Any]]
SLICES = 16
FULL_SCALE = {np.dtype(np.uint8): 255.0}
PERCENTILES = (0.5, 99.5)


@dataclass(frozen=True)
class Transform:
    """The way of one modality into one network.

    Attributes:
        spec: What the network wants.
        modality: What comes in.
        augment: What may be varied; None for nothing.
    """

    spec: InputSpec
    modality: str
    augment: AugmentConfig | None = None

    @property
    def fingerprint(self) -> str:
        """Of the way from a file to the undrawn input: what is wanted, and the code that does it."""
        return fingerprint_bytes(repr(self.spec), self.modality, _code())

    def draw(self, rng: np.random.Generator, value: Value) -> dict[str, Any] | None:
        """All random numbers for one sample; None where nothing varies."""
        if self.augment is None:
            return None
        drawn = augmentation.draw(self.augment, rng, self._shape(value), self._voxel(value))
        if self.spec.ecg is not None and self.spec.channels == 1 and isinstance(value, Signal):
            # One lead has none to be zeroed beside it: it is another one that is fed.
            other = rng.random() < self.augment.one_channel
            drawn["lead"] = leads.draw(value, rng) if other else None
        return drawn

    def carried(
        self, params: dict[str, Any] | None, value: Value, other: Transform
    ) -> dict[str, Any] | None:
        """What `other` is to apply to a picture that is changed by `params` here."""
        if params is None:
            return None
        return augmentation.carried(params, self._shape(value), other._shape(value))

    def apply(self, value: Value, params: dict[str, Any] | None = None) -> Array:
        """float32 input of the network, without a batch axis; `value` is left as it is.

        Raises:
            DataError: If the channels do not fit.
        """
        if params is not None and params["rotation"]:
            value = self._rotated(value, params["rotation"])
        if params is not None and params.get("lead") is not None:
            value = self._lead(value, params["lead"])
        array = self._plain(value, None if params is None else params["crop"])
        if params is not None:
            array = augmentation.apply(array, params)
        return self._normalised(array)

    def _shape(self, value: Value) -> tuple[int, ...]:
        """Of what is augmented, [C, ...]: for each slice, where a network of pictures reads some."""
        spec = self.spec
        if spec.size is not None and spec.form != "spectrogram":
            return spec.channels, *spec.size
        if isinstance(value, Image | Volume):
            return spec.channels, *_sides(value)[-2 if spec.form == "image" else -3 :]
        return self._plain(value).shape

    def _voxel(self, value: Value) -> tuple[float, ...] | None:
        """Size in mm along (D, H, W) of a voxel that the network sees, where known."""
        if not isinstance(value, Volume) or value.spacing_mm is None:
            return None
        have = _sides(value)
        want = self.spec.size if self.spec.form == "volume" and self.spec.size else have
        return tuple(np.asarray(value.spacing_mm) * have / want)

    def _plain(self, value: Value, crop: Box | None = None) -> Array:
        """The input in its final size, intensities 0..1 where it is a picture."""
        form = self.spec.form
        if isinstance(value, Signal):
            if crop is not None:
                raise DataError(
                    f"A crop is cut from pictures, and this input is {self.modality}.",
                    expected="an image or a volume",
                    next_step="input.augment.crop=null",
                )
            return self._signal(value)
        if isinstance(value, Image) and form == "image":
            return self._fitted(scale(value.pixels), crop)
        if isinstance(value, Image) and form == "volume":
            value = Volume(value.pixels[:, None].astype(np.float32))
        if isinstance(value, Volume) and form == "volume":
            return self._fitted(scale(value.voxels), crop)
        if isinstance(value, Volume) and form == "image":
            depth = value.voxels.shape[1]
            places = np.unique(np.linspace(0, depth - 1, SLICES).round().astype(int))
            # Every volume gives the same number of slices; a thin one repeats its own.
            places = places[np.linspace(0, len(places) - 1, SLICES).round().astype(int)]
            slices = scale(value.voxels)[:, places].swapaxes(0, 1)
            return np.stack([self._fitted(part, crop) for part in slices])
        raise DataError(
            f"A {type(value).__name__.lower()} cannot be read by a network of {form}s.",
            next_step="Choose a backbone for this modality.",
        )

    def _fitted(self, picture: Array, crop: Box | None) -> Array:
        """Channels and size of the network; of a crop, by cubics, since it may grow."""
        # Grey is repeated last, and colours are mixed first: what is resized is then the least.
        if len(picture) > 1:
            picture = fit_channels(picture, self.spec.channels)
        if crop is None:
            picture = resize(picture, self.spec.size)
        else:
            picture = resize(cut(picture, crop), self.spec.size, cubic=True).clip(0, 1)
        return fit_channels(picture, self.spec.channels)

    def _rotated(self, value: Value, degrees: float) -> Value:
        if self.modality != "ecg" or not isinstance(value, Signal):
            raise DataError(
                f"The heart's axis of a {self.modality} cannot be turned.",
                expected="a tracing with its limb leads",
                next_step="input.augment.rotate_limb=0",
            )
        return leads.rotate_limb(value, degrees)

    def _lead(self, value: Value, place: int) -> Value:
        """One lead of a tracing, under the name of the one that the network reads."""
        assert isinstance(value, Signal) and self.spec.ecg is not None
        return replace(value, samples=value.samples[[place]], channels=self.spec.ecg.leads)

    def _signal(self, value: Signal) -> Array:
        spec = self.spec
        if spec.ecg is not None and spec.ecg.preset is not None:
            return ecg.prepare(value, spec)
        if spec.ecg is not None:
            value = replace(value, samples=leads.choose(value, spec.ecg)[0])
        if spec.form == "image":
            picture = log_spectrogram(value.samples, value.rate_hz, self.modality)
            return resize(fit_channels(picture, spec.channels), spec.size)
        samples = resample(value.samples, value.rate_hz, spec.rate_hz or value.rate_hz)
        if spec.form == "spectrogram":
            assert spec.size is not None
            return log_mel(samples, spec.rate_hz or value.rate_hz, *spec.size)
        samples = fit_channels(samples, spec.channels)
        spread = samples.std(axis=-1, keepdims=True)
        samples = (samples - samples.mean(axis=-1, keepdims=True)) / np.maximum(spread, 1e-6)
        return samples if spec.size is None else crop_or_pad(samples, spec.size[0])

    def _normalised(self, array: Array) -> Array:
        if self.spec.mean is None or self.spec.std is None:
            return np.ascontiguousarray(array, dtype=np.float32)
        trailing = () if self.spec.form == "spectrogram" else (1,) * len(self.spec.size or (1, 1))
        mean = np.asarray(self.spec.mean, np.float32).reshape(-1, *trailing)
        std = np.asarray(self.spec.std, np.float32).reshape(-1, *trailing)
        result = np.ascontiguousarray(array - mean, dtype=np.float32)
        return np.divide(result, std, out=result)


def _sides(value: Image | Volume) -> tuple[int, int, int]:
    """(D, H, W); a picture is one slice."""
    layers = value.voxels if isinstance(value, Volume) else value.pixels[:, None]
    return layers.shape[1:]


@cache
def _code() -> str:
    """Fingerprint of the modules that decode and transform."""
    folder = Path(__file__).parent
    modules = [*folder.glob("*.py"), *folder.glob("readers/*.py")]
    return fingerprint_bytes(*(module.read_bytes() for module in sorted(modules)))


def build(spec: InputSpec, modality: str, *, augment: AugmentConfig | None = None) -> Transform:
    """The transform of a modality for a network."""
    return Transform(spec, modality, augment)


def scale(values: Array) -> Array:
    """Intensities in 0..1: 8-bit by 255, all others by their 0.5 and 99.5 percentiles."""
    full = FULL_SCALE.get(values.dtype)
    if full is not None:
        scaled = values.astype(np.float32)
        return np.divide(scaled, np.float32(full), out=scaled)
    floats = values.astype(np.float32)
    low, high = np.percentile(floats, PERCENTILES)
    return np.clip((floats - low) / max(high - low, 1e-6), 0, 1).astype(np.float32)


def fit_channels(values: Array, channels: int) -> Array:
    """Grey to `channels` by repetition, RGB to grey by luminance (ITU-R 601).

    Raises:
        DataError: For any other pair.
    """
    found = len(values)
    if found == channels:
        return values
    if found == 1:
        return np.repeat(values, channels, axis=0)
    if found == 3 and channels == 1:
        weights = np.array([0.299, 0.587, 0.114], np.float32)
        return np.tensordot(weights, values, axes=1)[None]
    raise DataError(
        f"The sample has {found} channels, the network takes {channels}.",
        expected=f"{channels}, or 1",
        next_step=f"Let the network be inflated: input.channels={found}",
    )


def resize(values: Array, size: tuple[int, ...] | None, *, cubic: bool = False) -> Array:
    """The last axes brought to `size`, with antialiasing where a picture shrinks.

    Args:
        values: [..., C, *sides].
        size: The new sides; None leaves them.
        cubic: By cubics, which a picture alone can be, instead of linearly.
    """
    if size is None or values.shape[-len(size) :] == tuple(size):
        return values
    tensor = torch.from_numpy(np.require(values, np.float32, "W"))
    lead = values.shape[: -len(size)]
    # Channels stay channels: no copy, where they lie last in memory.
    batch = tensor.reshape(-1, *lead[-1:], *values.shape[-len(size) :])
    if len(size) == 2:
        out = functional.interpolate(
            batch,
            size,
            mode="bicubic" if cubic else "bilinear",
            antialias=True,
            align_corners=False,
        )
    else:
        out = functional.interpolate(batch, size, mode="trilinear", align_corners=False)
    return out.reshape(*lead, *size).numpy()


def crop_or_pad(samples: Array, length: int) -> Array:
    """The middle `length` samples, or zeros on both sides."""
    have = samples.shape[-1]
    if have >= length:
        start = (have - length) // 2
        return samples[..., start : start + length]
    before = (length - have) // 2
    return np.pad(samples, ((0, 0), (before, length - have - before)))
