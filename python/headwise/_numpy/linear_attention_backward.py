"""Gradients of linear attention, in chunks of tokens.

With the gradient ``R`` by the state after a chunk, and ``G_tj = dot(d_output_t, u_j)`` for ``j <= t``, else 0::

    d_q_t = P_t * (S d_output_t) + sum_j G_tj (P_t / P_j) * k_j
    d_k_j = (P_C / P_j) * (R u_j) + sum_t G_tj (P_t / P_j) * q_t
    d_u   = W.T d_output + ((P_C / P) * K) R
    R     = P_C * R + (P * Q).T d_output

for chunks from the last to the first; W, P, u and the states S as in :mod:`headwise._numpy.linear_attention`. Without a
correction, u are the values.

The delta rules correct ``u = inverse(I + beta M) beta (V - (P * K) S)``, where ``M_tj = sum_f k_tf (P_tf / P_jf) k_jf``
for ``j < t``. With ``D = inverse(I + beta M).T d_u``, the gradients by values and rates are::

    d_v = beta D        d_beta_t = dot(D_t, v_t - (P_t * k_t) S - sum_j M_tj u_j)

and the keys have those of queries whose gradient by the output is ``-beta D`` and that see the tokens before their own.

With the logarithm ``b_t`` of ``P_t``, which multiplies q_t (and k_t where it reads) and divides k_t (where it writes),
the gradient by ``b_t`` is ``q_t * d_q_t - k_t * d_k_t``, the latter with the sign of its use, and that by the logarithm
of a decay is the sum of those of its token and later ones: ``sum_v S_fv R_fv`` for those behind a chunk. This sum of
numbers of any size is small for a small decay, by which it is divided, so a token with such a decay begins a chunk,
whose own ``S`` and ``R`` have the gradient without rounding errors of the sum.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from headwise._base.ieee import ieee
from headwise._numpy.linear_attention import Correction, Decays, correct, padded

if TYPE_CHECKING:
    from headwise._base.typing import Array


# Tokens with smaller decays begin a chunk: rounding errors of a longer sum would be divided by these decays.
_SMALL = 1e-6


class Gradients(NamedTuple):
    q: Array  # (batch, kv_heads, group, query_len, features)
    k: Array  # (batch, kv_heads, key_len, features)
    v: Array  # (batch, kv_heads, key_len, value columns)
    decay: Array | None  # (batch, kv_heads, key_len, features)
    beta: Array | None  # (batch, kv_heads, key_len, 1)
    state: Array  # (batch, kv_heads, features, value columns)


@ieee
def linear_attention_backward(  # noqa: PLR0913 (the arrays of the operation)
    d_output: Array,  # (batch, kv_heads, group, query_len, value columns)
    q: Array,
    k: Array,
    v: Array,
    decay: Array | None,  # (batch, kv_heads, key_len, features or 1); None: 1
    beta: Array | None,  # (batch, kv_heads, key_len, 1); None: no correction
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
        return Gradients(d_q, v @ R.swapaxes(-1, -2), k @ R, None, None, R)
    if not all(np.isfinite(a).all() for a in (d_output, q, k, v)):
        chunk = 1  # in which no product has 0 times the row of another token
    steps = [slice(start, min(start + chunk, k.shape[2])) for start in range(0, k.shape[2], chunk)]
    states = []
    for tokens in steps:
        states.append(S)
        S = _after(_read(k, v, decay, beta, tokens, S))
    d_beta = None if beta is None else np.empty_like(beta)
    d_log = None if decay is None else np.empty_like(k)
    found = Gradients(np.empty_like(q), np.empty_like(k), np.empty_like(v), d_log, d_beta, d_state.copy())
    reading = None if beta is None else np.empty_like(k)  # gradients by the keys where they read the state
    by_state = (d_state * S).sum(axis=-1)
    for tokens, before in zip(reversed(steps), reversed(states), strict=True):
        chunks, S = [], before
        for part in _parts(tokens, decay):
            chunks.append(_read(k, v, decay, beta, part, S))
            S = _after(chunks[-1])
        for c in reversed(chunks):
            part = c.tokens
            _differentiate(d_output[..., part, :], q[..., part, :], c, found, reading)
            if d_log is None:
                continue
            by_log = (q[..., part, :] * found.q[..., part, :]).sum(axis=2) - k[:, :, part] * found.k[:, :, part]
            if reading is not None:
                by_log += 2 * k[:, :, part] * reading[:, :, part]
            by_log[:, :, -1] += by_state
            d_log[:, :, part] = np.flip(np.cumsum(np.flip(by_log, axis=2), axis=2), axis=2)
            by_state = (found.state * c.state).sum(axis=-1)
            d_log[:, :, part.start] = by_state
    return found if d_log is None else found._replace(decay=d_log / decay)


def _parts(tokens: slice, decay: Array | None) -> list[slice]:
    """The tokens of a chunk in parts, of which each but the first begins with a small decay."""
    if decay is None:
        return [tokens]
    small = tokens.start + np.flatnonzero((decay[:, :, tokens] < _SMALL).any(axis=(0, 1, 3)))
    starts = [tokens.start, *(t for t in small.tolist() if t > tokens.start)]
    return [slice(start, stop) for start, stop in zip(starts, [*starts[1:], tokens.stop], strict=True)]


class _Chunk(NamedTuple):
    """The tokens of a chunk, and rows of 0 behind them."""

    tokens: slice
    decays: Decays
    k: Array
    u: Array  # what the tokens add to the state: values, or corrections
    state: Array  # before the chunk
    beta: Array | None
    correction: Correction | None


def _read(k: Array, v: Array, decay: Array | None, beta: Array | None, tokens: slice, state: Array) -> _Chunk:
    decays = _decays(decay, tokens)
    width = decays.width
    part, values = padded(k[:, :, tokens], width), padded(v[:, :, tokens], width)
    if beta is None:
        return _Chunk(tokens, decays, part, values, state, None, None)
    rates = padded(beta[:, :, tokens], width)
    correction = correct(decays, part, values, rates, state)
    return _Chunk(tokens, decays, part, correction.u, state, rates, correction)


def _after(c: _Chunk) -> Array:
    """The state after a chunk."""
    S = c.state if c.decays.whole is None else c.state * c.decays.whole.swapaxes(-1, -2)
    after: Array = S + c.decays.to_end(c.k).swapaxes(-1, -2) @ c.u
    return after


def _decays(decay: Array | None, tokens: slice) -> Decays:
    length = tokens.stop - tokens.start
    width = 1 << (length - 1).bit_length()
    if decay is None:
        return Decays(None, width)
    part = np.ones((*decay.shape[:2], width, decay.shape[3]), decay.dtype)
    part[:, :, :length] = decay[:, :, tokens]
    return Decays(part, width)


def _differentiate(d_output: Array, q: Array, c: _Chunk, found: Gradients, reading: Array | None) -> None:
    """Writes the gradients of a chunk, and makes ``found.state`` that by the state before it."""
    decays, k, R, tokens = c.decays, c.k, found.state, c.tokens
    length, width = tokens.stop - tokens.start, decays.width
    d_k = decays.to_end(c.u @ R.swapaxes(-1, -2))
    d_u = decays.to_end(k) @ R
    if decays.whole is not None:
        R *= decays.whole.swapaxes(-1, -2)
    for g in range(q.shape[2]):
        d, rows = padded(d_output[:, :, g], width), padded(q[:, :, g], width)
        pairs = np.tril(d @ c.u.swapaxes(-1, -2))
        d_u += decays.scores(rows, k).swapaxes(-1, -2) @ d
        d_q = decays.from_begin(d @ c.state.swapaxes(-1, -2))
        decays.add_pairs(pairs, k, d_q)
        decays.add_pairs(pairs, rows, d_k, transposed=True)
        R += decays.from_begin(rows).swapaxes(-1, -2) @ d
        found.q[:, :, g, tokens] = d_q[:, :, :length]
    if c.beta is not None and c.correction is not None and found.beta is not None and reading is not None:
        d_read = c.correction.inverse.swapaxes(-1, -2) @ d_u
        error = c.correction.read - c.correction.scores @ c.u
        found.beta[:, :, tokens] = (d_read * error).sum(axis=-1, keepdims=True)[:, :, :length]
        d_u = c.beta * d_read
        d = -d_u
        by_reading = decays.from_begin(d @ c.state.swapaxes(-1, -2))
        pairs = np.tril(d @ c.u.swapaxes(-1, -2), -1)
        decays.add_pairs(pairs, k, by_reading)
        decays.add_pairs(pairs, k, d_k, transposed=True)
        R += decays.from_begin(k).swapaxes(-1, -2) @ d
        reading[:, :, tokens] = by_reading[:, :, :length]
        d_k += by_reading
    found.k[:, :, tokens] = d_k[:, :, :length]
    found.v[:, :, tokens] = d_u[:, :, :length]
