"""The argument ``relative_values=``: a vector of each distance that joins the values (Shaw et al. 2018, equation 3).

For a query at the position ``p``, with ``t(j) = clip(j - p, -M, M)``::

    output = sum over j of P[j] * (value[j] + relative_values[M + t(j)])
           = P @ value + mass @ relative_values,    mass[M + t] = sum of P[j] over the keys with t(j) = t

The mass is the derivative of lse by a relative bias, so :meth:`headwise._runtime.backend.Backend.attention_backward`
computes it without an array of weights: scores are computed once more, and no other product.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from headwise._base.arrays import as_array, cast_layout, is_real
from headwise._base.attention_spec import query_rows
from headwise._base.ieee import ieee
from headwise._base.outputs import allocate, check_room
from headwise._numpy.attention import masked_product
from headwise._numpy.relative_bias import add_by_distance, by_distance
from headwise._ops.attention.dropout import backend_of, dropout_blocks
from headwise._runtime.backend import current

if TYPE_CHECKING:
    from collections.abc import Iterator
    from typing import TypeAlias

    from numpy.typing import ArrayLike

    from headwise._base.attention_spec import AttentionSpec
    from headwise._base.typing import Array, Shape
    from headwise._ops.attention.shapes import AttentionShape
    from headwise._ops.attention.spec import Dropout

    Triple: TypeAlias = tuple[Array, Array, Array]
    Results: TypeAlias = tuple[Array, Array | None, Array | None]

# Entries of the arrays of a block of query rows: masses, and weights where they are needed.
_BLOCK = 1 << 18


def check_relative_values(x: ArrayLike, shape: AttentionShape, dtype: np.dtype[Any]) -> Array:
    """``x`` as (heads or 1, 2 M + 1, value_dim) of ``dtype``, C-contiguous; a copy, which no other thread changes."""
    a = as_array(x, "relative_values")
    if a.dtype.kind == "b" or not is_real(a.dtype):
        raise TypeError(f"relative_values: dtype {a.dtype}, expected numbers to add to the values")
    heads, width = shape.scores[1], shape.output[-1]
    if a.ndim not in (2, 3) or a.shape[-1] != width or (a.ndim == 3 and a.shape[0] not in (1, heads)):
        raise ValueError(
            f"relative_values: shape {a.shape}, expected (2 M + 1, value_dim) = (an odd number, {width}), or with "
            f"{heads} or 1 before, for each head"
        )
    if a.shape[-2] % 2 == 0:
        raise ValueError(
            f"relative_values: shape {a.shape}: {a.shape[-2]} vectors, expected an odd number 2 M + 1, one for each "
            "distance from -M to M"
        )
    table = np.array(cast_layout(a, dtype), order="C")
    return table if table.ndim == 3 else table[np.newaxis]


def attend_with_relative_values(
    arrays: Triple, results: Results, spec: AttentionSpec, dropout: Dropout | None, table: Array
) -> None:
    """:meth:`headwise._runtime.backend.Backend.attention` with a ``table`` of :func:`check_relative_values`.

    ``arrays`` are query, key and value, and ``results`` are output, weights and lse, of which all but the first may be
    None.
    """
    (query, key, value), (output, weights, lse) = arrays, results
    scores = (*query.shape[:3], key.shape[2])
    if dropout is None and spec.score_mod is None:
        sums = allocate(scores[:3], output.dtype) if lse is None else lse
        current().attention(query, key, value, output, weights, sums, spec)
        add_relative_values(query, key, output, sums, spec, table)
        return
    attention = backend_of(spec).attention
    for block, block_spec in row_blocks(scores, spec, dropout):
        shape = (*scores[:2], block.stop - block.start, scores[3])
        block_weights, block_lse = allocate(shape, output.dtype), allocate(shape[:3], output.dtype)
        attention(query[:, :, block], key, value, output[:, :, block], block_weights, block_lse, block_spec)
        if weights is not None:
            weights[:, :, block] = block_weights
        if lse is not None:
            lse[:, :, block] = block_lse
        mass = mass_of_weights(block_weights, block_spec, table.shape[1])
        add_by_mass(output[:, :, block], mass, table, spec.precision)


def add_relative_values(query: Array, key: Array, output: Array, lse: Array, spec: AttentionSpec, table: Array) -> None:
    """Add the relative values of a ``table`` to the output of attention, without dropout."""
    for block in _blocks((*query.shape[:3], key.shape[2]), _width(spec, table)):
        mass = mass_by_distance(query[:, :, block], key, lse[:, :, block], query_rows(spec, block), table.shape[1])
        add_by_mass(output[:, :, block], mass, table, spec.precision)


def row_blocks(scores: Shape, spec: AttentionSpec, dropout: Dropout | None) -> Iterator[tuple[slice, AttentionSpec]]:
    """Blocks of query rows whose weights fit into bounded memory, and their specs; with dropout those of its draws."""
    if dropout is not None:
        yield from dropout_blocks(scores, spec, dropout)
        return
    for block in _blocks(scores, scores[3]):
        yield block, query_rows(spec, block)


@ieee
def mass_by_distance(query: Array, key: Array, lse: Array, spec: AttentionSpec, width: int) -> Array:
    """The sums of the weights by ``width`` clipped distances, (batch, heads, query_len, width), without dropout."""
    shape, reach = query.shape[:3], width // 2
    own = 0 if spec.relative_bias is None else spec.relative_bias.shape[3] // 2
    far = max(own, reach)
    check_room(*shape, 2 * far + 1, dtype=lse.dtype)
    bias = np.zeros((*shape, 2 * far + 1), lse.dtype)
    if spec.relative_bias is not None:  # the same bias, with an entry for each distance of `width`
        distances = np.arange(-far, far + 1).clip(-own, own)
        bias += spec.relative_bias[..., distances + own]
    mass = np.empty_like(bias)
    nothing = np.empty((*shape, 0), query.dtype)
    current().attention_backward(
        nothing, query, key, np.empty((*key.shape[:3], 0), key.dtype), nothing, np.ascontiguousarray(lse),
        np.ones_like(lse, order="C"), None, None, None, None, (None,) * len(spec.bias), None, None, mass,
        spec._replace(relative_bias=bias),
    )  # fmt: skip
    if far == reach:
        return mass
    start, stop = far - reach, far + reach
    folded = mass[..., start : stop + 1].copy()
    folded[..., 0] += mass[..., :start].sum(axis=3)
    folded[..., -1] += mass[..., stop + 1 :].sum(axis=3)
    return folded


@ieee
def mass_of_weights(weights: Array, spec: AttentionSpec, width: int) -> Array:
    """:func:`mass_by_distance` from the weights (batch, heads, query_len, key_len), with the dropout of the spec."""
    if spec.dropout_keep is not None:
        weights = weights * spec.dropout_keep * weights.dtype.type(spec.dropout_scale)
    mass = np.zeros((*weights.shape[:3], width), weights.dtype)
    for entries, position in _positions(spec, len(weights)):
        add_by_distance(mass[entries], -position, weights[entries])
    return mass


@ieee
def weight_gradients(d_mass: Array, spec: AttentionSpec, key_len: int) -> Array:
    """The gradient by the weights, (batch, heads, query_len, key_len), from that by the mass of their distances."""
    d_weights = np.empty((*d_mass.shape[:3], key_len), d_mass.dtype)
    for entries, position in _positions(spec, len(d_mass)):
        d_weights[entries] = by_distance(d_mass[entries], -position, d_mass.shape[2], key_len)
    if spec.dropout_keep is not None:
        d_weights *= spec.dropout_keep
        d_weights *= spec.dropout_scale
    return d_weights


def _positions(spec: AttentionSpec, batch: int) -> Iterator[tuple[slice, int]]:
    """Batch entries whose first queries have the same position, and that position."""
    if spec.offsets is None:
        yield slice(0, batch), spec.offset
        return
    for entry, offset in enumerate(spec.offsets.tolist()):
        yield slice(entry, entry + 1), spec.offset + offset


def _width(spec: AttentionSpec, table: Array) -> int:
    """Entries of a row of masses as the backend computes them."""
    own = 1 if spec.relative_bias is None else spec.relative_bias.shape[3]
    return max(int(table.shape[1]), own)


def _blocks(scores: Shape, width: int) -> Iterator[slice]:
    """Slices of query rows of about ``_BLOCK`` entries, with ``width`` entries for each row of a head."""
    batch, heads, query_len, _ = scores
    step = max(1, _BLOCK // max(1, batch * heads * width))
    for start in range(0, query_len, step):
        yield slice(start, min(start + step, query_len))


@ieee
def add_by_mass(output: Array, mass: Array, table: Array, precision: str) -> None:
    """``output += mass @ table``, where a mass of 0 adds 0, whatever stands in the table."""
    if np.isfinite(table).all():
        output += rows_by_table(mass, table, precision)
    else:
        output += masked_product(mass, table)


def rows_by_table(rows: Array, table: Array, precision: str) -> Array:
    """``rows @ table`` for rows (batch, heads, n, inner) and a table (heads or 1, inner, width).

    By the backend: the threads of NumPy's BLAS, once they have been used, take the time of others for a while.
    """
    result = allocate((*rows.shape[:3], table.shape[2]), rows.dtype)
    if rows.size == 0:
        result.fill(0)
        return result
    for heads, weight in zip(heads_of(table), table, strict=True):
        x = rows[:, heads].reshape((-1, rows.shape[3]))
        out = allocate((len(x), table.shape[2]), rows.dtype)
        current().linear(x, weight, None, out, precision)
        result[:, heads] = out.reshape(result[:, heads].shape)
    return result


def heads_of(table: Array) -> list[slice]:
    """The heads that have each table of (heads or 1, ...)."""
    return [slice(None)] if len(table) == 1 else [slice(h, h + 1) for h in range(len(table))]
