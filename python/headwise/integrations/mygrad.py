"""The differentiable functions of headwise as operations of mygrad.

>>> import mygrad as mg  # doctest: +SKIP
>>> from headwise.integrations.mygrad import flash_attention  # doctest: +SKIP
>>> query = mg.tensor(x)  # doctest: +SKIP
>>> flash_attention(query, x, x).sum().backward()  # doctest: +SKIP
>>> query.grad  # doctest: +SKIP
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from headwise.integrations._functions import adapt
from headwise.integrations._libraries import require

if TYPE_CHECKING:
    from headwise.integrations._functions import TracedCall

mygrad: Any = require("mygrad")
Operation: Any = importlib.import_module("mygrad.operation_base").Operation


class _Result(Operation):
    """One result of a call. Operations of mygrad have one result each, so a call with several is several operations."""

    def __call__(self, *variables: Any, call: TracedCall, results: tuple[Any, ...], index: int) -> Any:
        self.variables = variables
        self._call, self._index, self._count = call, index, len(results)
        return results[index]

    def backward(self, grad: Any, **keywords: Any) -> None:
        self._gradients = self._call.pull(tuple(grad if n == self._index else None for n in range(self._count)))
        super().backward(grad, **keywords)
        del self._gradients

    def backward_var(self, grad: Any, index: int, **_: Any) -> Any:  # noqa: ARG002 (mygrad's signature)
        return self._gradients[index]


def _is_variable(x: Any) -> bool:
    return isinstance(x, mygrad.Tensor) and not x.constant


def _stack(x: Any) -> Any:
    return mygrad.stack([_stack(entry) for entry in x]) if isinstance(x, (list, tuple)) else x


def _call(call: TracedCall, tensors: tuple[Any, ...]) -> Any:
    results = call.run(tuple(tensor.data for tensor in tensors))

    def tensor_of(index: int) -> Any:
        keywords = {"call": call, "results": results, "index": index}
        return mygrad.Tensor._op(_Result, *tensors, op_kwargs=keywords)  # noqa: SLF001 (as mygrad's documentation has it)

    return call.as_returned([tensor_of(index) for index in range(len(results))])


def _constant(result: Any) -> Any:
    if isinstance(result, tuple):
        return tuple(map(_constant, result))
    return None if result is None else mygrad.tensor(result, constant=True)


_adapted = adapt("mygrad", _is_variable, _stack, _call, _constant)
globals().update(_adapted)

__all__ = sorted(_adapted)  # noqa: PLE0605 (one name for each rule of headwise.vjp)  # pyright: ignore[reportUnsupportedDunderAll]


def __getattr__(name: str) -> Any:  # for type checkers, which do not see the names above
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}, expected one of {', '.join(__all__)}")
