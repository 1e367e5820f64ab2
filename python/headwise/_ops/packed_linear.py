"""The linear map with constant weights, packed once."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np

from headwise._base.arrays import as_array, cast_layout, is_canonical_or_16bit, promote
from headwise._base.outputs import check_out, finalize, resolve_out
from headwise._ops.linear import check_parameters, linear
from headwise._runtime.backend import current
from headwise._runtime.precision import check_precision

if TYPE_CHECKING:
    from numpy.typing import ArrayLike

    from headwise._base.typing import Array, Named
    from headwise._runtime import backend


class PackedLinear:
    """:func:`linear` with weights that stay: they are copied once, into the form that products read fastest, and not
    rearranged at every call.

    The copy is made when the object is; a later change of the caller's arrays changes nothing here. Results have the
    bits of :func:`linear`.

    Parameters
    ----------
    weight : array_like, (in_features, out_features)
    bias : array_like, (out_features,), optional
    precision : {"highest", "high", "medium"}, optional
        As for :func:`linear`; None is what it means at the time of a call.

    Attributes
    ----------
    in_features, out_features : int
    dtype : numpy.dtype
        What `weight` and `bias` promote to.

    Raises
    ------
    ValueError
        If a shape does not fit, or `precision` is unknown.
    TypeError
        If an argument is not real.

    Notes
    -----
    The packed form belongs to the backend, the instruction set and the precision in force; when one of them has
    changed, the next call packs anew, from the copy. Any number of threads may call one object. Copies and pickles are
    made from the weights, and pack for themselves.

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
        # Copies, converted as `linear` converts, with the contiguous axis that it would have: the bits are the same.
        self._weight = np.array(cast_layout(w, dtype), order="K")
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
        out : ndarray, optional
            Where to write the result, of its shape and dtype, sharing no memory with `x`.

        Returns
        -------
        ndarray, (..., out_features)
            In the dtype that `x` and the weights promote to. Where that is not :attr:`dtype`, it is computed by
            :func:`linear`, which gains nothing from packing.

        Raises
        ------
        ValueError
            If a shape does not fit.
        TypeError
            If `x` is not real.

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
        dtype = a.dtype if ready else promote(("x", a), ("weight", self._weight))[1]
        shape = a.shape
        if not shape:
            raise ValueError("x: a scalar, expected (..., in_features)")
        if shape[-1] != self.in_features:
            raise ValueError(f"x: shape {shape}, expected (..., {self.in_features})")
        if dtype != self.dtype:
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
        """The weights packed for what is in force; the native core looks at the instruction set by itself."""
        running, precision = current(), check_precision(self._precision)
        packed = self._packed
        if packed is None or packed[0] is not running or packed[1] != precision:
            packed = self._packed = (running, precision, running.pack_linear(self._weight, self._bias, precision))
        return packed[2]
