"""Gradients of activation functions and of their gated forms."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from headwise._base.arrays import as_array, is_canonical_or_16bit, promote
from headwise._base.outputs import allocate
from headwise._ops.activation import as_rows, check_gate_and_up, gelu_named
from headwise._ops.gradients.results import as_gradient, finish, gradients_of
from headwise._runtime.backend import current

if TYPE_CHECKING:
    from numpy.typing import ArrayLike

    from headwise._base.typing import Array
    from headwise._ops.activation import Approximate

GATED_NAMES = ("gate", "up")


def gelu_backward(d_out: ArrayLike, x: ArrayLike, *, approximate: Approximate = "none") -> Array:
    """The gradient of :func:`gelu` by its argument: ``d_out * (Phi(x) + x * phi(x))``, with the normal density phi.

    Parameters
    ----------
    d_out : array_like, (...)
        The gradient of a loss by the result.
    x : array_like, (...)
        The argument of the forward pass, as the next one.
    approximate : {"none", "tanh"}

    Returns
    -------
    ndarray, (...)
        In the dtype of `x`; float64 for integers. 16-bit types are computed in float32 and rounded once. The derivative
        is 1 at inf and 0 at -inf.

    Raises
    ------
    ValueError
        If the shapes differ, or `approximate` is unknown.
    TypeError
        If an array is not real.

    Examples
    --------
    >>> import headwise as hw
    >>> hw.gelu_backward([1.0, 2.0], [0.0, 0.0])
    array([0.5, 1. ])
    """
    return activation_gradient(gelu_named(approximate), d_out, x)


def silu_backward(d_out: ArrayLike, x: ArrayLike) -> Array:
    """The gradient of :func:`silu` by its argument: ``d_out * s * (1 + x * (1 - s))`` with ``s = 1 / (1 + exp(-x))``.

    Parameters
    ----------
    d_out : array_like, (...)
        The gradient of a loss by the result.
    x : array_like, (...)
        The argument of the forward pass.

    Returns
    -------
    ndarray, (...)
        As of :func:`gelu_backward`.

    Raises
    ------
    ValueError, TypeError
        As in :func:`gelu_backward`.

    Examples
    --------
    >>> import headwise as hw
    >>> hw.silu_backward([1.0, 2.0], [0.0, 0.0])
    array([0.5, 1. ])
    """
    return activation_gradient("silu", d_out, x)


def swiglu_backward(d_out: ArrayLike, gate: ArrayLike, up: ArrayLike) -> Any:
    """Gradients of :func:`swiglu` by its arguments: ``d_out * up * silu'(gate)`` and ``d_out * silu(gate)``.

    Parameters
    ----------
    d_out : array_like, (...)
        The gradient of a loss by the result.
    gate, up : array_like, (...)
        The arguments of the forward pass.

    Returns
    -------
    d_gate, d_up : ndarray, (...)
        A named tuple, each in the dtype of its argument. 16-bit types are computed in float32 and rounded once.

    Raises
    ------
    ValueError
        If the shapes differ.
    TypeError
        If an array is not real.

    Examples
    --------
    >>> import headwise as hw
    >>> d_gate, d_up = hw.swiglu_backward([1.0], [0.0], [6.0])
    >>> d_gate, d_up
    (array([3.]), array([0.]))
    """
    return gradients_of(GATED_NAMES, gated_gradients("silu", d_out, gate, up))


def geglu_backward(d_out: ArrayLike, gate: ArrayLike, up: ArrayLike, *, approximate: Approximate = "none") -> Any:
    """Gradients of :func:`geglu` by its arguments: ``d_out * up * gelu'(gate)`` and ``d_out * gelu(gate)``.

    Parameters
    ----------
    d_out : array_like, (...)
        The gradient of a loss by the result.
    gate, up : array_like, (...)
        The arguments of the forward pass, as the next one.
    approximate : {"none", "tanh"}

    Returns
    -------
    d_gate, d_up : ndarray, (...)
        As of :func:`swiglu_backward`.

    Raises
    ------
    ValueError, TypeError
        As in :func:`swiglu_backward` and :func:`gelu`.

    Examples
    --------
    >>> import headwise as hw
    >>> d_gate, d_up = hw.geglu_backward([1.0], [0.0], [6.0])
    >>> d_gate, d_up
    (array([3.]), array([0.]))
    """
    return gradients_of(GATED_NAMES, gated_gradients(gelu_named(approximate), d_out, gate, up))


def activation_gradient(function: str, d_out: ArrayLike, x: ArrayLike) -> Array:
    """``function`` as a backend knows it."""
    a, d = as_array(x, "x"), as_array(d_out, "d_out")
    dtype = a.dtype if is_canonical_or_16bit(a, d) else promote(("x", a))[1]
    d = as_gradient(d, "d_out", a.shape, dtype, "x")
    d_x = allocate(a.shape, dtype)
    if d_x.size:
        current().activation_backward(as_rows(d, dtype), as_rows(a, dtype), None, as_rows(d_x, dtype), None, function)
    return finish(d_x, a, dtype)


def gated_gradients(function: str, d_out: ArrayLike, gate: ArrayLike, up: ArrayLike) -> dict[str, Array]:
    g, u, d = as_array(gate, "gate"), as_array(up, "up"), as_array(d_out, "d_out")
    dtype = g.dtype if is_canonical_or_16bit(g, u, d) else promote(("gate", g), ("up", u))[1]
    check_gate_and_up(g, u)
    d = as_gradient(d, "d_out", g.shape, dtype, "gate")
    d_gate, d_up = allocate(g.shape, dtype), allocate(g.shape, dtype)
    if d_gate.size:
        current().activation_backward(
            as_rows(d, dtype),
            as_rows(g, dtype),
            as_rows(u, dtype),
            as_rows(d_gate, dtype),
            as_rows(d_up, dtype),
            function,
        )
    return {"gate": finish(d_gate, g, dtype), "up": finish(d_up, u, dtype)}
