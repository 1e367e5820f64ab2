"""ALiBi: slopes as published, the bias, and adding it to scores and inside attention."""

from __future__ import annotations

import numpy as np
import pytest

import headwise as hw
import oracle
from support import LAYOUTS, assert_close, dtype_named, normal


@pytest.mark.parametrize("num_heads", [*range(1, 34), 40, 48, 64, 71, 112, 128])
def test_slopes_equal_the_oracle(num_heads: int) -> None:
    got = hw.alibi_slopes(num_heads)
    assert got.shape == (num_heads,) and got.dtype == np.float64
    np.testing.assert_allclose(got, oracle.alibi_slopes(num_heads), rtol=1e-15)


def test_slopes_as_published() -> None:
    """Press et al. (2022), section 3: 8 heads have 1/2, 1/4, ..., 1/256; 12 heads add every other slope of 16 heads."""
    np.testing.assert_array_equal(hw.alibi_slopes(8), 2.0 ** -np.arange(1, 9))
    np.testing.assert_allclose(hw.alibi_slopes(12)[8:], 2.0 ** -np.array([0.5, 1.5, 2.5, 3.5]), rtol=1e-15)


@pytest.mark.parametrize("offset", [0, 3, -2])
@pytest.mark.parametrize(("num_heads", "query_len", "key_len"), [(1, 1, 1), (3, 5, 9), (8, 17, 4), (12, 33, 33)])
def test_bias_equals_the_oracle(num_heads: int, query_len: int, key_len: int, offset: int) -> None:
    expected = oracle.alibi_bias(oracle.alibi_slopes(num_heads), query_len, key_len, offset)
    got = hw.alibi_bias(num_heads, query_len, key_len, offset=offset)
    assert got.shape == (num_heads, query_len, key_len)
    assert_close(got, expected)


def test_bias_of_self_attention() -> None:
    np.testing.assert_array_equal(hw.alibi_bias(4, 7), hw.alibi_bias(4, 7, 7))


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32", "float64"])
@pytest.mark.parametrize("shape", [(4, 7, 9), (2, 4, 7, 9), (2, 3, 4, 7, 9), (1, 1, 1, 1)], ids=str)
def test_add_alibi(shape: tuple[int, ...], dtype: str) -> None:
    scores = normal(shape).astype(dtype_named(dtype))
    bias = oracle.alibi_bias(oracle.alibi_slopes(shape[-3]), *shape[-2:])
    got = hw.add_alibi(scores)
    assert got.dtype == scores.dtype
    assert_close(got, oracle.double(scores) + bias)


@pytest.mark.parametrize("key_len", [*range(1, 40), 63, 64, 65, 129])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_add_alibi_key_len(key_len: int, dtype: str) -> None:
    scores = normal((2, 3, 5, key_len), dtype=dtype)
    slopes = np.array([0.5, 0.1, 2.0])
    bias = oracle.alibi_bias(slopes.astype(dtype), 5, key_len, 7)
    assert_close(hw.add_alibi(scores, slopes, offset=7), scores + bias)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_add_alibi_layout(layout: str) -> None:
    scores = normal((2, 3, 5, 11))
    slopes = np.array([0.5, 0.25, 2.0])
    got = hw.add_alibi(LAYOUTS[layout](scores), slopes, offset=-1)
    assert_close(got, scores + oracle.alibi_bias(slopes, 5, 11, -1))


def test_add_alibi_out() -> None:
    scores = normal((2, 4, 5, 11))
    expected = scores + oracle.alibi_bias(oracle.alibi_slopes(4), 5, 11)
    out = np.full_like(scores, np.nan)
    assert hw.add_alibi(scores, out=out) is out
    assert_close(out, expected)
    assert hw.add_alibi(scores, out=scores) is scores
    assert_close(scores, expected)


def test_add_alibi_keeps_infinities() -> None:
    scores = np.full((1, 2, 3, 4), -np.inf)
    np.testing.assert_array_equal(hw.add_alibi(scores), scores)


@pytest.mark.parametrize("shape", [(0, 4, 5, 5), (2, 4, 0, 5), (2, 4, 5, 0)], ids=str)
def test_add_alibi_empty(shape: tuple[int, ...]) -> None:
    assert hw.add_alibi(np.zeros(shape)).shape == shape


@pytest.mark.parametrize("alignment", ["upper_left", "lower_right"])
def test_attention_with_slopes_equals_attention_with_the_bias(alignment: str) -> None:
    query, key = normal((2, 6, 9, 16)), normal((2, 6, 21, 16))
    offset = 12 if alignment == "lower_right" else 0
    fused = hw.flash_attention(query, key, key, alibi_slopes=hw.alibi_slopes(6), causal_alignment=alignment)
    plain = hw.flash_attention(query, key, key, bias=hw.alibi_bias(6, 9, 21, offset=offset))
    assert_close(fused, plain.astype(np.float64))
