"""Typical code of users, with the types that they may count on. Type checkers read it, and
tests/interface/test_typing.py runs it and compares the types of the values with the declared ones."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

import headwise as hw
from headwise import attention as functional
from headwise import positional_encoding as encodings

if sys.version_info >= (3, 11):
    from typing import assert_type
else:
    from typing_extensions import assert_type

Array = NDArray[Any]
RNG = np.random.default_rng(0)
F32 = RNG.standard_normal((2, 4, 6, 8), dtype=np.float32)
F64 = RNG.standard_normal((2, 6, 32))
Q, K, V = F32, F32, F32


def element_wise() -> None:
    assert_type(hw.softmax(F32), Array)
    assert_type(hw.softmax([[1, 2], [3, 4]], axis=0), Array)
    assert_type(hw.softmax(F32, out=np.empty_like(F32)), Array)
    assert_type(hw.log_softmax(F32, -1), Array)
    assert_type(hw.softmax(F32, axis=None, where=F32 > 0), Array)
    assert_type(hw.log_softmax(F32, axis=(0, 1)), Array)
    assert_type(hw.logsumexp(F32, axis=1, keepdims=True), Array)
    assert_type(hw.logsumexp(F32, axis=None, b=2.0, return_sign=True), tuple[Array, Array])
    assert_type(hw.layer_normalization(F64, np.ones(32), np.zeros(32), eps=1e-6, axis=-1), Array)
    assert_type(hw.layer_normalization(F64), Array)
    assert_type(hw.rms_norm(F32, np.ones(8, np.float32), eps=1e-6, out=F32), Array)
    assert_type(hw.gelu(F32, approximate="tanh"), Array)
    assert_type(hw.silu(F32, out=F32), Array)
    assert_type(hw.swiglu(F32, F32), Array)
    assert_type(hw.geglu(F32, F32, approximate="none"), Array)
    assert_type(hw.dropout(F64, 0.1, training=True, rng=0), Array)
    assert_type(hw.linear(F64, np.ones((32, 3)), [0.0, 0.0, 1.0], precision="high"), Array)
    project = hw.PackedLinear(np.ones((32, 3)), np.zeros(3))
    assert_type(project(F64, out=np.empty((2, 6, 3))), Array)
    assert_type(project.in_features, int)
    assert_type(project.dtype, np.dtype[Any])


def core() -> None:
    output, weights = hw.scaled_dot_product_attention(Q, K, V, is_causal=True)
    assert_type(output, Array)
    assert_type(weights, Array)
    assert_type(hw.scaled_dot_product_attention(Q, K, V, need_weights=True), tuple[Array, Array])
    assert_type(hw.scaled_dot_product_attention(Q, K, V, None, 0.1, need_weights=False, rng=1), tuple[Array, None])
    assert_type(hw.scaled_dot_product_attention(Q, K, V, return_lse=True), tuple[Array, Any, Array])
    output, weights, lse = hw.scaled_dot_product_attention(Q, K, V, hw.create_causal_mask(6), return_lse=True)
    assert_type(lse, Array)
    either = hw.scaled_dot_product_attention(Q, K, V, need_weights=len(sys.argv) > 5, dropout_rate=0.1)
    assert_type(either[0].shape, Any)

    assert_type(hw.flash_attention(Q, K, V), Array)
    assert_type(hw.flash_attention(Q, K, V, window_size=(3, 0), softcap=30.0, out=np.empty_like(Q)), Array)
    assert_type(hw.flash_attention(Q, K, V, return_lse=True, alibi_slopes=hw.alibi_slopes(4)), tuple[Array, Array])
    options: dict[str, Any] = {"is_causal": True, "scale": 0.5}
    hw.flash_attention(Q, K, V, **options)

    packed = F64[0].reshape(6, 4, 8)
    assert_type(hw.varlen_attention(packed, packed, packed, [0, 2, 6], is_causal=True), Array)
    assert_type(hw.varlen_attention(packed, packed, packed, [0, 2, 6], [0, 1, 6], return_lse=True), tuple[Array, Array])


def functions() -> None:
    assert_type(hw.multi_head_attention(F64, F64, F64, 8, 32), tuple[Array, Array])
    assert_type(hw.multi_head_attention(F64, F64, F64, 8, 32, need_weights=False, rng=0), tuple[Array, None])
    assert_type(hw.multi_head_attention(F64, F64, F64, 8, 32, return_lse=True), tuple[Array, Any, Array])
    layer = hw.MultiHeadAttention(32, 8)
    assert_type(hw.multi_head_self_attention(F64, 8, 32, params=layer), tuple[Array, Array])
    assert_type(hw.multi_head_self_attention(F64, 8, 32, params=layer, need_weights=False), tuple[Array, None])
    matrices = {name: np.eye(32) for name in ("W_q", "W_k", "W_v", "W_o")}
    assert_type(hw.multi_head_self_attention(F64, 8, 32, params=matrices, rng=0, return_lse=True)[2], Array)
    assert_type(hw.self_attention(F64, 32, is_causal=True), tuple[Array, Array])
    assert_type(hw.self_attention(F64, 32, hw.create_look_ahead_mask(6), 0.1, need_weights=False), tuple[Array, None])
    assert_type(hw.cross_attention(F64, F64[:, :3], 32), tuple[Array, Array])
    assert_type(hw.cross_attention(F64, F64[:, :3], 32, need_weights=False, return_lse=False), tuple[Array, None])
    assert_type(functional.mha(F64, F64, F64, 8, 32, need_weights=False), tuple[Array, None])
    assert_type(functional.self_attn(F64, 32), tuple[Array, Array])
    assert_type(functional.positional_encoding(10, 4), Array)
    assert_type(hw.learned_positional_encoding(10, 4, rng=np.random.default_rng(0)), Array)
    view = hw.attention_score_visualization([[0.5, 0.5]], tokens=["a", "b"])
    assert_type(view, dict[str, Any])


def layers() -> None:
    layer = hw.MultiHeadAttention(d_model=32, num_heads=8, dropout=0.0, bias=True, rng=0, dtype=np.float32)
    output, weights = layer(F64)
    assert_type(output, Array)
    assert_type(weights.shape, tuple[Any, ...])
    assert_type(layer(F64, F64[:, :3], F64[:, :3]), tuple[Array, Array])
    assert_type(layer(F64, need_weights=False), tuple[Array, None])
    assert_type(layer.forward(F64, need_weights=False, training=True), tuple[Array, None])
    assert_type(layer(F64, return_lse=True), tuple[Array, Any, Array])
    for wanted in (True, False):
        output, *_ = layer(F64, need_weights=wanted)
    assert_type(layer.W_q, Array)
    layer.W_q = np.eye(32)
    layer.W_k[:, 0] = 0.0
    layer.b_q = [0.0] * 32
    layer.b_v = None
    assert_type(layer.num_kv_heads, int)
    assert_type(layer.rope, hw.RotaryPositionalEmbedding | None)
    assert_type(layer.training, bool)
    assert_type(layer.split_heads(F64), Array)
    assert_type(layer.combine_heads(layer.split_heads(F64)), Array)

    causal = hw.CausalAttention(32, 8, rope=hw.RotaryPositionalEmbedding(4), num_kv_heads=2)
    assert_type(causal(F64), tuple[Array, Array])
    assert_type(causal(F64, need_weights=False), tuple[Array, None])
    state = causal.state_dict("llama", prefix="self_attn.")
    assert_type(state, dict[str, Array])
    causal.load_state_dict(state, prefix="self_attn.", strict=False)
    cache = causal.make_cache(batch_size=2, capacity=16, dtype=np.float64)
    assert_type(cache, hw.KVCache)
    assert_type(causal(F64[:, :1], cache=cache, need_weights=False, lengths=[1, 0]), tuple[Array, None])

    linear = hw.LinearAttention(32, 8, rule="gated", decay=[0.9] * 4, num_kv_heads=4, feature_map=np.exp)
    assert_type(linear(F64, linear.make_state(2, dtype=np.float64)), tuple[Array, Array])
    assert_type(linear.W_k, Array)
    assert_type(linear.decay, Array | str | None)


def decoding() -> None:
    cache = hw.KVCache(2, 4, 64, 8, ring=True, dtype="float32")
    cache.append(K, V, lengths=np.array([6, 5]))
    assert_type(cache.attend(Q[:, :, :1]), Array)
    assert_type(cache.attend(Q[:, :, :1], need_weights=True), tuple[Array, Array])
    assert_type(cache.attend(Q[:, :, :1], return_lse=True), tuple[Array, Any, Array])
    assert_type(cache.extend(Q, K, V, scale=1.0), Array)
    assert_type(cache.extend(Q, K, V, need_weights=True, lengths=[1, 1]), tuple[Array, Array])
    assert_type(cache.lengths, Array)
    assert_type(cache.entry(0), tuple[Array, Array])
    assert_type(cache.positions(), Array)
    assert_type(len(cache), int)
    assert_type(cache.nbytes, int)
    cache.truncate(3)
    cache.reorder([1, 0])
    cache.reset()


def positions() -> None:
    sinusoidal = hw.SinusoidalPositionalEncoding(32, max_len=10)
    assert_type(sinusoidal(F64), Array)
    assert_type(sinusoidal.get_encoding([0, 5]), Array)
    assert_type(sinusoidal.pe, Array)
    learned = hw.LearnedPositionalEmbedding(10, 32, rng=0)
    assert_type(learned(F64), Array)
    assert_type(learned.embeddings, Array)
    learned.update_embeddings(F64, 0.1)
    assert_type(hw.RelativePositionalEncoding(8, 4)(6), Array)
    rotary = hw.RotaryPositionalEmbedding(8, scaling={"rope_type": "linear", "factor": 2.0})
    assert_type(rotary(Q, positions=range(6)), Array)
    assert_type(rotary.forward(Q, offset=3, out=np.empty_like(Q)), Array)
    assert_type(rotary.rotate_half(Q), Array)
    assert_type(rotary.cos_cached, Array)
    assert_type(rotary.scaling, dict[str, Any] | None)
    assert_type(hw.ALiBiPositionalBias(4)(Q), Array)
    assert_type(hw.ALiBiPositionalBias(4).slopes, Array)
    assert_type(hw.alibi_bias(4, 3, 5, offset=2), Array)
    assert_type(hw.add_alibi(Q, hw.alibi_slopes(4)), Array)
    assert_type(hw.apply_rope(Q, rotary.cos_cached[:6], rotary.sin_cached[:6], interleaved=True), Array)
    assert_type(hw.rope_parameters(8, seq_len=100), tuple[Array, float])
    assert_type(hw.rope.rope_frequencies(8), Array)
    assert_type(hw.permute_rope_weights(np.eye(32), 4, to="half"), Array)
    assert_type(encodings.mha(32, 8)(F64, need_weights=False), tuple[Array, None])
    assert_type(encodings.sinusoidal_pe(32)(F64), Array)


def masks() -> None:
    padding = hw.create_padding_mask([[5, 6, 0], [7, 0, 0]])
    assert_type(padding, hw.PaddingMask)
    causal = hw.create_causal_mask(seq_len=3)
    assert_type(causal, hw.CausalMask)
    assert (padding[:, None, :] * causal).shape == (2, 3, 3)
    assert_type(hw.self_attention(F64[:, :3], 32, padding), tuple[Array, Array])


def choices() -> None:
    assert_type(hw.config(), dict[str, Any])
    assert_type(hw.list_targets(), list[str])
    assert_type(hw.get_num_threads(), int)
    hw.set_num_threads(hw.get_num_threads())
    hw.set_target(hw.config()["target"])
    assert_type(hw.get_precision(), str)
    hw.set_precision(hw.get_precision())
    with hw.precision("high"):
        assert_type(hw.flash_attention(Q, K, V), Array)

    @hw.precision("medium")
    def fast(x: Array) -> tuple[Array, None]:
        return hw.self_attention(x, 32, need_weights=False)

    assert_type(fast(F64), tuple[Array, None])


def pictures(folder: Path) -> None:
    _, weights = hw.self_attention(F64, 32)
    figure = hw.plot.attention(weights, tokens=list("abcdef"), head="mean", path=folder / "attention.png")
    assert figure.axes
    hw.plot.grid([weights, weights], title="layers")
    hw.plot.lines(weights, threshold=0.1, head=[0])
    hw.plot.encoding(functional.positional_encoding(10, 4), cmap="viridis")
    hw.plot.bias(hw.alibi_bias(4, 6), vmax=1.0)


def subclass() -> None:
    class Block(hw.CausalAttention):
        """A user-defined layer."""

    assert_type(Block(32, 8)(F64, need_weights=False), tuple[Array, None])
    pairing: Literal["half"] = "half"
    assert_type(hw.permute_rope_weights(np.eye(4), 1, to=pairing), Array)
