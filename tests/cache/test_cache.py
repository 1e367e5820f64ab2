"""The cache of keys and values: a sequence split into several calls has the results of one call over all of it."""

from __future__ import annotations

import copy
import pickle
import tracemalloc
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import headwise as hw
import oracle
from support import LAYOUTS, assert_close, bf16_split_atol, dtype_named, normal

BATCH, HEADS, KV_HEADS, LENGTH, DIM, VALUE_DIM = 2, 4, 2, 53, 12, 7
pytestmark = pytest.mark.above_operations

KEYWORDS: dict[str, dict[str, Any]] = {
    "plain": {},
    "scale": {"scale": 0.4},
    "window": {"window_size": 9},
    "window-left": {"window_size": (20, -1)},
    "softcap": {"softcap": 1.3},
    "alibi": {"alibi_slopes": np.array([0.5, 0.25, 0.125, 1.5])},
    "sinks": {"sinks": np.array([0.5, -np.inf, 4.0, -1.0])},
    "bias": {"bias": normal((HEADS, LENGTH, LENGTH))},
    "keep-mask": {"mask": normal((BATCH, 1, LENGTH, LENGTH)) > -0.5},
    "float-mask": {"mask": normal((LENGTH, LENGTH))},
}
KEYWORDS["all"] = {name: value for these in KEYWORDS.values() for name, value in these.items() if name != "mask"}
KEYWORDS["all"]["mask"] = KEYWORDS["keep-mask"]["mask"]
CHUNKS = {
    "once": [LENGTH],
    "two": [30, 23],
    "prompt-and-tokens": [40, *[1] * 13],
    "tokens": [1] * LENGTH,
    "uneven": [1, 9, 0, 20, 3, 17, 3],
}
RINGS = [1, 2, 9, 40, 60]
TOLERANCE = {"float32": 1e-6, "float64": 1e-14, "float16": 1e-3, "bfloat16": 1e-2}

Arrays = tuple[np.ndarray, np.ndarray, np.ndarray]


def arrays(dtype: str = "float32", length: int = LENGTH, batch: int = BATCH, heads: int = HEADS) -> Arrays:
    query, key = normal((batch, heads, length, DIM), 1), normal((batch, KV_HEADS, length, DIM), 2)
    value = normal((batch, KV_HEADS, length, VALUE_DIM), 3)
    return tuple(a.astype(dtype_named(dtype)) for a in (query, key, value))  # type: ignore[return-value]


def make(dtype: str = "float32", capacity: int = LENGTH, batch: int = BATCH, ring: bool = False) -> hw.KVCache:
    cache = hw.KVCache(batch, KV_HEADS, capacity, DIM, value_dim=VALUE_DIM, dtype=dtype_named(dtype), ring=ring)
    for memory in (cache._rows.keys, cache._rows.values):
        memory.fill(np.nan)  # masked for every query
    return cache


def steps(chunks: Sequence[int]) -> Iterator[slice]:
    start = 0
    for chunk in chunks:
        yield slice(start, start + chunk)
        start += chunk


def of_step(keywords: dict[str, Any], rows: slice, columns: slice) -> dict[str, Any]:
    """The part of a mask or bias over the whole sequence that belongs to the scores of one step."""
    return {name: value[..., rows, columns] if name in ("mask", "bias") else value for name, value in keywords.items()}


def split(cache: hw.KVCache, given: Arrays, chunks: Sequence[int], **keywords: Any) -> np.ndarray:
    """The outputs of all steps, concatenated."""
    outputs = []
    for rows in steps(chunks):
        first = max(0, rows.start - cache.capacity + 1) if cache.ring else 0
        parts = (a[:, :, rows] for a in given)
        outputs.append(cache.extend(*parts, **of_step(keywords, rows, slice(first, rows.stop))))
    return np.concatenate(outputs, axis=2)


def whole(given: Arrays, **keywords: Any) -> np.ndarray:
    return hw.flash_attention(*given, is_causal=True, **keywords)


def close(actual: np.ndarray, expected: np.ndarray) -> None:
    tolerance = TOLERANCE[actual.dtype.name]
    more = bf16_split_atol(actual.dtype.name) * 2
    assert actual.dtype == expected.dtype
    np.testing.assert_allclose(oracle.double(actual), oracle.double(expected), rtol=tolerance, atol=tolerance + more)


# --- one call or many ---


@pytest.mark.parametrize("keywords", KEYWORDS.values(), ids=KEYWORDS)
@pytest.mark.parametrize("chunks", CHUNKS.values(), ids=CHUNKS)
def test_chunks_equal_one_call(chunks: list[int], keywords: dict[str, Any]) -> None:
    given, cache = arrays(), make()
    close(split(cache, given, chunks, **keywords), whole(given, **keywords))
    np.testing.assert_array_equal(cache.keys, given[1])
    np.testing.assert_array_equal(cache.values, given[2])


@pytest.mark.parametrize("dtype", ["float64", "float16", "bfloat16"])
@pytest.mark.parametrize("chunks", CHUNKS.values(), ids=CHUNKS)
def test_dtypes(dtype: str, chunks: list[int]) -> None:
    given, cache = arrays(dtype), make(dtype)
    close(split(cache, given, chunks), whole(given))
    close(split(make(dtype, 9, ring=True), given, chunks), whole(given, window_size=(8, 0)))
    assert cache.keys.dtype == cache.values.dtype == given[0].dtype == cache.dtype


@pytest.mark.parametrize("heads", [2, 8])
def test_heads(heads: int) -> None:
    given = arrays(heads=heads)
    close(split(make(), given, CHUNKS["uneven"]), whole(given))


def test_against_the_oracle() -> None:
    given = arrays("float64")
    keywords = {"alibi_slopes": np.array([0.5, 0.25, 0.125, 1.5]), "sinks": np.ones(HEADS), "softcap": 2.0}
    expected = oracle.attention(*given, is_causal=True, window_size=(8, 0), **keywords)
    for chunks in CHUNKS.values():
        assert_close(split(make("float64", 9, ring=True), given, chunks, **keywords), expected.output)
        assert_close(split(make("float64"), given, chunks, window_size=(8, 0), **keywords), expected.output)


def test_the_same_call_gives_the_same_bits() -> None:
    """A single call through the cache has the bits of a single call of attention."""
    query, key, value = arrays()
    cache = make(capacity=100)
    np.testing.assert_array_equal(cache.extend(query, key, value), whole((query, key, value)))
    last = query[:, :, -5:]
    expected = hw.scaled_dot_product_attention(
        last, key, value, is_causal=True, causal_alignment="lower_right", return_lse=True
    )
    for got, wanted in zip(cache.attend(last, need_weights=True, return_lse=True), expected, strict=True):
        np.testing.assert_array_equal(got, wanted)


def test_append_and_attend_are_extend() -> None:
    given, apart, together = arrays(), make(capacity=9, ring=True), make(capacity=9, ring=True)
    for rows in steps([5, 17, 1, 20, 10]):
        query, key, value = (a[:, :, rows] for a in given)
        apart.append(key, value)
        np.testing.assert_array_equal(apart.attend(query), together.extend(query, key, value))


# --- rings ---


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


# --- lengths that differ ---


def one_by_one(cache: hw.KVCache, given: Arrays, counts: Sequence[int], **keywords: Any) -> None:
    """``extend`` with different lengths equals attention over the rows of each sequence alone; padding is NaN."""
    query, key, value = (a.copy() for a in given)
    new = query.shape[2]
    for i, count in enumerate(counts):
        for a in (query, key, value):
            a[i, :, count:] = np.nan
    output, weights, lse = cache.extend(
        query, key, value, lengths=counts, need_weights=True, return_lse=True, **keywords
    )
    again = cache.attend(query, lengths=counts, **keywords)  # without weights
    assert output.shape == again.shape == (*query.shape[:3], VALUE_DIM)
    assert weights.shape == (*query.shape[:3], max(counts))
    for i, n in enumerate(counts):
        one = slice(i, i + 1)
        masks = {
            name: (m[one] if m.ndim == 4 else m)[..., :n, :n]
            for name, m in keywords.items()
            if name in ("mask", "bias")
        }
        wanted = hw.scaled_dot_product_attention(
            *(a[one, :, :n] for a in given), is_causal=True, return_lse=True, **keywords | masks
        )
        for got, right in zip((output, weights[..., :n], lse), wanted, strict=True):
            close(got[one, :, :n], right)
        expected = whole([a[one, :, :n] for a in given], **keywords | masks)
        np.testing.assert_array_equal(again[one, :, :n], expected)
        assert not again[one, :, n:].any()
        assert not output[i, :, n:].any() and not weights[i, :, n:].any() and not weights[i, ..., n:].any()
        assert (lse[i, :, n:] == -np.inf).all()
    assert new == max(counts) or not output[:, :, max(counts) :].any()


@pytest.mark.parametrize("dtype", ["float32", "float64", "float16", "bfloat16"])
@pytest.mark.parametrize("counts", [[5, 3, 5], [0, 7, 1], [7, 7, 6], [0, 0, 1], [4, 4, 4]])
def test_lengths(counts: list[int], dtype: str) -> None:
    given = arrays(dtype, 7, batch=3)
    one_by_one(make(dtype, 20, batch=3), given, counts)


@pytest.mark.parametrize("keywords", KEYWORDS.values(), ids=KEYWORDS)
def test_lengths_with_every_keyword(keywords: dict[str, Any]) -> None:
    length = 33
    part = of_step(keywords, slice(0, length), slice(0, length))
    columns = {name: m[..., :21] if name in ("mask", "bias") else m for name, m in part.items()}
    one_by_one(make(), arrays(length=length), [21, 12], **columns)


def test_masks_broadcast_over_sequences() -> None:
    """Masks of one row, one column or one entry broadcast to the longest sequence."""
    given = arrays("float64", 6, batch=3)
    for mask in (normal((6, 1)), normal((1, 5)), normal((3, 1, 1, 5)) > 0, normal((3, 4, 6, 5)), np.ones((1, 1))):
        cache = make("float64", batch=3)
        output = cache.extend(*given, lengths=[5, 2, 0], mask=mask)
        spread = np.broadcast_to(mask, (3, 4, 6, 5))
        for i, n in enumerate([5, 2]):
            rows = [a[i : i + 1, :, :n] for a in given]
            close(output[i, :, :n], whole(rows, mask=spread[i, :, :n, :n])[0])


def test_key_padding_mask_covers_the_stored_keys() -> None:
    given, cache = arrays(length=6), make()
    output = cache.extend(*given, mask=hw.create_padding_mask([[1, 1, 1, 1, 1, 1], [0, 0, 1, 1, 1, 1]]))
    close(output[1, :, 2:], whole([a[1:, :, 2:] for a in given])[0])


@given(
    seed=st.integers(0, 2**32 - 1),
    capacity=st.sampled_from([None, 1, 2, 5, 30]),
    keywords=st.sampled_from(["plain", "window", "softcap", "alibi", "sinks"]),
)
@pytest.mark.usefixtures("implementation")
def test_sequences_are_independent(seed: int, capacity: int | None, keywords: str) -> None:
    """Random appends, truncations and reorderings: every sequence has the results of a call for it alone."""
    rng = np.random.default_rng(seed)
    batch, ring = 3, capacity is not None
    cache = make(capacity=capacity or 400, batch=batch, ring=ring)
    past: list[Arrays] = [arrays(length=0, batch=1) for _ in range(batch)]
    options = KEYWORDS[keywords]
    size = options.get("window_size", -1)
    left = size if not ring else capacity - 1 if size < 0 else min(size, capacity - 1)
    peak = 0
    for _ in range(8):
        new = int(rng.integers(0, rng.choice([3, 12, 70])))
        counts = rng.integers(0, new + 1, batch) if rng.random() < 0.7 else np.full(batch, new)
        step = tuple(normal((batch, h, new, d), int(rng.integers(1 << 30))) for h, d in ((4, DIM), (2, DIM), (2, 7)))
        output, weights, lse = cache.extend(*step, lengths=counts, need_weights=True, return_lse=True, **options)
        for i, count in enumerate(counts):
            rows = [b[i : i + 1, :, :count] for b in step]
            past[i] = tuple(np.concatenate(pair, axis=2) for pair in zip(past[i], rows, strict=True))  # type: ignore[assignment]
            wanted = hw.scaled_dot_product_attention(
                past[i][0][:, :, past[i][0].shape[2] - count :], *past[i][1:], return_lse=True,
                **options | {"is_causal": True, "causal_alignment": "lower_right", "window_size": (left, -1)},
            )  # fmt: skip
            seen = min(past[i][0].shape[2], capacity - 1 + count) if ring else past[i][0].shape[2]
            close(output[i, :, :count], wanted[0][0])
            close(weights[i, :, :count, :seen], wanted[1][0, ..., past[i][0].shape[2] - seen :])
            close(lse[i, :, :count], wanted[2][0])
            assert (output[i, :, count:] == 0).all() and (lse[i, :, count:] == -np.inf).all()
            assert (weights[i, :, count:] == 0).all() and (weights[i, :, :, seen:] == 0).all()
        peak = max(peak, len(cache))
        if rng.random() < 0.3:
            order = rng.integers(0, batch, batch)
            cache.reorder(order)
            past = [past[i] for i in order]
        if rng.random() < 0.4:
            first = max(0, peak - 16) if ring else 0  # the positions to which a ring can truncate
            kept = [int(rng.integers(min(first, n), n + 1)) for n in cache.lengths]
            if rng.random() < 0.3 and min(cache.lengths) >= first:
                kept = [int(rng.integers(first, min(cache.lengths) + 1))] * batch
            kept = [n if n >= first else now for n, now in zip(kept, cache.lengths.tolist(), strict=True)]
            cache.truncate(kept)
            past = [tuple(a[:, :, :n] for a in those) for those, n in zip(past, kept, strict=True)]  # type: ignore[misc]
        assert cache.lengths.tolist() == [p[0].shape[2] for p in past]
        for i in range(batch):
            keys, values = cache.entry(i)
            # Truncation may have removed all rows that a ring held before its last capacity - 1 positions.
            n = keys.shape[1]
            assert n >= min(len(past[i][1][0, 0]), (capacity or 400) - 1)
            np.testing.assert_array_equal(keys, past[i][1][0][:, past[i][1].shape[2] - n :])
            np.testing.assert_array_equal(values, past[i][2][0][:, past[i][2].shape[2] - n :])
        if len(set(cache.lengths.tolist())) == 1:
            rows = cache.keys.shape[2]
            for i in range(batch):
                np.testing.assert_array_equal(
                    cache.keys[i], cache.entry(i)[0][:, -rows:] if rows else cache.entry(i)[0]
                )


def test_attend_with_fewer_queries_than_rows() -> None:
    query, key, value = arrays()
    cache = make()
    cache.append(key, value, lengths=[30, 20])
    output = cache.attend(query[:, :, 28:30], lengths=[2, 0])
    close(output[0], whole((query[:1, :, :30], key[:1, :, :30], value[:1, :, :30]))[0, :, 28:])
    assert not output[1].any()


# --- positions, truncation, reordering ---


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


# --- inputs ---


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


# --- the object ---


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
