"""Dropout of attention's weights, in blocks of query rows."""

from __future__ import annotations

from typing import TYPE_CHECKING, cast

import numpy as np

from headwise import _numpy
from headwise._base.attention_spec import query_rows
from headwise._base.outputs import allocate
from headwise._runtime.backend import current

if TYPE_CHECKING:
    from collections.abc import Iterator

    from headwise._base.attention_spec import AttentionSpec
    from headwise._base.typing import Array, Shape
    from headwise._ops.attention.spec import Dropout
    from headwise._runtime.backend import Backend

# Random numbers drawn per block: 16 MB of float32. Results depend on this constant: blocks set the order of the draws,
# so they may depend on shapes only.
_BLOCK = 1 << 22


def backend_of(spec: AttentionSpec) -> Backend:
    """The backend that computes attention by ``spec``: functions in Python are called by that of NumPy."""
    return current() if spec.score_mod is None else cast("Backend", _numpy)


def attend_with_dropout(
    query: Array,
    key: Array,
    value: Array,
    output: Array,
    weights: Array | None,
    lse: Array | None,
    spec: AttentionSpec,
    dropout: Dropout,
) -> None:
    """:meth:`headwise._runtime.backend.Backend.attention` with a random ``dropout_keep``."""
    attention = backend_of(spec).attention
    for block, block_spec in dropout_blocks((*query.shape[:3], key.shape[2]), spec, dropout):
        shape = (*query.shape[:2], block.stop - block.start)
        block_weights = None if weights is None else allocate((*shape, key.shape[2]), weights.dtype)
        block_lse = None if lse is None else allocate(shape, lse.dtype)
        attention(query[:, :, block], key, value, output[:, :, block], block_weights, block_lse, block_spec)
        if weights is not None and block_weights is not None:
            weights[:, :, block] = block_weights
        if lse is not None and block_lse is not None:
            lse[:, :, block] = block_lse


def dropout_blocks(scores: Shape, spec: AttentionSpec, dropout: Dropout) -> Iterator[tuple[slice, AttentionSpec]]:
    """Blocks of query rows, and their specs with random ``dropout_keep``; ``scores`` is the shape of all scores.

    Only the draws of one block are in memory at a time. Draws depend on nothing but ``scores`` and the generator, so
    the same generator gives the backward pass the draws of the forward pass.
    """
    batch, heads, query_len, key_len = scores
    rows = min(query_len, max(1, _BLOCK // (batch * heads * key_len)))
    for start in range(0, query_len, rows):
        block = slice(start, min(start + rows, query_len))
        shape = (batch, heads, block.stop - start, key_len)
        yield (
            block,
            query_rows(spec, block)._replace(
                dropout_keep=dropout.rng.random(shape, dtype=np.float32) >= dropout.rate,
                dropout_scale=1.0 / (1.0 - dropout.rate),
            ),
        )


def rows_of(m: Array, block: slice) -> Array:
    """The query rows of ``block`` of a mask; an axis of size 1 serves all rows."""
    return m if m.shape[2] == 1 else m[:, :, block]
