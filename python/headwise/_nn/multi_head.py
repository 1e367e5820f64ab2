"""The computation of multi-head attention, without state: :class:`headwise.MultiHeadAttention` and the functions of
:mod:`headwise.attention` give it their projections.

Vaswani et al., "Attention Is All You Need" (2017), https://arxiv.org/abs/1706.03762, section 3.2.2.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, NamedTuple, cast

import numpy as np

from headwise._base.arrays import as_array, promote
from headwise._base.outputs import allocate, check_out, check_room, finalize
from headwise._base.scalars import check_size
from headwise._kv_cache.cache import extending
from headwise._ops.attention.dense import scaled_dot_product_attention

if TYPE_CHECKING:
    from numpy.typing import ArrayLike
    from typing_extensions import Unpack

    from headwise._base.typing import Array, Rng
    from headwise._kv_cache.cache import KVCache
    from headwise._kv_cache.options import CacheOptions
    from headwise._nn.projections import Projections
    from headwise._ops.attention.options import AttentionOptions
    from headwise._positions.rotary import RotaryPositionalEmbedding


class Heads(NamedTuple):
    """The shape of a multi-head computation."""

    widths: tuple[int, int, int]  # of query, key and value
    d_model: int
    num_heads: int
    num_kv_heads: int


def check_heads(d_model: object, num_heads: object) -> tuple[int, int]:
    """``d_model`` and ``num_heads`` if the heads share the width evenly."""
    width, heads = check_size(d_model, "d_model"), check_size(num_heads, "num_heads")
    if width % heads:
        raise ValueError(f"d_model: {width}, expected a number divisible by num_heads = {heads}")
    return width, heads


def check_sequences(query: ArrayLike, key: ArrayLike | None, value: ArrayLike | None) -> tuple[Array, Array, Array]:
    """The three as arrays of one rank, (batch, seq, width) or (seq, width); ``key`` defaults to ``query``, ``value`` to
    ``key``, and what is the same object stays so."""
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
    return q, k, v


def glorot_uniform(rng: np.random.Generator, rows: int, columns: int) -> Array:
    """Glorot & Bengio, "Understanding the difficulty of training deep feedforward neural networks" (2010), equation 16:
    uniform over plus and minus ``sqrt(6 / (rows + columns))``."""
    check_room(rows, columns)
    limit = math.sqrt(6.0 / (rows + columns))
    return rng.uniform(-limit, limit, (rows, columns))


def split_heads(x: Array, num_heads: int) -> Array:
    """(…, seq, width) as (…, heads, seq, width / heads), a view."""
    return x.reshape(*x.shape[:-1], num_heads, x.shape[-1] // num_heads).swapaxes(-3, -2)


def multi_head(
    query: Array,
    key: Array,
    value: Array,
    projections: Projections,
    heads: Heads,
    mask: ArrayLike | None,
    dropout: float,
    rng: Rng,
    *,
    rope: RotaryPositionalEmbedding | None = None,
    positions: ArrayLike | None = None,
    cache: KVCache | None = None,
    lengths: ArrayLike | None = None,
    **options: Unpack[AttentionOptions],
) -> tuple[Any, ...]:
    """``Concat(head_1, …, head_h) W_o`` with ``head_i = Attention(Q W_q_i, K W_k_i, V W_v_i)`` (section 3.2.2).

    ``query``, ``key`` and ``value`` come from :func:`check_sequences`. Of inputs that are the same array one product
    gives all projections. They are read as heads, and the heads written side by side, through strided views: nothing is
    transposed in memory.
    """
    inputs = {"query": query, "key": key, "value": value}
    dtype, result_dtype = promote(*inputs.items())
    for (name, x), width in zip(inputs.items(), heads.widths, strict=True):
        if x.shape[-1] != width:
            raise ValueError(f"{name}: shape {x.shape}, expected a last axis of {width}")
    out, precision = options.get("out"), options.get("precision")
    if out is not None:
        check_out(out, (*query.shape[:-1], heads.d_model), result_dtype)
    if positions is not None and rope is None:
        raise ValueError("positions: given without rope, which alone looks at them")
    if cache is not None:
        _check_for_cache(query, key, value, dropout, options)
    elif lengths is not None:
        raise ValueError("lengths: given without a cache, expected key_padding_mask= to say which keys are padding")

    batched = query.ndim == 3
    batch, query_len, key_len = len(query) if batched else 1, query.shape[-2], key.shape[-2]
    scores = (batch, query_len, key_len if cache is None else None)
    mask, options["bias"] = _over_heads(mask, "mask", scores), _over_heads(options.get("bias"), "bias", scores)
    padding = options.get("key_padding_mask")
    if not batched and padding is not None:
        kept = as_array(padding, "key_padding_mask")
        options["key_padding_mask"] = kept[np.newaxis] if kept.ndim == 1 else kept

    if rope is not None and positions is None:
        if cache is not None:
            positions = cache.positions(query_len)
        elif options.get("causal_alignment") == "lower_right":
            positions = np.arange(key_len - query_len, key_len)
    q, k, v = _project(query, key, value, projections, heads, dtype, precision, rope, positions)
    joined = allocate((batch, query_len, q.shape[1] * v.shape[3]), dtype)
    options["out"] = split_heads(joined, heads.num_heads)

    def combine(weights: Array | None, *lse: Array | None) -> tuple[Any, ...]:
        x = joined if batched else joined[0]
        rest = [None if a is None else a if batched else a[0] for a in (weights, *lse)]
        in_place = out if result_dtype == dtype else None
        output = finalize(projections(x, "o", precision, in_place), out, result_dtype)
        if rest[0] is not None:
            rest[0] = finalize(rest[0], None, result_dtype)
        return output, *rest

    if cache is None:
        return combine(*scaled_dot_product_attention(q, k, v, mask, dropout, rng=rng, **options)[1:])
    with extending(cache, (q, k, v), lengths, _cache_options(mask, options)) as answer:
        return combine(*answer[1:] if isinstance(answer, tuple) else (None,))


def _project(
    query: Array,
    key: Array,
    value: Array,
    projections: Projections,
    heads: Heads,
    dtype: np.dtype[Any],
    precision: str | None,
    rope: RotaryPositionalEmbedding | None,
    positions: ArrayLike | None,
) -> tuple[Array, Array, Array]:
    """The heads of the three, (batch, heads or kv_heads, seq, d_k), queries and keys turned."""
    inputs = {"q": query, "k": key, "v": value}
    counts = {"q": heads.num_heads, "k": heads.num_kv_heads, "v": heads.num_kv_heads}
    letters = ["qkv"] if query is key is value else ["q", "kv"] if key is value else ["q", "k", "v"]
    found: dict[str, Array] = {}
    for group in letters:
        x = inputs[group[0]].astype(dtype, copy=False)
        product = projections(x if x.ndim == 3 else x[np.newaxis], group, precision)
        together = split_heads(product, sum(counts[c] for c in group))
        if rope is not None and group != "v":
            turned = together[:, : sum(counts[c] for c in group if c != "v")]
            rope.forward(turned, positions if "q" in group else None, out=turned)
        first = 0
        for c in group:
            found[c] = together[:, first : first + counts[c]]
            first += counts[c]
    return found["q"], found["k"], found["v"]


def _check_for_cache(query: Array, key: Array, value: Array, dropout: float, options: AttentionOptions) -> None:
    if not query is key is value:
        raise ValueError("cache: given with a key or value, expected self-attention of the query alone")
    if dropout > 0.0:
        raise ValueError("cache: given in training with dropout, expected training=False or dropout 0")
    if options.get("key_padding_mask") is not None:
        raise ValueError("key_padding_mask: given with a cache, expected lengths= to say which rows are padding")


def _cache_options(mask: ArrayLike | None, options: AttentionOptions) -> CacheOptions:
    """The options of :func:`headwise.scaled_dot_product_attention` as a cache takes them."""
    passed: dict[str, Any] = {"need_weights": True, "mask": mask, **options}
    for name in ("is_causal", "causal_alignment", "key_padding_mask"):  # as the cache has it
        passed.pop(name, None)
    return cast("CacheOptions", passed)


def _over_heads(mask: ArrayLike | None, name: str, shape: tuple[int, int, int | None]) -> ArrayLike | None:
    """A mask (batch, query_len, key_len) as one for all heads; other ranks are left as they are. None in ``shape``
    stands for any size."""
    if mask is None:
        return None
    array = mask if isinstance(mask, np.ndarray) else as_array(mask, name)
    if array.ndim != 3:
        return array
    if any(full is not None and size not in (1, full) for size, full in zip(array.shape, shape, strict=True)):
        raise ValueError(f"{name}: shape {array.shape}, expected (batch, query_len, key_len) = {shape}")
    over_heads: Array = array[:, np.newaxis]
    return over_heads
