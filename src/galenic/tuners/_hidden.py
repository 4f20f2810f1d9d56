"""Every hidden state of a frozen network, without a graph.

Hooks on the network's blocks note what comes in and what goes out, while the network runs under
`no_grad`: neither the network nor anything before it keeps a tensor for a backward pass.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from galenic.core.errors import BackboneError, GalenicError
from galenic.core.prediction import evaluating
from galenic.models.anatomy import anatomy
from galenic.models.prefix import unwrapped

Kind = Literal["tokens", "channels_first", "channels_last", "sequence"]


@dataclass(frozen=True)
class Layout:
    """What the hidden states of a network look like, as one probe found them.

    State 0 is what the first block reads; state i is what block i gives.

    Attributes:
        blocks: Names of the blocks.
        shapes: Of each state, without its batch axis: (N, d) of tokens, (d, h, w) of maps.
        kind: `tokens` [B, N, d] of one length; maps [B, d, h, w] (`channels_first`) or
            [B, h, w, d] (`channels_last`); `sequence`: maps that the network keeps as [B, h*w, d].
        width: Channels of the network's own output.
        writes: Whether the network writes into a state after its block gave it.
        exits: Names of the modules that give states 1 and up: the blocks, or the last part of
            each stage that halves its map at its end.
    """

    blocks: tuple[str, ...]
    shapes: tuple[tuple[int, ...], ...]
    kind: Kind
    width: int
    writes: bool = False
    exits: tuple[str, ...] = ()

    @property
    def maps(self) -> bool:
        """Whether the states are maps."""
        return self.kind != "tokens"

    @property
    def widths(self) -> tuple[int, ...]:
        """Channels of each state."""
        return tuple(shape[0] if self.maps else shape[-1] for shape in self.shapes)

    def to_dict(self) -> dict[str, Any]:
        """For JSON."""
        return asdict(self)

    @classmethod
    def of(cls, values: Mapping[str, Any]) -> Layout:
        """From what `to_dict` gave, perhaps by way of JSON."""
        shapes = tuple(tuple(shape) for shape in values["shapes"])
        names = {key: tuple(values[key]) for key in ("blocks", "exits")}
        return cls(**{**values, **names, "shapes": shapes})


@dataclass(frozen=True)
class Hidden:
    """The states of one batch.

    Attributes:
        states: [B, N, d_l] each, or [B, d_l, h_l, w_l] of a network of maps; detached.
        output: What the network gave itself, its first tensor; None where states were cached.
        mask: [B, N], 1 at valid tokens; None where all are.
    """

    states: list[Tensor]
    output: Tensor | None
    mask: Tensor | None = None


def survey(network: nn.Module, method: str, inputs: Mapping[str, Tensor] | None = None) -> Layout:
    """Run a probe through `network` and describe its hidden states; nothing is changed.

    Args:
        network: Any network of repeated blocks.
        method: Who asks, for errors.
        inputs: A batch of at least one sample; None makes one from the network's config.

    Raises:
        BackboneError: If the states are no tokens and no two-dimensional maps.
    """
    names = anatomy(network).blocks
    if len(names) < 2:
        raise _cannot_read(network, method, f"{len(names)} blocks")
    inputs = probe(network, method) if inputs is None else inputs
    try:
        with evaluating(network):
            exits = names
            raw, output, versions = _run(network, names, exits, lambda: network(**inputs))
            if any(state.shape[1:] != raw[0].shape[1:] for state in raw):
                exits = _before_halving(network, names, raw, inputs)
                raw, output, versions = _run(network, names, exits, lambda: network(**inputs))
    except GalenicError:
        raise
    except Exception as error:
        # Networks that read several things fail on one of them alone, each in its own way.
        raise _cannot_read(
            network, method, f"that it does not run on {' and '.join(inputs)} alone"
        ) from error
    if len(raw) != len(names) + 1:
        raise _cannot_read(network, method, "blocks that do not run once each, one after another")
    if output is None:
        raise _cannot_read(network, method, "an output without a tensor")
    writes = any(_version(state) != noted for state, noted in zip(raw, versions, strict=True))
    kind = _kind(network, method, names, raw)
    shapes = tuple(tuple(m.shape[1:]) for m in as_states(raw, kind, image_size(inputs)))
    channels = 1 if output.ndim > 3 and kind != "channels_last" else -1
    return Layout(names, shapes, kind, int(output.shape[channels]), writes, exits)


def collect(
    network: nn.Module,
    layout: Layout,
    call: Callable[[], Any],
    *,
    size: tuple[int, int] | None = None,
    mask: Tensor | None = None,
) -> Hidden:
    """States and output of one call of `network`, with no graph behind them.

    Args:
        network: The network that `layout` describes.
        layout: From `survey`.
        call: Runs the network.
        size: Of the input image, for states of kind `sequence`.
        mask: [B, N], 1 at valid tokens.

    Raises:
        BackboneError: If the network did not go through its blocks, or the mask does not fit.
    """
    exits = layout.exits or layout.blocks
    raw, output, _ = _run(network, layout.blocks, exits, call, copy=layout.writes)
    if len(raw) != len(layout.blocks) + 1:
        raise BackboneError(
            f"{type(network).__name__} went through {len(raw) - 1} of {len(layout.blocks)} blocks.",
            expected="a forward pass through every block, once",
        )
    states = as_states(raw, layout.kind, size)
    if mask is not None and (layout.maps or mask.shape[1] != states[0].shape[1]):
        raise BackboneError(
            f"The mask has shape {tuple(mask.shape)}, the states {tuple(states[0].shape)}.",
            expected="a mask [B, N] for states [B, N, d]",
        )
    return Hidden(states, output, mask)


def _run(
    network: nn.Module,
    names: Sequence[str],
    exits: Sequence[str],
    call: Callable[[], Any],
    copy: bool = False,
) -> tuple[list[Tensor], Tensor | None, list[int]]:
    """The raw states, the first tensor of the output, and each state's version when noted."""
    found: dict[int, Tensor] = {}
    versions: dict[int, int] = {}
    calls = 0

    def note(place: int, value: Tensor) -> None:
        found[place] = value.detach().clone() if copy else value.detach()
        versions[place] = _version(found[place])

    def enter(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        note(0, args[0] if args else kwargs["hidden_states"])

    def leave(place: int) -> Callable[..., None]:
        def hook(_: nn.Module, __: Any, output: Any) -> None:
            nonlocal calls
            calls += 1
            note(place, output if isinstance(output, Tensor) else output[0])

        return hook

    modules = [network.get_submodule(name) for name in exits]
    first = network.get_submodule(names[0])
    handles = [first.register_forward_pre_hook(enter, with_kwargs=True)]
    handles += [m.register_forward_hook(leave(i)) for i, m in enumerate(modules, 1)]
    try:
        # Not inference_mode: its tensors may not be saved for the side network's backward pass.
        with torch.no_grad():
            output = call()
    finally:
        for handle in handles:
            handle.remove()
    if calls != len(names):
        return [], None, []
    order = sorted(found)
    tensor = first_tensor(output)
    return [found[i] for i in order], tensor, [versions[i] for i in order]


def _version(state: Tensor) -> int:
    # How often it was written into; a tensor of inference mode does not count.
    return 0 if state.is_inference() else state._version


def _before_halving(
    network: nn.Module, names: Sequence[str], raw: list[Tensor], inputs: Mapping[str, Tensor]
) -> tuple[str, ...]:
    """Where each state is read: at a stage's last inner block, if the stage then halves its map."""
    inner = {name: _last_inner(network, name) for name in names}
    found, _, _ = _run(network, names, [inner[name] for name in names], lambda: network(**inputs))
    if len(found) != len(raw):
        return tuple(names)
    return tuple(
        inner[name] if before.ndim == after.ndim and before.numel() > after.numel() else name
        for name, before, after in zip(names, found[1:], raw[1:], strict=True)
    )


def _last_inner(network: nn.Module, name: str) -> str:
    for key, child in network.get_submodule(name).named_children():
        if isinstance(child, nn.ModuleList | nn.Sequential) and len(child):
            last = child[-1]
            if any(True for _ in last.children()):
                return f"{name}.{key}.{len(child) - 1}"
    return name


def first_tensor(output: Any) -> Tensor | None:
    """The last hidden state of an output, whatever it is wrapped in."""
    if isinstance(output, Tensor):
        return output.detach()
    state = getattr(output, "last_hidden_state", None)
    if state is None and isinstance(output, tuple | list):
        state = output[0]
    if state is None and isinstance(output, Mapping):
        state = next(iter(output.values()), None)
    return state.detach() if isinstance(state, Tensor) else None


def as_states(raw: Sequence[Tensor], kind: Kind, size: tuple[int, int] | None) -> list[Tensor]:
    """Tokens [B, N, d] as they are; every kind of map as [B, d, h, w].

    Raises:
        BackboneError: If a sequence of tokens makes no grid over an input of `size`.
    """
    if kind == "channels_last":
        return [state.movedim(-1, 1) for state in raw]
    if kind != "sequence":
        return list(raw)
    if size is None:
        raise BackboneError(
            "States of different lengths are read as maps, and the input is no image.",
            expected="an input [B, C, H, W]",
        )
    return [state.transpose(1, 2).unflatten(2, _grid(state.shape[1], size)) for state in raw]


def _grid(count: int, size: tuple[int, int]) -> tuple[int, int]:
    stride = math.sqrt(size[0] * size[1] / count)
    rows = max(1, round(size[0] / stride))
    if count % rows or abs(size[1] / stride - count // rows) > 0.5:
        raise BackboneError(
            f"{count} tokens make no grid over an input of {size[0]} x {size[1]}.",
            expected="sides that the network's stride divides",
        )
    return rows, count // rows


def image_size(inputs: Mapping[str, Any] | Sequence[Any]) -> tuple[int, int] | None:
    """(H, W) of the first image [B, C, H, W] among the inputs of a call."""
    values = inputs.values() if isinstance(inputs, Mapping) else inputs
    for value in values:
        if isinstance(value, Tensor) and value.ndim == 4:
            return int(value.shape[2]), int(value.shape[3])
    return None


def _kind(network: nn.Module, method: str, names: Sequence[str], raw: list[Tensor]) -> Kind:
    dims = {state.ndim for state in raw}
    if dims == {3}:
        return "tokens" if len({state.shape[1] for state in raw}) == 1 else "sequence"
    if dims == {4}:
        # Blocks with convolutions work on [B, d, h, w]; those without on the last axis.
        block = network.get_submodule(names[-1])
        convolves = any(isinstance(module, nn.Conv2d) for module in block.modules())
        return "channels_first" if convolves else "channels_last"
    shapes = ", ".join(str(tuple(state.shape)) for state in raw[:3])
    raise _cannot_read(network, method, f"states of shape {shapes}")


def probe(network: nn.Module, method: str) -> dict[str, Tensor]:
    """A batch of zeros for a transformers network, from its config.

    Raises:
        BackboneError: If the config does not say what the network reads.
    """
    inner: Any = unwrapped(network)
    key = getattr(inner, "main_input_name", None)
    config: Any = getattr(inner, "config", None)
    parameter = next(inner.parameters(), torch.zeros(0))
    if key == "input_ids":
        ids = torch.zeros(1, 4, dtype=torch.long, device=parameter.device)
        return {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    if key == "pixel_values" and config is not None:
        side = getattr(config, "image_size", 224)
        height, width = side if isinstance(side, list | tuple) else (side, side)
        shape = (1, getattr(config, "num_channels", 3), height, width)
        return {key: torch.zeros(shape, device=parameter.device, dtype=parameter.dtype)}
    if key == "input_values" and hasattr(config, "num_mel_bins"):
        frames = (1, config.max_length, config.num_mel_bins)
        return {key: torch.zeros(frames, device=parameter.device, dtype=parameter.dtype)}
    if key == "input_values" and hasattr(config, "inputs_to_logits_ratio"):
        wave = (1, 16 * config.inputs_to_logits_ratio)
        return {key: torch.zeros(wave, device=parameter.device, dtype=parameter.dtype)}
    raise BackboneError(
        f"'{method}' cannot probe {type(network).__name__}: it does not say what it reads.",
        expected="a transformers network of token ids, pixels or sound",
        next_step="Give the config `read`, from galenic.tuners._hidden.survey with a batch.",
    )


def _cannot_read(network: nn.Module, method: str, found: str) -> BackboneError:
    return BackboneError(
        f"'{method}' cannot enter {type(network).__name__}: it found {found}.",
        expected="two or more blocks in a chain that give tokens [B, N, d] or maps [B, d, h, w]",
        next_step="Use a tuner that sits inside the layers, such as ssf or bitfit.",
    )
