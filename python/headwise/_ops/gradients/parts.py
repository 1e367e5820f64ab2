"""Gradients of attention of some rows of packed queries to some rows of keys."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from headwise._base.arrays import cast_layout, promote
from headwise._base.ieee import cast_dtype, ieee
from headwise._ops.attention.relative_bias import check_relative_bias
from headwise._ops.attention.shapes import check_packed_shapes
from headwise._ops.gradients.attention import ROWS
from headwise._ops.gradients.results import gradient_dtype
from headwise._runtime.backend import current

if TYPE_CHECKING:
    from collections.abc import Sequence

    from headwise._base.attention_spec import AttentionSpec, PackedSequences
    from headwise._base.typing import Array


@ieee
def packed_part_gradients(
    results: Sequence[Array | None],
    rows: tuple[Array, Array, Array],
    relative_bias: Array | None,
    sequences: PackedSequences,
    spec: AttentionSpec,
) -> tuple[Array, Array, Array]:
    """What some rows of queries and of keys add to the gradients of query, key and value, which are ``rows``.

    ``results`` are the gradient of the output, the output, its log-sum-exp and the gradient of that or None, of the
    queries and all of their keys.
    """
    compute, dtype = promote(*zip(ROWS, rows, strict=True))
    stored = dtype if dtype.itemsize == 2 else compute
    shape = check_packed_shapes(*(a.shape for a in rows))
    if relative_bias is not None:
        spec = spec._replace(relative_bias=check_relative_bias(relative_bias, shape, compute))
    # Rows of keys that belong to none of the sequences are not written.
    gradients = tuple(np.zeros(a.shape, stored) for a in rows)
    d_output, output, lse, d_lse = results

    def heads_first(a: Any) -> Array:
        return cast_layout(a, stored, last=True).swapaxes(0, 1)

    if shape.output[0] and shape.output[1]:
        sums = [None if a is None else np.ascontiguousarray(a, compute) for a in (lse, d_lse)]
        arguments: list[Any] = [heads_first(d_output), *map(heads_first, rows), heads_first(output), *sums]
        arguments += [*(d.swapaxes(0, 1) for d in gradients), None, None, sequences, spec]
        current().attention_varlen_backward(*arguments)
    d_query, d_key, d_value = (cast_dtype(d, gradient_dtype(a, dtype)) for d, a in zip(gradients, rows, strict=True))
    return d_query, d_key, d_value
