"""Everything that the task `federate` can be told."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field, field_validator, model_validator

from galenic.core.config import Config as BaseConfig
from galenic.core.schedule import Schedule
from galenic.tasks import _classify_config as classify
from galenic.tasks._heads import HeadConfig


class ClientsConfig(BaseConfig):
    """Who the clients of a simulation are."""

    by: Literal["patient", "site"] = Field(
        "patient", description="site: one client a value of the site column."
    )
    count: int = Field(8, ge=1, description="How many, by patient.")
    concentration: float | None = Field(
        None,
        gt=0,
        description="Of the Dirichlet distribution that shares each class among the clients, by "
        "patient: 0.1 is sharply skewed. None: at random.",
    )


class PrivacyConfig(BaseConfig):
    """Client-level differential privacy, by Flower's clipping and noise."""

    noise: float = Field(1.0, gt=0, description="Standard deviation on the sum, over clip.")
    clip: float = Field(1.0, gt=0, description="Largest norm of one client's update.")
    delta: float = Field(1e-5, gt=0, lt=1, description="That epsilon is reported at.")


class Config(classify.Config):
    """Everything that `federate` can be told."""

    tuner: dict[str, Any] = Field(
        {"method": "lora"},
        description="Of every client; its rank and alpha are `ranks` and `alpha_over_r`. Ignored by full.",
    )
    head: HeadConfig = HeadConfig(standardise=False)
    schedule: Schedule = Field(
        Schedule(epochs=1),
        description="Of one client in one round; rounds are never stopped early.",
    )
    method: Literal["flora", "fedit", "zeropad", "full", "local", "pooled"] = Field(
        "flora",
        description="flora: stacks, exact. fedit: averages factors. zeropad: pads them first. full: "
        "averages all weights. local: nobody shares anything; each test patient is predicted by one "
        "client. pooled: all data in one place. The last two train rounds x epochs.",
    )
    rounds: int = Field(3, ge=1)
    ranks: int | list[int] = Field(
        16, description="Of each client's LoRA; clients take the numbers of a list in turn."
    )
    alpha_over_r: float = Field(2.0, gt=0, description="Scaling of every update, alpha / r.")
    clients: ClientsConfig = ClientsConfig()
    client_fraction: float = Field(1.0, gt=0, le=1, description="Share asked in a round.")
    weighting: Literal["samples", "uniform"] = Field("samples", description="Of the clients.")
    compress_rank: int | None = Field(
        None, ge=1, description="Highest rank that flora sends down; None: without any loss."
    )
    privacy: PrivacyConfig | None = Field(None, description="For fedit and full.")
    driver: Literal["in_process", "ray"] = Field(
        "in_process", description="ray: Flower's simulation, clients in processes of their own."
    )
    timeout: float = Field(
        3600.0,
        gt=0,
        description="Seconds that a round waits for answers, and for clients that left.",
    )

    @field_validator("head")
    @classmethod
    def _sharable(cls, value: HeadConfig) -> HeadConfig:
        if value.kind != "linear" or value.standardise:
            raise ValueError(
                "needs kind linear and standardise false: statistics of features would have to "
                "leave the clients"
            )
        return value

    @field_validator("ranks")
    @classmethod
    def _positive(cls, value: int | list[int]) -> int | list[int]:
        if not value or min(value if isinstance(value, list) else [value]) < 1:
            raise ValueError("ranks are 1 or more")
        return value

    @model_validator(mode="after")
    def _fits(self) -> Config:
        if self.tuner.get("method") != "lora" or {"rank", "alpha"} & set(self.tuner):
            raise ValueError(
                "tuner is lora, with its rank in `ranks` and its alpha in `alpha_over_r`"
            )
        if self.method == "fedit" and isinstance(self.ranks, list) and len(set(self.ranks)) > 1:
            raise ValueError("fedit needs one rank for all clients, such as ranks=4")
        if self.compress_rank is not None and self.method != "flora":
            raise ValueError("compress_rank is for method=flora")
        if self.privacy is not None:
            if self.method not in ("fedit", "full"):
                raise ValueError("privacy is for method=fedit or full: a stack shows each client")
            if self.weighting != "uniform":
                raise ValueError("privacy needs weighting=uniform")
        return self

    def rank_of(self, client: int) -> int:
        """Rank of the client with this number, from 0."""
        ranks = self.ranks if isinstance(self.ranks, list) else [self.ranks]
        return ranks[client % len(ranks)]

    @property
    def highest_rank(self) -> int:
        """Of all clients."""
        return max(self.ranks) if isinstance(self.ranks, list) else self.ranks
