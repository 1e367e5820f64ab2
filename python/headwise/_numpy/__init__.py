"""The NumPy backend: this package has the functions of :class:`headwise._runtime.backend.Backend`.

All work is done in blocks that stay in cache: attention holds no more than a block of its scores, and no more than a
block of a 16-bit array is converted to float32 at a time. Overflow and NaN follow IEEE rules, without warnings, as in
the native core.
"""

from headwise._numpy.activation import activation, activation_backward
from headwise._numpy.alibi import add_alibi
from headwise._numpy.attention import attention, attention_varlen
from headwise._numpy.attention_backward import attention_backward, attention_varlen_backward
from headwise._numpy.attention_statistics import attention_statistics
from headwise._numpy.layer_norm import (
    layer_normalization,
    layer_normalization_backward,
    rms_norm,
    rms_norm_backward,
)
from headwise._numpy.linear import linear, pack_linear
from headwise._numpy.linear_attention import linear_attention
from headwise._numpy.rope import apply_rope
from headwise._numpy.runtime import get_num_threads, get_target, list_targets, set_num_threads, set_target
from headwise._numpy.softmax import log_softmax, logsumexp, softmax

__all__ = [
    "activation",
    "activation_backward",
    "add_alibi",
    "apply_rope",
    "attention",
    "attention_backward",
    "attention_statistics",
    "attention_varlen",
    "attention_varlen_backward",
    "get_num_threads",
    "get_target",
    "layer_normalization",
    "layer_normalization_backward",
    "linear",
    "linear_attention",
    "list_targets",
    "log_softmax",
    "logsumexp",
    "pack_linear",
    "rms_norm",
    "rms_norm_backward",
    "set_num_threads",
    "set_target",
    "softmax",
]
