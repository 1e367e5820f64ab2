"""The formulas in vectorised NumPy, without unnecessary temporaries."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from comparison.peers.base import Call, Peer

if TYPE_CHECKING:
    from types import SimpleNamespace

    from comparison.cases import Attention, Elementwise, LayerNorm, Linear, MultiHead, Rope, Softmax

    Array = np.ndarray[Any, Any]


class NumPy(Peer):
    label = "NumPy"
    version = np.__version__

    def attention(self, case: Attention, data: SimpleNamespace) -> Call | None:
        if case.score_bytes > 1 << 30:
            return None
        batch, heads, query_len, head_dim = case.shape
        kv_heads = data.key.shape[1]
        grouped = (batch, kv_heads, heads // kv_heads, query_len, head_dim)
        keep = np.tri(query_len, case.keys, dtype=bool) if case.causal else None
        bias = data.mask
        if bias is not None and bias.dtype == bool:
            keep, bias = bias, None

        def call() -> Any:
            query = data.query.reshape(grouped)
            scores = query @ data.key[:, :, None].swapaxes(-1, -2)
            scores = scores.reshape(batch, heads, query_len, case.keys)
            scores *= head_dim**-0.5
            if bias is not None:
                scores += bias
            if keep is not None:
                np.putmask(scores, ~np.broadcast_to(keep, scores.shape), -np.inf)
            weights = _softmax(scores, -1, scores)
            output = weights.reshape(*grouped[:-1], case.keys) @ data.value[:, :, None]
            output = output.reshape(case.shape)
            return (output, weights) if case.weights else output

        return call

    def multi_head(self, case: MultiHead, data: SimpleNamespace) -> Call:
        batch, seq, d_model = case.shape
        split = (batch, seq, case.heads, d_model // case.heads)
        (W_q, W_k, W_v, W_o), (b_q, b_k, b_v, b_o) = data.weights, data.biases

        def call() -> Any:
            pairs = ((W_q, b_q), (W_k, b_k), (W_v, b_v))
            query, key, value = ((data.x @ W + b).reshape(split).swapaxes(1, 2) for W, b in pairs)
            scores = query @ key.swapaxes(-1, -2)
            scores *= split[-1] ** -0.5
            weights = _softmax(scores, -1, scores)
            output = (weights @ value).swapaxes(1, 2).reshape(case.shape) @ W_o + b_o
            return (output, weights) if case.weights else output

        return call

    def softmax(self, case: Softmax, data: SimpleNamespace) -> Call:
        return lambda: _softmax(data.x, case.axis, data.out)

    def log_softmax(self, case: Softmax, data: SimpleNamespace) -> Call:
        def call() -> Array:
            shifted = np.subtract(data.x, data.x.max(axis=case.axis, keepdims=True), out=data.out)
            shifted -= np.log(np.exp(shifted).sum(axis=case.axis, keepdims=True))
            return shifted

        return call

    def rope(self, case: Rope, data: SimpleNamespace) -> Call:
        half = case.shape[-1] // 2

        def call() -> Array:
            out = np.empty_like(data.x) if data.out is None else data.out
            a, b = data.x[..., :half], data.x[..., half:]
            np.subtract(a * data.cos, b * data.sin, out=out[..., :half])
            np.add(a * data.sin, b * data.cos, out=out[..., half:])
            return out

        return call

    def layer_norm(self, case: LayerNorm, data: SimpleNamespace) -> Call:
        def call() -> Array:
            out = np.subtract(data.x, data.x.mean(axis=-1, keepdims=True), out=data.out)
            out /= np.sqrt(np.square(out).mean(axis=-1, keepdims=True) + 1e-5)
            out *= data.gamma
            out += data.beta
            return out

        return call

    def rms_norm(self, case: Elementwise, data: SimpleNamespace) -> Call:
        def call() -> Array:
            out = np.divide(data.x, np.sqrt(np.square(data.x).mean(axis=-1, keepdims=True) + 1e-6), out=data.out)
            out *= data.gamma
            return out

        return call

    def silu(self, case: Elementwise, data: SimpleNamespace) -> Call:
        def call() -> Array:
            out = np.exp(-data.x, out=data.out)
            out += 1
            return np.divide(data.x, out, out=out)

        return call

    def swiglu(self, case: Elementwise, data: SimpleNamespace) -> Call:
        silu = self.silu(case, data)

        def call() -> Array:
            out: Array = silu()
            out *= data.up
            return out

        return call

    def linear(self, case: Linear, data: SimpleNamespace) -> Call:
        return lambda: data.x @ data.weight + data.bias


class CopyTo(Peer):
    """A lower bound for operations that read one array and write another: a copy."""

    label = "np.copyto"
    same_result = False

    def softmax(self, case: Elementwise, data: SimpleNamespace) -> Call | None:
        if data.out is None:
            return None
        out = np.zeros_like(data.x)  # not `data.out`, which holds a result to compare
        return lambda: np.copyto(out, data.x)

    log_softmax = rope = layer_norm = rms_norm = gelu = silu = swiglu = softmax


def _softmax(x: Array, axis: int, out: Array | None) -> Array:
    out = np.subtract(x, x.max(axis=axis, keepdims=True), out=out)
    np.exp(out, out=out)
    out /= out.sum(axis=axis, keepdims=True)
    return out


PEERS = {"numpy": NumPy, "copyto": CopyTo}
