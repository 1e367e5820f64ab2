"""The operations of JAX."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp

from comparison.peers.base import Call, Peer

if TYPE_CHECKING:
    from collections.abc import Callable
    from types import SimpleNamespace

    from comparison.cases import Attention, Case, LayerNorm, Linear, Rope, Softmax


class Jax(Peer):
    """Functions compiled for the shapes of the case. Results are newly allocated."""

    label = "JAX"
    version = jax.__version__
    dtypes = ("float16", "bfloat16", "float32", "float64")

    def __init__(self, threads: int) -> None:
        # The number of threads is in the environment and in the affinity of the process.
        jax.config.update("jax_platforms", "cpu")
        jax.config.update("jax_enable_x64", True)

    def attention(self, case: Attention, data: SimpleNamespace) -> Call | None:
        if case.score_bytes > 1 << 30:
            return None
        if case.weights:

            def with_weights(query: Any, key: Any, value: Any) -> Any:
                weights = jax.nn.softmax(query @ key.swapaxes(-1, -2) * case.shape[-1] ** -0.5, axis=-1)
                return weights @ value, weights

            return _call(with_weights, data.query, data.key, data.value)
        if case.dtype in (
            "float64",
            "float16",
        ):  # float64 would be computed in float32; float16 is not supported on CPUs
            return None
        options = {}
        if case.extra == "key padding":
            options["key_value_seq_lengths"] = jnp.asarray(case.lengths, jnp.int32)
        elif data.mask is not None:
            four = data.mask.reshape((1,) * (4 - data.mask.ndim) + data.mask.shape)
            options["mask" if four.dtype == bool else "bias"] = jnp.asarray(four)
        causal = case.causal and data.mask is None

        def attention(query: Any, key: Any, value: Any, options: dict[str, Any]) -> Any:
            return jax.nn.dot_product_attention(query, key, value, is_causal=causal, **options)

        # Its axes are (batch, seq_len, heads, head_dim); `arrays` reorders those of the result.
        inputs = (a.swapaxes(1, 2) for a in (data.query, data.key, data.value))
        return _call(attention, *inputs, options)

    def arrays(self, case: Case, result: Any) -> list[Any]:
        found = super().arrays(case, result)
        # A single array is the output of dot_product_attention, which returns no weights.
        return [found[0].swapaxes(1, 2)] if case.operation == "attention" and len(found) == 1 else found

    def softmax(self, case: Softmax, data: SimpleNamespace) -> Call | None:
        return None if case.out else _call(lambda x: jax.nn.softmax(x, case.axis), data.x)

    def log_softmax(self, case: Softmax, data: SimpleNamespace) -> Call | None:
        return None if case.out else _call(lambda x: jax.nn.log_softmax(x, case.axis), data.x)

    def rope(self, case: Rope, data: SimpleNamespace) -> Call | None:
        def rope(x: Any, cos: Any, sin: Any) -> Any:
            a, b = jnp.split(x, 2, axis=-1)
            return jnp.concatenate((a * cos - b * sin, a * sin + b * cos), axis=-1)

        return None if case.out else _call(rope, data.x, data.cos, data.sin)

    def layer_norm(self, case: LayerNorm, data: SimpleNamespace) -> Call | None:
        def layer_norm(x: Any, gamma: Any, beta: Any) -> Any:
            shifted = x - x.mean(axis=-1, keepdims=True)
            return shifted * jax.lax.rsqrt(jnp.square(shifted).mean(axis=-1, keepdims=True) + 1e-5) * gamma + beta

        return None if case.out else _call(layer_norm, data.x, data.gamma, data.beta)

    def linear(self, case: Linear, data: SimpleNamespace) -> Call:
        return _call(lambda x, weight, bias: x @ weight + bias, data.x, data.weight, data.bias)


def _call(function: Callable[..., Any], *inputs: Any) -> Call:
    compiled = jax.jit(function)
    on_device = jax.tree.map(jnp.asarray, inputs)
    return lambda: jax.block_until_ready(compiled(*on_device))


PEERS = {"jax": Jax}
