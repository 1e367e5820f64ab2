"""Checks of arguments of the constructor of multi-head attention."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from headwise._base.arrays import as_array, check_dtype
from headwise._base.messages import shown
from headwise._base.scalars import check_flag, check_real
from headwise._base.typing import FLOAT64
from headwise._ops.alibi import alibi_slopes
from headwise._ops.attention.spec import check_softcap, check_window
from headwise._positions.rotary import RotaryPositionalEmbedding
from headwise._runtime.precision import check_precision

if TYPE_CHECKING:
    from headwise._base.typing import Array
    from headwise._ops.attention.options import AttentionOptions


def check_biases(bias: object) -> str:
    """The letters of the projections that have a bias."""
    if not isinstance(bias, str):
        return "qkvo" if check_flag(bias, "bias") else ""
    if not bias or set(bias) - set("qkvo"):
        raise ValueError(f"bias: {shown(bias)}, expected True, False or some of the letters of 'qkvo'")
    return bias


def check_rope(rope: object, width: int) -> RotaryPositionalEmbedding | None:
    if rope is None:
        return None
    if not isinstance(rope, RotaryPositionalEmbedding):
        raise TypeError(f"rope: {type(rope).__name__}, expected a RotaryPositionalEmbedding")
    if rope.d_model != width:
        raise ValueError(f"rope: of width {rope.d_model}, expected d_k = {width}")
    return rope


def check_alibi(alibi: object, num_heads: int) -> Array | None:
    """The slopes of the heads, or None."""
    if isinstance(alibi, (int, np.bool_)):
        return alibi_slopes(num_heads) if check_flag(alibi, "alibi") else None
    slopes = as_array(alibi, "alibi")
    check_dtype(slopes.dtype, "alibi")
    if slopes.shape != (num_heads,):
        raise ValueError(f"alibi: shape {slopes.shape}, expected True, False or slopes of shape ({num_heads},)")
    return slopes.astype(FLOAT64)


def check_defaults(window_size: Any, softcap: Any, scale: Any, precision: Any) -> AttentionOptions:
    """The keywords that are not None, checked."""
    given: AttentionOptions = {}
    if window_size is not None:
        check_window(window_size, 0)
        given["window_size"] = window_size
    if softcap is not None:
        given["softcap"] = check_softcap(softcap)
    if scale is not None:
        given["scale"] = check_real(scale, "scale")
    if precision is not None:
        given["precision"] = check_precision(precision)
    return given
