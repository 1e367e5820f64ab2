"""headwise.integrations.onnx: the operators in ONNX's own cases, and whole models."""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np
import pytest

import headwise as hw
from support import normal

onnx: Any = pytest.importorskip("onnx", reason="the package onnx is not installed")
adapter: Any = pytest.importorskip("headwise.integrations.onnx")
reference: Any = pytest.importorskip("onnx.reference")
node_cases: Any = pytest.importorskip("onnx.backend.test.case.node")
helper: Any = pytest.importorskip("onnx.helper")

pytestmark = pytest.mark.above_operations

OPERATORS = {operator.__name__ for operator in adapter.operators}


#: Relative bounds of 16-bit results, which ONNX's reference rounds after each step. That of bfloat16 is ONNX's own.
RTOL_16BIT = {"bfloat16": 2.0**-6, "float16": 2.0**-9}


def own_cases() -> dict[str, Any]:
    """ONNX's node cases with an operator of headwise, by name."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        found = node_cases.collect_testcases(None)
    return {
        case.name.removeprefix("test_"): case
        for case in found
        if any(node.op_type in OPERATORS for node in case.model.graph.node)
    }


OWN = own_cases()


#: In graphs expanded from a function, our operators are one of many.
NAMES = [pytest.param(name, marks=[pytest.mark.slow] if "expanded" in name else []) for name in sorted(OWN)]


@pytest.mark.parametrize("name", NAMES)
def test_own_cases(name: str) -> None:
    case = OWN[name]
    session = reference.ReferenceEvaluator(case.model, new_ops=adapter.operators)
    for inputs, outputs in case.data_sets:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of operators that are not ours
            got = session.run(None, dict(zip(session.input_names, inputs, strict=False)))
        assert len(got) == len(outputs)
        for y, expected in zip(got, outputs, strict=True):
            if isinstance(expected, np.ndarray):
                assert y.dtype == expected.dtype and y.shape == expected.shape
                rtol = max(case.rtol, RTOL_16BIT.get(y.dtype.name, 0))
                np.testing.assert_allclose(y.astype(float), expected.astype(float), rtol=rtol, atol=case.atol)
