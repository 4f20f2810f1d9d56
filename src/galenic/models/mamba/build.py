"""Networks that read histories: the Mamba of the paper, and a transformer to compare it with."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal, NamedTuple

from pydantic import Field
from torch import Tensor, nn

from galenic.core.config import Config
from galenic.core.errors import BackboneError
from galenic.models.huggingface import opening
from galenic.models.mamba.mixer import accelerate
from galenic.models.mamba.streams import EventMamba, StreamEmbedding

PADDING = 0


class Sizes(Config):
    """Of a network that reads histories; the defaults are the paper's."""

    layers: int = Field(32, ge=1, description="Of Mamba; a layer of a transformer counts as two.")
    width: int = Field(768, ge=8, multiple_of=8)
    state: int = Field(16, ge=1, description="State of a channel.")
    kernel: int = Field(4, ge=1, description="Steps of the convolution.")
    expand: int = Field(2, ge=1, description="Channels of the scan over the width.")
    visits: int = Field(512, ge=2, description="Visits that are told apart.")
    waves: int = Field(32, ge=1, description="Sines of time, and of age.")
    dropout: float = Field(0.1, ge=0, lt=1)


class Outputs(NamedTuple):
    """Of :class:`CausalTransformer`, in the words of a Mamba."""

    last_hidden_state: Tensor
    cache_params: Any


class CausalTransformer(nn.Module):
    """A causal language model of transformers, spoken to as if it were a Mamba.

    Args:
        network: With `model`, which takes `inputs_embeds` and `past_key_values`.
    """

    def __init__(self, network: Any) -> None:
        super().__init__()
        self.network = network

    @property
    def config(self) -> Any:
        """Of the network."""
        return self.network.config

    @property
    def base_model(self) -> nn.Module:
        """What reads embeddings."""
        return self

    def get_input_embeddings(self) -> nn.Module:
        """Of codes."""
        embeddings: nn.Module = self.network.get_input_embeddings()
        return embeddings

    def get_output_embeddings(self) -> nn.Module:
        """The decoder."""
        decoder: nn.Module = self.network.get_output_embeddings()
        return decoder

    def forward(
        self,
        inputs_embeds: Tensor,
        attention_mask: Tensor | None = None,
        cache_params: Any = None,
        use_cache: bool = False,
    ) -> Outputs:
        """States [B, L, width] of embedded tokens."""
        found = self.network.model(
            inputs_embeds=inputs_embeds,
            attention_mask=attention_mask,
            past_key_values=cache_params,
            use_cache=use_cache,
        )
        return Outputs(found.last_hidden_state, found.past_key_values)


def build(
    kind: Literal["mamba", "transformer"], sizes: Sizes, tokens: int, start: str | None = None
) -> EventMamba:
    """A network with weights drawn from the global state of torch.

    Args:
        kind: Of the blocks.
        sizes: A transformer has as many parameters.
        tokens: Of the vocabulary.
        start: Folder of a `MambaForCausalLM` to go on from; its layers, width and state hold, and
            its embeddings are taken over where it has as many tokens.

    Raises:
        BackboneError: If `start` holds no Mamba, or is asked of a transformer.
        WeightsError: If its weights would run code.
    """
    network: Any
    if kind == "mamba":
        found = _mamba(sizes, tokens) if start is None else _warm(Path(start), tokens)
        network = accelerate(found)
    elif start is None:
        network = CausalTransformer(_transformer(sizes, tokens))
    else:
        raise BackboneError(
            "A transformer does not start from the weights of a Mamba.",
            where="start",
            next_step="network=mamba, or leave start out.",
        )
    streams = StreamEmbedding(
        network.config.hidden_size, visits=sizes.visits, waves=sizes.waves, dropout=sizes.dropout
    )
    return EventMamba(network, streams)


def _mamba(sizes: Sizes, tokens: int) -> nn.Module:
    from transformers import MambaConfig, MambaForCausalLM

    config = MambaConfig(
        vocab_size=tokens,
        hidden_size=sizes.width,
        num_hidden_layers=sizes.layers,
        state_size=sizes.state,
        conv_kernel=sizes.kernel,
        expand=sizes.expand,
        pad_token_id=PADDING,
    )
    return MambaForCausalLM(config)


def _warm(folder: Path, tokens: int) -> nn.Module:
    from transformers import MambaForCausalLM

    with opening(str(folder), "a folder that MambaForCausalLM.save_pretrained wrote"):
        found = MambaForCausalLM.from_pretrained(folder)
    if found.config.vocab_size == tokens:
        return found
    config = found.config.to_dict() | {"vocab_size": tokens, "pad_token_id": PADDING}
    network = MambaForCausalLM(type(found.config).from_dict(config))
    for part in ("layers", "norm_f"):
        getattr(network.backbone, part).load_state_dict(getattr(found.backbone, part).state_dict())
    return network


def _transformer(sizes: Sizes, tokens: int) -> nn.Module:
    """Half as many layers, each of 12 width^2 weights to the 6 width^2 of a Mamba block."""
    from transformers import LlamaConfig, LlamaForCausalLM

    heads = sizes.width // 64 if sizes.width % 64 == 0 and sizes.width >= 256 else 4
    config = LlamaConfig(
        vocab_size=tokens,
        hidden_size=sizes.width,
        num_hidden_layers=max(1, sizes.layers // 2),
        num_attention_heads=heads,
        intermediate_size=8 * sizes.width // 3,
        tie_word_embeddings=True,
        pad_token_id=PADDING,
        bos_token_id=None,
        eos_token_id=None,
    )
    return LlamaForCausalLM(config)
