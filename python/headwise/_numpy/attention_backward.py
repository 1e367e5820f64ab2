"""Gradients of attention from its output and log-sum-exp, in blocks of query rows (Dao et al. 2022, algorithm 4).

With ``P = exp(score - lse)``, 0 where a key is masked, and the gradient ``dO`` of the output::

    delta = sum(dO * O) - d_lse                     one number for each row
    dP    = dO V^T * dropout_keep * dropout_scale   the gradient of P, plus d_weights
    dS    = P * (dP + d_weights - delta)            the gradient of the scores, and of each bias
    dV    = (P * dropout_keep * dropout_scale)^T dO
    dQ    = scale * (dS * softcap') K,   dK = scale * (dS * softcap')^T Q
    d_sink = -sum(exp(sink - lse) * delta)

A weight of 0 contributes 0 to every sum, whatever stands in its key, value or query.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from headwise._base.attention_spec import mask_of_entry, query_rows, spec_of_entry
from headwise._base.ieee import assign, cast_dtype, ieee
from headwise._base.typing import FLOAT32
from headwise._numpy.attention import kept_by_blocks, masked_product, visible_runs
from headwise._numpy.blocks import BLOCK, head_blocks, heads_per_key_head
from headwise._numpy.score_modifiers import (
    ScoreBlock,
    ScoreGradients,
    modify_scores,
    part_of,
    relative_part,
    score_derivative,
    sum_gradients,
)

if TYPE_CHECKING:
    from headwise._base.attention_spec import AttentionSpec, PackedSequences
    from headwise._base.typing import Array

# Query rows of a block, with those of a group of heads together; the keys of a block are as many as BLOCK allows.
_ROWS = 256


class _Inputs(NamedTuple):
    """Of the whole call, or of one batch entry with its own keys."""

    d_output: Array
    query: Array
    key: Array
    value: Array
    output: Array
    lse: Array
    d_lse: Array | None
    d_weights: Array | None


class _Gradients(NamedTuple):
    """The arrays that gradients are added to; None where a gradient is not asked for."""

    query: Array | None
    key: Array | None
    value: Array | None
    scores: ScoreGradients
    sinks: Array | None


@ieee
def attention_backward(  # noqa: PLR0913, PLR0917 (the arrays of the interface)
    d_output: Array,
    query: Array,
    key: Array,
    value: Array,
    output: Array,
    lse: Array,
    d_lse: Array | None,
    d_weights: Array | None,
    d_query: Array | None,
    d_key: Array | None,
    d_value: Array | None,
    d_bias: tuple[Array | None, ...],
    d_alibi_slopes: Array | None,
    d_sinks: Array | None,
    d_relative_bias: Array | None,
    spec: AttentionSpec,
) -> None:
    """Gradients in blocks, of the whole batch or, with ``key_lengths``, of one batch entry after another."""
    for result in (d_key, d_value, *d_bias, d_alibi_slopes, d_sinks, d_relative_bias):
        if result is not None:
            result.fill(0)
    # Views, whose shapes no other thread can change.
    inputs = _Inputs(d_output, query.view(), key.view(), value.view(), output, lse, d_lse, d_weights)
    scores = ScoreGradients(d_bias, d_alibi_slopes, d_relative_bias)
    if spec.key_lengths is None:
        _differentiate(inputs, _Gradients(d_query, d_key, d_value, scores, d_sinks), spec)
        return
    rows = query.shape[2]
    for b, keys in enumerate(spec.key_lengths.tolist()):
        part, some = slice(b, b + 1), (slice(b, b + 1), slice(None), slice(keys))

        def of_entry(m: Array, b: int = b, keys: int = keys) -> Array:
            return mask_of_entry(m, b, rows, keys)

        part_inputs = _Inputs(
            d_output[part], query[part], key[some], value[some], output[part], lse[part],
            None if d_lse is None else d_lse[part], None if d_weights is None else d_weights[part, ..., :keys],
        )  # fmt: skip
        part_spec = spec_of_entry(spec, b, rows)
        part_scores = scores._replace(bias=tuple(None if a is None else of_entry(a) for a in d_bias))
        if d_relative_bias is not None and len(d_relative_bias) > 1:
            part_scores = part_scores._replace(relative_bias=d_relative_bias[part])
        part_query = None if d_query is None else d_query[part]
        part_key, part_value = (None if a is None else a[some] for a in (d_key, d_value))
        part_gradients = _Gradients(part_query, part_key, part_value, part_scores, d_sinks)
        _differentiate(part_inputs, part_gradients, part_spec)


def attention_varlen_backward(  # noqa: PLR0913, PLR0917 (the arrays of the interface)
    d_output: Array,
    query: Array,
    key: Array,
    value: Array,
    output: Array,
    lse: Array,
    d_lse: Array | None,
    d_query: Array | None,
    d_key: Array | None,
    d_value: Array | None,
    d_alibi_slopes: Array | None,
    d_sinks: Array | None,
    sequences: PackedSequences,
    spec: AttentionSpec,
) -> None:
    """One call of :func:`attention_backward` for each sequence."""
    for s, (start, length, first, keys, offset) in enumerate(zip(*(a.tolist() for a in sequences), strict=True)):
        rows, some = (None, slice(None), slice(start, start + length)), (None, slice(None), slice(first, first + keys))
        d_q, d_k, d_v = (
            None if d is None else d[part] for d, part in ((d_query, rows), (d_key, some), (d_value, some))
        )
        slopes, sinks = (None if d is None else d[s] for d in (d_alibi_slopes, d_sinks))
        part_d_lse = None if d_lse is None else d_lse[rows]
        if length and keys and len(query):
            attention_backward(
                d_output[rows], query[rows], key[some], value[some], output[rows], lse[rows], part_d_lse, None,
                d_q, d_k, d_v, (), slopes, sinks, None, query_rows(spec, rows[2])._replace(offset=offset),
            )  # fmt: skip
            continue
        for d in (d_q, d_k, d_v, slopes, sinks):
            if d is not None:
                d.fill(0)
        if sinks is not None and spec.sinks is not None and part_d_lse is not None:  # lse is the sink, without keys
            sinks[:] = np.where(np.isneginf(spec.sinks), 0, part_d_lse.sum(axis=(0, 2)))


def _differentiate(inputs: _Inputs, gradients: _Gradients, spec: AttentionSpec) -> None:
    """Gradients of 16-bit keys and values are summed in float32 for the heads of a block, and rounded once."""
    batch, _, query_len, _ = inputs.query.shape
    kv_heads, key_len = inputs.key.shape[1:3]
    is_16bit = inputs.query.dtype.itemsize == 2
    group = heads_per_key_head(inputs.query, inputs.key)
    rows = min(query_len, max(1, _ROWS // group))
    # Several heads only together with all of their rows: few rows see few keys under a causal mask or a window.
    size = group * rows * key_len if rows == query_len else BLOCK
    for b, g in head_blocks(batch, kv_heads, size):
        results = [None if a is None else a[b, g] for a in (gradients.key, gradients.value)]
        sums = [None if a is None else np.zeros(a.shape, FLOAT32) if is_16bit else a for a in results]
        part = gradients._replace(key=sums[0], value=sums[1])
        start = 0
        while start < query_len:
            stop = min(start + rows, query_len)
            if spec.blocks is not None:
                stop = spec.blocks.query_rows(start, query_len, rows)
            _differentiate_rows(inputs, part, spec, (b, g, slice(start, stop)))
            start = stop
        if is_16bit:
            for result, total in zip(results, sums, strict=True):
                if result is not None and total is not None:
                    assign(result, total)


class _Rows(NamedTuple):
    """Some query rows of some batch entries and heads.

    Query heads that share a key head are stacked, (group, rows) -> group * rows, so that a block of keys is one matrix
    product per key head.
    """

    where: tuple[slice, slice, slice]  # batch entries, query heads, rows
    shape: tuple[int, int, int]  # their numbers
    scaled: Array  # scale * query, (batch, kv_heads, group * rows, head_dim), and so on for the others
    d_output: Array
    delta: Array
    lse: Array

    @classmethod
    def read(cls, inputs: _Inputs, scale: float, where: tuple[slice, slice, slice]) -> _Rows:
        dtype = FLOAT32 if inputs.query.dtype.itemsize == 2 else inputs.query.dtype
        batch, heads, rows = (part.stop - part.start for part in where)
        kv_heads = heads * inputs.key.shape[1] // inputs.query.shape[1]

        def stacked(a: Array) -> Array:
            size = a.shape[3] if a.ndim == 4 else 1
            return cast_dtype(a[where], dtype).reshape((batch, kv_heads, heads // kv_heads * rows, size))

        scaled = stacked(inputs.query) * np.asarray(scale, dtype)
        d_output, output, lse = stacked(inputs.d_output), stacked(inputs.output), stacked(inputs.lse)
        delta = np.where(output == 0, 0, d_output * output).sum(axis=3, keepdims=True)  # 0 for a row without keys
        if inputs.d_lse is not None:
            delta -= stacked(inputs.d_lse)
        lse = np.where(np.isneginf(lse), 0, lse)  # such a row has no keys: exp(-inf - 0) makes its weights 0
        return cls(where, (batch, heads, rows), scaled, d_output, delta, lse)


def _differentiate_rows(
    inputs: _Inputs, gradients: _Gradients, spec: AttentionSpec, block: tuple[slice, slice, slice]
) -> None:
    """Some query rows of some batch entries and key heads, in blocks of the keys that these rows see.

    ``gradients.key`` and ``gradients.value`` are those of the block's key heads.
    """
    b, g, r = block
    group = heads_per_key_head(inputs.query, inputs.key)
    where = b, slice(g.start * group, g.stop * group), r
    rows = _Rows.read(inputs, spec.scale, where)
    if gradients.sinks is not None and spec.sinks is not None:
        weights = np.exp(spec.sinks[where[1], None] - rows.lse.reshape(rows.shape))
        weights[:, np.isneginf(spec.sinks[where[1]])] = 0  # no sink, also where lse is NaN
        by_row = np.where(weights == 0, 0, weights * rows.delta.reshape(rows.shape))
        gradients.sinks[where[1]] -= by_row.sum(axis=(0, 2))
    d_query = None if gradients.query is None else np.zeros_like(rows.scaled)
    runs = visible_runs(*where, inputs.key.shape[2], spec)
    step = max(1, BLOCK // math.prod(rows.shape))
    for k in (slice(n, min(n + step, run.stop)) for run in runs for n in range(run.start, run.stop, step)):
        key, value = (cast_dtype(a[b, g, k], rows.lse.dtype) for a in (inputs.key, inputs.value))
        d_scores = _differentiate_scores(inputs, gradients, spec, rows, k, key, value)
        if d_query is not None:
            d_query += masked_product(d_scores, key)
        if gradients.key is not None:
            gradients.key[:, :, k] += masked_product(d_scores.swapaxes(2, 3), rows.scaled)
    if gradients.query is not None and d_query is not None:
        d_query *= spec.scale
        result = gradients.query[where]
        assign(result, d_query.reshape(result.shape))


def _differentiate_scores(
    inputs: _Inputs, gradients: _Gradients, spec: AttentionSpec, rows: _Rows, k: slice, key: Array, value: Array
) -> Array:
    """The gradient of ``rows.scaled @ key.T``, stacked; gradients of the values and of score modifiers are added.

    ``key`` and ``value`` are the keys ``k`` in the dtype of the computation.
    """
    where, dtype = (*rows.where, k), rows.lse.dtype
    products = np.matmul(rows.scaled, key.swapaxes(2, 3))
    scores = products.reshape((*rows.shape, products.shape[3]))
    keep = [part_of(m, where) for m in spec.keep] + kept_by_blocks(spec, *where)
    bias = [cast_dtype(part_of(m, where), dtype) for m in spec.bias]
    if spec.relative_bias is not None:
        bias.append(relative_part(spec, where))
    block = ScoreBlock(scores, keep, bias, where[1], spec.offset + where[2].start, k.start)
    derivative = score_derivative(scores, spec)
    modify_scores(block, spec)

    weights = scores.reshape(products.shape)  # the scores, until their exponentials replace them
    masked = np.isneginf(weights) if np.isnan(rows.lse).any() else None
    weights -= rows.lse
    np.exp(weights, out=weights)
    if masked is not None:
        weights[masked] = 0
    d_scores: Array = np.matmul(rows.d_output, value.swapaxes(2, 3))
    dropped = weights
    if spec.dropout_keep is not None:
        kept = np.broadcast_to(part_of(spec.dropout_keep, where), scores.shape).reshape(weights.shape)
        d_scores, dropped = (np.where(kept, a * spec.dropout_scale, 0) for a in (d_scores, weights))
    if gradients.value is not None:
        gradients.value[:, :, k] += masked_product(dropped.swapaxes(2, 3), rows.d_output)
    if inputs.d_weights is not None:
        d_scores += cast_dtype(inputs.d_weights[where], dtype).reshape(weights.shape)
    d_scores -= rows.delta
    d_scores *= weights
    d_scores[weights == 0] = 0
    sum_gradients(block, d_scores.reshape(scores.shape), gradients.scores, where)
    if derivative is not None:
        np.multiply(d_scores, derivative.reshape(weights.shape), out=d_scores, where=weights != 0)
    return d_scores
