"""The three forms of UniPT as modules: tokens, grid, pooled."""

from __future__ import annotations

from abc import abstractmethod
from typing import Any

import torch
from torch import Tensor, nn

from galenic.core.errors import BackboneError
from galenic.tuners._hidden import Hidden, Layout
from galenic.tuners._side import SideNetwork, choose
from galenic.tuners.unipt.config import UniPTConfig
from galenic.tuners.unipt.functional import interact, masked_mean, pool_cells


def build(config: UniPTConfig, layout: Layout) -> SideNetwork:
    """The side network of `config` for states of `layout`.

    Raises:
        BackboneError: If the form does not fit the states.
        ConfigError: If fewer than two layers are named, or unknown ones.
        ValueError: If the reduction leaves no channel.
    """
    form = config.form
    if form == "auto":
        form = "grid" if layout.maps else "tokens"
    if (form == "grid") != layout.maps:
        raise BackboneError(
            f"'unipt' cannot take form '{form}': the network's states are "
            f"{'maps' if layout.maps else 'tokens'} of shape {layout.shapes[-1]}.",
            expected="form grid for maps, form tokens or pooled for tokens",
            next_step="tuner.form=auto",
        )
    wish = config.layers
    if wish == "auto":
        wish = "stages" if layout.maps else "all"
    layers = choose(wish, layout)
    kinds: dict[str, Any] = {"tokens": TokensUniPT, "grid": GridUniPT, "pooled": PooledUniPT}
    network: UniPT = kinds[form](layout, layers, config)
    return network


class UniPT(SideNetwork):
    """What the forms share: widths, gate and the sum over layers.

    Args:
        layout: The states of the network.
        layers: States that are read.
        config: Of the adapter.
        final: Whether the network's own output is read.
    """

    def __init__(
        self, layout: Layout, layers: list[int], config: UniPTConfig, *, final: bool = False
    ) -> None:
        super().__init__(layout, layers, final=final)
        self.widths = [layout.widths[layer] for layer in layers]
        self.out_dim = config.out_dim or layout.width
        self.inner = self.out_dim // config.reduction_factor
        if self.inner < 1:
            raise ValueError(
                f"reduction_factor {config.reduction_factor} leaves no channel of {self.out_dim}"
            )
        self.eps, self.chunk = config.eps, config.chunk_size
        self.gate = nn.Linear(self.inner, 1)

    def confidence(self, anchor: Tensor, targets: list[Tensor]) -> Tensor:
        """Softmax over layers of `gate(anchor * target)`: [B, layers].

        Args:
            anchor: Mean of the anchor [B, m].
            targets: Mean of each layer [B, m].
        """
        scores = [self.gate(anchor * target) for target in targets]
        return torch.cat(scores, dim=1).float().softmax(dim=1)

    def merge(
        self, anchor: Tensor, targets: list[Tensor], weights: Tensor, mask: Tensor | None
    ) -> Tensor:
        """`sum_l p_l S_l T_l` [B, N, m], each S_l with one on its diagonal."""
        merged = torch.zeros_like(anchor)
        for place, target in enumerate(targets):
            merged = merged + interact(
                anchor, target, weights[:, place], mask, eps=self.eps, chunk=self.chunk
            )
        return merged

    def cast(self, state: Tensor) -> Tensor:
        """A state in the type of the side network's weights."""
        return state.to(self.gate.weight.dtype)

    @abstractmethod
    def forward(self, hidden: Hidden) -> Tensor:
        """See `SideNetwork.forward`."""


def _zero(layer: nn.Linear | nn.Conv2d, wish: bool) -> nn.Linear | nn.Conv2d:
    if wish:
        nn.init.zeros_(layer.weight)
        assert layer.bias is not None
        nn.init.zeros_(layer.bias)
    return layer


class TokensUniPT(UniPT):
    """Tokens [B, N, d_l] of every layer to tokens [B, N, E]."""

    def __init__(self, layout: Layout, layers: list[int], config: UniPTConfig) -> None:
        super().__init__(layout, layers, config)
        m = self.inner
        self.down = nn.ModuleList(
            nn.Sequential(nn.Linear(width, m), nn.LayerNorm(m)) for width in self.widths
        )
        if config.proj == "mlp":
            wide = self.widths[-1]
            self.proj = nn.Sequential(
                nn.Linear(m, wide), nn.ReLU(), nn.Linear(wide, m), nn.LayerNorm(m)
            )
        else:
            self.proj = nn.Sequential(nn.Linear(m, m), nn.LayerNorm(m))
        self.up = nn.Sequential(nn.ReLU(), _zero(nn.Linear(m, self.out_dim), config.zero_init_up))

    def forward(self, hidden: Hidden) -> Tensor:
        """Tokens [B, N, E]."""
        mask = hidden.mask
        lowered = [
            down(self.cast(state)) for down, state in zip(self.down, hidden.states, strict=True)
        ]
        *targets, anchor = lowered
        weights = self.confidence(
            masked_mean(anchor, mask), [masked_mean(target, mask) for target in targets]
        )
        return self.up(anchor + self.proj(self.merge(anchor, targets, weights, mask)))


class GridUniPT(UniPT):
    """Maps [B, d_l, h_l, w_l] of every stage to maps [B, E, h, w] on the last stage's grid."""

    def __init__(self, layout: Layout, layers: list[int], config: UniPTConfig) -> None:
        super().__init__(layout, layers, config)
        m, last = self.inner, self.widths[-1]
        for layer in layers[:-1]:
            _check_divides(layout.shapes[layer][1:], layout.shapes[layers[-1]][1:])
        self.down = nn.ModuleList(
            nn.Sequential(nn.Conv2d(width, m, 1), nn.BatchNorm2d(m)) for width in self.widths
        )
        self.query = nn.ModuleList(
            nn.Sequential(nn.Conv2d(last, width, 1), nn.ReLU()) for width in self.widths[:-1]
        )
        if config.proj == "mlp":
            self.proj = nn.Sequential(
                nn.Conv2d(m, last, 1), nn.ReLU(), nn.Conv2d(last, m, 1), nn.BatchNorm2d(m)
            )
        else:
            self.proj = nn.Sequential(nn.Conv2d(m, m, 1), nn.BatchNorm2d(m))
        self.up = nn.Sequential(
            nn.ReLU(), _zero(nn.Conv2d(m, self.out_dim, 1), config.zero_init_up)
        )

    def forward(self, hidden: Hidden) -> Tensor:
        """Map [B, E, h, w]."""
        *states, last = [self.cast(state) for state in hidden.states]
        anchor = self.down[-1](last)
        flat = anchor.flatten(2).transpose(1, 2)
        targets = []
        for state, query, down in zip(states, self.query, self.down, strict=False):
            _check_divides(state.shape[-2:], last.shape[-2:])
            pooled = pool_cells(state, query(last), self.eps)
            targets.append(down(pooled).flatten(2).transpose(1, 2))
        weights = self.confidence(flat.mean(dim=1), [target.mean(dim=1) for target in targets])
        merged = self.merge(flat, targets, weights, None)
        # In float32 as the sum was made; a plain convolution wants one type.
        image = merged.transpose(1, 2).unflatten(2, anchor.shape[-2:]).to(self.gate.weight.dtype)
        return self.up(anchor + self.proj(image))


class PooledUniPT(UniPT):
    """The pooled feature of the frozen network [B, E], plus what its layers say to it."""

    def __init__(self, layout: Layout, layers: list[int], config: UniPTConfig) -> None:
        super().__init__(layout, layers, config, final=True)
        if self.out_dim != layout.width:
            raise ValueError(
                f"out_dim is {self.out_dim}, but the residual of form 'pooled' has {layout.width}"
            )
        m = self.inner
        self.pool, self.prefix, self.token = config.pool, config.prefix_tokens, config.token
        self.down = nn.ModuleList(
            nn.Sequential(nn.ReLU(), nn.Linear(width, m)) for width in self.widths
        )
        self.ask = nn.Sequential(nn.ReLU(), nn.Linear(layout.width, m))
        self.up = nn.Sequential(nn.ReLU(), _zero(nn.Linear(m, self.out_dim), config.zero_init_up))

    def forward(self, hidden: Hidden) -> Tensor:
        """Feature [B, E]."""
        mask = hidden.mask
        raw = self.cast(self.pooled(self._output(hidden), mask))
        anchor = self.ask(raw)
        targets = [
            down(self.cast(state)) for down, state in zip(self.down, hidden.states, strict=True)
        ]
        weights = self.confidence(anchor, [masked_mean(target, mask) for target in targets])
        merged = torch.zeros_like(anchor)
        for place, target in enumerate(targets):
            weight = weights[:, place]
            mixed = interact(anchor[:, None], target, weight, mask, eps=self.eps, identity=False)
            merged = merged + mixed[:, 0] + weight[:, None] * self._own(target, mask)
        return raw + self.up(merged.to(raw.dtype))

    def _own(self, target: Tensor, mask: Tensor | None) -> Tensor:
        """The token [B, m] that stands for a layer."""
        if self.token == "first":
            return _first(target, mask)
        if mask is None:
            return target[:, -1]
        return _first(target.flip(1), mask.flip(1))

    def pooled(self, tokens: Tensor, mask: Tensor | None) -> Tensor:
        """The frozen network's feature [B, E], as the backbone pools it."""
        if self.pool == "cls":
            return _first(tokens, mask)
        if mask is None:
            inner = tokens[:, self.prefix :]
            return inner.amax(dim=1) if self.pool == "max" else inner.mean(dim=1)
        if self.pool == "max":
            return tokens.masked_fill(mask[..., None] == 0, -torch.inf).amax(dim=1)
        return masked_mean(tokens, mask)


def _first(tokens: Tensor, mask: Tensor | None) -> Tensor:
    """The first valid token [B, m], on whichever side the padding is."""
    if mask is None:
        return tokens[:, 0]
    first = (mask != 0).int().argmax(dim=1)
    return tokens[torch.arange(len(tokens), device=tokens.device), first]


def _check_divides(
    fine: tuple[int, ...] | torch.Size, coarse: tuple[int, ...] | torch.Size
) -> None:
    if any(a % b for a, b in zip(fine, coarse, strict=True)):
        raise BackboneError(
            f"'unipt' has no whole cells of a {fine[0]} x {fine[1]} map on a grid of "
            f"{coarse[0]} x {coarse[1]}.",
            expected="sides that are multiples of the last stage's",
            next_step="Take an input size that the network's stride divides.",
        )
