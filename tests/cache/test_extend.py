"""KVCache.extend and attend: a sequence split into several calls has the results of one call over all of it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import headwise as hw
import oracle
from cache.sequences import (
    CHUNKS,
    DIM,
    HEADS,
    KEYWORDS,
    VALUE_DIM,
    Arrays,
    arrays,
    close,
    make,
    of_step,
    split,
    steps,
    whole,
)
from support import assert_close, normal

pytestmark = pytest.mark.above_operations


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
            name: (m[one] if m.ndim == 4 else m)[..., :n, : n if name in ("mask", "bias") else None]
            for name, m in keywords.items()
            if name in ("mask", "bias", "relative_bias")
        }
        wanted = hw.scaled_dot_product_attention(
            *(a[one, :, :n] for a in given), is_causal=True, return_lse=True, **keywords | masks
        )
        for got, right in zip((output, weights[..., :n], lse), wanted, strict=True):
            close(got[one, :, :n], right)
        expected = whole([a[one, :, :n] for a in given], **keywords | masks)
        if "relative_values" in keywords:  # a cache sums weights by distances, attention derives the sums from lse
            close(again[one, :, :n], expected)
        else:
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
