"""The options of a call of attention, as the core takes them."""

from __future__ import annotations

from typing import Any

import numpy as np

from contract.core_calls.call import BOOL, FLOATS, INT8, INT64, UINT8, Call


def spec(
    call: Call,
    dtype: np.dtype[Any],
    scores: tuple[int, ...],
    *,
    masks: bool = True,
    scaling: tuple[Any, Any] = (None, None),
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
        *scaling,
        None,  # blocks: given by the calls of functions alone
        None,  # score_mod
        relative_bias(call, accumulator, scores),
    )


def relative_bias(call: Call, dtype: np.dtype[Any], scores: tuple[int, ...]) -> Any:
    width = call.pick(1, 3, 7) + (1 if call.spoilt() else 0)
    return call.array(dtype, *(call.pick(1, size) for size in scores[:3]), width, optional=True)


def stored_keys(
    call: Call, dtype: np.dtype[Any], shape: tuple[int, ...], widths: tuple[int, int]
) -> tuple[np.dtype[Any], tuple[Any, Any]]:
    """The dtype of keys and values of ``shape`` and ``widths``, and the factors and bits of int8."""
    stored = dtype
    if dtype == FLOATS[0] and not call.chance(0.6):
        stored = call.pick(INT8, *(one for one in FLOATS if one.itemsize == 2))
    if stored != INT8:
        return stored, (None, None)
    keys, values = (
        call.tuple(call.array(FLOATS[0], *shape), call.array(UINT8, *shape, (width + 7) // 8)) for width in widths
    )
    return stored, (keys, values)
