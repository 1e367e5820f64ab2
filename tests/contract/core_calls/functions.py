"""The functions of the core, the generators of their arguments and their outputs."""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module
from typing import Any

import numpy as np

from contract.core_calls import attention, rows
from contract.core_calls.call import Call


def core() -> Any:
    return import_module("headwise._core")


def call_packed_linear(x: Any, weight: Any, bias: Any, out: Any, precision: Any) -> None:
    packed = core().pack_linear(weight, bias, precision)
    if isinstance(weight, np.ndarray):
        reshape_in_place(weight)  # as its owner may
    packed(x, out)


def reshape_in_place(array: np.ndarray[Any, Any]) -> None:
    try:
        array.shape = array.shape[::-1] if array.size % 2 else (array.size, 1)
    except (AttributeError, ValueError):  # a view whose memory the shape does not fit
        return


#: The generators of arguments, by the name of the function.
FUNCTIONS: dict[str, Callable[[Call], tuple[Any, ...]]] = {
    "softmax": rows.softmax,
    "log_softmax": rows.softmax,
    "logsumexp": rows.logsumexp,
    "attention": attention.attention,
    "attention_backward": attention.attention_backward,
    "attention_varlen": attention.attention_varlen,
    "attention_varlen_backward": attention.attention_varlen_backward,
    "apply_rope": rows.apply_rope,
    "add_alibi": rows.add_alibi,
    "linear": rows.linear,
    "PackedLinear": rows.linear,
    "linear_attention": attention.linear_attention,
    "layer_normalization": rows.layer_normalization,
    "rms_norm": rows.rms_norm,
    "layer_normalization_backward": rows.layer_normalization_backward,
    "rms_norm_backward": rows.rms_norm_backward,
    "activation": rows.activation,
    "activation_backward": rows.activation_backward,
}
#: Their outputs, if that is not the last argument.
OUTPUTS = {
    "attention": (3, 4, 5),
    "attention_backward": (8, 9, 10, 11, 12, 13, 14),
    "attention_varlen": (3, 4),
    "attention_varlen_backward": (7, 8, 9, 10, 11),
    "apply_rope": (3,),
    "linear": (3,),
    "PackedLinear": (3,),
    "linear_attention": (6, 7),
    "layer_normalization_backward": (4, 5, 6),
    "rms_norm_backward": (4, 5),
    "activation": (2,),
    "activation_backward": (3, 4),
}
