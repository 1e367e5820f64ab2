"""Floating-point arithmetic by the rules of IEEE 754: overflow, underflow and NaN neither warn nor raise.

``np.seterr`` and warning filters are a caller's decision about the caller's own arithmetic. Inside headwise they would
report operations that the caller cannot see, on one backend and not on the other. All arithmetic and casts of the
package that NumPy executes go through this module.
"""

from __future__ import annotations

from functools import wraps
from typing import TYPE_CHECKING, Any, ParamSpec, TypeVar

import numpy as np

from headwise._base.float16 import cast_of_float16, is_cast_of_float16, narrow_into
from headwise._base.typing import FLOAT16

if TYPE_CHECKING:
    from collections.abc import Callable

    from headwise._base.typing import Array

P = ParamSpec("P")
R = TypeVar("R")


def ieee(function: Callable[P, R]) -> Callable[P, R]:
    """``function``, whose arithmetic follows IEEE rules whatever ``np.seterr`` says; costs about 1 µs per call."""

    # One np.errstate as a decorator would be shared by all threads, which NumPy 1 does not support.
    @wraps(function)
    def call(*args: P.args, **keywords: P.kwargs) -> R:
        with np.errstate(all="ignore"):
            return function(*args, **keywords)

    return call


def cast_dtype(a: Array, dtype: np.dtype[Any]) -> Array:
    """``a`` in ``dtype``: ``a`` itself or a copy, where numbers that overflow become infinite."""
    if a.dtype == dtype:
        return a
    if is_cast_of_float16(a, dtype):
        return cast_of_float16(a, dtype)
    with np.errstate(all="ignore"):
        return a.astype(dtype)


def assign(out: Array, a: Array) -> None:
    """``out[...] = a``, cast like :func:`cast_dtype`."""
    if is_cast_of_float16(a, out.dtype):
        if out.dtype is FLOAT16 and out.flags.c_contiguous and out.shape == a.shape and not np.may_share_memory(out, a):
            narrow_into(out, a)
            return
        a = cast_of_float16(a, out.dtype)
    with np.errstate(all="ignore"):
        np.copyto(out, a, casting="unsafe")
