"""The base class of the libraries that are timed."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from types import SimpleNamespace

    from comparison.cases import Case

Call = Callable[[], Any]


class Peer:
    """A library that is timed.

    It has a method for each ``Case.operation`` that it supports. The method takes a case and its data, converts the
    data to the layout that is fastest for the library, and returns a call that only computes, or None if the library
    does not support the case.
    """

    label: str
    version: str = ""
    same_result: bool = True  # False for a bound, such as a copy
    dtypes: tuple[str, ...] = ("float32", "float64")

    def __init__(self, threads: int) -> None:
        pass

    def prepare(self, case: Case, data: SimpleNamespace) -> Call | None:
        method = getattr(self, case.operation, None) if case.dtype in self.dtypes else None
        call: Call | None = None if method is None else method(case, data)
        return call

    def arrays(self, case: Case, result: Any) -> list[Any]:
        """The arrays of a result, in the layout of headwise, accepted by ``np.asarray``."""
        return list(result) if isinstance(result, tuple) else [result]
