"""The shapes of query, key and value: checks, and the shapes of scores and output that follow."""

from __future__ import annotations

import math
from functools import lru_cache
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from headwise._base.typing import Shape


class AttentionShape(NamedTuple):
    """The shapes and the default scale that follow from query, key and value."""

    scores: tuple[int, int, int, int]  # (batch, heads, query_len, key_len), as backends see the scores
    scores_as_given: Shape  # the same in the caller's rank
    batch: Shape  # the caller's axes before those of heads, queries and keys; () for arrays of (seq, dim)
    output: Shape  # in the caller's rank
    default_scale: float  # 1 / sqrt(head_dim)

    @property
    def has_heads(self) -> bool:
        """Whether the caller's arrays have an axis of heads."""
        return len(self.scores_as_given) > 3

    @property
    def key_len(self) -> int:
        return self.scores[3]


@lru_cache(maxsize=256)  # a small call would spend more time here than on its arithmetic; layers repeat few shapes
def check_shapes(query: Shape, key: Shape, value: Shape) -> AttentionShape:
    """The :class:`AttentionShape` of arrays (..., seq, dim), with an axis of heads before them from four axes on."""
    rank = len(query)
    if rank < 2:
        raise ValueError(f"query: shape {query}, expected at least two axes (..., query_len, head_dim)")
    for name, shape in (("key", key), ("value", value)):
        if len(shape) != rank:
            raise ValueError(f"{name}: shape {shape} has {len(shape)} axes, expected {rank} as query {query} has")
    _check_head_dim(query, key)
    if value[-2] != key[-2]:
        raise ValueError(f"value: shape {value} does not match key {key}: key_len is {value[-2]}, expected {key[-2]}")
    axes = rank - 3 if rank > 3 else rank - 2
    batch = query[:axes]
    for name, shape in (("key", key), ("value", value)):
        if shape[:axes] != batch:
            raise ValueError(
                f"{name}: shape {shape} does not match query {query}: batch is {shape[:axes]}, "
                f"expected {batch} (batches are not broadcast)"
            )
    heads, kv_heads = (query[-3], key[-3]) if rank > 3 else (1, 1)
    if rank > 3 and value[-3] != kv_heads:
        raise ValueError(f"value: shape {value} does not match key {key}: heads are {value[-3]}, expected {kv_heads}")
    _check_heads(query, key, heads, kv_heads)
    scores = (math.prod(batch), heads, query[-2], key[-2])
    return AttentionShape(scores, (*query[:-1], key[-2]), batch, (*query[:-1], value[-1]), 1.0 / math.sqrt(query[-1]))


@lru_cache(maxsize=256)
def check_packed_shapes(query: Shape, key: Shape, value: Shape) -> AttentionShape:
    """The :class:`AttentionShape` of packed arrays (rows, heads, dim), as one batch entry that all rows belong to."""
    for name, shape, expected in (
        ("query", query, "(total_query_len, heads, head_dim)"),
        ("key", key, "(total_key_len, kv_heads, head_dim)"),
        ("value", value, "(total_key_len, kv_heads, value_dim)"),
    ):
        if len(shape) != 3:
            raise ValueError(f"{name}: shape {shape}, expected three axes {expected}")
    _check_head_dim(query, key)
    if value[:2] != key[:2]:
        raise ValueError(
            f"value: shape {value} does not match key {key}: (total_key_len, kv_heads) is {value[:2]}, "
            f"expected {key[:2]}"
        )
    heads, kv_heads = query[1], key[1]
    _check_heads(query, key, heads, kv_heads)
    scores = (1, heads, query[0], key[0])
    return AttentionShape(scores, scores, (1,), (*query[:2], value[2]), 1.0 / math.sqrt(query[2]))


def _check_head_dim(query: Shape, key: Shape) -> None:
    if query[-1] == 0:
        raise ValueError(f"query: shape {query} has head_dim 0, expected at least 1")
    if key[-1] != query[-1]:
        raise ValueError(f"key: shape {key} does not match query {query}: head_dim is {key[-1]}, expected {query[-1]}")


def _check_heads(query: Shape, key: Shape, heads: int, kv_heads: int) -> None:
    if heads != kv_heads and (kv_heads == 0 or heads % kv_heads):
        raise ValueError(
            f"key: shape {key} does not match query {query}: {heads} query heads are not divisible by {kv_heads}"
        )
