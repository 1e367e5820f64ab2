"""The linear map ``x @ weight + bias``, for weights that come once and for weights that stay."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from headwise._base.arrays import as_array, cast_layout, is_canonical, is_canonical_or_16bit, promote
from headwise._base.outputs import check_out, finalize, resolve_out
from headwise._runtime import backend as _backend
from headwise._runtime.precision import check_precision

if TYPE_CHECKING:
    from numpy.typing import ArrayLike

    from headwise._base.typing import Array, Named


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
    weight : array_like, (in_features, out_features)
    bias : array_like, (out_features,), optional
    precision : {"highest", "high", "medium"}, optional
        How exactly products of float32 and float16 are computed, see :func:`set_precision`; None is what
        :func:`get_precision` says.
    out : ndarray, optional
        Where to write the result, of its shape and dtype, sharing no memory with an input.

    Returns
    -------
    ndarray, (..., out_features)
        In the dtype that the arguments promote to. float16 and bfloat16 are summed up in float32 and rounded once, as
        they are: neither `x` nor `weight` is copied to float32.

    Raises
    ------
    ValueError
        If a shape does not fit, or `precision` is unknown.
    TypeError
        If an argument is not real.

    See Also
    --------
    PackedLinear : for weights that many calls share.

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
    _check_parameters(w, b)
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
                a, w = cast_layout(a, dtype, last=True), cast_layout(w, dtype)
                b = None if b is None else cast_layout(b, compute, last=True)
                if w.itemsize not in w.strides:
                    w = np.ascontiguousarray(w)
            _backend.current().linear(a.reshape((-1, inner)), w, b, result.reshape((-1, columns)), precision)
    return finalize(result, out, dtype)


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
        _check_parameters(w, b)
        self.in_features, self.out_features = w.shape
        self.dtype = dtype
        self._precision = precision
        # Copies, converted as `linear` converts, with the contiguous axis that it would have: the bits are the same.
        self._weight = np.array(cast_layout(w, dtype), order="K")
        self._bias = None if b is None else np.array(cast_layout(b, compute), order="C")
        if self._weight.itemsize not in self._weight.strides:
            self._weight = np.ascontiguousarray(self._weight)
        self._packed: tuple[object, str, _backend.PackedLinear] | None = None
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
        # The bias of halves is float32, and would promote.
        bias = None if self._bias is None else self._bias.astype(self.dtype)
        return _unpickle, (type(self), self._weight, bias, self._precision)

    def _pack(self) -> _backend.PackedLinear:
        """The weights packed for what is in force; the native core looks at the instruction set by itself."""
        backend, precision = _backend.current(), check_precision(self._precision)
        packed = self._packed
        if packed is None or packed[0] is not backend or packed[1] != precision:
            packed = self._packed = (backend, precision, backend.pack_linear(self._weight, self._bias, precision))
        return packed[2]


def _unpickle(cls: type[PackedLinear], weight: Array, bias: Array | None, precision: str | None) -> PackedLinear:
    return cls(weight, bias, precision=precision)


def _check_parameters(weight: Array, bias: Array | None) -> None:
    if weight.ndim != 2:
        raise ValueError(f"weight: shape {weight.shape}, expected (in_features, out_features)")
    if bias is not None and bias.shape != weight.shape[1:]:
        raise ValueError(f"bias: shape {bias.shape}, expected ({weight.shape[1]},)")
