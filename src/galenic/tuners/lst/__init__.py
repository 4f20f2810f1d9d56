"""LST: a ladder of small blocks beside a frozen transformer.

Source: Sung, Cho, Bansal, "LST: Ladder Side-Tuning for Parameter and Memory Efficient Transfer
Learning", NeurIPS 2022, arXiv 2206.06522.

    peft.get_peft_model(network, LSTConfig())

works on any transformers network of tokens, without the rest of galenic.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from pydantic import Field

from galenic.core.config import Config as BaseConfig
from galenic.tuners import Capabilities
from galenic.tuners._lazy import lazily

if TYPE_CHECKING:
    from galenic.models.backbone import Backbone
    from galenic.tuners.lst.config import LSTConfig
    from galenic.tuners.lst.model import LSTModel

__all__ = ["CAPABILITIES", "Config", "LSTConfig", "LSTModel", "attach"]

CAPABILITIES = Capabilities(
    paper="Sung et al., LST, NeurIPS 2022, arXiv 2206.06522",
    mergeable=False,
    exact_unmerge=False,
    identity_at_start=False,
    enters=("vit", "bert"),
    gaps={
        "merge": "the side network reads the states between the layers, and stays at inference",
        "identity_at_start": "new features from the start",
        "swin": "states of several lengths: a ladder adds states of one length; use unipt",
        "convnext": "states are maps; use unipt",
        "cnn": "states are maps; use unipt",
        "init": "side blocks start at random; the paper also prunes them out of the backbone",
        "encoder-decoder": "one chain of blocks is read",
    },
    reads_states=True,
)


class Config(BaseConfig):
    """Train a ladder beside the frozen backbone."""

    method: Literal["lst"] = Field("lst", description="This tuner.")
    reduction_factor: int = Field(
        8, ge=1, description="The side network is the backbone's width divided by this wide."
    )
    layers: Literal["all"] | list[int] = Field(
        "all", description="all, or indices: 0 before the first block, i after block i."
    )
    heads: int | None = Field(
        None, ge=1, description="Of each side block; None the backbone's, or a lower divisor."
    )
    ratio: float = Field(4.0, gt=0, description="Feed-forward width over side width.")
    temperature: float = Field(0.1, gt=0, description="Of the gates.")
    dropout: float = Field(0.0, ge=0, lt=1, description="In the side blocks.")
    cache_features: bool = Field(
        True, description="Whether the frozen states may be computed once and kept on disk."
    )


def attach(backbone: Backbone, config: Config) -> None:
    """Set a ladder beside `backbone.network`; the backbone's features become the ladder's.

    Raises:
        BackboneError: If the hidden states are no tokens of one length.
        ConfigError: If `layers` names fewer than two states, or unknown ones.
    """
    from galenic.tuners import _side
    from galenic.tuners.lst.config import LSTConfig
    from galenic.tuners.lst.model import LSTModel as _registers  # noqa: F401

    _side.attach(backbone, LSTConfig(**config.model_dump(exclude={"method"})), "lst")


__getattr__ = lazily(__name__, LSTConfig="model", LSTModel="model")
