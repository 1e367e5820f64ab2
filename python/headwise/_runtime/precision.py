"""The precision of matrix products in float32 and float16: levels, check, and the default for ``precision=None``."""

from __future__ import annotations

import os
from contextlib import contextmanager
from contextvars import ContextVar
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator
    from contextlib import _GeneratorContextManager

PRECISIONS = ("highest", "high", "medium")

_process: str
# The level of the innermost `with precision(...)`, if any.
_context: ContextVar[str | None] = ContextVar("headwise.precision", default=None)


def set_precision(name: str) -> None:
    """Set the default precision of matrix products in this process.

    The default applies where neither the ``precision=`` of a call nor a :func:`precision` block sets another. At import
    it is ``HEADWISE_PRECISION``, else "highest".

    Parameters
    ----------
    name : {"highest", "high", "medium"}
        "highest" has at least float32 accuracy. "high" and "medium" may round the factors of products to 16 and 8
        significant bits (bf16 split BF16X3 and BF16) where the instruction set gains from it: avx512_amx at both
        levels, avx512_bf16 for float32 at "medium". Other targets compute all three levels alike. Sums are always in
        float32. float64 is always computed in float64. bfloat16, with its 8 significant bits, is computed alike at all
        levels.

    Raises
    ------
    ValueError
        If `name` is unknown.
    TypeError
        If `name` is not a string.

    See Also
    --------
    precision : The same for a block of code.

    Examples
    --------
    >>> import headwise as hw
    >>> before = hw.get_precision()
    >>> hw.set_precision("high")
    >>> hw.get_precision()
    'high'
    >>> hw.set_precision(before)
    """
    global _process  # noqa: PLW0603 (a setting of the process)
    _process = _level(name)


def get_precision() -> str:
    """The level that ``precision=None`` selects: that of the innermost :func:`precision` block, else the default.

    Returns
    -------
    str
        "highest", "high" or "medium".

    Examples
    --------
    >>> import headwise as hw
    >>> with hw.precision("medium"):
    ...     hw.get_precision()
    'medium'
    """
    return _context.get() or _process


def precision(name: str) -> _GeneratorContextManager[None]:  # a decorator too, which contextlib has no public name for
    """A context manager that makes `name` the level of ``precision=None``; blocks may be nested.

    It affects the thread or asynchronous task that enters it, and tasks started inside; other threads keep the
    default of the process. As a decorator it affects the calls of a function that is not asynchronous.

    Parameters
    ----------
    name : {"highest", "high", "medium"}
        As in :func:`set_precision`.

    Returns
    -------
    context manager

    Raises
    ------
    ValueError, TypeError
        As in :func:`set_precision`, before the block is entered.

    Examples
    --------
    >>> import numpy as np
    >>> import headwise as hw
    >>> x = np.random.default_rng(0).standard_normal((1, 8, 64, 32), dtype=np.float32)
    >>> with hw.precision("medium"):
    ...     fast = hw.flash_attention(x, x, x)
    ...     exact = hw.flash_attention(x, x, x, precision="highest")  # the call's own level comes first
    >>> bool(np.allclose(fast, exact, atol=0.03))
    True
    """
    return _block(_level(name))


def check_precision(precision: object) -> str:
    """The level that the argument ``precision`` of an operation selects."""
    if precision is None:
        return _context.get() or _process
    return _level(precision)


@contextmanager
def _block(level: str) -> Iterator[None]:
    token = _context.set(level)
    try:
        yield
    finally:
        _context.reset(token)


def _level(name: object, source: str = "precision") -> str:
    if isinstance(name, str) and name in PRECISIONS:
        return name
    given = repr(name) if isinstance(name, str) else type(name).__name__
    message = f"{source}: {given}, expected one of {', '.join(map(repr, PRECISIONS))}"
    raise ValueError(message) if isinstance(name, str) else TypeError(message)


# A bad value raises here, at import, not at the first call.
_process = _level(os.environ.get("HEADWISE_PRECISION", "").strip().lower() or "highest", "HEADWISE_PRECISION")
