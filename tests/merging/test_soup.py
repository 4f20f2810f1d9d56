"""The greedy soup against its paper's algorithm, and what it must never do."""

from __future__ import annotations

from collections.abc import Sequence

from hypothesis import given
from hypothesis import strategies as st

from galenic.merging.soup import greedy


def test_the_algorithm_step_by_step() -> None:
    figures = {
        ("b",): 0.8, ("c",): 0.7, ("a",): 0.6,
        ("b", "c"): 0.8, ("b", "c", "a"): 0.79,
    }  # fmt: skip
    asked: list[tuple[str, ...]] = []

    def score(members: Sequence[str]) -> float:
        asked.append(tuple(members))
        return figures[tuple(members)]

    soup = greedy({"a": 0.6, "b": 0.8, "c": 0.7}, score)
    # One that leaves the figure as it is goes in; one that lowers it stays out.
    assert soup.members == ("b", "c")
    assert asked == [("b", "c"), ("b", "c", "a")]
    assert soup.value == 0.8


weights = st.lists(st.floats(-3, 3), min_size=1, max_size=8)


@given(weights, st.floats(-3, 3))
def test_a_soup_is_never_worse_than_the_best_alone(found: list[float], wanted: float) -> None:
    """Models of one weight each, judged by how near their mean comes to a value."""
    models = {f"m{i}": value for i, value in enumerate(found)}

    def score(members: Sequence[str]) -> float:
        return -abs(sum(models[name] for name in members) / len(members) - wanted)

    soup = greedy({name: score([name]) for name in models}, score)
    assert soup.value >= max(score([name]) for name in models)
    assert soup.value == score(soup.members)
    assert len(soup.tried) == len(models)
