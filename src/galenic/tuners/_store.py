"""Trained tensors to a folder and back; safetensors only."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

from peft import PeftModel, get_peft_model_state_dict, set_peft_model_state_dict
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from galenic.core.config import Config
from galenic.core.errors import WeightsError
from galenic.core.files import atomic_folder
from galenic.core.registry import load as load_module
from galenic.models.delta import FILE

if TYPE_CHECKING:
    from galenic.models.backbone import Backbone

_ADAPTER, _PLAIN, _CARD = "adapter_model.safetensors", "tensors.safetensors", "tuner.json"


def save(backbone: Backbone, config: Config, folder: Path) -> None:
    """See `galenic.tuners.save`."""
    network = backbone.network
    values = config.model_dump(mode="json")
    # The fingerprint stands in the file of tensors itself: one file cannot go out of step.
    metadata = {
        "format": "pt",
        "method": str(values["method"]),
        "base_fingerprint": backbone.fingerprint,
    }
    own = load_module("galenic.tuners", metadata["method"])
    with atomic_folder(Path(folder)) as place:
        if hasattr(own, "write"):
            count = own.write(backbone, place / FILE, metadata)
            card = {**metadata, "config": values, "tensors": count}
            (place / _CARD).write_text(json.dumps(card, indent=2) + "\n", encoding="utf-8")
            return
        if isinstance(network, PeftModel):
            network.peft_config[network.active_adapter].save_pretrained(str(place))
        name = _ADAPTER if isinstance(network, PeftModel) else _PLAIN
        tensors = taken(network)
        save_file(tensors, str(place / name), metadata=metadata)
        card = {**metadata, "config": values, "tensors": len(tensors)}
        (place / _CARD).write_text(json.dumps(card, indent=2) + "\n", encoding="utf-8")


def load(backbone: Backbone, config: Config, folder: Path) -> None:
    """See `galenic.tuners.load`."""
    from galenic.tuners import attach

    path = _held(Path(folder))
    tensors, metadata = _read(path)
    _check_origin(path, metadata, backbone, config)
    if not isinstance(backbone.network, PeftModel):
        attach(backbone, config)
    if path.name == FILE:
        load_module("galenic.tuners", metadata.get("method", "")).read(backbone, path)
        return
    put(backbone.network, tensors, path)


def read(folder: Path) -> dict[str, Tensor]:
    """See `galenic.tuners.read`."""
    return _read(_held(Path(folder)))[0]


def put(network: nn.Module, tensors: dict[str, Tensor], path: Path) -> None:
    """Put trained tensors into a network that its tuner is attached to.

    Args:
        network: Where they go.
        tensors: Exactly what training changes there.
        path: Where they come from, for the error.

    Raises:
        WeightsError: If a tensor is missing, extra, or of another shape; each is named.
    """
    expected = _state(network)
    _check_tensors(path, tensors, expected)
    if isinstance(network, PeftModel):
        set_peft_model_state_dict(network, tensors, adapter_name=network.active_adapter)
    else:
        for name, value in expected.items():
            value.data.copy_(tensors[name])


def taken(network: nn.Module) -> dict[str, Tensor]:
    """Copies of everything that training changes, by name."""
    return {k: v.detach().contiguous().clone() for k, v in _state(network).items()}


def _state(network: nn.Module) -> dict[str, Tensor]:
    """Everything that training changes: trainable tensors, and statistics that move."""
    if isinstance(network, PeftModel):
        found: dict[str, Tensor] = get_peft_model_state_dict(
            network, adapter_name=network.active_adapter, save_embedding_layers=False
        )
        return found
    state = {n: p for n, p in network.named_parameters() if p.requires_grad}
    saved = network.state_dict()
    for name, module in network.named_modules():
        moving = hasattr(module, "running_mean") and not getattr(module, "_galenic_held", False)
        if moving:
            for key, buffer in module.named_buffers(recurse=False):
                full = f"{name}.{key}" if name else key
                if full in saved:
                    state[full] = buffer
    return state  # type: ignore[return-value]


def _held(folder: Path) -> Path:
    held = [name for name in (_ADAPTER, _PLAIN, FILE) if (folder / name).is_file()]
    if not held:
        raise WeightsError(
            f"'{folder.name}' holds no tensors of a tuner.",
            expected=f"{_ADAPTER}, {_PLAIN} or {FILE}",
        )
    return folder / held[0]


def _read(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    try:
        with safe_open(str(path), framework="pt") as file:
            return {k: file.get_tensor(k) for k in file.keys()}, file.metadata() or {}  # noqa: SIM118
    except (SafetensorError, OSError) as error:
        raise WeightsError(
            f"'{path.name}' cannot be read: {error}",
            where=str(path),
            expected="a complete safetensors file",
            next_step="Train again, or copy the file again from where it came.",
        ) from None


def _check_origin(path: Path, metadata: dict[str, str], backbone: Backbone, config: Config) -> None:
    method = str(getattr(config, "method", ""))
    if metadata.get("method", method) != method:
        raise WeightsError(
            f"'{path.parent.name}' was trained with '{metadata['method']}', not '{method}'.",
            where=str(path),
        )
    base = metadata.get("base_fingerprint")
    if base is not None and base != backbone.fingerprint:
        raise WeightsError(
            f"The adapter belongs to another backbone: it was trained on {base}, and this "
            f"backbone is {backbone.fingerprint}.",
            where=str(path),
            expected=f"a backbone with fingerprint {base}",
            next_step="Open the backbone named in the run's config.yaml.",
        )


def _check_tensors(path: Path, got: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    faults = [f"missing {_names(set(expected) - set(got))}"] if set(expected) - set(got) else []
    if set(got) - set(expected):
        faults.append(f"extra {_names(set(got) - set(expected))}")
    for name in sorted(set(got) & set(expected)):
        if got[name].shape != expected[name].shape:
            faults.append(
                f"'{name}' has shape {tuple(got[name].shape)}, not {tuple(expected[name].shape)}"
            )
    if faults:
        raise WeightsError(
            f"'{path.name}' does not fit: {'; '.join(faults[:5])}.",
            where=str(path),
            expected=f"exactly the {len(expected)} tensors of this tuner on this backbone",
            next_step="Use the tuner configuration that the tensors were saved with.",
        )


def _names(names: set[str]) -> str:
    ordered = sorted(names)
    return ", ".join(f"'{n}'" for n in ordered[:3]) + (
        f" and {len(ordered) - 3} more" if len(ordered) > 3 else ""
    )


__all__ = ["load", "save"]
