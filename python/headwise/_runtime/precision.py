"""How exactly products of float32 are computed: the levels, their check, and the default for ``precision=None``."""

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
# Of the innermost `with precision(...)`, if any.
_context: ContextVar[str | None] = ContextVar("headwise.precision", default=None)


def set_precision(name: str) -> None:
    """Set how exactly this process multiplies float32 and float16 where neither a call nor :func:`precision` says.

    At import this is ``HEADWISE_PRECISION``, else "highest".

    Parameters
    ----------
    name : {"highest", "high", "medium"}
        "highest" is at least float32 accuracy. "high" and "medium" may round the numbers that are multiplied to 16 and
        8 bits, where the instruction set is faster for it: avx512_amx at both, avx512_bf16 for float32 at "medium"; the
        others compute all three alike. Sums are float32 always. float64 is computed in float64 at any level, and
        bfloat16, which has 8 bits, alike at all of them.

    Raises
    ------
    ValueError
        If `name` is unknown.
    TypeError
        If it is no string.

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
    global _process
    _process = _level(name)


def get_precision() -> str:
    """What ``precision=None`` means here and now: the level of the innermost :func:`precision` block, else the
    process's default.

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
    """A context in which ``precision=None`` means `name`; blocks may be nested.

    It holds for the thread or asynchronous task that enters it, and for tasks started inside; other threads keep the
    process's default. As a decorator it holds for the calls of a function that is not asynchronous.

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
    ...     exact = hw.flash_attention(x, x, x, precision="highest")  # what a call says comes first
    >>> bool(np.allclose(fast, exact, atol=0.03))
    True
    """
    return _block(_level(name))


def check_precision(precision: object) -> str:
    """The level that an operation's argument asks for."""
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
    was = repr(name) if isinstance(name, str) else type(name).__name__
    message = f"{source}: {was}, expected one of {', '.join(map(repr, PRECISIONS))}"
    raise ValueError(message) if isinstance(name, str) else TypeError(message)


# A bad value is an error here, where it is noticed, not at the first call.
_process = _level(os.environ.get("HEADWISE_PRECISION", "").strip().lower() or "highest", "HEADWISE_PRECISION")
