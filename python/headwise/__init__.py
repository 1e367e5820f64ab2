"""Attention and positional encodings for NumPy arrays, with SIMD kernels in C++ and a NumPy fallback.

>>> import numpy as np
>>> import headwise as hw
>>> x = np.random.default_rng(0).standard_normal((2, 5, 64))
>>> output, weights = hw.MultiHeadAttention(d_model=64, num_heads=8, rng=0)(x)
>>> output.shape, weights.shape
((2, 5, 64), (2, 8, 5, 5))
"""

import typing as _typing
from importlib import import_module as _import_module

from headwise import attention, cache, layers, masks, normalization, plot, positional_encoding, relative, rope
from headwise._base.public_modules import name_public_modules as _name_public_modules
from headwise._ops.activation import geglu, gelu, silu, swiglu
from headwise._ops.alibi import add_alibi, alibi_bias, alibi_slopes
from headwise._ops.attention.dense import flash_attention, scaled_dot_product_attention
from headwise._ops.attention.merge import merge_attention
from headwise._ops.attention.varlen import varlen_attention
from headwise._ops.dropout import dropout
from headwise._ops.gradients.activation import geglu_backward, gelu_backward, silu_backward, swiglu_backward
from headwise._ops.gradients.attention import flash_attention_backward
from headwise._ops.gradients.layer_norm import layer_normalization_backward, rms_norm_backward
from headwise._ops.gradients.linear import linear_backward
from headwise._ops.gradients.rope import apply_rope_backward
from headwise._ops.gradients.rules import vjp
from headwise._ops.gradients.softmax import log_softmax_backward, logsumexp_backward, softmax_backward
from headwise._ops.gradients.varlen import varlen_attention_backward
from headwise._ops.layer_norm import layer_normalization, rms_norm
from headwise._ops.linear import linear
from headwise._ops.linear_attention.function import linear_attention
from headwise._ops.linear_attention.performer import performer_features
from headwise._ops.packed_linear import PackedLinear
from headwise._ops.rope import apply_rope
from headwise._ops.softmax import log_softmax, logsumexp, softmax
from headwise._runtime.config import config, get_num_threads, list_targets, set_num_threads, set_target, show_config
from headwise._runtime.precision import get_precision, precision, set_precision
from headwise._statistics.function import attention_statistics
from headwise._version import __version__
from headwise.attention import (
    attention_score_visualization,
    cross_attention,
    learned_positional_encoding,
    multi_head_attention,
    multi_head_self_attention,
    self_attention,
)
from headwise.cache import KVCache
from headwise.layers import CausalAttention, LinearAttention, MultiHeadAttention
from headwise.masks import (
    BlockMask,
    CausalMask,
    PaddingMask,
    create_causal_mask,
    create_look_ahead_mask,
    create_padding_mask,
)
from headwise.positional_encoding import (
    ALiBiPositionalBias,
    LearnedPositionalEmbedding,
    RelativePositionalEncoding,
    RotaryPositionalEmbedding,
    SinusoidalPositionalEncoding,
)
from headwise.relative import (
    deberta_relative_bias,
    fire_relative_bias,
    kerple_relative_bias,
    shaw_relative_bias,
    t5_relative_bias,
    transformer_xl_relative_bias,
)
from headwise.rope import permute_rope_weights, rope_parameters, rope_tables

__all__ = [
    "ALiBiPositionalBias",
    "BlockMask",
    "CausalAttention",
    "CausalMask",
    "KVCache",
    "LearnedPositionalEmbedding",
    "LinearAttention",
    "MultiHeadAttention",
    "PackedLinear",
    "PaddingMask",
    "RelativePositionalEncoding",
    "RotaryPositionalEmbedding",
    "SinusoidalPositionalEncoding",
    "__version__",
    "add_alibi",
    "alibi_bias",
    "alibi_slopes",
    "apply_rope",
    "apply_rope_backward",
    "attention",
    "attention_score_visualization",
    "attention_statistics",
    "cache",
    "config",
    "create_causal_mask",
    "create_look_ahead_mask",
    "create_padding_mask",
    "cross_attention",
    "deberta_relative_bias",
    "dropout",
    "fire_relative_bias",
    "flash_attention",
    "flash_attention_backward",
    "geglu",
    "geglu_backward",
    "gelu",
    "gelu_backward",
    "get_num_threads",
    "get_precision",
    "kerple_relative_bias",
    "layer_normalization",
    "layer_normalization_backward",
    "layers",
    "learned_positional_encoding",
    "linear",
    "linear_attention",
    "linear_backward",
    "list_targets",
    "log_softmax",
    "log_softmax_backward",
    "logsumexp",
    "logsumexp_backward",
    "masks",
    "merge_attention",
    "multi_head_attention",
    "multi_head_self_attention",
    "normalization",
    "performer_features",
    "permute_rope_weights",
    "plot",
    "positional_encoding",
    "precision",
    "rms_norm",
    "rms_norm_backward",
    "rope",
    "rope_parameters",
    "rope_tables",
    "scaled_dot_product_attention",
    "self_attention",
    "set_num_threads",
    "set_precision",
    "set_target",
    "shaw_relative_bias",
    "show_config",
    "silu",
    "silu_backward",
    "softmax",
    "softmax_backward",
    "swiglu",
    "swiglu_backward",
    "t5_relative_bias",
    "transformer_xl_relative_bias",
    "varlen_attention",
    "varlen_attention_backward",
    "vjp",
]

_name_public_modules(
    cache,
    layers,
    masks,
    normalization,
    plot,
    relative,
    rope,
    attention,
    positional_encoding,
    _import_module(__name__),
)


if _typing.TYPE_CHECKING:
    from headwise import integrations as integrations
else:  # unseen by type checkers, for which it would make every name an attribute

    def __getattr__(name: str) -> object:
        """``headwise.integrations``, which is loaded when it is first used."""
        if name == "integrations":
            return _import_module("headwise.integrations")
        raise AttributeError(f"module 'headwise' has no attribute {name!r}")
