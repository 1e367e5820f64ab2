"""Gradients of the rotary position embedding."""

from __future__ import annotations

from typing import TYPE_CHECKING

from headwise._base.arrays import as_array, check_dtype, promote
from headwise._base.ieee import cast_dtype, ieee
from headwise._base.scalars import check_flag
from headwise._base.typing import FLOAT64
from headwise._ops.gradients.results import as_gradient, finish, sum_to_shape
from headwise._ops.rope import apply_rope

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import ArrayLike

    from headwise._base.typing import Array

ROPE_NAMES = ("x", "cos", "sin")


def apply_rope_backward(d_out: ArrayLike, cos: ArrayLike, sin: ArrayLike, *, interleaved: bool = False) -> Array:
    """The gradient of :func:`apply_rope` by `x`: the inverse rotation of `d_out`.

    :func:`vjp` has the gradients by `cos` and `sin` too.

    Parameters
    ----------
    d_out : array_like, (..., seq_len, dim)
        The gradient of a loss by the result.
    cos, sin : array_like, (..., seq_len, dim / 2)
        As in the forward pass.
    interleaved : bool
        As in the forward pass.

    Returns
    -------
    ndarray, (..., seq_len, dim)
        In the dtype to which the arrays promote. float16 and bfloat16 are computed in float32 and rounded once.

    Raises
    ------
    ValueError, TypeError
        As in :func:`apply_rope`.

    Examples
    --------
    >>> import numpy as np
    >>> import headwise as hw
    >>> hw.apply_rope_backward([[0.0, 1.0]], [[0.0]], [[1.0]])  # of a rotation by 90 degrees
    array([[1., 0.]])
    """
    d, s = as_array(d_out, "d_out"), as_array(sin, "sin")
    for name, a in (("d_out", d), ("sin", s)):
        check_dtype(a.dtype, name)
    if not d.ndim or d.shape[-1] % 2:
        raise ValueError(f"d_out: shape {d.shape}, expected an even last axis")
    opposite = -(s.astype(FLOAT64) if s.dtype.kind in "biu" else s)
    return apply_rope(d, cos, opposite, interleaved=interleaved)


def rope_gradients(
    d_out: ArrayLike, x: ArrayLike, cos: ArrayLike, sin: ArrayLike, interleaved: bool, wrt: tuple[str, ...]
) -> dict[str, Array]:
    """The gradients of ``wrt``."""
    given = {"x": as_array(x, "x"), "cos": as_array(cos, "cos"), "sin": as_array(sin, "sin")}
    compute, dtype = promote(*given.items())
    a = given["x"]
    interleaved = check_flag(interleaved, "interleaved")
    d = as_gradient(d_out, "d_out", a.shape, dtype, "x")
    found: dict[str, Array] = {}
    if "x" in wrt:
        opposite = -given["sin"].astype(compute)
        found["x"] = finish(apply_rope(d, given["cos"], opposite, interleaved=interleaved), a, dtype)
    if "cos" in wrt or "sin" in wrt:
        by_cos, by_sin = _by_tables(d, a, compute, interleaved)
        by_tables: dict[str, Array] = {"cos": by_cos, "sin": by_sin}
        for name in {"cos", "sin"}.intersection(wrt):
            found[name] = finish(sum_to_shape(by_tables[name], given[name].shape), given[name], dtype)
    return found


@ieee
def _by_tables(d: Array, x: Array, compute: np.dtype[np.floating], interleaved: bool) -> tuple[Array, Array]:
    """The gradients by the cosine and the sine of each pair, not summed over broadcast axes."""
    half = x.shape[-1] // 2
    first, second = (slice(0, None, 2), slice(1, None, 2)) if interleaved else (slice(0, half), slice(half, None))
    a, b, d_a, d_b = (cast_dtype(y[..., part], compute) for y in (x, d) for part in (first, second))
    return d_a * a + d_b * b, d_b * a - d_a * b
