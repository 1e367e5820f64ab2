"""Linear attention."""

from __future__ import annotations

from typing import Any

import numpy as np

import headwise as hw
import oracle
from calls import Arguments, Array, Make, Operation, Sizes, Variant
from operations.attention import ATTENTION_SMALL, attention_arguments
from operations.options import OPTIONS
from operations.variants import PLAIN


def token_variant(**values: Any) -> Variant:
    """Linear attention in which each query has a key, and these keywords."""
    return lambda s, make: {
        "key": make("key", (*s.kv_lead, s.queries, s.head_dim)),
        "value": make("value", (*s.kv_lead, s.queries, s.value_dim)),
        **values,
    }


def unit_features(x: Array) -> Array:
    """Rows of length 1, with which the delta rules are stable."""
    with np.errstate(all="ignore"):
        squares = (x * x).sum(axis=-1, keepdims=True)
        return np.asarray(x / np.sqrt(squares + (squares == 0)))


def state_variant(s: Sizes, make: Make) -> Arguments:
    return {"feature_map": None, "scale": 0.0625, "state": make("state", (*s.kv_lead, s.head_dim, s.value_dim))}


DELTA = {"rule": "delta", "beta": 0.75, "feature_map": unit_features, "normalize": False}
#: Rates are no arrays here, so that no suite takes them out of (0, 1]: tests/ops/test_linear_attention.py has arrays.
LINEAR_ATTENTION = PLAIN | {
    "state": state_variant,
    "causal": token_variant(is_causal=True, chunk=3),
    "gated": token_variant(rule="gated", decay=0.875, feature_map=None),
    "delta": token_variant(**DELTA),
    "gated_delta": token_variant(**DELTA | {"rule": "gated_delta", "decay": 0.75}),
}


LINEAR = [
    Operation(
        hw.linear_attention,
        attention_arguments,
        oracle.linear_attention,
        LINEAR_ATTENTION,
        draws={"chunk": lambda st, array, s: st.integers(1, 40), "scale": OPTIONS["scale"].draw},
        out=False,
        small=ATTENTION_SMALL,
        parallel={"": Sizes((2, 4), 4, 600, 600, 32, 24)},
        large=Sizes((1, 4), 4, 4096, 4096, 64, 64),
        lead=(1,),
    ),
]
