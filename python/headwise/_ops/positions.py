"""Operations that put positions into attention: rotary embedding and ALiBi."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from headwise._base.arrays import as_array, cast_layout, check_dtype, fits, four_axes, is_canonical, promote
from headwise._base.outputs import allocate, check_out, check_room, finalize, resolve_out
from headwise._base.scalars import check_flag, check_int, check_size
from headwise._base.typing import FLOAT64
from headwise._runtime import backend as _backend

if TYPE_CHECKING:
    from numpy.typing import ArrayLike

    from headwise._base.typing import Array

# A distance is exact in float64 up to here.
_FARTHEST = 1 << 53


def apply_rope(
    x: ArrayLike, cos: ArrayLike, sin: ArrayLike, *, interleaved: bool = False, out: Array | None = None
) -> Array:
    """Rotate pairs of entries of the last axis by the angles whose cosines and sines are given.

    Each pair ``(a, b)`` becomes ``(a cos - b sin, b cos + a sin)``, equation (34) of [1]_.

    Parameters
    ----------
    x : array_like, (..., seq_len, dim)
        `dim` is even.
    cos, sin : array_like
        Broadcast against ``x[..., : dim // 2]``: (seq_len, dim / 2) serves every head.
    interleaved : bool
        What a pair is: entries ``i`` and ``i + dim / 2`` (GPT-NeoX, Hugging Face, ONNX), or, if True, ``2 i`` and
        ``2 i + 1`` (the original LLaMA).
    out : ndarray, optional
        Where to write the result, of its shape and dtype; it may be `x` itself.

    Returns
    -------
    ndarray
        Of the shape of `x`, in the dtype that the three arguments promote to. float16 and bfloat16 are computed in
        float32 and rounded once.

    Raises
    ------
    ValueError
        If `dim` is odd, or a shape does not fit.
    TypeError
        If an argument is not real.

    References
    ----------
    .. [1] J. Su et al., "RoFormer: Enhanced Transformer with Rotary Position Embedding", 2021.

    Examples
    --------
    >>> import numpy as np
    >>> import headwise as hw
    >>> angle = np.array([[0.0], [np.pi / 2]])  # one for each of two positions
    >>> hw.apply_rope([[1.0, 0.0], [1.0, 0.0]], np.cos(angle), np.sin(angle)).round(6)
    array([[1., 0.],
           [0., 1.]])
    """
    a, c, s = as_array(x, "x"), as_array(cos, "cos"), as_array(sin, "sin")
    ready = is_canonical(a, c, s)
    compute, dtype = (a.dtype, a.dtype) if ready else promote(("x", a), ("cos", c), ("sin", s))
    interleaved = check_flag(interleaved, "interleaved")
    shape = a.shape
    if not shape or shape[-1] % 2:
        raise ValueError(f"x: shape {shape}, expected an even last axis")
    half = (*shape[:-1], shape[-1] // 2)
    for name, table in (("cos", c), ("sin", s)):
        if not fits(table.shape, half):
            raise ValueError(f"{name}: shape {table.shape}, expected one that broadcasts to {half}")
    if out is not None:
        check_out(out, shape, dtype, ("x", a), ("cos", c), ("sin", s), inplace=a)
    result = resolve_out(out, shape, dtype)
    if result.size:
        if not ready:
            a, c, s = (
                cast_layout(a, dtype, last=True),
                cast_layout(c, compute, last=True),
                cast_layout(s, compute, last=True),
            )
        rotate(a, c, s, interleaved, result)
    return finalize(result, out, dtype)


def rotate(a: Array, cos: Array, sin: Array, interleaved: bool, result: Array) -> None:
    """:func:`apply_rope` of arrays that a backend takes, but for the number of their axes."""
    half = (*a.shape[:-1], a.shape[-1] // 2)
    c, s = four_axes(_full_last(cos, half[-1]), half), four_axes(_full_last(sin, half[-1]), half)
    _backend.current().apply_rope(four_axes(a, a.shape), c, s, four_axes(result, a.shape), interleaved)


def _full_last(a: Array, size: int) -> Array:
    """``a`` with a last axis of ``size``, contiguous, where it was 1 or missing."""
    if a.ndim and a.shape[-1] == size:
        return a
    return np.ascontiguousarray(np.broadcast_to(a, (*a.shape[:-1], size)))


def alibi_slopes(num_heads: int) -> Array:
    """The slopes of ALiBi: ``2 ** (-8 i / n)`` for heads ``i = 1 .. n``.

    For a number of heads that is no power of two, those of the largest power of two below it come first, then every
    other one of the next power's, as in the authors' code [1]_.

    Parameters
    ----------
    num_heads : int
        At least 1.

    Returns
    -------
    ndarray, (num_heads,), float64

    Raises
    ------
    ValueError
        If `num_heads` is not positive.
    TypeError
        If it is no integer.

    References
    ----------
    .. [1] O. Press, N. A. Smith, M. Lewis, "Train Short, Test Long: Attention with Linear Biases Enables Input Length
       Extrapolation", 2021, section 3.

    Examples
    --------
    >>> import headwise as hw
    >>> hw.alibi_slopes(4)
    array([0.25      , 0.0625    , 0.015625  , 0.00390625])
    >>> hw.alibi_slopes(3)
    array([0.0625    , 0.00390625, 0.25      ])
    """
    n = check_size(num_heads, "num_heads")
    check_room(n)
    power = 1 << (n.bit_length() - 1)
    of_power = np.arange(1, power + 1) * (-8.0 / power)
    of_next = np.arange(1, 2 * (n - power), 2) * (-4.0 / power)
    return np.exp2(np.concatenate((of_power, of_next)))


def alibi_bias(num_heads: int, query_len: int, key_len: int | None = None, *, offset: int = 0) -> Array:
    """The bias of ALiBi, ``-slope * abs(i + offset - j)``, as an array.

    :func:`scaled_dot_product_attention` takes ``alibi_slopes=`` for the same effect without it.

    Parameters
    ----------
    num_heads, query_len : int
        At least 1.
    key_len : int, optional
        As `query_len` if None.
    offset : int
        The position of query 0 on the axis of the keys.

    Returns
    -------
    ndarray, (num_heads, query_len, key_len), float64

    Raises
    ------
    ValueError
        If a size is not positive.
    TypeError
        If an argument is no integer.

    Examples
    --------
    >>> import headwise as hw
    >>> hw.alibi_bias(1, 3) * 256
    array([[[ 0., -1., -2.],
            [-1.,  0., -1.],
            [-2., -1.,  0.]]])
    """
    slopes = alibi_slopes(num_heads)
    rows = check_size(query_len, "query_len")
    columns = rows if key_len is None else check_size(key_len, "key_len")
    shift = _check_offset(offset)
    bias = allocate((len(slopes), rows, columns), FLOAT64)
    distance = np.abs(np.arange(shift, shift + rows)[:, None] - np.arange(columns))
    np.multiply(slopes[:, None, None], -distance, out=bias)
    return bias


def add_alibi(
    scores: ArrayLike, slopes: ArrayLike | None = None, *, offset: int = 0, out: Array | None = None
) -> Array:
    """``scores - slope * abs(i + offset - j)``, without an array of the biases.

    Parameters
    ----------
    scores : array_like, (..., heads, query_len, key_len)
    slopes : array_like, (heads,), optional
        Those of :func:`alibi_slopes` if None. Taken in float64 if `scores` is computed in it, else in float32.
    offset : int
        The position of query 0 on the axis of the keys.
    out : ndarray, optional
        Where to write the result, of its shape and dtype; it may be `scores` itself.

    Returns
    -------
    ndarray
        Of the shape and dtype of `scores`. float16 and bfloat16 are computed in float32 and rounded once.

    Raises
    ------
    ValueError
        If a shape does not fit.
    TypeError
        If an argument is not real, or `offset` no integer.

    Examples
    --------
    >>> import numpy as np
    >>> import headwise as hw
    >>> hw.add_alibi(np.zeros((1, 1, 3)), [1.0], offset=2)
    array([[[-2., -1.,  0.]]])
    """
    a = as_array(scores, "scores")
    compute, dtype = promote(("scores", a))
    if a.ndim < 3:
        raise ValueError(f"scores: shape {a.shape}, expected (..., heads, query_len, key_len)")
    heads = a.shape[-3]
    if slopes is None:
        steepness = alibi_slopes(heads) if heads else np.empty(0)
    else:
        steepness = as_array(slopes, "slopes")
        check_dtype(steepness.dtype, "slopes")
    if steepness.shape != (heads,):
        raise ValueError(f"slopes: shape {steepness.shape}, expected one entry for each head, ({heads},)")
    shift = _check_offset(offset)
    if out is not None:
        check_out(out, a.shape, dtype, ("scores", a), ("slopes", steepness), inplace=a)
    result = resolve_out(out, a.shape, dtype)
    if result.size:
        source, target = four_axes(cast_layout(a, dtype, last=True), a.shape), four_axes(result, a.shape)
        _backend.current().add_alibi(source, cast_layout(steepness, compute, last=True), shift, target)
    return finalize(result, out, dtype)


def _check_offset(offset: object) -> int:
    return check_int(offset, "offset", -_FARTHEST, _FARTHEST)
