"""The operations of OpenVINO."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import openvino
from openvino import opset13 as ops

from comparison.peers.base import Call, Peer

if TYPE_CHECKING:
    from collections.abc import Callable
    from types import SimpleNamespace

    from comparison.cases import Attention, Case, LayerNorm, Linear, Softmax


_HINTS = {"float16": "f16", "bfloat16": "bf16", "float32": "f32"}


class OpenVINO(Peer):
    """A compiled model of one operation. Results are written to memory that OpenVINO reuses.

    The internal precision is the dtype of the case. On some processors the default for float32 is bfloat16, which is
    permitted here at "medium" only.
    """

    label = "OpenVINO"
    version = openvino.__version__.partition("-")[0]
    dtypes = ("float16", "bfloat16", "float32")

    def __init__(self, threads: int) -> None:
        self._core = openvino.Core()
        self._options = {
            "INFERENCE_NUM_THREADS": threads,
            "PERFORMANCE_HINT": "LATENCY",
        }

    def prepare(self, case: Case, data: SimpleNamespace) -> Call | None:
        self._options["INFERENCE_PRECISION_HINT"] = "bf16" if case.precision == "medium" else _HINTS.get(case.dtype)
        return super().prepare(case, data)

    def arrays(self, case: Case, result: Any) -> list[Any]:
        found = super().arrays(case, result)  # bfloat16 results have the dtype float16
        return [a.view(case.dtype) for a in found] if case.dtype == "bfloat16" else found

    def attention(self, case: Attention, data: SimpleNamespace) -> Call | None:
        # The operator does not support grouped-query heads.
        if case.kv_heads or case.weights or case.score_bytes > 1 << 30:
            return None
        inputs = [data.query, data.key, data.value]
        if data.mask is None:
            return self._call(inputs, lambda q, k, v: ops.scaled_dot_product_attention(q, k, v, causal=case.causal))
        return self._call(
            [*inputs, np.ascontiguousarray(data.mask)],
            lambda q, k, v, mask: ops.scaled_dot_product_attention(q, k, v, mask),
        )

    def softmax(self, case: Softmax, data: SimpleNamespace) -> Call | None:
        if case.out:
            return None
        return self._call([data.x], lambda x: ops.softmax(x, case.axis))

    def layer_norm(self, case: LayerNorm, data: SimpleNamespace) -> Call | None:
        if case.out:
            return None

        def build(x: Any) -> Any:
            normal = ops.mvn(x, ops.constant([-1]), True, 1e-5, "inside_sqrt")
            return ops.add(ops.multiply(normal, _constant(data.gamma)), _constant(data.beta))

        return self._call([data.x], build)

    def linear(self, case: Linear, data: SimpleNamespace) -> Call:
        def build(x: Any) -> Any:
            return ops.add(ops.matmul(x, _constant(data.weight), False, False), _constant(data.bias))

        return self._call([data.x], build)

    def _call(self, inputs: list[Any], build: Callable[..., Any]) -> Call:
        tensors = [_tensor(a) for a in inputs]
        parameters = [ops.parameter(tensor.shape, tensor.element_type) for tensor in tensors]
        model = openvino.Model([build(*parameters)], parameters)
        request = self._core.compile_model(model, "CPU", self._options).create_infer_request()
        for i, tensor in enumerate(tensors):
            request.set_input_tensor(i, tensor)

        def call() -> Any:
            request.infer()
            return request.get_output_tensor().data

        return call


def _tensor(a: Any) -> openvino.Tensor:
    """A tensor over the memory of an array; bfloat16 is passed as uint16."""
    if a.dtype.name == "bfloat16":
        return openvino.Tensor(a.view(np.uint16), a.shape, openvino.Type.bf16)
    return openvino.Tensor(a, shared_memory=True)


def _constant(a: Any) -> Any:
    return ops.constant(_tensor(a))


PEERS = {"openvino": OpenVINO}
