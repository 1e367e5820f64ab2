"""Gradients of attention over packed sequences."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from headwise._base.arrays import as_array, cast_layout, promote
from headwise._base.attention_spec import query_rows
from headwise._base.outputs import allocate
from headwise._ops.attention.dropout import rows_of
from headwise._ops.attention.keywords import hide_unknown, refuse
from headwise._ops.attention.options import UPPER_LEFT, SpecOptions
from headwise._ops.attention.relative_values import check_relative_values
from headwise._ops.attention.shapes import check_packed_shapes
from headwise._ops.attention.spec import attention_spec, is_lower_right
from headwise._ops.attention.varlen import packed_sequences
from headwise._ops.gradients.attention import ROWS, Arrays, backward, backward_by_rows, without_scores
from headwise._ops.gradients.relative_values import RelativeValues
from headwise._ops.gradients.results import accumulate, as_gradient, check_wrt, finish, gradients_of
from headwise._runtime.backend import current

if TYPE_CHECKING:
    from numpy.typing import ArrayLike

    from headwise._base.attention_spec import AttentionSpec, PackedSequences
    from headwise._base.typing import Array

#: The arguments of attention over packed sequences that have gradients.
VARLEN_NAMES = ("query", "key", "value", "alibi_slopes", "sinks", "relative_bias", "relative_values")
_BY_KEY = ("key", "value", "d_key", "d_value")
_BY_SEQUENCE = ("d_alibi_slopes", "d_sinks")


@hide_unknown
def varlen_attention_backward(  # noqa: PLR0913 (the public signature)
    d_output: ArrayLike | None,
    query: ArrayLike,
    key: ArrayLike,
    value: ArrayLike,
    output: ArrayLike,
    lse: ArrayLike,
    cu_seqlens_q: ArrayLike,
    cu_seqlens_k: ArrayLike | None = None,
    *,
    wrt: tuple[str, ...] = ROWS,
    d_lse: ArrayLike | None = None,
    is_causal: bool = False,
    causal_alignment: str = "upper_left",
    scale: float | None = None,
    window_size: int | tuple[int, int] | None = None,
    softcap: float | None = None,
    alibi_slopes: ArrayLike | None = None,
    sinks: ArrayLike | None = None,
    relative_bias: ArrayLike | None = None,
    relative_values: ArrayLike | None = None,
    precision: str | None = None,
    **unknown: Any,
) -> Any:
    """Gradients of :func:`varlen_attention` by its arguments, with memory in O(total_query_len + total_key_len).

    Parameters
    ----------
    d_output : array_like, (total_query_len, heads, value_dim)
        The gradient of a loss by `output`; 0 if None.
    query : array_like, (total_query_len, heads, head_dim)
        The arguments of the forward pass, as the next two.
    key : array_like, (total_key_len, kv_heads, head_dim)
    value : array_like, (total_key_len, kv_heads, value_dim)
    output : array_like, (total_query_len, heads, value_dim)
        The results of the forward pass with ``return_lse=True``, as the next one.
    lse : array_like, (heads, total_query_len)
    cu_seqlens_q, cu_seqlens_k : array_like of integers, (sequences + 1,)
        Cumulative lengths, as in the forward pass.
    wrt : tuple of str
        The arguments whose gradients are returned: some of "query", "key", "value", "alibi_slopes", "sinks",
        "relative_bias", "relative_values".
    d_lse : array_like, (heads, total_query_len), optional
        The gradient of the loss by `lse`; 0 if None.
    is_causal, causal_alignment, scale, window_size, softcap, alibi_slopes, sinks, relative_bias, relative_values, \
precision : optional
        The keywords of the forward pass.

    Returns
    -------
    named tuple of ndarray
        ``d_query``, ``d_key`` and so on, in the order of `wrt`, each in the shape and dtype of its argument.

    Raises
    ------
    ValueError, TypeError
        As in :func:`varlen_attention` and :func:`flash_attention_backward`.

    See Also
    --------
    flash_attention_backward : Sequences of one length.

    Examples
    --------
    >>> import numpy as np
    >>> import headwise as hw
    >>> x, d_output = np.random.default_rng(0).standard_normal((2, 9, 2, 8))
    >>> output, lse = hw.varlen_attention(x, x, x, [0, 4, 9], return_lse=True)
    >>> d_query, d_key, d_value = hw.varlen_attention_backward(d_output, x, x, x, output, lse, [0, 4, 9])
    >>> d_query.shape
    (9, 2, 8)
    """
    if unknown:
        refuse(unknown, varlen_attention_backward.__kwdefaults__ or ())
    options = SpecOptions(
        None, None, is_causal, UPPER_LEFT, scale, window_size, softcap, alibi_slopes, sinks, None, precision,
        relative_bias=relative_bias, relative_values=relative_values,
    )  # fmt: skip
    names = check_wrt(wrt, VARLEN_NAMES, {"query": query, "key": key, "value": value, **options._asdict()})
    given = {"query": as_array(query, "query"), "key": as_array(key, "key"), "value": as_array(value, "value")}
    compute, dtype = promote(*given.items())
    shape = check_packed_shapes(*(a.shape for a in given.values()))
    table = None if relative_values is None else check_relative_values(relative_values, shape, compute)
    stored = dtype if dtype.itemsize == 2 and table is None else compute
    sequences = packed_sequences(cu_seqlens_q, cu_seqlens_k, shape, lower_right=is_lower_right(causal_alignment))
    given.update({name: as_array(getattr(options, name), name) for name in names if name not in ROWS})
    if "relative_bias" in given and 0 in given["relative_bias"].strides:
        options = options._replace(relative_bias=np.ascontiguousarray(given["relative_bias"]))
    spec = attention_spec(shape, (compute, stored), options)

    q, k, v = (cast_layout(given[name], stored, last=True).swapaxes(0, 1) for name in ROWS)
    out = as_gradient(output, "output", shape.output, stored, "the output of these arguments").swapaxes(0, 1)
    if d_output is None:
        d_out = np.broadcast_to(np.zeros(out.shape[-1:], stored), out.shape)
    else:
        d_out = as_gradient(d_output, "d_output", shape.output, stored, "output").swapaxes(0, 1)
    sums, d_sums = (
        None if x is None else np.ascontiguousarray(as_gradient(x, name, shape.scores[1:3], compute, "lse"))
        for x, name in ((lse, "lse"), (d_lse, "d_lse"))
    )
    assert sums is not None  # noqa: S101 (given)
    results: dict[str, Array] = {name: allocate(given[name].shape, stored) for name in names if name in ROWS}
    d_q, d_k, d_v = (results[name].swapaxes(0, 1) if name in results else None for name in ROWS)
    of_heads = {
        name: allocate((len(sequences.offsets), shape.scores[1]), compute)
        for name in ("alibi_slopes", "sinks")
        if name in names
    }
    arrays: dict[str, Any] = {
        "d_output": d_out, "query": q, "key": k, "value": v, "output": out, "lse": sums, "d_lse": d_sums,
        "d_query": d_q, "d_key": d_k, "d_value": d_v,
        "d_alibi_slopes": of_heads.get("alibi_slopes"), "d_sinks": of_heads.get("sinks"),
    }  # fmt: skip
    for name in ("relative_bias", "relative_values"):
        if name in names:
            results[name] = np.zeros(given[name].shape, compute)
    d_bias, d_table = results.get("relative_bias"), results.get("relative_values")
    if table is None and d_bias is None:
        arguments: tuple[Any, ...] = (*arrays.values(), sequences, spec)
        current().attention_varlen_backward(*arguments)
    else:
        bias = spec.relative_bias
        by_bias = d_bias if d_bias is None or bias is None else d_bias.reshape(bias.shape)
        by_value = d_table if d_table is None or table is None else d_table.reshape(table.shape)
        values = None if table is None else RelativeValues(table, by_value)
        _one_after_another(arrays, by_bias, sequences, spec, values)
    for name, parts in of_heads.items():
        results[name] = np.zeros(given[name].shape, compute)
        for part in parts:
            accumulate(results[name], part)
    return gradients_of(names, {name: finish(d, given[name], dtype) for name, d in results.items()})


def _one_after_another(
    arrays: dict[str, Any],
    d_relative_bias: Array | None,
    sequences: PackedSequences,
    spec: AttentionSpec,
    values: RelativeValues | None,
) -> None:
    """One call of :func:`backward` for each sequence; their gradients of the relative bias and of the relative values
    are added to zeros.

    ``arrays`` are those of :meth:`headwise._runtime.backend.Backend.attention_varlen_backward`.
    """
    for s, (start, length, first, keys, offset) in enumerate(zip(*(a.tolist() for a in sequences), strict=True)):
        rows, cols = slice(start, start + length), slice(first, first + keys)
        part = None if d_relative_bias is None else np.empty_like(rows_of(d_relative_bias, rows), order="C")
        parts: dict[str, Any] = {"d_weights": None, "d_bias": (), "d_relative_bias": part}
        for name, array in arrays.items():
            where = (None, slice(None), cols if name in _BY_KEY else rows)
            parts[name] = None if array is None else array[s] if name in _BY_SEQUENCE else array[where]
        for name in ("lse", "d_lse"):
            parts[name] = None if parts[name] is None else np.ascontiguousarray(parts[name])
        call, part_spec = Arrays(**parts), query_rows(spec, rows)._replace(offset=offset)
        if not (length and keys and call.query.shape[1]):
            without_scores(call, part_spec)
        elif values is not None:
            backward_by_rows(call, part_spec, None, values)
        else:
            backward(call, part_spec)
        if d_relative_bias is not None and part is not None:
            accumulate(rows_of(d_relative_bias, rows), part)
