"""Head widths of their own, normalised queries and keys, and biases of some projections."""

from __future__ import annotations

import copy
import pickle
from typing import Any

import numpy as np
import pytest

import headwise as hw
import oracle
from support import assert_close, dtype_named, normal

pytestmark = pytest.mark.above_operations

D_MODEL, HEADS, KV_HEADS, HEAD_DIM = 20, 4, 2, 6

LAYERS: dict[str, dict[str, Any]] = {
    "head-dim": {},
    "head": {"qk_norm": "head"},
    "full": {"qk_norm": "full", "qk_norm_eps": 1e-2},
    "biases": {"qk_norm": "head", "bias": "qvo", "sinks": True, "softcap": 2.0, "window_size": (3, 0), "scale": 0.3},
    "rope": {"qk_norm": "full", "rope": hw.RotaryPositionalEmbedding(HEAD_DIM), "bias": "k"},
    "one-head": {"qk_norm": "head", "num_kv_heads": 1, "bias": True},
}


def make(name: str, kind: type[Any] = hw.CausalAttention) -> Any:
    given = {"num_kv_heads": KV_HEADS, **LAYERS[name]}
    layer = kind(D_MODEL, HEADS, head_dim=HEAD_DIM, rng=0, **given)
    for seed, key in enumerate(("b_q", "b_k", "b_v", "b_o", "sinks", "q_norm", "k_norm")):
        if getattr(layer, key) is not None:
            setattr(layer, key, normal(getattr(layer, key).shape, seed, np.float64))
    return layer


def by_formula(layer: Any, x: np.ndarray, **keywords: Any) -> np.ndarray:
    """The layer of one input (seq, d_model) in float64, head by head."""

    def project(letter: str) -> np.ndarray:
        bias = getattr(layer, f"b_{letter}")
        rows = x @ getattr(layer, f"W_{letter}") + (0.0 if bias is None else bias)
        gamma = getattr(layer, f"{letter}_norm", None)
        width = layer.d_k if layer.qk_norm == "head" else rows.shape[1]
        if gamma is not None:
            parts = rows.reshape(len(rows), -1, width)
            mean = np.mean(parts**2, axis=-1, keepdims=True)
            rows = (parts / np.sqrt(mean + layer.qk_norm_eps) * gamma).reshape(rows.shape)
        heads = np.stack(np.split(rows, rows.shape[1] // layer.d_k, axis=1))
        return layer.rope(heads[None])[0] if layer.rope is not None and letter != "v" else heads

    groups = layer.num_heads // layer.num_kv_heads
    q, k, v = project("q"), project("k").repeat(groups, axis=0), project("v").repeat(groups, axis=0)
    output, _, _ = oracle.attention(q[None], k[None], v[None], **keywords)
    bias = 0.0 if layer.b_o is None else layer.b_o
    return np.concatenate(output[0], axis=1) @ layer.W_o + bias


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32", "float64"])
@pytest.mark.parametrize("name", LAYERS)
def test_formula(name: str, dtype: str) -> None:
    layer, x = make(name), normal((2, 7, D_MODEL)).astype(dtype_named(dtype))
    keywords = {key: LAYERS[name][key] for key in ("softcap", "window_size", "scale") if key in LAYERS[name]}
    if layer.sinks is not None:
        keywords["sinks"] = layer.sinks
    expected = np.stack([by_formula(layer, oracle.double(rows), is_causal=True, **keywords) for rows in x])
    for _ in range(3):  # also with packed weights
        got, weights = layer(x)
        assert_close(got, expected, 10.0)
    assert weights.shape == (2, HEADS, 7, 7)


@pytest.mark.parametrize("name", LAYERS)
@pytest.mark.parametrize("sizes", [[1] * 7, [4, 3]])
def test_chunks_equal_one_call(name: str, sizes: list[int]) -> None:
    layer, x = make(name), normal((2, 7, D_MODEL), dtype=np.float64)
    whole, _ = layer(x)
    cache = layer.make_cache(2, 7, dtype=np.float64)
    assert cache.head_dim == HEAD_DIM
    parts = np.split(x, np.cumsum(sizes)[:-1], axis=1)
    chunks = [layer(part, cache=cache, need_weights=False)[0] for part in parts]
    np.testing.assert_allclose(np.concatenate(chunks, axis=1), whole, atol=1e-13)


@pytest.mark.parametrize("name", LAYERS)
def test_no_rows(name: str) -> None:
    assert make(name)(normal((2, 0, D_MODEL)))[0].shape == (2, 0, D_MODEL)


@pytest.mark.parametrize("name", LAYERS)
def test_cross_attention_and_functions(name: str) -> None:
    layer = make(name, hw.MultiHeadAttention)
    x, context = normal((1, 5, D_MODEL), dtype=np.float64), normal((1, 8, D_MODEL), 1, np.float64)
    together, _ = layer(x, context)
    np.testing.assert_allclose(layer(x, context, context.copy())[0], together, atol=1e-13)
    by_function, _ = hw.multi_head_attention(x, context, context, HEADS, D_MODEL, params=layer)
    np.testing.assert_array_equal(by_function, together)
    out = np.empty_like(together)
    assert layer(x, context, out=out)[0] is out
    np.testing.assert_array_equal(out, together)
    heads = layer.split_heads(normal((2, 5, HEADS * HEAD_DIM)))
    assert heads.shape == (2, HEADS, 5, HEAD_DIM)
    assert layer.combine_heads(heads).shape == (2, 5, HEADS * HEAD_DIM)


@pytest.mark.parametrize("name", LAYERS)
def test_state_dicts_and_copies(name: str) -> None:
    layer, x = make(name), normal((1, 5, D_MODEL), dtype=np.float64)
    expected, _ = layer(x)
    fresh = hw.CausalAttention(D_MODEL, HEADS, head_dim=HEAD_DIM, rng=1, **{"num_kv_heads": KV_HEADS, **LAYERS[name]})
    for form in ("headwise", "llama"):
        fresh.load_state_dict(layer.state_dict(form))
        np.testing.assert_array_equal(fresh(x)[0], expected)
    for other in (copy.deepcopy(layer), pickle.loads(pickle.dumps(layer))):
        np.testing.assert_array_equal(other(x)[0], expected)


def test_norms_may_be_changed() -> None:
    layer, x = make("head"), normal((1, 5, D_MODEL), dtype=np.float32)
    before, _ = layer(x)
    layer.q_norm[...] *= -1.0
    assert np.abs(layer(x)[0] - before).max() > 1e-3
    layer.k_norm *= -1.0
    np.testing.assert_array_equal(layer(x)[0], before)


def test_norms_may_be_removed() -> None:
    layer, plain, x = make("head"), make("head-dim"), normal((1, 5, D_MODEL), dtype=np.float64)
    layer.k_norm = None
    assert np.abs(layer(x)[0] - plain(x)[0]).max() > 1e-3
    layer.q_norm = None
    np.testing.assert_array_equal(layer(x)[0], plain(x)[0])


@pytest.mark.single_implementation
@pytest.mark.parametrize(
    ("error", "message", "arguments"),
    [
        (ValueError, "^qk_norm: 'heads', expected None, 'head' or 'full'", {"qk_norm": "heads"}),
        (ValueError, "^qk_norm: True", {"qk_norm": True}),
        (ValueError, "^qk_norm_eps: 0.0", {"qk_norm_eps": 0.0}),
        (ValueError, "^bias: 'qx', expected True, False or some of the letters of 'qkvo'", {"bias": "qx"}),
        (ValueError, "^bias: ''", {"bias": ""}),
        (TypeError, "^bias: float", {"bias": 1.5}),
        (ValueError, "^head_dim: 0", {"head_dim": 0}),
        (TypeError, "^head_dim: ", {"head_dim": 2.5}),
        (ValueError, "^rope: of width 6, expected d_k = 7", {"head_dim": 7, "rope": hw.RotaryPositionalEmbedding(6)}),
        (TypeError, "^qk_norm_offset: ", {"qk_norm_offset": "yes"}),
    ],
)
def test_bad_arguments(error: type[Exception], message: str, arguments: dict[str, Any]) -> None:
    with pytest.raises(error, match=message):
        hw.MultiHeadAttention(D_MODEL, HEADS, **arguments)


@pytest.mark.single_implementation
def test_norms_have_the_shape_of_their_kind() -> None:
    layer = make("full")
    with pytest.raises(ValueError, match=r"^q_norm: shape \(6,\), expected \(q_norm_width\) = \(24,\)"):
        layer.q_norm = np.ones(HEAD_DIM)
    with pytest.raises(ValueError, match=r"^W_o: shape \(20, 20\), expected \(q_width, d_model\) = \(24, 20\)"):
        layer.W_o = np.ones((D_MODEL, D_MODEL))
    assert hw.MultiHeadAttention(20, 4).q_norm is None


def test_squares_that_overflow() -> None:
    layer = hw.MultiHeadAttention(64, 4, dropout=0.0, rng=0, dtype=np.float32, qk_norm="head", qk_norm_eps=1e-30)
    x = normal((2, 5, 64))
    _, weights = layer(x)
    _, large = layer(x * np.float32(1e22))
    np.testing.assert_allclose(large, weights, rtol=1e-4, atol=1e-5)
