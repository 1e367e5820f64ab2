"""Attention against the oracle: every size around a block or vector edge, every keyword, alone and with each other."""

from __future__ import annotations

from itertools import combinations
from typing import Any

import numpy as np
import pytest

import headwise as hw
import oracle
from support import AttentionCase, assert_close, dtype_named, normal

TAILS = [1, 2, 3, 7, 8, 9, 15, 16, 17, 31, 32, 33, 47, 48, 49, 63, 64, 65, 100]

KEY_BLOCKS = [*TAILS, 127, 128, 129, 255, 256, 257, 300, 513]

HEAD_DIMS = [*range(1, 71), 127, 128, 129, 200]

HEAD_DIM_CASES = {
    f"{dim}-{dtype}": AttentionCase((1, 2, 9, dim), (1, 2, 19, dim), dim, dtype=dtype)
    for dtype, dims in {"float32": HEAD_DIMS, "float64": [*TAILS, 127, 129, 200]}.items()
    for dim in dims
}

VALUE_DIM_CASES = {
    f"{value_dim}-{head_dim}": AttentionCase((1, 2, 9, head_dim), (1, 2, 19, head_dim), value_dim)
    for head_dim, value_dims in {16: HEAD_DIMS, 33: [1, 5, 16, 32, 34, 64, 200]}.items()
    for value_dim in value_dims
}

LENGTH_CASES = {
    f"{query_len}x{key_len}{'-causal' * causal}-{dtype}": AttentionCase(
        (1, 2, query_len, 24), (1, 2, key_len, 24), 20, {"is_causal": causal}, dtype
    )
    for dtype in ("float32", "float64")
    for causal in (False, True)
    for query_len, key_len in [
        *((query_len, key_len) for query_len in TAILS for key_len in (1, 64, 100)),
        *((query_len, key_len) for query_len in (1, 6, 33) for key_len in KEY_BLOCKS),
        (257, 129),
        (300, 513),
    ]
    if dtype == "float32" or query_len in (1, 6, 33, 257)
}


@pytest.mark.parametrize("case", HEAD_DIM_CASES.values(), ids=HEAD_DIM_CASES)
def test_head_dim(case: AttentionCase) -> None:
    case.check()


@pytest.mark.parametrize("case", VALUE_DIM_CASES.values(), ids=VALUE_DIM_CASES)
def test_value_width_differs_from_key_width(case: AttentionCase) -> None:
    case.check()


@pytest.mark.parametrize("case", LENGTH_CASES.values(), ids=LENGTH_CASES)
def test_lengths(case: AttentionCase) -> None:
    case.check()


GROUP_CASES = {
    f"{batch}x{heads}-over-{kv_heads}": AttentionCase((batch, heads, 7, 16), (batch, kv_heads, 21, 16), 12)
    for batch, heads, kv_heads in [
        (1, 1, 1), (3, 5, 5), (2, 8, 1), (2, 8, 2), (2, 8, 4), (1, 6, 3), (2, 12, 4), (1, 7, 1), (1, 40, 8), (9, 16, 16)
    ]
}  # fmt: skip


@pytest.mark.parametrize("case", GROUP_CASES.values(), ids=GROUP_CASES)
def test_heads_and_grouped_heads(case: AttentionCase) -> None:
    case.check()


RANK_CASES = {
    "2": AttentionCase(
        (13, 8), (17, 8), 5, {"is_causal": True, "alibi_slopes": np.array([0.3]), "sinks": np.array([0.7])}
    ),
    "3": AttentionCase((4, 13, 8), (4, 17, 8), 5, {"alibi_slopes": np.array([0.3]), "sinks": np.array([0.7])}),
    "4": AttentionCase((2, 3, 13, 8), (2, 3, 17, 8), 5, {"sinks": np.array([0.1, 0.7, -1.0])}),
    "5": AttentionCase((2, 3, 4, 13, 8), (2, 3, 2, 17, 8), 5, {"sinks": np.array([0.1, 0.7, -1.0, 0.0])}),
    "6": AttentionCase((1, 2, 3, 2, 13, 8), (1, 2, 3, 1, 17, 8), 5),
    "5-padding": AttentionCase((2, 3, 4, 5, 8), (2, 3, 4, 6, 8), 5, {"key_padding_mask": normal((2, 3, 6)) > 0}),
}


@pytest.mark.parametrize("case", RANK_CASES.values(), ids=RANK_CASES)
def test_rank(case: AttentionCase) -> None:
    case.check()
    assert hw.flash_attention(*case.arrays, **case.keywords).ndim == len(case.query)


BATCH, HEADS, QUERY_LEN, KEY_LEN = 2, 4, 37, 45

SCORES = (BATCH, HEADS, QUERY_LEN, KEY_LEN)

PADDING = np.arange(KEY_LEN) < np.array([[KEY_LEN], [30]])

KEYWORDS = {
    "keep-mask": {"mask": normal(SCORES) > -0.5},
    "float-mask": {"mask": normal(SCORES)},
    "bias": {"bias": normal((HEADS, 1, KEY_LEN))},
    "causal": {"is_causal": True},
    "lower-right": {"causal_alignment": "lower_right"},
    "scale": {"scale": 0.71},
    "window": {"window_size": (5, 3)},
    "softcap": {"softcap": 1.3},
    "alibi": {"alibi_slopes": np.array([0.5, 0.25, 0.125, 1.5])},
    "sinks": {"sinks": np.array([0.5, -np.inf, 4.0, -1.0])},
    "key-padding": {"key_padding_mask": PADDING},
}

KEYWORD_CASES = {
    "+".join(names): AttentionCase(
        (BATCH, HEADS, QUERY_LEN, 16),
        (BATCH, 2, KEY_LEN, 16),
        9,
        {key: value for name in names for key, value in KEYWORDS[name].items()},
    )
    for names in [
        *((name,) for name in KEYWORDS),
        *combinations(KEYWORDS, 2),
        ("causal", "lower-right", "window"),
        ("causal", "lower-right", "alibi"),
        ("causal", "lower-right", "window", "alibi", "key-padding"),
        tuple(name for name in KEYWORDS if name != "float-mask"),
        tuple(name for name in KEYWORDS if name != "keep-mask"),
    ]
    if not {"keep-mask", "float-mask"} <= set(names)
}


@pytest.mark.parametrize("case", KEYWORD_CASES.values(), ids=KEYWORD_CASES)
def test_keywords(case: AttentionCase) -> None:
    case.check()


DOUBLE_CASES = {
    name: AttentionCase(case.query, case.key, case.value_dim, case.keywords, "float64")
    for name, case in KEYWORD_CASES.items()
    if name.count("+") != 1
}


@pytest.mark.parametrize("case", DOUBLE_CASES.values(), ids=DOUBLE_CASES)
def test_keywords_in_double_precision(case: AttentionCase) -> None:
    case.check()


WINDOW_CASES = {
    f"{window}-{alignment}{'-causal' * causal}-{query_len}x{key_len}": AttentionCase(
        (2, query_len, 8), (2, key_len, 8), 8,
        {"window_size": window, "causal_alignment": alignment, "is_causal": causal},
    )
    for window in (0, 1, 16, 1000, (0, 0), (-1, 0), (0, -1), (-1, -1), (3, 70), (70, 3))
    for alignment in ("upper_left", "lower_right")
    for causal in (False, True)
    for query_len, key_len in ((1, 130), (66, 130), (130, 66))
}  # fmt: skip


@pytest.mark.parametrize("case", WINDOW_CASES.values(), ids=WINDOW_CASES)
def test_window(case: AttentionCase) -> None:
    case.check()


MASKS = {
    "one": (1, 1),
    "rows-shared": (1, KEY_LEN),
    "columns-shared": (QUERY_LEN, 1),
    "2d": (QUERY_LEN, KEY_LEN),
    "padding": (BATCH, KEY_LEN),
    "3d-heads": (HEADS, QUERY_LEN, KEY_LEN),
    "3d-one": (1, QUERY_LEN, KEY_LEN),
    "4d": SCORES,
    "4d-batch": (BATCH, 1, 1, KEY_LEN),
    "4d-heads": (1, HEADS, QUERY_LEN, 1),
    "4d-columns-shared": (BATCH, HEADS, QUERY_LEN, 1),
    "4d-one": (1, 1, 1, 1),
}

MASK_CASES = {
    f"{name}-{kind}": AttentionCase((BATCH, HEADS, QUERY_LEN, 8), (BATCH, 1, KEY_LEN, 8), 8, keywords)
    for name, shape in MASKS.items()
    for kind, keywords in {
        "bool": {"mask": normal(shape) > -0.6},
        "int64": {"mask": (normal(shape) > -0.6) * 1},
        "uint8": {"mask": (normal(shape) > -0.6).astype(np.uint8)},
        "float-keep": {"mask": np.where(np.arange(np.prod(shape)).reshape(shape) % 3, 1.0, 0.0)},
        "float": {"mask": normal(shape, dtype=np.float64)},
        "float-and-inf": {"mask": np.where(normal(shape) > 1, -np.inf, normal(shape, 1))},
        "bias": {"bias": normal(shape)},
    }.items()
    if not (name.endswith("one") and kind == "float-keep")
}


MASK_CASES |= {
    "rank3-3d": AttentionCase((3, 9, 8), (3, 11, 8), 8, {"mask": normal((3, 9, 11)) > 0}),
    "rank3-4d": AttentionCase((3, 9, 8), (3, 11, 8), 8, {"mask": normal((3, 1, 9, 11)) > 0}),
    "rank3-4d-shared": AttentionCase((3, 9, 8), (3, 11, 8), 8, {"mask": normal((1, 1, 9, 11)) > 0}),
    "rank3-padding": AttentionCase((3, 9, 8), (3, 11, 8), 8, {"mask": normal((3, 11)) > 0}),
    "rank2-3d": AttentionCase((9, 8), (11, 8), 8, {"mask": normal((1, 9, 11)) > 0}),
    "rank2-4d": AttentionCase((9, 8), (11, 8), 8, {"mask": normal((1, 1, 9, 11)) > 0}),
    "rank5-5d": AttentionCase((2, 3, 2, 9, 8), (2, 3, 2, 11, 8), 8, {"mask": normal((2, 1, 2, 9, 11)) > 0}),
    "rank5-3d": AttentionCase((2, 3, 2, 9, 8), (2, 3, 2, 11, 8), 8, {"bias": normal((2, 1, 11))}),
}


@pytest.mark.parametrize("case", MASK_CASES.values(), ids=MASK_CASES)
def test_mask_shapes(case: AttentionCase) -> None:
    case.check()


def test_several_masks_combine() -> None:
    case = AttentionCase(
        (BATCH, HEADS, QUERY_LEN, 8), (BATCH, HEADS, KEY_LEN, 8), 8,
        {
            "mask": normal((QUERY_LEN, KEY_LEN)) > -0.5,
            "bias": np.where(normal(SCORES) > 1, -np.inf, normal((BATCH, 1, QUERY_LEN, 1))),
            "key_padding_mask": PADDING.astype(np.int32),
            "is_causal": True,
            "window_size": (20, 0),
        },
    )  # fmt: skip
    case.check()


def large_logits(dtype: str) -> AttentionCase:
    """Scores are whole numbers of up to 1e4, exact in either dtype."""
    case = AttentionCase((1, 4, 130, 8), (1, 4, 130, 8), 8, {"scale": 1.0}, dtype)
    case.arrays[:2] = np.random.default_rng(3).integers(-40, 41, (2, 1, 4, 130, 8)).astype(dtype)
    return case


LARGE_LOGITS = {dtype: large_logits(dtype) for dtype in ("float32", "float64")}


@pytest.mark.parametrize("dtype", LARGE_LOGITS)
def test_large_logits(dtype: str) -> None:
    """Exact scores have exact differences: large scores cost the weights no accuracy."""
    case = LARGE_LOGITS[dtype]
    assert abs(case.expected.lse).max() > 5e3
    case.check()


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_large_bias(dtype: str) -> None:
    """The rounding of a score near -1e4, 5e-4 in float32 and 1e-12 in float64, is the only error."""
    AttentionCase((1, 2, 70, 8), (1, 2, 130, 8), 8, {"bias": np.full((1, 1), -1e4)}, dtype).check(factor=300)


LOWEST_CASES = {
    f"{dtype}-{keyword}-{fill}": AttentionCase(
        (1, 2, 9, 8), (1, 2, 70, 8), 8,
        {keyword: np.where((normal((9, 70)) > 0) & (np.arange(9)[:, None] != 4), 0, np.finfo(fill).min)}, dtype,
    )
    for dtype in ("float32", "float64")
    for keyword in ("mask", "bias")
    for fill in ("float32", "float64")
}  # fmt: skip


@pytest.mark.parametrize("case", LOWEST_CASES.values(), ids=LOWEST_CASES)
def test_lowest_finite_number_as_a_mask(case: AttentionCase) -> None:
    """The lowest finite number in place of -inf: a row of nothing else has uniform weights, not zeros."""
    output, weights = hw.scaled_dot_product_attention(*case.arrays, **case.keywords)
    np.testing.assert_allclose(weights[:, :, 4], 1 / 70, rtol=1e-6)
    assert_close(weights, case.expected.weights)
    assert_close(output, case.expected.output)
    output, lse = hw.flash_attention(*case.arrays, **case.keywords, return_lse=True)
    assert_close(output, case.expected.output)
    assert np.isfinite(lse).all()


@pytest.mark.parametrize("dtype", ["int8", "int64", "float16", "bfloat16", "float64"])
def test_bias_of_another_dtype(dtype: str) -> None:
    bias = (3 * normal((9, 20))).astype(dtype_named(dtype))
    AttentionCase((1, 2, 9, 8), (1, 2, 20, 8), 8, {"bias": bias}).check()
    AttentionCase((1, 2, 9, 8), (1, 2, 20, 8), 8, {"bias": (bias != 0).astype(bias.dtype)}).check()


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_subnormal_values_are_not_flushed(dtype: str) -> None:
    tiny = np.finfo(dtype).smallest_subnormal
    value = np.full((1, 1, 33, 9), 1000 * tiny, dtype)
    query = normal((1, 1, 5, 8), dtype=dtype)
    key = normal((1, 1, 33, 8), 1, dtype)
    output = hw.flash_attention(query, key, value)
    assert (abs(output / tiny - 1000) <= 40).all()
    zero_scores = hw.scaled_dot_product_attention(query * 0 + tiny, key, key)[1]
    np.testing.assert_allclose(zero_scores, 1 / 33, rtol=1e-6)


@pytest.mark.parametrize("scale", [0.0, -0.5, 1e-30, 3.0])
def test_scale(scale: float) -> None:
    AttentionCase((1, 2, 33, 16), (1, 2, 47, 16), 16, {"scale": scale}).check(factor=4)


@pytest.mark.parametrize("softcap", [0.01, 1.0, 30.0, 1e6])
def test_softcap(softcap: float) -> None:
    AttentionCase((1, 2, 33, 16), (1, 2, 47, 16), 16, {"softcap": softcap, "scale": 1.0}).check(factor=4)


@pytest.mark.parametrize("sink", [-np.inf, -1e4, -3.0, 0.0, 3.0, 1e4])
def test_sinks(sink: float) -> None:
    keep = np.ones((33, 100), bool)
    keep[5] = False
    keywords = {"sinks": np.array([sink, 0.5], np.float32), "mask": keep}
    case = AttentionCase((1, 2, 33, 16), (1, 2, 100, 16), 16, keywords)
    case.check()
    output, weights, lse = hw.scaled_dot_product_attention(*case.arrays, **keywords, return_lse=True)
    assert not output[:, :, 5].any() and not weights[:, :, 5].any()
    np.testing.assert_allclose(lse[0, :, 5], [sink, 0.5], rtol=3e-7)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32", "float64"])
def test_weights_lse_and_output_agree(dtype: str) -> None:
    case = AttentionCase((2, 3, 50, 16), (2, 3, 70, 16), 16, {"is_causal": True}, dtype)
    case.check()
    output, weights, lse = hw.scaled_dot_product_attention(*case.arrays, is_causal=True, return_lse=True)
    assert output.dtype == weights.dtype == case.arrays[0].dtype
    assert lse.shape == (2, 3, 50)


def test_returned_tuples() -> None:
    query = normal((2, 5, 8))
    assert len(hw.scaled_dot_product_attention(query, query, query)) == 2
    assert len(hw.scaled_dot_product_attention(query, query, query, return_lse=True)) == 3
    output, weights = hw.scaled_dot_product_attention(query, query, query, need_weights=False)
    assert weights is None
    output_lse, weights, lse = hw.scaled_dot_product_attention(query, query, query, need_weights=False, return_lse=True)
    assert weights is None and lse.shape == (2, 5)
    assert isinstance(hw.flash_attention(query, query, query), np.ndarray)
    flash, flash_lse = hw.flash_attention(query, query, query, return_lse=True)
    for other in (output_lse, flash):
        np.testing.assert_array_equal(output, other)
    np.testing.assert_array_equal(lse, flash_lse)


def test_highest_precision_is_the_default() -> None:
    case = AttentionCase((1, 2, 50, 32), (1, 2, 70, 32), 32)
    default = hw.flash_attention(*case.arrays)
    for precision in (None, "highest"):
        np.testing.assert_array_equal(hw.flash_attention(*case.arrays, precision=precision), default)


@pytest.mark.parametrize("precision", ["high", "medium"])
def test_lower_precision_is_still_attention(precision: str) -> None:
    case = AttentionCase((1, 2, 50, 32), (1, 2, 70, 32), 32)
    got = hw.flash_attention(*case.arrays, precision=precision)
    np.testing.assert_allclose(got, case.expected.output, atol=0.03)


def test_inputs_are_not_written() -> None:
    query, key, value = (normal((2, 2, 40, 8), seed) for seed in range(3))
    before = [array.copy() for array in (query, key, value)]
    hw.scaled_dot_product_attention(query, key, value, is_causal=True, mask=normal((40, 40)))
    for array, copy in zip((query, key, value), before, strict=True):
        np.testing.assert_array_equal(array, copy)


@pytest.mark.parametrize("layout", ["batch", "heads", "query", "key", "value-width"])
def test_empty(layout: str) -> None:
    shape = {"batch": 2, "heads": 3, "query": 4, "key": 5, "value-width": 6} | {layout: 0}
    batch, heads, query_len, key_len, width = shape.values()
    query, key = np.ones((batch, heads, query_len, 8)), np.ones((batch, heads, key_len, 8))
    value = np.ones((batch, heads, key_len, width))
    output, weights, lse = hw.scaled_dot_product_attention(query, key, value, return_lse=True)
    assert output.shape == (batch, heads, query_len, width)
    assert weights.shape == (batch, heads, query_len, key_len)
    assert not output.any() or layout == "value-width"
    assert lse.shape == (batch, heads, query_len)
    if layout == "key":
        assert (lse == -np.inf).all()
    if layout == "value-width":
        assert_close(weights, np.full(weights.shape, 1 / key_len))
    AttentionCase(query.shape, key.shape, width).check()


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize(
    "keywords",
    [
        {},
        {"is_causal": True, "causal_alignment": "lower_right"},
        {"window_size": (700, 900), "sinks": [0.5, -2.0]},
        {"mask": np.arange(2600) >= 1100},
    ],
    ids=["dense", "causal", "window", "first blocks masked"],
)
@pytest.mark.parametrize("queries", [33, 3], ids=["blocks", "chunks"])
def test_weights_of_many_blocks_of_keys(queries: int, keywords: dict[str, Any], dtype: str) -> None:
    """Rows too long for the staging buffer of the weights, whose maximum rises and falls from block to block;
    with few queries the keys are split."""
    query, key, value = (normal((1, 2, n, 16), seed, dtype) for seed, n in enumerate((queries, 2600, 2600)))
    key *= 1.0 + 3.0 * np.sin(np.linspace(0.0, 9.0, 2600, dtype=dtype))[:, np.newaxis] ** 2
    expected = oracle.attention(query, key, value, **keywords)
    got = hw.scaled_dot_product_attention(query, key, value, return_lse=True, **keywords)
    tolerance = {"rtol": 5e-5, "atol": 1e-6} if dtype == "float32" else {"rtol": 1e-11, "atol": 1e-14}
    for a, b in zip(got, expected, strict=True):
        np.testing.assert_allclose(a, b, **tolerance)
    assert expected.weights.max() > 0.1  # peaks, and almost 0 elsewhere
