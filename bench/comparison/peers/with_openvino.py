from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import openvino
from openvino import opset13 as ops

from .base import Call, Peer

if TYPE_CHECKING:
    from collections.abc import Callable
    from types import SimpleNamespace

    from ..cases import Attention, LayerNorm, Linear, Softmax


class OpenVINO(Peer):
    """float32 inside too: its default on some processors is bfloat16. Results in memory that it keeps."""

    label = "OpenVINO"
    version = openvino.__version__.partition("-")[0]

    def __init__(self, threads: int) -> None:
        self._core = openvino.Core()
        self._options = {
            "INFERENCE_PRECISION_HINT": "f32",
            "INFERENCE_NUM_THREADS": threads,
            "PERFORMANCE_HINT": "LATENCY",
        }

    def attention(self, case: Attention, data: SimpleNamespace) -> Call | None:
        # Grouped heads are not in this operator.
        if case.dtype != "float32" or case.kv_heads or case.weights or case.score_bytes > 1 << 30:
            return None
        inputs = [data.query, data.key, data.value]
        if data.mask is None:
            return self._call(inputs, lambda q, k, v: ops.scaled_dot_product_attention(q, k, v, causal=case.causal))
        return self._call(
            [*inputs, np.ascontiguousarray(data.mask)],
            lambda q, k, v, mask: ops.scaled_dot_product_attention(q, k, v, mask),
        )

    def softmax(self, case: Softmax, data: SimpleNamespace) -> Call | None:
        if case.out or case.dtype != "float32":
            return None
        return self._call([data.x], lambda x: ops.softmax(x, case.axis))

    def layer_norm(self, case: LayerNorm, data: SimpleNamespace) -> Call | None:
        if case.out:
            return None

        def build(x: Any) -> Any:
            normal = ops.mvn(x, ops.constant([-1]), True, 1e-5, "inside_sqrt")
            return ops.add(ops.multiply(normal, ops.constant(data.gamma)), ops.constant(data.beta))

        return self._call([data.x], build)

    def linear(self, case: Linear, data: SimpleNamespace) -> Call:
        def build(x: Any) -> Any:
            return ops.add(ops.matmul(x, ops.constant(data.weight), False, False), ops.constant(data.bias))

        return self._call([data.x], build)

    def _call(self, inputs: list[Any], build: Callable[..., Any]) -> Call:
        parameters = [ops.parameter(a.shape, a.dtype) for a in inputs]
        model = openvino.Model([build(*parameters)], parameters)
        request = self._core.compile_model(model, "CPU", self._options).create_infer_request()
        for i, a in enumerate(inputs):
            request.set_input_tensor(i, openvino.Tensor(a, shared_memory=True))

        def call() -> Any:
            request.infer()
            return request.get_output_tensor().data

        return call


PEERS = {"openvino": OpenVINO}
