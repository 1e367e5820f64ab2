"""The operations of ONNX Runtime."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import onnxruntime
from onnx import helper

from comparison.peers.base import Call, Peer

if TYPE_CHECKING:
    from types import SimpleNamespace

    from comparison.cases import Attention, LayerNorm, Linear, Rope, Softmax


class OnnxRuntime(Peer):
    """A graph of one operator, or of the few operators that make up an operation. Results are newly allocated."""

    label = "ONNX Runtime"
    version = onnxruntime.__version__
    dtypes = ("float16", "float32")

    def __init__(self, threads: int) -> None:
        self._options = onnxruntime.SessionOptions()
        self._options.intra_op_num_threads = threads
        self._options.inter_op_num_threads = 1

    def attention(self, case: Attention, data: SimpleNamespace) -> Call | None:
        if case.score_bytes > 1 << 30:
            return None
        inputs = {"query": data.query, "key": data.key, "value": data.value}
        if case.weights:
            inputs["query"] = data.query * np.float32(case.shape[-1] ** -0.5)
            inputs["key"] = np.ascontiguousarray(data.key.swapaxes(-1, -2))
            nodes = [
                helper.make_node("MatMul", ["query", "key"], ["scores"]),
                helper.make_node("Softmax", ["scores"], ["weights"], axis=-1),
                helper.make_node("MatMul", ["weights", "value"], ["output"]),
            ]
            return self._call(nodes, inputs, ["output", "weights"])
        if data.mask is not None:
            _, _, query_len, _ = case.shape
            inputs["mask"] = np.ascontiguousarray(  # the operator broadcasts a mask over heads, not over queries
                np.broadcast_to(data.mask, (*data.mask.shape[:-2], query_len, case.keys))
            )
        causal = int(case.causal and data.mask is None)
        return self._call([helper.make_node("Attention", list(inputs), ["output"], is_causal=causal)], inputs)

    def softmax(self, case: Softmax, data: SimpleNamespace) -> Call | None:
        return self._unary("Softmax", case, data)

    def log_softmax(self, case: Softmax, data: SimpleNamespace) -> Call | None:
        return self._unary("LogSoftmax", case, data)

    def rope(self, case: Rope, data: SimpleNamespace) -> Call | None:
        if case.out:
            return None
        batch = case.shape[0]
        inputs = {"x": data.x}
        inputs |= {"cos": np.stack([data.cos] * batch), "sin": np.stack([data.sin] * batch)}
        return self._call([helper.make_node("RotaryEmbedding", list(inputs), ["output"])], inputs)

    def layer_norm(self, case: LayerNorm, data: SimpleNamespace) -> Call | None:
        if case.out:
            return None
        inputs = {"x": data.x, "gamma": data.gamma, "beta": data.beta}
        return self._call([helper.make_node("LayerNormalization", list(inputs), ["output"], axis=-1)], inputs)

    def linear(self, case: Linear, data: SimpleNamespace) -> Call:
        inputs = {"x": data.x, "weight": data.weight, "bias": data.bias}
        return self._call([helper.make_node("Gemm", list(inputs), ["output"])], inputs, constants=("weight", "bias"))

    def _unary(self, operator: str, case: Softmax, data: SimpleNamespace) -> Call | None:
        if case.out:
            return None
        return self._call([helper.make_node(operator, ["x"], ["output"], axis=case.axis)], {"x": data.x})

    def _call(
        self,
        nodes: list[Any],
        inputs: dict[str, Any],
        outputs: list[str] | None = None,
        constants: tuple[str, ...] = (),  # inputs that the session may pack
    ) -> Call:
        outputs = outputs or ["output"]
        types = {name: helper.np_dtype_to_tensor_dtype(a.dtype) for name, a in inputs.items()}
        float_type = types[next(iter(inputs))]
        graph = helper.make_graph(
            nodes,
            "benchmark",
            [helper.make_tensor_value_info(n, types[n], a.shape) for n, a in inputs.items() if n not in constants],
            [helper.make_tensor_value_info(name, float_type, None) for name in outputs],
            [helper.make_tensor(n, types[n], inputs[n].shape, inputs[n].tobytes(), raw=True) for n in constants],
        )
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 23)], ir_version=10)
        session = onnxruntime.InferenceSession(
            model.SerializeToString(), self._options, providers=["CPUExecutionProvider"]
        )
        make = onnxruntime.OrtValue.ortvalue_from_numpy
        feeds = {name: make(a) for name, a in inputs.items() if name not in constants}
        if len(outputs) == 1:
            return lambda: session.run_with_ort_values(outputs, feeds)[0]
        return lambda: tuple(session.run_with_ort_values(outputs, feeds))


PEERS = {"onnxruntime": OnnxRuntime}
