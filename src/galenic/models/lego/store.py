"""Assemblies and blocks on disk: one safetensors file and `lego_config.json`."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from galenic.core.errors import WeightsError, nearest
from galenic.core.files import atomic_folder, atomic_json, verify_folder
from galenic.core.fingerprint import fingerprint_module
from galenic.models.lego.block import LegoBlock
from galenic.models.lego.fuse import LegoFuse
from galenic.models.lego.merge import LegoMerge

CONFIG = "lego_config.json"
WEIGHTS = "model.safetensors"
VERSION = 1
ENCODER = "encoder."
Encoders = Literal["all", "trained"]


def save(model: LegoMerge | LegoFuse, folder: Path, *, encoders: Encoders = "all") -> None:
    """Write a model to `folder`; each of its blocks can be read alone.

    Args:
        model: Merged or fused; its heads have to be :class:`LegoHead`.
        folder: A new folder, or one that is replaced.
        encoders: `all` tensors of external encoders, or those `trained`: what was frozen when
            the block was built is left out, and only its fingerprint is kept.
    """
    config: dict[str, Any] = {"version": VERSION, "blocks": {}}
    if isinstance(model, LegoFuse):
        config |= {"kind": "fuse", "mode": model.mode, "freeze": model.freeze}
    else:
        config |= {"kind": "merge", "merge": model.merge, "head": model.head}
        config |= {"weights": model.weights}
    tensors = {n: t for n, t in model.state_dict().items() if not n.startswith("blocks.")}
    for place, name in enumerate(model.names):
        block = model.block(name)
        whole = encoders == "all" or block.own_encoder
        kept = None if whole else _changed(block)
        config["blocks"][name] = {
            **block.options,
            "own_encoder": block.own_encoder,
            "encoder": type(block.encoder).__name__,
            "encoder_saved": "all" if kept is None else "trained",
            "fingerprint": None if kept is None else _fingerprint(block.encoder, bool(kept)),
        }
        tensors |= {
            f"blocks.{place}.{key}": value
            for key, value in block.state_dict().items()
            if kept is None or not key.startswith(ENCODER) or key.removeprefix(ENCODER) in kept
        }
    with atomic_folder(folder) as aside:
        atomic_json(aside / CONFIG, config)
        # Frozen encoders may share tensors, which a file must not.
        save_file({n: t.detach().contiguous().clone() for n, t in tensors.items()}, aside / WEIGHTS)


def load(folder: Path, encoders: Mapping[str, nn.Module] | None = None) -> LegoMerge | LegoFuse:
    """The model that :func:`save` wrote.

    Args:
        folder: Where it was written.
        encoders: The encoder of each block that had one, as it was when the block was built;
            what was trained of it is read from the file.

    Raises:
        WeightsError: If a file is damaged, an encoder is missing or another one, or a tensor
            does not fit.
    """
    config = read_config(folder)
    given = dict(encoders or {})
    blocks = {name: load_block(folder, name, given.get(name)) for name in config["blocks"]}
    model: LegoMerge | LegoFuse
    if config["kind"] == "merge":
        return LegoMerge(blocks, config["merge"], config["weights"], config["head"])
    model = LegoFuse(blocks, config["mode"], freeze=config["freeze"])
    own = _tensors(folder, "", skip="blocks.")
    missing, extra = model.load_state_dict(own, strict=False)
    missing = [name for name in missing if not name.startswith("blocks.")]
    _fits(folder, missing, extra)
    return model


def load_block(folder: Path, name: str, encoder: nn.Module | None = None) -> LegoBlock:
    """One block of a saved model, alone; nothing of the others is read.

    Args:
        folder: Where the model was written.
        name: Of the modality.
        encoder: The encoder, where the block had one; it is given the tensors that were saved.

    Raises:
        WeightsError: As :func:`load`, and if there is no such block.
    """
    config = read_config(folder)
    if name not in config["blocks"]:
        raise WeightsError(
            f"There is no block '{name}'. {nearest(name, config['blocks'])}".strip(),
            where=str(folder / CONFIG),
            expected=", ".join(config["blocks"]),
        )
    options = dict(config["blocks"][name])
    own, kind = options.pop("own_encoder"), options.pop("encoder")
    prefix = f"blocks.{list(config['blocks']).index(name)}."
    kept, fingerprint = options.pop("encoder_saved"), options.pop("fingerprint")
    if own != (encoder is None):
        raise WeightsError(
            f"Block '{name}' was saved with {'its own' if own else 'the'} encoder {kind}.",
            where=str(folder),
            next_step="Give no encoder." if own else f"Give the encoder of '{name}'.",
        )
    trained = kept == "trained"
    part = {n.removeprefix(f"{ENCODER}") for n in _names(folder, prefix) if n.startswith(ENCODER)}
    if encoder is not None and fingerprint and _fingerprint(encoder, bool(part)) != fingerprint:
        raise WeightsError(
            f"The encoder given for '{name}' has other weights than the one of the saved block.",
            where=str(folder),
            expected=f"a {kind} with fingerprint {fingerprint}",
        )
    width, outputs = options.pop("encoder_dim"), options.pop("outputs")
    latent = tuple(options.pop("latent"))
    block = LegoBlock(encoder, width, outputs, latent=latent, **options)
    try:
        missing, extra = block.load_state_dict(_tensors(folder, prefix), strict=False)
    except RuntimeError as error:
        raise WeightsError(
            f"A tensor of '{name}' does not fit: {error}", where=str(folder)
        ) from None
    if trained:
        missing = [key for key in missing if not key.startswith(ENCODER)]
    _fits(folder, missing, extra)
    return block


def read_config(folder: Path) -> dict[str, Any]:
    """What `lego_config.json` says, after all digests were checked.

    Raises:
        WeightsError: If a file is missing or damaged, or of a later version.
    """
    verify_folder(folder)
    try:
        config: dict[str, Any] = json.loads((folder / CONFIG).read_text(encoding="utf-8"))
        version = config["version"]
    except (OSError, ValueError, KeyError) as error:
        raise WeightsError(f"'{folder.name}' holds no Lego model.", where=str(folder)) from error
    if version != VERSION:
        raise WeightsError(
            f"'{folder.name}' was saved in version {version}; this one reads {VERSION}.",
            where=str(folder),
            next_step="Take a newer galenic.",
        )
    return config


def _changed(block: LegoBlock) -> set[str]:
    """Names in the encoder of what its training may have changed."""
    names = {n for n, p in block.encoder.named_parameters() if p.requires_grad} | block.tuned
    # Running statistics move with whatever trains.
    return names | {n for n, _ in block.encoder.named_buffers()} if names else set()


def _fingerprint(encoder: nn.Module, changed: bool) -> str | None:
    """Of the weights that are not saved: the encoder's own, or those of one that never trained."""
    own = getattr(encoder, "fingerprint", None)
    return str(own) if own else None if changed else fingerprint_module(encoder)


def _names(folder: Path, prefix: str) -> list[str]:
    with safe_open(folder / WEIGHTS, framework="pt") as file:
        return [n.removeprefix(prefix) for n in file.keys() if n.startswith(prefix)]  # noqa: SIM118


def _tensors(folder: Path, prefix: str, skip: str | None = None) -> dict[str, Tensor]:
    try:
        with safe_open(folder / WEIGHTS, framework="pt") as file:
            names = [n for n in file.keys() if n.startswith(prefix)]  # noqa: SIM118
            names = [n for n in names if skip is None or not n.startswith(skip)]
            return {name.removeprefix(prefix): file.get_tensor(name) for name in names}
    except (OSError, SafetensorError) as error:
        raise WeightsError(f"'{WEIGHTS}' is damaged.", where=str(folder)) from error


def _fits(folder: Path, missing: list[str], extra: list[str]) -> None:
    if missing or extra:
        raise WeightsError(
            f"Tensors are missing ({', '.join(missing) or 'none'}) or too many "
            f"({', '.join(extra) or 'none'}).",
            where=str(folder / WEIGHTS),
        )
