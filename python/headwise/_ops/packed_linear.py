"""The linear map with constant weights."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np

from headwise._base.arrays import as_array, cast_layout, is_canonical_or_16bit, promote
from headwise._base.outputs import check_out, finalize, resolve_out
from headwise._base.typing import FLOAT32
from headwise._ops.linear import check_parameters, linear, stored_dtype
from headwise._runtime.backend import current
from headwise._runtime.precision import check_precision

if TYPE_CHECKING:
    from numpy.typing import ArrayLike

    from headwise._base.typing import Array, Named
    from headwise._runtime import backend


class PackedLinear:
    """:func:`linear` with constant weights, packed once into the layout that the matrix product reads.

    The constructor copies the weights; later changes to the caller's arrays have no effect. Results equal those of
    :func:`linear` bit for bit.

    float16 and bfloat16 weights stay 16-bit, for `x` of float32 as well: a product reads half the memory of float32
    weights. Its result is that of the weights converted to float32, bit for bit with the native backend.

    Parameters
    ----------
    weight : array_like, (in_features, out_features)
        Real numbers.
    bias : array_like, (out_features,), optional
        Added to each row.
    precision : {"highest", "high", "medium"}, optional
        As in :func:`linear`; None is resolved at each call.

    Attributes
    ----------
    in_features, out_features : int
        The shape of the weight.
    dtype : numpy.dtype
        The dtype to which `weight` and `bias` promote.

    Raises
    ------
    ValueError
        If shapes do not match, or `precision` is unknown.
    TypeError
        If an array is not real.

    Notes
    -----
    The packed layout depends on the backend, the instruction set and the precision. When one of them changes, the next
    call packs the copied weights again. The first call packs 16-bit weights. Several threads may call one object at
    once. Copies and pickles hold the weights, and pack them again.

    Examples
    --------
    >>> import numpy as np
    >>> import headwise as hw
    >>> project = hw.PackedLinear(np.eye(2), bias=[0.5, 0.5])
    >>> project([[1.0, 2.0]])
    array([[1.5, 2.5]])
    """

    in_features: int
    out_features: int
    dtype: np.dtype[Any]

    def __init__(self, weight: ArrayLike, bias: ArrayLike | None = None, *, precision: str | None = None) -> None:
        w = as_array(weight, "weight")
        inputs: list[Named] = [("weight", w)]
        b = None
        if bias is not None:
            b = as_array(bias, "bias")
            inputs.append(("bias", b))
        compute, dtype = promote(*inputs)
        check_precision(precision)
        check_parameters(w, b)
        self.in_features, self.out_features = w.shape
        self.dtype = dtype
        self._precision = precision
        # Converted as in `linear`, with the same contiguous axis, so that results have the same bits.
        self._weight = np.array(cast_layout(w, stored_dtype(w, dtype)), order="K")
        self._bias = None if b is None else np.array(cast_layout(b, compute), order="C")
        if self._weight.itemsize not in self._weight.strides:
            self._weight = np.ascontiguousarray(self._weight)
        self._packed: tuple[object, str, backend.PackedLinear] | None = None
        if self._weight.size:
            self._pack()

    def __call__(self, x: ArrayLike, *, out: Array | None = None) -> Array:
        """``x @ weight + bias``.

        Parameters
        ----------
        x : array_like, (..., in_features)
            Real numbers.
        out : ndarray, (..., out_features), optional
            Array of the result's dtype that the result is written to; it shares no memory with `x`.

        Returns
        -------
        ndarray, (..., out_features)
            In the dtype to which `x` and :attr:`dtype` promote. If that is another one, :func:`linear` computes the
            result without the packed weights, except for float32 with 16-bit weights.

        Raises
        ------
        ValueError
            If shapes do not match.
        TypeError
            If `x` is not real, or `out` has another dtype.

        Examples
        --------
        >>> import numpy as np
        >>> import headwise as hw
        >>> project = hw.PackedLinear(np.ones((3, 2)))
        >>> project(np.ones((4, 5, 3)), out=np.empty((4, 5, 2))).shape
        (4, 5, 2)
        """
        a = as_array(x, "x")
        ready = a.dtype == self.dtype and is_canonical_or_16bit(a)
        dtype = a.dtype if ready else promote(("x", a), ("weight", np.empty(0, self.dtype)))[1]
        shape = a.shape
        if not shape:
            raise ValueError("x: a scalar, expected (..., in_features)")
        if shape[-1] != self.in_features:
            raise ValueError(f"x: shape {shape}, expected (..., {self.in_features})")
        if dtype != self.dtype and not (dtype == FLOAT32 and self._weight.itemsize == 2):
            return linear(a, self._weight, self._bias, precision=self._precision, out=out)
        shape = (*shape[:-1], self.out_features)
        if out is not None:
            check_out(out, shape, dtype, ("x", a))
        result = resolve_out(out, shape, dtype, contiguous=True)
        if result.size:
            if self.in_features == 0:
                result[...] = 0 if self._bias is None else self._bias
            else:
                a = a if ready else cast_layout(a, dtype, last=True)
                self._pack()(a.reshape((-1, self.in_features)), result.reshape((-1, self.out_features)))
        return finalize(result, out, dtype)

    def __repr__(self) -> str:
        return f"{type(self).__name__}(in_features={self.in_features}, out_features={self.out_features}, {self.dtype})"

    def __reduce__(self) -> tuple[Any, ...]:
        # The bias of 16-bit weights is float32, which would promote.
        bias = None if self._bias is None else self._bias.astype(self.dtype)
        return partial(type(self), precision=self._precision), (self._weight, bias)

    def _pack(self) -> backend.PackedLinear:
        """The weights packed for the current backend and precision; the native core tracks the instruction set."""
        running, precision = current(), check_precision(self._precision)
        packed = self._packed
        if packed is None or packed[0] is not running or packed[1] != precision:
            packed = self._packed = (running, precision, running.pack_linear(self._weight, self._bias, precision))
        return packed[2]
