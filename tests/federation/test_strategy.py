"""Rounds through Flower's messages, with clients that do what clients do."""

from __future__ import annotations

import random
from dataclasses import replace

import numpy as np
import pytest
import torch

pytest.importorskip("flwr")

from flwr.app import Error, Message, MessageType, RecordDict
from flwr.clientapp import ClientApp

from galenic.core.errors import DataError
from galenic.federation.aggregate import Aggregate
from galenic.federation.client import client_app
from galenic.federation.driver import InProcessGrid
from galenic.federation.messages import Order, pack_update
from galenic.federation.privacy import Privacy, delta_of, epsilon_of
from galenic.federation.server import Server
from galenic.federation.strategy import FLoRAStrategy, Round, Terms
from galenic.federation.update import Update, signature

A, B, HEAD = "m.lora_A.weight", "m.lora_B.weight", "head.w"
RANKS = (4, 2, 3, 1, 5)
FAULTS = ("none", "drop", "error", "late", "twice", "nan", "empty")


def trained(client: int, number: int, rank: int) -> Update:
    draw = torch.Generator().manual_seed(100 * number + client)
    state = {
        A: torch.randn(rank, 4, generator=draw),
        B: torch.randn(3, rank, generator=draw),
        HEAD: torch.randn(2, generator=draw),
    }
    return Update(f"{client:03d}", 1 + client, state, rank, 0.5 + client, "base")


def app(ranks=RANKS) -> ClientApp:
    def train(order: Order, context) -> Update:
        client = int(context.node_config["partition-id"])
        return trained(client, order.round, ranks[client])

    return client_app(train)


class Faulty(InProcessGrid):
    """Delivers as a schedule says: (round, client) to a fault; `late` comes in the next round."""

    def __init__(self, schedule: dict[tuple[int, int], str]) -> None:
        super().__init__(app(), len(RANKS))
        self.schedule = schedule
        self.late: list[Message] = []

    def answers(self, message: Message) -> list[Message]:
        if message.metadata.message_type == MessageType.QUERY:
            return super().answers(message)
        number = int(message.content["config"]["round"])
        client = message.metadata.dst_node_id - 1
        fault = self.schedule.get((number, client), "none")
        late, self.late = (
            [m for m in self.late if m.metadata.src_node_id == client + 1],
            [m for m in self.late if m.metadata.src_node_id != client + 1],
        )
        if fault == "error":
            return [*late, Message(Error(code=0, reason="out of memory"), reply_to=message)]
        replies = super().answers(message)
        if fault == "nan":
            update = trained(client, number, RANKS[client])
            bad = Update(
                update.client, update.samples, {**update.state, B: update.state[B] * torch.nan},
                update.rank, update.scale, update.base,
            )  # fmt: skip
            replies = [Message(pack_update(bad, number), reply_to=message)]
        elif fault == "empty":
            replies = [Message(RecordDict(), reply_to=message)]
        elif fault == "twice":
            replies = replies * 2
        elif fault == "late":
            self.late += replies
            replies = []
        elif fault == "drop":
            replies = []
        return [*late, *replies]


def federate(grid: InProcessGrid, rounds: int = 2, **terms):
    """All that was reported, and what the server held after each round."""
    start = Aggregate({HEAD: torch.zeros(2)}, 0, 1.0)
    agreed = Terms(
        method=terms.pop("method", "flora"), base="base", timeout=terms.pop("timeout", 10.0),
        expected=signature(trained(0, 1, 2).state), clients=len(grid.contexts), **terms,
    )  # fmt: skip
    told: list[Round] = []
    seen: dict[int, Aggregate] = {}
    strategy = FLoRAStrategy(agreed, start, lambda report, _: told.append(report))
    Server(strategy, start, rounds, seen.__setitem__).run(grid)
    return told, seen


def wanted(good: list[int], number: int) -> np.ndarray:
    total = sum(1 + c for c in good)
    found = np.zeros((3, 4))
    for c in good:
        u = trained(c, number, RANKS[c])
        found += (1 + c) / total * u.scale * (u.state[B].double() @ u.state[A].double()).numpy()
    return found


def product(given: Aggregate) -> np.ndarray:
    if not given.rank:
        return np.zeros((3, 4))
    return given.scale * (given.state[B].double() @ given.state[A].double()).numpy()


def test_any_schedule_of_failures_gives_the_sum_over_those_who_answered() -> None:
    for case in range(500):
        draw = random.Random(case)
        plan = {(t, c): draw.choice(FAULTS) for t in (1, 2) for c in range(len(RANKS))}
        told, seen = federate(Faulty(plan))
        total = np.zeros((3, 4))
        for number in (1, 2):
            good = [c for c in range(len(RANKS)) if plan[number, c] in ("none", "twice")]
            assert told[number - 1].counted == [f"{c:03d}" for c in good], plan
            if good:
                total += wanted(good, number)
                assert told[number - 1].error < 1e-6
            gap = np.linalg.norm(product(seen[number]) - total)
            assert gap <= 1e-6 * max(np.linalg.norm(total), 1.0), plan


def test_every_refusal_is_reported() -> None:
    plan = {(1, 0): "nan", (1, 1): "late", (1, 2): "error", (1, 3): "twice", (1, 4): "drop"}
    told, _ = federate(Faulty(plan))
    reasons = {(r.client, r.reason) for r in told[0].refused}
    assert any("000" in r and "lora_B" in r and "finite" in r for _, r in reasons)
    assert ("node 3", "out of memory") in reasons
    assert ("node 4", "It had answered, or was not asked.") in reasons
    assert {("node 2", "no answer"), ("node 5", "no answer")} <= reasons
    assert ("node 2", "It answered round 1, which is over.") in {
        (r.client, r.reason) for r in told[1].refused
    }
    assert told[0].counted == ["003"] and len(told[1].counted) == 5


def test_a_share_of_the_clients_is_drawn_afresh_in_each_round() -> None:
    told, seen = federate(Faulty({}), rounds=6, fraction=0.4, seed=3)
    assert all(report.asked == len(report.counted) == 2 for report in told)
    assert len({tuple(report.counted) for report in told}) > 1
    again, _ = federate(Faulty({}), rounds=6, fraction=0.4, seed=3)
    assert [r.counted for r in again] == [r.counted for r in told]
    # Weights are over those who were drawn.
    total = sum(wanted([int(c) for c in r.counted], r.number) for r in told)
    np.testing.assert_allclose(product(seen[6]), total, rtol=1e-5, atol=1e-5)


def test_the_seed_draws_clients_whatever_their_nodes_are_called() -> None:
    grid = InProcessGrid(app(), len(RANKS))
    # As in Flower's simulation: numbers of nodes are drawn, those of clients stay.
    grid.contexts = {7919 * (9 - node) % 101: place for node, place in grid.contexts.items()}
    assert sorted(grid.contexts) != list(grid.contexts)
    told, _ = federate(grid, rounds=6, fraction=0.4, seed=3)
    wanted, _ = federate(Faulty({}), rounds=6, fraction=0.4, seed=3)
    assert [r.counted for r in told] == [r.counted for r in wanted]


class Leaving(Faulty):
    """Nodes that are there, by round; all of them in the others."""

    def __init__(self, there: dict[int, set[int]]) -> None:
        super().__init__({})
        self.there, self.looks, self.round = there, [], 1

    def get_node_ids(self):
        self.looks.append(self.round)
        return list(self.there.get(self.round, self.contexts))

    def answers(self, message: Message) -> list[Message]:
        if message.metadata.message_type == MessageType.TRAIN:
            self.round = int(message.content["config"]["round"]) + 1
        return super().answers(message)


def test_a_client_that_left_is_waited_for_once_and_may_come_back() -> None:
    grid = Leaving({2: {1, 3, 4}, 3: {1, 3, 4}})
    told, _ = federate(grid, rounds=4, timeout=0.01)
    every, few = [f"{client:03d}" for client in range(5)], ["000", "002", "003"]
    assert [r.counted for r in told] == [every, few, few, every]
    for report in told[1:3]:
        assert report.asked == 3
        assert [(r.client, r.reason) for r in report.refused] == [
            ("node 2", "not connected"), ("node 5", "not connected"),
        ]  # fmt: skip
    assert told[3].refused == []
    assert grid.looks.count(2) > 1 and grid.looks.count(3) == 1


def test_no_more_are_drawn_than_there_are() -> None:
    told, _ = federate(Leaving({2: {2}}), rounds=2, timeout=0.01, fraction=0.6)
    assert (told[1].asked, told[1].counted) == (1, ["001"])
    with pytest.raises(DataError, match="No client is connected"):
        federate(Leaving({2: set()}), rounds=2, timeout=0.01)


def test_ranks_that_nobody_answered_are_kept_for_those_who_can() -> None:
    def train(order: Order, context) -> Update:
        client = int(context.node_config["partition-id"])
        if (order.round, client) in ((2, 0), (2, 4)):
            raise DataError("No samples.")
        return replace(trained(client, order.round, RANKS[client]), scale=2.0)

    grid = InProcessGrid(client_app(train), len(RANKS))
    told, seen = federate(grid, rounds=3, method="zeropad")
    assert [len(r.counted) for r in told] == [5, 3, 5]
    assert [seen[number].rank for number in (1, 2, 3)] == [5, 5, 5]
    # Rank 3 was the highest that answered.
    assert torch.equal(seen[2].state[A][3:], seen[1].state[A][3:])
    assert torch.equal(seen[2].state[B][:, 3:], seen[1].state[B][:, 3:])
    assert not torch.equal(seen[2].state[A][:3], seen[1].state[A][:3])


@pytest.mark.parametrize("most", [None, 64])
def test_a_stack_never_grows_beyond_its_layer(most: int | None) -> None:
    told, seen = federate(Faulty({}), rounds=5, compress_rank=most)
    assert {r.rank for r in told} == {3}
    assert all(seen[number].rank == 3 for number in range(1, 6))
    told, seen = federate(Faulty({}), rounds=1, compress_rank=2)
    assert seen[1].rank == 2 and told[0].error > 1e-3


def test_terms_that_cannot_work_count_nobody_and_say_why() -> None:
    told, seen = federate(Faulty({}), rounds=1, method="fedit")
    assert told[0].counted == [] and "rank" in told[0].refused[-1].reason
    assert seen[1].rank == 0


def test_only_factors_numbers_and_the_head_leave_a_client() -> None:
    class Watching(Faulty):
        seen: list[Message] = []

        def answers(self, message: Message) -> list[Message]:
            replies = super().answers(message)
            self.seen.extend(replies)
            return replies

    grid = Watching({})
    federate(grid, rounds=1)
    for reply in grid.seen:
        content = reply.content
        assert set(content) == {"arrays", "metrics", "config"}
        assert set(content["arrays"]) == {A, B, HEAD}
        assert set(content["metrics"]) == {"num-examples", "rank", "scale"}
        assert set(content["config"]) == {"round", "client", "base"}
        assert reply.metadata.message_type == MessageType.TRAIN


# Privacy -----------------------------------------------------------------------------------


def private(
    grid: InProcessGrid, rounds: int = 1, noise: float = 1e-9
) -> tuple[list[Round], dict[int, Aggregate]]:
    start = Aggregate({HEAD: torch.zeros(2)}, 0, 1.0)
    terms = Terms(
        method="full", base="base", expected={HEAD: (2,)}, clients=len(grid.contexts),
        weighting="uniform", private=True, timeout=1e-9,
    )  # fmt: skip
    told: list[Round] = []
    seen: dict[int, Aggregate] = {}
    strategy = FLoRAStrategy(terms, start, lambda report, _: told.append(report))
    budget = Privacy(noise, 0.5, len(grid.contexts))
    Server(strategy, start, rounds, seen.__setitem__, budget).run(grid)
    return told, seen


def dense_app(value: float) -> ClientApp:
    def train(order: Order, context) -> Update:
        client = int(context.node_config["partition-id"])
        change = torch.tensor([value, 0.0]) if client else torch.tensor([0.1, 0.0])
        return Update(str(client), 5, {HEAD: order.start.state[HEAD] + change}, base="base")

    return client_app(train)


def test_updates_are_clipped_before_they_are_sent() -> None:
    told, seen = private(InProcessGrid(dense_app(100.0), 2))
    assert told[0].counted == ["0", "1"]
    torch.testing.assert_close(seen[1].state[HEAD], torch.tensor([0.3, 0.0]))


def test_a_private_round_counts_only_if_all_answered() -> None:
    def train(order: Order, context) -> Update:
        if context.node_config["partition-id"] == 1:
            raise DataError("No samples.")
        return Update("0", 5, {HEAD: torch.ones(2)}, base="base")

    told, seen = private(InProcessGrid(client_app(train), 2))
    assert told[0].counted == [] and told[0].refused[0].reason == "No samples."
    assert torch.equal(seen[1].state[HEAD], torch.zeros(2))


def test_a_private_round_needs_those_who_left_too() -> None:
    class Halved(InProcessGrid):
        def get_node_ids(self):
            return list(self.contexts)[: 1 if self._count else 2]

    told, seen = private(Halved(dense_app(100.0), 2), rounds=2)
    assert [len(r.counted) for r in told] == [2, 0]
    assert torch.equal(seen[2].state[HEAD], seen[1].state[HEAD])


def test_noise_is_added_whatever_else_a_client_says() -> None:
    class Twice(InProcessGrid):
        def answers(self, message: Message) -> list[Message]:
            failed = Message(Error(code=0, reason="a second try failed"), reply_to=message)
            return [*super().answers(message), failed]

    told, seen = private(Twice(dense_app(100.0), 2), noise=1e6)
    assert told[0].counted == ["0", "1"] and len(told[0].refused) == 2
    assert seen[1].state[HEAD].abs().max() > 100
    # It would tell of the updates without noise.
    assert told[0].error is None


def test_an_update_without_a_change_is_one() -> None:
    def train(order: Order, context) -> Update:
        client = int(context.node_config["partition-id"])
        return Update(str(client), 5, {HEAD: order.start.state[HEAD] + client}, base="base")

    told, seen = private(InProcessGrid(client_app(train), 2))
    assert told[0].counted == ["0", "1"]
    # Half of one change that was clipped to 0.5.
    assert seen[1].state[HEAD].norm().item() == pytest.approx(0.25)


@pytest.mark.parametrize(("noise", "releases"), [(1.0, 1), (2.0, 7), (0.7, 3)])
def test_epsilon_is_that_of_the_gaussian_mechanism(noise: float, releases: int) -> None:
    epsilon = epsilon_of(1e-5, noise, releases)
    # The definition, integrated: E[(1 - exp(epsilon - loss))+], the loss being N(mu^2/2, mu^2).
    mu = releases**0.5 / noise
    z = np.linspace(-12, 12, 400_001)
    loss = mu**2 / 2 + mu * z
    density = np.exp(-(z**2) / 2) / np.sqrt(2 * np.pi)
    delta = np.sum(np.clip(1 - np.exp(epsilon - loss), 0, None) * density) * (z[1] - z[0])
    assert delta == pytest.approx(1e-5, rel=1e-3)
    assert delta_of(epsilon, noise, releases) == pytest.approx(1e-5, rel=1e-6)
    assert epsilon_of(1e-5, noise, releases + 1) > epsilon
