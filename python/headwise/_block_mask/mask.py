"""``BlockMask``: a keep-mask in blocks, whose dropped blocks cost attention no time."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from headwise._base.arrays import as_array
from headwise._base.blocks import ALL, FIRST_BITS, NONE, Blocks, KeepBlocks
from headwise._base.outputs import check_room
from headwise._base.scalars import check_size
from headwise._block_mask import evaluate, patterns
from headwise._block_mask.grid import Grid, make_grid

if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import NoReturn

    from numpy.typing import ArrayLike

    from headwise._base.typing import Array
    from headwise._block_mask.evaluate import MaskMod
    from headwise._block_mask.grid import BlockSize


__all__ = ["BlockMask"]


class BlockMask(KeepBlocks):
    """A keep-mask of query_len x key_len in blocks, each of which is dropped, kept, or kept in part.

    As the ``mask`` of an attention function, the time of the forward and backward pass follows the blocks that are not
    dropped. Memory is one number for each block, and bits for each different pattern of a block that is kept in part.
    Masks are made by the class methods and combined by ``&``, ``|`` and ``~``; they do not change.

    Attributes
    ----------
    shape : tuple of int
        (query_len, key_len), or (batch, heads, query_len, key_len) with sizes of 1 for an axis that was not given.
    block_size : (int, int)
        The queries and the keys of a block.
    kept : float
        The share of the pairs of a query and a key that are kept.
    kept_blocks : float
        The share of the blocks that keep some pair.

    Raises
    ------
    TypeError
        If the class itself is called.

    See Also
    --------
    flash_attention : Takes a BlockMask as its ``mask``.

    References
    ----------
    .. [1] J. Dong et al., "Flex Attention: A Programming Model for Generating Optimized Attention Kernels", 2024,
       section 4.

    Examples
    --------
    A causal window of 64 keys, and 8 tokens that everybody sees:

    >>> import numpy as np
    >>> import headwise as hw
    >>> mask = hw.BlockMask.window((63, 0), 1024, 1024) | hw.BlockMask.global_tokens(8, 1024, 1024)
    >>> mask &= hw.BlockMask.causal(1024, 1024)
    >>> mask
    BlockMask((1024, 1024), block_size=(64, 64), kept=0.0679, kept_blocks=0.1758)
    >>> x = np.random.default_rng(0).standard_normal((1, 2, 1024, 16), dtype=np.float32)
    >>> output = hw.flash_attention(x, x, x, mask)
    >>> bool(np.allclose(output, hw.flash_attention(x, x, x, mask.to_dense()), atol=1e-5))
    True
    """

    __slots__ = ("_blocks", "_grid", "_with_heads")

    _blocks: Blocks
    _grid: Grid
    _with_heads: bool

    def __init__(self) -> None:
        raise TypeError("BlockMask: made by its class methods, such as BlockMask.causal(query_len, key_len)")

    @classmethod
    def _of(cls, blocks: Blocks, grid: Grid, with_heads: bool) -> BlockMask:
        mask = object.__new__(cls)
        mask._blocks, mask._grid, mask._with_heads = blocks, grid, with_heads
        return mask

    @classmethod
    def _from(cls, mask_mod: MaskMod, query_len: int, key_len: int, block_size: BlockSize, batch: int = 0) -> BlockMask:
        return cls.from_mod(mask_mod, query_len, key_len, batch=batch or None, block_size=block_size)

    # ------------------------------------------------------------------------------------------------------- builders

    @classmethod
    def from_mod(
        cls,
        mask_mod: Callable[[Any, Any, Any, Any], Any],
        query_len: int,
        key_len: int,
        *,
        batch: int | None = None,
        heads: int | None = None,
        block_size: BlockSize = None,
    ) -> BlockMask:
        """The pairs for which ``mask_mod(batch, head, q, k)`` is True.

        Parameters
        ----------
        mask_mod : callable
            Takes arrays of integers of the shapes (batch, 1, 1, 1), (1, heads, 1, 1), (1, 1, queries, 1) and
            (1, 1, 1, keys), the indices of some pairs, and returns an array of bool that broadcasts against them.
        query_len, key_len : int
            The lengths.
        batch, heads : int, optional
            The number of batch entries and of query heads, if the mask differs between them.
        block_size : int or (int, int), optional
            Queries and keys of a block; by default 128 for long sequences, and less for short ones.

        Raises
        ------
        ValueError
            If a size is not positive, or the function returns an array of another shape or looks up an index that its
            arrays do not have.
        TypeError
            If an argument has a wrong type, or the function returns anything but bool.

        Notes
        -----
        The function is called for a few blocks at a time. First it is called with the ranges of the indices of all
        blocks at once: functions of ``+ - * // % abs``, comparisons and ``& | ~ ^`` decide most blocks that way, and
        only the others are evaluated. It is to depend on nothing but its arguments.

        Examples
        --------
        >>> import headwise as hw
        >>> mask = hw.BlockMask.from_mod(lambda b, h, q, k: (k <= q) & (q - k < 2), 4, 4)
        >>> mask.to_dense().astype(int)
        array([[1, 0, 0, 0],
               [1, 1, 0, 0],
               [0, 1, 1, 0],
               [0, 0, 1, 1]])
        """
        if not callable(mask_mod):
            raise TypeError(f"mask_mod: {type(mask_mod).__name__}, expected a function of (batch, head, q, k)")
        sizes = [1 if size is None else check_size(size, name) for size, name in ((batch, "batch"), (heads, "heads"))]
        grid = make_grid(sizes, query_len, key_len, block_size)
        return cls._of(evaluate.from_mod(mask_mod, grid), grid, batch is not None or heads is not None)

    @classmethod
    def from_dense(cls, mask: ArrayLike, *, block_size: BlockSize = None) -> BlockMask:
        """The blocks of a keep-mask (query_len, key_len) or (batch, heads, query_len, key_len), bool or 0 and 1.

        Examples
        --------
        >>> import numpy as np
        >>> import headwise as hw
        >>> hw.BlockMask.from_dense(np.tri(4, dtype=bool)).kept
        0.625
        """
        a = as_array(mask, "mask")
        if a.ndim not in (2, 4):
            raise ValueError(
                f"mask: shape {a.shape}, expected (query_len, key_len) or (batch, heads, query_len, key_len)"
            )
        if a.dtype.kind not in "biuf":
            raise TypeError(f"mask: dtype {a.dtype}, expected bool or the numbers 0 and 1")
        kept = a if a.dtype == bool else a != 0
        if a.dtype != bool and not np.array_equal(kept, a):
            raise ValueError("mask: numbers other than 0 and 1, expected a mask that keeps a key where it is 1")
        shape: tuple[int, ...] = (1,) * (4 - a.ndim) + a.shape
        kept = kept.reshape(shape)
        grid = make_grid(shape[:2], shape[2], shape[3], block_size)
        return cls._of(evaluate.from_dense(kept, grid), grid, a.ndim == 4)

    @classmethod
    def causal(
        cls, query_len: int, key_len: int, *, alignment: str = "upper_left", block_size: BlockSize = None
    ) -> BlockMask:
        """Query ``i`` sees the keys up to its own position, by the rules of ``causal_alignment`` in attention.

        Examples
        --------
        >>> import headwise as hw
        >>> hw.BlockMask.causal(2, 3, alignment="lower_right").to_dense().astype(int)
        array([[1, 1, 0],
               [1, 1, 1]])
        """
        offset = patterns.offset(alignment, query_len, key_len)
        return cls._from(lambda _, __, q, k: k <= q + offset, query_len, key_len, block_size)

    @classmethod
    def window(
        cls,
        window_size: int | tuple[int, int],
        query_len: int,
        key_len: int,
        *,
        alignment: str = "upper_left",
        block_size: BlockSize = None,
    ) -> BlockMask:
        """Query ``i`` sees keys ``i - left`` to ``i + right``; -1 leaves a side open, and one number sets both.

        Examples
        --------
        >>> import headwise as hw
        >>> hw.BlockMask.window((1, 0), 3, 3).to_dense().astype(int)
        array([[1, 0, 0],
               [1, 1, 0],
               [0, 1, 1]])
        """
        offset = patterns.offset(alignment, query_len, key_len)
        return cls._from(patterns.window(window_size, query_len + key_len, offset), query_len, key_len, block_size)

    @classmethod
    def documents(cls, ids: ArrayLike, key_ids: ArrayLike | None = None, *, block_size: BlockSize = None) -> BlockMask:
        """Query ``i`` sees the keys of its own document.

        Parameters
        ----------
        ids : array_like of integers, (query_len,) or (batch, query_len)
            The document of each query, and of each key unless `key_ids` is given.
        key_ids : array_like of integers, (key_len,) or (batch, key_len), optional
            The document of each key.
        block_size : int or (int, int), optional
            As in :meth:`from_mod`.

        Examples
        --------
        >>> import headwise as hw
        >>> hw.BlockMask.documents([7, 7, 9]).to_dense().astype(int)
        array([[1, 1, 0],
               [1, 1, 0],
               [0, 0, 1]])
        """
        queries = patterns.check_ids(ids, "ids")
        keys = queries if key_ids is None else patterns.check_ids(key_ids, "key_ids")
        batch = {len(a) for a in (queries, keys) if a.ndim == 2}
        if len(batch) > 1:
            raise ValueError(f"key_ids: shape {keys.shape}, expected as many sequences as ids {queries.shape} has")
        mod = patterns.documents(queries, keys)
        return cls._from(mod, queries.shape[-1], keys.shape[-1], block_size, max(batch, default=0))

    @classmethod
    def prefix_lm(cls, prefix: ArrayLike, query_len: int, key_len: int, *, block_size: BlockSize = None) -> BlockMask:
        """Every query sees the first ``prefix`` keys, and the keys up to its own position.

        ``prefix`` is an integer, or one for each sequence, (batch,).

        Examples
        --------
        >>> import headwise as hw
        >>> hw.BlockMask.prefix_lm(2, 3, 3).to_dense().astype(int)
        array([[1, 1, 0],
               [1, 1, 0],
               [1, 1, 1]])
        """
        mod, batch = patterns.prefix(prefix)
        return cls._from(mod, query_len, key_len, block_size, batch)

    @classmethod
    def global_tokens(
        cls, tokens: ArrayLike, query_len: int, key_len: int, *, block_size: BlockSize = None
    ) -> BlockMask:
        """The tokens at some positions see every key, and every query sees them (Longformer, BigBird).

        ``tokens`` are positions, or an integer ``n`` for the first ``n`` positions.

        Examples
        --------
        >>> import headwise as hw
        >>> hw.BlockMask.global_tokens([1], 3, 3).to_dense().astype(int)
        array([[0, 1, 0],
               [1, 1, 1],
               [0, 1, 0]])
        """
        lengths = check_size(query_len, "query_len"), check_size(key_len, "key_len")
        return cls._from(patterns.global_tokens(tokens, *lengths), query_len, key_len, block_size)

    @classmethod
    def strided(
        cls, stride: int, query_len: int, key_len: int, *, alignment: str = "upper_left", block_size: BlockSize = None
    ) -> BlockMask:
        """Query ``i`` sees the keys at a distance that is a multiple of ``stride``: a dilated window together with
        :meth:`window`, the second head of Sparse Transformer.

        Examples
        --------
        >>> import headwise as hw
        >>> hw.BlockMask.strided(2, 3, 3).to_dense().astype(int)
        array([[1, 0, 1],
               [0, 1, 0],
               [1, 0, 1]])
        """
        step, offset = check_size(stride, "stride"), patterns.offset(alignment, query_len, key_len)
        return cls._from(lambda _, __, q, k: (q + offset - k) % step == 0, query_len, key_len, block_size)

    @classmethod
    def top_k_blocks(
        cls, scores: ArrayLike, k: int, query_len: int, key_len: int, *, block_size: BlockSize = None
    ) -> BlockMask:
        """The ``k`` blocks of keys with the highest scores for each block of queries.

        Parameters
        ----------
        scores : array_like, (query_blocks, key_blocks) or (batch, heads, query_blocks, key_blocks)
            A proxy of the attention between blocks, such as the products of the means of queries and keys. Blocks of
            -inf are not kept. Of equal scores the first are kept.
        k : int
            The number of blocks; all if there are fewer.
        query_len, key_len : int
            The lengths.
        block_size : int or (int, int), optional
            As in :meth:`from_mod`.

        Examples
        --------
        >>> import headwise as hw
        >>> hw.BlockMask.top_k_blocks([[1, 3], [2, 0]], 1, 4, 4, block_size=2).to_dense().astype(int)
        array([[0, 0, 1, 1],
               [0, 0, 1, 1],
               [1, 1, 0, 0],
               [1, 1, 0, 0]])
        """
        a = as_array(scores, "scores")
        if a.ndim not in (2, 4):
            axes = "(query_blocks, key_blocks)"
            raise ValueError(f"scores: shape {a.shape}, expected {axes} or (batch, heads, query_blocks, key_blocks)")
        four = a.reshape((1,) * (4 - a.ndim) + a.shape)
        grid = make_grid(four.shape[:2], query_len, key_len, block_size)
        index = patterns.top_k(four, check_size(k, "k"), grid)
        return cls._of(evaluate.BitTable(grid).blocks(index), grid, a.ndim == 4)

    # ------------------------------------------------------------------------------------------------------ operators

    def __and__(self, other: object) -> BlockMask:
        return self._combined(np.bitwise_and, other) if isinstance(other, BlockMask) else _refused(other, "&")

    def __or__(self, other: object) -> BlockMask:
        return self._combined(np.bitwise_or, other) if isinstance(other, BlockMask) else _refused(other, "|")

    __rand__, __ror__ = __and__, __or__

    def __invert__(self) -> BlockMask:
        blocks = evaluate.combine(lambda a, _: ~a, self._blocks, self._blocks, self._grid)
        return self._of(blocks, self._grid, self._with_heads)

    def _combined(self, function: Callable[[Array, Array], Array], other: BlockMask) -> BlockMask:
        a, b = self._grid, other._grid
        if a[2:4] != b[2:4]:
            raise ValueError(f"mask: (query_len, key_len) is {b[2:4]}, expected {a[2:4]} as the other mask has")
        if a[4:] != b[4:]:
            raise ValueError(f"mask: block_size is {b[4:]}, expected {a[4:]} as the other mask has; see block_size=")
        if any(m != n and 1 not in (m, n) for m, n in zip(a[:2], b[:2], strict=True)):
            raise ValueError(f"mask: (batch, heads) is {b[:2]}, expected {a[:2]} as the other mask has, or 1")
        grid = a._replace(batch=max(a.batch, b.batch), heads=max(a.heads, b.heads))
        blocks = evaluate.combine(function, self._blocks, other._blocks, grid)
        return self._of(blocks, grid, self._with_heads or other._with_heads)

    # ---------------------------------------------------------------------------------------------------------- views

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


_ONES = np.array([i.bit_count() for i in range(256)], np.int64)


def _refused(other: object, sign: str) -> NoReturn:
    raise TypeError(f"{sign}: {type(other).__name__}, expected another BlockMask, such as BlockMask.from_dense(...)")
