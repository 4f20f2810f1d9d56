"""Greedy model soup: average only what makes the average no worse.

Source: Wortsman et al., "Model soups: averaging weights of multiple fine-tuned models improves
accuracy without increasing inference time", ICML 2022, arXiv 2203.05482, algorithm 1.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Soup:
    """What went in.

    Attributes:
        members: Models of the soup, in the order in which they were added.
        value: Validation figure of their mean.
        tried: Members and figure of every mean that was looked at.
    """

    members: tuple[str, ...]
    value: float
    tried: tuple[tuple[tuple[str, ...], float], ...]


def greedy(single: Mapping[str, float], score: Callable[[Sequence[str]], float]) -> Soup:
    """Go through the models from the best to the worst; keep each that does not make it worse.

    Args:
        single: Validation figure of each model alone; greater is better.
        score: The same of the mean of several models.
    """
    first, *rest = sorted(single, key=lambda name: -single[name])
    members: tuple[str, ...] = (first,)
    value = single[first]
    tried = [(members, value)]
    for name in rest:
        more = (*members, name)
        found = score(more)
        tried.append((more, found))
        if found >= value:
            members, value = more, found
    return Soup(members, value, tuple(tried))
