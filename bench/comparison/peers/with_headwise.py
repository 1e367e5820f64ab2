"""The operations of headwise."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any

import headwise as hw
from comparison.peers.base import Call, Peer

if TYPE_CHECKING:
    from types import SimpleNamespace

    from comparison.cases import Attention, Case, Elementwise, LayerNorm, Linear, MultiHead, Rope, Softmax, Varlen


class Headwise(Peer):
    label = "headwise"
    version = hw.__version__
    dtypes = ("float16", "bfloat16", "float32", "float64")

    def __init__(self, threads: int) -> None:
        hw.set_num_threads(threads)

    def prepare(self, case: Case, data: SimpleNamespace) -> Call | None:
        hw.set_precision(case.precision)
        return super().prepare(case, data)

    def attention(self, case: Attention, data: SimpleNamespace) -> Call:
        options: dict[str, Any] = {}
        if case.causal:
            options["is_causal"] = True
        if case.window:
            options["window_size"] = (case.window - 1, 0)
        if case.extra == "boolean mask":
            options["mask"] = data.mask
        if case.extra == "bias":
            options["bias"] = data.mask
        if case.extra == "key padding":
            options["key_padding_mask"] = data.mask[:, 0, 0]
        if case.extra == "ALiBi":
            options["alibi_slopes"] = data.slopes
        function = hw.scaled_dot_product_attention if case.weights else hw.flash_attention
        return partial(function, data.query, data.key, data.value, **options)

    def varlen(self, case: Varlen, data: SimpleNamespace) -> Call:
        return partial(hw.varlen_attention, *data.packed, data.starts, is_causal=case.causal)

    def multi_head(self, case: MultiHead, data: SimpleNamespace) -> Call:
        layer = hw.MultiHeadAttention(case.shape[-1], case.heads, bias=True)
        for letter, weight, bias in zip("qkvo", data.weights, data.biases, strict=True):
            setattr(layer, "W_" + letter, weight.copy())  # a copy, so that the layer may pack it
            setattr(layer, "b_" + letter, bias.copy())
        if case.weights:
            return partial(layer, data.x)
        return lambda: layer(data.x, need_weights=False)[0]

    def softmax(self, case: Softmax, data: SimpleNamespace) -> Call:
        return partial(hw.softmax, data.x, case.axis, out=data.out)

    def log_softmax(self, case: Softmax, data: SimpleNamespace) -> Call:
        return partial(hw.log_softmax, data.x, case.axis, out=data.out)

    def rope(self, case: Rope, data: SimpleNamespace) -> Call:
        return partial(hw.apply_rope, data.x, data.cos, data.sin, out=data.out)

    def layer_norm(self, case: LayerNorm, data: SimpleNamespace) -> Call:
        return partial(hw.layer_normalization, data.x, data.gamma, data.beta, out=data.out)

    def rms_norm(self, case: Elementwise, data: SimpleNamespace) -> Call:
        return partial(hw.rms_norm, data.x, data.gamma, out=data.out)

    def gelu(self, case: Elementwise, data: SimpleNamespace) -> Call:
        return partial(hw.gelu, data.x, out=data.out)

    def silu(self, case: Elementwise, data: SimpleNamespace) -> Call:
        return partial(hw.silu, data.x, out=data.out)

    def swiglu(self, case: Elementwise, data: SimpleNamespace) -> Call:
        return partial(hw.swiglu, data.x, data.up, out=data.out)

    def linear(self, case: Linear, data: SimpleNamespace) -> Call:
        return partial(hw.linear, data.x, data.weight, data.bias)


PEERS = {"headwise": Headwise}
