"""The network that a galenic run trained, as the backbone of another run."""

from __future__ import annotations

from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from galenic.core.errors import BackboneError, WeightsError
from galenic.core.fingerprint import fingerprint_module
from galenic.core.run import Run
from galenic.models.token import TOKEN, with_token

TENSORS = "adapter/tensors.safetensors"


def resolved(spec: str) -> tuple[str, list[Path]]:
    """What a run started from, and the files of what was trained since, oldest first.

    Args:
        spec: A backbone; where it is no run folder it comes back as it is, without files.

    Raises:
        BackboneError: If the run trained no network, or an adapter beside one.
    """
    files: list[Path] = []
    while (Path(spec) / "status.json").is_file():
        run = Run.open(Path(spec))
        method = (run.config.get("tuner") or {}).get("method")
        base = run.provenance["weights"].get("backbone")
        if base is None or not (run.path / TENSORS).is_file():
            raise BackboneError(
                f"'{run.path.name}' holds no whole network: its tuner is '{method}'.",
                where=spec,
                expected="a run of tuner.method=full",
                next_step=f"backbone={base}" if base and method == "none" else "",
            )
        files.append(run.path / TENSORS)
        spec = base
    return spec, files[::-1]


def load_into(network: nn.Module, file: Path) -> nn.Module:
    """Put the tensors of a run into the network that it started from.

    Returns:
        The network; a copy of a ViT with a distillation token, where the run gave it one.

    Raises:
        WeightsError: If the file is damaged, a tensor does not fit, or the network is another one
            and the file does not hold all of it.
    """
    try:
        with safe_open(str(file), framework="pt") as opened:
            base = (opened.metadata() or {}).get("base_fingerprint")
            tensors = {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118
    except (SafetensorError, OSError) as error:
        raise WeightsError(f"The weights cannot be read: {error}", where=str(file)) from None
    if TOKEN in tensors:
        network = with_token(network)
    state: dict[str, Tensor] = {**network.state_dict()}
    strange = [n for n, t in tensors.items() if n not in state or state[n].shape != t.shape]
    if strange:
        name = strange[0]
        found = tuple(state[name].shape) if name in state else "not there"
        raise WeightsError(
            f"'{name}' of the run is {tuple(tensors[name].shape)}; here it is {found}.",
            where=str(file),
            next_step="Give the same channels, leads and sizes as that run had (config.yaml).",
        )
    if set(state) - set(tensors) and base != fingerprint_module(network):
        raise WeightsError(
            f"The run trained {len(tensors)} of {len(state)} tensors, on a network that had other "
            "weights than this one.",
            where=str(file),
            expected=f"a backbone with fingerprint {base}",
        )
    with torch.no_grad():
        for name, tensor in tensors.items():
            state[name].copy_(tensor)
    return network
