"""LegoBlock: a unimodal encoder behind a latent that reads it in the frequency domain."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from galenic.core.errors import BackboneError, ConfigError
from galenic.models.lego import functional
from galenic.models.lego.layers import Attention, FeedForward, LegoHead, SelfEncoder

Input = Tensor | Mapping[str, Tensor]


class LegoBlock(nn.Module):
    """One modality, from its input to logits by way of a latent of a common shape.

    Hemker et al., ICLR 2025, arXiv 2405.19950. The learned latent goes through `depth` layers;
    each takes it to frequencies, lets its real part attend to the real frequencies of the
    encoder's states, and takes it back, but for the last: latents are merged as frequencies.

    Args:
        encoder: From a tensor, or from the keywords of a mapping, to states [B, n, D], to one
            feature [B, D], or to a pair of states and their mask [B, n]. None: the input itself,
            through self-attention and a feed-forward.
        encoder_dim: D.
        outputs: Number of logits.
        latent: (l_c, l_d), number of latents and their width.
        depth: Layers S.
        heads: Of the attention.
        head_width: Width of each head.
        frequency_domain: Off, everything is done on the latent as it is.
        track_imaginary: Keep the imaginary part beside the attention; off, it is dropped.
        normalise: Scale the latent to norm one before each layer.
        weight_sharing: One layer, applied `depth` times.
        dropout: In attention and feed-forward.
        head: From real latents [B, l_c, l_d] to logits; None for :class:`LegoHead`.

    Raises:
        ConfigError: If a size is not positive.
    """

    def __init__(
        self,
        encoder: nn.Module | None,
        encoder_dim: int,
        outputs: int,
        *,
        latent: tuple[int, int] = (64, 64),
        depth: int = 2,
        heads: int = 8,
        head_width: int = 64,
        frequency_domain: bool = True,
        track_imaginary: bool = True,
        normalise: bool = True,
        weight_sharing: bool = False,
        dropout: float = 0.0,
        head: nn.Module | None = None,
    ) -> None:
        super().__init__()
        sizes = (encoder_dim, outputs, *latent, depth, heads, head_width)
        if len(latent) != 2 or min(sizes) < 1:
            raise ConfigError(f"A LegoBlock cannot have the sizes {sizes}.", expected="at least 1")
        self.options: dict[str, Any] = {
            "encoder_dim": encoder_dim,
            "outputs": outputs,
            "latent": list(latent),
            "depth": depth,
            "heads": heads,
            "head_width": head_width,
            "frequency_domain": frequency_domain,
            "track_imaginary": track_imaginary,
            "normalise": normalise,
            "weight_sharing": weight_sharing,
            "dropout": dropout,
        }
        attention: dict[str, Any] = {"heads": heads, "head_width": head_width, "dropout": dropout}
        self.own_encoder = encoder is None
        # What of the encoder is not as it was before this block, once it has been trained.
        self.tuned = _trains(encoder)
        self.encoder = SelfEncoder(encoder_dim, **attention) if encoder is None else encoder
        self.encoder_dim, self.outputs, self.depth = encoder_dim, outputs, depth
        self.frequency_domain, self.track_imaginary = frequency_domain, track_imaginary
        self.normalise = normalise
        width = latent[1]
        self.latent = nn.Parameter(torch.randn(*latent))
        count = 1 if weight_sharing else depth
        self.attention = nn.ModuleList(
            Attention(width, encoder_dim, **attention) for _ in range(count)
        )
        self.feed_forward = nn.ModuleList(FeedForward(width, dropout=dropout) for _ in range(count))
        self.head = LegoHead(width, outputs) if head is None else head

    def forward(self, inputs: Input) -> Tensor:
        """Logits [B, outputs] of this modality alone."""
        return self.head(real(self.encode(inputs)))

    def encode(self, inputs: Input, latent: Tensor | None = None) -> Tensor:
        """The latent after all layers.

        Args:
            inputs: What the encoder takes.
            latent: [B, l_c, l_d] to begin with, not in frequencies; None for the learned one.

        Returns:
            Frequencies [B, l_c, l_d], complex; real and no frequencies without
            `frequency_domain`.
        """
        context, mask = self.states(inputs)
        if latent is None:
            latent = self.latent.expand(len(context), -1, -1)
        for place in range(self.depth):
            latent = self.layer(place, latent, context, mask)
            if place + 1 < self.depth:
                latent = self.back(latent)
        return latent

    def states(self, inputs: Input) -> tuple[Tensor, Tensor | None]:
        """The encoder's states as the attention reads them, and their mask.

        Returns:
            [B, n, D], real frequencies where the block works on these; [B, n] or None.

        Raises:
            BackboneError: If the encoder gives another width than was declared.
        """
        found = self.encoder(**inputs) if isinstance(inputs, Mapping) else self.encoder(inputs)
        states, mask = found if isinstance(found, tuple) else (found, None)
        if states.ndim == 2:
            states = states.unsqueeze(1)
        if states.ndim != 3 or states.shape[-1] != self.encoder_dim:
            raise BackboneError(
                f"{type(self.encoder).__name__} gives states of shape {tuple(states.shape)}.",
                expected=f"[B, n, {self.encoder_dim}] or [B, {self.encoder_dim}]",
                next_step="Say the width of what the encoder gives: encoder_dim=...",
            )
        states = _whole(states)
        if self.frequency_domain:
            # Frequencies have no half precision.
            with torch.autocast(states.device.type, enabled=False):
                states = functional.real_frequency(states, mask)
        return states, mask

    def layer(self, place: int, latent: Tensor, context: Tensor, mask: Tensor | None) -> Tensor:
        """One layer: attention to the states and a feed-forward, both residual.

        Args:
            place: Which layer, from 0.
            latent: [B, l_c, l_d], not in frequencies.
            context: As :meth:`states` gives it.
            mask: As :meth:`states` gives it.

        Returns:
            As :meth:`encode`.
        """
        at = place % len(self.attention)
        imaginary = None
        latent = _whole(latent)
        if self.normalise:
            latent = functional.normalise(latent)
        if self.frequency_domain:
            with torch.autocast(latent.device.type, enabled=False):
                frequencies = functional.to_frequency(latent)
            latent, imaginary = frequencies.real, frequencies.imag
        latent = latent + self.attention[at](latent, context, mask)
        latent = _whole(latent + self.feed_forward[at](latent))
        if imaginary is None:
            return latent
        return torch.complex(
            latent, imaginary if self.track_imaginary else torch.zeros_like(imaginary)
        )

    def back(self, latent: Tensor) -> Tensor:
        """From what :meth:`layer` gives to what it takes."""
        return functional.from_frequency(latent) if self.frequency_domain else latent


def _trains(encoder: nn.Module | None) -> frozenset[str]:
    if encoder is None:
        return frozenset()
    return frozenset(name for name, p in encoder.named_parameters() if p.requires_grad)


def real(latent: Tensor) -> Tensor:
    """What a head sees of a latent."""
    return latent.real if latent.is_complex() else latent


def _whole(states: Tensor) -> Tensor:
    return states.float() if states.dtype in (torch.float16, torch.bfloat16) else states
