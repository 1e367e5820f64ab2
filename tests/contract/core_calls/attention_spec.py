"""The options of a call of attention, as the core takes them."""

from __future__ import annotations

from typing import Any

import numpy as np

from contract.core_calls.call import BOOL, FLOATS, INT8, INT64, Call


def spec(
    call: Call,
    dtype: np.dtype[Any],
    scores: tuple[int, ...],
    *,
    masks: bool = True,
    scales: tuple[Any, Any] = (None, None),
) -> Any:
    accumulator = FLOATS[0] if dtype.itemsize == 2 else dtype

    def score_arrays(dtype: np.dtype[Any]) -> list[Any]:
        count = call.pick(0, 0, 1, 2) if masks or call.spoilt() else 0
        return [call.array(dtype, *(call.pick(1, size) for size in scores[:3]), scores[3]) for _ in range(count)]

    lengths: tuple[Any, Any] = (None, None)
    if call.chance(0.3) and (masks or call.spoilt()):
        lengths = (
            call.integers(call.rng.integers(0, scores[3] + 1, scores[0])),
            call.integers(np.zeros(scores[0], INT64)),
        )
    return call.tuple(
        call.number(0.3),
        call.number(call.pick(0.0, 5.0)),
        call.integer(call.pick(-1, 0, 3)),
        call.integer(call.pick(-1, 0, 3)),
        call.integer(call.pick(0, 2, -2)),
        call.precision(),
        call.tuple(*score_arrays(BOOL)),
        call.tuple(*score_arrays(call.pick(dtype, accumulator))),
        call.array(accumulator, scores[1], optional=True),
        call.array(accumulator, scores[1], optional=True),
        (score_arrays(BOOL) or [None])[0],
        call.number(1.25),
        *lengths,
        *scales,
        None,  # blocks: given by the calls of functions alone
        None,  # score_mod
        relative_bias(call, accumulator, scores),
    )


def relative_bias(call: Call, dtype: np.dtype[Any], scores: tuple[int, ...]) -> Any:
    width = call.pick(1, 3, 7) + (1 if call.spoilt() else 0)
    return call.array(dtype, *(call.pick(1, size) for size in scores[:3]), width, optional=True)


def stored_keys(call: Call, dtype: np.dtype[Any], shape: tuple[int, ...]) -> tuple[np.dtype[Any], tuple[Any, Any]]:
    """The dtype of keys and values of ``shape``, and the factors of int8."""
    if dtype != FLOATS[0] or call.chance(0.6):
        return dtype, (None, None)
    stored = call.pick(INT8, *(one for one in FLOATS if one.itemsize == 2))
    if stored != INT8:
        return stored, (None, None)
    return stored, (call.array(FLOATS[0], *shape), call.array(FLOATS[0], *shape))
