"""The keywords of :class:`headwise.KVCache`'s methods as types.

``need_weights`` and ``return_lse`` decide what is returned, so overloads name them beside the rest.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from headwise._ops.attention.options import ScoreOptions

if TYPE_CHECKING:
    from numpy.typing import ArrayLike

__all__ = ["AttendOptions", "CacheOptions", "ExtendOptions", "RowOptions"]


class RowOptions(ScoreOptions, total=False):
    """The keywords of :meth:`headwise.KVCache.attend` and :meth:`headwise.KVCache.extend` except ``lengths``,
    ``positions``, ``need_weights`` and ``return_lse``."""

    mask: ArrayLike | None
    bias: ArrayLike | None
    is_causal: bool
    relative_values: ArrayLike | None


class CacheOptions(RowOptions, total=False):
    """:class:`RowOptions` with ``need_weights`` and ``return_lse``."""

    need_weights: bool
    return_lse: bool


class ExtendOptions(RowOptions, total=False):
    """:class:`RowOptions` with ``lengths``."""

    lengths: ArrayLike | None


class AttendOptions(ExtendOptions, total=False):
    """:class:`ExtendOptions` with ``positions``."""

    positions: ArrayLike | None
