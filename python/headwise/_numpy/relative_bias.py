"""Biases by the distance of a key from a query (Shaw et al. 2018, section 3.2; Raffel et al. 2020, section 2.1).

A table has the axes (batch, heads, query rows, 2 M + 1), each of the first three of full size or 1. Entry ``M + t`` is
that of the distance ``t``; greater distances than ``M`` have the first or the last entry.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view

if TYPE_CHECKING:
    from headwise._base.typing import Array


def by_distance(table: Array, first: int, rows: int, keys: int) -> Array:
    """(batch, heads, rows, keys) with ``[..., i, j] = table[..., i, clip(first + j - i, -M, M) + M]``.

    ``first`` is the distance of key 0 from query 0. A strided view of O(rows + keys) entries where all rows share one.
    """
    middle = table.shape[3] // 2
    if table.shape[2] == 1:
        distances = np.arange(first - rows + 1, first + keys).clip(-middle, middle)
        windows: Array = sliding_window_view(table[:, :, 0, distances + middle], keys, axis=2)
        return windows[:, :, ::-1]  # the first window begins at the distance of the last row
    distances = first + np.arange(keys) - np.arange(rows)[:, np.newaxis]
    entries = distances.clip(-middle, middle) + middle
    return np.take_along_axis(table, entries[np.newaxis, np.newaxis], axis=3)


def add_by_distance(table: Array, first: int, scores: Array) -> None:
    """Add to each entry of ``table`` the ``scores`` that :func:`by_distance` has it in, summed over axes of size 1."""
    axes = tuple(axis for axis in (0, 1) if table.shape[axis] != scores.shape[axis])
    if axes:
        scores = scores.sum(axis=axes, keepdims=True)
    rows, keys = scores.shape[2:]
    last = table.shape[3] - 1
    for i in range(rows):
        row, total = scores[:, :, i], table[:, :, i if table.shape[2] > 1 else 0]
        entry = first - i + table.shape[3] // 2  # of key 0, if it were not clipped
        low, high = min(max(-entry, 0), keys), min(max(last + 1 - entry, 0), keys)
        total[..., 0] += row[..., :low].sum(axis=2)
        total[..., entry + low : entry + high] += row[..., low:high]
        total[..., last] += row[..., high:].sum(axis=2)
