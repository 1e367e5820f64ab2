"""The public functions: every check, once, and the way from the caller's arrays to a backend's normal form.

Attention is in :mod:`headwise._sdpa`, that of packed sequences in :mod:`headwise._varlen`, the linear map in
:mod:`headwise._linear`, rotary embedding and ALiBi in :mod:`headwise._positions`, configuration in
:mod:`headwise._config` and :mod:`headwise._precision`; what they have in common in :mod:`headwise._arrays`.
"""

from __future__ import annotations

import math
from functools import lru_cache
from typing import TYPE_CHECKING, Any

import numpy as np

from headwise._base.arrays import as_array, cast_layout, is_canonical_or_16bit, promote
from headwise._base.outputs import allocate, check_out, finalize, resolve_out
from headwise._base.scalars import check_axis, check_flag, check_rate, check_real, check_rng
from headwise._ops.attention.dense import flash_attention, scaled_dot_product_attention
from headwise._ops.attention.varlen import varlen_attention
from headwise._ops.linear import PackedLinear, linear
from headwise._ops.positions import add_alibi, alibi_bias, alibi_slopes, apply_rope
from headwise._runtime import backend as _backend
from headwise._runtime.config import config, get_num_threads, list_targets, set_num_threads, set_target, show_config
from headwise._runtime.precision import get_precision, precision, set_precision

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import ArrayLike

    from headwise._base.typing import Array

__all__ = [
    "PackedLinear",
    "add_alibi",
    "alibi_bias",
    "alibi_slopes",
    "apply_rope",
    "config",
    "dropout",
    "flash_attention",
    "get_num_threads",
    "get_precision",
    "layer_normalization",
    "linear",
    "list_targets",
    "log_softmax",
    "logsumexp",
    "precision",
    "scaled_dot_product_attention",
    "set_num_threads",
    "set_precision",
    "set_target",
    "show_config",
    "softmax",
    "varlen_attention",
]


# --- softmax and kin ---


def softmax(x: ArrayLike, axis: int = -1, *, out: Array | None = None) -> Array:
    """``exp(x) / sum(exp(x))`` along an axis, with the maximum subtracted first so that large entries do not overflow.

    Parameters
    ----------
    x : array_like
        Any shape with at least one axis.
    axis : int
        The axis that sums to 1.
    out : ndarray, optional
        Where to write the result, of its shape and dtype; it may be `x` itself.

    Returns
    -------
    ndarray
        Of the shape of `x`, in its dtype; float64 for integers and bool. float16 and bfloat16 are computed in float32
        and rounded once. NaN along an axis of nothing but -inf.

    Raises
    ------
    ValueError
        If `axis` is not one of `x`, or `out` does not fit.
    TypeError
        If `x` is not real, or `axis` no integer.

    Examples
    --------
    >>> import headwise as hw
    >>> hw.softmax([[1000.0, 1000.0], [0.0, 0.0]])
    array([[0.5, 0.5],
           [0.5, 0.5]])
    """
    return _normalize(_backend.current().softmax, x, axis, out)


def log_softmax(x: ArrayLike, axis: int = -1, *, out: Array | None = None) -> Array:
    """``x - log(sum(exp(x)))`` along an axis: the logarithm of :func:`softmax`, without its underflow.

    Parameters
    ----------
    x : array_like
        Any shape with at least one axis.
    axis : int
        The axis along which the exponentials of the result sum to 1.
    out : ndarray, optional
        Where to write the result, of its shape and dtype; it may be `x` itself.

    Returns
    -------
    ndarray
        Of the shape of `x`, in its dtype; float64 for integers and bool. float16 and bfloat16 are computed in float32
        and rounded once.

    Raises
    ------
    ValueError, TypeError
        As :func:`softmax`.

    Examples
    --------
    >>> import headwise as hw
    >>> hw.log_softmax([0.0, 1000.0])
    array([-1000.,     0.])
    """
    return _normalize(_backend.current().log_softmax, x, axis, out)


def logsumexp(x: ArrayLike, axis: int = -1, *, keepdims: bool = False) -> Array:
    """``log(sum(exp(x)))`` along an axis, with the maximum taken out first so that large entries do not overflow.

    Parameters
    ----------
    x : array_like
        Any shape with at least one axis.
    axis : int
        The axis to sum along.
    keepdims : bool
        Keep that axis, with size 1.

    Returns
    -------
    ndarray
        In the dtype of `x`; float64 for integers and bool. float16 and bfloat16 are computed in float32 and rounded
        once. -inf for an empty axis and for one of nothing but -inf.

    Raises
    ------
    ValueError, TypeError
        As :func:`softmax`.

    Examples
    --------
    >>> import headwise as hw
    >>> round(float(hw.logsumexp([1000.0, 1000.0])), 3)
    1000.693
    """
    a = as_array(x, "x")
    ready = is_canonical_or_16bit(a)
    dtype = a.dtype if ready else promote(("x", a))[1]
    axis = check_axis(axis, a)
    keepdims = check_flag(keepdims, "keepdims")
    shape = a.shape
    lanes = outer, n, inner = _lanes(shape, axis)
    result = allocate((outer, inner), dtype)
    if n == 0:
        result.fill(-np.inf)
    elif result.size:
        _backend.current().logsumexp(a.reshape(lanes) if ready else _as_lanes(a, lanes, dtype), result)
    middle = (1,) if keepdims else ()
    return result.reshape(shape[:axis] + middle + shape[axis + 1 :])


def _normalize(kernel: Callable[[Array, Array], None], x: ArrayLike, axis: int, out: Array | None) -> Array:
    a = as_array(x, "x")
    ready = is_canonical_or_16bit(a)
    dtype = a.dtype if ready else promote(("x", a))[1]
    axis = check_axis(axis, a)
    shape = a.shape
    if out is not None:
        check_out(out, shape, dtype, ("x", a), inplace=a)
    result = resolve_out(out, shape, dtype, contiguous=True)
    if result.size:
        lanes = _lanes(shape, axis)
        kernel(a.reshape(lanes) if ready else _as_lanes(a, lanes, dtype), result.reshape(lanes))
    return finalize(result, out, dtype)


@lru_cache(maxsize=256)
def _lanes(shape: tuple[int, ...], axis: int) -> tuple[int, int, int]:
    """(outer, n, inner), with n the size of ``axis``."""
    return math.prod(shape[:axis]), shape[axis], math.prod(shape[axis + 1 :])


def _as_lanes(a: Array, lanes: tuple[int, int, int], dtype: np.dtype[Any]) -> Array:
    _, n, inner = lanes
    form = cast_layout(a, dtype).reshape(lanes)
    contiguous = form.strides[2] == form.itemsize if inner > 1 else n <= 1 or form.strides[1] == form.itemsize
    return form if contiguous else np.ascontiguousarray(form)


# --- what stands around attention ---


def layer_normalization(
    x: ArrayLike,
    gamma: ArrayLike,
    beta: ArrayLike,
    *,
    eps: float = 1e-5,
    axis: int = -1,
    out: Array | None = None,
) -> Array:
    """Shift and scale ``x`` to mean 0 and variance 1 along an axis, then multiply by `gamma` and add `beta`.

    ``(x - mean) / sqrt(variance + eps) * gamma + beta`` [1]_, with the variance that divides by n.

    Parameters
    ----------
    x : array_like
        Any shape with at least one axis.
    gamma, beta : array_like, (n,)
        With n the size of `axis`.
    eps : float
        Added to the variance; not negative.
    axis : int
        The axis to normalise.
    out : ndarray, optional
        Where to write the result, of its shape and dtype; it may be `x` itself.

    Returns
    -------
    ndarray
        Of the shape of `x`, in the dtype that `x`, `gamma` and `beta` promote to. float16 and bfloat16 are computed in
        float32 and rounded once.

    Raises
    ------
    ValueError
        If a shape does not fit, or `eps` is negative.
    TypeError
        If an argument is not real.

    References
    ----------
    .. [1] J. L. Ba, J. R. Kiros, G. E. Hinton, "Layer Normalization", 2016, equation (4).

    Examples
    --------
    >>> import numpy as np
    >>> import headwise as hw
    >>> hw.layer_normalization([1.0, 3.0], gamma=np.ones(2), beta=np.zeros(2), eps=0.0)
    array([-1.,  1.])
    """
    a, g, b = as_array(x, "x"), as_array(gamma, "gamma"), as_array(beta, "beta")
    ready = is_canonical_or_16bit(a, g, b)
    dtype = a.dtype if ready else promote(("x", a), ("gamma", g), ("beta", b))[1]
    axis = check_axis(axis, a)
    n = a.shape[axis]
    for name, parameter in (("gamma", g), ("beta", b)):
        if parameter.shape != (n,):
            raise ValueError(f"{name}: shape {parameter.shape}, expected ({n},) for axis {axis} of x {a.shape}")
    epsilon = check_real(eps, "eps")
    if epsilon < 0.0:
        raise ValueError(f"eps: {epsilon}, expected at least 0")
    if out is not None:
        check_out(out, a.shape, dtype, ("x", a), ("gamma", g), ("beta", b), inplace=a)
    last = axis == a.ndim - 1
    moved = a if last else np.moveaxis(a, axis, -1)
    result = resolve_out(out if last else None, moved.shape, dtype, contiguous=True)
    if result.size:
        if not (ready and last):
            moved, g, b = (cast_layout(array, dtype, last=True) for array in (moved, g, b))
        _backend.current().layer_normalization(moved.reshape((-1, n)), g, b, epsilon, result.reshape((-1, n)))
    return finalize(result if last else np.moveaxis(result, -1, axis), out, dtype)


def dropout(x: ArrayLike, rate: float, *, training: bool = True, rng: int | np.random.Generator | None = None) -> Array:
    """Set entries to 0 at random and divide the others by ``1 - rate``, which leaves the expectation as it was.

    Parameters
    ----------
    x : array_like
    rate : float
        The probability in [0, 1) that an entry is dropped [1]_.
    training : bool
        If False, `x` is returned as it is.
    rng : int or numpy.random.Generator, optional
        Seed or source of the randomness; NumPy's global state is neither read nor advanced.

    Returns
    -------
    ndarray
        Of the shape of `x`, in its dtype; float64 for integers and bool. `x` itself where nothing is dropped.

    Raises
    ------
    ValueError
        If `rate` is not in [0, 1).
    TypeError
        If an argument is of a wrong type.

    References
    ----------
    .. [1] N. Srivastava et al., "Dropout: A Simple Way to Prevent Neural Networks from Overfitting", 2014.

    Examples
    --------
    >>> import numpy as np
    >>> import headwise as hw
    >>> x = hw.dropout(np.ones(1000), 0.2, rng=0)
    >>> np.unique(x), bool(abs(x.mean() - 1) < 0.05)
    (array([0.  , 1.25]), True)
    """
    a = as_array(x, "x")
    compute, dtype = promote(("x", a))
    rate = check_rate(rate, "rate")
    training = check_flag(training, "training")
    generator = check_rng(rng) if training or rng is not None else None
    if generator is None or not training or rate == 0.0:
        return a if a.dtype == dtype else a.astype(dtype)
    kept = generator.random(a.shape, dtype=np.float32) >= rate
    result = np.zeros(a.shape, compute)
    with np.errstate(over="ignore"):
        np.multiply(cast_layout(a, compute), 1.0 / (1.0 - rate), out=result, where=kept)
    return finalize(result, None, dtype)
