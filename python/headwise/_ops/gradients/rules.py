"""The rule of each differentiable operation, which :func:`headwise._ops.gradients.vjp.vjp` follows."""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING, Any

import numpy as np

from headwise._base.arrays import as_array, promote
from headwise._base.ieee import cast_dtype, ieee
from headwise._base.scalars import check_rng
from headwise._numpy.alibi import distance
from headwise._ops.activation import geglu, gelu, gelu_named, silu, swiglu
from headwise._ops.alibi import add_alibi
from headwise._ops.attention.dense import flash_attention, scaled_dot_product_attention
from headwise._ops.attention.merge import merge_attention, part_weights, read_parts
from headwise._ops.attention.options import SpecOptions
from headwise._ops.attention.spec import check_dropout
from headwise._ops.attention.varlen import varlen_attention
from headwise._ops.dropout import dropout
from headwise._ops.gradients.activation import GATED_NAMES, activation_gradient, gated_gradients
from headwise._ops.gradients.attention import NAMES, ROWS, Results, differentiate
from headwise._ops.gradients.layer_norm import LAYER_NORM_NAMES, RMS_NORM_NAMES, norm_gradients
from headwise._ops.gradients.linear import LINEAR_NAMES, linear_gradients
from headwise._ops.gradients.linear_attention import LINEAR_ATTENTION_NAMES, linear_attention_rule
from headwise._ops.gradients.results import as_gradient, finish
from headwise._ops.gradients.rope import ROPE_NAMES, rope_gradients
from headwise._ops.gradients.softmax import log_softmax_backward, logsumexp_gradients, softmax_backward
from headwise._ops.gradients.varlen import VARLEN_NAMES, varlen_attention_backward
from headwise._ops.gradients.vjp import set_rule, vjp
from headwise._ops.layer_norm import layer_normalization, rms_norm
from headwise._ops.linear import linear
from headwise._ops.linear_attention.function import linear_attention
from headwise._ops.rope import apply_rope
from headwise._ops.softmax import log_softmax, logsumexp, softmax

__all__ = ["vjp"]

if TYPE_CHECKING:
    from collections.abc import Callable

    from headwise._base.typing import Array
    from headwise._ops.gradients.vjp import Pullback

Arguments = dict[str, Any]
Names = tuple[str, ...]


def attention_pullback(
    arguments: Arguments, wrt: Names, *, weights: bool, out: Array | None = None
) -> tuple[tuple[Any, ...], Pullback]:
    """(output, weights or None, lse) of attention, and the pullback of gradients by these three."""
    if arguments.get("score_mod") is not None:
        raise TypeError("score_mod: its derivative is not known, expected bias= or another keyword that has a gradient")
    rate, second, rng = (arguments.pop(name, default) for name, default in _DROPOUT)
    drops = check_dropout(rate, second, rng)
    replay = copy.deepcopy(drops)  # in the state before the draws
    more: Arguments = {} if drops is None else {"dropout_rate": drops.rate, "rng": drops.rng}
    output, probabilities, lse = scaled_dot_product_attention(
        **arguments, **more, need_weights=weights, return_lse=True, out=out
    )
    rows = tuple(arguments.pop(name) for name in ROWS)
    options = SpecOptions(**arguments)

    def pull(d: tuple[Any, ...]) -> dict[str, Array]:
        results = Results(output, lse, probabilities, d[0], d[2], d[1])
        return differentiate(rows, options, copy.deepcopy(replay), results, wrt)

    return (output, probabilities, lse), pull


_DROPOUT = (("dropout", 0.0), ("dropout_rate", None), ("rng", None))


def _flash_attention(arguments: Arguments, wrt: Names) -> tuple[Any, Pullback]:
    return_lse = arguments.pop("return_lse")
    (output, _, lse), pull = attention_pullback(arguments, wrt, weights=False)
    if return_lse:
        return (output, lse), lambda d: pull((d[0], None, d[1]))
    return output, lambda d: pull((d[0], None, None))


def dense_attention(arguments: Arguments, wrt: Names) -> tuple[Any, Pullback]:
    """The rule of :func:`headwise.scaled_dot_product_attention`."""
    return_lse, need_weights = arguments.pop("return_lse"), arguments.pop("need_weights")
    results, pull = attention_pullback(arguments, wrt, weights=need_weights)
    return results if return_lse else results[:2], lambda d: pull((*d, None)[:3])


def _varlen_attention(arguments: Arguments, wrt: Names) -> tuple[Any, Pullback]:
    return_lse = arguments.pop("return_lse")
    output, lse = varlen_attention(**arguments, return_lse=True)

    def pull(d: tuple[Any, ...]) -> dict[str, Array]:
        d_lse = d[1] if return_lse else None
        found = varlen_attention_backward(d[0], **arguments, output=output, lse=lse, d_lse=d_lse, wrt=wrt)
        return dict(zip(wrt, found, strict=True))

    return ((output, lse) if return_lse else output), pull


def _merge_attention(arguments: Arguments, wrt: Names) -> tuple[Any, Pullback]:
    output, lse = merge_attention(**arguments)
    given = {name: as_array(arguments[name], name) for name in ("outputs", "lses")}

    @ieee
    def pull(d: tuple[Any, ...]) -> dict[str, Array]:
        parts = read_parts(**arguments)
        compute = lse.dtype
        zero = np.zeros(1, compute)
        d_output, d_lse = (
            np.broadcast_to(zero, like.shape) if one is None else as_gradient(one, name, like.shape, compute, of)
            for one, name, like, of in ((d[0], "d_output", output, "output"), (d[1], "d_lse", lse, "lse"))
        )
        weights = part_weights(parts.lses, lse)
        by_output, by_lse = [], []
        for part, weight in zip(parts.outputs, weights, strict=True):
            by_output.append(np.where(weight[..., None] == 0, 0, weight[..., None] * d_output))
            along = (d_output * (cast_dtype(part, compute) - cast_dtype(output, compute))).sum(axis=-1)
            by_lse.append(np.where(weight == 0, 0, weight * (along + d_lse)))
        found = {"outputs": np.stack(by_output, parts.axis), "lses": np.stack(by_lse, parts.axis)}
        return {name: finish(found[name], given[name], compute) for name in wrt}

    return (output, lse), pull


def _from_result(function: Callable[..., Array], backward: Callable[..., Array]) -> Callable[..., Any]:
    """The rule of a function along axes whose gradient needs its result alone."""

    def run(arguments: Arguments, _: Names) -> tuple[Any, Pullback]:
        y, x = function(**arguments), as_array(arguments["x"], "x")
        return y, lambda d: {"x": finish(backward(d[0], y, arguments["axis"]), x, y.dtype)}

    return run


def _logsumexp(arguments: Arguments, wrt: Names) -> tuple[Any, Pullback]:
    y = logsumexp(**arguments)
    x, axis, b, where = (arguments[name] for name in ("x", "axis", "b", "where"))

    def pull(d: tuple[Any, ...]) -> dict[str, Array]:
        d_y = np.zeros(y[0].shape) if d[0] is None else d[0]  # the sign, a second result, is constant
        return logsumexp_gradients(d_y, x, axis, b, where, wrt)

    return y, pull


def _apply_rope(arguments: Arguments, wrt: Names) -> tuple[Any, Pullback]:
    return apply_rope(**arguments), lambda d: rope_gradients(d[0], **arguments, wrt=wrt)


def _linear(arguments: Arguments, wrt: Names) -> tuple[Any, Pullback]:
    return linear(**arguments), lambda d: linear_gradients(d[0], **arguments, wrt=wrt)


def _layer_normalization(arguments: Arguments, _: Names) -> tuple[Any, Pullback]:
    return layer_normalization(**arguments), lambda d: norm_gradients(d[0], **arguments, names=LAYER_NORM_NAMES)


def _rms_norm(arguments: Arguments, _: Names) -> tuple[Any, Pullback]:
    more: Arguments = {"beta": None, "axis": -1, "names": RMS_NORM_NAMES}
    return rms_norm(**arguments), lambda d: norm_gradients(d[0], **arguments, **more)


def _activation(function: Callable[..., Array]) -> Callable[..., Any]:
    """The rule of :func:`headwise.gelu` or :func:`headwise.silu`."""

    def run(arguments: Arguments, _: Names) -> tuple[Any, Pullback]:
        name = gelu_named(arguments["approximate"]) if "approximate" in arguments else "silu"
        return function(**arguments), lambda d: {"x": activation_gradient(name, d[0], arguments["x"])}

    return run


def _gated(function: Callable[..., Array]) -> Callable[..., Any]:
    """The rule of :func:`headwise.geglu` or :func:`headwise.swiglu`."""

    def run(arguments: Arguments, _: Names) -> tuple[Any, Pullback]:
        name = gelu_named(arguments["approximate"]) if "approximate" in arguments else "silu"
        gate, up = arguments["gate"], arguments["up"]
        return function(**arguments), lambda d: gated_gradients(name, d[0], gate, up)

    return run


def _dropout(arguments: Arguments, _: Names) -> tuple[Any, Pullback]:
    x, rng = as_array(arguments["x"], "x"), check_rng(arguments["rng"])
    replay = copy.deepcopy(rng)
    y = dropout(**{**arguments, "rng": rng})

    def pull(d: tuple[Any, ...]) -> dict[str, Array]:
        d_y = as_gradient(d[0], "d_out", y.shape, y.dtype, "x")
        return {"x": finish(dropout(**{**arguments, "x": d_y, "rng": copy.deepcopy(replay)}), x, y.dtype)}

    return y, pull


def _add_alibi(arguments: Arguments, wrt: Names) -> tuple[Any, Pullback]:
    y = add_alibi(**arguments)
    scores = as_array(arguments["scores"], "scores")
    heads, rows, keys = y.shape[-3:]

    @ieee
    def pull(d: tuple[Any, ...]) -> dict[str, Array]:
        compute, _ = promote(("scores", scores))
        found = {"scores": finish(as_gradient(d[0], "d_out", y.shape, y.dtype, "scores"), scores, y.dtype)}
        if "slopes" in wrt:
            steps = distance(arguments["offset"], rows, 0, keys, compute)
            by_head = as_gradient(d[0], "d_out", y.shape, compute, "scores").reshape((-1, heads, rows, keys))
            total = -sum((np.einsum("hij,ij->h", one, steps) for one in by_head), np.zeros(heads, compute))
            found["slopes"] = finish(total, as_array(arguments["slopes"], "slopes"), compute)
        return {name: found[name] for name in wrt}

    return y, pull


set_rule(flash_attention, NAMES, _flash_attention)
set_rule(scaled_dot_product_attention, NAMES, dense_attention)
set_rule(varlen_attention, VARLEN_NAMES, _varlen_attention)
set_rule(merge_attention, ("outputs", "lses"), _merge_attention)
set_rule(softmax, ("x",), _from_result(softmax, softmax_backward))
set_rule(log_softmax, ("x",), _from_result(log_softmax, log_softmax_backward))
set_rule(logsumexp, ("x", "b"), _logsumexp)
set_rule(apply_rope, ROPE_NAMES, _apply_rope)
set_rule(linear, LINEAR_NAMES, _linear)
set_rule(linear_attention, LINEAR_ATTENTION_NAMES, linear_attention_rule)
set_rule(layer_normalization, LAYER_NORM_NAMES, _layer_normalization)
set_rule(rms_norm, RMS_NORM_NAMES, _rms_norm)
set_rule(gelu, ("x",), _activation(gelu))
set_rule(silu, ("x",), _activation(silu))
set_rule(swiglu, GATED_NAMES, _gated(swiglu))
set_rule(geglu, GATED_NAMES, _gated(geglu))
set_rule(dropout, ("x",), _dropout)
set_rule(add_alibi, ("scores", "slopes"), _add_alibi)
