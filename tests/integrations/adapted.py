"""What the tests of the adapters of autograd and mygrad share: cases, and the gradients of headwise itself."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

import headwise as hw
from calls import Arguments, Array, Case, Sizes, cast
from operations import cases

#: Without those whose results hold -inf, which make no loss.
CASES = [case for case in cases() if case.differentiable and str(case) != "log_softmax-where"]
SIZES = Sizes((2, 4), 2, 5, 7, 6, 6)


def drawn(case: Case) -> tuple[Arguments, tuple[str, ...]]:
    """The arguments of a call in float64, and the names of those that have gradients."""
    arguments = cast(case.arguments(SIZES), np.float64)
    return arguments, case.wrt(arguments)


def loss(results: Any) -> Any:
    """A number that depends on every entry of the results that is finite."""
    results = results if isinstance(results, tuple) else (results,)
    total = 0.0
    for y in results:
        if y is not None:
            total = total + (y * np.cos(np.arange(y.size)).reshape(y.shape)).sum()
    return total


def by_headwise(case: Case, arguments: Arguments, names: tuple[str, ...]) -> dict[str, Array]:
    outputs, pullback = hw.vjp(case.operation.function, **arguments, wrt=names)
    outputs = outputs if isinstance(outputs, tuple) else (outputs,)
    found = pullback(*(np.cos(np.arange(np.size(y))).reshape(np.shape(y)) if y is not None else None for y in outputs))
    return dict(zip(names, found, strict=True))


def slope(function: Callable[[float], Any], step: float = 1e-4) -> float:
    """The derivative of ``function`` at 0 by central differences of fourth order."""
    near, far = function(step) - function(-step), function(2 * step) - function(-2 * step)
    return float((8 * near - far) / (12 * step))
