"""The keywords of attention as types: what its functions and layers take as ``**options``.

``need_weights`` and ``return_lse`` decide what comes back, so overloads name them beside the rest.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, TypedDict

if TYPE_CHECKING:
    from numpy.typing import ArrayLike

    from headwise._base.typing import Array, Rng


class SpecOptions(TypedDict):
    """The options that :func:`headwise._ops.attention.spec.attention_spec` checks, all of them."""

    mask: ArrayLike | None
    bias: ArrayLike | None
    key_padding_mask: ArrayLike | None
    is_causal: bool
    causal_alignment: str
    scale: float | None
    window_size: int | tuple[int, int] | None
    softcap: float | None
    alibi_slopes: ArrayLike | None
    sinks: ArrayLike | None
    precision: str | None


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


class VarlenOptions(ScoreOptions, total=False):
    """Of :func:`headwise.varlen_attention`."""

    is_causal: bool
    causal_alignment: str
