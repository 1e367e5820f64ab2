"""Calls of the operations on rows, and of linear maps."""

from __future__ import annotations

from typing import Any

import numpy as np

from contract.core_calls.call import Call


def softmax(call: Call) -> tuple[Any, ...]:
    dtype, shape = call.float_type()[0], (call.size(), call.size(), call.pick(1, call.size()))
    return call.array(dtype, *shape), call.array(dtype, *shape)


def logsumexp(call: Call) -> tuple[Any, ...]:
    dtype, (outer, n, inner) = call.float_type()[0], (call.size(), call.size(), call.pick(1, call.size()))
    return call.array(dtype, outer, n, inner), call.array(dtype, outer, inner)


def apply_rope(call: Call) -> tuple[Any, ...]:
    dtype, accumulator = call.float_type()
    shape, half = (call.pick(0, 1, 2), call.pick(1, 2, 3), call.size()), call.size()
    tables = [call.array(accumulator, *(call.pick(1, size) for size in shape), half) for _ in range(2)]
    x, out = (call.array(dtype, *shape, 2 * half) for _ in range(2))
    return x, *tables, out, call.pick(True, False)


def add_alibi(call: Call) -> tuple[Any, ...]:
    dtype, accumulator = call.float_type()
    shape = (call.pick(0, 1, 2), call.pick(1, 2, 3), call.size(), call.size())
    return call.array(dtype, *shape), call.array(accumulator, shape[1]), call.integer(2), call.array(dtype, *shape)


def linear(call: Call) -> tuple[Any, ...]:
    dtype, accumulator = call.float_type()
    rows, depth, columns = call.size(), call.size(), call.size()
    stored = call.float_type()[0] if dtype == np.float32 and call.chance(0.5) else dtype
    weight = call.array(stored, depth, columns)
    if call.chance(0.3):
        weight = call.array(stored, columns, depth)
        weight = weight.T if isinstance(weight, np.ndarray) else weight
    bias = call.array(accumulator, columns, optional=True)
    return call.array(dtype, rows, depth), weight, bias, call.array(dtype, rows, columns), call.precision()


def layer_normalization(call: Call) -> tuple[Any, ...]:
    dtype, (rows, n) = call.float_type()[0], (call.size(), call.size())
    x, out = (call.array(dtype, rows, n) for _ in range(2))
    gamma, beta = (call.array(dtype, n, optional=True) for _ in range(2))
    return x, gamma, beta, call.number(1e-5), out


def rms_norm(call: Call) -> tuple[Any, ...]:
    x, gamma, _, eps, out = layer_normalization(call)
    return x, gamma, eps, out


def layer_normalization_backward(call: Call) -> tuple[Any, ...]:
    (dtype, accumulator), (rows, n) = call.float_type(), (call.size(), call.size())
    d_out, x, d_x = (call.array(dtype, rows, n) for _ in range(3))
    d_gamma, d_beta = (call.array(accumulator, n) for _ in range(2))
    return d_out, x, call.array(dtype, n, optional=True), call.number(1e-5), d_x, d_gamma, d_beta


def rms_norm_backward(call: Call) -> tuple[Any, ...]:
    return layer_normalization_backward(call)[:-1]


def activation(call: Call) -> tuple[Any, ...]:
    dtype, shape = call.float_type()[0], (call.size(), call.size())
    x, out = (call.array(dtype, *shape) for _ in range(2))
    return x, call.array(dtype, *shape, optional=True), out, call.pick("gelu", "gelu_tanh", "silu")


def activation_backward(call: Call) -> tuple[Any, ...]:
    dtype, shape = call.float_type()[0], (call.size(), call.size())
    d_out, x, d_x = (call.array(dtype, *shape) for _ in range(3))
    up, d_up = (call.array(dtype, *shape, optional=True) for _ in range(2))
    return d_out, x, up, d_x, d_up, call.pick("gelu", "gelu_tanh", "silu")
