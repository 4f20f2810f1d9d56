"""A block with its prompts and its share of a bottleneck."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from galenic.core.errors import BackboneError
from galenic.tuners._prompts import (
    Args,
    first_of,
    insert,
    kept_tokens,
    on_tokens,
    read_out,
    widen_all,
    with_first,
)
from galenic.tuners._wrapping import WrappingLayer
from galenic.tuners.dvpt.config import DVPTConfig
from galenic.tuners.dvpt.functional import attend, dynamic_mlp, first_tokens, scale_of, share_mlp


class SharedBottleneck(nn.Module):
    """Weights that a few neighbouring blocks use together.

    The projection up is random and the gate is zero: silent, and not dead.

    Args:
        width: d.
        latent: r.
        queries: n prompts [n, r] that attend inside; 0 for none.
        gate: Start of the gate.
    """

    def __init__(self, width: int, latent: int, queries: int, gate: float) -> None:
        super().__init__()
        self.down = nn.Linear(width, latent)
        self.up = nn.Linear(latent, width)
        self.gate = nn.Parameter(torch.tensor(float(gate)))
        self.queries = nn.Parameter(torch.randn(queries, latent)) if queries else None

    @property
    def weights(self) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
        """In the order that the functions take them."""
        return self.down.weight, self.down.bias, self.up.weight, self.up.bias, self.gate


class DVPTBlock(WrappingLayer):
    """A transformer block; hooks inside it read and add beside its feed-forward.

    Roles: `before` (prompt tokens come later), `insert`, `pass`, and `add` (variant repo).

    Args:
        base_layer: The block.
        adapter_name: First adapter.
    """

    adapter_layer_names = (
        "dvpt_tokens", "dvpt_positions", "dvpt_prompts", "dvpt_prompt_gate", "dvpt_shared",
    )  # fmt: skip

    def __init__(self, base_layer: nn.Module, adapter_name: str) -> None:
        super().__init__(base_layer, adapter_name)
        for key in self.adapter_layer_names[:-1]:
            setattr(self, key, nn.ParameterDict())
        self.dvpt_shared = nn.ModuleDict()
        # Modules of other places, in lists: nothing of theirs is registered or saved here.
        self._owner: dict[str, list[DVPTBlock]] = {}
        self._entry: dict[str, list[nn.Module]] = {}
        self._settings: dict[str, DVPTConfig] = {}
        self._spots: dict[str, Mapping[str, Any]] = {}
        self._seen: list[tuple[Tensor, Tensor | None]] = []
        self._keep: list[Tensor | None] = [None]
        self._taps: list[RemovableHandle] = []

    def update_layer(
        self,
        name: str,
        config: DVPTConfig,
        spot: Mapping[str, Any],
        find: Callable[[str], nn.Module],
    ) -> None:
        """Make what adapter `name` has in this block.

        Args:
            name: The adapter.
            config: Its settings, every choice made.
            spot: What is here; see `galenic.tuners.dvpt.placement`.
            find: A module of the network by its name.
        """
        self._settings[name], self._spots[name] = config, spot
        count, latent, width = config.num_prompts or 1, config.latent_dim or 1, spot.get("width", 0)
        made: dict[str, Tensor] = {}
        if spot["role"] == "insert":
            self._entry[name] = [find(spot["entry"])] if spot["entry"] else []
            made["dvpt_tokens"] = torch.randn(count, width)
            made["dvpt_positions"] = torch.randn(count, width) * width**-0.5
        if spot["role"] == "add":
            made["dvpt_prompts"] = nn.init.trunc_normal_(torch.empty(count, width), std=0.02)
            if config.gate_prompts:
                made["dvpt_prompt_gate"] = torch.tensor(float(config.gate_init))
        for key, value in made.items():
            getattr(self, key)[name] = nn.Parameter(self.adopt(value))
        owner: Any = find(spot["owner"]) if "owner" in spot else None
        self._owner[name] = [owner] if isinstance(owner, DVPTBlock) and owner is not self else []
        if spot["role"] != "before" and not self._owner[name]:
            queries = count if config.variant == "paper" else 0
            self.dvpt_shared[name] = self.adopt(
                SharedBottleneck(width, latent, queries, config.gate_init)
            )
        if "source" in spot and not self._taps:
            source, sink = find(spot["source"][0]), find(spot["sink"])
            self._taps = [
                source.register_forward_pre_hook(self._enter),
                sink.register_forward_hook(self._leave),
            ]
        self.set_adapter(self.active_adapters, inference_mode=config.inference_mode)

    def shared(self, name: str) -> SharedBottleneck:
        """The bottleneck that this block uses, wherever it is held."""
        holder = next(iter(self._owner[name]), self)
        return holder.dvpt_shared[name]  # type: ignore[return-value]

    def current(self) -> str | None:
        """The adapter that is at work here."""
        if self.disable_adapters:
            return None
        return next((n for n in self.active_adapters if n in self._spots), None)

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """The block's output, prompt tokens included."""
        self._seen = []
        name = self.current()
        if name is None or self._spots[name]["role"] == "before":
            return self.base_layer(*args, **kwargs)
        spot = self._spots[name]
        if spot["role"] == "add":
            return self.base_layer(*args, **kwargs)
        count, at = self._settings[name].num_prompts or 1, spot["at"]
        tokens = first_of(args, kwargs)
        length = tokens.shape[1]
        if spot["role"] == "insert":
            tokens = insert(tokens, self._prompt_tokens(name), at)
        else:
            length -= count
        args, kwargs = widen_all(*with_first(args, kwargs, tokens), length, count, at)
        self._keep = [kept_tokens(args, kwargs, length + count)]
        return self.base_layer(*args, **kwargs)

    def _prompt_tokens(self, name: str) -> Tensor:
        tokens = self.dvpt_tokens[name] + self.dvpt_positions[name]
        # Embeddings pass a norm on their way in, where the network has one: so do prompts.
        for norm in self._entry[name]:
            tokens = norm(tokens)
        return tokens

    def _enter(self, _: nn.Module, args: Args) -> Args | None:
        """Before the feed-forward half: note its state X, or (repo) add to the first tokens."""
        name = self.current()
        if name is None or "source" not in self._spots[name]:
            return None
        index = self._spots[name]["source"][1]
        x = args[index]
        if self._spots[name]["role"] != "add":
            self._seen = [(x, None)]
            return None
        prompts = self.dvpt_prompts[name]
        scale = scale_of(self._settings[name].attn_scale, prompts.shape[1])
        gathered = attend(prompts, x.to(prompts.dtype), scale)
        if name in self.dvpt_prompt_gate:
            gathered = self.dvpt_prompt_gate[name] * gathered
        added = first_tokens(gathered, x.shape[1]).to(x.dtype)
        self._seen = [(x + added, added)]
        return (*args[:index], self._seen[0][0], *args[index + 1 :])

    def _leave(self, _: nn.Module, __: Args, output: Any) -> Any:
        """After the feed-forward: add the bottleneck's part, and (repo) what was added before."""
        name = self.current()
        if name is None or "source" not in self._spots[name]:
            return None
        if not self._seen:
            raise BackboneError(
                f"The state that enters the feed-forward of {type(self.base_layer).__name__} "
                f"never passed '{self._spots[name]['source'][0]}' before it.",
                expected="blocks that normalise before each half (pre-norm)",
                next_step="Use ssf or bitfit, which enter any network.",
            )
        x, added = self._seen.pop()
        config, shared = self._settings[name], self.shared(name)

        def change(f: Tensor) -> Tensor:
            if shared.queries is None:
                f = share_mlp(x, *shared.weights, base=f)
                return f if added is None else f + added
            scale = scale_of(config.attn_scale, shared.queries.shape[1])
            extra = dynamic_mlp(
                x, *shared.weights, shared.queries, at=self._spots[name]["at"], scale=scale,
                keep=self._keep[0],
            )  # fmt: skip
            return f + extra.to(f.dtype)

        return on_tokens(output, change)

    def read(self, _: nn.Module, __: Args, output: Any) -> Any:
        """Hook on the network: its output without the prompt tokens of this block."""
        name = self.current()
        if name is None or self._spots[name]["role"] != "insert":
            return None
        config, at = self._settings[name], self._spots[name]["at"]
        mean, count = config.pool == "prompts+cls", config.num_prompts or 1
        return on_tokens(output, lambda t: read_out(t, count, at, mean=mean))

    def delete_adapter(self, adapter_name: str) -> None:
        """Remove an adapter."""
        for kept in (self._spots, self._settings, self._owner, self._entry):
            kept.pop(adapter_name, None)
        super().delete_adapter(adapter_name)

    def release(self) -> None:
        """Take the hooks away."""
        for hook in self._taps:
            hook.remove()
