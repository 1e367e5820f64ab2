"""Linear attention, as a recurrence."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from oracle.dense_attention import four_dimensional
from oracle.numbers import Array, rounded, wide


def linear_attention(  # noqa: PLR0913 (the keywords, one by one)
    query: ArrayLike,
    key: ArrayLike,
    value: ArrayLike,
    *,
    feature_map: Any = "elu",
    normalize: bool | None = None,
    scale: float = 1.0,
    is_causal: bool = False,
    decay: ArrayLike | None = None,
    beta: ArrayLike | None = None,
    rule: str = "linear",
    state: ArrayLike | None = None,
    chunk: int | None = None,
) -> tuple[Array, Array]:
    """The recurrence, one token after another (ONNX's LinearAttention; Katharopoulos et al., 2020)."""
    given = (query, key, value, *(() if state is None else (state,)))
    q, k, v = map(wide, (query, key, value))
    if feature_map is not None:
        phi = (lambda x: np.where(x > 0, x + 1, np.exp(np.minimum(x, 0)))) if feature_map == "elu" else feature_map
        q, k = phi(q), phi(k)
    divided = feature_map is not None if normalize is None else normalize
    if divided:
        v = np.concatenate([v, np.ones_like(v[..., :1])], axis=-1)
    else:
        q = q * wide(scale)
    rank, lead = k.ndim, v.shape
    q, k, v = (x.reshape(four_dimensional(x.shape)) for x in (q, k, v))
    q = q.reshape((*k.shape[:2], -1, *q.shape[2:]))  # the query heads of each key head
    S = np.zeros((*k.shape[:2], k.shape[3], v.shape[3]), k.dtype)
    if state is not None:
        S += wide(state).reshape(S.shape)
    rates = [None if rate is None else spread_rate(rate, rank, lead, k.shape) for rate in (decay, beta)]
    rows = []
    with np.errstate(all="ignore"):
        for t in range(k.shape[2]):
            now, u = k[:, :, t, :, None], v[:, :, t, None, :]
            if rates[0] is not None:
                S = rates[0][:, :, t, :, None] * S
            if rates[1] is not None:
                u = rates[1][:, :, t, :, None] * (u - (now * S).sum(axis=2, keepdims=True))
            S = S + now * u
            if is_causal or rule != "linear":
                rows.append((q[:, :, :, t, :, None] * S[:, :, None]).sum(axis=3))
        if not is_causal and rule == "linear":
            rows = [(q[:, :, :, i, :, None] * S[:, :, None]).sum(axis=3) for i in range(q.shape[3])]
        output = np.stack(rows, axis=3) if rows else np.zeros((*q.shape[:4], v.shape[3]), q.dtype)
        if divided:
            output = np.where(output[..., -1:] == 0, 0, output[..., :-1] / output[..., -1:])
    output = output.reshape((*np.shape(query)[:-1], output.shape[-1]))
    return rounded(output, *given), rounded(S.reshape((*lead[:-2], *S.shape[2:])), *given)


def spread_rate(rate: ArrayLike, rank: int, value: tuple[int, ...], key: tuple[int, ...]) -> Array:
    """Rates of tokens as (batch, heads, tokens, 1 or head_dim), of keys of ``rank`` axes."""
    x = wide(rate)
    if x.ndim == rank - 1:
        x = x[..., None]
    elif x.ndim == 1:  # of each head
        x = x[:, None, None]
    x = np.broadcast_to(x, (*value[:-1], x.shape[-1] if x.ndim else 1))
    return x.reshape((*key[:3], x.shape[-1]))
