"""The client's side: an app that trains when it is told to, in simulation and on a SuperNode."""

from __future__ import annotations

from collections.abc import Callable

from flwr.app import Context, Error, Message
from flwr.clientapp import ClientApp
from flwr.clientapp.mod import fixedclipping_mod
from flwr.clientapp.typing import ClientAppCallable
from flwr.common.constant import ErrorCode
from flwr.supercore.differential_privacy import KEY_CLIPPING_NORM

from galenic.core.errors import GalenicError
from galenic.federation.messages import CONFIG, Order, pack_number, pack_update, read_order
from galenic.federation.update import Update

Train = Callable[[Order, Context], Update]


def number_of(context: Context) -> int:
    """A client's own number: as its node was started with, or its place in a simulation."""
    place = context.node_config
    return int(place.get("client", place.get("partition-id", context.node_id)))


def client_app(train: Train) -> ClientApp:
    """An app around one function.

    Args:
        train: From what all begin with to this client's update. A `GalenicError` becomes an
            answer that says what was found; the federation goes on without it.
    """
    app = ClientApp()

    @app.train(mods=[_clipped_where_asked])
    def fit(message: Message, context: Context) -> Message:
        order = read_order(message.content)
        try:
            update = train(order, context)
        except GalenicError as error:
            code = ErrorCode.CLIENT_APP_RAISED_EXCEPTION
            return Message(Error(code=code, reason=error.found), reply_to=message)
        return Message(pack_update(update, order.round), reply_to=message)

    @app.query()
    def number(message: Message, context: Context) -> Message:
        return Message(pack_number(number_of(context)), reply_to=message)

    return app


def _clipped_where_asked(
    message: Message, context: Context, call_next: ClientAppCallable
) -> Message:
    """Flower's clipping, in the rounds of a server that sends a norm."""
    if KEY_CLIPPING_NORM not in message.content.config_records[CONFIG]:
        return call_next(message, context)
    answers: list[Message] = []

    def answered(message: Message, context: Context) -> Message:
        answers.append(call_next(message, context))
        return answers[-1]

    try:
        return fixedclipping_mod(message, context, answered)
    except ZeroDivisionError:
        if not answers:
            raise
        # Flower divides by the norm of the change: there is none, and nothing to clip.
        return answers[-1]
