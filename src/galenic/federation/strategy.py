"""A strategy of Flower that puts adapters of unequal ranks together, whatever clients do.

A client may drop, answer twice, answer to a round that is over, or answer what is not finite: what
can be used is used, each client once, and the rest is reported.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from typing import Literal

from flwr.app import ArrayRecord, ConfigRecord, Message, MessageType, MetricRecord, RecordDict
from flwr.serverapp import Grid
from flwr.serverapp.strategy import Strategy
from flwr.serverapp.strategy.strategy_utils import sample_nodes

from galenic.core.errors import DataError, GalenicError
from galenic.core.seeding import rng
from galenic.federation import aggregate as maths
from galenic.federation.aggregate import Aggregate, Weighting
from galenic.federation.messages import ARRAYS, CONFIG, from_arrays, read_update, to_arrays
from galenic.federation.update import Refusal, Update, check

Federated = Literal["flora", "fedit", "zeropad", "full"]
HOW: dict[str, maths.Method] = {
    "flora": "stack",
    "fedit": "average",
    "zeropad": "pad",
    "full": "average",
}


@dataclass(frozen=True)
class Terms:
    """What a federation agrees on.

    Attributes:
        method: flora stacks, fedit averages factors, zeropad pads them first, full averages
            dense weights.
        base: Fingerprint that every client starts from.
        expected: Signature of an update.
        weighting: p_k by samples, or equal.
        clients: How many there are; a round waits until all are connected.
        fraction: Share of them that is asked in a round; one at least.
        compress_rank: Highest rank that is sent down, for flora; None: as far as it pays.
        complete: Whether a round counts only if every client that was asked is counted.
        seed: Of the choice of clients.
    """

    method: Federated
    base: str
    expected: dict[str, tuple[int, ...]]
    clients: int
    weighting: Weighting = "samples"
    fraction: float = 1.0
    compress_rank: int | None = None
    complete: bool = False
    seed: int = 0

    @property
    def asked(self) -> int:
        """How many clients are asked in a round."""
        return max(1, round(self.fraction * self.clients))


@dataclass
class Round:
    """What happened in one round.

    Attributes:
        number: Counted from 1.
        asked: How many clients were.
        counted: Names of those whose update went in.
        refused: The others.
        error: `|agg - exact| / |exact|` of the aggregate.
        rank: Of the aggregate of this round.
        bytes_up: Of all tensors that arrived.
        bytes_down: Of all that were sent.
    """

    number: int
    asked: int = 0
    counted: list[str] = field(default_factory=list)
    refused: list[Refusal] = field(default_factory=list)
    error: float = 0.0
    rank: int = 0
    bytes_up: int = 0
    bytes_down: int = 0


class FLoRAStrategy(Strategy):
    """Aggregation by the terms of a federation.

    Args:
        terms: What it agrees on.
        start: What the first round begins with.
        on_round: Told of every round, with its aggregate where there is one.
    """

    def __init__(
        self,
        terms: Terms,
        start: Aggregate,
        on_round: Callable[[Round, Aggregate | None], None] = lambda _, __: None,
    ) -> None:
        self.terms, self.on_round = terms, on_round
        # Of the arrays that are sent; a strategy around this one may change the arrays.
        self.scale = start.scale
        self._sent = start
        self._asked: dict[int, list[int]] = {}
        self._round = Round(0)

    def summary(self) -> None:
        """Nothing: the run folder holds all of it."""

    def configure_train(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """One order each to the clients of this round, drawn by the seed."""
        terms = self.terms
        _, nodes = sample_nodes(grid, terms.clients, 0)
        draw = rng(terms.seed, "clients", server_round)
        # By place: the numbers of nodes have 64 bits, which an array would round.
        places = draw.choice(len(nodes), size=terms.asked, replace=False)
        chosen = [sorted(nodes)[place] for place in sorted(places.tolist())]
        self._sent = from_arrays(arrays, self.scale)
        self._asked[server_round] = chosen
        self._round = Round(
            server_round, terms.asked, bytes_down=terms.asked * arrays.count_bytes()
        )
        told = ConfigRecord({**config, "round": server_round, "scale": self.scale})
        content = RecordDict({ARRAYS: arrays, CONFIG: told})
        return [Message(content, node, MessageType.TRAIN) for node in chosen]

    def aggregate_train(
        self, server_round: int, replies: Iterable[Message]
    ) -> tuple[ArrayRecord | None, MetricRecord | None]:
        """What can be used, put together; None where nothing can, and all stays as it was."""
        report, terms = self._round, self.terms
        updates = sorted(self._usable(server_round, replies), key=lambda update: update.client)
        report.counted = [update.client for update in updates]
        if not updates or (terms.complete and len(updates) < report.asked):
            report.counted = []
            self.on_round(report, None)
            return None, None
        try:
            found = maths.aggregate(updates, HOW[terms.method], terms.weighting)
        except GalenicError as error:
            # Each is sound alone, and they do not go together: the fault is in the terms.
            report.counted, report.refused = [], [*report.refused, Refusal("all", error.found)]
            self.on_round(report, None)
            return None, None
        found = self._compressed(found)
        report.error = maths.error(updates, found, terms.weighting)
        report.rank = found.rank
        self.on_round(report, found)
        self.scale = found.scale
        if terms.method == "flora":
            found = self._compressed(maths.joined(self._sent, found))
        metrics = MetricRecord({"error": report.error, "clients": len(updates)})
        return to_arrays(found.state), metrics

    def configure_evaluate(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """Nothing: the server evaluates."""
        return []

    def aggregate_evaluate(
        self, server_round: int, replies: Iterable[Message]
    ) -> MetricRecord | None:
        """Nothing."""
        return None

    def _compressed(self, stack: Aggregate) -> Aggregate:
        if self.terms.method != "flora":
            return stack
        # A product has no more rank than its layer has room: beyond that nothing is lost.
        return maths.compress(stack, self.terms.compress_rank or maths.widest(stack.state))

    def _usable(self, number: int, replies: Iterable[Message]) -> Iterator[Update]:
        """Sound updates, the first answer of each client; what else there is, is reported."""
        report, waiting = self._round, set(self._asked[number])
        names: set[str] = set()
        for reply in replies:
            node = reply.metadata.src_node_id
            try:
                update = self._read(reply, number, waiting)
                if update.client in names:
                    raise DataError(f"Another node answered as client '{update.client}'.")
            except GalenicError as error:
                report.refused.append(Refusal(f"node {node}", error.found))
            else:
                names.add(update.client)
                yield update
        report.refused += [Refusal(f"node {node}", "no answer") for node in sorted(waiting)]

    def _read(self, reply: Message, number: int, waiting: set[int]) -> Update:
        node = reply.metadata.src_node_id
        if node not in waiting:
            raise DataError("It had answered, or was not asked.")
        if reply.has_error():
            waiting.remove(node)
            raise DataError(str(reply.error.reason))
        self._round.bytes_up += sum(a.count_bytes() for a in reply.content.array_records.values())
        update, answered = read_update(reply.content)
        if answered != number:
            raise DataError(f"It answered round {answered}, which is over.")
        waiting.remove(node)
        check(update, self.terms.expected, self.terms.base)
        return update
