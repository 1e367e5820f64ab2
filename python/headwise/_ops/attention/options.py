"""The keywords of attention as types: what its functions and layers take as ``**options``.

``need_weights`` and ``return_lse`` decide what comes back, so overloads name them beside the rest.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, TypedDict

if TYPE_CHECKING:
    from collections.abc import Mapping
    from typing import TypeAlias

    from numpy.typing import ArrayLike

    from headwise._base.typing import Array, Rng
    from headwise._kv_cache.cache import KVCache
    from headwise._nn.layers import MultiHeadAttention

    Parameters: TypeAlias = "MultiHeadAttention | Mapping[str, ArrayLike]"


class ScoreOptions(TypedDict, total=False):
    """The keywords of every kind of attention."""

    scale: float | None
    window_size: int | tuple[int, int] | None
    softcap: float | None
    alibi_slopes: ArrayLike | None
    sinks: ArrayLike | None
    precision: str | None
    out: Array | None


class SharedOptions(ScoreOptions, total=False):
    """The keywords of :func:`headwise.scaled_dot_product_attention` that everything built on it hands through, but for
    the two that decide what comes back."""

    bias: ArrayLike | None
    is_causal: bool
    causal_alignment: str
    key_padding_mask: ArrayLike | None


class AttentionOptions(SharedOptions, total=False):
    """The keywords of :func:`headwise.scaled_dot_product_attention` that everything built on it hands through."""

    need_weights: bool
    return_lse: bool


class FunctionOptions(SharedOptions, total=False):
    """Of :func:`headwise.self_attention` and :func:`headwise.cross_attention`."""

    rng: Rng


class CoreOptions(FunctionOptions, total=False):
    """Of :func:`headwise.scaled_dot_product_attention` and :func:`headwise.flash_attention`."""

    dropout_rate: float | None


class MultiHeadOptions(FunctionOptions, total=False):
    """Of :func:`headwise.multi_head_attention` and :func:`headwise.multi_head_self_attention`."""

    params: Parameters | None


class LayerOptions(FunctionOptions, total=False):
    """Of :meth:`headwise.MultiHeadAttention.forward`."""

    training: bool | None
    cache: KVCache | None
    lengths: ArrayLike | None
    positions: ArrayLike | None


class VarlenOptions(ScoreOptions, total=False):
    """Of :func:`headwise.varlen_attention`."""

    is_causal: bool
    causal_alignment: str


class RowOptions(ScoreOptions, total=False):
    """Of :meth:`headwise.KVCache.attend` and :meth:`headwise.KVCache.extend`, but for ``lengths``."""

    mask: ArrayLike | None
    bias: ArrayLike | None


class CacheOptions(RowOptions, total=False):
    """Likewise, with the two that decide what comes back."""

    need_weights: bool
    return_lse: bool


class AttendOptions(RowOptions, total=False):
    """Likewise, with ``lengths`` instead."""

    lengths: ArrayLike | None
