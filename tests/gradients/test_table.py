"""Gradients of every differentiable operation of the table, against central differences and in every dtype."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

import headwise as hw
import oracle
from calls import Arguments, Array, Case, Sizes, cast
from headwise._ops.gradients import vjp as registry
from operations import OPERATIONS, cases
from support import dtype_named

CASES = [case for case in cases() if case.differentiable]
SIZES = Sizes((2, 4), 2, 5, 7, 6, 6)


def differentiated(case: Case, arguments: Arguments, seed: int = 0) -> tuple[tuple[str, ...], Any, list[Array]]:
    """The names of the arrays of a call that have gradients, these, and gradients of a loss by the results."""
    names = case.wrt(arguments)
    outputs, pullback = hw.vjp(case.operation.function, **arguments, wrt=names)
    outputs = outputs if isinstance(outputs, tuple) else (outputs,)
    rng = np.random.default_rng(seed)
    d_outputs = [np.asarray(rng.standard_normal(y.shape), y.dtype) for y in outputs]
    return names, pullback(*d_outputs), d_outputs


def slope(loss: Callable[[Any], Any], step: float) -> float:
    """The derivative of ``loss`` at 0 by central differences of fourth order."""
    near, far = loss(step) - loss(-step), loss(2 * step) - loss(-2 * step)
    return float((8 * near - far) / (12 * step))


@pytest.mark.parametrize("case", CASES, ids=str)
def test_central_differences(case: Case) -> None:
    arguments = cast(case.arguments(SIZES), np.float64)
    names, gradients, d_outputs = differentiated(case, arguments)
    rng = np.random.default_rng(1)
    for name, gradient in zip(names, gradients, strict=True):
        assert gradient.shape == arguments[name].shape and gradient.dtype == np.float64
        for _ in range(3):  # directions: a wrong entry of the gradient shows in each
            direction = rng.standard_normal(gradient.shape)

            def loss(step: float, name: str = name, direction: Array = direction) -> Any:
                moved = {**arguments, name: oracle.wide(arguments[name]) + np.longdouble(step) * direction}
                results = case.expected(moved)
                if results is None:  # random: the function itself, with the same draws
                    results = case.run({**arguments, name: arguments[name] + step * direction})
                return sum(np.where(np.isfinite(y), y * d, 0).sum() for y, d in zip(results, d_outputs, strict=True))

            expected = slope(loss, 2e-3 if "rng" in arguments else 1e-4)
            assert abs(expected - (gradient * direction).sum()) < 1e-9 * max(1, abs(expected))


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
@pytest.mark.parametrize("case", cases(short=True, where=lambda operation: bool(operation.wrt)), ids=str)
def test_dtypes(case: Case, dtype: str) -> None:
    """Gradients equal those in float64 of the same rounded numbers."""
    arguments = cast(case.arguments(SIZES), dtype_named(dtype))
    names, gradients, d_outputs = differentiated(case, arguments)
    precise = cast(arguments, np.float64)
    _, pullback = hw.vjp(case.operation.function, **precise, wrt=names)
    for name, gradient, expected in zip(
        names, gradients, pullback(*(oracle.double(d) for d in d_outputs)), strict=True
    ):
        assert gradient.dtype == arguments[name].dtype
        tolerance = {"float32": 2e-5, "float16": 4e-3, "bfloat16": 4e-2}[dtype]
        scale = max(1.0, float(np.abs(expected).max(initial=0)))
        np.testing.assert_allclose(oracle.double(gradient), expected, atol=tolerance * scale, rtol=tolerance)


@pytest.mark.single_implementation
def test_every_rule_is_in_the_table() -> None:
    in_table = {operation.name: set(operation.wrt) for operation in OPERATIONS.values() if operation.wrt}
    without = {"logsumexp": {"b"}}  # tests/gradients/test_operations.py
    # tests/gradients/test_layers.py and test_linear_attention.py
    above = {
        "self_attention", "cross_attention", "multi_head_attention", "multi_head_self_attention", "linear_attention",
    }  # fmt: skip
    rules = {function.__name__: set(rule.names) for function, rule in registry._rules.items()}
    rules = {name: names for name, names in rules.items() if name not in above}
    assert in_table == {name: names - without.get(name, set()) for name, names in rules.items()}
