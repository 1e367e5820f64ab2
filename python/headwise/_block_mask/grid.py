"""The sizes of a mask and of its blocks."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple, TypeAlias

import numpy as np

from headwise._base.outputs import check_room
from headwise._base.scalars import check_int, check_size

if TYPE_CHECKING:
    from collections.abc import Sequence

    from headwise._base.typing import Array

BlockSize: TypeAlias = int | tuple[int, int] | None

# The bits of a block fit into a second-level cache.
_MAX_BLOCK = 1 << 12


class Grid(NamedTuple):
    """The sizes of a mask, and of its blocks of queries and keys."""

    batch: int
    heads: int
    query_len: int
    key_len: int
    query_size: int
    key_size: int

    @property
    def query_blocks(self) -> int:
        return -(-self.query_len // self.query_size)

    @property
    def key_blocks(self) -> int:
        return -(-self.key_len // self.key_size)

    @property
    def blocks(self) -> tuple[int, int, int, int]:
        return (self.batch, self.heads, self.query_blocks, self.key_blocks)

    def block_lengths(self) -> tuple[Array, Array]:
        """The queries of each block of queries, and the keys of each block of keys."""
        rows = np.minimum(self.query_size, self.query_len - np.arange(self.query_blocks) * self.query_size)
        return rows, np.minimum(self.key_size, self.key_len - np.arange(self.key_blocks) * self.key_size)

    @property
    def row_bytes(self) -> int:
        return -(-self.key_size // 64) * 8


def make_grid(lead: Sequence[int], query_len: int, key_len: int, block_size: BlockSize) -> Grid:
    """The checked sizes. ``lead`` are batch and heads; ``block_size`` None is one that suits the lengths."""
    lengths = check_size(query_len, "query_len"), check_size(key_len, "key_len")
    if block_size is None:
        longest = max(lengths)
        query_size = key_size = 128 if longest > 1024 else 64 if longest > 256 else 16
    elif isinstance(block_size, (tuple, list)):
        sizes = tuple(block_size)
        if len(sizes) != 2:
            raise ValueError(f"block_size: {sizes}, expected an integer or a pair (queries, keys)")
        query_size, key_size = (check_int(size, "block_size", 1, _MAX_BLOCK) for size in sizes)
    else:
        query_size = key_size = check_int(block_size, "block_size", 1, _MAX_BLOCK)
    batch, heads = lead
    grid = Grid(batch, heads, *lengths, query_size, key_size)
    check_room(*grid.blocks)
    return grid
