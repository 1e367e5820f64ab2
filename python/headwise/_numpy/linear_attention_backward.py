"""Gradients of linear attention without a correction (the rules "linear" and "gated"), in chunks of tokens.

With the gradient ``R`` by the state after a chunk, and ``G_tj = dot(d_output_t, v_j)`` for ``j <= t``, else 0::

    d_q_t = P_t * (S d_output_t) + sum_j G_tj (P_t / P_j) * k_j
    d_k_j = (P_C / P_j) * (R v_j) + sum_t G_tj (P_t / P_j) * q_t
    d_v   = A.T d_output + ((P_C / P) * K) R
    R     = P_C * R + (P * Q).T d_output

for chunks from the last to the first; A, P and the states S as in :mod:`headwise._numpy.linear_attention`. With the
logarithm ``b_t`` of ``P_t``, which multiplies q_t and divides k_t, the gradient by ``b_t`` is ``q_t * d_q_t - k_t *
d_k_t``, and that by the logarithm of a decay is the sum of those of its token and later ones.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from headwise._base.ieee import ieee
from headwise._numpy.linear_attention import Decays, padded

if TYPE_CHECKING:
    from headwise._base.typing import Array


class Gradients(NamedTuple):
    q: Array  # (batch, kv_heads, group, query_len, features)
    k: Array  # (batch, kv_heads, key_len, features)
    v: Array  # (batch, kv_heads, key_len, value columns)
    decay: Array | None  # (batch, kv_heads, key_len, features)
    state: Array  # (batch, kv_heads, features, value columns)


@ieee
def linear_attention_backward(  # noqa: PLR0913 (the arrays of the operation)
    d_output: Array,  # (batch, kv_heads, group, query_len, value columns)
    q: Array,
    k: Array,
    v: Array,
    decay: Array | None,  # (batch, kv_heads, key_len, features or 1); None: 1
    state: Array | None,
    d_state: Array,
    *,
    is_causal: bool,
    chunk: int,
) -> Gradients:
    """All arrays have one dtype; feature map, scale and the column of sums are applied."""
    S = np.zeros_like(d_state) if state is None else state
    if not is_causal:
        S = S + k.swapaxes(-1, -2) @ v
        R = d_state + (q.swapaxes(-1, -2) @ d_output).sum(axis=2)
        d_q = d_output @ S[:, :, None].swapaxes(-1, -2)
        return Gradients(d_q, v @ R.swapaxes(-1, -2), k @ R, None, R)
    if not all(np.isfinite(a).all() for a in (d_output, q, k, v)):
        chunk = 1  # in which no product has 0 times the row of another token
    steps = [slice(start, min(start + chunk, k.shape[2])) for start in range(0, k.shape[2], chunk)]
    states = []
    for tokens in steps:
        states.append(S)
        decays = _decays(decay, tokens)
        S = S if decays.whole is None else S * decays.whole.swapaxes(-1, -2)
        width = decays.width
        S = S + decays.to_end(padded(k[:, :, tokens], width)).swapaxes(-1, -2) @ padded(v[:, :, tokens], width)
    found = Gradients(np.empty_like(q), np.empty_like(k), np.empty_like(v), None, d_state.copy())
    for tokens, before in zip(reversed(steps), reversed(states), strict=True):
        _differentiate(
            d_output[..., tokens, :], q[..., tokens, :], (k, v, tokens), before, _decays(decay, tokens), found
        )
    if decay is None:
        return found
    by_log = (q * found.q).sum(axis=2)
    by_log -= k * found.k
    if k.shape[2]:
        by_log[:, :, -1] += (d_state * S).sum(axis=-1)
    by_log = np.flip(np.cumsum(np.flip(by_log, axis=2), axis=2), axis=2)
    return found._replace(decay=by_log / decay)


def _decays(decay: Array | None, tokens: slice) -> Decays:
    length = tokens.stop - tokens.start
    width = 1 << (length - 1).bit_length()
    if decay is None:
        return Decays(None, width)
    part = np.ones((*decay.shape[:2], width, decay.shape[3]), decay.dtype)
    part[:, :, :length] = decay[:, :, tokens]
    return Decays(part, width)


def _differentiate(
    d_output: Array, q: Array, keys: tuple[Array, Array, slice], state: Array, decays: Decays, found: Gradients
) -> None:
    """Writes the gradients of a chunk, and makes ``found.state`` that by the state before it."""
    all_k, all_v, tokens = keys
    length, width, R = tokens.stop - tokens.start, decays.width, found.state
    k, v = padded(all_k[:, :, tokens], width), padded(all_v[:, :, tokens], width)
    d_k = decays.to_end(v @ R.swapaxes(-1, -2))
    d_v = decays.to_end(k) @ R
    if decays.whole is not None:
        R *= decays.whole.swapaxes(-1, -2)
    for g in range(q.shape[2]):
        d, rows = padded(d_output[:, :, g], width), padded(q[:, :, g], width)
        pairs = np.tril(d @ v.swapaxes(-1, -2))
        d_v += decays.scores(rows, k).swapaxes(-1, -2) @ d
        d_q = decays.from_begin(d @ state.swapaxes(-1, -2))
        decays.add_pairs(pairs, k, d_q)
        decays.add_pairs(pairs, rows, d_k, transposed=True)
        R += decays.from_begin(rows).swapaxes(-1, -2) @ d
        found.q[:, :, g, tokens] = d_q[:, :, :length]
    found.k[:, :, tokens] = d_k[:, :, :length]
    found.v[:, :, tokens] = d_v[:, :, :length]
