"""Reference results of every operation, in double precision or better, written as in the papers.

Nothing here is shared with the package: loops over rows, plain formulas, masked keys left out of the sums instead of
given a weight of zero. Slow and obvious on purpose.

Results are float64, or np.longdouble where an argument is.
"""

from __future__ import annotations

from oracle.activations import geglu, geglu_backward, gelu, gelu_backward, silu, silu_backward, swiglu, swiglu_backward
from oracle.dense_attention import Attention, attention, merge_attention
from oracle.gradients import attention_gradients
from oracle.norms import layer_normalization, layer_normalization_backward, rms_norm, rms_norm_backward
from oracle.numbers import Array, double, normal, wide
from oracle.positions import add_alibi, alibi_bias, alibi_slopes, rope, rope_tables
from oracle.products import linear
from oracle.recurrence import linear_attention
from oracle.softmaxes import log_softmax, logsumexp, softmax

__all__ = [
    "Array",
    "Attention",
    "add_alibi",
    "alibi_bias",
    "alibi_slopes",
    "attention",
    "attention_gradients",
    "double",
    "geglu",
    "geglu_backward",
    "gelu",
    "gelu_backward",
    "layer_normalization",
    "layer_normalization_backward",
    "linear",
    "linear_attention",
    "log_softmax",
    "logsumexp",
    "merge_attention",
    "normal",
    "rms_norm",
    "rms_norm_backward",
    "rope",
    "rope_tables",
    "silu",
    "silu_backward",
    "softmax",
    "swiglu",
    "swiglu_backward",
    "wide",
]
