"""What a :class:`~headwise.BlockMask` holds: its shape, its shares, itself as an array, its blocks for backends."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from headwise._base.blocks import ALL, FIRST_BITS, NONE, Blocks, KeepBlocks
from headwise._base.outputs import check_room
from headwise._block_mask.grid import Grid

if TYPE_CHECKING:
    from typing import NoReturn

    from typing_extensions import Self

    from headwise._base.typing import Array

_ONES = np.array([i.bit_count() for i in range(256)], np.int64)


class MaskViews(KeepBlocks):
    """Blocks on a grid, and how they are read."""

    __slots__ = ("_blocks", "_grid", "_with_heads")

    _blocks: Blocks
    _grid: Grid
    _with_heads: bool

    @classmethod
    def _of(cls, blocks: Blocks, grid: Grid, with_heads: bool) -> Self:
        mask = object.__new__(cls)
        mask._blocks, mask._grid, mask._with_heads = blocks, grid, with_heads
        return mask

    @property
    def shape(self) -> tuple[int, ...]:
        full = tuple(self._grid[:4])
        return full if self._with_heads else full[2:]

    @property
    def block_size(self) -> tuple[int, int]:
        return self._grid.query_size, self._grid.key_size

    @property
    def kept(self) -> float:
        g = self._grid
        return float(self._counts().sum() / (g.batch * g.heads * g.query_len * g.key_len))

    def _counts(self) -> Array:
        """The pairs that each block keeps, int64."""
        entries = self._blocks.entries
        rows, keys = self._grid.block_lengths()
        counts: Array = (entries == ALL) * (rows[:, np.newaxis] * keys)
        some = entries >= FIRST_BITS
        patterns = _ONES[self._blocks.bits.view(np.uint8)].sum(axis=(1, 2))
        counts[some] = patterns[entries[some] - FIRST_BITS]
        return counts

    def block_shares(self) -> Array:
        """The share of the pairs that each block keeps.

        Returns
        -------
        ndarray
            float64, (query_blocks, key_blocks), or with axes (batch, heads) before as :attr:`shape` has.

        Examples
        --------
        >>> import headwise as hw
        >>> hw.BlockMask.causal(4, 4, block_size=2).block_shares()
        array([[0.75, 0.  ],
               [1.  , 0.75]])
        """
        rows, keys = self._grid.block_lengths()
        shares: Array = self._counts() / (rows[:, np.newaxis] * keys)
        return shares if self._with_heads else shares.reshape(shares.shape[2:])

    @property
    def kept_blocks(self) -> float:
        return float(np.count_nonzero(self._blocks.entries != NONE) / self._blocks.entries.size)

    def to_dense(self) -> Array:
        """The mask as an array.

        Returns
        -------
        ndarray
            Of bool, in the shape of the mask.

        Examples
        --------
        >>> import headwise as hw
        >>> hw.BlockMask.causal(2, 2).to_dense()
        array([[ True, False],
               [ True,  True]])
        """
        g = self._grid
        check_room(*g[:4])
        dense = np.empty(g[:4], bool)
        everything = slice(0, g.batch), slice(0, g.heads)
        for start in range(0, g.query_len, g.query_size):
            rows = slice(start, min(g.query_len, start + g.query_size))
            part = self._blocks.keep(*everything, rows, slice(0, g.key_len))
            dense[:, :, rows] = True if part is None else part
        return dense.reshape(self.shape)

    def for_scores(self, scores: tuple[int, ...]) -> Blocks:
        """The blocks, as backends read them.

        Parameters
        ----------
        scores : tuple of int
            (batch, heads, query_len, key_len) of a call of attention.

        Returns
        -------
        tuple
            The entries of the blocks, their bits and their sizes.

        Raises
        ------
        ValueError
            If the mask has other lengths, or is for another number of batch entries or heads.

        Examples
        --------
        >>> import headwise as hw
        >>> hw.BlockMask.causal(4, 4, block_size=2).for_scores((1, 1, 4, 4)).query_size
        2
        """
        for ours, theirs, axis in zip(self._grid[:4], scores, Grid._fields, strict=False):
            if ours != theirs and (ours != 1 or axis.endswith("len")):
                expected = f"{theirs}" if axis.endswith("len") else f"1 or {theirs}"
                raise ValueError(
                    f"mask: a BlockMask of {self.shape}, whose {axis} is {ours}, expected {expected} for scores "
                    f"(batch, heads, query_len, key_len) of {tuple(scores)}"
                )
        return self._blocks

    def __array__(self, *_: Any, **__: Any) -> NoReturn:
        raise TypeError("a BlockMask, expected an array here; to_dense() makes one of query_len x key_len")

    def __repr__(self) -> str:
        shares = f"kept={self.kept:.4f}, kept_blocks={self.kept_blocks:.4f}"
        return f"BlockMask({self.shape}, block_size={self.block_size}, {shares})"
