"""A federation in one process: the same apps and messages as Flower's, without its machinery."""

from __future__ import annotations

import logging
from collections.abc import Iterable

from flwr.app import Context, Message, RecordDict
from flwr.app.user_config import UserConfig
from flwr.clientapp import ClientApp
from flwr.serverapp import Grid, ServerApp
from flwr.supercore.run import Run
from flwr.supercore.task_identity import TaskIdentity

from galenic.federation import quiet

RUN_ID = 1


class InProcessGrid(Grid):
    """Answers every message at once, one client after the other.

    Args:
        app: Of every client.
        clients: How many; their contexts hold `partition-id` and `num-partitions`, as in Flower's
            simulation.
    """

    def __init__(self, app: ClientApp, clients: int) -> None:
        self.app = app
        self.contexts = {node + 1: _context(node + 1, node, clients) for node in range(clients)}
        self._replies: dict[str, list[Message]] = {}
        self._run = Run.create_empty(RUN_ID)
        self._count = 0
        TaskIdentity.run_id, TaskIdentity.node_id, TaskIdentity.task_id = RUN_ID, 0, 1

    def set_run(self, run: Run) -> None:
        """Nothing else than one run is ever here."""
        self._run = run

    @property
    def run(self) -> Run:
        """The run."""
        return self._run

    def create_message(
        self,
        content: RecordDict,
        message_type: str,
        dst_node_id: int,
        group_id: str,
        ttl: float | None = None,
    ) -> Message:
        """A message, as Flower's own grids make it."""
        return Message(content, dst_node_id, message_type, ttl=ttl, group_id=group_id)

    def get_node_ids(self) -> Iterable[int]:
        """Numbers of the clients, from 1."""
        return list(self.contexts)

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        """Let the clients answer."""
        pushed = []
        for message in messages:
            self._count += 1
            # As Flower's own grids do: the field has no setter.
            message.metadata.__dict__["_message_id"] = str(self._count)
            self._replies[str(self._count)] = self.answers(message)
            pushed.append(str(self._count))
        return pushed

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        """The answers to these messages, each given out once."""
        return [reply for name in message_ids for reply in self._replies.pop(name, [])]

    def send_and_receive(
        self, messages: Iterable[Message], *, timeout: float | None = None
    ) -> Iterable[Message]:
        """All answers; nobody is waited for."""
        return self.pull_messages(self.push_messages(messages))

    def answers(self, message: Message) -> list[Message]:
        """What comes back for one message."""
        return [self.app(message, self.contexts[message.metadata.dst_node_id])]


def drive(server: ServerApp, client: ClientApp, clients: int) -> None:
    """Run a federation of `clients` here."""
    server(InProcessGrid(client, clients), _context(0, None, clients))


def simulate(server: ServerApp, client: ClientApp, clients: int) -> None:
    """Run it in Flower's simulation, clients in Ray's processes of one core each."""
    from flwr.simulation import run_simulation

    # It says that `flwr run` will replace this function, which has no other way in from Python.
    with quiet(logging.ERROR):
        run_simulation(
            server,
            client,
            num_supernodes=clients,
            backend_config={"client_resources": {"num_cpus": 1, "num_gpus": 0.0}},
        )


def _context(node: int, partition: int | None, clients: int) -> Context:
    place: UserConfig = {}
    if partition is not None:
        place = {"partition-id": partition, "num-partitions": clients}
    return Context(RUN_ID, node, place, RecordDict(), {})
