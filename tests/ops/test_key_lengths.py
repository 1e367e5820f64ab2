"""``key_lengths``: right-padded batches, each sequence with its own number of keys."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import headwise as hw
import oracle
from support import assert_close, check_attention, dtype_named, normal

KEY_LEN = 70
LENGTHS = [70, 0, 1, 33]
KEPT = np.arange(KEY_LEN) < np.array(LENGTHS)[:, None]

OPTIONS: dict[str, dict[str, Any]] = {
    "plain": {},
    "causal": {"is_causal": True},
    "lower-right": {"is_causal": True, "causal_alignment": "lower_right"},
    "window": {"window_size": (5, 2), "causal_alignment": "lower_right"},
    "masks": {
        "mask": normal((1, 1, KEY_LEN)) > -0.5,
        "bias": normal((4, 1, 1, KEY_LEN)),
        "key_padding_mask": ~KEPT[::-1],
    },
    "scores": {"softcap": 2.0, "alibi_slopes": np.array([0.1, 0.2, 0.3, 0.4]), "sinks": np.arange(4.0)},
}


def arrays(queries: int, dtype: str = "float32", kv_heads: int = 2) -> list[np.ndarray]:
    shapes = (4, 4, queries, 16), (4, kv_heads, KEY_LEN, 16), (4, kv_heads, KEY_LEN, 12)
    return [normal(shape, seed).astype(dtype_named(dtype)) for seed, shape in enumerate(shapes)]


@pytest.mark.parametrize("options", OPTIONS)
@pytest.mark.parametrize("queries", [1, 3, 20])
@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32", "float64"])
def test_against_the_oracle(dtype: str, queries: int, options: str) -> None:
    keywords = {**OPTIONS[options], "key_lengths": LENGTHS}
    given = arrays(queries, dtype)
    check_attention(given, keywords, oracle.attention(*given, **keywords), factor=2)


@pytest.mark.parametrize("queries", [1, 20])
def test_as_a_key_padding_mask(queries: int) -> None:
    given = arrays(queries, "float64")
    for got, expected in zip(
        hw.scaled_dot_product_attention(*given, key_lengths=LENGTHS, return_lse=True),
        hw.scaled_dot_product_attention(*given, key_padding_mask=KEPT, return_lse=True),
        strict=True,
    ):
        assert_close(got, expected)
    dropped = [
        hw.scaled_dot_product_attention(*given, dropout=0.4, rng=1, **keywords)[0]
        for keywords in ({"key_lengths": LENGTHS}, {"key_padding_mask": KEPT})
    ]
    assert_close(dropped[0], dropped[1])


@pytest.mark.parametrize("options", [name for name in OPTIONS if name != "masks"])
@pytest.mark.parametrize("queries", [1, 20])
def test_each_sequence_has_the_bits_of_a_call_of_its_own(queries: int, options: str) -> None:
    query, key, value = arrays(queries)
    together = hw.scaled_dot_product_attention(
        query, key, value, key_lengths=LENGTHS, return_lse=True, **OPTIONS[options]
    )
    flash = hw.flash_attention(query, key, value, key_lengths=LENGTHS, **OPTIONS[options])
    np.testing.assert_array_equal(flash, hw.flash_attention(query, key, value, key_lengths=LENGTHS, **OPTIONS[options]))
    for b, length in enumerate(LENGTHS):
        one = slice(b, b + 1)
        alone = hw.scaled_dot_product_attention(
            query[one], key[one, :, :length], value[one, :, :length], return_lse=True, **OPTIONS[options]
        )
        np.testing.assert_array_equal(together[0][one], alone[0])
        np.testing.assert_array_equal(together[1][one, ..., :length], alone[1])
        assert (together[1][one, ..., length:] == 0).all()
        np.testing.assert_array_equal(together[2][one], alone[2])


@pytest.mark.parametrize("queries", [1, 20])
def test_padding_has_no_influence(queries: int) -> None:
    """NaN and infinity behind the lengths, also for queries of NaN."""
    query, key, value = arrays(queries)
    clean = hw.scaled_dot_product_attention(query, key, value, key_lengths=LENGTHS, return_lse=True)
    for b, length in enumerate(LENGTHS):
        key[b, :, length:], value[b, :, length:] = np.nan, np.inf
    for got, expected in zip(
        hw.scaled_dot_product_attention(query, key, value, key_lengths=LENGTHS, return_lse=True), clean, strict=True
    ):
        np.testing.assert_array_equal(got, expected)
    query[3] = np.nan
    output, weights = hw.scaled_dot_product_attention(query, key, value, key_lengths=LENGTHS)
    assert np.isnan(output[3]).all() and np.isnan(weights[3, ..., :33]).all() and (weights[3, ..., 33:] == 0).all()


def test_a_nan_sink_reaches_a_sequence_without_keys() -> None:
    """As it reaches a row whose keys are all masked."""
    query, key, value = arrays(3)
    output = hw.flash_attention(query, key, value, key_lengths=LENGTHS, sinks=np.array([np.nan, 0, 0, 0]))
    assert np.isnan(output[:, 0]).all() and np.isfinite(output[:, 1:]).all()
    assert (output[1, 1:] == 0).all()


@pytest.mark.parametrize("shape", [(6, 8), (3, 6, 8), (2, 3, 6, 8), (2, 3, 2, 6, 8)], ids=str)
def test_ranks(shape: tuple[int, ...]) -> None:
    """The lengths have the shape of the axes before those of heads, queries and keys."""
    x = normal(shape, dtype=np.float64)
    batch = shape[:-3] or shape[:-2]
    batch = batch if len(shape) != 3 else shape[:1]
    lengths = np.arange(int(np.prod(batch))).reshape(batch) % 7
    check_attention([x, x, x], {"key_lengths": lengths}, oracle.attention(x, x, x, key_lengths=lengths))


@pytest.mark.parametrize("dtype", ["int8", "uint8", "int64", "uint64", ">i4"])
def test_integer_dtypes_and_layouts(dtype: str) -> None:
    given = arrays(3)
    expected = hw.flash_attention(*given, key_lengths=LENGTHS)
    lengths = np.repeat(np.array(LENGTHS, dtype), 2)[::2]
    np.testing.assert_array_equal(hw.flash_attention(*given, key_lengths=lengths), expected)


def test_lengths_beyond_int64_are_refused() -> None:
    given = arrays(3)
    with pytest.raises(ValueError, match=r"^key_lengths: 18446744073709551615, expected 0 to 70"):
        hw.flash_attention(*given, key_lengths=np.array([1, 2, 3, 2**64 - 1], np.uint64))


def test_layers() -> None:
    layer = hw.MultiHeadAttention(16, 4, num_kv_heads=2, rope=hw.RotaryPositionalEmbedding(4), rng=0)
    x, y = normal((4, KEY_LEN, 16), dtype=np.float64), normal((4, 5, 16), 1, np.float64)
    for got, expected in zip(layer(x, key_lengths=LENGTHS), layer(x, key_padding_mask=KEPT), strict=True):
        assert_close(got, expected)
    np.testing.assert_array_equal(layer(x[3], key_lengths=33)[0], layer(x[3:], key_lengths=[33])[0][0])
    lower_right: dict[str, Any] = {"is_causal": True, "causal_alignment": "lower_right"}
    lengths = [70, 5, 8, 33]
    output = layer(y, x, key_lengths=lengths, **lower_right)[0]
    for b, length in enumerate(lengths):
        assert_close(output[b], layer(y[b], x[b, :length], **lower_right)[0])
    drawn = hw.multi_head_attention(x, x, x, 4, 16, key_lengths=LENGTHS, rng=0)[0]
    assert_close(drawn, hw.multi_head_attention(x, x, x, 4, 16, key_padding_mask=KEPT, rng=0)[0])
    assert_close(hw.self_attention(x, 16, key_lengths=LENGTHS)[0], hw.self_attention(x, 16, key_padding_mask=KEPT)[0])


def test_refusals_of_layers() -> None:
    layer = hw.MultiHeadAttention(16, 4, rope=hw.RotaryPositionalEmbedding(4), rng=0)
    x = normal((2, 5, 16))
    with pytest.raises(ValueError, match=r"^key_lengths: given with a cache, expected lengths="):
        layer(x, key_lengths=[1, 2], cache=layer.make_cache(2, 8))
    with pytest.raises(ValueError, match=r"^key_lengths: .*lower_right.*self-attention.*upper_left"):
        layer(x, key_lengths=[1, 2], causal_alignment="lower_right")
    with pytest.raises(ValueError, match=r"^key_lengths: shape \(3,\)"):
        layer(x, key_lengths=[1, 2, 3])


@pytest.mark.parametrize("queries", [1, 20])
def test_against_pytorch(queries: int) -> None:
    torch = pytest.importorskip("torch", reason="PyTorch is not installed")
    given = arrays(queries, kv_heads=4)
    lengths = np.array([70, 3, 1, 33])
    keep = torch.from_numpy(np.arange(KEY_LEN) < lengths[:, None])[:, None, None]
    expected = torch.nn.functional.scaled_dot_product_attention(*map(torch.from_numpy, given), attn_mask=keep)
    assert_close(hw.flash_attention(*given, key_lengths=lengths), expected.numpy().astype(np.float64), factor=2)
