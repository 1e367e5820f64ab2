"""Attention to a cache without causality, and values that are columns of the keys."""

from __future__ import annotations

import numpy as np
import pytest

import headwise as hw
from cache.sequences import DIM, KV_HEADS, LENGTH, arrays, close, make, whole
from support import dtype_named, normal

pytestmark = pytest.mark.above_operations


@pytest.mark.parametrize("queries", [1, 5, LENGTH, 90])
def test_cross_attention(queries: int) -> None:
    """There may be more queries than keys; the last query has the position of the last key."""
    _, key, value = arrays()
    query = arrays(length=queries)[0]
    cache = make()
    cache.append(key, value)
    close(cache.attend(query, is_causal=False), hw.flash_attention(query, key, value))
    expected = hw.scaled_dot_product_attention(
        query, key, value, causal_alignment="lower_right", window_size=(20, 3), return_lse=True
    )
    result = cache.attend(query, is_causal=False, window_size=(20, 3), need_weights=True, return_lse=True)
    for ours, theirs in zip(result, expected, strict=True):
        close(ours, theirs)


@pytest.mark.parametrize("lengths", [[0, 0], [0, 3]])
def test_no_keys(lengths: list[int]) -> None:
    query, key, value = arrays()
    cache, sinks = make(), np.array([0.5, -1.0, 2.0, 0.0])
    cache.append(key[:, :, :3], value[:, :, :3], lengths=lengths)
    output, weights, lse = cache.attend(query, is_causal=False, sinks=sinks, need_weights=True, return_lse=True)
    assert not output[0].any() and not weights[0].any() and weights.shape[3] == max(lengths)
    np.testing.assert_allclose(lse[0], np.broadcast_to(sinks[:, np.newaxis], lse[0].shape), rtol=1e-6)
    assert not cache.attend(query, is_causal=False)[0].any()


def test_without_causality_sequences_of_different_lengths() -> None:
    query, key, value = arrays()
    cache, lengths, counts = make(), [LENGTH, 20], [9, 30]
    cache.append(key, value, lengths=lengths)
    query = query[:, :, :30]
    mask = normal((2, 1, 30, LENGTH)) > 0
    for keywords in ({}, {"mask": mask}, {"window_size": (30, 2)}):
        output = cache.attend(query, is_causal=False, lengths=counts, **keywords)
        for i, (length, count) in enumerate(zip(lengths, counts, strict=True)):
            own = dict(keywords, mask=mask[i : i + 1, :, :count, :length]) if "mask" in keywords else keywords
            part = query[i : i + 1, :, :count], key[i : i + 1, :, :length], value[i : i + 1, :, :length]
            close(output[i : i + 1, :, :count], hw.flash_attention(*part, causal_alignment="lower_right", **own))
            assert not output[i, :, count:].any()
    with pytest.raises(ValueError, match=r"^query: 30 rows, expected at most the length 20 of sequence 1"):
        cache.attend(query, lengths=counts)


@pytest.mark.parametrize("first", [0, 3])
def test_new_rows_of_a_ring_that_see_each_other(first: int) -> None:
    """A block of new positions sees itself in both directions, and the ring as before it."""
    given, capacity = arrays(), 12
    cache = make(capacity=capacity, ring=True, keep_first=first)
    cache.extend(*(a[:, :, :40] for a in given))
    output = cache.extend(*(a[:, :, 40:47] for a in given), is_causal=False)
    query, key = np.mgrid[40:47, :47]
    mask = (key < first) | (key > query - (capacity - first))
    close(output, hw.flash_attention(given[0][:, :, 40:47], *(a[:, :, :47] for a in given[1:]), mask))


@pytest.mark.parametrize("dtype", ["float32", "float64", "float16", "bfloat16"])
@pytest.mark.parametrize("ring", [False, True])
@pytest.mark.parametrize("columns", [(0, DIM), (0, 7), (5, 12), (3, 4)])
def test_values_that_are_columns_of_keys(columns: tuple[int, int], ring: bool, dtype: str) -> None:
    query, key, _ = arrays(dtype)
    cache = hw.KVCache(
        2, KV_HEADS, 20 if ring else LENGTH, DIM, dtype=dtype_named(dtype), ring=ring, value_from_key=columns
    )
    value = key[..., slice(*columns)]
    given = (query, key, value)
    size = (cache.capacity - 1, 0)
    outputs = [
        cache.extend(query[:, :, rows], key[:, :, rows]) for rows in (slice(0, 30), slice(30, 52), slice(52, 53))
    ]
    close(np.concatenate(outputs, axis=2), whole(given, window_size=size))
    assert cache.value_dim == columns[1] - columns[0]
    assert cache.nbytes == cache._rows.keys.nbytes and np.shares_memory(cache.keys, cache.values)
    ragged = cache.extend(query[:, :, :2], key[:, :, :2], lengths=[2, 0]) if ring else None
    assert ragged is None or ragged.shape == (2, 4, 2, cache.value_dim)
    chosen = cache.select([1, 1, 0])
    chosen.reorder([0, 2, 1])
    np.testing.assert_array_equal(chosen.entry(1)[1], cache.entry(0)[1])


def test_bad_columns() -> None:
    sizes = {"batch_size": 1, "num_kv_heads": 1, "capacity": 4, "head_dim": 6}
    for columns, error, message in [
        ((2, 2), ValueError, r"value_from_key: \(2, 2\), expected start < stop"),
        ((0, 7), ValueError, "value_from_key: 7, expected at most 6"),
        ((-1, 3), ValueError, "value_from_key: -1, expected at least 0"),
        (3, TypeError, r"value_from_key: 3, expected a pair \(start, stop\)"),
        ((0, 1.0), TypeError, "value_from_key: 1.0"),
    ]:
        with pytest.raises(error, match=f"^{message}"):
            hw.KVCache(**sizes, value_from_key=columns)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"^value_dim: 6, expected 4, the columns of value_from_key"):
        hw.KVCache(**sizes, value_dim=6, value_from_key=(0, 4))
    cache, x = hw.KVCache(**sizes, value_from_key=(0, 4)), normal((1, 1, 2, 6))
    with pytest.raises(ValueError, match=r"^value: given, expected None: values are columns 0 to 3 of key"):
        cache.append(x, x)
    assert len(cache) == 0
    with pytest.raises(TypeError, match=r"^value: None"):
        hw.KVCache(**sizes).append(x)


def test_latent_attention() -> None:
    """DeepSeek-V2's: one key head of a latent and rotary part; the latent part is the value of all query heads."""
    latent, rotary, heads = 32, 8, 6
    query, key = normal((1, heads, 40, latent + rotary)), normal((1, 1, 40, latent + rotary), 1)
    cache = hw.KVCache(1, 1, 64, latent + rotary, value_from_key=(0, latent))
    outputs = [cache.extend(query[:, :, i : i + 1], key[:, :, i : i + 1]) for i in range(40)]
    close(np.concatenate(outputs, axis=2), hw.flash_attention(query, key, key[..., :latent], is_causal=True))
    assert cache.nbytes == 64 * (latent + rotary) * 4
