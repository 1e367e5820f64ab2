"""Means of values near the largest number: their sum overflows, their mean does not."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import headwise as hw
import oracle
from support import dtype_named, normal

Array = np.ndarray[Any, Any]

#: The largest numbers, and the relative error of a result.
LARGEST = {"float32": (np.finfo(np.float32).max, 4e-6), "float64": (np.finfo(np.float64).max, 1e-14)}
LARGEST["bfloat16"] = (3.3895314e38, 2.0**-6)
dtypes = pytest.mark.parametrize("dtype", LARGEST)

#: Query length, key length: decode, decode in chunks of keys, tiles of rows, blocks of keys.
SHAPES = [(1, 5), (2, 1500), (40, 5), (40, 700)]


def check(got: Array, expected: Array, dtype: str, keys: int = 100) -> None:
    largest, rtol = LARGEST[dtype]
    rtol *= max(1, keys / 100)  # of sums of many addends of one sign
    assert got.dtype == dtype_named(dtype) and np.isfinite(oracle.double(got)).all()
    np.testing.assert_allclose(oracle.double(got) / largest, expected / largest, rtol=rtol, atol=rtol)


@dtypes
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("part", [1.0, 0.9])
def test_mean_of_equal_values(shape: tuple[int, int], part: float, dtype: str) -> None:
    """Also of the largest number itself, beyond which no rounding leads."""
    kind, large = dtype_named(dtype), part * LARGEST[dtype][0]
    query, key = np.zeros((1, 2, shape[0], 8), kind), np.zeros((1, 1, shape[1], 8), kind)
    value = np.full((1, 1, shape[1], 20), large).astype(kind)
    output, weights = hw.scaled_dot_product_attention(query, key, value)
    check(output, np.full(output.shape, large), dtype, shape[1])
    np.testing.assert_allclose(oracle.double(weights), 1 / shape[1], rtol=4 * LARGEST[dtype][1])
    check(hw.flash_attention(query, key, -value), np.full(output.shape, -large), dtype, shape[1])


OPTIONS: dict[str, dict[str, Any]] = {
    "plain": {},
    "causal": {"is_causal": True, "causal_alignment": "lower_right"},
    "window": {"window_size": (3, 2)},
    "sinks": {"sinks": np.array([0.5, -1.0])},
    "softcap": {"softcap": 2.0},
    "alibi": {"alibi_slopes": np.array([0.1, 0.01])},
    "bias": {"bias": np.linspace(-2, 2, 90)},
    "mask": {"mask": np.arange(90) % 3 > 0},
}


@dtypes
@pytest.mark.parametrize("queries", [3, 50])
@pytest.mark.parametrize("option", OPTIONS)
def test_mean_of_large_values_of_both_signs(option: str, queries: int, dtype: str) -> None:
    kind = dtype_named(dtype)
    query, key = normal((1, 2, queries, 8)).astype(kind), normal((1, 1, 90, 8), 1).astype(kind)
    value = (LARGEST[dtype][0] * np.clip(normal((1, 1, 90, 20), 2, np.float64), -1, 1)).astype(kind)
    arrays = [oracle.wide(x) for x in (query, key, value)]
    expected = oracle.attention(*arrays, **OPTIONS[option]).output.astype(np.float64)
    check(hw.flash_attention(query, key, value, **OPTIONS[option]), expected, dtype)


@pytest.mark.parametrize("queries", [1, 40])
def test_dropout_overflows_where_its_mean_does(queries: int) -> None:
    query, key = np.zeros((1, 1, queries, 8), np.float32), np.zeros((1, 1, 64, 8), np.float32)
    value = np.full((1, 1, 64, 4), 3e38, np.float32)
    output = hw.flash_attention(query, key, value, dropout_rate=0.5, rng=0)
    half = hw.flash_attention(query, key, value / 4, dropout_rate=0.5, rng=0).astype(np.float64) * 4
    largest = np.finfo(np.float32).max
    np.testing.assert_allclose(output, np.where(half > largest, np.inf, half), rtol=1e-5)


@pytest.mark.parametrize("queries", [1, 40])
def test_masked_values_have_no_influence(queries: int) -> None:
    query, key = normal((1, 1, queries, 8)), normal((1, 1, 40, 8), 1)
    value, mask = np.full((1, 1, 40, 4), 3e38, np.float32), np.arange(40) % 4 > 0
    expected = hw.flash_attention(query, key, value, mask)
    assert np.isfinite(expected).all()
    for special in (np.nan, np.inf, -np.inf):
        value[:, :, ~mask] = key[:, :, ~mask] = special
        assert hw.flash_attention(query, key, value, mask).tobytes() == expected.tobytes()


@pytest.mark.parametrize("queries", [1, 40])
def test_values_that_are_not_finite_show(queries: int) -> None:
    query, key = np.zeros((1, 1, queries, 8), np.float32), np.zeros((1, 1, 40, 8), np.float32)
    value = np.full((1, 1, 40, 3), 3e38, np.float32)
    value[..., 7, 0], value[..., 9, 1], value[..., 9, 2] = np.inf, -np.inf, np.nan
    output = hw.flash_attention(query, key, value)
    assert (output[..., 0] == np.inf).all() and np.isnan(output[..., 2]).all()
    assert not np.isfinite(output[..., 1]).any()


def test_other_rows_keep_their_bits() -> None:
    query, key, value = normal((1, 1, 60, 8)), normal((1, 1, 60, 8), 1), normal((1, 1, 60, 20), 2)
    before = hw.flash_attention(query, key, value, is_causal=True)
    value[:, :, 30:] = 3e38
    after = hw.flash_attention(query, key, value, is_causal=True)
    assert after[:, :, :30].tobytes() == before[:, :, :30].tobytes()
    assert np.isfinite(after).all()


def test_packed_sequences_and_caches() -> None:
    x = np.zeros((12, 1, 8), np.float32)
    value = np.full((12, 1, 8), 3e38, np.float32)
    starts = [0, 5, 12]
    np.testing.assert_allclose(hw.varlen_attention(x, x, value, starts, starts), value, rtol=4e-6)
    cache = hw.KVCache(1, 1, 20, 8)
    rows, large = x.swapaxes(0, 1)[None], value.swapaxes(0, 1)[None]
    for start in range(0, 12, 3):
        part = np.s_[:, :, start : start + 3]
        np.testing.assert_allclose(cache.extend(rows[part], rows[part], large[part]), large[part], rtol=4e-6)


@pytest.mark.parametrize("softcap", [1e-39, 1e-31, 1e31, 1e39, 1e300])
def test_softcaps_beyond_float32_are_refused(softcap: float) -> None:
    x = np.ones((1, 1, 3, 4), np.float32)
    with pytest.raises(ValueError, match=r"softcap: .*expected 1e-30 to 1e\+30, or None"):
        hw.flash_attention(x, x, x, softcap=softcap)


@pytest.mark.parametrize("softcap", [1e-30, 1e-20, 1e20, 1e30])
@pytest.mark.parametrize("queries", [1, 40])
@pytest.mark.parametrize("size", [1e-6, 1.0, 1e8])
def test_extreme_softcaps(size: float, queries: int, softcap: float) -> None:
    query, key, value = size * normal((1, 1, queries, 8)), normal((1, 1, 30, 8), 1), normal((1, 1, 30, 8), 2)
    output = hw.flash_attention(query, key, value, softcap=softcap)
    expected = oracle.attention(query, key, value, softcap=softcap).output
    np.testing.assert_allclose(output, expected, atol=5e-6)
