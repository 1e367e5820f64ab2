"""Layer normalisation."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from headwise._base.arrays import as_array, cast_layout, is_canonical_or_16bit, promote
from headwise._base.outputs import check_out, finalize, resolve_out
from headwise._base.scalars import check_axis, check_real
from headwise._runtime.backend import current

if TYPE_CHECKING:
    from numpy.typing import ArrayLike

    from headwise._base.typing import Array


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

    ``(x - mean) / sqrt(variance + eps) * gamma + beta``, equation (4) of [1]_. The variance divides by n.

    Parameters
    ----------
    x : array_like, (..., n, ...)
        Real numbers; at least one axis.
    gamma, beta : array_like, (n,)
        The scale and the shift of each entry along the axis.
    eps : float
        Added to the variance; at least 0.
    axis : int
        The axis to normalise.
    out : ndarray, optional
        Array of the result's shape and dtype that the result is written to; it may be `x` itself.

    Returns
    -------
    ndarray, (..., n, ...)
        In the shape of `x` and the dtype to which `x`, `gamma` and `beta` promote. float16 and bfloat16 are computed in
        float32 and rounded once.

    Raises
    ------
    ValueError
        If `gamma` or `beta` is not of shape (n,), `eps` is negative, or `out` does not have the result's shape.
    TypeError
        If an argument is not real.

    References
    ----------
    .. [1] J. L. Ba, J. R. Kiros, G. E. Hinton, "Layer Normalization", 2016.

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
        current().layer_normalization(moved.reshape((-1, n)), g, b, epsilon, result.reshape((-1, n)))
    return finalize(result if last else np.moveaxis(result, -1, axis), out, dtype)
