"""Attention of float16 and bfloat16, read directly, computed in float32 and rounded once. On bf16 targets weights are
rounded to bf16 terms, with the error that ``bf16_split_atol`` states; decode uses FMA."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import headwise as hw
import oracle
from support import LAYOUTS, AttentionCase, assert_close, assert_rounded_once, bf16_split_atol, dtype_named, normal

Array = np.ndarray[Any, Any]

both_dtypes = pytest.mark.parametrize("dtype", ["float16", "bfloat16"])

KEYWORDS: dict[str, dict[str, Any]] = {
    "plain": {},
    "causal": {"is_causal": True},
    "lower-right": {"is_causal": True, "causal_alignment": "lower_right"},
    "window": {"window_size": (20, 3)},
    "keep-mask": {"mask": normal((2, 4, 70, 90)) > -0.5},
    "bias": {"bias": normal((4, 1, 90)).astype(np.float16)},
    "bias-float64": {"bias": normal((70, 90), dtype=np.float64)},
    "key-padding": {"key_padding_mask": np.arange(90) < np.array([[90], [50]])},
    "softcap-scale": {"softcap": 2.0, "scale": 0.3},
    "alibi-sinks": {"alibi_slopes": np.array([0.5, 0.25, 0.125, 1.5]), "sinks": np.array([0.5, -np.inf, 4.0, -1.0])},
}


def attention(shape: tuple[int, ...], key_len: int, kv_heads: int, dtype: str) -> list[Array]:
    batch, _, _, dim = shape
    shapes = shape, (batch, kv_heads, key_len, dim), (batch, kv_heads, key_len, dim)
    return [normal(one, seed).astype(dtype_named(dtype)) for seed, one in enumerate(shapes)]


def assert_rounded(actual: Array, expected: Array) -> None:
    assert_rounded_once(actual, expected, atol=2e-6 + bf16_split_atol(actual.dtype.name))


@both_dtypes
@pytest.mark.parametrize("name", KEYWORDS)
def test_keywords(name: str, dtype: str) -> None:
    arrays = attention((2, 4, 70, 24), 90, 2, dtype)
    expected = oracle.attention(*arrays, **KEYWORDS[name])
    output, weights, lse = hw.scaled_dot_product_attention(*arrays, **KEYWORDS[name], return_lse=True)
    assert output.dtype == weights.dtype == arrays[0].dtype and lse.dtype == np.float32
    assert_rounded(output, expected.output)
    assert_rounded(weights, expected.weights)
    assert_close(lse, expected.lse, 2, bf16_split_atol(dtype))
    assert_rounded(hw.flash_attention(*arrays, **KEYWORDS[name]), expected.output)


@both_dtypes
@pytest.mark.parametrize("query_len", [9, 16, 33, 64, 130])
@pytest.mark.parametrize("key_len", [1, 31, 128, 300])
@pytest.mark.parametrize("dim", [1, 17, 64, 100])
def test_sizes(query_len: int, key_len: int, dim: int, dtype: str) -> None:
    arrays = attention((1, 2, query_len, dim), key_len, 2, dtype)
    assert_rounded(hw.flash_attention(*arrays), oracle.attention(*arrays).output)


@both_dtypes
@pytest.mark.parametrize("heads", [1, 8], ids=["alone", "grouped"])
@pytest.mark.parametrize("key_len", [1, 15, 100, 1000])
@pytest.mark.parametrize("dim", [1, 24, 64, 130])
def test_one_query(heads: int, key_len: int, dim: int, dtype: str) -> None:
    """A decode step, which never uses bf16 products."""
    arrays = attention((2, heads, 1, dim), key_len, 1, dtype)
    keywords = {"is_causal": True, "causal_alignment": "lower_right"}
    expected = oracle.attention(*arrays, **keywords)
    output, weights, lse = hw.scaled_dot_product_attention(*arrays, **keywords, return_lse=True)
    assert output.dtype == weights.dtype == arrays[0].dtype and lse.dtype == np.float32
    assert_rounded_once(output, expected.output, atol=2e-6)
    assert_rounded_once(weights, expected.weights, atol=2e-6)
    assert_close(lse, expected.lse, 2)
    out = np.full_like(output, np.nan)
    assert hw.flash_attention(*arrays, **keywords, out=out) is out
    assert out.tobytes() == output.tobytes()


@both_dtypes
@pytest.mark.parametrize("queries", [33, 3], ids=["blocks", "chunks"])
@pytest.mark.parametrize("name", ["plain", "lower-right", "window"])
def test_weights_of_many_keys(name: str, queries: int, dtype: str) -> None:
    """Weights are staged in float32 until the row has met all keys, and rounded once."""
    keywords = {**KEYWORDS[name], "causal_alignment": "lower_right"}
    if name == "window":
        keywords["window_size"] = (700, 3)
    arrays = attention((1, 2, queries, 24), 2600, 1, dtype)
    output, weights = hw.scaled_dot_product_attention(*arrays, **keywords)
    expected = oracle.attention(*arrays, **keywords)
    assert_rounded(output, expected.output)
    assert_rounded(weights, expected.weights)
    assert ((weights == 0) == (expected.weights == 0)).all()


@both_dtypes
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("query_len", [1, 40])
def test_layout(query_len: int, layout: str, dtype: str) -> None:
    arrays = attention((1, 4, query_len, 24), 90, 4, dtype)
    expected = oracle.attention(*arrays).output
    assert_rounded(hw.flash_attention(*map(LAYOUTS[layout], arrays)), expected)


# A 16-bit mask or bias is read directly, with the bits of the same numbers in float32.


@both_dtypes
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("shape", [(2, 4, 40, 90), (4, 1, 90), (40, 1), (1, 1)], ids=str)
def test_16bit_bias(shape: tuple[int, ...], layout: str, dtype: str) -> None:
    arrays = attention((2, 4, 40, 24), 90, 2, dtype)
    bias = normal(shape).astype(dtype_named(dtype))
    if bias.size > 1:
        bias.reshape(-1)[::7] = -np.inf
    expected = oracle.attention(*arrays, bias=bias)
    output, lse = hw.flash_attention(*arrays, bias=LAYOUTS[layout](bias), return_lse=True)
    assert_rounded(output, expected.output)
    assert_close(lse, expected.lse, 2, bf16_split_atol(dtype))
    assert output.tobytes() == hw.flash_attention(*arrays, bias=bias.astype(np.float32)).tobytes()


@both_dtypes
@pytest.mark.parametrize("queries", [1, 8, 9, 130], ids=str)
def test_16bit_masks(queries: int, dtype: str) -> None:
    """A 16-bit mask is a keep-mask exactly if the same numbers in float32 are, for masks below and above the size
    from which the first row is checked before the others."""
    arrays = attention((1, 2, queries, 24), 300, 1, dtype)
    ones = (normal((queries, 300)) > -0.5).astype(np.float32)
    ones[-1, -1], ones[0, :2] = 1, (0.0, -0.0)
    scaled, tainted, zeros = 2 * ones, ones.copy(), 0 * ones
    tainted[-1, -2] = 1 + 2.0**-7  # the next number of bfloat16
    for mask in (ones, scaled, tainted, zeros):
        expected = hw.flash_attention(*arrays, mask)
        half = mask.astype(dtype_named(dtype))
        for given in (half, half.astype(half.dtype.newbyteorder("S"))):
            assert hw.flash_attention(*arrays, given).tobytes() == expected.tobytes()
    got = hw.flash_attention(*arrays, ones.astype(dtype_named(dtype)))
    assert_rounded(got, oracle.attention(*arrays, mask=ones > 0).output)


@both_dtypes
def test_mask_of_the_other_16bit_dtype(dtype: str) -> None:
    """Such a mask is converted to float32, which holds both."""
    arrays = attention((1, 2, 40, 24), 90, 1, dtype)
    other = dtype_named("bfloat16" if dtype == "float16" else "float16")
    mask = normal((40, 90)).astype(other)
    assert_rounded(hw.flash_attention(*arrays, mask), oracle.attention(*arrays, bias=mask).output)


@both_dtypes
@pytest.mark.parametrize("query_len", [1, 40])
def test_out(query_len: int, dtype: str) -> None:
    query, key, value = attention((1, 4, query_len, 24), 90, 4, dtype)
    expected = hw.flash_attention(query, key, value)
    for out in (
        np.full_like(expected, np.nan),
        np.full((1, query_len, 4, 24), np.nan, expected.dtype).swapaxes(1, 2),
        np.full((1, 4, query_len, 48), np.nan, expected.dtype)[..., ::2],
    ):
        assert hw.flash_attention(query, key, value, out=out) is out
        np.testing.assert_array_equal(out, expected)
        output, weights, _ = hw.scaled_dot_product_attention(query, key, value, out=out, return_lse=True)
        assert output is out and weights.dtype == out.dtype
    with pytest.raises(TypeError, match=rf"^out: .*{dtype}"):
        hw.flash_attention(query, key, value, out=np.empty(expected.shape, np.float32))
    with pytest.raises(ValueError, match=r"^out: "):
        hw.flash_attention(query, key, value, out=query)


@pytest.mark.parametrize("first", ["float16", "bfloat16", "float32"])
@pytest.mark.parametrize("last", ["float16", "bfloat16", "float32", "float64"])
@pytest.mark.parametrize("query_len", [1, 40])
def test_mixed_dtypes_are_promoted(query_len: int, first: str, last: str) -> None:
    """Arrays are cast to the promoted dtype; results have the bits of the same numbers in that dtype."""
    query, key, _ = attention((1, 4, query_len, 24), 90, 4, first)
    value = attention((1, 4, query_len, 24), 90, 4, last)[2]
    common = first if first == last else "float64" if last == "float64" else "float32"
    output, weights, lse = hw.scaled_dot_product_attention(query, key, value, return_lse=True)
    assert output.dtype == weights.dtype == dtype_named(common)
    assert lse.dtype == (np.float64 if common == "float64" else np.float32)
    widened = [a.astype(output.dtype) for a in (query, key, value)]
    for one, other in zip(
        (output, weights, lse), hw.scaled_dot_product_attention(*widened, return_lse=True), strict=True
    ):
        assert one.tobytes() == other.tobytes()


@both_dtypes
@pytest.mark.parametrize("query_len", [1, 40])
def test_dropout(query_len: int, dtype: str) -> None:
    """The same weights are zeroed as in float32; returned weights are those before dropout."""
    arrays = attention((2, 4, query_len, 24), 90, 2, dtype)
    wide = [a.astype(np.float32) for a in arrays]
    expected, _, expected_lse = hw.scaled_dot_product_attention(*wide, dropout=0.4, rng=3, return_lse=True)
    output, weights, lse = hw.scaled_dot_product_attention(*arrays, dropout=0.4, rng=3, return_lse=True)
    assert output.dtype == weights.dtype == arrays[0].dtype
    assert_rounded(output, oracle.double(expected))
    assert_close(lse, oracle.double(expected_lse), 2, bf16_split_atol(dtype))
    assert weights.tobytes() == hw.scaled_dot_product_attention(*arrays)[1].tobytes()
    out = np.empty_like(output)
    hw.scaled_dot_product_attention(*arrays, dropout=0.4, rng=3, need_weights=False, out=out)
    assert_rounded(out, oracle.double(expected))


@both_dtypes
@pytest.mark.parametrize("special", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("query_len", [1, 40])
def test_masked_keys_have_no_influence(query_len: int, special: float, dtype: str) -> None:
    query, key, value = attention((1, 2, query_len, 24), 90, 2, dtype)
    keep = np.arange(90) != 33
    expected = oracle.attention(query, key, value, keep[None])
    key[:, :, 33], value[:, :, 33] = special, special
    output, weights = hw.scaled_dot_product_attention(query, key, value, keep[None])
    assert_rounded(output, expected.output)
    assert not weights[..., 33].any()


@both_dtypes
@pytest.mark.parametrize("query_len", [1, 40])
def test_largest_values(query_len: int, dtype: str) -> None:
    """The average of equal numbers is that number, without an intermediate overflow where a hundred of them have a
    sum in float32."""
    query, key, value = attention((1, 2, query_len, 32), 100, 2, dtype)
    value[...] = np.array(np.finfo(np.float16).max if dtype == "float16" else 3e36).astype(value.dtype)
    np.testing.assert_array_equal(hw.flash_attention(query, key, value), np.broadcast_to(value[:, :, :1], query.shape))


@pytest.mark.parametrize("query_len", [1, 40])
def test_scores_beyond_float16(query_len: int) -> None:
    """Scores of -70,000 and 70,000: products are summed in float32."""
    query, key = np.full((1, 1, query_len, 28), 50, np.float16), np.full((1, 1, 2, 28), 50, np.float16)
    key[:, :, 0] = -50
    value = np.array([[[[1.0], [2.0]]]], np.float16)
    output, weights, lse = hw.scaled_dot_product_attention(query, key, value, scale=1.0, return_lse=True)
    assert (output == 2).all() and (weights == [0, 1]).all() and (lse == 70_000).all()


@both_dtypes
@pytest.mark.parametrize("precision", ["high", "medium"])
def test_lower_precision(precision: str, dtype: str) -> None:
    case = AttentionCase((1, 2, 50, 32), (1, 2, 70, 32), 32, dtype=dtype)
    got = hw.flash_attention(*case.arrays, precision=precision)
    assert got.dtype == case.arrays[0].dtype
    np.testing.assert_allclose(oracle.double(got), case.expected.output, atol=0.03)


@both_dtypes
def test_empty(dtype: str) -> None:
    query = normal((1, 2, 5, 8)).astype(dtype_named(dtype))
    output, weights, lse = hw.scaled_dot_product_attention(query, query[:, :, :0], query[:, :, :0], return_lse=True)
    assert output.dtype == weights.dtype == query.dtype and lse.dtype == np.float32
    assert not output.any() and weights.shape == (1, 2, 5, 0) and (lse == -np.inf).all()
