"""Pictures that look alike in two parts, against every pair looked at."""

from __future__ import annotations

from itertools import combinations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from galenic.data.duplicates import near_across

BITS = st.sampled_from([0, 1, 7, 15, 1 << 40, (1 << 40) | 3, (1 << 64) - 1])


@given(
    st.lists(st.tuples(st.integers(0, 11), BITS), max_size=30),
    st.lists(st.integers(-1, 2), min_size=12, max_size=12),
    st.sets(st.integers(0, 11)),
)
def test_pairs_across_are_those_of_a_plain_search(
    look: list[tuple[int, int]], parts: list[int], told: set[int]
) -> None:
    pairs = [
        (a, b)
        for (a, one), (b, other) in combinations(look, 2)
        if (one ^ other).bit_count() <= 3
        and parts[a] != parts[b]
        and -1 not in (parts[a], parts[b])
        and not {a, b} <= told
    ]
    count, rows = near_across(look, np.array(parts), sorted(told))
    assert count == len(pairs)
    assert set(rows.tolist()) == {row for pair in pairs for row in pair}


def test_thousands_that_are_equal_are_counted_at_once() -> None:
    many = 40_000
    count, rows = near_across([(row, 0) for row in range(many)], np.arange(many) % 2)
    assert count == (many // 2) ** 2
    assert len(rows) == many
