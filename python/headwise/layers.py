"""Multi-head attention as layers that own their projections.

Vaswani et al., "Attention Is All You Need" (2017), https://arxiv.org/abs/1706.03762, section 3.2.2.
:func:`multi_head` is the computation, without state; :class:`MultiHeadAttention` and the functions of
:mod:`headwise.attention` give it the projections.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, NamedTuple, TypedDict

import numpy as np

from ._arrays import (
    as_array,
    check_dtype,
    check_flag,
    check_out,
    check_rate,
    check_rng,
    check_size,
    deliver,
    promote,
)
from ._layer import Layer, Parameter, parameter_dtype
from ._ops import linear, scaled_dot_product_attention

if TYPE_CHECKING:
    from numpy.typing import ArrayLike, DTypeLike
    from typing_extensions import Unpack

    from ._arrays import Array
    from ._layer import Rng

__all__ = ["AttentionOptions", "CausalAttention", "MultiHeadAttention"]


class AttentionOptions(TypedDict, total=False):
    """The keywords of :func:`headwise.scaled_dot_product_attention` that everything built on it hands through."""

    bias: ArrayLike | None
    is_causal: bool
    causal_alignment: str
    scale: float | None
    window_size: int | tuple[int, int] | None
    softcap: float | None
    alibi_slopes: ArrayLike | None
    sinks: ArrayLike | None
    key_padding_mask: ArrayLike | None
    need_weights: bool
    return_lse: bool
    precision: str | None
    out: Array | None


class Projections(NamedTuple):
    """What query, key, value and the joined heads are multiplied by, as ``x @ W``."""

    W_q: Array  # (width of query, d_model)
    W_k: Array  # (width of key, d_model)
    W_v: Array  # (width of value, d_model)
    W_o: Array  # (d_model, d_model)


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
    num_heads: int,
    mask: ArrayLike | None,
    dropout: float,
    rng: Rng,
    **options: Unpack[AttentionOptions],
) -> tuple[Any, ...]:
    """``Concat(head_1, …, head_h) W_o`` with ``head_i = Attention(Q W_q_i, K W_k_i, V W_v_i)`` (section 3.2.2).

    ``query``, ``key`` and ``value`` come from :func:`check_sequences`. The projections are read as heads, and the heads
    written side by side, through strided views: nothing is transposed in memory.
    """
    inputs = {"query": query, "key": key, "value": value}
    dtype, result_dtype = promote(*inputs.items())
    for (name, x), weight in zip(inputs.items(), projections[:3], strict=True):
        if x.shape[-1] != weight.shape[0]:
            raise ValueError(f"{name}: shape {x.shape}, expected a last axis of {weight.shape[0]}")
    d_model = projections.W_o.shape[1]
    out, precision = options.get("out"), options.get("precision")
    if out is not None:
        check_out(out, (*query.shape[:-1], d_model), result_dtype)

    batched = query.ndim == 3
    if not batched:
        query, key, value = query[np.newaxis], key[np.newaxis], value[np.newaxis]
    batch, query_len, key_len = len(query), query.shape[1], key.shape[1]
    mask = _over_heads(mask, "mask", (batch, query_len, key_len))
    options["bias"] = _over_heads(options.get("bias"), "bias", (batch, query_len, key_len))
    padding = options.get("key_padding_mask")
    if not batched and padding is not None:
        kept = as_array(padding, "key_padding_mask")
        options["key_padding_mask"] = kept[np.newaxis] if kept.ndim == 1 else kept

    heads_q, heads_k, heads_v = (
        split_heads(linear(x.astype(dtype, copy=False), weight, precision=precision), num_heads)
        for x, weight in zip((query, key, value), projections[:3], strict=True)
    )
    joined = np.empty((batch, query_len, d_model), dtype)
    options["out"] = split_heads(joined, num_heads)
    _, *rest = scaled_dot_product_attention(heads_q, heads_k, heads_v, mask, dropout, rng=rng, **options)
    if not batched:
        joined, rest = joined[0], [None if x is None else x[0] for x in rest]
    in_place = out if result_dtype == dtype else None
    output = deliver(linear(joined, projections.W_o, precision=precision, out=in_place), out, result_dtype)
    weights = rest[0]
    if weights is not None:
        rest[0] = deliver(weights, None, result_dtype)
    return output, *rest


def _over_heads(mask: ArrayLike | None, name: str, shape: tuple[int, int, int]) -> ArrayLike | None:
    """A mask (batch, query_len, key_len) as one for all heads; other ranks are left as they are."""
    if mask is None:
        return None
    array = mask if isinstance(mask, np.ndarray) else as_array(mask, name)
    if array.ndim != 3:
        return array
    if any(size not in (1, full) for size, full in zip(array.shape, shape, strict=True)):
        raise ValueError(f"{name}: shape {array.shape}, expected (batch, query_len, key_len) = {shape}")
    over_heads: Array = array[:, np.newaxis]
    return over_heads


class MultiHeadAttention(Layer):
    """Attention in ``num_heads`` subspaces of the width at once, each ``d_k = d_model / num_heads`` wide.

    ``Concat(head_1, …, head_h) W_o`` with ``head_i = softmax(q_i k_i^T / sqrt(d_k)) v_i``, where ``q_i``, ``k_i`` and
    ``v_i`` are the ``i``-th slices of ``query @ W_q``, ``key @ W_k`` and ``value @ W_v``.

    Parameters
    ----------
    d_model : int
        Width of the inputs and the output.
    num_heads : int
        Number of heads, a divisor of ``d_model``.
    dropout : float
        Rate in [0, 1) at which attention weights are dropped, in training only.
    rng : int or numpy.random.Generator, optional
        Draws the parameters, then the dropout of later calls.
    dtype : dtype, optional
        Of the parameters; float64 by default. It does not decide the dtype of the output: a layer computes and answers
        in the floating dtype of its input.

    Attributes
    ----------
    W_q, W_k, W_v, W_o : ndarray, (d_model, d_model)
        The projections, applied as ``x @ W``, drawn uniformly as by Glorot & Bengio (2010). They may be replaced or
        changed in place.
    d_k : int
        Width of a head.
    dropout : float
        The rate.
    training : bool
        Whether dropout acts; False at first.

    Raises
    ------
    ValueError
        If ``d_model`` is not divisible by ``num_heads``, a size is not positive or the rate is outside [0, 1).

    References
    ----------
    Vaswani et al., "Attention Is All You Need" (2017), section 3.2.2.

    Examples
    --------
    >>> import numpy as np
    >>> import headwise as hw
    >>> layer = hw.MultiHeadAttention(d_model=64, num_heads=8, rng=0)
    >>> x = np.random.default_rng(0).standard_normal((2, 5, 64))
    >>> output, weights = layer(x)
    >>> output.shape, weights.shape
    ((2, 5, 64), (2, 8, 5, 5))
    """

    W_q = Parameter("d_model", "d_model")
    W_k = Parameter("d_model", "d_model")
    W_v = Parameter("d_model", "d_model")
    W_o = Parameter("d_model", "d_model")

    def __init__(
        self,
        d_model: int,
        num_heads: int,
        dropout: float = 0.1,
        *,
        rng: Rng = None,
        dtype: DTypeLike | None = None,
    ) -> None:
        self.d_model, self.num_heads = check_heads(d_model, num_heads)
        self.d_k = self.d_model // self.num_heads
        self.dropout = check_rate(dropout, "dropout")
        self._rng = check_rng(rng)
        made = parameter_dtype(dtype)
        for name in Projections._fields:
            setattr(self, name, glorot_uniform(self._rng, self.d_model, self.d_model).astype(made, copy=False))

    def forward(
        self,
        query: ArrayLike,
        key: ArrayLike | None = None,
        value: ArrayLike | None = None,
        mask: ArrayLike | None = None,
        *,
        training: bool | None = None,
        rng: Rng = None,
        **options: Unpack[AttentionOptions],
    ) -> tuple[Any, ...]:
        """Attend from ``query`` to ``key``, and mix ``value`` accordingly.

        Parameters
        ----------
        query : array_like, (batch, query_len, d_model) or (query_len, d_model)
        key : array_like, (batch, key_len, d_model) or (key_len, d_model), optional
            ``query`` by default: self-attention.
        value : array_like of the shape of ``key``, optional
            ``key`` by default.
        mask : array_like, optional
            ``(query_len, key_len)``, ``(batch, query_len, key_len)`` or ``(batch, heads, query_len, key_len)``, or
            ``(batch, key_len)`` from :func:`headwise.create_padding_mask`. Boolean or integer: nonzero keeps; floating:
            added to the scores, unless it holds only 0.0 and 1.0.
        training : bool, optional
            Whether dropout acts in this call; the attribute ``training`` decides by default.
        rng : int or numpy.random.Generator, optional
            Draws this call's dropout.
        **options
            The other keywords of :func:`headwise.scaled_dot_product_attention`: ``is_causal``, ``key_padding_mask``,
            ``need_weights``, ``bias``, ``scale``, ``window_size``, ``softcap``, ``alibi_slopes``, ``sinks``,
            ``return_lse``, ``precision``, ``out`` and so on. ``bias`` takes the shapes of ``mask``.

        Returns
        -------
        output : ndarray, (batch, query_len, d_model)
            Of the rank of ``query`` and of the floating dtype of the inputs; float16 and bfloat16 are computed in
            float32, projections included, and rounded once.
        weights : ndarray, (batch, num_heads, query_len, key_len), or None
            Before dropout; None with ``need_weights=False``.
        lse : ndarray, (batch, num_heads, query_len)
            Only with ``return_lse=True``.

        Raises
        ------
        ValueError
            If a shape or a keyword's value does not fit; it names the argument.
        TypeError
            If a dtype is not real, or a keyword is unknown.
        """
        q, k, v = check_sequences(query, key, value)
        dtype, _ = promote(("query", q), ("key", k), ("value", v))
        acts = self.training if training is None else check_flag(training, "training")
        rate = self.dropout if acts else 0.0
        generator = self._rng if rng is None else rng
        return multi_head(q, k, v, self.projections(dtype), self.num_heads, mask, rate, generator, **options)

    def projections(self, dtype: np.dtype[Any]) -> Projections:
        """The parameters in ``dtype``, to be read only: cast once and kept, see :class:`headwise._layer.Parameter`."""
        return Projections(*(self._cast(name, dtype) for name in Projections._fields))

    def split_heads(self, x: ArrayLike) -> Array:
        """``x`` (…, seq, d_model) as heads (…, num_heads, seq, d_k): a view where the strides allow."""
        rows = as_array(x, "x")
        if rows.ndim < 2 or rows.shape[-1] != self.d_model:
            raise ValueError(f"x: shape {rows.shape}, expected (…, seq, d_model = {self.d_model})")
        return split_heads(rows, self.num_heads)

    def combine_heads(self, x: ArrayLike) -> Array:
        """Heads (…, num_heads, seq, d_k) side by side, (…, seq, d_model): what :meth:`split_heads` undoes."""
        heads = as_array(x, "x")
        if heads.ndim < 3 or heads.shape[-3] != self.num_heads or heads.shape[-1] != self.d_k:
            raise ValueError(f"x: shape {heads.shape}, expected (…, {self.num_heads}, seq, {self.d_k})")
        return heads.swapaxes(-3, -2).reshape(*heads.shape[:-3], heads.shape[-2], self.d_model)


class CausalAttention(MultiHeadAttention):
    """:class:`MultiHeadAttention` in which no query attends to a later key.

    A mask given besides is ANDed with causality. With fewer or more keys than queries, query ``i`` attends to keys
    ``0 .. i`` (``causal_alignment="upper_left"``) or the last query to all keys (``"lower_right"``).

    Examples
    --------
    >>> import numpy as np
    >>> import headwise as hw
    >>> layer = hw.CausalAttention(d_model=8, num_heads=2, rng=0)
    >>> _, weights = layer(np.random.default_rng(0).standard_normal((1, 3, 8)))
    >>> bool(np.triu(weights, k=1).any())
    False
    """

    def forward(
        self,
        query: ArrayLike,
        key: ArrayLike | None = None,
        value: ArrayLike | None = None,
        mask: ArrayLike | None = None,
        *,
        training: bool | None = None,
        rng: Rng = None,
        **options: Unpack[AttentionOptions],
    ) -> tuple[Any, ...]:
        """As :meth:`MultiHeadAttention.forward`, with ``is_causal=True`` whatever is given."""
        options["is_causal"] = True
        return super().forward(query, key, value, mask, training=training, rng=rng, **options)


def given_projections(params: object, num_heads: int, d_model: int, dtype: np.dtype[Any]) -> Projections:
    """The projections of ``params``, a :class:`MultiHeadAttention` or a mapping, in ``dtype``."""
    if isinstance(params, MultiHeadAttention):
        if (params.num_heads, params.d_model) != (num_heads, d_model):
            raise ValueError(
                f"params: a layer with num_heads = {params.num_heads} and d_model = {params.d_model}, "
                f"expected {num_heads} and {d_model}"
            )
        return params.projections(dtype)
    names = Projections._fields
    if not isinstance(params, Mapping):
        expected = f"a MultiHeadAttention or a mapping with {', '.join(names)}"
        raise TypeError(f"params: {type(params).__name__}, expected {expected}")
    if set(params) != set(names):
        raise ValueError(f"params: entries {', '.join(map(str, params))}, expected {', '.join(names)}")
    arrays = []
    for name in names:
        array = as_array(params[name], f"params[{name!r}]")
        check_dtype(array.dtype, f"params[{name!r}]")
        if array.ndim != 2 or array.shape[1] != d_model or (name == "W_o" and array.shape[0] != d_model):
            expected = f"({d_model}, {d_model})" if name == "W_o" else f"(width, {d_model})"
            raise ValueError(f"params[{name!r}]: shape {array.shape}, expected {expected}")
        arrays.append(array.astype(dtype, copy=False))
    return Projections(*arrays)
