"""Attention of some queries of a sequence to some of its keys, which :func:`headwise.merge_attention` combines."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from headwise._base.arrays import as_array, cast_layout, promote
from headwise._base.attention_spec import fill_without_keys
from headwise._base.outputs import allocate, finalize
from headwise._ops.attention.dense import with_heads
from headwise._ops.attention.shapes import check_shapes
from headwise._ops.attention.spec import attention_spec
from headwise._runtime.backend import current

if TYPE_CHECKING:
    from numpy.typing import ArrayLike

    from headwise._base.typing import Array
    from headwise._ops.attention.options import SpecOptions


class Place(NamedTuple):
    """Where the queries of a part are among its keys: query ``i`` sees the keys ``i + offset - left`` to ``i + offset +
    right``. A side of -1 is open."""

    offset: int
    left: int
    right: int


def attend_part(
    query: ArrayLike, key: ArrayLike, value: ArrayLike, place: Place, options: SpecOptions
) -> tuple[Array, Array]:
    """(output, lse) of some queries and some keys at ``place``, whose arguments are checked like those of a call."""
    q, k, v = as_array(query, "query"), as_array(key, "key"), as_array(value, "value")
    compute, dtype = promote(("query", q), ("key", k), ("value", v))
    stored = dtype if dtype.itemsize == 2 else compute
    shape = check_shapes(q.shape, k.shape, v.shape)
    spec = attention_spec(shape, (compute, stored), options)._replace(**place._asdict())
    output, lse = allocate(shape.output, stored), allocate(shape.scores[:3], compute)
    if shape.key_len == 0:
        fill_without_keys(with_heads(output), lse, spec.sinks)
    elif lse.size:
        q, k, v = (with_heads(cast_layout(a, stored, last=True)) for a in (q, k, v))
        current().attention(q, k, v, with_heads(output), None, lse, spec)
    return finalize(output, None, dtype), lse.reshape(shape.output[:-1])
