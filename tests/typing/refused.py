"""Mistakes that type checkers must find. The file is not run; an unused ignore comment is an error."""

from __future__ import annotations

import numpy as np

import headwise as hw

x = np.ones((2, 6, 32))
layer = hw.MultiHeadAttention(32, 8)
cache = hw.KVCache(2, 4, 64, 8)


def answers() -> None:
    _, weights = layer(x, need_weights=False)
    weights.sum()  # type: ignore[attr-defined]  # pyright: ignore[reportAttributeAccessIssue]
    _, none = hw.self_attention(x, 32, need_weights=False)
    none += 1  # type: ignore[operator]  # pyright: ignore[reportOperatorIssue]
    _, _ = layer(x, return_lse=True)  # type: ignore[misc]  # pyright: ignore[reportAssignmentType]
    _, _, _ = hw.multi_head_self_attention(x, 8, 32)  # type: ignore[misc]  # pyright: ignore[reportAssignmentType]
    _, _, _ = hw.scaled_dot_product_attention(x, x, x)  # type: ignore[misc]  # pyright: ignore[reportAssignmentType]
    layer(x).sum()  # type: ignore[attr-defined]  # pyright: ignore[reportAttributeAccessIssue]
    hw.flash_attention(x, x, x, return_lse=True).sum()  # type: ignore[attr-defined]  # pyright: ignore[reportAttributeAccessIssue]
    cache.attend(x, need_weights=True).sum()  # type: ignore[attr-defined]  # pyright: ignore[reportAttributeAccessIssue]
    hw.varlen_attention(x, x, x, [0, 2], return_lse=True).sum()  # type: ignore[attr-defined]  # pyright: ignore[reportAttributeAccessIssue]


def keywords() -> None:
    layer(x, casual=True)  # type: ignore[call-overload]  # pyright: ignore[reportCallIssue]
    layer(x, is_causal="yes")  # type: ignore[call-overload]  # pyright: ignore[reportCallIssue, reportArgumentType]
    hw.flash_attention(x, x, x, need_weights=True)  # type: ignore[call-overload]  # pyright: ignore[reportCallIssue]
    hw.flash_attention(x, x)  # type: ignore[call-overload]  # pyright: ignore[reportCallIssue]
    hw.self_attention(x)  # type: ignore[call-overload]  # pyright: ignore[reportCallIssue]
    hw.self_attention(x, 32, None, 0.0, True)  # type: ignore[call-overload]  # pyright: ignore[reportCallIssue]
    cache.attend(x, causal=True)  # type: ignore[call-overload]  # pyright: ignore[reportCallIssue]
    hw.softmax(x, dim=-1)  # type: ignore[call-arg]  # pyright: ignore[reportCallIssue]
    hw.softmax(x, -1, x)  # type: ignore[call-arg]  # pyright: ignore[reportCallIssue]
    hw.MultiHeadAttention(32, 8, heads=2)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    hw.RotaryPositionalEmbedding(8)(x, offsets=3)  # type: ignore[call-arg]  # pyright: ignore[reportCallIssue]


def values() -> None:
    hw.softmax(None)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    hw.softmax(x, axis=[0, 1])  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    hw.linear(x, x, precision=1)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    hw.layer_normalization(x, x, x, out=[1.0])  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    hw.gelu(x, approximate="erf")  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    hw.swiglu(x)  # type: ignore[call-arg]  # pyright: ignore[reportCallIssue]
    hw.MultiHeadAttention("32", 8)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    hw.MultiHeadAttention(32, 8, rope=True)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    hw.set_num_threads("2")  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    hw.rope_parameters(8, scaling="linear")  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    hw.SinusoidalPositionalEncoding(32)(5, training="no")  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    layer.num_heads = "8"  # type: ignore[assignment]  # pyright: ignore[reportAttributeAccessIssue]
    hw.mha(x)  # type: ignore[attr-defined]  # pyright: ignore[reportAttributeAccessIssue]
    cache.lengths = 3  # type: ignore[misc, assignment]  # pyright: ignore[reportAttributeAccessIssue]
