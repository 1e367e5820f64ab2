"""Activation functions and their gated forms."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from headwise._base.arrays import as_array, cast_layout, is_canonical_or_16bit, promote
from headwise._base.messages import shown
from headwise._base.outputs import check_out, finalize, resolve_out
from headwise._runtime.backend import current

if TYPE_CHECKING:
    from typing import Any, TypeAlias

    import numpy as np
    from numpy.typing import ArrayLike

    from headwise._base.typing import Array, Named

    Approximate: TypeAlias = Literal["none", "tanh"]


def gelu(x: ArrayLike, *, approximate: Approximate = "none", out: Array | None = None) -> Array:
    """Gaussian error linear unit: ``x * Phi(x)``, where Phi is the distribution function of the normal distribution.

    ``Phi(x) = (1 + erf(x / sqrt(2))) / 2``; [1]_.

    Parameters
    ----------
    x : array_like, (...)
        Real numbers.
    approximate : {"none", "tanh"}
        "tanh" computes ``x / 2 * (1 + tanh(sqrt(2 / pi) * (x + 0.044715 * x ** 3)))``, which models such as GPT-2
        ("gelu_new") and Gemma ("gelu_pytorch_tanh") were trained with. It differs from "none" by up to 5e-4.
    out : ndarray, optional
        Array of the result's shape and dtype that the result is written to; it may be `x` itself.

    Returns
    -------
    ndarray, (...)
        In the shape and dtype of `x`; float64 for integers and bool. float16 and bfloat16 are computed in float32 and
        rounded once. The result at -inf is the limit -0, where PyTorch has NaN.

    Raises
    ------
    ValueError
        If `approximate` is unknown, or `out` has another shape, is read-only or partly overlaps `x`.
    TypeError
        If `x` is not real, `approximate` is not a string, or `out` has another dtype.

    References
    ----------
    .. [1] D. Hendrycks, K. Gimpel, "Gaussian Error Linear Units (GELUs)", 2016.

    Examples
    --------
    >>> import headwise as hw
    >>> hw.gelu([-1.0, 0.0, 2.0]).round(3)
    array([-0.159,  0.   ,  1.954])
    """
    return _activate(gelu_named(approximate), ("x", as_array(x, "x")), None, out)


def silu(x: ArrayLike, *, out: Array | None = None) -> Array:
    """Sigmoid linear unit, or swish: ``x / (1 + exp(-x))`` [1]_.

    Parameters
    ----------
    x : array_like, (...)
        Real numbers.
    out : ndarray, optional
        Array of the result's shape and dtype that the result is written to; it may be `x` itself.

    Returns
    -------
    ndarray, (...)
        As of :func:`gelu`.

    Raises
    ------
    ValueError, TypeError
        As in :func:`gelu`.

    References
    ----------
    .. [1] S. Elfwing, E. Uchibe, K. Doya, "Sigmoid-Weighted Linear Units for Neural Network Function Approximation in
       Reinforcement Learning", 2017.

    Examples
    --------
    >>> import headwise as hw
    >>> hw.silu([-1.0, 0.0, 2.0]).round(3)
    array([-0.269,  0.   ,  1.762])
    """
    return _activate("silu", ("x", as_array(x, "x")), None, out)


def swiglu(gate: ArrayLike, up: ArrayLike, *, out: Array | None = None) -> Array:
    """``silu(gate) * up``, the product in the feed-forward layer of the Llama family [1]_.

    Parameters
    ----------
    gate, up : array_like, (...)
        Real numbers, of the same shape. They may be the two halves of a joined projection, as views.
    out : ndarray, optional
        Array of the result's shape and dtype that the result is written to; it may be `gate` itself.

    Returns
    -------
    ndarray, (...)
        In the dtype to which `gate` and `up` promote; float64 for integers and bool. float16 and bfloat16 are computed
        in float32, the product included, and rounded once.

    Raises
    ------
    ValueError
        If the shapes differ, or `out` has another shape, is read-only, overlaps `up` or partly overlaps `gate`.
    TypeError
        If an argument is not real, or `out` has another dtype.

    References
    ----------
    .. [1] N. Shazeer, "GLU Variants Improve Transformer", 2020, equation (6).

    Examples
    --------
    >>> import numpy as np
    >>> import headwise as hw
    >>> projected = np.array([[2.0, 0.0, 3.0, 5.0]])
    >>> hw.swiglu(projected[:, :2], projected[:, 2:]).round(3)
    array([[5.285, 0.   ]])
    """
    return _activate("silu", ("gate", as_array(gate, "gate")), as_array(up, "up"), out)


def geglu(gate: ArrayLike, up: ArrayLike, *, approximate: Approximate = "none", out: Array | None = None) -> Array:
    """``gelu(gate) * up``, the product in the feed-forward layer of Gemma and T5 v1.1 [1]_.

    Parameters
    ----------
    gate, up : array_like, (...)
        As of :func:`swiglu`.
    approximate : {"none", "tanh"}
        As of :func:`gelu`.
    out : ndarray, optional
        Array of the result's shape and dtype that the result is written to; it may be `gate` itself.

    Returns
    -------
    ndarray, (...)
        As of :func:`swiglu`.

    Raises
    ------
    ValueError, TypeError
        As in :func:`swiglu` and :func:`gelu`.

    References
    ----------
    .. [1] N. Shazeer, "GLU Variants Improve Transformer", 2020, equation (5).

    Examples
    --------
    >>> import headwise as hw
    >>> hw.geglu([2.0, 0.0], [3.0, 5.0]).round(3)
    array([5.863, 0.   ])
    """
    return _activate(gelu_named(approximate), ("gate", as_array(gate, "gate")), as_array(up, "up"), out)


def gelu_named(approximate: object) -> str:
    """The name by which a backend knows the function."""
    if isinstance(approximate, str):
        if approximate == "none":
            return "gelu"
        if approximate == "tanh":
            return "gelu_tanh"
    kind = ValueError if isinstance(approximate, str) else TypeError
    raise kind(f"approximate: {shown(approximate)}, expected 'none' or 'tanh'")


def _activate(function: str, x: Named, up: Array | None, out: Array | None) -> Array:
    a = x[1]
    inputs = [x] if up is None else [x, ("up", up)]
    arrays = [array for _, array in inputs]
    ready = is_canonical_or_16bit(*arrays)
    dtype = a.dtype if ready else promote(*inputs)[1]
    if up is not None:
        check_gate_and_up(a, up)
    if out is not None:
        check_out(out, a.shape, dtype, *inputs, inplace=a)
    result = resolve_out(out, a.shape, dtype, contiguous=True)
    if result.size:
        rows = as_rows(a, dtype)
        current().activation(rows, None if up is None else as_rows(up, dtype), as_rows(result, dtype), function)
    return finalize(result, out, dtype)


def check_gate_and_up(gate: Array, up: Array) -> None:
    if up.shape != gate.shape:
        raise ValueError(f"up: shape {up.shape}, expected that of gate, {gate.shape}")


def as_rows(a: Array, dtype: np.dtype[Any]) -> Array:
    """``a`` in ``dtype`` as (rows, n), the last axis contiguous; a view if ``a`` is contiguous or a part of rows."""
    return cast_layout(a, dtype, last=True).reshape((-1, a.shape[-1] if a.ndim else 1))
