"""headwise in ONNX's reference evaluator: operators, and a call that runs a model with no other runtime.

>>> from onnx.reference import ReferenceEvaluator  # doctest: +SKIP
>>> from headwise.integrations.onnx import operators  # doctest: +SKIP
>>> evaluator = ReferenceEvaluator("model.onnx", new_ops=operators)  # doctest: +SKIP
"""

from __future__ import annotations

import importlib
import math
import os
from typing import TYPE_CHECKING, Any

import numpy as np

import headwise as hw
from headwise.integrations._libraries import require
from headwise.integrations._onnx_attention import attention, linear_attention, with_heads

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from headwise._base.typing import Array

__all__ = ["evaluator", "operators", "run_model"]

onnx: Any = require("onnx")
_reference: Any = importlib.import_module("onnx.reference")
OpRun: Any = importlib.import_module("onnx.reference.op_run").OpRun


class Operator(OpRun):
    """An operator of the main domain. A class has the name of the operator that it computes, in every opset."""

    op_domain = ""

    def _asks_for(self, index: int) -> bool:
        """Whether the node has the output ``index``, which is optional."""
        return len(self.output) > index and self.output[index] != ""


class Attention(Operator):
    """Attention of the opsets 23 to 25, by :func:`headwise.flash_attention`."""

    def _run(self, *inputs: Any, **attributes: Any) -> tuple[Array, ...]:
        names = ("Q", "K", "V", "attn_mask", "past_key", "past_value", "nonpad_kv_seqlen")
        given = dict(zip(names, inputs, strict=False))
        return attention(**given, **attributes, scores=self._asks_for(3))


class LinearAttention(Operator):
    """LinearAttention of opset 27, by :func:`headwise.linear_attention`."""

    def _run(self, *inputs: Any, **attributes: Any) -> tuple[Array, Array]:
        return linear_attention(*inputs, **attributes)


class RotaryEmbedding(Operator):
    """RotaryEmbedding of opset 23, by :func:`headwise.apply_rope`."""

    def _run(
        self, x: Array, cos: Array, sin: Array, position_ids: Array | None = None, *, interleaved: int = 0,
        num_heads: int | None = None, rotary_embedding_dim: int | None = None,
    ) -> tuple[Array]:  # fmt: skip
        heads = with_heads(x, num_heads, "num_heads")
        width = rotary_embedding_dim or heads.shape[-1]
        if position_ids is not None:
            cos, sin = cos[position_ids], sin[position_ids]
        tables = (cos[:, np.newaxis], sin[:, np.newaxis])  # (batch, 1, seq, width / 2), for every head
        rotated = hw.apply_rope(heads[..., :width], *tables, interleaved=bool(interleaved))
        if width < heads.shape[-1]:
            rotated = np.concatenate((rotated, heads[..., width:]), axis=-1)
        return (rotated.swapaxes(1, 2).reshape(x.shape) if x.ndim == 3 else rotated,)


class Softmax(Operator):
    """Softmax of every opset, by :func:`headwise.softmax`. Before opset 13 it is along all axes from ``axis`` on."""

    _function = staticmethod(hw.softmax)

    def _run(self, x: Array, *, axis: int | None = None) -> tuple[Array]:
        axes: int | tuple[int, ...] = -1 if axis is None else axis
        if self.run_params["opsets"].get(self.op_domain, 13) < 13:
            given = any(attribute.name == "axis" for attribute in self.onnx_node.attribute)  # else that of opset 13
            axes = tuple(range((axis if given and axis is not None else 1) % max(1, x.ndim), x.ndim))
        return (self._function(x, axis=axes),)


class LogSoftmax(Softmax):
    """LogSoftmax of every opset, by :func:`headwise.log_softmax`."""

    _function = staticmethod(hw.log_softmax)


def _rows(x: Array, axis: int, *parameters: Array | None) -> tuple[Array, list[Array | None]] | None:
    """``x`` with its axes from ``axis`` on as one, and parameters of that size; None if they vary along other axes."""
    shape = x.shape[axis % x.ndim :]
    flat: list[Array | None] = []
    for parameter in parameters:
        if parameter is not None and np.broadcast_shapes(parameter.shape, shape) != shape:
            return None
        flat.append(None if parameter is None else np.broadcast_to(parameter, shape).reshape(-1))
    return x.reshape((-1, int(np.prod(shape)))), flat


class LayerNormalization(Operator):
    """LayerNormalization of opset 17, by :func:`headwise.layer_normalization`."""

    def _run(
        self, x: Array, scale: Array, bias: Array | None = None, *, axis: int = -1, epsilon: float = 1e-5,
        stash_type: int = 1,  # noqa: ARG002 (computed in float32, or float64 for float64)
    ) -> tuple[Array, ...]:  # fmt: skip
        found = _rows(x, axis, scale, bias)
        if found is None:
            rows, _ = _rows(x, axis) or (x, [])
            y = hw.layer_normalization(rows, eps=epsilon).reshape(x.shape) * scale
            y = y if bias is None else y + bias
        else:
            rows, (gamma, beta) = found
            y = hw.layer_normalization(rows, gamma, beta, eps=epsilon).reshape(x.shape)
        y = y.astype(x.dtype, copy=False)
        if not (self._asks_for(1) or self._asks_for(2)):
            return (y,)
        first = axis % x.ndim
        wide = rows.astype(np.float64)
        shape = (*x.shape[:first], *(1,) * (x.ndim - first))
        inverse = 1 / np.sqrt(wide.var(axis=1) + epsilon)
        stash = np.float32 if x.dtype.itemsize == 2 else x.dtype
        return y, wide.mean(axis=1).reshape(shape).astype(stash), inverse.reshape(shape).astype(stash)


class RMSNormalization(Operator):
    """RMSNormalization of opset 23, by :func:`headwise.rms_norm`."""

    def _run(
        self, x: Array, scale: Array, *, axis: int = -1, epsilon: float = 1e-5,
        stash_type: int = 1,  # noqa: ARG002 (computed in float32, or float64 for float64)
    ) -> tuple[Array]:  # fmt: skip
        found = _rows(x, axis, scale)
        if found is None:
            rows, _ = _rows(x, axis) or (x, [])
            return ((hw.rms_norm(rows, eps=epsilon).reshape(x.shape) * scale).astype(x.dtype, copy=False),)
        rows, (gamma,) = found
        return (hw.rms_norm(rows, gamma, eps=epsilon).reshape(x.shape).astype(x.dtype, copy=False),)


class Gelu(Operator):
    """Gelu of opset 20, by :func:`headwise.gelu`."""

    def _run(self, x: Array, *, approximate: Any = None) -> tuple[Array]:
        return (hw.gelu(x, approximate=approximate or "none"),)


class Erf(Operator):
    """Erf of opset 13, by :func:`headwise.gelu`: exporters of models before opset 20 write Gelu with it."""

    def _run(self, x: Array) -> tuple[Array]:
        if x.dtype.kind != "f":
            raise ValueError(f"input: dtype {x.dtype}, expected a floating dtype")
        a = np.abs(x.astype(np.float32 if x.itemsize == 2 else x.dtype, copy=False)).reshape(-1)
        z = np.maximum(a, 0.5) * np.asarray(np.sqrt(2), a.dtype)
        y = 1 + 2 * hw.gelu(-z) / z  # gelu(-z) / z is -(1 - erf(a)) / 2
        small = np.flatnonzero(a < 0.5)
        t = a[small]
        total = np.zeros_like(t)
        for n in range(13, -1, -1):  # Taylor series, whose next term is below the rounding of float64
            total = total * (t * t) + (-1) ** n / (math.factorial(n) * (2 * n + 1))
        y[small] = total * t * (2 / math.sqrt(math.pi))
        return (np.copysign(y, x.reshape(-1)).reshape(x.shape).astype(x.dtype, copy=False),)


class MatMul(Operator):
    """MatMul, by :func:`headwise.linear` in float32 and float64."""

    def _run(self, a: Array, b: Array) -> tuple[Array]:
        return (_product(a, b).astype(a.dtype, copy=False),)


class Gemm(Operator):
    """Gemm, by :func:`headwise.linear`."""

    def _run(
        self, a: Array, b: Array, c: Array | None = None, *, alpha: float = 1.0, beta: float = 1.0,
        transA: int = 0,  # noqa: N803
        transB: int = 0, broadcast: int = 1,  # noqa: N803, ARG002 (of the opsets before 7)
    ) -> tuple[Array]:  # fmt: skip
        y = _product(a.T if transA else a, b.T if transB else b)
        if alpha != 1:
            y *= np.asarray(alpha, y.dtype)
        if c is not None and beta != 0:
            y = y + (c if beta == 1 else c * np.asarray(beta, y.dtype))
        return (y.astype(a.dtype, copy=False),)


#: Products of stacked matrices with as many multiplications each are computed one by one.
_LARGE = 2**18


def _product(a: Array, b: Array) -> Array:
    """``np.matmul(a, b)``."""
    found: Array
    if a.ndim < 2 or b.ndim < 2 or a.dtype != b.dtype or a.dtype not in (np.float32, np.float64):
        found = np.matmul(a, b)
    elif b.ndim == 2:
        found = hw.linear(a, b)
    elif a.shape[-1] != b.shape[-2] or a.shape[-1] * a.shape[-2] * b.shape[-1] < _LARGE:
        found = np.matmul(a, b)
    else:
        lead = np.broadcast_shapes(a.shape[:-2], b.shape[:-2])
        a, b = (np.broadcast_to(x, (*lead, *x.shape[-2:])) for x in (a, b))
        found = np.empty((*a.shape[:-1], b.shape[-1]), a.dtype)
        for entry in np.ndindex(lead):
            hw.linear(a[entry], b[entry], out=found[entry])
    return found


def _swiglu(gate: Array, up: Array | None, alpha: float | None) -> Array:
    """``gate * sigmoid(alpha * gate) * up``."""
    if alpha is None or alpha == 1:
        return hw.silu(gate) if up is None else hw.swiglu(gate, up)
    wide = gate.astype(np.float32 if gate.itemsize == 2 else gate.dtype)
    y = wide / 2 if alpha == 0 else hw.silu(alpha * wide) / alpha
    return (y if up is None else y * up).astype(gate.dtype)


class SwiGLU(Operator):
    """SwiGLU of opset 28, by :func:`headwise.swiglu`."""

    def _run(self, gate: Array, up: Array, *, alpha: float | None = None) -> tuple[Array]:
        if gate.shape != up.shape or gate.dtype != up.dtype:
            raise ValueError(
                f"B: {up.dtype} {up.shape}, expected the dtype and the shape of A, {gate.dtype} {gate.shape}"
            )
        return (_swiglu(gate, up, alpha),)


class Swish(Operator):
    """Swish of opset 24, by :func:`headwise.silu`."""

    def _run(self, x: Array, *, alpha: float | None = None) -> tuple[Array]:
        return (_swiglu(x, None, alpha),)


#: For ``ReferenceEvaluator(model, new_ops=operators)``.
operators: list[type] = [
    Attention, Erf, Gelu, Gemm, LayerNormalization, LinearAttention, LogSoftmax, MatMul, RMSNormalization,
    RotaryEmbedding, Softmax, SwiGLU, Swish,
]  # fmt: skip


def evaluator(model: Any) -> Any:
    """An ``onnx.reference.ReferenceEvaluator`` of ``model`` whose operators are those of headwise, where it has them.

    ``model`` is a path, the bytes of a file, or a ModelProto.
    """
    if isinstance(model, (str, os.PathLike)):
        model = onnx.load(os.fspath(model))  # with data in files beside it
    return _reference.ReferenceEvaluator(model, new_ops=operators)


def run_model(model: Any, inputs: Mapping[str, Any], outputs: Sequence[str] | None = None) -> dict[str, Array]:
    """Run an ONNX model with no runtime but NumPy, onnx and headwise.

    Parameters
    ----------
    model : path, bytes, ModelProto or ReferenceEvaluator
        The model. One that runs more than once is given as what :func:`evaluator` returns.
    inputs : mapping
        The arrays of the inputs by name.
    outputs : sequence of str, optional
        The names of the outputs to return; all by default.

    Returns
    -------
    dict
        The arrays of the outputs by name, in their order.

    Raises
    ------
    ValueError
        If an input is missing or unknown, or there is no such output.

    Examples
    --------
    >>> from headwise.integrations.onnx import run_model  # doctest: +SKIP
    >>> run_model("model.onnx", {"input_ids": ids, "attention_mask": mask})  # doctest: +SKIP
    """
    session = model if isinstance(model, _reference.ReferenceEvaluator) else evaluator(model)
    needed = [name for name in session.input_names if name not in session.rt_inits_]
    for name in needed:
        if name not in inputs:
            raise ValueError(f"inputs: no {name!r}, expected {', '.join(needed)}")
    for name in inputs:
        if name not in session.input_names:
            raise ValueError(f"inputs: {name!r}, expected {', '.join(session.input_names)}")
    names = list(session.output_names if outputs is None else outputs)
    for name in names:
        if name not in session.output_names:
            raise ValueError(f"outputs: {name!r}, expected some of {', '.join(session.output_names)}")
    results = session.run(names, {name: np.asarray(x) for name, x in inputs.items()})
    return dict(zip(names, results, strict=True))
