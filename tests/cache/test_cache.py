"""The cache of keys and values: a sequence split into several calls has the results of one call over all of it."""

from __future__ import annotations

import copy
import pickle
import tracemalloc
from collections.abc import Callable

import numpy as np
import pytest

import headwise as hw
from cache.sequences import BATCH, DIM, KV_HEADS, arrays, close, make, steps, whole
from support import LAYOUTS

pytestmark = pytest.mark.above_operations


def test_positions() -> None:
    _, key, value = arrays(length=5)
    cache = make()
    assert cache.positions(3).tolist() == [0, 1, 2]
    cache.append(key, value)
    assert cache.positions().tolist() == [5]
    assert cache.positions(0).shape == (0,)
    cache.append(key, value, lengths=[1, 3])
    assert cache.positions(2).tolist() == [[6, 7], [8, 9]]
    assert cache.positions(2).dtype == cache.lengths.dtype == np.int64
    ring = make(capacity=2, ring=True)
    ring.append(key, value)
    assert ring.positions(2).tolist() == [5, 6]


def test_rotary_embedding_at_cache_positions() -> None:
    """Rotation step by step equals rotation of the whole sequence, also for sequences of different lengths."""
    query, key, value = arrays()
    rope, cache = hw.RotaryPositionalEmbedding(DIM), make()
    expected = whole((rope(query), rope(key), value))
    cache.extend(*(rope(a[:, :, :9], cache.positions(9)) for a in (query, key)), value[:, :, :9], lengths=[9, 4])
    start = cache.lengths
    rows = np.stack([np.arange(n, n + 20) for n in start])
    parts = [np.take_along_axis(a, rows[:, np.newaxis, :, np.newaxis], axis=2) for a in (query, key, value)]
    where = cache.positions(20)
    output = cache.extend(rope(parts[0], where), rope(parts[1], where), parts[2])
    for i in range(BATCH):
        close(output[i], expected[i, :, rows[i]].swapaxes(0, 1))


@pytest.mark.parametrize("ring", [False, True])
def test_truncating_rejected_speculative_tokens(ring: bool) -> None:
    """Four tokens per step, of which some are rejected: the others have the results of a sequence without these."""
    rng = np.random.default_rng(0)
    given, capacity = arrays(length=300), 20 if ring else 400
    expected = whole(given, window_size=(capacity - 1, 0))
    cache = make(capacity=capacity, ring=ring)
    while len(cache) < 296:
        n = len(cache)
        guess = [a[:, :, n : n + 4] * np.where(np.arange(4) < 2, 1, 9)[:, np.newaxis] for a in given]
        right = int(rng.integers(1, 3))
        output = cache.extend(*(g.astype(np.float32) for g in guess))
        close(output[:, :, :right], expected[:, :, n : n + right])
        cache.truncate(n + right)
        assert len(cache) == n + right


def test_reset() -> None:
    given = arrays()
    for ring in (False, True):
        cache = make(capacity=60, ring=ring)
        first = cache.extend(*given)
        for _ in range(20 * ring):
            cache.extend(*(a[:, :, :7] for a in given))
        cache.reset()
        assert len(cache) == 0 and cache.keys.shape == (BATCH, KV_HEADS, 0, DIM)
        assert cache.entry(0)[0].shape == (KV_HEADS, 0, DIM)
        np.testing.assert_array_equal(cache.extend(*given), first)


@pytest.mark.parametrize("indices", [[0, 1, 2], [2, 0, 1], [1, 1, 1], [0, 0, 2], [2, 2, 1]])
@pytest.mark.parametrize("lengths", [[9, 9, 9], [9, 2, 5]])
@pytest.mark.parametrize("ring", [False, True])
def test_reorder(indices: list[int], lengths: list[int], ring: bool) -> None:
    _, key, value = arrays(length=9, batch=3)
    cache = make(capacity=9, batch=3, ring=ring)
    cache.append(key, value, lengths=lengths)
    cache.reorder(indices)
    assert cache.lengths.tolist() == [lengths[i] for i in indices]
    for place, i in enumerate(indices):
        for got, given_ in zip(cache.entry(place), (key, value), strict=True):
            np.testing.assert_array_equal(got, given_[i, :, : lengths[i]])
    cache.append(key, value) if ring else cache.truncate([0, 0, 0])  # sequences share nothing after it
    assert cache.lengths.tolist() == [lengths[i] + 9 if ring else 0 for i in indices]


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("lengths", [None, [3, 6]])
def test_layouts(layout: str, lengths: list[int] | None) -> None:
    given, lay = arrays(length=6), LAYOUTS[layout]
    expected = make().extend(*given, lengths=lengths)
    close(make().extend(*map(lay, given), lengths=lengths), expected)
    out = lay(np.full_like(expected, np.nan))
    if out.flags.writeable and out.flags.aligned and out.dtype.isnative:
        assert make().extend(*given, lengths=lengths, out=out) is out
        close(np.ascontiguousarray(out), expected)


def test_lists_and_empty_rows() -> None:
    cache = hw.KVCache(1, 1, capacity=2, head_dim=1, dtype="float64")
    assert cache.extend([[[[1.0]]]], [[[[1.0]]]], [[[[3.0]]]]).tolist() == [[[[3.0]]]]
    none = np.zeros((1, 1, 0, 1))
    assert cache.extend(none, none, none).shape == (1, 1, 0, 1)
    assert cache.lengths.tolist() == [1]
    fresh = hw.KVCache(1, 1, capacity=2, head_dim=1, dtype="float64")
    output, weights = fresh.extend(none, none, none, lengths=[0], need_weights=True)
    assert output.shape == (1, 1, 0, 1) and weights.shape == (1, 1, 0, 0)


def test_no_queries_for_sequences_of_different_lengths() -> None:
    query, key, value = arrays(length=5)
    cache, none = make(), (query[:, :, :0], key[:, :, :0], value[:, :, :0])
    cache.append(key, value, lengths=[5, 3])
    output, weights, lse = cache.attend(none[0], need_weights=True, return_lse=True)
    assert cache.attend(none[0]).shape == cache.extend(*none).shape == output.shape == (BATCH, 4, 0, 7)
    assert weights.shape == (BATCH, 4, 0, 5) and lse.shape == (BATCH, 4, 0)
    assert cache.lengths.tolist() == [5, 3]


@pytest.mark.parametrize("ring", [False, True])
def test_appending_the_own_rows_of_a_cache(ring: bool) -> None:
    """Views of a cache may be appended to it, also when its rows move to make room."""
    _, key, value = arrays(length=30)
    cache = make(capacity=300 if not ring else 30, ring=ring)
    cache.append(key, value)
    for _ in range(7):
        cache.append(cache.keys[:, :, -30:], cache.values[:, :, -30:])
        np.testing.assert_array_equal(cache.keys[:, :, -30:], key)
        np.testing.assert_array_equal(cache.values[:, :, -30:], value)


def test_keys_and_values_are_read_only_views() -> None:
    _, key, value = arrays(length=5)
    for ring in (False, True):
        cache = make(ring=ring)
        cache.append(key, value)
        for view in (cache.keys, cache.values, *cache.entry(1)):
            assert not view.flags.writeable and not view.flags.owndata
        assert np.shares_memory(cache.keys, cache.entry(0)[0])
        cache.lengths[0] = 7
        assert len(cache) == 5


@pytest.mark.parametrize("duplicate", [copy.copy, copy.deepcopy, lambda cache: pickle.loads(pickle.dumps(cache))])
@pytest.mark.parametrize("ring", [False, True])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_copies(duplicate: Callable[[hw.KVCache], hw.KVCache], ring: bool, dtype: str) -> None:
    query, key, value = arrays(dtype)
    cache = make(dtype, 30 if ring else 100, ring=ring)
    for rows in steps([20, 20]):
        cache.append(key[:, :, rows], value[:, :, rows], lengths=[20, 13])
    other = duplicate(cache)
    assert repr(other) == repr(cache) and other.nbytes == cache.nbytes
    more = [a[:, :, 40:] for a in (query, key, value)]
    expected = cache.extend(*more)
    assert other.lengths.tolist() == [40, 26]
    np.testing.assert_array_equal(other.extend(*more), expected)
    for i in range(BATCH):
        for one, two in zip(cache.entry(i), other.entry(i), strict=True):
            np.testing.assert_array_equal(one, two)
            assert not np.shares_memory(one, two)


def test_pickles_hold_stored_rows_only() -> None:
    cache = hw.KVCache(1, 1, capacity=100_000, head_dim=8)
    cache.append(*np.ones((2, 1, 1, 3, 8), np.float32))
    assert len(pickle.dumps(cache)) < 2000


def test_attributes_and_repr() -> None:
    cache = hw.KVCache(2, 3, 8, 4, value_dim=5)
    assert (cache.batch_size, cache.num_kv_heads, cache.capacity, cache.head_dim, cache.value_dim) == (2, 3, 8, 4, 5)
    assert cache.nbytes == 2 * 3 * 8 * (4 + 5) * 4
    assert len(cache) == 0 and cache
    assert (
        repr(cache) == "KVCache(batch_size=2, num_kv_heads=3, capacity=8, head_dim=4, value_dim=5, float32, length=0)"
    )
    cache.append(np.ones((2, 3, 2, 4), np.float32), np.ones((2, 3, 2, 5), np.float32), lengths=[1, 2])
    assert repr(cache).endswith("float32, lengths=1..2)") and len(cache) == 2
    assert "float64, ring, length=0" in repr(hw.KVCache(1, 1, 4, 4, dtype=np.float64, ring=True))
    assert hw.KVCache(1, 1, 4, 4, dtype=">f4").dtype == np.float32
    assert hw.KVCache(1, 1, 4096, 4, ring=True).nbytes == 2 * 5120 * 4 * 4


@pytest.mark.parametrize("ring", [False, True])
def test_appending_allocates_nothing(ring: bool) -> None:
    """Rows are written and moved in place; a step of attention allocates its output."""
    x, token = np.ones((1, 2, 10_000, 64), np.float32), np.ones((1, 2, 25, 64), np.float32)
    cache = hw.KVCache(1, 2, capacity=10_000 if ring else 20_000, head_dim=64, ring=ring)
    cache.append(x, x)
    tracemalloc.start()
    for _ in range(150):
        cache.append(token, token)
    _, peak = tracemalloc.get_traced_memory()
    cache.attend(token)
    _, peak_of_attention = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 100_000
    assert peak_of_attention < 2_000_000  # a few blocks of scores, less than the keys of a head
