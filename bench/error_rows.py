"""The rows of ERRORS.md: operations with their inputs and references."""

from __future__ import annotations

import math
import sys
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

import headwise as hw

sys.path.append(str(Path(__file__).parents[1] / "tests"))
import oracle

Array = np.ndarray[Any, Any]


class Draw:
    """Random numbers of one dtype, the same in every run."""

    def __init__(self, dtype: np.dtype[Any], info: Any) -> None:
        self._rng, self.dtype = np.random.default_rng(0), dtype
        self.tiny = float(info.tiny) / 16  # a subnormal number

    def normal(self, *shape: int, scale: float = 1.0, mean: float = 0.0) -> Array:
        return self.cast(oracle.normal(self._rng, shape) * scale + mean)

    def uniform(self, *shape: int) -> Array:
        return self.cast(self._rng.random(shape))

    def kept(self, *shape: int) -> Array:
        """Booleans that are true with probability 3/4."""
        return self._rng.random(shape) < 0.75

    def cast(self, x: Array) -> Array:
        with np.errstate(over="ignore"):
            return x.astype(self.dtype)


@dataclass(frozen=True)
class Row:
    """``compute`` and ``exact`` take the result of ``inputs`` as keywords; ``torch`` takes the module as well."""

    name: str
    inputs: Callable[[Draw], dict[str, Any]]
    compute: Callable[..., Any]
    exact: Callable[..., Any]
    torch: Callable[..., Any] | None = None
    products: bool = False  # whether the operation has precision levels
    slack: float = 1.0  # factor by which errors on other machines may exceed the stated ones


def _rows_of(
    name: str, inputs: dict[str, Callable[[Draw], dict[str, Any]]], *functions: Any, **options: Any
) -> list[Row]:
    return [Row(f"{name}, {what}", draw, *functions, **options) for what, draw in inputs.items()]


# --- softmax and its logarithms ---

_LOGITS: dict[str, Callable[[Draw], dict[str, Any]]] = {
    "rows of 1,000": lambda d: {"x": d.normal(64, 1000)},
    "rows of 1,000, times 100": lambda d: {"x": d.normal(64, 1000, scale=100)},
    "rows of 65,536": lambda d: {"x": d.normal(4, 65536)},
    "columns of 65,536": lambda d: {"x": d.normal(65536, 4), "axis": 0},
}

_SOFTMAX = [
    *_rows_of("softmax", _LOGITS, hw.softmax, oracle.softmax, lambda t, x, axis=-1: t.softmax(x, axis)),
    *_rows_of("log_softmax", _LOGITS, hw.log_softmax, oracle.log_softmax, lambda t, x, axis=-1: t.log_softmax(x, axis)),
    *_rows_of("logsumexp", _LOGITS, hw.logsumexp, oracle.logsumexp, lambda t, x, axis=-1: t.logsumexp(x, axis)),
]

# --- attention ---


def _attention(
    queries: int = 256, keys: int = 256, *, query: float = 1.0, value: float = 1.0, heads: int = 2, **options: Any
) -> Callable[[Draw], dict[str, Any]]:
    """Inputs with head_dim 64."""
    return lambda d: {
        "query": d.normal(1, heads, queries, 64, scale=query),
        "key": d.normal(1, heads, keys, 64),
        "value": d.normal(1, heads, keys, 64, scale=value),
        **options,
    }


def _positive_values(d: Draw) -> dict[str, Any]:
    return {"query": d.normal(1, 1, 128, 64), "key": d.normal(1, 1, 2048, 64), "value": d.uniform(1, 1, 2048, 64)}


def _all_options(d: Draw) -> dict[str, Any]:
    """All options in one call: 4 query heads, 2 key heads; about 75 of 300 keys are kept per query."""
    return {
        "query": d.normal(2, 4, 130, 64),
        "key": d.normal(2, 2, 300, 64),
        "value": d.normal(2, 2, 300, 64),
        "mask": d.kept(130, 300),
        "bias": d.normal(4, 130, 300),
        "is_causal": True,
        "causal_alignment": "lower_right",
        "window_size": 100,
        "softcap": 5.0,
        "alibi_slopes": d.cast(hw.alibi_slopes(4)),
        "sinks": d.normal(4),
        "key_padding_mask": np.arange(300) < np.array([[300], [290]]),
    }


_LENGTHS = [300, 17, 1, 66]


def _packed(d: Draw) -> dict[str, Any]:
    return dict(zip(("query", "key", "value"), d.normal(3, sum(_LENGTHS), 2, 64), strict=True))


def _varlen(query: Array, key: Array, value: Array) -> Array:
    return hw.varlen_attention(query, key, value, np.cumsum([0, *_LENGTHS]), is_causal=True)


def _varlen_exact(**packed: Array) -> Array:
    parts = zip(*(np.split(a.swapaxes(0, 1), np.cumsum(_LENGTHS)[:-1], 1) for a in packed.values()), strict=True)
    return np.concatenate([oracle.attention(*part, is_causal=True).output for part in parts], 1).swapaxes(0, 1)


def _relative(d: Draw) -> dict[str, Any]:
    """A bias of each head and one of 65 distances, as T5's."""
    return {**_attention()(d), "relative_bias": d.normal(2, 1, 65)}


def _relative_values(d: Draw) -> dict[str, Any]:
    return {**_attention()(d), "relative_values": d.normal(33, 64)}


def _blocks(d: Draw) -> dict[str, Any]:
    """A window of 40 keys to each side and 8 global tokens, in blocks of 16."""
    near = hw.BlockMask.window(40, 256, 256, block_size=16)
    return {**_attention()(d), "mask": near | hw.BlockMask.global_tokens(8, 256, 256, block_size=16)}


def _blocks_exact(mask: hw.BlockMask, **arguments: Array) -> Array:
    return oracle.attention(**arguments, mask=mask.to_dense()).output


def _sdpa(t: Any, **arguments: Any) -> Any:
    return t.nn.functional.scaled_dot_product_attention(**arguments)


_ATTENTION = [
    *_rows_of(
        "attention",
        {
            "256 queries and keys": _attention(),
            "causal": _attention(is_causal=True),
            "scores times 30": _attention(query=30),
            "2,048 keys, values from 0 to 1": _positive_values,
            "one query, 8,192 keys": _attention(1, 8192, heads=4),
        },
        hw.flash_attention,
        lambda **x: oracle.attention(**x).output,
        torch=_sdpa,
        products=True,
    ),
    Row(
        "attention, subnormal values",
        lambda d: _attention(128, 128, value=d.tiny)(d),
        hw.flash_attention,
        lambda **x: oracle.attention(**x).output,
        torch=_sdpa,
        products=True,
    ),
    Row(
        "attention, all options",
        _all_options,
        hw.flash_attention,
        lambda **x: oracle.attention(**x).output,
        products=True,
    ),
    Row(
        "attention, weights",
        _attention(),
        lambda **x: hw.scaled_dot_product_attention(**x)[1],
        lambda **x: oracle.attention(**x).weights,
        lambda t, query, key, **_: t.softmax(query @ key.mT / 8, -1),
        products=True,
    ),
    Row(
        "attention, log-sum-exp",
        _attention(),
        lambda **x: hw.flash_attention(**x, return_lse=True)[1],
        lambda **x: oracle.attention(**x).lse,
        products=True,
    ),
    *(
        Row(f"attention, {name}", draw, hw.flash_attention, exact, products=True)
        for name, draw, exact in (
            ("relative bias", _relative, lambda **x: oracle.attention(**x).output),
            ("relative values", _relative_values, lambda **x: oracle.attention(**x).output),
            ("block mask", _blocks, _blocks_exact),
        )
    ),
    Row("varlen_attention, causal", _packed, _varlen, _varlen_exact, products=True),
]

# --- gradients of attention ---


def _gradient(name: str) -> Callable[..., Array]:
    """The gradient by the argument ``name``."""

    def compute(d_output: Array, query: Array, key: Array, value: Array, **options: Any) -> Array:
        _, pullback = hw.vjp(hw.flash_attention, query, key, value, wrt=(name,), **options)
        gradient: Array = pullback(d_output)[0]
        return gradient

    return compute


def _gradient_exact(name: str) -> Callable[..., Array]:
    def exact(d_output: Array, **arguments: Any) -> Array:
        found = oracle.attention_gradients(**arguments, d_output=d_output)
        return found[("query", "key", "value").index(name)]

    return exact


def _gradient_by_torch(name: str) -> Callable[..., Any]:
    def by_torch(t: Any, d_output: Any, **arguments: Any) -> Any:
        with t.inference_mode(False), t.enable_grad():
            for argument in ("query", "key", "value"):
                arguments[argument] = arguments[argument].clone().requires_grad_()
            _sdpa(t, **arguments).backward(d_output.clone())
        return arguments[name].grad

    return by_torch


def _with_gradient(draw: Callable[[Draw], dict[str, Any]]) -> Callable[[Draw], dict[str, Any]]:
    return lambda d: {"d_output": d.normal(1, 2, 256, 64), **draw(d)}


_GRADIENTS = [
    Row(
        f"attention, gradient by {name}",
        _with_gradient(_attention()),
        _gradient(name),
        _gradient_exact(name),
        _gradient_by_torch(name),
        products=True,
    )
    for name in ("query", "key", "value")
]

# --- positions ---

_FAR = 1_000_000

#: RotaryPositionalEmbedding computes frequencies by np.power and tables by np.cos and np.sin in float64. NumPy has one
#: implementation per instruction set; their errors are 0.5 to 1 unit in the last place.
_NUMPY_TABLES = 2.0


def _rope_inputs(d: Draw, interleaved: bool) -> dict[str, Any]:
    cos, sin = oracle.rope_tables(np.arange(_FAR, _FAR + 64), 64)
    return {"x": d.normal(2, 4, 64, 64), "cos": d.cast(cos), "sin": d.cast(sin), "interleaved": interleaved}


def _rope_exact(x: Array, first: int) -> Array:
    """Rotation by the positions from ``first`` on."""
    positions = np.arange(first, first + x.shape[-2])
    return oracle.rope(oracle.wide(x), *oracle.rope_tables(positions, x.shape[-1], dtype=np.longdouble))


def _alibi_exact(scores: Array, offset: int = 0) -> Array:
    slopes = oracle.wide(oracle.alibi_slopes(scores.shape[-3]))
    return oracle.wide(scores) + oracle.alibi_bias(slopes, *scores.shape[-2:], offset)


_POSITIONS = [
    Row("apply_rope, half pairs", partial(_rope_inputs, interleaved=False), hw.apply_rope, oracle.rope),
    Row("apply_rope, interleaved", partial(_rope_inputs, interleaved=True), hw.apply_rope, oracle.rope),
    Row(
        "RotaryPositionalEmbedding, positions 0 to 63",
        lambda d: {"x": d.normal(4, 64, 64)},
        lambda x: hw.RotaryPositionalEmbedding(64)(x),
        partial(_rope_exact, first=0),
        slack=_NUMPY_TABLES,
    ),
    Row(
        "RotaryPositionalEmbedding, positions from 10^6",
        lambda d: {"x": d.normal(4, 64, 64)},
        lambda x: hw.RotaryPositionalEmbedding(64)(x, offset=_FAR),
        partial(_rope_exact, first=_FAR),
        slack=_NUMPY_TABLES,
    ),
    Row("add_alibi, 64 x 512 scores", lambda d: {"scores": d.normal(1, 8, 64, 512)}, hw.add_alibi, _alibi_exact),
    Row(
        "add_alibi, positions from 10^6",
        lambda d: {"scores": d.normal(1, 8, 8, 512), "offset": _FAR},
        hw.add_alibi,
        _alibi_exact,
    ),
]

# --- normalisation, activations, linear maps, a layer ---


def _normalized(*shape: int, **options: float) -> Callable[[Draw], dict[str, Any]]:
    return lambda d: {"x": d.normal(*shape, **options), "gamma": d.normal(shape[-1]), "beta": d.normal(shape[-1])}


def _rms_normalized(*shape: int, **options: float) -> Callable[[Draw], dict[str, Any]]:
    return lambda d: {"x": d.normal(*shape, **options), "gamma": d.normal(shape[-1])}


_ACTIVATED: dict[str, Callable[[Draw], dict[str, Any]]] = {
    "normal numbers": lambda d: {"x": d.normal(64, 1024)},
    "one number per row, from -8 to 0": lambda d: {"x": -8 * d.uniform(4096, 1)},
}


def _map(rows: int, depth: int, columns: int = 128, transposed: bool = False) -> Callable[[Draw], dict[str, Any]]:
    """Inputs of `linear`, with weights scaled for results of variance 1."""

    def inputs(d: Draw) -> dict[str, Any]:
        weight = d.normal(depth, columns, scale=math.sqrt(1 / depth))
        bias = d.normal(columns)
        return {"x": d.normal(rows, depth), "weight": np.asfortranarray(weight) if transposed else weight, "bias": bias}

    return inputs


def _positive_map(d: Draw) -> dict[str, Any]:
    return {"x": d.uniform(32, 4096), "weight": d.cast(d.uniform(4096, 128) / 64), "bias": d.uniform(128)}


def _tiny_map(d: Draw) -> dict[str, Any]:
    x, weight = d.normal(32, 256, scale=d.tiny), d.normal(256, 128, scale=1 / 16)
    return {"x": x, "weight": weight, "bias": d.normal(128, scale=d.tiny)}


_HEADS = 2


def _layer_inputs(d: Draw) -> dict[str, Any]:
    return {
        "x": d.normal(1, 160, 128),
        "weights": d.normal(4, 128, 128, scale=math.sqrt(1 / 128)),
        "biases": d.normal(4, 128),
    }


def _layer(x: Array, weights: Array, biases: Array) -> Array:
    layer = hw.MultiHeadAttention(x.shape[-1], _HEADS, bias=True)
    for letter, weight, bias in zip("qkvo", weights, biases, strict=True):
        setattr(layer, f"W_{letter}", weight.copy())
        setattr(layer, f"b_{letter}", bias.copy())
    output: Array = layer(x, need_weights=False)[0]
    return output


def _layer_exact(x: Array, weights: Array, biases: Array) -> Array:
    x, weights, biases = oracle.wide(x), oracle.wide(weights), oracle.wide(biases)
    split = (*x.shape[:2], _HEADS, -1)
    heads = [oracle.linear(x, w, b).reshape(split).swapaxes(1, 2) for w, b in zip(weights[:3], biases[:3], strict=True)]
    return oracle.linear(oracle.attention(*heads).output.swapaxes(1, 2).reshape(x.shape), weights[3], biases[3])


def _torch_layer(t: Any, x: Any, weights: Any, biases: Any) -> Any:
    query, key, value, out = weights.mT
    attended = t.nn.functional.multi_head_attention_forward(
        *(x.swapaxes(0, 1),) * 3, x.shape[-1], _HEADS, t.cat([query, key, value]), t.cat([*biases[:3]]), None, None,
        False, 0.0, out, biases[3], training=False, need_weights=False,
    )  # fmt: skip
    return attended[0].swapaxes(0, 1)


_OTHER = [
    *_rows_of(
        "layer_normalization",
        {
            "rows of 1,024": _normalized(64, 1024),
            "rows of 1,024, mean 10^4": _normalized(64, 1024, mean=1e4),
            "rows of 1,024, times 10^30": _normalized(64, 1024, scale=1e30),
            "rows of 65,536, mean 10": _normalized(4, 65536, mean=10),
        },
        hw.layer_normalization,
        oracle.layer_normalization,
        lambda t, x, gamma, beta: t.nn.functional.layer_norm(x, gamma.shape, gamma, beta),
    ),
    *_rows_of(
        "rms_norm",
        {
            "rows of 1,024": _rms_normalized(64, 1024),
            "rows of 1,024, times 10^30": _rms_normalized(64, 1024, scale=1e30),
        },
        hw.rms_norm,
        oracle.rms_norm,
        lambda t, x, gamma: t.nn.functional.rms_norm(x, gamma.shape, gamma, 1e-6),
    ),
    *_rows_of("gelu", _ACTIVATED, hw.gelu, oracle.gelu, lambda t, x: t.nn.functional.gelu(x)),
    *_rows_of(
        "gelu, tanh",
        _ACTIVATED,
        partial(hw.gelu, approximate="tanh"),
        partial(oracle.gelu, approximate="tanh"),
        lambda t, x: t.nn.functional.gelu(x, approximate="tanh"),
    ),
    *_rows_of("silu", _ACTIVATED, hw.silu, oracle.silu, lambda t, x: t.nn.functional.silu(x)),
    *_rows_of(
        "swiglu",
        {"normal numbers": lambda d: {"gate": d.normal(64, 1024), "up": d.normal(64, 1024)}},
        hw.swiglu,
        oracle.swiglu,
        lambda t, gate, up: t.nn.functional.silu(gate) * up,
    ),
    *_rows_of(
        "linear",
        {
            "32 rows, depth 1,024": _map(32, 1024),
            "32 rows, depth 4,096": _map(32, 4096),
            "32 rows, depth 4,096, numbers from 0 to 1": _positive_map,
            "one row, depth 4,096": _map(1, 4096),
            "one row, depth 4,096, weight transposed": _map(1, 4096, transposed=True),
            "32 rows, depth 256, subnormal": _tiny_map,
        },
        hw.linear,
        oracle.linear,
        lambda t, x, weight, bias: t.addmm(bias, x, weight),
        products=True,
    ),
    Row(
        "PackedLinear, 32 rows, depth 1,024",
        _map(32, 1024),
        lambda x, weight, bias: hw.PackedLinear(weight, bias)(x),
        oracle.linear,
        products=True,
    ),
    Row("MultiHeadAttention, (1, 160, 128), 2 heads", _layer_inputs, _layer, _layer_exact, _torch_layer, products=True),
]

# --- linear attention ---


def _tokens(**options: Any) -> Callable[[Draw], dict[str, Any]]:
    """1,024 tokens of two heads, with keys of about length 1 and rates as ``options`` ask for."""

    def draw(d: Draw) -> dict[str, Any]:
        shape = (1, 2, 1024, 64)
        tensors = {"query": d.normal(*shape), "key": d.normal(*shape, scale=0.125), "value": d.normal(*shape)}
        rule = options.get("rule", "")
        if "gated" in rule:
            tensors["decay"] = d.cast(1 - d.uniform(*shape[:3]) / 8)
        if "delta" in rule:
            tensors["beta"] = d.uniform(*shape[:3])
        return tensors | {"is_causal": True} | options

    return draw


_LINEAR_ATTENTION = _rows_of(
    "linear_attention",
    {
        "elu + 1, 1,024 tokens": _tokens(),
        **{f"{rule}, 1,024 tokens": _tokens(rule=rule, feature_map=None) for rule in ("gated", "delta", "gated_delta")},
    },
    lambda **inputs: hw.linear_attention(**inputs)[0],
    lambda **inputs: oracle.linear_attention(**inputs)[0],
)

ROWS = [*_SOFTMAX, *_ATTENTION, *_GRADIENTS, *_LINEAR_ATTENTION, *_POSITIONS, *_OTHER]
