"""Checkpoints in the layout that ECGFounder was published in; sizes are read from the tensors."""

from __future__ import annotations

import re
from collections.abc import Mapping
from importlib import resources
from pathlib import Path

import torch
from torch import Tensor

from galenic.core.errors import WeightsError
from galenic.core.inputs import STANDARD_LEADS, EcgSpec, InputSpec
from galenic.models.backbone import Opened
from galenic.models.ecg.net1d import Net1D, Net1DConfig
from galenic.models.heads import TrainedHead
from galenic.models.weights import read_state

RATE_HZ, SAMPLES = 500.0, 5000
STEM = "first_conv.conv.weight"
NORM = re.compile(r"(^|\.)(first_bn|bn\d)\.")
# What a batch norm holds that was never used.
UNUSED = {"weight": 1.0, "bias": 0.0, "running_mean": 0.0, "running_var": 1.0}
# Names of the findings, one a line, in a file beside a checkpoint.
NAMES = "tasks.txt"


def inputs_of(leads: int) -> InputSpec:
    """What a Net1D of so many leads is fed: ten seconds at 500 Hz, prepared as published."""
    names = STANDARD_LEADS if leads == len(STANDARD_LEADS) else ()
    tracing = EcgSpec(leads=names, preset="ecgfounder")
    return InputSpec("signal", "signal", leads, (SAMPLES,), rate_hz=RATE_HZ, ecg=tracing)


def open_published(path: Path, random: bool = False) -> Opened:
    """The network of a checkpoint, with the head that it was trained with.

    Args:
        path: `.safetensors`, or a file of `torch.save` that loads without running code.
        random: Random weights at the sizes of the checkpoint, and no head.

    Raises:
        WeightsError: If the file is damaged, would run code, or holds another network.
    """
    state = read_state(path)
    config = _sizes(state, path)
    network = Net1D(config)
    if not random:
        own = {
            name: tensor
            for name, tensor in state.items()
            if not NORM.search(name) and not name.startswith("dense.")
        }
        _require_unused_norms(state, path)
        try:
            network.load_state_dict(own)
        except RuntimeError as error:
            raise WeightsError(f"The weights do not fit: {error}", where=str(path)) from None
    head = None if random else _head(state, path)
    return Opened(network.eval(), inputs_of(config.leads), head=head)


def _sizes(state: Mapping[str, Tensor], path: Path) -> Net1DConfig:
    try:
        stem, leads, kernel = state[STEM].shape
        blocks = _counts(state)
        first = [f"stage_list.{stage}.block_list.0" for stage in range(len(blocks))]
        widths = tuple(int(state[f"{block}.conv3.conv.weight"].shape[0]) for block in first)
        group = int(state[f"{first[0]}.conv2.conv.weight"].shape[1])
    except (KeyError, ValueError, IndexError):
        names = ", ".join(sorted(state)[:3]) or "none"
        raise WeightsError(
            f"The checkpoint is in no layout that is known here; its first tensors are: {names}.",
            where=str(path),
            expected=f"the layout of ECGFounder ({STEM}, stage_list.0.block_list.0. ...)",
        ) from None
    return Net1DConfig(leads, stem, widths, blocks, kernel, group)


def _counts(state: Mapping[str, Tensor]) -> tuple[int, ...]:
    """Blocks of each stage."""
    places = {
        (int(found[1]), int(found[2]))
        for name in state
        if (found := re.match(r"stage_list\.(\d+)\.block_list\.(\d+)\.", name))
    }
    stages = max(stage for stage, _ in places) + 1
    return tuple(1 + max(b for s, b in places if s == stage) for stage in range(stages))


def _require_unused_norms(state: Mapping[str, Tensor], path: Path) -> None:
    for name, tensor in state.items():
        value = UNUSED.get(name.rpartition(".")[2])
        if NORM.search(name) and value is not None and not torch.all(tensor == value):
            raise WeightsError(
                f"'{name}' was trained: this network uses its batch norms.",
                where=str(path),
                expected="a checkpoint trained with use_bn=False, as those of ECGFounder",
            )


def _head(state: Mapping[str, Tensor], path: Path) -> TrainedHead | None:
    if "dense.weight" not in state:
        return None
    weight, bias = state["dense.weight"], state["dense.bias"]
    beside, published = path.parent / NAMES, _findings()
    labels: tuple[str, ...] = ()
    if beside.is_file():
        lines = beside.read_text(encoding="utf-8").splitlines()
        labels = tuple(line.strip() for line in lines if line.strip())
        if len(labels) != len(weight):
            raise WeightsError(
                f"'{NAMES}' names {len(labels)} findings, the head has {len(weight)}.",
                where=str(beside),
            )
    elif len(weight) == len(published):
        labels = published
    return TrainedHead(labels, weight, bias)


def _findings() -> tuple[str, ...]:
    """The 150 labels of the published checkpoints (`tasks.txt` of PKUDigitalHealth/ECGFounder, MIT)."""
    text = (resources.files("galenic.models.ecg") / "findings.txt").read_text(encoding="utf-8")
    return tuple(text.splitlines())
