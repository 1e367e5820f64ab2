"""The keywords of :meth:`headwise.MultiHeadAttention.forward` as a type."""

from __future__ import annotations

from typing import TYPE_CHECKING

from headwise._ops.attention.options import FunctionOptions

if TYPE_CHECKING:
    from numpy.typing import ArrayLike

    from headwise._kv_cache.cache import KVCache
    from headwise._nn.cross_cache import CrossCache

__all__ = ["LayerOptions"]


class LayerOptions(FunctionOptions, total=False):
    """The keywords of :meth:`headwise.MultiHeadAttention.forward` except ``need_weights`` and ``return_lse``, which
    decide what is returned: overloads name them beside these."""

    training: bool | None
    cache: KVCache | CrossCache | None
    lengths: ArrayLike | None
    positions: ArrayLike | None
