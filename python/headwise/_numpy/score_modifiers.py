"""The score modifiers and mask modifiers of attention, in the order in which they apply.

A modifier is a function of one block of scores and the spec that changes the scores in place. Adding one means adding
its function to ``SCORE_MODIFIERS`` or ``MASK_MODIFIERS``.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from headwise._numpy.alibi import distance

if TYPE_CHECKING:
    from headwise._base.attention_spec import AttentionSpec
    from headwise._base.typing import Array


class ScoreBlock(NamedTuple):
    """Scores of some heads, query rows and keys."""

    scores: Array  # (batch, heads, rows, keys)
    keep: list[Array]  # the same part of each keep-mask, which broadcasts to the scores
    bias: list[Array]  # the same part of each bias, in the dtype of the scores
    heads: slice
    query: int  # position of row 0 among all keys
    key: int  # position of column 0


def modify_scores(block: ScoreBlock, spec: AttentionSpec) -> None:
    """Apply every modifier of ``spec``. Masked scores become -inf, NaN included."""
    for modify in SCORE_MODIFIERS:
        modify(block, spec)
    for modify in MASK_MODIFIERS:
        modify(block, spec)


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


SCORE_MODIFIERS = (_softcap, _bias, _alibi)
MASK_MODIFIERS = (_masking_bias, _keep, _window)
