"""The description of attention that every backend reads."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Callable

    from headwise._base.blocks import Blocks
    from headwise._base.typing import Array


class AttentionSpec(NamedTuple):
    """Everything that describes attention except its input and output arrays.

    For query ``i`` and key ``j`` of one batch entry and head::

        position = i + offset
        score    = softcap * tanh(scale * dot(query[i], key[j]) / softcap)
                   + sum(bias)[i, j] + relative_bias[i, clip(j - position, -M, M) + M]
                   - alibi_slope * abs(position - j), then score_mod
        kept     = all(keep)[i, j] and blocks[i, j] and position - left <= j <= position + right and j < key_length

    The softmax runs over the kept scores and the head's sink logit. With dropout, weights are multiplied by
    ``dropout_keep * dropout_scale`` before they multiply the values.

    :func:`headwise._ops.attention.spec.attention_spec` builds it from the caller's options. The order of the fields is
    part of the interface: ``csrc/python/attention_spec.h`` reads them by position.
    """

    scale: float
    softcap: float = 0.0  # 0: none
    left: int = -1  # keys before the query's position that it sees; -1: all
    right: int = -1  # keys after it; -1: all, 0: causal
    offset: int = 0  # position of query 0 among the keys
    precision: str = "highest"
    # Arrays of (batch, heads, query_len, key_len), each axis of full size or 1, last axis contiguous:
    keep: tuple[Array, ...] = ()  # bool
    bias: tuple[Array, ...] = ()  # in the dtype of the computation or of the query; -inf masks the key
    alibi_slopes: Array | None = None  # (heads,), in the dtype of the computation
    sinks: Array | None = None  # (heads,), likewise
    dropout_keep: Array | None = None  # bool, like `keep`: the weights that dropout keeps
    dropout_scale: float = 1.0
    # Right-padded batches: int64 arrays of (batch,), or both None. Entry b has only its first key_lengths[b] keys, and
    # `offset + offsets[b]` in place of `offset`.
    key_lengths: Array | None = None
    offsets: Array | None = None
    # Factors of the rows of keys and values in int8, float32 (batch, kv_heads, key_len), last axis contiguous; for
    # packed sequences (kv_heads, key rows).
    key_scales: Array | None = None
    value_scales: Array | None = None
    # A keep-mask besides `keep`, whose dropped blocks are skipped; not with packed sequences.
    blocks: Blocks | None = None
    # Changes the scores before masks apply. The NumPy backend alone has it, which computes such calls.
    score_mod: ScoreMod | None = None
    # (batch, heads, query_len, 2 M + 1), each of the first three axes of full size or 1, in the dtype of the
    # computation, last axis contiguous; -inf masks the key. For packed sequences (1, heads, query rows, 2 M + 1).
    relative_bias: Array | None = None


class ScoreMod(NamedTuple):
    """A function of scores, and the batch entry and query of its caller that are the first of a call."""

    function: Callable[[Array, Array, Array, Array, Array], Any]
    batch: int = 0
    query: int = 0

    def of_entry(self, entry: int) -> ScoreMod:
        return self._replace(batch=self.batch + entry)

    def from_query(self, start: int) -> ScoreMod:
        return self._replace(query=self.query + start)


def mask_of_entry(m: Array, entry: int, rows: int, keys: int) -> Array:
    """The first ``rows`` and ``keys`` of one batch entry of a mask (batch, heads, query_len, key_len), each or 1."""
    if m.shape[0] > 1:
        m = m[entry : entry + 1]
    if m.shape[2] > 1:
        m = m[:, :, :rows]
    return m if m.shape[3] == 1 else m[..., :keys]


def spec_of_entry(spec: AttentionSpec, entry: int, rows: int) -> AttentionSpec:
    """The spec of one batch entry of ``rows`` queries, with the keys and the offset that ``key_lengths`` gives it."""
    if spec.key_lengths is None or spec.offsets is None:
        return spec
    keys, offset = int(spec.key_lengths[entry]), int(spec.offsets[entry])

    def of_entry(m: Array) -> Array:
        return mask_of_entry(m, entry, rows, keys)

    relative = spec.relative_bias
    return spec._replace(
        offset=spec.offset + offset,
        keep=tuple(map(of_entry, spec.keep)),
        bias=tuple(map(of_entry, spec.bias)),
        dropout_keep=None if spec.dropout_keep is None else of_entry(spec.dropout_keep),
        key_lengths=None,
        offsets=None,
        blocks=None if spec.blocks is None else spec.blocks.of_entry(entry),
        score_mod=None if spec.score_mod is None else spec.score_mod.of_entry(entry),
        relative_bias=relative if relative is None or relative.shape[0] == 1 else relative[entry : entry + 1],
    )


def query_rows(spec: AttentionSpec, rows: slice) -> AttentionSpec:
    """The spec of the query rows ``rows``. An axis of size 1 serves all rows."""

    def some(m: Array) -> Array:
        return m if m.shape[2] == 1 else m[:, :, rows]

    return spec._replace(
        offset=spec.offset + rows.start,
        keep=tuple(map(some, spec.keep)),
        bias=tuple(map(some, spec.bias)),
        blocks=None if spec.blocks is None else spec.blocks.from_query(rows.start),
        score_mod=None if spec.score_mod is None else spec.score_mod.from_query(rows.start),
        relative_bias=None if spec.relative_bias is None else some(spec.relative_bias),
    )


class PackedSequences(NamedTuple):
    """Where each sequence lies in packed arrays: int64 arrays of (sequences,), C-contiguous.

    Sequence ``s`` has queries ``query_starts[s]`` to ``query_starts[s] + query_lengths[s] - 1``; they belong to no
    other sequence. Its keys and values are given likewise, and may be shared. Its query 0 has the position
    ``offsets[s]`` among its keys, which replaces :attr:`AttentionSpec.offset`.
    """

    query_starts: Array
    query_lengths: Array
    key_starts: Array
    key_lengths: Array
    offsets: Array


def fill_without_keys(output: Array, lse: Array | None, sinks: Array | None) -> None:
    """The results of queries that have no keys: output 0, and lse -inf or the sink.

    A sink of NaN or +inf makes both NaN, as it does for a query whose keys are all masked. ``output`` is (…, heads,
    rows, value_dim), and ``lse`` (…, heads, rows).
    """
    if sinks is None:
        output.fill(0)
        if lse is not None:
            lse.fill(-np.inf)
        return
    total = np.where(sinks < np.inf, sinks, np.nan)
    output[...] = np.where(np.isnan(total), np.nan, 0)[:, np.newaxis, np.newaxis]
    if lse is not None:
        lse[...] = total[:, np.newaxis]
