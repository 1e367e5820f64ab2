"""The linear map ``x @ weight + bias``."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from headwise._base.arrays import as_array, cast_layout, is_bfloat16, is_canonical, promote
from headwise._base.outputs import check_out, finalize, resolve_out
from headwise._base.typing import FLOAT32
from headwise._runtime.backend import current
from headwise._runtime.precision import check_precision

if TYPE_CHECKING:
    from numpy.typing import ArrayLike

    from headwise._base.typing import Array


def linear(
    x: ArrayLike,
    weight: ArrayLike,
    bias: ArrayLike | None = None,
    *,
    precision: str | None = None,
    out: Array | None = None,
) -> Array:
    """``x @ weight + bias``.

    Parameters
    ----------
    x : array_like, (..., in_features)
        Real numbers, as in the other arrays.
    weight : array_like, (in_features, out_features)
        Constant weights are faster as a :class:`PackedLinear`.
    bias : array_like, (out_features,), optional
        Added to each row.
    precision : {"highest", "high", "medium"}, optional
        The precision of products in float32 and float16, see :func:`set_precision`; :func:`get_precision` if None.
    out : ndarray, (..., out_features), optional
        Array of the result's dtype that the result is written to; it shares no memory with an input.

    Returns
    -------
    ndarray, (..., out_features)
        In the dtype to which the arrays promote. float16 and bfloat16 products are accumulated in float32 and rounded
        once; neither `x` nor `weight` is converted to float32 as a whole, nor is a 16-bit `weight` under float32 `x`.

    Raises
    ------
    ValueError
        If shapes do not match, or `precision` is unknown.
    TypeError
        If an array is not real, or `out` has another dtype.

    See Also
    --------
    PackedLinear : A linear map with constant weights, packed once.

    Examples
    --------
    >>> import numpy as np
    >>> import headwise as hw
    >>> hw.linear([[1.0, 2.0]], np.eye(2), bias=[0.5, 0.5])
    array([[1.5, 2.5]])
    """
    a, w = as_array(x, "x"), as_array(weight, "weight")
    inputs = [("x", a), ("weight", w)]
    b = None
    if bias is not None:
        b = as_array(bias, "bias")
        inputs.append(("bias", b))
    ready = is_canonical(a, w) if b is None else is_canonical(a, w, b)
    compute, dtype = (a.dtype, a.dtype) if ready else promote(*inputs)
    precision = check_precision(precision)
    shape, matrix = a.shape, w.shape
    if not shape:
        raise ValueError("x: a scalar, expected (..., in_features)")
    check_parameters(w, b)
    inner, columns = matrix
    if inner != shape[-1]:
        raise ValueError(
            f"weight: shape {matrix} does not match x {shape}: in_features is {inner}, expected {shape[-1]}"
        )
    shape = (*shape[:-1], columns)
    if out is not None:
        check_out(out, shape, dtype, *inputs)
    result = resolve_out(out, shape, dtype, contiguous=True)
    if result.size:
        if inner == 0:
            result[...] = 0 if b is None else b
        else:
            if not ready:
                a, w = cast_layout(a, dtype, last=True), cast_layout(w, stored_dtype(w, dtype))
                b = None if b is None else cast_layout(b, compute, last=True)
                if w.itemsize not in w.strides:
                    w = np.ascontiguousarray(w)
            current().linear(a.reshape((-1, inner)), w, b, result.reshape((-1, columns)), precision)
    return finalize(result, out, dtype)


def stored_dtype(weight: Array, dtype: np.dtype[Any]) -> np.dtype[Any]:
    """The dtype in which backends read ``weight`` for a product in ``dtype``; under float32, 16-bit weights stay so."""
    own = weight.dtype
    is_16bit = own.itemsize == 2 and (own.kind == "f" or is_bfloat16(own))
    return own.newbyteorder("=") if is_16bit and dtype == FLOAT32 else dtype


def check_parameters(weight: Array, bias: Array | None) -> None:
    if weight.ndim != 2:
        raise ValueError(f"weight: shape {weight.shape}, expected (in_features, out_features)")
    if bias is not None and bias.shape != weight.shape[1:]:
        raise ValueError(f"bias: shape {bias.shape}, expected ({weight.shape[1]},)")
