"""ALiBi: slopes, the bias as an array, and the bias added to scores (Press et al. 2021)."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from headwise._base.arrays import as_array, cast_layout, check_dtype, four_axes, promote
from headwise._base.outputs import allocate, check_out, check_room, finalize, resolve_out
from headwise._base.scalars import check_int, check_size
from headwise._base.typing import FLOAT64
from headwise._runtime.backend import current

if TYPE_CHECKING:
    from numpy.typing import ArrayLike

    from headwise._base.typing import Array

# float64 represents every integer distance up to here exactly.
_MAX_OFFSET = 1 << 53


def alibi_slopes(num_heads: int) -> Array:
    """The slopes of ALiBi [1]_: ``2 ** (-8 i / n)`` for heads ``i = 1 .. n``.

    If the number of heads is not a power of two, the slopes for the largest power of two below it come first, followed
    by every other slope for the next power of two, as in the authors' code.

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
        If `num_heads` is not an integer.

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
    """The bias of ALiBi, ``-slope * abs(i + offset - j)`` for query ``i`` and key ``j``, as an array.

    Attention with ``alibi_slopes=`` has the same result without this array.

    Parameters
    ----------
    num_heads, query_len : int
        At least 1.
    key_len : int, optional
        `query_len` if None.
    offset : int
        The position of query 0 among the keys.

    Returns
    -------
    ndarray, (num_heads, query_len, key_len), float64

    Raises
    ------
    ValueError
        If a size is not positive.
    TypeError
        If an argument is not an integer.

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
    first = _check_offset(offset)
    bias = allocate((len(slopes), rows, columns), FLOAT64)
    distance = np.abs(np.arange(first, first + rows)[:, None] - np.arange(columns))
    np.multiply(slopes[:, None, None], -distance, out=bias)
    return bias


def add_alibi(
    scores: ArrayLike, slopes: ArrayLike | None = None, *, offset: int = 0, out: Array | None = None
) -> Array:
    """``scores - slope * abs(i + offset - j)`` for query ``i`` and key ``j``, without an array of the bias.

    Parameters
    ----------
    scores : array_like, (..., heads, query_len, key_len)
        Real numbers.
    slopes : array_like, (heads,), optional
        :func:`alibi_slopes` if None. Cast to float64 for float64 scores, else to float32.
    offset : int
        The position of query 0 among the keys.
    out : ndarray, optional
        Array of the result's shape and dtype that the result is written to; it may be `scores` itself.

    Returns
    -------
    ndarray, (..., heads, query_len, key_len)
        In the dtype of `scores`; float64 for integers and bool. float16 and bfloat16 are computed in float32 and
        rounded once.

    Raises
    ------
    ValueError
        If `scores` has fewer than three axes, `slopes` is not of shape (heads,), or `out` does not have the result's
        shape.
    TypeError
        If an array is not real, or `offset` is not an integer.

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
        chosen = alibi_slopes(heads) if heads else np.empty(0)
    else:
        chosen = as_array(slopes, "slopes")
        check_dtype(chosen.dtype, "slopes")
    if chosen.shape != (heads,):
        raise ValueError(f"slopes: shape {chosen.shape}, expected one entry for each head, ({heads},)")
    first = _check_offset(offset)
    if out is not None:
        check_out(out, a.shape, dtype, ("scores", a), ("slopes", chosen), inplace=a)
    result = resolve_out(out, a.shape, dtype)
    if result.size:
        source, target = four_axes(cast_layout(a, dtype, last=True), a.shape), four_axes(result, a.shape)
        current().add_alibi(source, cast_layout(chosen, compute, last=True), first, target)
    return finalize(result, out, dtype)


def _check_offset(offset: object) -> int:
    return check_int(offset, "offset", -_MAX_OFFSET, _MAX_OFFSET)
