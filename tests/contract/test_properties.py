"""Properties that hold for every input, tested by hypothesis."""

from __future__ import annotations

from typing import Any

import numpy as np
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

import headwise as hw
import oracle
from calls import Sizes
from operations import OPTIONS
from strategies import ARBITRARY, SEEDS, SIZES
from support import assert_close, check_attention

Call = tuple[list[np.ndarray], dict[str, Any]]  # query, key and value, and keywords
DTYPES = st.sampled_from(["float32", "float64"])


@st.composite
def attention_calls(draw: st.DrawFn) -> Call:
    """Query, key, value of one dtype and rank, and any keywords that fit them."""
    rank, dtype = draw(st.integers(2, 5)), draw(DTYPES)
    kv_heads, group = draw(st.integers(1, 3)), draw(st.integers(1, 3))
    batch = draw(hnp.array_shapes(min_dims=max(0, min(rank - 3, 1) + rank - 4), max_dims=rank, max_side=2))
    batch = batch[: {2: 0, 3: 1, 4: 1, 5: 2}[rank]]
    heads, kv_heads = (kv_heads * group, kv_heads) if rank > 3 else (1, 1)
    query_len, key_len = draw(SIZES), draw(SIZES)
    head_dim, value_dim = draw(st.integers(1, 40)), draw(st.integers(1, 40))
    lead, kv_lead = ((*batch, heads), (*batch, kv_heads)) if rank > 3 else (batch, batch)
    rng = np.random.default_rng(draw(SEEDS))
    arrays = [
        rng.standard_normal((*lead, query_len, head_dim)).astype(dtype),
        rng.standard_normal((*kv_lead, key_len, head_dim)).astype(dtype),
        rng.standard_normal((*kv_lead, key_len, value_dim)).astype(dtype),
    ]
    sizes = Sizes(lead, kv_heads, query_len, key_len, head_dim, value_dim)
    chosen = draw(st.sets(st.sampled_from(sorted(name for name in OPTIONS if OPTIONS[name].exact)), max_size=6))
    return arrays, {name: draw(OPTIONS[name].draw(st, normals, sizes)) for name in sorted(chosen)}


def normals(shape: tuple[int, ...]) -> st.SearchStrategy[np.ndarray]:
    return SEEDS.map(lambda seed: oracle.normal(np.random.default_rng(seed), shape))


@given(attention_calls())
def test_attention_equals_the_oracle(call: Call) -> None:
    arrays, keywords = call
    check_attention(arrays, keywords, oracle.attention(*arrays, **keywords), factor=4)


@given(attention_calls(), SEEDS)
def test_attention_is_invariant_under_permutation_of_keys(call: Call, seed: int) -> None:
    (query, key, value), _ = call
    order = np.random.default_rng(seed).permutation(key.shape[-2])
    one = hw.flash_attention(query, key, value)
    other = hw.flash_attention(query, key[..., order, :], value[..., order, :])
    assert_close(other, one.astype(float), factor=4)


@given(attention_calls())
def test_attention_to_equal_values_is_that_value(call: Call) -> None:
    """Weights sum to 1, so equal values are returned unchanged; a fully masked row is 0."""
    (query, key, value), keywords = call
    for name in ("sinks", "relative_values"):
        keywords.pop(name, None)
    output, lse = hw.flash_attention(query, key, np.ones_like(value), return_lse=True, **keywords)
    expected = np.broadcast_to(np.isfinite(lse)[..., None], output.shape).astype(float)
    assert_close(output, expected, factor=4)


@given(attention_calls(), st.data())
def test_causal_attention_of_a_prefix(call: Call, data: st.DataObject) -> None:
    """Later tokens have no influence: the first rows are those of the shorter sequence."""
    (query, key, value), _ = call
    whole = hw.flash_attention(query, key, value, is_causal=True)
    length = data.draw(st.integers(1, min(query.shape[-2], key.shape[-2])))
    part = hw.flash_attention(query[..., :length, :], key[..., :length, :], value[..., :length, :], is_causal=True)
    assert_close(part, whole[..., :length, :].astype(float), factor=4)


@given(attention_calls())
def test_lower_right_alignment_equals_the_last_rows_of_a_longer_query(call: Call) -> None:
    """Decoding: the last queries against a cache have the results that they have in the whole sequence."""
    (query, key, value), _ = call
    heads, length = query.shape[-3] if query.ndim > 3 else 1, min(query.shape[-2], key.shape[-2])
    whole = np.repeat(key, query.shape[-3] // key.shape[-3], axis=-3) if query.ndim > 3 else key
    keywords: dict[str, Any] = {"is_causal": True, "window_size": (40, 0), "alibi_slopes": np.full(heads, 0.1)}
    full = hw.flash_attention(whole, key, value, **keywords)
    last = hw.flash_attention(whole[..., -length:, :], key, value, causal_alignment="lower_right", **keywords)
    assert_close(last, full[..., -length:, :].astype(float), factor=8)


@given(attention_calls())
def test_grouped_heads_equal_repeated_heads(call: Call) -> None:
    (query, key, value), keywords = call
    if query.ndim > 3:
        group = query.shape[-3] // key.shape[-3]
        repeated = [np.repeat(array, group, axis=-3) for array in (key, value)]
        grouped = hw.flash_attention(query, key, value, **keywords)
        assert_close(grouped, hw.flash_attention(query, *repeated, **keywords).astype(float), factor=4)


@given(attention_calls(), st.floats(-50, 50))
def test_attention_is_linear_in_values_and_invariant_under_a_constant_bias(call: Call, shift: float) -> None:
    (query, key, value), _ = call
    plain, lse = hw.flash_attention(query, key, value, return_lse=True)
    moved, moved_lse = hw.flash_attention(query, key, 2 * value, bias=np.full((1, 1), shift), return_lse=True)
    factor = 4 + abs(shift)
    assert_close(moved, 2.0 * plain.astype(float), factor)
    assert_close(moved_lse, lse.astype(float) + shift, factor)


FLOATS = {"float32": st.floats(-1e4, 1e4, width=32), "float64": st.floats(-1e4, 1e4)}
TENSORS = DTYPES.flatmap(
    lambda dtype: hnp.arrays(dtype, hnp.array_shapes(max_dims=4, max_side=40), elements=FLOATS[dtype])
)


@given(TENSORS, st.data())
def test_softmax_family_equals_the_oracle(x: np.ndarray, data: st.DataObject) -> None:
    axis = data.draw(st.integers(-x.ndim, x.ndim - 1))
    assert_close(hw.softmax(x, axis), oracle.softmax(x, axis), factor=2)
    assert_close(hw.log_softmax(x, axis), oracle.log_softmax(x, axis), factor=2)
    assert_close(np.asarray(hw.logsumexp(x, axis)), oracle.logsumexp(x, axis), factor=2)


@given(hnp.arrays(np.int16, hnp.array_shapes(max_dims=3, max_side=20)), st.integers(-1000, 1000), st.data())
def test_softmax_of_shifted_logits(x: np.ndarray, shift: int, data: st.DataObject) -> None:
    """Integers, so that the shift is exact: the bits are the same."""
    axis = data.draw(st.integers(-x.ndim, x.ndim - 1))
    logits = x.astype(np.float32)
    np.testing.assert_array_equal(hw.softmax(logits + np.float32(shift), axis), hw.softmax(logits, axis))


@given(TENSORS, st.data())
def test_softmax_sums_to_one(x: np.ndarray, data: st.DataObject) -> None:
    axis = data.draw(st.integers(-x.ndim, x.ndim - 1))
    got = hw.softmax(x, axis)
    assert (got >= 0).all()
    np.testing.assert_allclose(got.sum(axis, dtype=float), 1, atol=1e-6 if x.dtype == np.float32 else 1e-14)


@given(DTYPES, st.integers(1, 40), st.integers(1, 30), st.integers(0, 10**5), st.booleans(), SEEDS)
def test_rope_keeps_norms_and_depends_on_distance(
    dtype: str, pairs: int, distance: int, start: int, interleaved: bool, seed: int
) -> None:
    rng = np.random.default_rng(seed)
    query, key = rng.standard_normal((2, 1, 2 * pairs)).astype(dtype)

    def turned(x: np.ndarray, position: int) -> np.ndarray:
        cos, sin = oracle.rope_tables([position], 2 * pairs)
        return hw.apply_rope(x, cos.astype(dtype), sin.astype(dtype), interleaved=interleaved)

    tolerance = (2e-6 if dtype == "float32" else 1e-14) * 2 * pairs
    here, there = turned(query, start), turned(key, start + distance)
    assert abs((here.astype(float) ** 2).sum() - (query.astype(float) ** 2).sum()) < 2 * tolerance
    score = float((here.astype(float) * there).sum())
    origin = float((turned(query, 0).astype(float) * turned(key, distance)).sum())
    assert abs(score - origin) < tolerance


@given(DTYPES, st.integers(1, 60), st.integers(1, 60), st.integers(1, 60), st.booleans(), SEEDS)
def test_linear_equals_the_oracle(dtype: str, rows: int, width: int, columns: int, transposed: bool, seed: int) -> None:
    rng = np.random.default_rng(seed)
    x, bias = rng.standard_normal((rows, width)).astype(dtype), rng.standard_normal(columns).astype(dtype)
    weight = (
        rng.standard_normal((columns, width)).astype(dtype).T
        if transposed
        else (rng.standard_normal((width, columns)).astype(dtype))
    )
    assert_close(hw.linear(x, weight, bias), oracle.linear(x, weight, bias), factor=8)


@given(DTYPES, hnp.array_shapes(min_dims=1, max_dims=4, max_side=40), st.floats(1e-6, 10), SEEDS, st.data())
def test_layer_normalization_equals_the_oracle(
    dtype: str, shape: tuple[int, ...], eps: float, seed: int, data: st.DataObject
) -> None:
    rng = np.random.default_rng(seed)
    axis = data.draw(st.integers(-len(shape), len(shape) - 1))
    x = rng.standard_normal(shape).astype(dtype)
    gamma, beta = rng.standard_normal((2, shape[axis])).astype(dtype)
    expected = oracle.layer_normalization(x, gamma, beta, eps, axis)
    # With few features the variance can be small, and the rounding error of x - mean is divided by its root.
    factor = 4 / np.sqrt(np.var(x.astype(float), axis=axis).min(initial=1) + eps)
    assert_close(hw.layer_normalization(x, gamma, beta, eps=eps, axis=axis), expected, factor=max(4, factor))


@given(st.integers(1, 300))
def test_alibi_slopes_equal_the_oracle(num_heads: int) -> None:
    np.testing.assert_allclose(hw.alibi_slopes(num_heads), oracle.alibi_slopes(num_heads), rtol=1e-15)


KEYWORDS = [*OPTIONS, "out"]


@given(st.dictionaries(st.sampled_from(KEYWORDS), ARBITRARY, min_size=1, max_size=3), ARBITRARY, ARBITRARY)
def test_any_arguments_work_or_are_refused_by_name(keywords: dict[str, Any], query: Any, key: Any) -> None:
    """Every call has a result, or raises a ValueError or TypeError that names one of its arguments."""
    x = np.ones((2, 2, 3, 4), np.float32)
    for arrays in ((x, x, x), (query, key, key)):
        try:
            hw.flash_attention(*arrays, **keywords)
        except (ValueError, TypeError) as refusal:
            message = str(refusal)
            assert any(message.startswith(f"{name}:") for name in ("query", "key", "value", *keywords)), message
