"""A strategy of Flower that puts adapters of unequal ranks together, whatever clients do.

A client may drop, answer twice, answer to a round that is over, or answer what is not finite: what
can be used is used, each client once, and the rest is reported.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Literal

from flwr.app import ArrayRecord, ConfigRecord, Message, MessageType, MetricRecord, RecordDict
from flwr.serverapp import Grid
from flwr.serverapp.strategy import Strategy

from galenic.core.errors import DataError, GalenicError
from galenic.core.seeding import rng
from galenic.federation import aggregate as maths
from galenic.federation.aggregate import Aggregate, Weighting
from galenic.federation.messages import (
    ARRAYS,
    CONFIG,
    from_arrays,
    read_number,
    read_update,
    to_arrays,
)
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
        clients: How many there are; the first round waits until all are connected.
        fraction: Share of them that is asked in a round; one at least.
        compress_rank: Highest rank that is sent down, for flora; None: as far as it pays.
        private: Whether noise is added to what is put together. A round then counts only if all
            are counted that were to be asked, and its error, which no noise covers, is not told.
        seed: Of the choice of clients.
        timeout: Seconds that a round waits for answers, and a later one for those who left.
    """

    method: Federated
    base: str
    expected: dict[str, tuple[int, ...]]
    clients: int
    weighting: Weighting = "samples"
    fraction: float = 1.0
    compress_rank: int | None = None
    private: bool = False
    seed: int = 0
    timeout: float = 3600.0

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
        error: `|agg - exact| / |exact|` of the aggregate; None where there is none to tell.
        rank: Of the aggregate of this round.
        bytes_up: Of all tensors that arrived.
        bytes_down: Of all that were sent.
    """

    number: int
    asked: int = 0
    counted: list[str] = field(default_factory=list)
    refused: list[Refusal] = field(default_factory=list)
    error: float | None = None
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
        self._known: set[int] = set()
        self._numbers: dict[int, int] = {}
        self._awaited = terms.clients
        self._round = Round(0)

    def summary(self) -> None:
        """Nothing: the run folder holds all of it."""

    def configure_train(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """One order each to the clients of this round, drawn by the seed.

        Raises:
            DataError: If nobody is connected.
        """
        terms, nodes = self.terms, self._connected(grid)
        gone = sorted(self._known - set(nodes)) if len(nodes) < terms.clients else []
        self._known.update(nodes)
        chosen = sorted(nodes)
        if terms.asked < len(nodes):
            draw = rng(terms.seed, "clients", server_round)
            # By place: the numbers of nodes have 64 bits, which an array would round.
            places = draw.choice(len(nodes), size=terms.asked, replace=False)
            ordered = self._ordered(nodes, grid)
            chosen = [ordered[place] for place in sorted(places.tolist())]
        self._sent = from_arrays(arrays, self.scale)
        self._asked[server_round] = chosen
        self._round = Round(
            server_round,
            len(chosen),
            refused=[Refusal(f"node {node}", "not connected") for node in gone],
            bytes_down=len(chosen) * arrays.count_bytes(),
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
        if not updates or (terms.private and len(updates) < terms.asked):
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
        if not terms.private:
            report.error = maths.error(updates, found, terms.weighting)
        report.rank = found.rank
        self.on_round(report, found)
        self.scale = found.scale
        if terms.method == "flora":
            found = self._compressed(maths.joined(self._sent, found))
        elif terms.method == "zeropad":
            found = maths.continued(found, self._sent)
        return to_arrays(found.state), MetricRecord({"clients": len(updates)})

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

    def _connected(self, grid: Grid) -> list[int]:
        """Nodes that are there: all in the first round, and later those who came until `timeout`."""
        until = time.monotonic() + self.terms.timeout if self._known else math.inf
        while len(nodes := list(grid.get_node_ids())) < self._awaited and time.monotonic() < until:
            time.sleep(min(1.0, self.terms.timeout))
        if not nodes:
            raise DataError(
                "No client is connected.",
                expected=f"{self.terms.clients}, as in the first round",
                next_step="Look at the SuperNodes, and start the run again.",
            )
        # Who was waited for in vain is not waited for again, and may come back.
        self._awaited = min(len(nodes), self.terms.clients)
        return nodes

    def _ordered(self, nodes: list[int], grid: Grid) -> list[int]:
        """By the clients' own numbers: those of nodes are others in every run."""
        new = [node for node in nodes if node not in self._numbers]
        asked = [Message(RecordDict(), node, MessageType.QUERY) for node in new]
        for reply in grid.send_and_receive(asked, timeout=self.terms.timeout):
            # Those who do not say it stand behind the others.
            with suppress(DataError):
                if not reply.has_error():
                    self._numbers[reply.metadata.src_node_id] = read_number(reply.content)
        return sorted(nodes, key=lambda node: (self._numbers.get(node, math.inf), node))

    def _compressed(self, stack: Aggregate) -> Aggregate:
        if self.terms.method != "flora":
            return stack
        # A product has no more rank than its layer has room: beyond that nothing is lost.
        room = maths.widest(stack.state)
        return maths.compress(stack, min(self.terms.compress_rank or room, room))

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
