"""Decisions of the interface where libraries differ: at least one test per decision."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import headwise as hw
import oracle
from support import AttentionCase, assert_close, check_attention, dtype_named, normal

BATCH, HEADS, QUERY_LEN, KEY_LEN = 2, 3, 5, 7


@pytest.fixture
def qkv() -> list[np.ndarray]:
    return AttentionCase((BATCH, HEADS, QUERY_LEN, 8), (BATCH, HEADS, KEY_LEN, 8), 8, dtype="float64").arrays


def weights_of(*arrays: Any, **keywords: Any) -> np.ndarray:
    return hw.scaled_dot_product_attention(*arrays, **keywords)[1]


def test_ruling_order_of_operations(qkv: list[np.ndarray]) -> None:
    """The order is scale, softcap, then bias and ALiBi: a cap far below the bias does not limit the bias."""
    query, key, value = qkv
    bias = 10 * normal((QUERY_LEN, KEY_LEN), dtype=np.float64)
    slopes = np.array([0.1, 1.0, 2.0])
    score = 0.5 * np.tanh((query @ key.swapaxes(-1, -2)) * 0.7 / 0.5)
    score += bias + oracle.alibi_bias(slopes, QUERY_LEN, KEY_LEN)
    got = weights_of(query, key, value, scale=0.7, softcap=0.5, bias=bias, alibi_slopes=slopes)
    assert_close(got, oracle.softmax(score))
    wrong_order = oracle.softmax(0.5 * np.tanh((query @ key.swapaxes(-1, -2) * 0.7 + bias) / 0.5))
    assert abs(got - wrong_order).max() > 0.1


@pytest.mark.parametrize("dtype", ["bool", "int8", "int64", "uint16"])
def test_ruling_bool_or_integer_mask(qkv: list[np.ndarray], dtype: str) -> None:
    """1 keeps, 0 masks, also in ``key_padding_mask``."""
    numbers = np.tile(np.array([1, 0, 1, 0, 0, 1, 1]).astype(dtype), (QUERY_LEN, 1))
    for keywords in ({"mask": numbers}, {"key_padding_mask": numbers[:BATCH]}):
        weights = weights_of(*qkv, **keywords)
        assert (weights[..., [1, 3, 4]] == 0).all()
        assert (weights[..., [0, 2, 5, 6]] > 0).all()


@pytest.mark.parametrize("dtype", ["int8", "int64", "uint16"])
@pytest.mark.parametrize("name", ["mask", "key_padding_mask"])
def test_ruling_integer_mask_of_other_numbers(qkv: list[np.ndarray], name: str, dtype: str) -> None:
    """Neither a keep-mask nor additive: the error says how to write both."""
    for number in (-1, 2, 3, -10000):
        mask = np.tile([1, 0, 1, 0, 0, 1, 1], (BATCH, 1))
        mask[1, 3] = number
        if number < 0 and dtype == "uint16":
            continue
        mask = mask.astype(dtype)
        with pytest.raises(ValueError, match=rf"^{name}: the integer {mask[1, 3]}, .*keeps.*added"):
            hw.flash_attention(*qkv, **{name: mask})


def test_ruling_float_key_padding_mask(qkv: list[np.ndarray]) -> None:
    """By the rule of ``mask``: 0.0 and 1.0 with a 1.0 keep, else it is added."""
    padding = np.tile([1.0, 0.0, 1.0, 1.0, 0.0, 1.0, 1.0], (BATCH, 1))
    np.testing.assert_array_equal(
        weights_of(*qkv, key_padding_mask=padding), weights_of(*qkv, key_padding_mask=padding != 0)
    )
    np.testing.assert_array_equal(weights_of(*qkv, key_padding_mask=0 * padding), weights_of(*qkv))
    for masked in (-np.inf, -1e9):
        additive = np.where(padding != 0, 0.0, masked)
        np.testing.assert_array_equal(
            weights_of(*qkv, key_padding_mask=additive), weights_of(*qkv, key_padding_mask=padding != 0)
        )
    additive = normal((BATCH, KEY_LEN), dtype=np.float64)
    check_attention(qkv, {"key_padding_mask": additive}, oracle.attention(*qkv, bias=additive[:, None, None]))


def test_ruling_float_mask(qkv: list[np.ndarray]) -> None:
    """Zeros and ones with at least one 1.0 select; all zeros, or any third number, are added."""
    tril = np.tril(np.ones((QUERY_LEN, KEY_LEN)))
    np.testing.assert_array_equal(weights_of(*qkv, mask=tril), weights_of(*qkv, mask=tril != 0))
    np.testing.assert_array_equal(weights_of(*qkv, mask=np.float32(tril)), weights_of(*qkv, mask=tril != 0))
    np.testing.assert_array_equal(weights_of(*qkv, mask=tril * 0), weights_of(*qkv))
    for changed in (0.5, -1.0, 1.0001, -np.inf, np.nan):
        mask = tril.copy()
        mask[4, 0] = changed
        weights = weights_of(*qkv, mask=mask)
        assert (weights[..., 0, 1:] > 0).all(), "a zero in an additive mask drops nothing"
    assert_close(weights_of(*qkv, bias=tril), oracle.attention(*qkv, bias=tril).weights)
    assert (weights_of(*qkv, bias=tril) > 0).all()


def test_ruling_2d_mask(qkv: list[np.ndarray]) -> None:
    """``(Sq, Sk)``, or ``(batch, Sk)`` where only that fits; the classes of masks resolve ambiguous shapes."""
    padding = np.array([[1] * KEY_LEN, [1, 1, 1, 0, 0, 0, 0]])
    np.testing.assert_array_equal(weights_of(*qkv, mask=padding), weights_of(*qkv, key_padding_mask=padding))
    x = normal((4, 4, 8))
    tokens = np.array([[1, 2, 3, 4], [1, 2, 3, 0], [1, 2, 0, 0], [1, 0, 0, 0]])
    made = hw.create_padding_mask(tokens)
    as_padding = weights_of(x, x, x, key_padding_mask=tokens != 0)
    as_pairs = weights_of(x, x, x, mask=(tokens != 0)[None])
    assert not np.array_equal(as_padding, as_pairs)
    np.testing.assert_array_equal(weights_of(x, x, x, mask=made), as_padding)
    np.testing.assert_array_equal(weights_of(x, x, x, mask=made.astype(bool)), as_padding)
    np.testing.assert_array_equal(weights_of(x, x, x, mask=np.asarray(made)), as_pairs)
    np.testing.assert_array_equal(weights_of(x, x, x, key_padding_mask=np.asarray(made)), as_padding)
    np.testing.assert_array_equal(weights_of(x, x, x, hw.create_causal_mask(4)), weights_of(x, x, x, is_causal=True))


def test_ruling_3d_mask(qkv: list[np.ndarray]) -> None:
    """In functions NumPy's broadcasting against ``(..., Sq, Sk)``: over heads for rank 4, over the batch for rank 3."""
    mask = normal((HEADS, QUERY_LEN, KEY_LEN)) > 0
    np.testing.assert_array_equal(weights_of(*qkv, mask=mask), weights_of(*qkv, mask=np.stack([mask] * BATCH)))
    three = [array[0] for array in qkv]
    check_attention(three, {"mask": mask}, oracle.attention(*three, mask=mask))


def test_ruling_3d_mask_with_as_many_heads_as_sequences(qkv: list[np.ndarray]) -> None:
    """Nothing says which of the two its first axis is. A bias broadcasts as in NumPy: `alibi_bias` has heads first."""
    square = [array[:, :BATCH] for array in qkv]
    mask = normal((BATCH, QUERY_LEN, KEY_LEN)) > 0
    with pytest.raises(ValueError, match=r"^mask: .*mask\[:, None\].*mask\[None\]"):
        weights_of(*square, mask=mask)
    assert not np.array_equal(weights_of(*square, mask=mask[:, None]), weights_of(*square, mask=mask[None]))
    np.testing.assert_array_equal(weights_of(*square, bias=mask * 2.0), weights_of(*square, bias=mask[None] * 2.0))
    np.testing.assert_array_equal(weights_of(*square, mask=mask[:1]), weights_of(*square, mask=mask[None, :1]))
    with pytest.raises(ValueError, match=r"^mask: .*mask\[:, None\]"):  # as many sequences, not as many heads
        weights_of(*qkv, mask=mask)


def test_ruling_mask_with_is_causal(qkv: list[np.ndarray]) -> None:
    mask = normal((QUERY_LEN, KEY_LEN)) > -0.5
    both = mask & np.tri(QUERY_LEN, KEY_LEN, dtype=bool)
    np.testing.assert_array_equal(weights_of(*qkv, mask=mask, is_causal=True), weights_of(*qkv, mask=both))
    bias = normal((QUERY_LEN, KEY_LEN))
    expected = weights_of(*qkv, mask=np.tri(QUERY_LEN, KEY_LEN, dtype=bool), bias=bias)
    np.testing.assert_array_equal(weights_of(*qkv, mask=bias, is_causal=True), expected)


@pytest.mark.parametrize("rank", [2, 3, 4, 5])
@pytest.mark.parametrize("mask_rank", [2, 3, 4])
def test_ruling_rank(rank: int, mask_rank: int) -> None:
    """The output has the rank of the query; a mask never adds a dimension."""
    x = normal((2, 3, 4, 6, 8))[(0,) * (5 - rank)]
    mask = np.tril(np.ones((1,) * (mask_rank - 2) + (6, 6)))
    output, weights = hw.scaled_dot_product_attention(x, x, x, mask)
    assert output.shape == x.shape
    assert weights.shape == (*x.shape[:-1], 6)
    np.testing.assert_array_equal(weights, weights_of(x, x, x, is_causal=True))


def test_ruling_fully_masked_query_row_or_no_keys(qkv: list[np.ndarray]) -> None:
    keep = np.ones((QUERY_LEN, KEY_LEN), bool)
    keep[2] = False
    for keywords in ({"mask": keep}, {"mask": np.where(keep, 0.25, -np.inf)}):
        output, weights, lse = hw.scaled_dot_product_attention(*qkv, **keywords, return_lse=True)
        assert (output[..., 2, :] == 0).all() and (weights[..., 2, :] == 0).all() and (lse[..., 2] == -np.inf).all()
    query, empty = qkv[0], qkv[1][:, :, :0]
    output, weights, lse = hw.scaled_dot_product_attention(query, empty, empty, return_lse=True)
    assert (output == 0).all() and weights.shape[-1] == 0 and (lse == -np.inf).all()
    assert np.isnan(hw.softmax([[-np.inf, -np.inf]])).all()


def test_ruling_masked_positions(qkv: list[np.ndarray]) -> None:
    query, key, value = (array.copy() for array in qkv)
    clean = hw.scaled_dot_product_attention(query, key[:, :, :5], value[:, :, :5], return_lse=True)
    key[:, :, 5], value[:, :, 5], key[:, :, 6], value[:, :, 6] = np.nan, np.inf, -np.inf, np.nan
    keep = np.arange(KEY_LEN) < 5
    for keywords in (
        {"mask": np.tile(keep, (QUERY_LEN, 1))},
        {"key_padding_mask": np.tile(keep, (BATCH, 1))},
        {"bias": np.where(keep, 0, -np.inf)},
    ):
        dirty = hw.scaled_dot_product_attention(query, key, value, return_lse=True, **keywords)
        assert_close(dirty[0], clean[0])
        assert_close(dirty[1][..., :5], clean[1])
        assert (dirty[1][..., 5:] == 0).all()
        assert_close(dirty[2], clean[2])


@pytest.mark.parametrize(("query_len", "key_len"), [(3, 5), (5, 3), (1, 4), (4, 1)])
def test_ruling_causal_with_sq_not_sk(query_len: int, key_len: int) -> None:
    query, key = normal((query_len, 8)), normal((key_len, 8))
    i, j = np.ogrid[:query_len, :key_len]
    np.testing.assert_array_equal(weights_of(query, key, key, is_causal=True) > 0, j <= i)
    lower = weights_of(query, key, key, is_causal=True, causal_alignment="lower_right")
    np.testing.assert_array_equal(lower > 0, j <= i + key_len - query_len)


@pytest.mark.parametrize("window", [0, 2, (1, 2), (-1, 1), (2, -1), (-1, -1)])
@pytest.mark.parametrize("alignment", ["upper_left", "lower_right"])
def test_ruling_window_size(window: int | tuple[int, int], alignment: str) -> None:
    query, key = normal((5, 8)), normal((9, 8))
    left, right = (window, window) if isinstance(window, int) else window
    i, j = np.arange(5)[:, None] + (4 if alignment == "lower_right" else 0), np.arange(9)
    expected = ((left < 0) | (i - left <= j)) & ((right < 0) | (j <= i + right))
    got = weights_of(query, key, key, window_size=window, causal_alignment=alignment)
    np.testing.assert_array_equal(got > 0, expected)
    causal = weights_of(query, key, key, window_size=window, causal_alignment=alignment, is_causal=True)
    np.testing.assert_array_equal(causal > 0, expected & (j <= i))


def test_ruling_sinks(qkv: list[np.ndarray]) -> None:
    sinks = np.array([0.3, -1.0, 2.0])
    query, key, _ = qkv
    scores = query @ key.swapaxes(-1, -2) / np.sqrt(8)
    denominator = np.exp(scores).sum(-1) + np.exp(sinks)[:, None]
    output, weights, lse = hw.scaled_dot_product_attention(*qkv, sinks=sinks, return_lse=True)
    assert_close(weights, np.exp(scores) / denominator[..., None], factor=10)
    assert (weights.sum(-1) < 1).all()
    assert_close(lse, np.log(denominator), factor=10)
    assert_close(output, weights @ qkv[2], factor=10)


def test_ruling_lse(qkv: list[np.ndarray]) -> None:
    """The natural logarithm of the denominator: ``exp(score - lse)`` are the weights."""
    query, key, _ = qkv
    for dtype, lse_dtype in {"float16": "f4", "bfloat16": "f4", "float32": "f4", "float64": "f8"}.items():
        arrays = [array.astype(dtype_named(dtype)) for array in qkv]
        output, weights, lse = hw.scaled_dot_product_attention(*arrays, return_lse=True)
        assert lse.dtype == lse_dtype and weights.dtype == output.dtype == arrays[0].dtype
        assert lse.shape == (BATCH, HEADS, QUERY_LEN)
    scores = query @ key.swapaxes(-1, -2) / np.sqrt(8)
    assert_close(lse, np.log(np.exp(scores).sum(-1)), factor=10)
    assert_close(np.exp(scores - lse[..., None]), weights, factor=10)


def test_ruling_scale(qkv: list[np.ndarray]) -> None:
    np.testing.assert_array_equal(weights_of(*qkv), weights_of(*qkv, scale=1 / np.sqrt(8)))
    assert_close(weights_of(*qkv, scale=0.0), np.full((BATCH, HEADS, QUERY_LEN, KEY_LEN), 1 / KEY_LEN))


def test_ruling_alibi(qkv: list[np.ndarray]) -> None:
    """``-slope * |i - j|`` on both sides of the diagonal, and slopes for head counts that are no power of two."""
    slopes = hw.alibi_slopes(HEADS)
    np.testing.assert_allclose(slopes, [2.0**-4, 2.0**-8, 2.0**-2], rtol=1e-15)
    bias = -slopes[:, None, None] * abs(np.subtract.outer(np.arange(QUERY_LEN), np.arange(KEY_LEN)))
    np.testing.assert_allclose(hw.alibi_bias(HEADS, QUERY_LEN, KEY_LEN), bias, rtol=1e-15)
    assert_close(weights_of(*qkv, alibi_slopes=slopes), weights_of(*qkv, bias=bias))
    lower = weights_of(*qkv, alibi_slopes=slopes, causal_alignment="lower_right")
    assert_close(lower, weights_of(*qkv, bias=hw.alibi_bias(HEADS, QUERY_LEN, KEY_LEN, offset=2)))


def test_ruling_rope() -> None:
    """Half-split pairing by default: feature ``i`` turns with feature ``i + D / 2``."""
    x, angle = np.array([[1.0, 2.0, 3.0, 4.0]]), np.array([[0.3, 1.1]])
    cos, sin = np.cos(angle[0]), np.sin(angle[0])
    half = [1 * cos[0] - 3 * sin[0], 2 * cos[1] - 4 * sin[1], 3 * cos[0] + 1 * sin[0], 4 * cos[1] + 2 * sin[1]]
    pairs = [1 * cos[0] - 2 * sin[0], 2 * cos[0] + 1 * sin[0], 3 * cos[1] - 4 * sin[1], 4 * cos[1] + 3 * sin[1]]
    np.testing.assert_allclose(hw.apply_rope(x, np.cos(angle), np.sin(angle)), [half], rtol=1e-14)
    np.testing.assert_allclose(hw.apply_rope(x, np.cos(angle), np.sin(angle), interleaved=True), [pairs], rtol=1e-14)


def test_ruling_dropout_of_attention(qkv: list[np.ndarray]) -> None:
    """Dropout acts on the weights that are used; returned weights are those before it; kept weights are scaled up."""
    clean_output, clean_weights = hw.scaled_dot_product_attention(*qkv)
    output, weights = hw.scaled_dot_product_attention(*qkv, dropout=0.5, rng=1)
    np.testing.assert_array_equal(weights, clean_weights)
    assert not np.allclose(output, clean_output)
    again = hw.scaled_dot_product_attention(*qkv, None, 0.5, rng=np.random.default_rng(1))[0]
    np.testing.assert_array_equal(output, again)
    np.testing.assert_array_equal(hw.scaled_dot_product_attention(*qkv, dropout_rate=0.5, rng=1)[0], output)
    flat = hw.scaled_dot_product_attention(*qkv, dropout=0.5, rng=1, need_weights=False)[0]
    assert_close(flat, output)
    assert not np.allclose(hw.scaled_dot_product_attention(*qkv, dropout=0.5, rng=2)[0], output)


def test_ruling_dropout_of_attention_keeps_each_weight_or_none_of_it() -> None:
    """With the identity as values the output is every weight after dropout: 0, or the weight over ``1 - rate``."""
    query, key = normal((2, 3, 90, 16), dtype=np.float64), normal((2, 3, 70, 16), dtype=np.float64)
    value = np.broadcast_to(np.eye(70), (2, 3, 70, 70))
    output, weights = hw.scaled_dot_product_attention(query, key, value, dropout=0.3, rng=5)
    kept = output != 0
    np.testing.assert_allclose(output[kept], weights[kept] / 0.7, rtol=1e-12)
    assert abs(kept.mean() - 0.7) < 0.01
    assert (kept.mean(axis=(0, 1, 2)) < 1).all() and (kept.mean(axis=(0, 1, 3)) < 1).all()


def test_ruling_dropout_over_millions_of_weights() -> None:
    """Each weight is kept or zeroed as a whole in any blocking, and the draws do not depend on the results asked for.

    With unit vectors as the first four values the output is the weights of these four keys after dropout.
    """
    x = normal((1, 2, 1500, 4))
    value = np.broadcast_to(np.eye(1500, 4, dtype=np.float32), x.shape)
    keywords: dict[str, Any] = {"is_causal": True, "alibi_slopes": np.array([0.001, 0.0]), "return_lse": True}
    keywords["bias"] = normal((1500, 1)) * normal((1, 1500))
    keywords["mask"] = keywords["bias"] > -2
    _, clean_weights, clean_lse = hw.scaled_dot_product_attention(x, x, value, **keywords)
    keywords |= {"dropout": 0.4, "rng": 3}
    output, weights, lse = hw.scaled_dot_product_attention(x, x, value, **keywords)
    assert_close(weights, clean_weights.astype(np.float64))
    assert_close(lse, clean_lse.astype(np.float64))
    kept = output != 0
    np.testing.assert_allclose(output[kept], weights[..., :4][kept] / np.float32(0.6), rtol=1e-6)
    assert abs((kept.sum() / (weights[..., :4] != 0).sum()) - 0.6) < 0.02
    lean, _, lean_lse = hw.scaled_dot_product_attention(x, x, value, need_weights=False, **keywords)
    assert_close(lean, output.astype(np.float64))
    assert_close(lean_lse, lse.astype(np.float64))


def test_ruling_dropout_function() -> None:
    x = np.ones((300, 400), np.float32)
    got = hw.dropout(x, 0.25, rng=0)
    assert got.dtype == x.dtype and set(np.unique(got)) == {np.float32(0), np.float32(1 / 0.75)}
    assert abs((got == 0).mean() - 0.25) < 0.01
    np.testing.assert_array_equal(got, hw.dropout(x, 0.25, rng=np.random.default_rng(0)))
    np.testing.assert_array_equal(hw.dropout(x, 0.25, training=False), x)
    np.testing.assert_array_equal(hw.dropout(x, 0.0), x)
    for rate in (-0.1, 1.0, 1.5):
        with pytest.raises(ValueError, match="rate"):
            hw.dropout(x, rate)


def test_ruling_randomness(qkv: list[np.ndarray]) -> None:
    """NumPy's global state is neither read nor advanced."""
    before = np.random.get_state()[1].copy()
    hw.dropout(np.ones(9), 0.5)
    hw.scaled_dot_product_attention(*qkv, dropout=0.5)
    np.testing.assert_array_equal(np.random.get_state()[1], before)
    np.random.seed(0)
    first = hw.dropout(np.ones(100), 0.5, rng=4)
    np.random.seed(1)
    np.testing.assert_array_equal(hw.dropout(np.ones(100), 0.5, rng=4), first)
    assert not np.array_equal(hw.dropout(np.ones(100), 0.5), hw.dropout(np.ones(100), 0.5))
    generator = np.random.default_rng(4)
    np.testing.assert_array_equal(hw.dropout(np.ones(100), 0.5, rng=generator), first)
    assert not np.array_equal(hw.dropout(np.ones(100), 0.5, rng=generator), first)


DTYPES = ["bool", "int8", "int64", "float16", "bfloat16", "float32", "float64"]


@pytest.mark.parametrize("first", DTYPES)
@pytest.mark.parametrize("second", DTYPES)
def test_ruling_dtype(first: str, second: str) -> None:
    """Mixed dtypes promote as in NumPy; integers become float64; bfloat16 counts as float32 there."""
    one, other = (dtype_named(name) for name in (first, second))
    query, key = (4 * normal((5, 8), 1)).astype(one), (4 * normal((6, 8), 2)).astype(other)
    if one == other:
        expected = one
    else:
        expected = np.result_type(*(np.dtype("f4") if dtype.name == "bfloat16" else dtype for dtype in (one, other)))
    expected = np.dtype(float) if expected.kind in "biu" else expected
    output, weights = hw.scaled_dot_product_attention(query, key, key)
    assert output.dtype == weights.dtype == expected
    exact = oracle.attention(query, key, key)
    assert_close(output, exact.output, factor=4)
    assert_close(weights, exact.weights, factor=4)


@pytest.mark.parametrize("kind", ["list", "dlpack", "__array__", "subclass"])
def test_ruling_arrays(kind: str, qkv: list[np.ndarray]) -> None:
    """Objects with ``__array__`` or ``__dlpack__``, and lists, are accepted; results are plain arrays."""

    class Holder:
        def __init__(self, array: np.ndarray) -> None:
            self.array = array

    class ByDlpack(Holder):
        def __dlpack__(self, **keywords: Any) -> Any:
            return self.array.__dlpack__(**keywords)

        def __dlpack_device__(self) -> tuple[int, int]:
            return self.array.__dlpack_device__()

    class ByArray(Holder):
        def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
            return np.asarray(self.array, dtype)

    class Subclass(np.ndarray):
        pass

    wrap = {
        "list": np.ndarray.tolist,
        "dlpack": lambda array: ByDlpack(array.copy()),
        "__array__": ByArray,
        "subclass": lambda array: array.view(Subclass),
    }[kind]
    for got, expected in zip(
        hw.scaled_dot_product_attention(*map(wrap, qkv)), hw.scaled_dot_product_attention(*qkv), strict=True
    ):
        assert type(got) is np.ndarray
        np.testing.assert_array_equal(got, expected)
    assert type(hw.softmax(wrap(qkv[0]))) is np.ndarray
