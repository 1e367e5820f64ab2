"""The options of attention: as given to ``attention_spec``, and as types of ``**options``.

``need_weights`` and ``return_lse`` determine the return type, so overloads name them beside these options.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple, TypedDict

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import ArrayLike

    from headwise._base.typing import Array, Rng


#: The default of ``causal_alignment``.
UPPER_LEFT = "upper_left"


class SpecOptions(NamedTuple):
    """The options as the caller gave them, which :func:`headwise._ops.attention.spec.attention_spec` checks."""

    mask: ArrayLike | None = None
    bias: ArrayLike | None = None
    is_causal: bool = False
    causal_alignment: str = UPPER_LEFT
    scale: float | None = None
    window_size: int | tuple[int, int] | None = None
    softcap: float | None = None
    alibi_slopes: ArrayLike | None = None
    sinks: ArrayLike | None = None
    key_padding_mask: ArrayLike | None = None
    precision: str | None = None
    key_lengths: ArrayLike | None = None
    score_mod: Callable[..., Any] | None = None
    relative_bias: ArrayLike | None = None
    relative_values: ArrayLike | None = None  # not in AttentionSpec: see headwise._ops.attention.relative_values


class ScoreOptions(TypedDict, total=False):
    """The keywords of all attention functions."""

    scale: float | None
    window_size: int | tuple[int, int] | None
    softcap: float | None
    alibi_slopes: ArrayLike | None
    sinks: ArrayLike | None
    relative_bias: ArrayLike | None
    precision: str | None
    out: Array | None


class SharedOptions(ScoreOptions, total=False):
    """The keywords of :func:`headwise.scaled_dot_product_attention` that the functions and layers above it share."""

    bias: ArrayLike | None
    is_causal: bool
    causal_alignment: str
    key_padding_mask: ArrayLike | None
    key_lengths: ArrayLike | None
    relative_values: ArrayLike | None


class AttentionOptions(SharedOptions, total=False):
    """:class:`SharedOptions` with ``need_weights`` and ``return_lse``."""

    need_weights: bool
    return_lse: bool


class FunctionOptions(SharedOptions, total=False):
    """The keywords of :func:`headwise.self_attention` and :func:`headwise.cross_attention`."""

    rng: Rng


class CoreOptions(FunctionOptions, total=False):
    """The keywords of :func:`headwise.scaled_dot_product_attention` and :func:`headwise.flash_attention`."""

    dropout_rate: float | None
    score_mod: Callable[..., Any] | None


class VarlenOptions(ScoreOptions, total=False):
    """The keywords of :func:`headwise.varlen_attention`."""

    is_causal: bool
    causal_alignment: str
    relative_values: ArrayLike | None
