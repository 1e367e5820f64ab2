"""One call of attention over arrays of one sequence length: results are allocated, layouts cast, a backend called."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from headwise._base.arrays import as_array, cast_layout, is_canonical_or_16bit, promote
from headwise._base.attention_spec import fill_without_keys
from headwise._base.outputs import allocate, check_out, finalize, resolve_out
from headwise._base.scalars import check_flag
from headwise._base.typing import FLOAT32
from headwise._ops.attention.dropout import attend_with_dropout, backend_of
from headwise._ops.attention.relative_values import attend_with_relative_values, check_relative_values
from headwise._ops.attention.shapes import check_shapes
from headwise._ops.attention.spec import array_options, attention_spec

if TYPE_CHECKING:
    from numpy.typing import ArrayLike

    from headwise._base.attention_spec import AttentionSpec
    from headwise._base.typing import Array
    from headwise._ops.attention.options import SpecOptions
    from headwise._ops.attention.relative_values import Results, Triple
    from headwise._ops.attention.spec import Dropout


def attend(
    query: ArrayLike,
    key: ArrayLike,
    value: ArrayLike,
    options: SpecOptions,
    dropout: Dropout | None,
    need_weights: bool,
    return_lse: bool,
    out: Array | None,
) -> tuple[Array, Array | None, Array | None]:
    """(output, weights, lse) of both public functions."""
    q, k, v = as_array(query, "query"), as_array(key, "key"), as_array(value, "value")
    ready = is_canonical_or_16bit(q, k, v)
    dtype = q.dtype
    compute = FLOAT32 if q.itemsize == 2 else dtype
    if not ready:
        compute, dtype = promote(("query", q), ("key", k), ("value", v))
    stored = dtype if dtype.itemsize == 2 else compute  # backends read and write 16-bit arrays as they are
    shape = check_shapes(q.shape, k.shape, v.shape)
    vectors = options.relative_values
    of_distances = None if vectors is None else check_relative_values(vectors, shape, compute)
    # Relative values are added to the output before it is rounded.
    ready, stored = (ready, stored) if of_distances is None else (ready and stored is compute, compute)
    spec = attention_spec(shape, (compute, stored), options)
    need_weights = need_weights is not False and check_flag(need_weights, "need_weights")
    return_lse = return_lse is not False and check_flag(return_lse, "return_lse")
    if out is not None:
        check_out(out, shape.output, dtype, ("query", q), ("key", k), ("value", v), *array_options(options))
    result = allocate(shape.output, stored) if out is None else resolve_out(out, shape.output, stored)
    weights = allocate(shape.scores, stored) if need_weights else None
    lse = allocate(shape.scores[:3], compute) if return_lse else None

    if not ready:
        q, k = cast_layout(q, stored, last=True), cast_layout(k, stored, last=True)
        v = cast_layout(v, stored, last=True)
    output = result
    if q.ndim != 4:
        q, k, v, output = with_heads(q), with_heads(k), with_heads(v), with_heads(output)
    if shape.scores[3] == 0:
        fill_without_keys(output, lse, spec.sinks)
    elif output.size or (math.prod(shape.scores) > 0 and (weights is not None or lse is not None)):
        if dropout is None and of_distances is None:
            backend_of(spec).attention(q, k, v, output, weights, lse, spec)
        else:
            _by_rows((q, k, v), (output, weights, lse), spec, dropout, of_distances)

    if not (out is None and stored is dtype):
        result = finalize(result, out, dtype)
        weights = None if weights is None else finalize(weights, None, dtype)
    if len(shape.output) != 4:
        weights = None if weights is None else weights.reshape(shape.scores_as_given)
        lse = None if lse is None else lse.reshape(shape.output[:-1])
    return result, weights, lse


def _by_rows(
    arrays: Triple, results: Results, spec: AttentionSpec, dropout: Dropout | None, of_distances: Array | None
) -> None:
    """A call with dropout or relative values, which are computed in blocks of query rows."""
    if of_distances is not None and results[0].size:
        attend_with_relative_values(arrays, results, spec, dropout, of_distances)
    elif dropout is not None:
        attend_with_dropout(*arrays, *results, spec, dropout)
    else:
        backend_of(spec).attention(*arrays, *results, spec)


def with_heads(a: Array) -> Array:
    """``a``, (..., seq, dim) of any other rank, as (batch, heads, seq, dim)."""
    if a.ndim == 3:
        return a[:, None]
    if a.ndim == 2:
        return a[None, None]
    return a.reshape((math.prod(a.shape[:-3]), *a.shape[-3:]))
