"""Gradients of attention over arrays of one sequence length."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from headwise._base.arrays import as_array, cast_layout, is_canonical_or_16bit, promote
from headwise._base.ieee import assign, cast_dtype, ieee
from headwise._base.outputs import allocate
from headwise._base.typing import FLOAT32
from headwise._ops.attention.call import with_heads
from headwise._ops.attention.dropout import rows_of
from headwise._ops.attention.keywords import hide_unknown, refuse
from headwise._ops.attention.options import SpecOptions
from headwise._ops.attention.relative_values import check_relative_values, row_blocks
from headwise._ops.attention.shapes import check_shapes
from headwise._ops.attention.spec import attention_spec, check_dropout
from headwise._ops.gradients.relative_values import RelativeValues
from headwise._ops.gradients.results import as_gradient, check_wrt, finish, gradients_of
from headwise._runtime.backend import current

if TYPE_CHECKING:
    from collections.abc import Mapping

    from numpy.typing import ArrayLike

    from headwise._base.attention_spec import AttentionSpec
    from headwise._base.typing import Array, Shape
    from headwise._ops.attention.shapes import AttentionShape
    from headwise._ops.attention.spec import Dropout

#: The arguments of attention that have gradients.
NAMES = ("query", "key", "value", "bias", "alibi_slopes", "sinks", "relative_bias", "relative_values")
ROWS = NAMES[:3]


# Arrays of which a block of query rows has its own rows, and gradients to which every block contributes.
_BY_ROW = ("d_output", "query", "output", "d_query")
_SUMMED = ("d_key", "d_value", "d_alibi_slopes", "d_sinks")


class Results(NamedTuple):
    """The results of the forward pass and the gradients by them, as given; None: no gradient."""

    output: ArrayLike
    lse: ArrayLike
    weights: ArrayLike | None
    d_output: ArrayLike | None
    d_lse: ArrayLike | None
    d_weights: ArrayLike | None


class Arrays(NamedTuple):
    """The arguments of :meth:`headwise._runtime.backend.Backend.attention_backward` but the spec, by name."""

    d_output: Array
    query: Array
    key: Array
    value: Array
    output: Array
    lse: Array
    d_lse: Array | None
    d_weights: Array | None
    d_query: Array | None
    d_key: Array | None
    d_value: Array | None
    d_bias: tuple[Array | None, ...]
    d_alibi_slopes: Array | None
    d_sinks: Array | None
    d_relative_bias: Array | None


@hide_unknown
def flash_attention_backward(  # noqa: PLR0913 (the public signature)
    d_output: ArrayLike | None,
    query: ArrayLike,
    key: ArrayLike,
    value: ArrayLike,
    output: ArrayLike,
    lse: ArrayLike,
    *,
    wrt: tuple[str, ...] = ROWS,
    d_lse: ArrayLike | None = None,
    mask: ArrayLike | None = None,
    bias: ArrayLike | None = None,
    is_causal: bool = False,
    causal_alignment: str = "upper_left",
    scale: float | None = None,
    window_size: int | tuple[int, int] | None = None,
    softcap: float | None = None,
    alibi_slopes: ArrayLike | None = None,
    sinks: ArrayLike | None = None,
    key_padding_mask: ArrayLike | None = None,
    key_lengths: ArrayLike | None = None,
    relative_bias: ArrayLike | None = None,
    relative_values: ArrayLike | None = None,
    precision: str | None = None,
    rng: int | np.random.Generator | None = None,
    dropout_rate: float | None = None,
    **unknown: Any,
) -> Any:
    """Gradients of :func:`flash_attention` by its arguments, with memory in O(query_len + key_len).

    Scores are recomputed block by block from `output` and `lse` [1]_. :func:`vjp` calls this function with the results
    that it needs.

    Parameters
    ----------
    d_output : array_like, (..., query_len, value_dim)
        The gradient of a loss by `output`; 0 if None.
    query : array_like, (..., query_len, head_dim)
        The arguments of the forward pass, as the next two.
    key : array_like, (..., key_len, head_dim)
        With an axis of heads, (batch, kv_heads, key_len, head_dim), where `heads` is a multiple of `kv_heads`.
    value : array_like, (..., key_len, value_dim)
        As many heads as `key`.
    output : array_like, (..., query_len, value_dim)
        The results of the forward pass with ``return_lse=True``, as the next one.
    lse : array_like, (..., query_len)
        The logarithm of the softmax denominator.
    wrt : tuple of str
        The arguments whose gradients are returned: some of "query", "key", "value", "bias", "alibi_slopes", "sinks",
        "relative_bias", "relative_values".
    d_lse : array_like, (..., query_len), optional
        The gradient of the loss by `lse`; 0 if None.
    mask, bias, is_causal, causal_alignment, scale, window_size, softcap, alibi_slopes, sinks, key_padding_mask, \
key_lengths, relative_bias, relative_values, precision : optional
        The keywords of the forward pass; see :func:`scaled_dot_product_attention`.
    rng : int or numpy.random.Generator, optional
        With dropout: the seed of the forward pass, or a generator in the state that it had before the forward pass. The
        draws are repeated, not stored.
    dropout_rate : float, optional
        The rate of the forward pass.

    Returns
    -------
    named tuple of ndarray
        ``d_query``, ``d_key`` and so on, in the order of `wrt`, each in the shape of its argument and in its dtype, or
        in that of the output if it holds integers. The gradient of a bias is summed over its broadcast axes, that of a
        relative bias over the pairs of each distance.

    Raises
    ------
    ValueError
        If a shape does not match, or `wrt` names an argument that has no gradient or is not given.
    TypeError
        If an array is not real, or another argument has a wrong type.

    See Also
    --------
    vjp : The output of any function together with its gradients.

    Notes
    -----
    Masked keys and values, and rows of `d_output` that see no key, affect no gradient, whatever their entries are, NaN
    included; their own gradients are 0. Sums are accumulated in float32, or float64 for float64 arrays, and rounded
    once for 16-bit arrays. Bits do not depend on the number of threads.

    References
    ----------
    .. [1] T. Dao et al., "FlashAttention: Fast and Memory-Efficient Exact Attention with IO-Awareness", 2022,
       appendix B.2.

    Examples
    --------
    >>> import numpy as np
    >>> import headwise as hw
    >>> q, k, v, d_output = np.random.default_rng(0).standard_normal((4, 1, 2, 5, 8))
    >>> output, lse = hw.flash_attention(q, k, v, is_causal=True, return_lse=True)
    >>> d_query, d_key, d_value = hw.flash_attention_backward(d_output, q, k, v, output, lse, is_causal=True)
    >>> d_key.shape
    (1, 2, 5, 8)

    Moving every value by 1 moves the output by 1:

    >>> bool(np.allclose(d_value.sum(axis=2), d_output.sum(axis=2)))
    True
    """
    if unknown:
        refuse(unknown, flash_attention_backward.__kwdefaults__ or ())
    options = SpecOptions(
        mask, bias, is_causal, causal_alignment, scale, window_size, softcap, alibi_slopes, sinks, key_padding_mask,
        precision, key_lengths, relative_bias=relative_bias, relative_values=relative_values,
    )  # fmt: skip
    names = check_wrt(wrt, NAMES, {"query": query, "key": key, "value": value, **options._asdict()})
    drops = check_dropout(0.0, dropout_rate, rng)
    results = Results(output, lse, None, d_output, d_lse, None)
    return gradients_of(names, differentiate((query, key, value), options, drops, results, names))


@ieee
def differentiate(
    rows: tuple[ArrayLike, ArrayLike, ArrayLike],
    options: SpecOptions,
    dropout: Dropout | None,
    results: Results,
    wrt: tuple[str, ...],
    spec: AttentionSpec | None = None,
) -> dict[str, Array]:
    """The gradients by the arguments ``wrt``, by name. ``rows`` are query, key and value.

    ``spec`` describes attention in place of ``options`` where it is given, for gradients by query, key and value.
    """
    given = {name: as_array(x, name) for name, x in zip(ROWS, rows, strict=True)}
    dtype = given["query"].dtype
    compute = FLOAT32 if dtype.itemsize == 2 else dtype
    if not is_canonical_or_16bit(*given.values()):
        compute, dtype = promote(*given.items())
    shape = check_shapes(*(a.shape for a in given.values()))
    table = None
    if options.relative_values is not None:
        table = check_relative_values(options.relative_values, shape, compute)
    stored = dtype if dtype.itemsize == 2 and table is None else compute
    options = _options_of(given, options, wrt)
    if spec is None:
        spec = attention_spec(shape, (compute, stored), options)
    arrays = _arrays(given, shape, spec, results, (compute, stored), wrt)
    d_table = None if table is None or "relative_values" not in wrt else np.zeros_like(table)
    if math.prod(shape.scores) == 0:
        without_scores(arrays, spec)
    elif dropout is None and table is None:
        backward(arrays, spec)
    else:
        backward_by_rows(arrays, spec, dropout, None if table is None else RelativeValues(table, d_table))
    found: dict[str, Array] = {}
    for name in wrt:
        if name == "relative_values" and d_table is not None:
            found[name] = finish(d_table.reshape(given[name].shape), given[name], dtype)
            continue
        d = arrays.d_bias[-1] if name == "bias" else getattr(arrays, f"d_{name}")
        assert d is not None  # noqa: S101 (allocated for each name of wrt)
        d = _bias_as_given(d, given[name].shape, shape) if "bias" in name else d.reshape(given[name].shape)
        found[name] = finish(d, given[name], dtype)
    return found


def _options_of(given: dict[str, Array], options: SpecOptions, wrt: tuple[str, ...]) -> SpecOptions:
    """``options`` with entries of their own for biases that have a gradient; adds those in ``wrt`` to ``given``."""
    for name in NAMES[3:]:
        if name in wrt:
            given[name] = as_array(getattr(options, name), name)
            if "bias" in name and 0 in given[name].strides:  # a gradient for each entry, also of a broadcast view
                full: Any = {name: np.ascontiguousarray(given[name])}
                options = options._replace(**full)
    return options


def _arrays(
    given: Mapping[str, Array],
    shape: AttentionShape,
    spec: AttentionSpec,
    results: Results,
    dtypes: tuple[np.dtype[Any], np.dtype[Any]],
    wrt: tuple[str, ...],
) -> Arrays:
    """The arrays that a backend reads, and new arrays for the gradients ``wrt``."""
    compute, stored = dtypes
    rows = {name: with_heads(cast_layout(given[name], stored, last=True)) for name in ROWS}
    output = as_gradient(results.output, "output", shape.output, stored, "the output of these arguments")
    if results.d_output is None:
        d_output = np.broadcast_to(np.zeros(shape.output[-1:], stored), shape.output)
    else:
        d_output = as_gradient(results.d_output, "d_output", shape.output, stored, "output")

    def by_row(x: ArrayLike | None, name: str) -> Array | None:
        if x is None:
            return None
        a = as_gradient(x, name, shape.output[:-1], compute, "output without its last axis")
        return np.ascontiguousarray(a).reshape(shape.scores[:3])

    lse, d_lse = by_row(results.lse, "lse"), by_row(results.d_lse, "d_lse")
    d_weights = None
    if results.d_weights is not None and results.weights is not None:
        a = as_gradient(results.d_weights, "d_weights", shape.scores_as_given, stored, "weights")
        d_weights = np.ascontiguousarray(a).reshape(shape.scores)
        sums = _sum_over_keys(as_array(results.weights, "weights").reshape(shape.scores), d_weights, compute)
        d_lse = -sums if d_lse is None else d_lse - sums

    def gradient(name: str, like: Shape, dtype: np.dtype[Any] = compute) -> Array | None:
        return allocate(like, dtype) if name in wrt else None

    d_bias: list[Array | None] = [None] * len(spec.bias)
    if "bias" in wrt:
        d_bias[-1] = allocate(spec.bias[-1].shape, compute)
    d_query, d_key, d_value = (gradient(name, a.shape, stored) for name, a in rows.items())
    d_alibi_slopes, d_sinks = (gradient(name, shape.scores[1:2]) for name in ("alibi_slopes", "sinks"))
    d_relative_bias = None if spec.relative_bias is None else gradient("relative_bias", spec.relative_bias.shape)
    assert lse is not None  # noqa: S101 (given)
    return Arrays(
        with_heads(d_output), rows["query"], rows["key"], rows["value"], with_heads(output), lse, d_lse, d_weights,
        d_query, d_key, d_value, tuple(d_bias), d_alibi_slopes, d_sinks, d_relative_bias,
    )  # fmt: skip


def backward(arrays: Arrays, spec: AttentionSpec) -> None:
    current().attention_backward(*arrays, spec)


@ieee
def _sum_over_keys(weights: Array, d_weights: Array, dtype: np.dtype[Any]) -> Array:
    """``sum(weights * d_weights)`` over the keys, (batch, heads, query_len); a weight of 0 contributes 0."""
    sums = np.empty(weights.shape[:3], dtype)
    for where in np.ndindex(weights.shape[:2]):  # one head at a time, so that no other array of all scores exists
        w, d = cast_dtype(weights[where], dtype), cast_dtype(d_weights[where], dtype)
        sums[where] = np.einsum("qk,qk->q", w, d)
        if not np.isfinite(sums[where]).all():
            sums[where] = np.where(w == 0, 0, w * d).sum(axis=1)
    return sums


def without_scores(arrays: Arrays, spec: AttentionSpec) -> None:
    """The gradients of a call without queries or keys: 0, but that lse is the sink of each row without keys."""
    for d in (arrays.d_query, arrays.d_key, arrays.d_value, *arrays.d_bias, *arrays[-3:]):
        if d is not None:
            d.fill(0)
    if arrays.d_sinks is not None and spec.sinks is not None and arrays.d_lse is not None:
        arrays.d_sinks[:] = np.where(np.isneginf(spec.sinks), 0, arrays.d_lse.sum(axis=(0, 2)))


def backward_by_rows(
    arrays: Arrays, spec: AttentionSpec, dropout: Dropout | None, values: RelativeValues | None
) -> None:
    """One block of query rows after another, with the draws of the forward pass and the gradients by relative values.

    Gradients to which several blocks contribute are summed in the dtype of the computation.
    """
    given = arrays._asdict()
    sums = {name: np.zeros(given[name].shape, arrays.lse.dtype) for name in _SUMMED if given[name] is not None}
    biases = (*arrays.d_bias, arrays.d_relative_bias)
    for d in biases:
        if d is not None:
            d.fill(0)
    for block, block_spec in row_blocks((*arrays.query.shape[:3], arrays.key.shape[2]), spec, dropout):
        rows: dict[str, Any] = _rows_of_block(given, block)
        if values is not None:
            rows["d_weights"] = values.d_weights(rows, arrays.key, block_spec)
        parts = {name: np.empty_like(given[name]) for name in sums}
        bias_parts = tuple(None if d is None else np.empty_like(rows_of(d, block)) for d in biases)
        more: Any = {"d_bias": bias_parts[:-1], "d_relative_bias": bias_parts[-1]}
        backward(arrays._replace(**rows, **parts, **more), block_spec)
        for name, part in parts.items():
            sums[name] += part
        for d, part in zip(biases, bias_parts, strict=True):
            if d is not None and part is not None:
                total = rows_of(d, block)
                total += part
    for name, total in sums.items():
        assign(given[name], total)


def _rows_of_block(given: Mapping[str, Any], block: slice) -> dict[str, Array]:
    """The query rows of ``block`` of the arrays that have rows of queries, by name, without those that are None."""
    rows = {name: given[name][:, :, block] for name in _BY_ROW if given[name] is not None}
    for name in ("lse", "d_lse", "d_weights"):
        if given[name] is not None:
            rows[name] = np.ascontiguousarray(given[name][:, :, block])
    return rows


def _bias_as_given(d: Array, bias: Shape, shape: AttentionShape) -> Array:
    """The gradient of a bias, (batch, heads, query_len, key_len), each of full size or 1, in the caller's shape."""
    if d.size != math.prod(bias):  # of several axes before that of heads, merged into one, some are broadcast
        lead, full = (1,) * (len(shape.scores_as_given) - len(bias)) + bias[:-3], shape.scores_as_given[:-3]
        axes = tuple(axis for axis, size in enumerate(full) if size != lead[axis])
        d = d.reshape((*full, *d.shape[1:])).sum(axis=axes)
    return d.reshape(bias)
