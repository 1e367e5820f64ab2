"""Linear maps."""

from __future__ import annotations

from typing import Any

import headwise as hw
import oracle
from calls import Arguments, Array, Make, Operation, Sizes
from operations.options import OPTIONS
from operations.variants import PLAIN

LINEAR_PARALLEL = {
    "": Sizes((8,), 1, 60, 1, 96, 150),
    "blocks": Sizes((), 1, 480, 1, 96, 1100),
    "one-row": Sizes((), 1, 1, 1, 960, 1500),
    "few-rows": Sizes((), 1, 9, 1, 960, 1500),
}


def linear_arguments(s: Sizes, make: Make) -> Arguments:
    return {"x": make("x", s.rows), "weight": make("weight", (s.head_dim, s.value_dim))}


def packed_linear(x: Any, weight: Any, bias: Any = None, precision: Any = None, out: Any = None) -> Array:
    return hw.PackedLinear(weight, bias, precision=precision)(x, out=out)


def expected_linear(x: Any, weight: Any, bias: Any = None, precision: Any = None) -> Array:
    return oracle.linear(x, weight, bias)


PRODUCTS = [
    Operation(
        hw.linear,
        linear_arguments,
        expected_linear,
        PLAIN
        | {
            "bias": lambda s, make: {"bias": make("bias", (s.value_dim,))},
            "transposed": lambda s, make: {"weight": make("weight", (s.value_dim, s.head_dim)).T},
        },
        draws={"precision": OPTIONS["precision"].draw},
        in_place=False,
        parallel=LINEAR_PARALLEL,
        large=Sizes((), 1, 4096, 1, 512, 2048),
        wrt=("x", "weight", "bias"),
    ),
    Operation(
        packed_linear,
        linear_arguments,
        expected_linear,
        PLAIN | {"bias": lambda s, make: {"bias": make("bias", (s.value_dim,))}},
        draws={"precision": OPTIONS["precision"].draw},
        in_place=False,
        parallel=LINEAR_PARALLEL,
        large=Sizes((), 1, 4096, 1, 512, 2048),
    ),
]
