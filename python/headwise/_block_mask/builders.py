"""The class methods of :class:`~headwise.BlockMask`, which build one."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from headwise._base.arrays import as_array
from headwise._base.scalars import check_size
from headwise._block_mask import evaluate, patterns
from headwise._block_mask.grid import make_grid
from headwise._block_mask.views import MaskViews

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import ArrayLike
    from typing_extensions import Self

    from headwise._block_mask.evaluate import MaskMod
    from headwise._block_mask.grid import BlockSize


class MaskBuilders(MaskViews):
    """Each builder decides which pairs of a query and a key are kept."""

    __slots__ = ()

    @classmethod
    def _from(cls, mask_mod: MaskMod, query_len: int, key_len: int, block_size: BlockSize, batch: int = 0) -> Self:
        return cls.from_mod(mask_mod, query_len, key_len, batch=batch or None, block_size=block_size)

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
    ) -> Self:
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
    def from_dense(cls, mask: ArrayLike, *, block_size: BlockSize = None) -> Self:
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
    ) -> Self:
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
    ) -> Self:
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
    def documents(cls, ids: ArrayLike, key_ids: ArrayLike | None = None, *, block_size: BlockSize = None) -> Self:
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
    def prefix_lm(cls, prefix: ArrayLike, query_len: int, key_len: int, *, block_size: BlockSize = None) -> Self:
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
    def global_tokens(cls, tokens: ArrayLike, query_len: int, key_len: int, *, block_size: BlockSize = None) -> Self:
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
    ) -> Self:
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
        grid = make_grid((1, 1), query_len, key_len, block_size)
        blocks = evaluate.from_period(lambda _, __, q, k: (q + offset - k) % step == 0, grid, step)
        return cls._of(blocks, grid, with_heads=False)

    @classmethod
    def top_k_blocks(
        cls, scores: ArrayLike, k: int, query_len: int, key_len: int, *, block_size: BlockSize = None
    ) -> Self:
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
