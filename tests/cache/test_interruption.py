"""An interrupted call leaves a cache as it was, or as the whole call would have."""

from __future__ import annotations

import copy
import zlib
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

import headwise as hw
from cache.sequences import BATCH, DIM, KV_HEADS, VALUE_DIM, arrays
from interruptions import interrupted_calls

pytestmark = pytest.mark.above_operations

QUERY, KEY, VALUE = arrays()

Change = Callable[[hw.KVCache], Any]


def part(start: int, stop: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    return QUERY[:, :, start:stop], KEY[:, :, start:stop], VALUE[:, :, start:stop]


def plain(*lengths: int) -> hw.KVCache:
    cache = hw.KVCache(BATCH, KV_HEADS, 40, DIM, value_dim=VALUE_DIM)
    cache.append(*part(0, 20)[1:], lengths=lengths)
    return cache


def ring(*lengths: int) -> hw.KVCache:
    """With 50 slots, of which the first 48 have been filled where the lengths are 20."""
    cache = hw.KVCache(BATCH, KV_HEADS, 18, DIM, value_dim=VALUE_DIM, ring=True)
    cache.append(*part(20, 48)[1:])
    cache.append(*part(0, 20)[1:], lengths=lengths)
    return cache


def first_rows(*lengths: int) -> hw.KVCache:
    """A ring like this that keeps three first rows, and has dropped rows behind them."""
    cache = hw.KVCache(BATCH, KV_HEADS, 18, DIM, value_dim=VALUE_DIM, ring=True, keep_first=3)
    cache.append(*part(20, 48)[1:])
    cache.append(*part(0, 20)[1:], lengths=lengths)
    return cache


def columns() -> hw.KVCache:
    cache = hw.KVCache(BATCH, KV_HEADS, 40, DIM, value_from_key=(2, 9))
    cache.append(KEY[:, :, :20])
    return cache


def stored(dtype: str) -> hw.KVCache:
    cache = hw.KVCache(BATCH, KV_HEADS, 18, DIM, value_dim=VALUE_DIM, dtype=dtype, ring=True)
    cache.append(*part(0, 48)[1:])
    return cache


def layer_step(cache: hw.KVCache) -> None:
    layer = hw.MultiHeadAttention(DIM * 4, 4, num_kv_heads=KV_HEADS, rng=0, dtype=np.float32)
    layer(np.ones((BATCH, 3, DIM * 4), np.float32), cache=cache)


def square(cache: hw.KVCache) -> hw.KVCache:
    """A cache like this one with value_dim = head_dim, as layers have it."""
    same = hw.KVCache(BATCH, KV_HEADS, cache.capacity, DIM, ring=cache.ring)
    same.append(KEY[:, :, :20], KEY[:, :, :20])
    return same


CHANGES: dict[str, tuple[Callable[[], hw.KVCache], Change]] = {
    "append": (lambda: plain(20, 20), lambda cache: cache.append(*part(20, 25)[1:])),
    "append to lengths": (lambda: plain(20, 7), lambda cache: cache.append(*part(20, 25)[1:], lengths=[2, 5])),
    "extend": (lambda: plain(20, 20), lambda cache: cache.extend(*part(20, 25))),
    "extend lengths": (lambda: plain(20, 7), lambda cache: cache.extend(*part(20, 25), lengths=[2, 5])),
    "truncate": (lambda: plain(20, 7), lambda cache: cache.truncate([11, 3])),
    "reset": (lambda: plain(20, 7), lambda cache: cache.reset()),
    "reorder": (lambda: plain(20, 7), lambda cache: cache.reorder([1, 0])),
    "a layer's step": (lambda: square(plain(20, 20)), layer_step),
    "ring: append": (lambda: ring(20, 20), lambda cache: cache.append(*part(20, 25)[1:])),
    "ring: append to lengths": (lambda: ring(20, 7), lambda cache: cache.append(*part(20, 25)[1:], lengths=[5, 3])),
    "ring: append that drops": (lambda: ring(20, 20), lambda cache: cache.append(*part(20, 45)[1:])),
    "ring: append of all slots": (lambda: ring(20, 20), lambda cache: cache.append(*part(0, 53)[1:])),
    "append at positions": (
        lambda: plain(20, 7),
        lambda cache: cache.append(*part(20, 25)[1:], lengths=[5, 3], positions=[[4, 20, 3, 9, 21], [7, 6, 8, 0, 0]]),
    ),
    "ring: append at positions": (
        lambda: ring(20, 20),
        lambda cache: cache.append(*part(20, 25)[1:], positions=[45, 48, 49, 47, 50]),
    ),
    "ring: extend": (lambda: ring(20, 20), lambda cache: cache.extend(*part(20, 25))),
    "ring: extend that drops": (lambda: ring(20, 12), lambda cache: cache.extend(*part(20, 45))),
    "ring: truncate": (lambda: ring(20, 20), lambda cache: cache.truncate([45, 44])),
    "ring: reorder": (lambda: ring(20, 7), lambda cache: cache.reorder([1, 0])),
    "first rows: append that drops": (lambda: first_rows(20, 20), lambda cache: cache.append(*part(20, 45)[1:])),
    "first rows: extend": (lambda: first_rows(20, 7), lambda cache: cache.extend(*part(20, 25), lengths=[5, 3])),
    "first rows: extend that drops": (lambda: first_rows(20, 12), lambda cache: cache.extend(*part(20, 45))),
    "columns: extend": (columns, lambda cache: cache.extend(*part(20, 25)[:2])),
    "int8: append": (lambda: stored("int8"), lambda cache: cache.append(*part(20, 45)[1:])),
    "int8: extend": (lambda: stored("int8"), lambda cache: cache.extend(*part(20, 25), lengths=[5, 3])),
    "int8: reorder": (lambda: stored("int8"), lambda cache: cache.reorder([1, 0])),
    "float16: extend": (lambda: stored("float16"), lambda cache: cache.extend(*part(20, 45))),
    "ring: a layer's step": (lambda: square(ring(20, 20)), layer_step),
}


def state(cache: hw.KVCache) -> tuple[Any, ...]:
    return (*cache.lengths.tolist(), *(zlib.crc32(a.tobytes()) for i in range(BATCH) for a in cache.entry(i)))


@pytest.mark.parametrize("name", CHANGES)
def test_interrupted_changes(name: str) -> None:
    make, change = CHANGES[name]
    start = make()
    before, whole = state(start), copy.deepcopy(start)
    change(whole)
    after = state(whole)
    assert before != after
    seen = set()
    for cache, interrupted in interrupted_calls(lambda: copy.deepcopy(start), change):
        assert state(cache) in ((before, after) if interrupted else (after,))
        seen.add(interrupted)
        if state(cache) == before:
            change(cache)
            assert state(cache) == after
    assert seen == {False, True}
