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
from headwise._ops.attention.shapes import check_packed_shapes
from headwise._ops.attention.spec import attention_spec, is_lower_right
from headwise._ops.attention.varlen import packed_sequences
from headwise._ops.gradients.attention import ROWS, Arrays, backward, without_scores
from headwise._ops.gradients.results import accumulate, as_gradient, check_wrt, finish, gradients_of

if TYPE_CHECKING:
    from numpy.typing import ArrayLike

    from headwise._base.typing import Array

#: The arguments of attention over packed sequences that have gradients.
VARLEN_NAMES = ("query", "key", "value", "alibi_slopes", "sinks", "relative_bias")


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
        "relative_bias".
    d_lse : array_like, (heads, total_query_len), optional
        The gradient of the loss by `lse`; 0 if None.
    is_causal, causal_alignment, scale, window_size, softcap, alibi_slopes, sinks, relative_bias, precision : optional
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
        relative_bias=relative_bias,
    )  # fmt: skip
    names = check_wrt(wrt, VARLEN_NAMES, {"query": query, "key": key, "value": value, **options._asdict()})
    given = {"query": as_array(query, "query"), "key": as_array(key, "key"), "value": as_array(value, "value")}
    compute, dtype = promote(*given.items())
    stored = dtype if dtype.itemsize == 2 else compute
    shape = check_packed_shapes(*(a.shape for a in given.values()))
    sequences = packed_sequences(cu_seqlens_q, cu_seqlens_k, shape, lower_right=is_lower_right(causal_alignment))
    given.update({name: as_array(getattr(options, name), name) for name in names if name not in ROWS})
    if "relative_bias" in given and 0 in given["relative_bias"].strides:
        options = options._replace(relative_bias=np.ascontiguousarray(given["relative_bias"]))
    spec = attention_spec(shape, (compute, stored), options)

    # (1, heads, rows, width), of which a sequence has some rows.
    q, k, v = (cast_layout(given[name], stored, last=True).swapaxes(0, 1)[None] for name in ROWS)
    out = as_gradient(output, "output", shape.output, stored, "the output of these arguments").swapaxes(0, 1)[None]
    if d_output is None:
        d_out = np.zeros(out.shape, stored)
    else:
        d_out = as_gradient(d_output, "d_output", shape.output, stored, "output").swapaxes(0, 1)[None]
    sums = as_gradient(lse, "lse", shape.scores[1:3], compute, "lse")[None]
    d_sums = None if d_lse is None else as_gradient(d_lse, "d_lse", shape.scores[1:3], compute, "lse")[None]
    results: dict[str, Array] = {
        name: allocate(given[name].shape, stored) if name in ROWS else np.zeros(given[name].shape, compute)
        for name in names
    }
    d_q, d_k, d_v = (results[name].swapaxes(0, 1)[None] if name in results else None for name in ROWS)
    d_relative = None
    if "relative_bias" in results and spec.relative_bias is not None:
        d_relative = results["relative_bias"].reshape(spec.relative_bias.shape)
    for start, length, first, keys, offset in zip(*(a.tolist() for a in sequences), strict=True):
        rows, cols, by_row = (
            (..., slice(start, start + length), slice(None)),
            (..., slice(first, first + keys), slice(None)),
            (..., slice(start, start + length)),
        )
        part_spec = query_rows(spec, by_row[1])._replace(offset=offset)
        of_heads = {name: np.empty_like(results[name]) for name in ("alibi_slopes", "sinks") if name in results}
        part_d_relative = None if d_relative is None else np.empty_like(rows_of(d_relative, by_row[1]))
        part_d_q, part_d_k, part_d_v = (
            None if d is None else d[part] for d, part in ((d_q, rows), (d_k, cols), (d_v, cols))
        )
        arrays = Arrays(
            d_out[rows], q[rows], k[cols], v[cols], out[rows], np.ascontiguousarray(sums[by_row]),
            None if d_sums is None else np.ascontiguousarray(d_sums[by_row]), None, part_d_q, part_d_k, part_d_v, (),
            of_heads.get("alibi_slopes"), of_heads.get("sinks"), part_d_relative,
        )  # fmt: skip
        if length and keys and shape.scores[1]:
            backward(arrays, part_spec)
        else:
            without_scores(arrays, part_spec)
        if d_relative is not None and part_d_relative is not None:
            accumulate(rows_of(d_relative, by_row[1]), part_d_relative)
        for name, part in of_heads.items():
            accumulate(results[name], part)
    return gradients_of(names, {name: finish(d, given[name], dtype) for name, d in results.items()})
