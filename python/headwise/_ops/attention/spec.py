"""The options of attention, each checked here and nowhere else, as the :class:`AttentionSpec` that backends read."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from headwise._base.arrays import as_array, cast_layout, check_dtype
from headwise._base.attention_spec import AttentionSpec, ScoreMod
from headwise._base.blocks import KeepBlocks
from headwise._base.messages import shown
from headwise._base.scalars import check_flag, check_int, check_rate, check_real, check_rng
from headwise._base.typing import INT64
from headwise._ops.attention.options import UPPER_LEFT
from headwise._ops.attention.relative_bias import check_relative_bias
from headwise._ops.attention.score_masks import keep_and_bias
from headwise._runtime.precision import check_precision

if TYPE_CHECKING:
    from headwise._base.typing import Array, Named, Shape
    from headwise._ops.attention.options import SpecOptions
    from headwise._ops.attention.score_masks import Dtypes
    from headwise._ops.attention.shapes import AttentionShape

# The softcap and its inverse, times scores of usual size, are normal numbers of float32.
_MIN_SOFTCAP, _MAX_SOFTCAP = 1e-30, 1e30


def attention_spec(shape: AttentionShape, dtypes: Dtypes, options: SpecOptions) -> AttentionSpec:
    """The checked ``options`` for arrays of ``shape``, without dropout.

    ``dtypes`` are the dtype of the computation and that of query, key and value as the backend reads them.
    """
    _, heads, query_len, key_len = shape.scores
    (
        mask, bias, is_causal, alignment, scale, window, softcap, slopes, sinks, padding, precision, counts, mod,
        relative, _,
    ) = options  # fmt: skip
    # Defaults are recognised here, without the call of a check: together the calls would add 10 % to a small attention.
    lower_right = alignment is not UPPER_LEFT and is_lower_right(alignment)
    offset = key_len - query_len if lower_right else 0
    left, right = (-1, -1) if window is None else check_window(window, query_len + key_len)
    if is_causal is not False and check_flag(is_causal, "is_causal"):
        right = 0
    keeps: tuple[Array, ...] = ()
    biases: tuple[Array, ...] = ()
    blocks = None
    if mask is not None and isinstance(mask, KeepBlocks):
        blocks, mask = mask.for_scores(shape.scores), None
        options = options._replace(mask=None)
    if mask is not None or bias is not None or padding is not None:
        keeps, biases = keep_and_bias(options, shape, dtypes)
    key_lengths = offsets = None
    if counts is not None:
        key_lengths = check_key_lengths(counts, shape.batch, key_len)
        offsets = key_lengths - key_len if lower_right else np.zeros_like(key_lengths)
    fields = (
        shape.default_scale if scale is None else check_real(scale, "scale"),
        0.0 if softcap is None else check_softcap(softcap),
        left,
        right,
        offset,
        check_precision(precision),
        keeps,
        biases,
        None if slopes is None else _per_head(slopes, "alibi_slopes", heads, dtypes[0]),
        None if sinks is None else _per_head(sinks, "sinks", heads, dtypes[0]),
        None,
        1.0,
        key_lengths,
        offsets,
        None,
        None,
        blocks,
        None if mod is None else check_score_mod(mod),
        None if relative is None else check_relative_bias(relative, shape, dtypes[0]),
    )
    return tuple.__new__(AttentionSpec, fields)  # NamedTuple's own __new__ is a Python function: 0.2 µs more


def check_score_mod(function: object) -> ScoreMod:
    """``function`` as the spec has it."""
    if not callable(function):
        raise TypeError(f"score_mod: {type(function).__name__}, expected a function of (score, batch, head, q, k)")
    return ScoreMod(function)


def array_options(options: SpecOptions) -> list[Named]:
    """The options that are arrays, which ``out=`` must not overlap."""
    given: list[Named] = []
    for name in ("mask", "bias", "key_padding_mask", "alibi_slopes", "sinks", "relative_bias", "relative_values"):
        value: Any = getattr(options, name)
        if isinstance(value, np.ndarray):
            given.append((name, value))
    return given


def check_key_lengths(x: object, batch: Shape, key_len: int) -> Array:
    """``x`` as int64, (batch,): the number of keys of each sequence, 0 to ``key_len``."""
    a = as_array(x, "key_lengths")
    if a.dtype.kind not in "iu" and a.size:
        raise TypeError(f"key_lengths: dtype {a.dtype}, expected integers")
    if a.shape != batch and not (not batch and a.shape == (1,)):
        raise ValueError(f"key_lengths: shape {a.shape}, expected one number for each sequence, {batch}")
    lengths = a.flatten()  # a copy: another thread or process may write to `x` between the check and the use
    if lengths.size and not 0 <= lengths.min() <= lengths.max() <= key_len:
        wrong = lengths.min() if lengths.min() < 0 else lengths.max()
        raise ValueError(f"key_lengths: {wrong}, expected 0 to {key_len}, the length of key")
    return lengths.astype(INT64, copy=False)


def is_lower_right(alignment: object) -> bool:
    """Whether the last query has the position of the last key, checked."""
    if not isinstance(alignment, str):
        raise TypeError(f"causal_alignment: {type(alignment).__name__}, expected 'upper_left' or 'lower_right'")
    if alignment not in ("upper_left", "lower_right"):
        raise ValueError(f"causal_alignment: {shown(alignment)}, expected 'upper_left' or 'lower_right'")
    return alignment == "lower_right"


def check_window(size: object, reach: int) -> tuple[int, int]:
    """``(left, right)``, with -1 for a side that covers all keys: ``reach`` or more of them."""
    if size is None:
        return -1, -1
    if isinstance(size, (tuple, list)):
        sides = tuple(size)  # another thread may change a list
        if len(sides) != 2:
            raise ValueError(f"window_size: {shown(size)}, expected an integer or a pair (left, right)")
        left, right = (check_int(side, "window_size", -1) for side in sides)
    else:
        left = right = check_int(size, "window_size", -1)
    return -1 if left >= reach else left, -1 if right >= reach else right


class Dropout(NamedTuple):
    """Dropout of the weights, at a rate above 0."""

    rate: float
    rng: np.random.Generator


def check_dropout(dropout: object, dropout_rate: object, rng: object) -> Dropout | None:
    """The dropout that the arguments of these names describe; None at a rate of 0."""
    if type(dropout) is float and dropout == 0.0 and dropout_rate is None and rng is None:
        return None
    rate = check_rate(dropout, "dropout")
    if dropout_rate is not None:
        if rate != 0.0:
            raise TypeError("dropout_rate: another name of dropout, expected only one of the two")
        rate = check_rate(dropout_rate, "dropout_rate")
    if rate == 0.0 and rng is None:
        return None
    generator = check_rng(rng)
    return Dropout(rate, generator) if rate > 0.0 else None


def check_softcap(softcap: object) -> float:
    """The softcap; 0.0 for None."""
    if softcap is None:
        return 0.0
    cap = check_real(softcap, "softcap")
    if cap <= 0.0:
        raise ValueError(f"softcap: {cap}, expected a positive number or None")
    if not _MIN_SOFTCAP <= cap <= _MAX_SOFTCAP:
        raise ValueError(
            f"softcap: {cap}, expected {_MIN_SOFTCAP} to {_MAX_SOFTCAP}, or None for scores without a softcap"
        )
    return cap


def _per_head(x: object, name: str, heads: int, dtype: np.dtype[Any]) -> Array:
    a = as_array(x, name)
    check_dtype(a.dtype, name)
    if a.shape != (heads,):
        raise ValueError(f"{name}: shape {a.shape}, expected one entry for each query head, ({heads},)")
    return cast_layout(a, dtype, last=True)
