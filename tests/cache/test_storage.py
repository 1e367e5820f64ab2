"""Caches that store keys and values in float16, bfloat16 or int8 beside float32 queries."""

from __future__ import annotations

import copy
import pickle
from typing import Any

import numpy as np
import pytest

import headwise as hw
import oracle
from cache.sequences import CHUNKS, DIM, KEYWORDS, KV_HEADS, LENGTH, Arrays, arrays, close, make, split, steps, whole
from implementations import PROFILE
from support import dtype_named, normal

TYPES = ["float16", "bfloat16", "int8"]

# The largest error and the root mean square of the errors, relative to the largest output, for queries, keys and values
# of unit variance; the documentation states them.
BOUNDS = {"float16": (1e-3, 2e-4), "bfloat16": (8e-3, 1.5e-3), "int8": (1e-2, 2e-3)}


def stored(dtype: str, **kind: Any) -> hw.KVCache:
    cache = hw.KVCache(
        2, KV_HEADS, kind.pop("capacity", LENGTH), DIM,
        value_dim=7, dtype=dtype if dtype == "int8" else dtype_named(dtype), **kind,
    )  # fmt: skip
    for memory in cache._rows.arrays:
        memory.fill(99 if memory.dtype.kind in "iu" else np.nan)  # masked for every query
    return cache


def rounded(given: Arrays, dtype: str) -> Arrays:
    """Keys and values as a cache of ``dtype`` gives them back, in float32."""
    cache = stored(dtype, capacity=given[1].shape[2])
    cache.append(*given[1:])
    return given[0], cache.keys.astype(np.float32), cache.values.astype(np.float32)


@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize("chunks", CHUNKS.values(), ids=CHUNKS)
def test_the_results_are_those_of_the_rounded_rows(chunks: list[int], dtype: str) -> None:
    given = arrays()
    cache = stored(dtype)
    output = split(cache, given, chunks)
    assert output.dtype == np.float32
    close(output, whole(rounded(given, dtype)))
    rows, widths = 2 * KV_HEADS * LENGTH, (DIM, 7)
    bytes_of_row = sum(width + -(-width // 8) + 4 if dtype == "int8" else 2 * width for width in widths)
    assert cache.nbytes == rows * bytes_of_row


@pytest.mark.parametrize("keywords", KEYWORDS.values(), ids=KEYWORDS)
@pytest.mark.parametrize("dtype", TYPES)
def test_keywords(dtype: str, keywords: dict[str, Any]) -> None:
    given, kind = arrays(), {"capacity": 12, "ring": True}
    like = make(capacity=12, ring=True)
    near = rounded(given, dtype)
    for chunks in (CHUNKS["uneven"], CHUNKS["prompt-and-tokens"]):
        like.reset()
        close(split(stored(dtype, **kind), given, chunks, **keywords), split(like, near, chunks, **keywords))


@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize("new", [1, 2, 7])
def test_sequences_of_different_lengths(new: int, dtype: str) -> None:
    """Weights and log-sum-exps, too; few queries are a decoding step, many a prompt."""
    given = arrays()
    near = rounded(given, dtype)
    cache, plain = stored(dtype), make()
    for one, (_, key, value) in ((cache, given), (plain, near)):
        one.append(key[:, :, :40], value[:, :, :40], lengths=[40, 11])
    rows = slice(40, 40 + new)
    for lengths in (None, [new, new - 1]):
        for weights in (False, True):
            ours, theirs = (
                copy.copy(one).extend(
                    *(a[:, :, rows] for a in source), lengths=lengths, need_weights=weights, return_lse=True
                )
                for one, source in ((cache, given), (plain, near))
            )
            for a, b in zip(ours, theirs, strict=True):
                assert (a is None) == (b is None)
                if a is not None:
                    close(a, b)


@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize("head_dim", [1, 3, 16, 31, 64, 128])
@pytest.mark.parametrize("group", [1, 2, 4, 7])
def test_every_width_and_group(group: int, head_dim: int, dtype: str) -> None:
    """Tails of vectors and of groups of rows, and several blocks of keys."""
    query, key, value = normal((1, 2 * group, 1, head_dim)), *normal((2, 1, 2, 300, head_dim), 1)
    cache = hw.KVCache(1, 2, 300, head_dim, dtype=dtype if dtype == "int8" else dtype_named(dtype))
    cache.append(key, value)
    expected = oracle.attention(query, cache.keys.astype(np.float64), cache.values.astype(np.float64)).output
    np.testing.assert_allclose(cache.attend(query), expected, rtol=0, atol=1e-6)


@pytest.mark.parametrize("length", [64, 1000] if PROFILE == "default" else [64, 1000, 4000])
@pytest.mark.parametrize("dtype", TYPES)
def test_error_bounds(dtype: str, length: int) -> None:
    for seed in range(2 if PROFILE == "default" else 20):
        key, value = normal((2, 1, 2, length, 64), seed)
        query = normal((1, 8, 3, 64), seed + 100)
        cache = hw.KVCache(1, 2, length, 64, dtype=dtype if dtype == "int8" else dtype_named(dtype))
        cache.append(key, value)
        exact = oracle.attention(query, key, value, is_causal=True, causal_alignment="lower_right").output
        error = (cache.attend(query) - exact) / np.abs(exact).max()
        largest, mean = BOUNDS[dtype]
        assert np.abs(error).max() < largest and np.sqrt(np.square(error).mean()) < mean, f"seed {seed}"


@pytest.mark.parametrize("new", [1, 20])
@pytest.mark.parametrize("dtype", TYPES)
def test_what_is_masked_has_no_influence(dtype: str, new: int) -> None:
    query, key, value = arrays()
    key[:, :, 3:9], value[:, :, 20:25, 1] = np.nan, np.inf
    mask = np.ones((1, LENGTH), bool)
    mask[:, 3:9] = mask[:, 20:25] = False
    cache = stored(dtype)
    cache.append(key, value)
    output = cache.attend(query[:, :, -new:], mask=mask)
    kept = np.flatnonzero(mask)
    near = rounded((query, np.nan_to_num(key), np.nan_to_num(value, posinf=0)), dtype)
    part = np.tri(new, LENGTH, LENGTH - new, bool)[:, kept]
    close(output, hw.flash_attention(query[:, :, -new:], near[1][:, :, kept], near[2][:, :, kept], part))
    assert np.isnan(cache.attend(query[:, :, -new:])[..., -1, :]).all()  # a kept NaN shows


@pytest.mark.parametrize("new", [1, 20])
@pytest.mark.parametrize("dtype", ["bfloat16", "int8"])
def test_means_of_values_near_the_largest_number(dtype: str, new: int) -> None:
    query, key, value = arrays()
    value[...] = 3.3e38
    cache = stored(dtype)
    cache.append(key, value)
    np.testing.assert_allclose(cache.attend(query[:, :, -new:]), 3.3e38, rtol=1e-2)


@pytest.mark.single_implementation
def test_int8_rows() -> None:
    """Symmetric, nine bits with a factor for each row and head: the error is at most half a unit; zeros stay zeros."""
    key, value = normal((2, 2, KV_HEADS, LENGTH, DIM)) * np.float32([1, 1e-30])[:, None, None, None, None]
    key[0, 0, 0], value[1, 1, 3] = 0, 1e-45
    cache = hw.KVCache(2, KV_HEADS, LENGTH, DIM, dtype="int8")
    cache.append(key, value)
    for given, read in ((key, cache.keys), (value, cache.values)):
        unit = np.abs(given).max(axis=-1, keepdims=True) / 255
        assert read.dtype == np.float32 and not read.flags.writeable
        assert (np.abs(read - given) <= 0.5001 * unit + 2e-45).all()
    assert not cache.keys[0, 0, 0].any() and cache.dtype == np.int8
    np.testing.assert_array_equal(cache.entry(1)[0], cache.keys[1])


@pytest.mark.parametrize("dtype", TYPES)
def test_forks_and_pickles(dtype: str) -> None:
    given, cache = arrays(), stored(dtype, capacity=10, ring=True, keep_first=2)
    split(cache, tuple(a[:, :, :40] for a in given), [30, 10])  # type: ignore[arg-type]
    copies = [cache.copy(), pickle.loads(pickle.dumps(cache)), copy.deepcopy(cache)]
    swapped = cache.select([1, 0])
    more = [a[:, :, 40:] for a in given]
    expected = cache.extend(*more)
    for one in copies:
        np.testing.assert_array_equal(one.extend(*more), expected)
    np.testing.assert_allclose(swapped.extend(*(a[::-1] for a in more)), expected[::-1], rtol=0, atol=1e-6)


@pytest.mark.parametrize("columns", [(3, 9), (8, 11), (0, DIM)])
@pytest.mark.parametrize("dtype", TYPES)
def test_values_that_are_columns(dtype: str, columns: tuple[int, int]) -> None:
    query, key, _ = arrays()
    made = dtype if dtype == "int8" else dtype_named(dtype)
    cache = hw.KVCache(2, KV_HEADS, LENGTH, DIM, dtype=made, value_from_key=columns)
    outputs = [cache.extend(query[:, :, rows], key[:, :, rows]) for rows in steps([40, 12, 1])]
    near = cache.keys.astype(np.float32)
    close(np.concatenate(outputs, axis=2), whole((query, near, near[..., slice(*columns)])))
    np.testing.assert_array_equal(cache.values, cache.keys[..., slice(*columns)])


@pytest.mark.parametrize(
    ("dtype", "given", "message"),
    [
        ("int8", "float64", "dtype float64, expected float32, for a cache of int8"),
        ("int8", "float16", "dtype float16, expected float32, for a cache of int8"),
        ("int8", "int8", "dtype int8, expected float32, for a cache of int8"),
        ("float16", "float64", "dtype float64, expected float16 or float32, for a cache of float16"),
        ("bfloat16", "float16", "dtype float16, expected bfloat16 or float32, for a cache of bfloat16"),
        ("float32", "float16", "dtype float16, expected float32, the dtype of the cache"),
        ("float64", "float32", "dtype float32, expected float64, the dtype of the cache"),
    ],
)
def test_other_activations_are_refused(dtype: str, given: str, message: str) -> None:
    cache, x = stored(dtype), normal((2, KV_HEADS, 1, DIM)).astype(given)
    value = normal((2, KV_HEADS, 1, 7)).astype(given)
    for name, call in (
        ("query", lambda: cache.attend(x)),
        ("key", lambda: cache.append(x, value)),
        ("query", lambda: cache.extend(x, x, value)),
    ):
        with pytest.raises(TypeError, match=f"^{name}: {message}"):
            call()
    assert len(cache) == 0


def test_queries_in_the_stored_type() -> None:
    """Queries of float16 get outputs of float16, beside keys of either type."""
    query, key, value = arrays()
    cache = stored("float16")
    cache.append(key, value.astype(np.float16))
    assert cache.attend(query[:, :, -1:].astype(np.float16)).dtype == np.float16
    assert cache.attend(query[:, :, -1:]).dtype == np.float32


@pytest.mark.parametrize("dtype", TYPES)
def test_a_layer(dtype: str) -> None:
    layer = hw.CausalAttention(32, 4, num_kv_heads=2, rng=0, dtype=np.float32)
    x = normal((2, 30, 32))
    cache = layer.make_cache(2, 30, dtype=dtype if dtype == "int8" else dtype_named(dtype))
    parts = [layer(x[:, rows], cache=cache)[0] for rows in steps([20, *[1] * 10])]
    expected = layer(x)[0]
    error = np.abs(np.concatenate(parts, axis=1) - expected).max() / np.abs(expected).max()
    assert 0 < error < 2 * BOUNDS[dtype][0]
