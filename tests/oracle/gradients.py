"""Gradients of attention."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from oracle.dense_attention import attention, entry, four_dimensional
from oracle.numbers import Array, double


def attention_gradients(
    query: ArrayLike, key: ArrayLike, value: ArrayLike, d_output: ArrayLike, **options: Any
) -> tuple[Array, ...]:
    """Gradients of attention by query, key and value, and by those of bias, alibi_slopes and sinks that are given, from
    whole matrices (Dao et al., 2022, appendix B.2)."""
    for name in ("return_lse", "precision"):
        options.pop(name, None)
    forward = attention(query, key, value, **options)
    q, k, v, d, o, p = (
        x.reshape(four_dimensional(x.shape))
        for x in (*map(double, (query, key, value, d_output)), forward.output, forward.weights)
    )
    lse = forward.lse.reshape(p.shape[:3])
    group = p.shape[1] // k.shape[1]
    k, v = (x.repeat(group, axis=1) for x in (k, v))
    scale = 1 / np.sqrt(q.shape[-1]) if options.get("scale") is None else options["scale"]
    by_head = (p.shape[0], -1, group)
    with np.errstate(all="ignore"):
        delta = (d * o).sum(axis=-1)
        d_weights = d @ v.swapaxes(2, 3)
        if options.get("relative_values") is not None:
            table = double(options["relative_values"])
            entries = np.broadcast_to(entry(distances(p, options), table[..., 0]), p.shape)
            d_weights = d_weights + np.take_along_axis(d @ table.swapaxes(-1, -2), entries, axis=3)
        d_scores = np.where(p == 0, 0, p * (d_weights - delta[..., None]))
        rows = d_scores
        if options.get("softcap") is not None:
            rows = d_scores * (1 - np.tanh(scale * (q @ k.swapaxes(2, 3)) / options["softcap"]) ** 2)
        d_key, d_value = scale * (rows.swapaxes(2, 3) @ q), p.swapaxes(2, 3) @ d
        found = [scale * (rows @ k), *(x.reshape(*by_head, *x.shape[2:]).sum(axis=2) for x in (d_key, d_value))]
        results = [x.reshape(np.shape(like)) for x, like in zip(found, (query, key, value), strict=True)]
        if options.get("bias") is not None:
            shape = np.shape(options["bias"])
            d_bias = d_scores.reshape(forward.weights.shape)
            full = (1,) * (d_bias.ndim - len(shape)) + shape
            axes = tuple(n for n in range(d_bias.ndim) if full[n] != d_bias.shape[n])
            results.append(d_bias.sum(axis=axes, keepdims=True).reshape(shape))
        if options.get("alibi_slopes") is not None:
            results.append(-(d_scores * np.abs(distances(p, options))).sum(axis=(0, 2, 3)))
        if options.get("sinks") is not None:
            weights = np.exp(double(options["sinks"])[:, None] - np.where(np.isneginf(lse), 0, lse))
            results.append(-np.where(weights == 0, 0, weights * delta).sum(axis=(0, 2)))
        if options.get("relative_bias") is not None:
            results.append(relative_gradient(d_scores, query, options))
        if options.get("relative_values") is not None:
            results.append(values_gradient(p, d, entries, double(options["relative_values"])))
    return tuple(results)


def values_gradient(weights: Array, d_output: Array, entries: Array, table: Array) -> Array:
    """The sums over all queries of their mass of each distance times the gradient of their output."""
    mass = np.zeros((*weights.shape[:3], table.shape[-2]), weights.dtype)
    n, h, i = (index[..., None] for index in np.indices(weights.shape[:3]))
    np.add.at(mass, (n, h, i, entries), weights)
    sees_keys = weights.any(axis=3, keepdims=True)
    by_head = (mass.swapaxes(2, 3) @ np.where(sees_keys, d_output, 0)).sum(axis=0)
    return (by_head if table.ndim == 3 and len(table) > 1 else by_head.sum(axis=0)).reshape(table.shape)


def distances(scores: Array, options: dict[str, Any]) -> Array:
    """(batch, 1, query_len, key_len): of each key from the position of each query."""
    lengths = np.full(len(scores), scores.shape[3])
    if options.get("key_lengths") is not None:
        lengths = np.ravel(options["key_lengths"])
    first = lengths - scores.shape[2] if options.get("causal_alignment") == "lower_right" else 0 * lengths
    return np.arange(scores.shape[3]) - (first[:, None, None, None] + np.arange(scores.shape[2])[:, None])


def relative_gradient(d_scores: Array, query: ArrayLike, options: dict[str, Any]) -> Array:
    """The sums of ``d_scores`` over the pairs that have an entry of the relative bias."""
    table = np.asarray(options["relative_bias"])
    entries = np.broadcast_to(entry(distances(d_scores, options), table), d_scores.shape)
    total = np.zeros((*d_scores.shape[:3], table.shape[-1]), d_scores.dtype)
    n, h, i = (index[..., None] for index in np.indices(d_scores.shape[:3]))
    np.add.at(total, (n, h, i, entries), d_scores)
    lead = np.shape(query)[:-2]
    full = (*(lead[:-1] or lead), *total.shape[1:])
    own = (1,) * (len(full) - table.ndim) + table.shape
    axes = tuple(axis for axis in range(len(full)) if own[axis] != full[axis])
    return total.reshape(full).sum(axis=axes, keepdims=True).reshape(table.shape)
