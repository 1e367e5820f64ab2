"""The score modifiers and mask modifiers of attention, in the order in which they apply.

A modifier is a function of one block of scores and the spec that changes the scores in place. Adding one means adding
its function to ``SCORE_MODIFIERS`` or ``MASK_MODIFIERS``, its derivative to :func:`score_derivative` unless it only
adds to scores, and the gradient of its parameters to :func:`sum_gradients`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from headwise._numpy.alibi import distance
from headwise._numpy.relative_bias import add_by_distance, by_distance

if TYPE_CHECKING:
    from headwise._base.attention_spec import AttentionSpec
    from headwise._base.typing import Array


class ScoreBlock(NamedTuple):
    """Scores of some heads, query rows and keys."""

    scores: Array  # (batch, heads, rows, keys)
    keep: list[Array]  # the same part of each keep-mask, which broadcasts to the scores
    bias: list[Array]  # the same part of each bias, the relative bias included, in the dtype of the scores
    heads: slice
    query: int  # position of row 0 among all keys
    key: int  # position of column 0
    batch: slice = slice(0)
    row: int = 0  # index of row 0 among the queries of the call


class ScoreGradients(NamedTuple):
    """Sums of the gradients of what is added to scores; None where a gradient is not asked for."""

    bias: tuple[Array | None, ...]  # of the shapes of the biases of the spec
    alibi_slopes: Array | None  # (heads,)
    relative_bias: Array | None  # of the shape of that of the spec


def part_of(m: Array, where: tuple[slice, ...]) -> Array:
    """The part ``where`` of the scores of a mask, a bias or the gradient of a bias, each axis of full size or 1."""
    return m[tuple(slice(None) if size == 1 else part for size, part in zip(m.shape, where, strict=True))]


def relative_part(spec: AttentionSpec, where: tuple[slice, slice, slice, slice]) -> Array:
    """The part ``where`` of the scores of the spec's relative bias, which broadcasts to the scores."""
    assert spec.relative_bias is not None  # noqa: S101 (the caller has looked)
    rows, keys = where[2:]
    table = part_of(spec.relative_bias, (*where[:3], slice(None)))
    return by_distance(table, keys.start - spec.offset - rows.start, rows.stop - rows.start, keys.stop - keys.start)


def modify_scores(block: ScoreBlock, spec: AttentionSpec) -> None:
    """Apply every modifier of ``spec``. Masked scores become -inf, NaN included."""
    for modify in SCORE_MODIFIERS:
        modify(block, spec)
    for modify in MASK_MODIFIERS:
        modify(block, spec)


def score_derivative(scores: Array, spec: AttentionSpec) -> Array | None:
    """The derivative of the modified scores by ``scores``, before any modification; None: it is 1.

    A softcap ``c`` alone does not only add: the derivative of ``c * tanh(s / c)`` is ``1 - tanh(s / c) ** 2``.
    """
    if not spec.softcap:
        return None
    tanh = np.tanh(scores / spec.softcap)
    return np.subtract(1, np.square(tanh, out=tanh), out=tanh)


def sum_gradients(block: ScoreBlock, d_scores: Array, gradients: ScoreGradients, where: tuple[slice, ...]) -> None:
    """Add the gradients of biases and slopes, by those of the modified scores, to ``gradients``.

    ``where`` is the part of all scores that ``block`` is.
    """
    for bias in gradients.bias:
        if bias is not None:
            total = part_of(bias, where)
            axes = tuple(axis for axis in range(4) if total.shape[axis] != d_scores.shape[axis])
            total += d_scores.sum(axis=axes, keepdims=True) if axes else d_scores
    if gradients.relative_bias is not None:
        table = part_of(gradients.relative_bias, (*where[:3], slice(None)))
        add_by_distance(table, block.key - block.query, d_scores)
    if gradients.alibi_slopes is not None:
        steps = distance(block.query, d_scores.shape[2], block.key, d_scores.shape[3], d_scores.dtype)
        gradients.alibi_slopes[block.heads] -= np.einsum("bhij,ij->h", d_scores, steps)


def _softcap(block: ScoreBlock, spec: AttentionSpec) -> None:
    scores = block.scores
    if spec.softcap:
        scores /= spec.softcap
        np.tanh(scores, out=scores)
        scores *= spec.softcap


def _bias(block: ScoreBlock, _: AttentionSpec) -> None:
    """A sum of finite biases stays finite: two of the lowest number would otherwise mask every key of a row."""
    scores, highest = block.scores, np.finfo(block.scores.dtype).max
    for i, bias in enumerate(block.bias):
        finite = np.isfinite(scores) & np.isfinite(bias) if i else None
        scores += bias
        if finite is not None:
            np.clip(scores, -highest, highest, out=scores, where=finite)


def _alibi(block: ScoreBlock, spec: AttentionSpec) -> None:
    scores = block.scores
    if spec.alibi_slopes is not None:
        rows, keys = scores.shape[2:]
        slopes = spec.alibi_slopes[block.heads, None, None]
        scores -= slopes * distance(block.query, rows, block.key, keys, scores.dtype)


def _score_mod(block: ScoreBlock, spec: AttentionSpec) -> None:
    if spec.score_mod is None:
        return
    scores, mod = block.scores, spec.score_mod
    first = mod.batch + block.batch.start, mod.head + block.heads.start, mod.query + block.row, mod.key + block.key
    indices = (
        np.arange(start, start + n).reshape((n,) + (1,) * (3 - axis))
        for axis, (start, n) in enumerate(zip(first, scores.shape, strict=True))
    )
    given = scores.copy()  # the function may keep it, or write to it
    result = mod.function(given, *indices)
    if not isinstance(result, (np.ndarray, np.floating)) or result.dtype.kind != "f":
        kind = f"dtype {result.dtype}" if hasattr(result, "dtype") else type(result).__name__
        raise TypeError(f"score_mod: returned {kind}, expected an array of {scores.dtype}, as the scores given")
    if result.shape != scores.shape:
        raise ValueError(f"score_mod: returned shape {result.shape}, expected {scores.shape} as the scores given")
    scores[...] = result


def _masking_bias(block: ScoreBlock, _: AttentionSpec) -> None:
    """A bias of -inf masks the key whatever its score is; NaN + -inf would be NaN."""
    for bias in block.bias:
        np.copyto(block.scores, -np.inf, where=np.isneginf(bias))


def _keep(block: ScoreBlock, _: AttentionSpec) -> None:
    for keep in block.keep:
        np.copyto(block.scores, -np.inf, where=~keep)


def _window(block: ScoreBlock, spec: AttentionSpec) -> None:
    """Mask keys outside ``[position - left, position + right]``, causality included (``right`` is 0).

    Only the columns in which the window of some row ends are written.
    """
    scores, (rows, keys) = block.scores, block.scores.shape[2:]
    first = block.query - block.key
    i = np.arange(first, first + rows)[:, None]
    if spec.right >= 0:
        begin = max(0, first + spec.right + 1)
        np.copyto(scores[..., begin:], -np.inf, where=np.arange(begin, max(begin, keys)) > i + spec.right)
    if spec.left >= 0:
        end = min(keys, max(0, first + rows - 1 - spec.left))
        np.copyto(scores[..., :end], -np.inf, where=np.arange(end) < i - spec.left)


SCORE_MODIFIERS = (_softcap, _bias, _alibi, _score_mod)
MASK_MODIFIERS = (_masking_bias, _keep, _window)
