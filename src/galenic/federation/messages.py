"""Orders and updates as Flower's records: all that ever crosses the border of a client."""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass
from typing import Any

from flwr.app import ArrayRecord, ConfigRecord, MetricRecord, RecordDict

from galenic.core.errors import DataError
from galenic.federation.aggregate import Aggregate
from galenic.federation.update import State, Update, pairs_of

ARRAYS, CONFIG, METRICS = "arrays", "config", "metrics"
SAMPLES = "num-examples"


@dataclass(frozen=True, eq=False)
class Order:
    """What a client is told: train from here.

    Attributes:
        round: Counted from 1.
        start: What all clients begin with.
    """

    round: int
    start: Aggregate


def to_arrays(state: State) -> ArrayRecord:
    """Tensors as Flower sends them, sorted by name: its privacy mods compare the order."""
    named = OrderedDict((name, state[name].detach().cpu().contiguous()) for name in sorted(state))
    return ArrayRecord(named)


def from_arrays(arrays: ArrayRecord, scale: float) -> Aggregate:
    """What :func:`to_arrays` packed, with its rank as the factors have it."""
    state = dict(arrays.to_torch_state_dict())
    rank = max((len(state[pair.a]) for pair in pairs_of(state).values()), default=0)
    return Aggregate(state, rank, scale)


def pack_update(update: Update, number: int) -> RecordDict:
    """The answer of a client to the order of round `number`."""
    return RecordDict(
        {
            ARRAYS: to_arrays(update.state),
            METRICS: MetricRecord(
                {SAMPLES: update.samples, "rank": update.rank, "scale": update.scale}
            ),
            CONFIG: ConfigRecord({"round": number, "client": update.client, "base": update.base}),
        }
    )


def read_update(content: RecordDict) -> tuple[Update, int]:
    """What a client answered, and to which round.

    Raises:
        DataError: If a record or a key is missing.
    """
    try:
        config: Any = content[CONFIG]
        metrics: Any = content[METRICS]
        arrays: Any = content[ARRAYS]
        update = Update(
            client=str(config["client"]),
            samples=int(metrics[SAMPLES]),
            state=dict(arrays.to_torch_state_dict()),
            rank=int(metrics["rank"]),
            scale=float(metrics["scale"]),
            base=str(config["base"]),
        )
        return update, int(config["round"])
    except KeyError as error:
        raise DataError(f"An answer lacks {error}.", expected="the answer of this client") from None


def pack_number(number: int) -> RecordDict:
    """What a client answers when it is asked for its own number."""
    # As text: the number of a node, which stands in where there is no other, has 64 bits.
    return RecordDict({CONFIG: ConfigRecord({"client": str(number)})})


def read_number(content: RecordDict) -> int:
    """What :func:`pack_number` packed.

    Raises:
        DataError: If it is not there, or no number.
    """
    try:
        config: Any = content[CONFIG]
        return int(config["client"])
    except (KeyError, ValueError):
        raise DataError("A client did not say its number.", expected="client=0, 1, ...") from None


def read_order(content: RecordDict) -> Order:
    """What the server told a client."""
    config: Any = content[CONFIG]
    arrays: Any = content[ARRAYS]
    return Order(int(config["round"]), from_arrays(arrays, float(config["scale"])))
