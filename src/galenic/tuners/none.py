"""Nothing of the backbone trains: the linear probe, and nearest neighbours."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from pydantic import Field

from galenic.core.config import Config as BaseConfig
from galenic.tuners import Capabilities

if TYPE_CHECKING:
    from galenic.models.backbone import Backbone

CAPABILITIES = Capabilities(
    paper="",
    mergeable=False,
    exact_unmerge=False,
    identity_at_start=True,
    enters=("any",),
    gaps={"merge": "there is nothing to merge"},
)


class Config(BaseConfig):
    """Train only the head."""

    method: Literal["none"] = Field("none", description="This tuner.")


def attach(backbone: Backbone, config: Config) -> None:
    """Freeze all of `backbone.network`."""
    from galenic.tuners._network import freeze

    freeze(backbone.network)
