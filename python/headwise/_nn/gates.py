"""The rates ``decay`` and ``beta`` of a layer of linear attention: numbers, or ``sigmoid(x @ W + b)`` of its input."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from headwise._base.arrays import as_array, check_dtype
from headwise._base.ieee import cast_dtype, ieee
from headwise._base.linear_attention_spec import RULES
from headwise._base.messages import shown
from headwise._base.typing import FLOAT64
from headwise._ops.gradients.linear import linear_gradients
from headwise._ops.linear import linear
from headwise._ops.linear_attention.arguments import check_decay

if TYPE_CHECKING:
    from headwise._base.layer import Slot
    from headwise._base.typing import Array

#: The value of the arguments ``decay`` and ``beta`` of a layer with such rates.
LEARNED = "learned"


@ieee
def gate(x: Array, weight: Slot, bias: Slot) -> Array:
    """Rates in (0, 1], (batch, kv_heads, seq), of rows (batch, seq, d_model), in their dtype.

    Those of rows with NaN or infinity, whose keys and values are not finite either, are 1 where they would be NaN: a
    decay of NaN is not allowed.
    """
    z = np.ascontiguousarray(linear(x, weight.cast(x.dtype), bias.cast(x.dtype)).swapaxes(1, 2))
    e = np.exp(-np.abs(z))
    rates = np.where(z < 0, e, 1) / (1 + e)
    found: Array = np.maximum(rates, np.finfo(x.dtype).tiny)  # a decay of 0 is not allowed
    undefined = np.isnan(found)
    if undefined.any():
        finite: Any = np.isfinite(x).all(axis=2)
        found[undefined & ~finite[:, np.newaxis]] = 1
    return found


@ieee
def gate_gradients(d_rates: Array, rates: Array, x: Array, weight: Slot, bias: Slot) -> dict[str, Array]:
    """The gradients by "x", "weight" and "bias" from those by the result of :func:`gate`."""
    d_z = (d_rates * (rates * (1 - rates))).astype(x.dtype).swapaxes(1, 2)
    names = ("x", "weight", "bias")
    return linear_gradients(d_z, x, weight.cast(x.dtype), bias.cast(x.dtype), None, names)


def initial_decay_bias(heads: int) -> Array:
    """The biases whose sigmoids are the decays of RetNet, ``1 - 2 ** -(5 + h)`` for head ``h``."""
    return np.log(2.0 ** (5.0 + np.minimum(np.arange(heads), 995)) - 1)


def check_rate(given: Any, name: str, rule: str, heads: int) -> Array | str | None:
    """The layer's ``decay`` or ``beta``: float64 (heads,), "learned" or None."""
    if given is None:
        return None
    if not RULES[rule][name == "beta"]:
        fitting = " or ".join(repr(r) for r, needs in RULES.items() if needs[name == "beta"])
        raise ValueError(f"{name}: given with rule {shown(rule)}, expected None, or rule {fitting}")
    if isinstance(given, str):
        if given != LEARNED:
            raise ValueError(f"{name}: {shown(given)}, expected {LEARNED!r}, a number or ({heads},) numbers")
        return given
    rates = as_array(given, name)
    check_dtype(rates.dtype, name)
    if rates.shape not in ((), (heads,)):
        raise ValueError(f"{name}: shape {rates.shape}, expected () or (num_kv_heads,) = ({heads},); others by call")
    made = np.array(np.broadcast_to(cast_dtype(rates, FLOAT64), (heads,)))
    if name == "decay":
        check_decay(made)
    return made
