from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from types import SimpleNamespace

    from ..cases import Case

Call = Callable[[], Any]


class Peer:
    """A contender. It has a method for each ``Case.operation`` that it knows, which takes a case and its data, turns
    the data into what the library likes best, and returns a call that only computes, or None if it cannot."""

    label: str
    version: str = ""
    same_result: bool = True  # False for what is no more than a bound
    dtypes: tuple[str, ...] = ("float32", "float64")

    def __init__(self, threads: int) -> None:
        pass

    def prepare(self, case: Case, data: SimpleNamespace) -> Call | None:
        method = getattr(self, case.operation, None) if case.dtype in self.dtypes else None
        call: Call | None = None if method is None else method(case, data)
        return call

    def arrays(self, case: Case, result: Any) -> list[Any]:
        """What a result consists of, in headwise's layout, as ``np.asarray`` takes it."""
        return list(result) if isinstance(result, tuple) else [result]
