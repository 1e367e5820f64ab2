"""What gradients are asked for, and how they are returned."""

from __future__ import annotations

from collections import namedtuple
from functools import lru_cache
from typing import TYPE_CHECKING, Any

from headwise._base.arrays import as_array, cast_layout, check_dtype, is_bfloat16
from headwise._base.ieee import cast_dtype, ieee
from headwise._base.messages import shown

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    import numpy as np

    from headwise._base.typing import Array, Shape


def check_wrt(wrt: object, known: Sequence[str], given: Mapping[str, Any]) -> tuple[str, ...]:
    """``wrt=``, the names of the arguments whose gradients are asked for; a str is one name.

    ``known`` are the arguments that have gradients, ``given`` the arguments of the call.
    """
    names = (wrt,) if isinstance(wrt, str) else wrt
    if not isinstance(names, (tuple, list)):
        raise TypeError(f"wrt: {type(wrt).__name__}, expected a tuple of names")
    if not names:
        raise ValueError(f"wrt: {shown(wrt)}, expected at least one of {', '.join(known)}")
    for name in names:
        if not isinstance(name, str):
            raise TypeError(f"wrt: {shown(name)} of type {type(name).__name__}, expected a name")
        if name not in known:
            additive = "; a mask that is added to the scores has a gradient as bias=" if name == "mask" else ""
            raise ValueError(f"wrt: {shown(name)}, expected some of {', '.join(known)}{additive}")
        if given.get(name) is None:
            raise ValueError(f"wrt: {name!r}, which is not given, expected arguments of the call")
    if len(set(names)) < len(names):
        raise ValueError(f"wrt: {shown(wrt)}, expected each name once")
    return tuple(names)


def check_pulled(d_results: tuple[Any, ...], count: int) -> tuple[Any, ...]:
    """The arguments of a pullback, one for each of ``count`` results; those left out are None."""
    if len(d_results) > count:
        raise TypeError(f"pullback: {len(d_results)} gradients, expected at most {count}, one for each result")
    if all(d is None for d in d_results):
        raise TypeError("pullback: no gradient, expected that of the loss by at least one result")
    return (*d_results, *(None,) * (count - len(d_results)))


@lru_cache(maxsize=256)
def _class_of(names: tuple[str, ...]) -> Any:
    return namedtuple("Gradients", [f"d_{name}" for name in names])  # noqa: PYI024 (the fields differ by call)


def gradients_of(wrt: tuple[str, ...], found: Mapping[str, Array]) -> Any:
    """The gradients of the arguments ``wrt``, in their order, as a named tuple with the fields ``d_*``."""
    return _class_of(wrt)._make(found[name] for name in wrt)


def gradient_dtype(argument: Array, result: np.dtype[Any]) -> np.dtype[Any]:
    """The dtype of the gradient by ``argument``: its own, or that of the result for integers and bool."""
    own = argument.dtype
    return own.newbyteorder("=") if own.kind == "f" or is_bfloat16(own) else result


def as_gradient(d: object, name: str, shape: Shape, dtype: np.dtype[Any], of: str) -> Array:
    """``d``, the gradient by a result of ``shape`` that ``of`` names, in ``dtype`` with a contiguous last axis."""
    a = as_array(d, name)
    check_dtype(a.dtype, name)
    if a.shape != shape:
        raise ValueError(f"{name}: shape {a.shape}, expected that of {of}, {shape}")
    return cast_layout(a, dtype, last=True)


def finish(d: Array, argument: Array, result: np.dtype[Any]) -> Array:
    """The gradient ``d`` in the dtype of ``argument``; see :func:`gradient_dtype`."""
    return cast_dtype(d, gradient_dtype(argument, result))


@ieee
def accumulate(total: Array, part: Array) -> None:
    """``total += part``."""
    total += part


@ieee
def sum_to_shape(d: Array, shape: Shape) -> Array:
    """``d`` summed over the axes along which an array of ``shape`` was broadcast to that of ``d``."""
    own = (1,) * (d.ndim - len(shape)) + shape
    axes = tuple(axis for axis in range(d.ndim) if own[axis] != d.shape[axis])
    return (d.sum(axis=axes, keepdims=True) if axes else d).reshape(shape)
