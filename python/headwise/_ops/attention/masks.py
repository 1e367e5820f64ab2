"""Keep-masks whose class states the meaning of their axes.

A mask of two axes can be (query_len, key_len) or (batch, key_len); if ``batch`` equals ``query_len``, its shape does
not distinguish them. The functions here return integer arrays (1 keeps, 0 masks) of a class that does:
:class:`PaddingMask` is always (batch, key_len), :class:`CausalMask` always (query_len, key_len).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from headwise._base.arrays import as_array, check_dtype
from headwise._base.outputs import check_room
from headwise._base.scalars import check_real, check_size

if TYPE_CHECKING:
    from numpy.typing import ArrayLike

    from headwise._base.typing import Array

__all__ = [
    "CausalMask",
    "PaddingMask",
    "create_causal_mask",
    "create_look_ahead_mask",
    "create_padding_mask",
]


def only_0_and_1(m: Array) -> bool:
    """Whether a bool or integer ``m`` holds no other numbers than 0 and 1. One pass: other bits show in the union."""
    return m.dtype.kind == "b" or int(np.bitwise_or.reduce(m, axis=None)) in (0, 1)


class _Mask(np.ndarray[Any, np.dtype[Any]]):
    """A keep-mask whose class states the meaning of its axes.

    Slices, copies and ``astype`` keep the class. So do elementwise functions of masks of one class and scalars if the
    result holds only bool, or the integers 0 and 1. Every other result is a plain array: ``(1 - mask) * -1e9`` is a
    bias, and for ``padding & causal`` neither meaning of the axes is known to hold. ``~`` is the logical complement,
    for integers as well.
    """

    def __array_ufunc__(self, ufunc: np.ufunc, method: str, *inputs: Any, **kwargs: Any) -> Any:
        def plain(array: Any) -> Any:
            return array.view(np.ndarray) if isinstance(array, _Mask) else array

        out = kwargs.get("out")
        if out is not None:
            kwargs["out"] = tuple(plain(array) for array in out)
        arrays = [plain(x) for x in inputs]
        if ufunc is np.invert and method == "__call__" and arrays[0].dtype.kind in "iu":
            ufunc, arrays = np.bitwise_xor, [arrays[0], 1]
        result = getattr(ufunc, method)(*arrays, **kwargs)
        if out is not None and result is not NotImplemented:
            return out[0] if len(out) == 1 else result
        same_axes = (
            method == "__call__"
            and ufunc.signature is None
            and all(type(x) is type(self) or np.ndim(x) == 0 for x in inputs)
        )
        if same_axes and isinstance(result, np.ndarray) and result.shape == self.shape:
            return result.view(type(self)) if result.dtype.kind in "biu" and only_0_and_1(result) else result
        return result


class PaddingMask(_Mask):
    """A keep-mask of (batch, key_len), as returned by :func:`create_padding_mask`.

    Examples
    --------
    >>> import numpy as np
    >>> import headwise as hw
    >>> kept = np.array([[1, 1], [1, 0]]).view(hw.PaddingMask)  # for two sequences
    >>> hw.self_attention(np.ones((2, 2, 4)), 4, kept)[1][1]
    array([[1., 0.],
           [1., 0.]])
    """


class CausalMask(_Mask):
    """A keep-mask of (query_len, key_len), as returned by :func:`create_causal_mask`.

    Examples
    --------
    >>> import numpy as np
    >>> import headwise as hw
    >>> kept = np.array([[1, 1], [1, 0]]).view(hw.CausalMask)
    >>> hw.self_attention(np.ones((2, 2, 4)), 4, kept)[1][1]
    array([[0.5, 0.5],
           [1. , 0. ]])
    """


def create_padding_mask(seq: ArrayLike, pad_token: int = 0) -> PaddingMask:
    """Mask the padding of a batch of token sequences.

    Parameters
    ----------
    seq : array_like, (batch, seq_len) or (seq_len,)
        Token ids.
    pad_token : int
        The token id of padding.

    Returns
    -------
    PaddingMask, (batch, seq_len) or (seq_len,), int64
        1 for a token, 0 for padding. As the ``mask=`` of an attention function it masks the padded keys of each
        sequence for all of its queries.

    Raises
    ------
    ValueError
        If ``seq`` does not have one or two axes.
    TypeError
        If ``seq`` or ``pad_token`` is not numeric.

    Examples
    --------
    >>> import headwise as hw
    >>> print(hw.create_padding_mask([[7, 3, 9, 0], [5, 0, 0, 0]]))
    [[1 1 1 0]
     [1 0 0 0]]
    """
    tokens = as_array(seq, "seq")
    check_dtype(tokens.dtype, "seq")
    if tokens.ndim not in (1, 2):
        raise ValueError(f"seq: shape {tokens.shape}, expected (batch, seq_len) or (seq_len,)")
    check_real(pad_token, "pad_token")
    kept: PaddingMask = np.not_equal(tokens, pad_token).astype(np.int64).view(PaddingMask)
    return kept


def create_look_ahead_mask(size: int | None = None, *, seq_len: int | None = None) -> CausalMask:
    """The causal mask: query ``i`` sees keys 0 to ``i``.

    Attention functions with ``is_causal=True`` have the same result without an array of size x size.

    Parameters
    ----------
    size : int
        Length of the sequence, at least 1.
    seq_len : int
        Another name of ``size``.

    Returns
    -------
    CausalMask, (size, size), int64
        1 on and below the diagonal, 0 above.

    Raises
    ------
    ValueError
        If the length is not positive.
    TypeError
        If the length is not an integer, or both or neither of the two arguments are given.

    Examples
    --------
    >>> import headwise as hw
    >>> print(hw.create_look_ahead_mask(3))
    [[1 0 0]
     [1 1 0]
     [1 1 1]]
    """
    if (size is None) == (seq_len is None):
        given = "neither" if size is None else "both"
        raise TypeError(f"size: {given} of size and seq_len given, expected one of them")
    n = check_size(seq_len, "seq_len") if size is None else check_size(size, "size")
    check_room(n, n)
    return np.tri(n, dtype=np.int64).view(CausalMask)


create_causal_mask = create_look_ahead_mask
