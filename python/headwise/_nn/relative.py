"""Relative positions of multi-head attention: the argument ``relative``, and learned tables as a bias of scores."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from headwise._base.arrays import as_array, check_dtype
from headwise._base.ieee import cast_dtype, ieee
from headwise._base.messages import shown
from headwise._base.outputs import check_room
from headwise._base.scalars import check_flag, check_int
from headwise._base.typing import FLOAT64
from headwise._positions.buckets import t5_buckets
from headwise._positions.relative import RelativePositionalEncoding
from headwise._positions.relative_bias import shaw_relative_bias

if TYPE_CHECKING:
    from headwise._base.typing import Array

_T5 = ("num_buckets", "max_distance", "bidirectional")


class Relative(NamedTuple):
    """The argument ``relative`` of a layer, checked; at most one entry is not None."""

    bias: Array | None = None  # (heads or 1, 1, 2 M + 1), float64: that of every call
    embeddings: Array | None = None  # of Shaw et al., (2 M + 1, d_k)
    buckets: Array | None = None  # of T5: those of the distances -M to M, indices of a learned table
    num_buckets: int = 0


def check_relative(relative: Any, num_heads: int, width: int) -> Relative:
    if relative is None:
        return Relative()
    if isinstance(relative, Mapping):
        return _check_t5(relative)
    if isinstance(relative, RelativePositionalEncoding):
        if relative.d_model != width:
            raise ValueError(f"relative: of width {relative.d_model}, expected d_k = {width}")
        return Relative(embeddings=relative.embeddings)
    bias = as_array(relative, "relative")
    check_dtype(bias.dtype, "relative")
    if bias.ndim != 3 or bias.shape[0] not in (1, num_heads) or bias.shape[1] != 1 or bias.shape[2] % 2 == 0:
        raise ValueError(
            f"relative: shape {bias.shape}, expected ({num_heads} or 1, 1, 2 M + 1), an odd number of distances"
        )
    return Relative(bias=cast_dtype(bias, FLOAT64).copy())


def _check_t5(entries: Mapping[Any, Any]) -> Relative:
    if not {"num_buckets", "bidirectional"} <= set(entries) <= set(_T5):
        raise ValueError(f"relative: entries {shown(list(entries))}, expected {', '.join(_T5)}")
    both = check_flag(entries["bidirectional"], "relative['bidirectional']")
    least = 4 if both else 2
    count = check_int(entries["num_buckets"], "relative['num_buckets']", least)
    reach = check_int(entries.get("max_distance", 128), "relative['max_distance']", count // least + 1)
    check_room(2 * reach + 1)
    return Relative(buckets=t5_buckets(np.arange(-reach, reach + 1), count, both, reach), num_buckets=count)


def t5_bias(table: Array, buckets: Array) -> Array:
    """(heads, 1, 2 M + 1) from a table (num_buckets, heads)."""
    return np.ascontiguousarray(table.T[:, np.newaxis, buckets])


@ieee
def t5_gradient(d_bias: Array, buckets: Array, num_buckets: int) -> Array:
    """The gradient by the table from that by :func:`t5_bias`."""
    by_head = d_bias.reshape(-1, d_bias.shape[-1])  # (heads, 2 M + 1)
    d_table = np.zeros((num_buckets, len(by_head)), d_bias.dtype)
    np.add.at(d_table, buckets, by_head.T)
    return d_table


def shaw_bias(query: Array, embeddings: Array, scale: float | None) -> Array:
    """(batch, heads, query_len, 2 M + 1) from queries (batch, heads, query_len, d_k)."""
    return shaw_relative_bias(query, embeddings, scale=scale)


@ieee
def shaw_gradients(d_bias: Array, query: Array, embeddings: Array, scale: float | None) -> tuple[Array, Array]:
    """The gradients by the queries and by the embeddings from that by :func:`shaw_bias`."""
    factor = embeddings.dtype.type(embeddings.shape[-1] ** -0.5 if scale is None else scale)
    d_bias = d_bias * factor
    by_embeddings = np.einsum("bhit,bhid->td", d_bias, query, optimize=True)
    return np.matmul(d_bias, embeddings), by_embeddings
