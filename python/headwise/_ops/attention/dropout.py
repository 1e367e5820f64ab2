"""Attention with dropout of the weights, in blocks of query rows."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from headwise._base.outputs import allocate
from headwise._runtime.backend import current

if TYPE_CHECKING:
    from headwise._base.attention_spec import AttentionSpec
    from headwise._base.typing import Array
    from headwise._ops.attention.spec import Dropout

# Random numbers drawn per block: 16 MB of float32. Results depend on this constant: blocks set the order of the draws,
# so they may depend on shapes only.
_BLOCK = 1 << 22


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
    """:meth:`headwise._runtime.backend.Backend.attention` with a random ``dropout_keep``.

    Only the draws of one block are in memory at a time.
    """
    batch, heads, query_len, _ = query.shape
    key_len = key.shape[2]
    attention = current().attention
    rows = min(query_len, max(1, _BLOCK // (batch * heads * key_len)))
    for start in range(0, query_len, rows):
        block = slice(start, min(start + rows, query_len))
        shape = (batch, heads, block.stop - start)
        block_weights = None if weights is None else allocate((*shape, key_len), weights.dtype)
        block_lse = None if lse is None else allocate(shape, lse.dtype)
        block_spec = spec._replace(
            offset=spec.offset + start,
            keep=_rows(spec.keep, block),
            bias=_rows(spec.bias, block),
            dropout_keep=dropout.rng.random((*shape, key_len), dtype=np.float32) >= dropout.rate,
            dropout_scale=1.0 / (1.0 - dropout.rate),
        )
        attention(query[:, :, block], key, value, output[:, :, block], block_weights, block_lse, block_spec)
        if weights is not None and block_weights is not None:
            weights[:, :, block] = block_weights
        if lse is not None and block_lse is not None:
            lse[:, :, block] = block_lse


def _rows(masks: tuple[Array, ...], block: slice) -> tuple[Array, ...]:
    """The query rows of ``block`` of each mask; an axis of size 1 serves all rows."""
    return tuple(m if m.shape[2] == 1 else m[:, :, block] for m in masks)
