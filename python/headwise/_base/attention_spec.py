"""The description of attention that every backend reads."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from headwise._base.arrays import cast_layout
from headwise._base.typing import FLOAT32

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
    # Of keys and values in int8 (headwise._base.int8), for packed sequences without the batch axis.
    key_scaling: Int8Scaling | None = None
    value_scaling: Int8Scaling | None = None
    # A keep-mask besides `keep`, whose dropped blocks are skipped; not with packed sequences.
    blocks: Blocks | None = None
    # Changes the scores before masks apply. The NumPy backend alone has it, which computes such calls.
    score_mod: ScoreMod | None = None
    # (batch, heads, query_len, 2 M + 1), each of the first three axes of full size or 1, in the dtype of the
    # computation, last axis contiguous; -inf masks the key. For packed sequences (1, heads, query rows, 2 M + 1).
    relative_bias: Array | None = None


class Int8Scaling(NamedTuple):
    """What rows of keys or values in int8 have besides their integers. Last axes are contiguous."""

    factors: Array  # float32 (batch, kv_heads, key_len)
    bits: Array  # uint8 (batch, kv_heads, key_len, (dim + 7) // 8)

    def rows(self, of: Callable[[Array], Array]) -> Int8Scaling:
        """``of`` picks rows of an array (..., rows, width)."""
        return Int8Scaling(cast_layout(of(self.factors[..., np.newaxis])[..., 0], FLOAT32, last=True), of(self.bits))


class ScoreMod(NamedTuple):
    """A function of scores, and the batch entry, head, query and key of its caller that are the first of a call."""

    function: Callable[[Array, Array, Array, Array, Array], Any]
    batch: int = 0
    head: int = 0
    query: int = 0
    key: int = 0

    def of_entry(self, entry: int) -> ScoreMod:
        return self.of_part(entry)

    def of_part(self, entry: int = 0, head: int = 0, query: int = 0, key: int = 0) -> ScoreMod:
        """The function for a call whose first batch entry, head, query and key are these ones."""
        return ScoreMod(self.function, self.batch + entry, self.head + head, self.query + query, self.key + key)


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


#: The part of an axis that is all of it.
EVERY = slice(0, None)


def spec_of_part(spec: AttentionSpec, b: slice, h: slice, r: slice, k: slice = EVERY) -> AttentionSpec:
    """The spec of some batch entries, heads, query rows and keys of a call. Axes of size 1 serve all of them.

    Slices have a start. With ``spec.blocks``, the keys start where a block does.
    """

    def some(m: Array, *parts: slice) -> Array:
        where = tuple(EVERY if size == 1 else part for size, part in zip(m.shape, parts, strict=False))
        return m[where]

    def keys_of(m: Array) -> Array:
        return some(m, b, h, r, k)

    lengths, relative = spec.key_lengths, spec.relative_bias
    return spec._replace(
        offset=spec.offset + r.start - k.start,
        keep=tuple(map(keys_of, spec.keep)),
        bias=tuple(map(keys_of, spec.bias)),
        alibi_slopes=None if spec.alibi_slopes is None else spec.alibi_slopes[h],
        sinks=None if spec.sinks is None else spec.sinks[h],
        key_lengths=None if lengths is None else np.clip(lengths[b] - k.start, 0, _length(k)),
        offsets=None if spec.offsets is None else spec.offsets[b],
        blocks=None if spec.blocks is None else spec.blocks.of_part(b, h, r.start, k),
        score_mod=None if spec.score_mod is None else spec.score_mod.of_part(b.start, h.start, r.start, k.start),
        relative_bias=None if relative is None else some(relative, b, h, r),
    )


def _length(part: slice) -> int | None:
    return None if part.stop is None else part.stop - part.start


def query_rows(spec: AttentionSpec, rows: slice) -> AttentionSpec:
    """The spec of the query rows ``rows``."""
    return spec_of_part(spec, EVERY, EVERY, rows)


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
