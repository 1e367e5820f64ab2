"""The decoder of examples/generate.py on NumPy alone: matrix products by BLAS, vectorised formulas for the rest."""

from __future__ import annotations

from typing import Any

import numpy as np
from generate import Decoder
from numpy.typing import NDArray

Array = NDArray[Any]


class Linear:
    def __init__(self, weight: Array, bias: None) -> None:
        self.weight, self.out_features = weight, weight.shape[1]

    def __call__(self, x: Array, out: Array) -> Array:
        return np.matmul(x, self.weight, out=out)


def rms_norm(x: Array, gamma: Array, eps: float, out: Array) -> Array:
    squares = np.einsum("rc,rc->r", x, x)
    np.divide(x, np.sqrt(squares / x.shape[1] + eps)[:, np.newaxis], out=out)
    out *= gamma
    return out


def swiglu(gate: Array, up: Array, out: Array) -> Array:
    for start in range(0, len(out), 32):  # blocks of rows that stay in the processor's cache
        rows = slice(start, start + 32)
        block = np.multiply(gate[rows], 0.5, out=out[rows])
        np.tanh(block, out=block)
        block += 1
        block *= gate[rows]
        block *= up[rows]
        block *= 0.5
    return out


class Rope:
    def __init__(self, d_model: int, base: float, interleaved: bool) -> None:
        assert interleaved
        angles = np.multiply.outer(np.arange(8192), base ** (-np.arange(0, d_model, 2) / d_model))
        self._cos, self._sin = np.cos(angles).astype(np.float32), np.sin(angles).astype(np.float32)

    def forward(self, x: Array, offset: int, out: Array) -> Array:
        where = slice(offset, offset + x.shape[-2])
        cos, sin = self._cos[where], self._sin[where]
        even, odd = x[..., ::2], x[..., 1::2]
        out[..., ::2], out[..., 1::2] = even * cos - odd * sin, even * sin + odd * cos
        return out


class Cache:
    """Keys and values of one layer."""

    def __init__(self, batch_size: int, num_kv_heads: int, capacity: int, head_dim: int) -> None:
        self._keys, self._values = np.empty((2, batch_size, num_kv_heads, capacity, head_dim), np.float32)
        self.reset()

    def reset(self) -> None:
        self._length = 0

    def __len__(self) -> int:
        return self._length

    def extend(self, query: Array, key: Array, value: Array, out: Array) -> Array:
        batch, _, rows, head_dim = query.shape
        begin, end = self._length, self._length + rows
        self._keys[:, :, begin:end], self._values[:, :, begin:end] = key, value
        self._length = end
        keys, values = self._keys[:, :, None, :end], self._values[:, :, None, :end]
        groups = query.reshape(batch, keys.shape[1], -1, rows, head_dim)  # query heads by the key head that they share
        scores = groups @ keys.swapaxes(-1, -2) / np.sqrt(np.float32(head_dim))
        if rows > 1:
            scores += np.triu(np.full((rows, end), -np.inf, np.float32), end - rows + 1)
        weights = np.exp(scores - scores.max(axis=-1, keepdims=True))
        weights /= weights.sum(axis=-1, keepdims=True)
        out[...] = (weights @ values).reshape(out.shape)
        return out


class NumPyDecoder(Decoder):
    pack = Linear
    make_rope = Rope
    make_cache = Cache
    rms_norm = staticmethod(rms_norm)
    swiglu = staticmethod(swiglu)
