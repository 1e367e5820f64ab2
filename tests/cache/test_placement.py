"""Rows and queries of a cache at explicit positions, against attention without a cache."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import headwise as hw
from cache.sequences import BATCH, DIM, HEADS, KEYWORDS, KV_HEADS, LENGTH, Arrays, arrays, close, make, of_step, whole
from cache.test_first_rows import visible
from support import dtype_named, normal

pytestmark = pytest.mark.above_operations

GIVEN = arrays()


def replaced(given: Arrays, positions: np.ndarray) -> Arrays:
    """``given`` with other keys and values at ``positions``, (batch, new)."""
    others = [normal(a.shape, 9 + n).astype(a.dtype) for n, a in enumerate(given[1:])]
    keys, values = (a.copy() for a in given[1:])
    for a, other in zip((keys, values), others, strict=True):
        for i, where in enumerate(positions):
            a[i][:, where] = other[i][:, where]
    return given[0], keys, values


def rows_at(a: np.ndarray, positions: np.ndarray) -> np.ndarray:
    return np.take_along_axis(a, positions[:, np.newaxis, :, np.newaxis], axis=2)


POSITIONS = {
    "latest": [[48, 49, 50, 51, 52]] * BATCH,
    "middle": [[7, 8, 9]] * BATCH,
    "apart": [[0, 30, 12, 52]] * BATCH,
    "of each sequence": [[40, 3, 20], [52, 51, 0]],
    "all": [list(range(LENGTH))] * BATCH,
}


@pytest.mark.parametrize("dtype", ["float32", "float64", "float16", "bfloat16"])
@pytest.mark.parametrize("positions", POSITIONS.values(), ids=POSITIONS)
def test_rows_are_replaced(positions: list[list[int]], dtype: str) -> None:
    where, given, cache = np.array(positions), arrays(dtype), make(dtype)
    now = replaced(given, where)
    cache.append(*given[1:])
    cache.append(*(rows_at(a, where) for a in now[1:]), positions=where)
    assert cache.lengths.tolist() == [LENGTH] * BATCH
    for stored, expected in zip((cache.keys, cache.values), now[1:], strict=True):
        np.testing.assert_array_equal(stored, expected)
    close(cache.attend(now[0]), whole(now))


def test_rows_in_any_order_are_rows_in_order() -> None:
    rng, cache = np.random.default_rng(0), make()
    start = 0
    for count in (1, 20, 7, 25):
        where = np.stack([start + rng.permutation(count) for _ in range(BATCH)])
        cache.append(*(rows_at(a, where) for a in GIVEN[1:]), positions=where)
        start += count
    for stored, expected in zip((cache.keys, cache.values), GIVEN[1:], strict=True):
        np.testing.assert_array_equal(stored, expected)
    close(cache.attend(GIVEN[0]), whole(GIVEN))


def test_replaced_and_new_rows_of_different_lengths() -> None:
    """Each sequence replaces its latest rows and adds others, as when tokens of a draft are corrected."""
    cache, lengths, new = make(), [20, 33], np.array([5, 3])
    cache.append(*(a[:, :, :40] for a in GIVEN[1:]), lengths=lengths)
    where = np.array(lengths)[:, np.newaxis] - 2 + np.arange(5)
    now = replaced(GIVEN, where)
    passed = np.where(np.arange(5) < new[:, np.newaxis], where, -99)
    cache.append(*(rows_at(a, where) for a in now[1:]), lengths=new, positions=passed)
    assert cache.lengths.tolist() == [23, 34]
    expected, queries = whole(now), rows_at(GIVEN[0], where)
    for output in (cache.attend(queries, lengths=new), cache.attend(queries, lengths=new, positions=passed)):
        for i, count in enumerate(new):
            close(output[i, :, :count], expected[i][:, where[i, :count]])
            assert not output[i, :, count:].any()


@pytest.mark.parametrize("keywords", KEYWORDS.values(), ids=KEYWORDS)
def test_queries_of_earlier_positions(keywords: dict[str, Any]) -> None:
    """The keys behind a query's position have no influence on it, and windows and ALiBi count from the position."""
    cache = make()
    cache.append(*GIVEN[1:])
    rows = slice(11, 19)
    passed = of_step(keywords, rows, slice(rows.stop))
    output = cache.attend(GIVEN[0][:, :, rows], positions=np.arange(rows.start, rows.stop), **passed)
    close(output, whole(GIVEN, **keywords)[:, :, rows])


def test_queries_of_other_positions_in_each_sequence() -> None:
    cache, where = make(), np.array([[0, 1, 2, 3], [30, 31, 32, 33]])
    cache.append(*GIVEN[1:])
    output, weights, lse = cache.attend(rows_at(GIVEN[0], where), positions=where, need_weights=True, return_lse=True)
    expected = hw.scaled_dot_product_attention(*GIVEN, is_causal=True, return_lse=True)
    assert weights.shape == (BATCH, HEADS, 4, 34)
    for i in range(BATCH):
        close(output[i], expected[0][i][:, where[i]])
        close(weights[i], expected[1][i][:, where[i], :34])
        close(lse[i], expected[2][i][:, where[i]])


@pytest.mark.parametrize("first", [0, 3])
@pytest.mark.parametrize("lengths", [[40, 40], [40, 33]], ids=["equal", "different"])
def test_rings(lengths: list[int], first: int) -> None:
    """Rows that a ring still has are replaced, also where rows are added that make it move and drop rows."""
    capacity = 9
    kept = visible(LENGTH, capacity, first)
    for new in (1, 4, 13, 20):
        cache = make(capacity=capacity, ring=True, keep_first=first)
        for start in range(0, 32, 4):
            cache.append(*(a[:, :, start : start + 4] for a in GIVEN[1:]))
        counts = [length - len(cache) for length in lengths]
        cache.append(*(a[:, :, len(cache) : len(cache) + max(counts)] for a in GIVEN[1:]), lengths=counts)
        older = np.r_[:first, -6:0]
        where = np.stack([np.r_[older[:first], length + older[first:], length : length + new] for length in lengths])
        where = np.minimum(where, LENGTH - 1)
        number = [int(np.sum(np.r_[length : length + new] < LENGTH)) + older.size for length in lengths]
        queries, *now = replaced(GIVEN, where)
        cache.append(*(rows_at(a, where) for a in now), lengths=number, positions=where)
        stop = [min(length + new, LENGTH) for length in lengths]
        assert cache.lengths.tolist() == stop
        expected = whole((queries, *now), mask=kept)
        for i, end in enumerate(stop):
            seen = np.flatnonzero(kept[end - 1, :end])
            np.testing.assert_array_equal(cache.entry(i)[0], now[0][i][:, seen])
        last = np.array(stop)[:, np.newaxis] - 1
        for output in (cache.attend(rows_at(queries, last)), cache.attend(rows_at(queries, last), positions=last)):
            close(output, rows_at(expected, last))


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "int8"])
def test_stored_in_fewer_bits(dtype: str) -> None:
    where = np.array([[50, 3, 4], [0, 1, 2]])
    now = replaced(GIVEN, where)
    once, twice = (_stored(dtype) for _ in range(2))
    once.append(*now[1:])
    twice.append(*GIVEN[1:])
    twice.append(*(rows_at(a, where) for a in now[1:]), positions=where)
    for expected, actual in zip((once.keys, once.values), (twice.keys, twice.values), strict=True):
        np.testing.assert_array_equal(actual, expected)


def _stored(dtype: str) -> hw.KVCache:
    stored_as = dtype if dtype == "int8" else dtype_named(dtype)
    return hw.KVCache(BATCH, KV_HEADS, LENGTH, DIM, value_dim=GIVEN[2].shape[3], dtype=stored_as)


def test_values_from_keys_and_rows_of_the_cache_itself() -> None:
    cache = hw.KVCache(BATCH, KV_HEADS, LENGTH, DIM, value_from_key=(2, 9))
    cache.append(GIVEN[1])
    cache.append(cache.keys[:, :, :20], positions=np.arange(20)[::-1])
    np.testing.assert_array_equal(cache.keys[:, :, :20], GIVEN[1][:, :, 19::-1])
    np.testing.assert_array_equal(cache.values, cache.keys[..., 2:9])


def test_rotary_positions() -> None:
    """Keys rotated by the positions that they are stored at: scores depend on the distance alone."""
    rope, cache = hw.RotaryPositionalEmbedding(DIM), make()
    query, key, value = GIVEN
    cache.append(rope(key), value)
    where = np.array([8, 21, 9])
    now = replaced(GIVEN, np.stack([where, where]))
    cache.append(rope(now[1][:, :, where], where), now[2][:, :, where], positions=where)
    output = cache.attend(rope(query[:, :, 20:25], np.arange(20, 25)), positions=np.arange(20, 25))
    close(output, whole((rope(query), rope(now[1]), now[2]))[:, :, 20:25])
