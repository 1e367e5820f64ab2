"""Calls of differentiable functions with tensors of an autodiff library: which arguments are traced, and the rest."""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING, Any

import headwise as hw
from headwise._ops.gradients.vjp import arguments_of, differentiable, rule_of

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    Function = Callable[..., Any]


class TracedCall:
    """A call of ``function`` with the arguments ``traced``, which the library differentiates by, and the others."""

    def __init__(self, function: Function, traced: tuple[str, ...], others: Mapping[str, Any]) -> None:
        self.function, self.traced, self.others = function, traced, others
        self._present: list[bool] | None = None
        self._pull: Any = None

    def run(self, arrays: tuple[Any, ...]) -> tuple[Any, ...]:
        """The results for the plain arrays of the traced arguments, without those that are None."""
        given = dict(zip(self.traced, arrays, strict=True))
        output, self._pull = hw.vjp(self.function, **self.others, **given, wrt=self.traced)
        if not isinstance(output, tuple):
            return (output,)
        self._present = [result is not None for result in output]
        return tuple(result for result in output if result is not None)

    def pull(self, d_results: tuple[Any, ...]) -> tuple[Any, ...]:
        """The gradients by the traced arguments, from those by the results of :meth:`run`."""
        given = iter(d_results)
        present = [True] if self._present is None else self._present
        return tuple(self._pull(*(next(given) if there else None for there in present)))

    def as_returned(self, results: Any) -> Any:
        """``results`` in the form in which ``function`` returns them."""
        if self._present is None:
            return results[0]
        given = iter(results[n] for n in range(sum(self._present)))
        return tuple(next(given) if there else None for there in self._present)


def adapt(
    library: str,
    is_traced: Callable[[Any], bool],
    stack: Callable[[Any], Any],
    call: Callable[[TracedCall, tuple[Any, ...]], Any],
    untraced: Callable[[Any], Any] = lambda result: result,
) -> dict[str, Function]:
    """The differentiable functions of headwise by name, as functions of the tensors of ``library``.

    ``stack`` makes one tensor of nested sequences of tensors. ``call`` performs a call whose traced arguments are given
    as tensors. A call without traced arguments is one of the function of headwise, whose result ``untraced`` converts.
    """

    def holds_traced(x: Any) -> bool:
        return any(map(holds_traced, x)) if isinstance(x, (list, tuple)) else is_traced(x)

    def adapted(function: Function) -> Function:
        names = rule_of(function).names

        @functools.wraps(function)
        def wrapper(*args: Any, **keywords: Any) -> Any:
            if not holds_traced((*args, *keywords.values())):
                return untraced(function(*args, **keywords))
            given = arguments_of(function, args, keywords)
            traced = tuple(name for name, x in given.items() if holds_traced(x))
            for name in traced:
                if name not in names:
                    additive = "; a mask that is added to the scores has a gradient as bias=" if name == "mask" else ""
                    raise TypeError(
                        f"{name}: traced by {library}, but {function.__name__} has gradients by {', '.join(names)} "
                        f"alone; expected an array{additive}"
                    )
            tensors = tuple(x if is_traced(x) else stack(x) for x in map(given.pop, traced))
            return call(TracedCall(function, traced, given), tensors)

        wrapper.__module__ = f"headwise.integrations.{library}"
        wrapper.__doc__ = (
            f":func:`headwise.{function.__name__}` of arrays that {library} traces, with gradients by "
            f"{', '.join(names)}.\n\nParameters and results are those of :func:`headwise.{function.__name__}`."
        )
        return wrapper

    return {name: adapted(function) for name, function in differentiable().items()}
