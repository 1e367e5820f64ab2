"""``BlockMask``: a keep-mask in blocks, whose dropped blocks cost attention no time."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from headwise._block_mask import evaluate
from headwise._block_mask.builders import MaskBuilders

if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import NoReturn

    from headwise._base.typing import Array


__all__ = ["BlockMask"]


class BlockMask(MaskBuilders):
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

    __slots__ = ()

    def __init__(self) -> None:
        raise TypeError("BlockMask: made by its class methods, such as BlockMask.causal(query_len, key_len)")

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


def _refused(other: object, sign: str) -> NoReturn:
    raise TypeError(f"{sign}: {type(other).__name__}, expected another BlockMask, such as BlockMask.from_dense(...)")
