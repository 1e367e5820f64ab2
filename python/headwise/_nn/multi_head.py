"""The computation of multi-head attention, without state.

The layers and the functions of :mod:`headwise.attention` provide its projections.

Vaswani et al., "Attention Is All You Need" (2017), https://arxiv.org/abs/1706.03762, section 3.2.2.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, NamedTuple, cast

import numpy as np

from headwise._base.arrays import as_array, promote
from headwise._base.blocks import KeepBlocks
from headwise._base.ieee import cast_dtype, ieee
from headwise._base.outputs import allocate, check_out, check_room, finalize
from headwise._base.scalars import check_size
from headwise._kv_cache.cache import KVCache, extension
from headwise._nn.cross_cache import CrossCache, check_cross
from headwise._nn.relative import shaw_bias
from headwise._ops.attention.dense import scaled_dot_product_attention
from headwise._ops.attention.keywords import refuse
from headwise._ops.attention.options import AttentionOptions
from headwise._ops.attention.spec import check_key_lengths

if TYPE_CHECKING:
    from collections.abc import Mapping

    from numpy.typing import ArrayLike

    from headwise._base.typing import Array, Rng
    from headwise._kv_cache.options import CacheOptions
    from headwise._nn.projections import Projections
    from headwise._nn.qk_norm import QKNorm
    from headwise._positions.rotary import RotaryPositionalEmbedding


_KEYWORDS = frozenset(AttentionOptions.__annotations__)


class Heads(NamedTuple):
    """The sizes of multi-head attention."""

    widths: tuple[int, int, int]  # of query, key and value
    d_model: int
    num_heads: int
    num_kv_heads: int
    width: int  # of a head


class Block(NamedTuple):
    """The parameters of multi-head attention."""

    heads: Heads
    projections: Projections
    rope: RotaryPositionalEmbedding | None = None
    norm: QKNorm | None = None
    relative: Array | None = None  # embeddings of distances (2 M + 1, width), in the dtype of the computation


class Inputs(NamedTuple):
    """The input arrays: all (batch, seq, width) or all (seq, width)."""

    query: Array
    key: Array
    value: Array


class Call(NamedTuple):
    """The arguments of one call except its inputs and the keywords of scaled dot-product attention."""

    mask: ArrayLike | None
    dropout: float
    rng: Rng
    positions: ArrayLike | None = None
    cache: KVCache | CrossCache | None = None
    lengths: ArrayLike | None = None


def check_keywords(options: AttentionOptions, *more: str) -> None:
    """TypeError for a keyword that attention does not have; ``more`` are those that the caller has besides."""
    unknown = options.keys() - _KEYWORDS
    if unknown:
        refuse(sorted(unknown), _KEYWORDS.union(more), layer=True)


def check_heads(d_model: object, num_heads: object) -> tuple[int, int]:
    """``d_model`` and ``num_heads``, checked: the heads divide the width evenly."""
    width, heads = check_size(d_model, "d_model"), check_size(num_heads, "num_heads")
    if width % heads:
        raise ValueError(f"d_model: {width}, expected a number divisible by num_heads = {heads}")
    return width, heads


def check_sequences(query: ArrayLike, key: ArrayLike | None, value: ArrayLike | None) -> Inputs:
    """The three as arrays of one rank, (batch, seq, width) or (seq, width).

    ``key`` defaults to ``query`` and ``value`` to ``key``. Arguments that are one object give one array.
    """
    q = as_array(query, "query")
    k = q if key is None or key is query else as_array(key, "key")
    v = k if value is None or value is key else q if value is query else as_array(value, "value")
    if q.ndim not in (2, 3):
        raise ValueError(f"query: shape {q.shape}, expected (batch, seq, width) or (seq, width)")
    for name, array in (("key", k), ("value", v)):
        if array.ndim != q.ndim or array.shape[:-2] != q.shape[:-2]:
            lead = "" if q.ndim == 2 else f"{q.shape[0]}, "
            raise ValueError(f"{name}: shape {array.shape}, expected ({lead}seq, width) beside query {q.shape}")
    if v.shape[-2] != k.shape[-2]:
        raise ValueError(f"value: shape {v.shape} does not match key {k.shape}: {v.shape[-2]} rows for {k.shape[-2]}")
    return Inputs(q, k, v)


def glorot_uniform(rng: np.random.Generator, rows: int, columns: int) -> Array:
    """Initial weights (rows, columns), uniform in ±``sqrt(6 / (rows + columns))``: Glorot & Bengio, "Understanding the
    difficulty of training deep feedforward neural networks" (2010), equation 16."""
    check_room(rows, columns)
    limit = math.sqrt(6.0 / (rows + columns))
    return rng.uniform(-limit, limit, (rows, columns))


def split_heads(x: Array, num_heads: int) -> Array:
    """(…, seq, width) as (…, heads, seq, width / heads), a view."""
    return x.reshape(*x.shape[:-1], num_heads, x.shape[-1] // num_heads).swapaxes(-3, -2)


def multi_head(inputs: Inputs, block: Block, call: Call, options: AttentionOptions) -> tuple[Any, ...]:
    """``Concat(head_1, …, head_h) W_o`` with ``head_i = Attention(Q W_q_i, K W_k_i, V W_v_i)`` (section 3.2.2).

    Projections of the same array are one product. Strided views address the heads of the projected rows and of the
    concatenated output, so nothing is transposed in memory.
    """
    query, key, value = inputs
    dtype, result_dtype = promote(("query", query), ("key", key), ("value", value))
    check_call(inputs, block, call, options, result_dtype)
    cross = call.cache if isinstance(call.cache, CrossCache) else None
    if cross is not None:
        check_cross(cross, query, dtype, (block.heads.num_kv_heads, block.heads.width))
    options = with_key_lengths(inputs, call, options)
    out, precision = options.get("out"), options.get("precision")
    batched = query.ndim == 3
    batch, query_len = len(query) if batched else 1, query.shape[-2]

    mask, passed = over_heads(inputs, call, options)
    positions = rope_positions(inputs, block, call, options)
    if cross is None:
        found = project(inputs._asdict(), block, dtype, precision, positions)
        q, k, v = found["q"], found["k"], found["v"]
    else:
        q, k, v = project({"query": query}, block, dtype, precision, positions)["q"], cross.keys, cross.values
    passed = with_relative(passed, q, block)
    joined = allocate((batch, query_len, q.shape[1] * v.shape[3]), dtype)
    passed["out"] = split_heads(joined, block.heads.num_heads)

    def project_output(weights: Array | None, *lse: Array | None) -> tuple[Any, ...]:
        x = joined if batched else joined[0]
        rest = [None if a is None else a if batched else a[0] for a in (weights, *lse)]
        in_place = out if result_dtype == dtype else None
        output = finalize(block.projections(x, "o", precision, in_place), out, result_dtype)
        if rest[0] is not None:
            rest[0] = finalize(rest[0], None, result_dtype)
        return output, *rest

    if call.cache is None or isinstance(call.cache, CrossCache):
        return project_output(*scaled_dot_product_attention(q, k, v, mask, call.dropout, rng=call.rng, **passed)[1:])
    with extension(call.cache, q, k, v, call.lengths) as new:
        answer = new.attend(_cache_options(mask, passed))
        return project_output(*answer[1:] if isinstance(answer, tuple) else (None,))


def check_call(
    inputs: Inputs, block: Block, call: Call, options: AttentionOptions, result_dtype: np.dtype[Any]
) -> None:
    for name, x, width in zip(Inputs._fields, inputs, block.heads.widths, strict=True):
        if x.shape[-1] != width and not (isinstance(call.cache, CrossCache) and name != "query"):
            raise ValueError(f"{name}: shape {x.shape}, expected a last axis of {width}")
    out = options.get("out")
    if out is not None:
        check_out(out, (*inputs.query.shape[:-1], block.heads.d_model), result_dtype)
    if call.positions is not None and block.rope is None:
        raise ValueError("positions: given without rope, which alone reads them")
    if call.cache is not None:
        _check_cached(inputs, call, options)
    elif call.lengths is not None:
        raise ValueError("lengths: given without a cache, expected key_lengths= to say which keys are padding")


def _check_cached(inputs: Inputs, call: Call, options: AttentionOptions) -> None:
    if not isinstance(call.cache, (KVCache, CrossCache)):
        made = "as make_cache() returns it, or the cache of make_cross_cache()"
        raise TypeError(f"cache: {type(call.cache).__name__}, expected a KVCache, {made}")
    if not inputs.query is inputs.key is inputs.value:
        raise ValueError("cache: given with a key or value, expected self-attention of the query alone")
    if isinstance(call.cache, CrossCache):
        if call.lengths is not None:
            raise ValueError("lengths: given with the cache of make_cross_cache(), expected key_padding_mask=")
        return
    if call.dropout > 0.0:
        raise ValueError("cache: given in training with dropout, expected training=False or dropout 0")
    for name in ("key_padding_mask", "key_lengths"):
        if options.get(name) is not None:
            raise ValueError(f"{name}: given with a cache, expected lengths= to say which rows are padding")


def rope_positions(inputs: Inputs, block: Block, call: Call, options: AttentionOptions) -> ArrayLike | None:
    """The positions of the queries for rotary embedding; None counts from 0."""
    if block.rope is None or call.positions is not None:
        return call.positions
    query_len, key_len = inputs.query.shape[-2], _key_len(inputs, call)
    if isinstance(call.cache, KVCache):
        return call.cache.positions(query_len)
    if options.get("causal_alignment") != "lower_right":
        return None
    positions, lengths = np.arange(key_len - query_len, key_len), options.get("key_lengths")
    if lengths is None:
        return positions
    if inputs.query is inputs.key and not isinstance(call.cache, CrossCache):
        raise ValueError(
            "key_lengths: given with rope and causal_alignment='lower_right' in self-attention, whose queries would "
            "have other positions than the keys of the same rows; expected 'upper_left'"
        )
    by_sequence: Array = positions + (np.asarray(lengths) - key_len)[:, np.newaxis]
    return by_sequence


def _key_len(inputs: Inputs, call: Call) -> int:
    length: int = len(call.cache) if isinstance(call.cache, CrossCache) else inputs.key.shape[-2]
    return length


def project(
    inputs: Mapping[str, Array],
    block: Block,
    dtype: np.dtype[Any],
    precision: str | None,
    positions: ArrayLike | None,
    unnormalized: dict[str, Array] | None = None,
) -> dict[str, Array]:
    """The heads of those of query, key and value that ``inputs`` has, by their first letters.

    Each is (batch, heads or kv_heads, seq, d_k); queries and keys are normalised and rotated. ``unnormalized`` receives
    copies of the products before normalisation, by their letters.
    """
    rope = block.rope
    by_letter = {name[0]: x for name, x in inputs.items()}
    found: dict[str, Array] = {}
    for group in product_groups(by_letter):
        x = cast_dtype(by_letter[group[0]], dtype)
        product = block.projections(x if x.ndim == 3 else x[np.newaxis], group, precision)
        if block.norm is not None and group != "v":
            if unnormalized is not None:
                unnormalized[group] = product.copy()
            block.norm.apply(product, group, widths_of(group, block.heads))
        counts = {c: block.heads.num_heads if c == "q" else block.heads.num_kv_heads for c in group}
        together = split_heads(product, sum(counts.values()))
        if rope is not None and group != "v":
            rotated = together[:, : sum(count for c, count in counts.items() if c != "v")]
            rope.forward(rotated, positions if "q" in group else None, out=rotated)
            if "q" in group:
                scale_queries(together[:, : counts["q"]], rope, positions)
        first = 0
        for c in group:
            found[c] = together[:, first : first + counts[c]]
            first += counts[c]
    return found


def product_groups(by_letter: Mapping[str, Array]) -> list[str]:
    """The letters of "q", "k" and "v" that share one product, because their rows are one array."""
    shared = "v" in by_letter and by_letter["k"] is by_letter["v"]
    if shared and by_letter.get("q") is by_letter["k"]:
        return ["qkv"]
    return [letter for letter in by_letter if not (shared and letter in "kv")] + (["kv"] if shared else [])


def widths_of(letters: str, heads: Heads) -> dict[str, int]:
    """The numbers of columns of the projections ``letters``."""
    return {c: (heads.num_heads if c == "q" else heads.num_kv_heads) * heads.width for c in letters}


@ieee
def scale_queries(q: Array, rope: RotaryPositionalEmbedding, positions: ArrayLike | None) -> None:
    """Multiply ``q``, (batch, heads, seq, d_k), by the factor of its positions, in place."""
    scale = rope.query_scale(np.arange(q.shape[2]) if positions is None else positions)
    if scale is not None:
        column = scale.astype(q.dtype)[..., np.newaxis]  # (seq, 1) or (batch, seq, 1)
        q *= column if column.ndim == 2 else column[:, np.newaxis]


def over_heads(inputs: Inputs, call: Call, options: AttentionOptions) -> tuple[ArrayLike | None, AttentionOptions]:
    """The mask, and a copy of the options, with masks (batch, query_len, key_len) made to apply to every head."""
    query, passed = inputs.query, options.copy()
    batched = query.ndim == 3
    key_len = None if isinstance(call.cache, KVCache) else _key_len(inputs, call)
    scores = (len(query) if batched else 1, query.shape[-2], key_len)
    mask = _with_head_axis(call.mask, "mask", scores)
    passed["bias"] = _with_head_axis(options.get("bias"), "bias", scores)
    padding = options.get("key_padding_mask")
    if not batched and padding is not None:
        keep = as_array(padding, "key_padding_mask")
        passed["key_padding_mask"] = keep[np.newaxis] if keep.ndim == 1 else keep
    return mask, passed


def with_relative(options: AttentionOptions, query: Array, block: Block) -> AttentionOptions:
    """The options with the relative bias of the block's embeddings, unless they have one."""
    if block.relative is None or options.get("relative_bias") is not None:
        return options
    return {**options, "relative_bias": shaw_bias(query, block.relative, options.get("scale"))}


def with_key_lengths(inputs: Inputs, call: Call, options: AttentionOptions) -> AttentionOptions:
    """The options with ``key_lengths``, if given, checked: (batch,), also for inputs without an axis of sequences."""
    given = options.get("key_lengths")
    if given is None:
        return options
    lengths = check_key_lengths(given, inputs.query.shape[:-2], _key_len(inputs, call))
    return {**options, "key_lengths": lengths}


def _with_head_axis(mask: ArrayLike | None, name: str, shape: tuple[int, int, int | None]) -> ArrayLike | None:
    """A mask (batch, query_len, key_len) as (batch, 1, query_len, key_len); masks of other ranks are returned as they
    are. None in ``shape`` stands for any size."""
    if mask is None or isinstance(mask, KeepBlocks):
        return mask
    array = mask if isinstance(mask, np.ndarray) else as_array(mask, name)
    if array.ndim != 3:
        return array
    if any(full is not None and size not in (1, full) for size, full in zip(array.shape, shape, strict=True)):
        raise ValueError(f"{name}: shape {array.shape}, expected (batch, query_len, key_len) = {shape}")
    with_heads: Array = array[:, np.newaxis]
    return with_heads


def _cache_options(mask: ArrayLike | None, options: AttentionOptions) -> CacheOptions:
    """The keywords of :func:`headwise.scaled_dot_product_attention` as a cache takes them: it is always causal, and its
    ``lengths`` say which rows are padding."""
    passed: dict[str, Any] = {"need_weights": True, "mask": mask, **options}
    for name in ("is_causal", "causal_alignment", "key_padding_mask", "key_lengths"):
        passed.pop(name, None)
    return cast("CacheOptions", passed)
