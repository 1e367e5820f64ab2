"""Ring caches: they hold the latest rows, and attention over them is attention with a window."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import headwise as hw
from cache.sequences import CHUNKS, KEYWORDS, LENGTH, arrays, close, make, split, steps, whole

pytestmark = pytest.mark.above_operations

RINGS = [1, 2, 9, 40, 60]


@pytest.mark.parametrize("capacity", RINGS)
@pytest.mark.parametrize("chunks", CHUNKS.values(), ids=CHUNKS)
def test_a_ring_is_a_window(chunks: list[int], capacity: int) -> None:
    given, cache = arrays(), make(capacity=capacity, ring=True)
    close(split(cache, given, chunks), whole(given, window_size=(capacity - 1, 0)))
    kept = slice(max(0, LENGTH - capacity), None)
    np.testing.assert_array_equal(cache.keys, given[1][:, :, kept])
    np.testing.assert_array_equal(cache.values, given[2][:, :, kept])
    np.testing.assert_array_equal(cache.entry(1)[1], given[2][1, :, kept])
    assert len(cache) == LENGTH and (cache.lengths == LENGTH).all()


@pytest.mark.parametrize("keywords", KEYWORDS.values(), ids=KEYWORDS)
@pytest.mark.parametrize("chunks", [CHUNKS["uneven"], CHUNKS["two"]], ids=["uneven", "two"])
def test_keywords_of_a_ring(chunks: list[int], keywords: dict[str, Any]) -> None:
    given, capacity = arrays(), 12
    size = keywords.get("window_size", capacity)
    left = min(capacity - 1, size if isinstance(size, int) else size[0])
    expected = whole(given, **keywords | {"window_size": (left, 0)})
    close(split(make(capacity=capacity, ring=True), given, chunks, **keywords), expected)


@pytest.mark.parametrize("capacity", [1, 7, 130, 200])
def test_a_ring_keeps_the_latest_rows_over_many_steps(capacity: int) -> None:
    """Steps of random lengths, some longer than the capacity."""
    chunks = [*[1] * 50, *[3] * 40, 70, 300, 1, 2, 5, *[33] * 10, 16, 17, 18, 1, 90, *[1] * 100]
    given = arrays(length=sum(chunks), heads=2)
    cache = make(capacity=capacity, ring=True)
    before = cache.nbytes
    close(split(cache, given, chunks), whole(given, window_size=(capacity - 1, 0)))
    np.testing.assert_array_equal(cache.keys, given[1][:, :, -capacity:])
    assert cache.nbytes == before


def test_appending_more_rows_than_a_ring_holds() -> None:
    query, key, value = arrays(length=500)
    cache = make(capacity=8, ring=True)
    cache.append(key[:, :, :490], value[:, :, :490])
    np.testing.assert_array_equal(cache.keys, key[:, :, 482:490])
    with pytest.raises(ValueError, match=r"^query: 490 rows of sequence 0, but the ring has dropped .* extend"):
        cache.attend(query[:, :, :490])
    output = cache.extend(query[:, :, 490:], key[:, :, 490:], value[:, :, 490:])
    close(output, whole((query, key, value), window_size=(7, 0))[:, :, 490:])


@pytest.mark.parametrize("chunks", [[5, 3, 12, 1], [60, 200, 1, 4], [2, 100]])
def test_weights_of_a_ring(chunks: list[int]) -> None:
    """Columns are the keys visible to the queries of the step: up to ``capacity - 1`` before them, and their own."""
    given, capacity = arrays(length=sum(chunks)), 6
    cache = make(capacity=capacity, ring=True)
    _, expected, expected_lse = hw.scaled_dot_product_attention(
        *given, is_causal=True, window_size=(capacity - 1, 0), return_lse=True
    )
    for rows in steps(chunks):
        parts = [a[:, :, rows] for a in given]
        _, weights, lse = cache.extend(*parts, need_weights=True, return_lse=True)
        close(weights, expected[:, :, rows, max(0, rows.start - capacity + 1) : rows.stop])
        close(lse, expected_lse[:, :, rows])


def test_rows_of_a_ring_move_rarely() -> None:
    x = np.ones((1, 1, 1, 4), np.float32)
    for capacity, positions in ((2, 16), (800, 100)):
        cache, ends = hw.KVCache(1, 1, capacity, head_dim=4, ring=True), []
        for _ in range(3000):
            cache.append(x, x)
            ends.append(cache.keys.__array_interface__["data"][0] + cache.keys.nbytes)
        assert 2 < np.count_nonzero(np.diff(ends) < 0) <= 3000 / positions


def test_ring_sequences_that_become_equally_long() -> None:
    """Equally long sequences at different places in memory: keys are right, and from the next step on a view again."""
    _, key, value = arrays(length=100)
    cache = make(capacity=9, ring=True)
    for rows in steps([7, 30, 20, 10]):
        cache.append(key[:, :, rows], value[:, :, rows], lengths=[rows.stop - rows.start, 0])
    for rows in steps([25, 25, 17]):
        cache.append(key[:, :, rows], value[:, :, rows], lengths=[0, rows.stop - rows.start])
    assert not np.shares_memory(cache.keys, cache.entry(0)[0])
    np.testing.assert_array_equal(cache.keys, key[:, :, 58:67])
    assert not cache.keys.flags.writeable
    cache.append(key[:, :, 67:68], value[:, :, 67:68])
    assert np.shares_memory(cache.keys, cache.entry(0)[0])
    np.testing.assert_array_equal(cache.keys, key[:, :, 59:68])
