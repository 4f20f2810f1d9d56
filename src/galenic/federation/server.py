"""The server's side: rounds by Flower's own loop, in simulation and on a SuperLink."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from flwr.app import ArrayRecord
from flwr.serverapp import Grid
from flwr.serverapp.strategy import Strategy

from galenic.federation import quiet
from galenic.federation.aggregate import Aggregate
from galenic.federation.messages import from_arrays, to_arrays
from galenic.federation.privacy import Privacy, private
from galenic.federation.strategy import FLoRAStrategy


@dataclass
class Server:
    """One federation from its first to its last round.

    Attributes:
        strategy: Puts updates together.
        start: What the first round begins with.
        rounds: How many.
        evaluate: Told (round, what all begin the next with); round 0 is before the first.
        privacy: Noise on what is sent; None for none.
    """

    strategy: FLoRAStrategy
    start: Aggregate
    rounds: int
    evaluate: Callable[[int, Aggregate], None]
    privacy: Privacy | None = None

    def run(self, grid: Grid) -> None:
        """Carry out all rounds."""
        strategy: Strategy = self.strategy
        if self.privacy is not None:
            strategy = private(self.strategy, self.privacy)

        def seen(number: int, arrays: ArrayRecord) -> None:
            self.evaluate(number, from_arrays(arrays, self.strategy.scale))

        with quiet():
            strategy.start(
                grid,
                to_arrays(self.start.state),
                num_rounds=self.rounds,
                timeout=self.strategy.terms.timeout,
                evaluate_fn=seen,
            )
