"""Open any pretrained network, and say what comes out of it."""

from __future__ import annotations

import inspect
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import torch
import yaml
from torch import Tensor, nn

from galenic.core import registry
from galenic.core.errors import BackboneError, nearest
from galenic.core.fingerprint import fingerprint_module
from galenic.core.inputs import EcgSpec, InputSpec
from galenic.models.adapt import inflate_channels
from galenic.models.heads import TrainedHead
from galenic.models.prefix import unwrapped
from galenic.models.trained import load_into, resolved

Pool = Literal["auto", "cls", "mean", "max"]
BUILTIN = "galenic.models.builtin"
FORMS = (
    "builtin:NAME?key=value, a Hugging Face id, a local folder, a run folder, a checkpoint file, "
    "monai:CLASS?key=value, or timm:NAME"
)


@dataclass(frozen=True)
class Features:
    """What a backbone gives.

    Attributes:
        pooled: [B, width].
        tokens: [B, N, width] where the network has them, prefix tokens included.
    """

    pooled: Tensor
    tokens: Tensor | None = None


@dataclass(frozen=True)
class Opened:
    """A network as its opener found it, before it is fitted to the task.

    Attributes:
        network: The module; called with the keyword of `inputs`.
        inputs: What it wants.
        tokenizer: Of a text network.
        pool: How its authors pool.
        prefix_tokens: Tokens before the grid (class, register, distillation tokens).
        head: The head that it was trained with, where that is known.
    """

    network: nn.Module
    inputs: InputSpec
    tokenizer: Any = None
    pool: Pool = "mean"
    prefix_tokens: int = 0
    head: TrainedHead | None = None


class Backbone(nn.Module):
    """A network with one way in and one way out.

    Attributes:
        network: The plain module; PEFT is applied by replacing it.
        spec: What was asked for.
        inputs: What it wants to be fed.
        width: Size of the pooled feature.
        grid: Token grid (rows, columns) of the default input, where there is one.
        stride: Input pixels a token, where there is a grid.
        prefix_tokens: Tokens before the grid.
        tokenizer: Of a text network, else None.
        head: The head that the network was trained with, where that is known.
        fingerprint: Content hash of the weights, as opened.
    """

    def __init__(self, opened: Opened, spec: str, pool: Pool) -> None:
        super().__init__()
        self.network = opened.network
        self.spec = spec
        self.inputs = opened.inputs
        self.tokenizer = opened.tokenizer
        self.head = opened.head
        self.prefix_tokens = opened.prefix_tokens
        self.pool: Pool = opened.pool if pool == "auto" else pool
        self._interpolates = _takes(opened.network, "interpolate_pos_encoding")
        self.fingerprint = fingerprint_module(opened.network)
        self.width, self.grid, self.stride = self._describe()

    def forward(self, **inputs: Tensor) -> Features:
        """Features of a batch.

        Args:
            **inputs: The network's own keywords. Pixels [B, S, C, H, W] given to a network of
                two-dimensional images are S slices of a volume; their features are averaged.
        """
        pixels = inputs.get(self.inputs.key)
        if self.inputs.form == "image" and pixels is not None and pixels.ndim == 5:
            return self._slices(pixels)
        return self._once(inputs)

    def _slices(self, pixels: Tensor) -> Features:
        batch, slices = pixels.shape[:2]
        features = self._once({self.inputs.key: pixels.flatten(0, 1)})
        return Features(features.pooled.unflatten(0, (batch, slices)).mean(dim=1))

    def _once(self, inputs: dict[str, Tensor]) -> Features:
        if self._interpolates and self.inputs.size is not None:
            outputs = self.network(**inputs, interpolate_pos_encoding=True)
        else:
            outputs = self.network(**inputs)
        tokens, ready = _states(outputs)
        if tokens.ndim == 2:
            return Features(tokens)
        if tokens.ndim > 3:
            # A map [B, C, ...]; a network that pools its own map does it with its last norm.
            flat = tokens.flatten(2).transpose(1, 2)
            pooled = ready.flatten(1) if ready is not None else flat.mean(dim=1)
            return Features(pooled, flat)
        return Features(self.pool_tokens(tokens, inputs.get("attention_mask")), tokens)

    def pool_tokens(self, tokens: Tensor, mask: Tensor | None) -> Tensor:
        """Pooled feature [B, width] of tokens [B, N, width], as `pool` says.

        Args:
            tokens: Prefix tokens included.
            mask: Which tokens are no padding [B, N]; None where all are whole.
        """
        if self.pool == "cls":
            return tokens[:, 0]
        inner = tokens if mask is not None else tokens[:, self.prefix_tokens :]
        if mask is None:
            return inner.amax(dim=1) if self.pool == "max" else inner.mean(dim=1)
        keep = mask.unsqueeze(-1).to(tokens.dtype)
        if self.pool == "max":
            return tokens.masked_fill(keep == 0, -torch.inf).amax(dim=1)
        return (tokens * keep).sum(dim=1) / keep.sum(dim=1).clamp_min(1e-9)

    def tokenize(self, texts: list[str]) -> dict[str, Tensor]:
        """Token ids and mask [B, L] of texts, cut at the window and padded.

        Raises:
            BackboneError: If the network reads no text.
        """
        if self.tokenizer is None:
            raise BackboneError(f"'{self.spec}' reads no text.", expected="a text network")
        encoded = self.tokenizer(
            texts,
            truncation=True,
            max_length=self.inputs.max_length,
            padding=True,
            return_tensors="pt",
        )
        return dict(encoded)

    def _describe(self) -> tuple[int, tuple[int, ...] | None, int | None]:
        training = self.training
        self.eval()
        with torch.no_grad():
            features = self(**self.example())
        self.train(training)
        width = features.pooled.shape[-1]
        size = self.inputs.size
        if features.tokens is None or self.inputs.form != "image" or size is None:
            return width, None, None
        count = features.tokens.shape[1] - self.prefix_tokens
        stride = round((size[0] * size[1] / max(count, 1)) ** 0.5)
        grid = (round(size[0] / stride), round(size[1] / stride))
        return (width, grid, stride) if grid[0] * grid[1] == count else (width, None, None)

    def example(self, batch: int = 1) -> dict[str, Tensor]:
        """A batch of zeros in the right shape."""
        spec = self.inputs
        if spec.form == "tokens":
            ids = torch.zeros(batch, 4, dtype=torch.long)
            return {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
        if spec.form == "table":
            return {spec.key: torch.zeros(batch, spec.channels)}
        size = spec.size or (64, 64)
        if spec.form == "spectrogram":
            return {spec.key: torch.zeros(batch, *size)}
        return {spec.key: torch.zeros(batch, spec.channels, *size)}


def open_backbone(
    spec: str,
    *,
    modality: str | None = None,
    channels: int | None = None,
    size: int | tuple[int, ...] | None = None,
    max_length: int | None = None,
    ecg: EcgSpec | None = None,
    pool: Pool = "auto",
) -> Backbone:
    """Open a pretrained network.

    Args:
        spec: `builtin:NAME`, a Hugging Face id or local folder, the folder of a galenic run that
            trained a whole network, a checkpoint file of ECGFounder, `monai:CLASS?key=value`, or
            `timm:NAME`. A trailing `#random` gives the same network with random weights.
        modality: What it will read; decides the front end of a signal or a volume.
        channels: Input channels; None keeps the network's own.
        size: Input size, (H, W), (T,) or one number for all; None keeps the network's own.
        max_length: Longest text in tokens; None keeps the network's own.
        ecg: What is asked of tracings; the network's own preset stays.
        pool: How tokens become one feature; `auto` as its authors do.

    Raises:
        BackboneError: If the network is unknown, not on this machine, or cannot read this.
        WeightsError: If its weights are damaged or would run code.
    """
    name, _, variant = spec.partition("#")
    if variant not in ("", "random"):
        raise BackboneError(f"'#{variant}' is no variant of '{name}'.", expected="#random")
    if ecg is not None and ecg.leads:
        channels = len(ecg.leads)
    base, files = resolved(name)
    base, _, random = base.partition("#")
    opened = _open(base, bool(variant or random), channels)
    _check_modality(spec, opened.inputs, modality)
    inputs = _widened(spec, opened, channels, ecg)
    if files and not variant:
        opened = replace(opened, head=None)
        for file in files:
            network = load_into(opened.network, file)
            prefix = opened.prefix_tokens + (network is not opened.network)
            opened = replace(opened, network=network, prefix_tokens=prefix)
    if size is not None:
        known = inputs.size or (0, 0)
        sides = (size,) * len(known) if isinstance(size, int) else tuple(size)
        if inputs.size is not None and len(sides) != len(known):
            raise BackboneError(
                f"A size of {len(sides)} sides was given, but '{spec}' reads {len(known)}.",
                where="input.size",
                expected=f"one number, or {len(known)}",
            )
        inputs = replace(inputs, size=sides)
    if max_length is not None:
        window = inputs.max_length or max_length
        if max_length > window:
            raise BackboneError(
                f"max_length is {max_length}, but '{spec}' reads {window} tokens at most.",
                next_step=f"input.max_length={window}",
            )
        inputs = replace(inputs, max_length=max_length)
    return Backbone(replace(opened, inputs=inputs), spec, pool)


def _open(name: str, random: bool, channels: int | None) -> Opened:
    kind, colon, rest = name.partition(":")
    if colon and kind == "builtin":
        return _builtin(rest, random, channels)
    if colon and kind == "monai":
        from galenic.models.foreign import open_monai

        return open_monai(rest)
    if colon and kind == "timm":
        from galenic.models.foreign import open_timm

        return open_timm(rest, random)
    if Path(name).is_file():
        from galenic.models.ecg.published import open_published

        return open_published(Path(name), random)
    if colon:
        raise BackboneError(f"'{name}' is no backbone.", expected=FORMS)
    from galenic.models.huggingface import open_huggingface

    return open_huggingface(name, random)


def _builtin(text: str, random: bool, channels: int | None) -> Opened:
    name, _, query = text.partition("?")
    known = [module.replace("_", "-") for module in registry.modules(BUILTIN)]
    if name not in known:
        raise BackboneError(
            f"There is no builtin backbone '{name}'. {nearest(name, known)}".strip(),
            expected=", ".join(f"builtin:{module}" for module in known),
        )
    build = registry.load(BUILTIN, name).build
    options = sorted(set(inspect.signature(build).parameters) - {"random", "channels"})
    arguments = arguments_of(query)
    for key in arguments:
        if key not in options:
            raise BackboneError(
                f"'builtin:{name}' has no option '{key}'. {nearest(key, options)}".strip(),
                expected=", ".join(options) or "no option",
            )
    try:
        opened: Opened = build(random=random, channels=channels, **arguments)
    except (TypeError, ValueError) as error:
        if not arguments:
            raise
        raise BackboneError(f"'builtin:{name}' refused its options: {error}.") from None
    return opened


def arguments_of(query: str) -> dict[str, Any]:
    """Keys and YAML values of `key=value&key=value`.

    Raises:
        BackboneError: If a value is no YAML.
    """
    pairs = (part.partition("=") for part in query.split("&") if part)
    try:
        return {key: yaml.safe_load(value) for key, _, value in pairs}
    except yaml.YAMLError:
        raise BackboneError(
            f"'{query}' cannot be read.", expected="key=value&key=value, lists as [1,2]"
        ) from None


MODALITIES = {
    "tokens": {"text"},
    "image": {"image", "volume", "ecg", "audio"},
    "volume": {"volume"},
    "signal": {"ecg", "audio"},
    "spectrogram": {"audio", "ecg"},
    "table": {"table"},
}


def _check_modality(spec: str, inputs: InputSpec, modality: str | None) -> None:
    if modality is not None and modality not in MODALITIES[inputs.form]:
        raise BackboneError(
            f"'{spec}' reads {inputs.form}, and the cohort's input is {modality}.",
            expected=f"a backbone for {modality}",
            next_step="Leave `backbone` out for the builtin network of the modality.",
        )


def _widened(spec: str, opened: Opened, channels: int | None, asked: EcgSpec | None) -> InputSpec:
    """What is fed once the network takes `channels`; one of tracings keeps its own leads."""
    inputs, own = opened.inputs, opened.inputs.ecg
    if own is None:
        if channels not in (None, inputs.channels) and inputs.form != "table":
            inflate_channels(opened.network, channels)
            means, stds = _spread(inputs.mean, channels), _spread(inputs.std, channels)
            inputs = replace(inputs, channels=channels, mean=means, std=stds)
        return replace(inputs, ecg=asked)
    wanted = asked or own
    leads = wanted.leads or own.leads
    if len(leads) not in (0, inputs.channels):
        raise BackboneError(
            f"'{spec}' reads {inputs.channels} leads; {len(leads)} were asked for.",
            where="input.ecg.leads",
            next_step="To feed it fewer, leave the key out and take input.ecg.faults=mask.",
        )
    return replace(inputs, ecg=replace(wanted, leads=leads, preset=own.preset))


def _spread(values: tuple[float, ...] | None, channels: int) -> tuple[float, ...] | None:
    return None if values is None else (sum(values) / len(values),) * channels


def _states(outputs: Any) -> tuple[Tensor, Tensor | None]:
    if isinstance(outputs, Tensor):
        return outputs, None
    if isinstance(outputs, tuple | list):
        return outputs[0], None
    return outputs.last_hidden_state, getattr(outputs, "pooler_output", None)


def _takes(network: nn.Module, name: str) -> bool:
    return name in inspect.signature(unwrapped(network).forward).parameters
