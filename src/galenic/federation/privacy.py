"""Differential privacy of clients, by Flower's clipping and noise, and what it amounts to.

Clients clip their update to a norm (`fixedclipping_mod`), the server adds Gaussian noise to the mean
(McMahan et al., ICLR 2018, arXiv 1710.06963). Flower's accountant wants a package that is not among
galenic's, and a strategy without our checks; epsilon is computed here instead: many releases of a
Gaussian mechanism are one of less noise (Dong et al., arXiv 1905.02383, corollary 3.3), whose
delta(epsilon) is known in closed form (Balle and Wang, ICML 2018, arXiv 1805.06530, theorem 8).
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
from flwr.app import ArrayRecord, Message, MetricRecord
from flwr.serverapp.strategy import DifferentialPrivacyClientSideFixedClipping, Strategy
from scipy.stats import norm

from galenic.core.errors import ConfigError

# Above it, nothing is promised.
MOST = 1e4


@dataclass(frozen=True)
class Privacy:
    """How much is clipped and how much noise is added.

    Attributes:
        noise: Standard deviation of the noise on the sum of updates, over `clip`.
        clip: Largest norm of an update.
        clients: How many are asked in a round.
    """

    noise: float
    clip: float
    clients: int


class _Noisy(DifferentialPrivacyClientSideFixedClipping):
    """Flower's noise, drawn from what nobody knows: it is NumPy's global state that it draws from."""

    def aggregate_train(
        self, server_round: int, replies: Iterable[Message]
    ) -> tuple[ArrayRecord | None, MetricRecord | None]:
        # Flower leaves a round with an error out without a word to the strategy, which reports it.
        found, metrics = self.strategy.aggregate_train(server_round, replies)
        if found is None:
            return None, metrics
        # Clients in this process seed it, and noise from a known seed can be taken off again.
        np.random.seed()  # noqa: NPY002
        return self._add_noise_to_aggregated_arrays(found), metrics


def private(strategy: Strategy, privacy: Privacy) -> Strategy:
    """`strategy` with Flower's noise on what it puts together; clients clip.

    The mean is over `privacy.clients`, so `strategy` must refuse a round that lacks one of them
    (`Terms.private`) and weigh all alike.
    """
    return _Noisy(strategy, privacy.noise, privacy.clip, privacy.clients)


def delta_of(epsilon: float, noise: float, releases: int = 1) -> float:
    """The smallest delta for which `releases` of a Gaussian mechanism are (epsilon, delta)-private.

    Args:
        epsilon: 0 or more.
        noise: Standard deviation of each release, over the sensitivity.
        releases: How many; no gain from sampling is taken.
    """
    mu = releases**0.5 / noise
    first, second = mu / 2 - epsilon / mu, -mu / 2 - epsilon / mu
    # The logarithm, since exp(epsilon) alone overflows.
    return float(norm.cdf(first) - np.exp(epsilon + norm.logcdf(second)))


def epsilon_of(delta: float, noise: float, releases: int = 1) -> float:
    """The smallest epsilon at `delta`, by bisection of :func:`delta_of`; inf above 10,000.

    Raises:
        ConfigError: If noise, delta or the number of releases cannot be.
    """
    if not (0 < delta < 1 and noise > 0 and releases >= 1):
        raise ConfigError(
            f"No privacy for noise {noise}, delta {delta} and {releases} releases.",
            expected="noise above 0, delta between 0 and 1, one release or more",
        )
    low, high = 0.0, MOST
    if delta_of(low, noise, releases) <= delta:
        return 0.0
    if delta_of(high, noise, releases) > delta:
        return float("inf")
    while high - low > 1e-9 * max(1.0, high):
        middle = (low + high) / 2
        if delta_of(middle, noise, releases) > delta:
            low = middle
        else:
            high = middle
    return high
