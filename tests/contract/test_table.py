"""The table of operations is complete, and each of its calls has the oracle's results."""

from __future__ import annotations

import inspect

import numpy as np
import pytest

import headwise as hw
import oracle
from calls import Case, Sizes, cast
from operations import OPERATIONS, OPTIONS, cases
from support import assert_close, bf16_split_atol

ATTENTION = (hw.flash_attention, hw.scaled_dot_product_attention, hw.varlen_attention)
#: Keywords of attention that are not options of the scores or weights, or are another name of one.
OTHERS = {"query", "key", "value", "cu_seqlens_q", "cu_seqlens_k", "out", "need_weights", "dropout"}


@pytest.mark.single_implementation
def test_every_function_with_out_is_in_the_table() -> None:
    functions = [getattr(hw, name) for name in hw.__all__ if inspect.isfunction(getattr(hw, name))]
    with_out = {function.__name__ for function in functions if "out" in inspect.signature(function).parameters}
    assert with_out == {name for name, operation in OPERATIONS.items() if operation.out} - {"packed_linear"}


@pytest.mark.single_implementation
@pytest.mark.parametrize("function", ATTENTION, ids=lambda function: function.__name__)
def test_every_option_of_attention_is_in_the_table(function: object) -> None:
    options = {name for name, option in OPTIONS.items() if option.varlen or function is not hw.varlen_attention}
    assert set(inspect.signature(function).parameters) - OTHERS == options  # type: ignore[arg-type]


@pytest.mark.single_implementation
def test_the_oracle_has_every_exact_option() -> None:
    parameters = set(inspect.signature(oracle.attention).parameters) - OTHERS
    assert parameters == {name for name, option in OPTIONS.items() if option.exact}


@pytest.mark.parametrize("dtype", ["float32", "float64", "float16"])
@pytest.mark.parametrize("case", cases(), ids=str)
def test_every_case_equals_the_oracle(case: Case, dtype: str) -> None:
    for sizes in (case.operation.small, Sizes((2, 6), 2, 20, 37, 34, 18)):
        arguments = cast(case.arguments(sizes), dtype)
        results, expected = case.run(arguments), case.expected(arguments)
        if expected is None:
            assert all(np.isfinite(oracle.double(result)).all() for result in results)
            continue
        for result, answer in zip(results, expected, strict=True):
            more = case.operation.more_16bit if result.dtype.itemsize == 2 else 0.0
            assert_close(np.asarray(result), answer, 4, bf16_split_atol(result.dtype.name) + more)
