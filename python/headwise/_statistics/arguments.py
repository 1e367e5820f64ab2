"""The arguments of ``attention_statistics`` that other functions of attention do not have."""

from __future__ import annotations

from typing import TYPE_CHECKING

from headwise._base.attention_statistics import NAMES
from headwise._base.messages import shown
from headwise._base.scalars import check_int
from headwise._block_mask.grid import make_grid

if TYPE_CHECKING:
    from headwise._block_mask.grid import BlockSize, Grid
    from headwise._ops.attention.shapes import AttentionShape

_DEFAULT_K = 8


def check_names(which: object) -> tuple[str, ...]:
    """``which=`` as a tuple of names."""
    names = (which,) if isinstance(which, str) else which
    if not isinstance(names, (tuple, list)):
        raise TypeError(f"which: {type(which).__name__}, expected a name or a sequence of names of {', '.join(NAMES)}")
    names = tuple(names)
    if not names:
        raise ValueError(f"which: no name, expected some of {', '.join(NAMES)}")
    for name in names:
        if not isinstance(name, str):
            raise TypeError(f"which: {shown(name)} of type {type(name).__name__}, expected some of {', '.join(NAMES)}")
        if name not in NAMES:
            raise ValueError(f"which: {shown(name)}, expected some of {', '.join(NAMES)}")
    return names


def check_k(k: object, key_len: int) -> int:
    """``k=``, from 1 to the number of keys."""
    if k is None:
        return min(_DEFAULT_K, key_len)
    count = check_int(k, "k")
    if not 1 <= count <= key_len:
        raise ValueError(f"k: {count}, expected 1 to {key_len}, the length of key")
    return count


def statistics_grid(shape: AttentionShape, block_size: BlockSize, *, average: bool) -> Grid:
    """The sizes of the statistics' weights and of the blocks of "block_mass"."""
    batch, heads, query_len, key_len = shape.scores
    grid = make_grid((batch, 1 if average else heads), max(1, query_len), max(1, key_len), block_size)
    return grid._replace(query_len=query_len, key_len=key_len)
