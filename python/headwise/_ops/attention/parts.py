"""Attention of some queries of a sequence to some of its keys, which :func:`headwise.merge_attention` combines.

The spec of a part is that of the whole call as :func:`headwise._base.attention_spec.spec_of_part` slices it. Masks,
biases and relative biases come beside it, by name, because a caller may have them in parts only.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from headwise._base.arrays import as_array, cast_layout, promote
from headwise._base.attention_spec import fill_without_keys
from headwise._base.outputs import allocate, finalize
from headwise._ops.attention.call import with_heads
from headwise._ops.attention.dropout import backend_of
from headwise._ops.attention.relative_bias import check_relative_bias
from headwise._ops.attention.relative_values import attend_with_relative_values
from headwise._ops.attention.score_masks import split_keep_and_bias
from headwise._ops.attention.shapes import check_packed_shapes, check_shapes
from headwise._runtime.backend import current

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import ArrayLike

    from headwise._base.attention_spec import AttentionSpec, PackedSequences
    from headwise._base.typing import Array, Named
    from headwise._ops.attention.score_masks import Dtypes
    from headwise._ops.attention.shapes import AttentionShape


def attend_part(
    query: ArrayLike,
    key: ArrayLike,
    value: ArrayLike,
    masks: Sequence[Named],
    spec: AttentionSpec,
    relative_values: Array | None = None,
) -> tuple[Array, Array]:
    """(output, lse) of some queries and some keys."""
    q, k, v = as_array(query, "query"), as_array(key, "key"), as_array(value, "value")
    compute, dtype = promote(("query", q), ("key", k), ("value", v))
    stored = dtype if dtype.itemsize == 2 and relative_values is None else compute
    shape = check_shapes(q.shape, k.shape, v.shape)
    spec = with_masks(spec, masks, shape, (compute, stored))
    output, lse = allocate(shape.output, stored), allocate(shape.scores[:3], compute)
    if shape.key_len == 0:
        fill_without_keys(with_heads(output), lse, spec.sinks)
    elif lse.size:
        q, k, v = (with_heads(cast_layout(a, stored, last=True)) for a in (q, k, v))
        if relative_values is None or output.size == 0:
            backend_of(spec).attention(q, k, v, with_heads(output), None, lse, spec)
        else:
            attend_with_relative_values((q, k, v), (with_heads(output), None, lse), spec, None, relative_values)
    return finalize(output, None, dtype), lse.reshape(shape.output[:-1])


def attend_packed_part(
    query: ArrayLike,
    key: ArrayLike,
    value: ArrayLike,
    relative_bias: ArrayLike | None,
    sequences: PackedSequences,
    spec: AttentionSpec,
) -> tuple[Array, Array]:
    """(output, lse) of some rows of packed queries, all of which belong to ``sequences``, and some rows of keys."""
    q, k, v = as_array(query, "query"), as_array(key, "key"), as_array(value, "value")
    compute, dtype = promote(("query", q), ("key", k), ("value", v))
    stored = dtype if dtype.itemsize == 2 else compute
    shape = check_packed_shapes(q.shape, k.shape, v.shape)
    if relative_bias is not None:
        spec = spec._replace(relative_bias=check_relative_bias(relative_bias, shape, compute))
    output, lse = allocate(shape.output, stored), allocate(shape.scores[1:3], compute)
    if lse.size:
        q, k, v = (cast_layout(a, stored, last=True).swapaxes(0, 1) for a in (q, k, v))
        current().attention_varlen(q, k, v, output.swapaxes(0, 1), lse, sequences, spec)
    return finalize(output, None, dtype), lse


def with_masks(spec: AttentionSpec, masks: Sequence[Named], shape: AttentionShape, dtypes: Dtypes) -> AttentionSpec:
    """``spec`` with the ``masks`` of a part: those of :func:`aligned_masks`, and ``relative_bias``."""
    if not masks:
        return spec
    keep, bias = split_keep_and_bias([m for m in masks if m[0] != "relative_bias"], shape, dtypes)
    relative = [check_relative_bias(a, shape, dtypes[0]) for name, a in masks if name == "relative_bias"]
    return spec._replace(keep=keep, bias=bias, relative_bias=relative[0] if relative else None)


def keeps_none(spec: AttentionSpec, query_len: int, key_len: int) -> bool:
    """Whether the window, the lengths of sequences or the blocks of a part of this size mask all of its scores."""
    if query_len == 0 or key_len == 0:
        return True
    offsets: Any = 0
    if spec.key_lengths is not None and spec.offsets is not None:
        if not spec.key_lengths.any():
            return True
        offsets = spec.offsets[spec.key_lengths > 0]
    first = spec.offset + np.min(offsets)
    last = spec.offset + np.max(offsets) + query_len - 1
    before = spec.right >= 0 and last + spec.right < 0
    behind = spec.left >= 0 and first - spec.left >= key_len
    return bool(before or behind or (spec.blocks is not None and spec.blocks.keep_none))
