"""Which modules a network calls, and in which order, as one pass over an example shows.

Structure alone cannot tell whether a norm stands before a sub-layer or behind it, or whether
the weights of a layer are read without a call of it.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import nn

from galenic.core.prediction import evaluating
from galenic.tuners._hidden import probe

Run = Callable[[], Any]


def calls(network: nn.Module, run: Run | None = None) -> list[str]:
    """Names of the modules in the order of their first call; none where no example is known.

    Args:
        network: Any network; nothing of it is changed.
        run: One pass through it; None makes an example from the network's config.
    """
    order: dict[str, None] = {}

    def note(name: str, *_: Any) -> None:
        order.setdefault(name)

    handles = [
        module.register_forward_pre_hook(partial(note, name))
        for name, module in network.named_modules()
    ]
    try:
        with torch.no_grad(), evaluating(network):
            if run is None:
                network(**probe(network, "calls"))
            else:
                run()
    except Exception:
        # A network of its own kind may want any other input, and fail without it in any way.
        return []
    finally:
        for handle in handles:
            handle.remove()
    return list(order)


def uncalled(network: nn.Module, run: Run | None = None) -> set[str]:
    """Names of the modules that one pass does not call while it calls what holds them.

    The holder reads their weights itself: what stands on them does nothing until it is merged.

    Args:
        network: Any network; nothing of it is changed.
        run: See :func:`calls`.
    """
    called = set(calls(network, run))
    return {
        name
        for name, _ in network.named_modules()
        if name not in called and name.rpartition(".")[0] in called
    }
