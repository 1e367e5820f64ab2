"""Gradients of attention: against PyTorch, with NaN behind masks, and over many blocks."""

from __future__ import annotations

import itertools
import tracemalloc
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import headwise as hw
from support import ATOL, dtype_named, normal

NAN = np.nan


def by_torch(arrays: dict[str, np.ndarray], d_output: np.ndarray, options: dict[str, Any]) -> dict[str, np.ndarray]:
    """Gradients by autograd of the formula over whole matrices, in float64."""
    torch = pytest.importorskip("torch", reason="gradients are compared with torch's autograd")
    t = {name: torch.from_numpy(np.asarray(x, np.float64)).requires_grad_() for name, x in arrays.items()}
    query, key, value = (t[name] for name in ("query", "key", "value"))
    key, value = (x.repeat_interleave(query.shape[1] // key.shape[1], dim=1) for x in (key, value))
    scores = query @ key.transpose(-1, -2) * options.get("scale", query.shape[-1] ** -0.5)
    if "softcap" in options:
        scores = options["softcap"] * torch.tanh(scores / options["softcap"])
    i, j = torch.arange(scores.shape[-2])[:, None], torch.arange(scores.shape[-1])
    if "bias" in t:
        scores = scores + t["bias"]
    if "alibi_slopes" in t:
        scores = scores - t["alibi_slopes"][:, None, None] * (i - j).abs()
    keep = torch.ones(scores.shape[-2:], dtype=torch.bool)
    if options.get("is_causal"):
        keep = keep & (j <= i)
    if "window_size" in options:
        keep = keep & ((i - j).abs() <= options["window_size"])
    if "mask" in options:
        keep = keep & torch.from_numpy(options["mask"])
    scores = scores.masked_fill(~keep, -torch.inf)
    if "sinks" in t:
        scores = torch.cat([scores, t["sinks"][:, None, None].expand(*scores.shape[:-1], 1)], dim=-1)
    weights = torch.softmax(scores, dim=-1)[..., : key.shape[-2]]
    (weights @ value).backward(torch.from_numpy(np.asarray(d_output, np.float64)))
    return {name: x.grad.numpy() for name, x in t.items()}


SHAPES = {
    "small": (2, 4, 2, 9, 13, 8, 6),
    "blocks": (1, 2, 1, 530, 700, 16, 24),
    "one-head": (1, 1, 1, 300, 300, 64, 64),
}
OPTIONS: dict[str, dict[str, Any]] = {
    "plain": {},
    "causal": {"is_causal": True, "scale": 0.3},
    "everything": {"is_causal": True, "window_size": 5, "softcap": 2.0},
    "mask": {"softcap": 5.0},
}


@pytest.mark.parametrize("dtype", ["float64", "float32", "float16", "bfloat16"])
@pytest.mark.parametrize("options", OPTIONS)
@pytest.mark.parametrize("shape", SHAPES)
def test_torch(shape: str, options: str, dtype: str) -> None:
    batch, heads, kv_heads, queries, keys, head_dim, value_dim = SHAPES[shape]
    keywords = dict(OPTIONS[options])
    shapes = {
        "query": (batch, heads, queries, head_dim), "key": (batch, kv_heads, keys, head_dim),
        "value": (batch, kv_heads, keys, value_dim),
    }  # fmt: skip
    if options in ("everything", "mask"):
        shapes |= {"bias": (heads, 1, keys), "sinks": (heads,), "alibi_slopes": (heads,)}
    arrays = {name: normal(size, seed).astype(dtype_named(dtype)) for seed, (name, size) in enumerate(shapes.items())}
    if "alibi_slopes" in arrays:
        arrays["alibi_slopes"] = np.linspace(0.01, 0.1, heads).astype(dtype_named(dtype))
    if options == "mask":
        keywords["mask"] = normal((queries, keys), 9) > -0.5
    d_output = normal((batch, heads, queries, value_dim), 10).astype(dtype_named(dtype))
    _, pullback = hw.vjp(hw.flash_attention, **arrays, **keywords, wrt=tuple(arrays))
    expected = by_torch(arrays, d_output, keywords)
    tolerance = {"float64": 1e-12, "float32": 1e-5, "float16": 2e-3, "bfloat16": 1.6e-2}[dtype]
    for (name, answer), gradient in zip(expected.items(), pullback(d_output), strict=True):
        assert gradient.dtype == arrays[name].dtype
        if name == "alibi_slopes" and gradient.itemsize == 2 and shape != "small":
            continue  # distances of hundreds multiply the rounding of the 16-bit output
        error = np.abs(gradient.astype(np.float64) - answer).max()
        assert error <= tolerance * np.abs(answer).max(), name


@pytest.mark.parametrize("dtype", ["float64", "float32", "float16"])
@pytest.mark.parametrize("way", ["mask", "bias", "key_padding_mask", "key_lengths", "is_causal", "window_size"])
def test_nan_behind_masks(way: str, dtype: str) -> None:
    """Masked keys and values, and gradients of rows that see no key, reach no gradient, and theirs is 0."""
    q, k, v, d_output = (normal((2, 4, 12, 8), seed).astype(dtype) for seed in range(4))
    keep = np.ones((12, 12), bool)
    keep[:, 9:] = False
    options: dict[str, Any] = {
        "mask": {"mask": keep},
        "bias": {"bias": np.where(keep, 0.5, -np.inf)},
        "key_padding_mask": {"key_padding_mask": keep[:2]},
        "key_lengths": {"key_lengths": [9, 9]},
        "is_causal": {"is_causal": True},
        "window_size": {"window_size": 1},
    }[way]
    options["sinks"] = np.zeros(4)
    hidden = slice(9, None)
    rows = slice(None)
    if way in ("is_causal", "window_size"):  # the last keys are masked for the first rows alone
        rows = slice(0, 8)
    q, d_output = q[:, :, rows], d_output[:, :, rows]
    wrt = ("query", "key", "value", "sinks")
    output, pullback = hw.vjp(hw.flash_attention, q, k, v, **options, wrt=wrt)
    expected = pullback(d_output)
    for bad in (NAN, np.inf, -np.inf):
        k2, v2 = k.copy(), v.copy()
        k2[:, :, hidden] = v2[:, :, hidden] = bad
        result, pullback = hw.vjp(hw.flash_attention, q, k2, v2, **options, wrt=wrt)
        np.testing.assert_array_equal(result, output)
        for gradient, clean in zip(pullback(d_output), expected, strict=True):
            np.testing.assert_array_equal(gradient, clean)
    assert not expected.d_key[:, :, hidden].any() and not expected.d_value[:, :, hidden].any()


@pytest.mark.parametrize("dtype", ["float64", "float32", "float16"])
def test_rows_that_see_no_key(dtype: str) -> None:
    q, k, v, d_output = (normal((1, 2, 6, 8), seed).astype(dtype) for seed in range(4))
    keep = np.ones((6, 6), bool)
    keep[3:] = False
    _, pullback = hw.vjp(
        hw.flash_attention, q, k, v, mask=keep, sinks=np.ones(2), wrt=("query", "key", "value", "sinks")
    )
    clean = pullback(np.where(keep[:, :1], d_output, 0).astype(dtype))
    bad_q, bad_d = q.copy(), d_output.copy()
    bad_q[:, :, 3:] = bad_d[:, :, 3:] = NAN
    bad_d[:, :, 4] = np.inf
    _, pullback = hw.vjp(
        hw.flash_attention, bad_q, k, v, mask=keep, sinks=np.ones(2), wrt=("query", "key", "value", "sinks")
    )
    for gradient, expected in zip(pullback(bad_d), clean, strict=True):
        np.testing.assert_array_equal(gradient, expected)
    assert not clean.d_query[:, :, 3:].any()


def test_nan_of_a_row_reaches_what_it_sees() -> None:
    """The contrary: a NaN that is not masked does show, in the keys that its row sees, and only there."""
    q, k, v, d_output = (normal((1, 1, 6, 8), seed) for seed in range(4))
    q[0, 0, 2, 3] = NAN
    _, pullback = hw.vjp(hw.flash_attention, q, k, v, is_causal=True)
    d_query, d_key, d_value = (np.isnan(d).any(axis=-1)[0, 0] for d in pullback(d_output))
    assert d_query.tolist() == [False, False, True, False, False, False]
    assert d_key.tolist() == d_value.tolist() == [True, True, True, False, False, False]


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("per_query", [False, True])
def test_relative_bias_of_packed_sequences(per_query: bool, dtype: str) -> None:
    """With its gradient and without it, the other gradients have the same bits; it is the sum of the sequences'."""
    starts, heads = (0, 40, 40, 130), 4
    query, d_output = normal((2, starts[-1], heads, 16), 1, dtype_named(dtype))
    key, value = normal((2, starts[-1], 2, 16), 2, dtype_named(dtype))
    relative = normal((heads, starts[-1] if per_query else 1, 41), 3)
    heads_only = normal((2, heads), 4)
    options: dict[str, Any] = {"is_causal": True, "alibi_slopes": heads_only[0], "sinks": heads_only[1]}
    others = ("query", "key", "value", "alibi_slopes", "sinks")
    output, lse = hw.varlen_attention(query, key, value, starts, return_lse=True, relative_bias=relative, **options)

    def backward(*wrt: str) -> tuple[np.ndarray, ...]:
        return hw.varlen_attention_backward(
            d_output, query, key, value, output, lse, starts, wrt=wrt, relative_bias=relative, **options
        )

    *some, d_relative = backward(*others, "relative_bias")
    for name, one, another in zip(others, some, backward(*others), strict=True):
        np.testing.assert_array_equal(one, another, name)
    expected = np.zeros(relative.shape)
    for start, stop in itertools.pairwise(starts):
        rows = slice(start, stop)
        of_rows = rows if per_query else slice(None)
        d_output_s, query_s, key_s, value_s, output_s = (
            x[rows].swapaxes(0, 1)[None] for x in (d_output, query, key, value, output)
        )
        (part,) = hw.flash_attention_backward(
            d_output_s, query_s, key_s, value_s, output_s, lse[None, :, rows], wrt=("relative_bias",),
            relative_bias=relative[:, of_rows], **options,
        )  # fmt: skip
        expected[:, of_rows] += part
    np.testing.assert_allclose(d_relative, expected, rtol=0, atol=ATOL[dtype])


@pytest.mark.parametrize("function", [hw.flash_attention, hw.scaled_dot_product_attention])
def test_dropout_repeats_its_draws(function: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """With the draws of a generator that goes on, and in blocks of query rows; twice the same."""
    monkeypatch.setattr("headwise._ops.attention.dropout._BLOCK", 4 * 50 * 16)  # 16 rows
    q, k, v = normal((1, 4, 60, 8), 0, np.float64), *normal((2, 1, 4, 50, 8), 1, np.float64)
    rng = np.random.default_rng(5)
    rng.random(7)
    results, pullback = hw.vjp(function, q, k, v, dropout_rate=0.25, rng=rng)
    output = results[0] if isinstance(results, tuple) else results
    state = rng.bit_generator.state
    first, second = pullback(output), pullback(output)
    assert rng.bit_generator.state == state
    assert all(np.array_equal(a, b) for a, b in zip(first, second, strict=True))
    # By Euler's theorem: the output is linear in the values.
    np.testing.assert_allclose((first.d_value * v).sum(), (output**2).sum(), rtol=1e-10)
    again = np.random.default_rng(5)
    again.random(7)
    same = hw.flash_attention(q, k, v, dropout_rate=0.25, rng=again)
    assert np.array_equal(same, output)


def test_memory_is_linear_in_the_length() -> None:
    """No array of scores, also not for the gradient of a bias of keys, and for one head."""
    lengths, peaks = (512, 2048), []
    for length in lengths:
        q = normal((1, 1, length, 16))
        bias = np.zeros((1, 1, length), np.float32)
        output, lse = hw.flash_attention(q, q, q, bias=bias, return_lse=True)
        tracemalloc.start()
        hw.flash_attention_backward(q, q, q, q, output, lse, bias=bias, wrt=("query", "key", "value", "bias"))
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    assert peaks[1] < 2048 * 2048  # bytes: a quarter of an array of scores
    assert peaks[1] - peaks[0] < 20 * 16 * 4 * (lengths[1] - lengths[0])  # a few rows of 16 entries for each position


@given(data=st.data())
def test_shapes(data: Any) -> None:
    """Any shapes: the gradient by the values is linear, and that by a bias sums to nothing over the keys."""
    size = st.integers(1, 40)
    batch, kv_heads, group, queries, keys, head_dim, value_dim = (
        data.draw(size if n > 2 else st.integers(1, 3)) for n in range(7)
    )
    q = normal((batch, kv_heads * group, queries, head_dim), 0, np.float64)
    k, v = (
        normal((batch, kv_heads, keys, head_dim), 1, np.float64),
        normal((batch, kv_heads, keys, value_dim), 2, np.float64),
    )
    options = {"is_causal": data.draw(st.booleans()), "window_size": data.draw(st.none() | st.integers(0, 9))}
    bias = np.zeros((kv_heads * group, queries, keys))
    output, pullback = hw.vjp(hw.flash_attention, q, k, v, bias=bias, **options, wrt=("query", "key", "value", "bias"))
    d_query, d_key, d_value, d_bias = pullback(output)
    atol = 100 * ATOL["float64"]
    np.testing.assert_allclose((d_value * v).sum(), (output**2).sum(), rtol=1e-11, atol=atol)
    np.testing.assert_allclose(d_bias.sum(axis=-1), 0, atol=atol)
    np.testing.assert_allclose((d_query * q).sum(), (d_key * k).sum(), rtol=1e-9, atol=atol)  # scores are bilinear


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"d_output": np.ones((1, 2, 5, 7))}, r"^d_output: shape \(1, 2, 5, 7\), expected that of output, \(1, 2, 5"),
        ({"d_output": np.ones((1, 2, 5, 8), complex)}, "^d_output: dtype complex128"),
        ({"output": np.ones((1, 2, 5))}, "^output: shape"),
        ({"lse": np.ones((1, 2, 6))}, r"^lse: shape \(1, 2, 6\), expected that of output without its last axis"),
        ({"d_lse": np.ones(5)}, r"^d_lse: shape \(5,\)"),
        ({"wrt": ("mask",)}, "^wrt: 'mask', expected some of query.*as bias="),
        ({"wrt": ("bias",)}, "^wrt: 'bias', which is not given"),
        ({"wrt": ()}, "^wrt: .*expected at least one"),
        ({"wrt": 3}, "^wrt: int, expected a tuple of names"),
        ({"wrt": ("key", "key")}, "^wrt: .*each name once"),
        ({"softcap": -1.0}, "^softcap: "),
        ({"attn_bias": 1}, "^attn_bias: not a keyword here, expected bias="),
        ({"key": np.ones((1, 2, 5, 9))}, "^key: shape"),
    ],
)  # fmt: skip
def test_errors(change: dict[str, Any], message: str) -> None:
    x = np.ones((1, 2, 5, 8))
    arguments = {"d_output": x, "query": x, "key": x, "value": x, "output": x, "lse": x[..., 0], **change}
    with pytest.raises((ValueError, TypeError), match=message):
        hw.flash_attention_backward(**arguments)


@pytest.mark.single_implementation
def test_errors_of_vjp() -> None:
    x = np.ones((2, 3))
    with pytest.raises(TypeError, match=r"^function: list_targets, expected a differentiable function"):
        hw.vjp(hw.list_targets)
    with pytest.raises(TypeError, match=r"^out: given to vjp"):
        hw.vjp(hw.softmax, x, out=x)
    with pytest.raises(TypeError, match=r"^dim: not a keyword|softmax"):
        hw.vjp(hw.softmax, x, dim=1)
    with pytest.raises(ValueError, match=r"^wrt: None and no array given by position, expected some of x"):
        hw.vjp(hw.softmax, x=x)
    _, pullback = hw.vjp(hw.softmax, x, wrt="x")
    assert pullback(x)._fields == ("d_x",)
    with pytest.raises(TypeError, match=r"^pullback: 2 gradients, expected at most 1"):
        pullback(x, x)
    with pytest.raises(TypeError, match=r"^pullback: no gradient"):
        pullback()
    with pytest.raises(ValueError, match=r"^d_out: shape \(3,\), expected that of probabilities, \(2, 3\)"):
        pullback(np.ones(3))


@pytest.mark.parametrize("axis", [-1, 0, None])
def test_logsumexp_with_factors(axis: Any) -> None:
    x, b = normal((4, 5), 0, np.float64), normal((4, 1), 1, np.float64)
    where = normal((4, 5), 2) > -1
    (y, _), pullback = hw.vjp(hw.logsumexp, x, axis, b=b, where=where, return_sign=True, wrt=("x", "b"))
    d_x, d_b = pullback(np.ones_like(y))
    for at, gradient, name in ((x, d_x, "x"), (b, d_b, "b")):
        direction = normal(at.shape, 3, np.float64)

        def loss(step: float, at: Any = at, name: str = name, direction: Any = direction) -> float:
            moved = {"x": x, "b": b, name: at + step * direction}
            return float(hw.logsumexp(moved["x"], axis, b=moved["b"], where=where, return_sign=True)[0].sum())

        assert abs((loss(1e-6) - loss(-1e-6)) / 2e-6 - (gradient * direction).sum()) < 1e-7
