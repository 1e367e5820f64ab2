"""Gradients of linear attention."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from headwise._base.arrays import as_array
from headwise._base.ieee import cast_dtype, ieee
from headwise._base.messages import shown
from headwise._base.typing import FLOAT64
from headwise._numpy.linear_attention import elu_features
from headwise._numpy.linear_attention_backward import linear_attention_backward
from headwise._ops.attention.call import with_heads
from headwise._ops.gradients.results import as_gradient, finish, sum_to_shape
from headwise._ops.linear_attention.arguments import CHUNK, Call, Options, check_call, rate_axes
from headwise._ops.linear_attention.function import run

if TYPE_CHECKING:
    from collections.abc import Callable

    from headwise._base.typing import Array

LINEAR_ATTENTION_NAMES = ("query", "key", "value", "decay", "beta", "state")


def linear_attention_rule(
    arguments: dict[str, Any], wrt: tuple[str, ...]
) -> tuple[Any, Callable[[tuple[Any, ...]], dict[str, Array]]]:
    """The rule of :func:`headwise.linear_attention` in :func:`headwise.vjp`."""
    arrays = [arguments.pop(name) for name in ("query", "key", "value")]
    options = Options(**arguments)
    if callable(options.feature_map):
        raise TypeError(
            f"feature_map: {shown(options.feature_map)}, expected 'elu' or None: vjp does not differentiate functions "
            "of the caller; call it before, with feature_map=None and normalize=True"
        )
    call = check_call(arrays[0], arrays[1], arrays[2], options)
    output, state = run(call)
    given = dict(zip(("query", "key", "value"), arrays, strict=True))
    given |= {name: getattr(options, name) for name in ("decay", "beta", "state")}
    read = {name: as_array(array, name) for name, array in given.items() if array is not None}

    def pull(d: tuple[Any, ...]) -> dict[str, Array]:
        return _pull(call, read, d, wrt)

    return (output, state), pull


@ieee
def _pull(call: Call, given: dict[str, Array], d: tuple[Any, ...], wrt: tuple[str, ...]) -> dict[str, Array]:
    spec = call.spec
    # The gradient by a decay is a difference of sums over all later tokens.
    compute = FLOAT64 if "decay" in wrt else call.compute
    shape, state_shape = call.output_shape, call.state_shape
    d_state = np.zeros(state_shape, compute) if d[1] is None else as_gradient(
        d[1], "d_state", state_shape, compute, "state"
    )  # fmt: skip
    d_out = np.zeros(shape, compute) if d[0] is None else as_gradient(d[0], "d_output", shape, compute, "output")
    d_out, d_state = (a if a.ndim == 4 else with_heads(a) for a in (d_out, d_state))
    x, y, v = (cast_dtype(a, compute) for a in (call.query, call.key, call.value))
    q, k = (elu_features(x), elu_features(y)) if spec.elu else (x, y)
    decay = None if call.decay is None else cast_dtype(call.decay, compute)
    if decay is not None:
        decay = np.broadcast_to(decay, (*k.shape[:3], decay.shape[3]))
    beta = None if call.beta is None else np.broadcast_to(cast_dtype(call.beta, compute), k.shape[:3])[..., np.newaxis]
    before = None if call.state is None else cast_dtype(call.state, compute)
    group = (k.shape[0], k.shape[1], q.shape[1] // k.shape[1] if k.shape[1] else 1)
    scale = 1.0 if spec.normalize else spec.scale
    if spec.normalize:
        v = np.concatenate([v, np.ones((*v.shape[:-1], 1), compute)], axis=-1)
        d_out = _of_quotients(call, d_out, compute)
    chunk = CHUNK if spec.chunk > 256 else spec.chunk
    found = linear_attention_backward(
        (d_out * compute.type(scale)).reshape((*group, *d_out.shape[2:])),
        q.reshape((*group, *q.shape[2:])),
        k,
        v,
        decay,
        beta,
        before,
        d_state,
        is_causal=spec.is_causal,
        chunk=chunk,
    )
    d_q, d_k = found.q.reshape(x.shape), found.k
    if spec.elu:
        d_q, d_k = d_q * np.exp(np.minimum(x, 0)), d_k * np.exp(np.minimum(y, 0))
    results = {"query": d_q, "key": d_k, "value": found.v[..., : v.shape[-1] - spec.normalize], "state": found.state}
    results = {name: a.reshape(given[name].shape) for name, a in results.items() if name in given}
    key = given["key"].shape
    for name, by_key in (("decay", found.decay), ("beta", found.beta)):
        if by_key is not None and name in wrt:
            by_token = by_key.reshape((*key[:-1], by_key.shape[-1]))
            summed = sum_to_shape(by_token, rate_axes(given[name], name, key))
            results[name] = summed.reshape(given[name].shape)
    return {name: finish(results[name], given[name], call.dtype) for name in wrt}


def _of_quotients(call: Call, d_out: Array, compute: np.dtype[Any]) -> Array:
    """The gradients by the sums and by the sums of weights whose quotients are the outputs, as one more column."""
    # Values and the sums of weights, not divided: outputs of values of which the last is 1.
    q, k, v = (cast_dtype(a, call.compute) for a in (call.query, call.key, call.value))
    values = np.concatenate([v, np.ones((*v.shape[:-1], 1), v.dtype)], axis=-1)
    sums, _ = run(
        call._replace(
            query=q,
            key=k,
            value=values,
            spec=call.spec._replace(normalize=False, scale=1.0),
            output_shape=(*call.query.shape[:-1], values.shape[-1]),
            state_shape=(*call.key.shape[:2], call.key.shape[3], values.shape[-1]),
            stored=call.compute,
            dtype=call.compute,
        )
    )
    sums = cast_dtype(sums, compute)
    total = sums[..., -1:]
    used = total != 0
    d_sums = np.where(used, d_out / total, 0)
    d_total = np.where(used, -(d_sums * (sums[..., :-1] / total)).sum(axis=-1, keepdims=True), 0)
    return np.concatenate([d_sums, d_total], axis=-1)
