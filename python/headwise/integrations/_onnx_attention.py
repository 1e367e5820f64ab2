"""ONNX's Attention (heads, caches, masks, the optional output of scores) and LinearAttention by headwise."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

import headwise as hw

if TYPE_CHECKING:
    from headwise._base.typing import Array


def attention(  # noqa: PLR0913 (the inputs and attributes of the operator)
    Q: Array,  # noqa: N803 (the operator's names, as the next two)
    K: Array,  # noqa: N803
    V: Array,  # noqa: N803
    attn_mask: Array | None = None,
    past_key: Array | None = None,
    past_value: Array | None = None,
    nonpad_kv_seqlen: Array | None = None,
    *,
    scores: bool,
    is_causal: int | None = 0,
    kv_num_heads: int | None = None,
    q_num_heads: int | None = None,
    qk_matmul_output_mode: int | None = 0,
    scale: float | None = None,
    softcap: float | None = 0.0,
    softmax_precision: int | None = None,  # noqa: ARG001 (at least float32)
    left_window_size: int | None = -1,
    right_window_size: int | None = -1,
) -> tuple[Array, ...]:
    """(Y, present_key, present_value), and qk_matmul_output if ``scores``."""
    if (past_key is None) != (past_value is None):
        raise ValueError("past_key: given without past_value, or the other way round; expected both or neither")
    if past_key is not None and nonpad_kv_seqlen is not None:
        raise ValueError("nonpad_kv_seqlen: given with past_key, expected one of the two")
    query, key, value = (
        with_heads(x, heads, name)
        for x, heads, name in (
            (Q, q_num_heads, "q_num_heads"),
            (K, kv_num_heads, "kv_num_heads"),
            (V, kv_num_heads, "kv_num_heads"),
        )
    )
    past = 0
    if past_key is not None and past_value is not None:
        past = past_key.shape[2]
        key, value = np.concatenate((past_key, key), axis=2), np.concatenate((past_value, value), axis=2)
    window = (_side(left_window_size, "left_window_size"), _side(right_window_size, "right_window_size"))
    positions = _Positions(query.shape[2], key.shape[2], past, nonpad_kv_seqlen, bool(is_causal), window)
    keywords = positions.keywords()
    mask = _four_axes(attn_mask, key.shape[2], query.dtype)
    if mask is not None and mask.dtype == bool:
        keywords["mask"] = mask & keywords.get("mask", True)
    elif mask is not None:
        keywords["bias"] = mask
    factor = float(scale) if scale is not None else query.shape[-1] ** -0.5
    cap = softcap or None
    if scores and qk_matmul_output_mode == 3:
        output, shown = hw.scaled_dot_product_attention(query, key, value, scale=factor, softcap=cap, **keywords)
    else:
        output, shown = hw.flash_attention(query, key, value, scale=factor, softcap=cap, **keywords), None
    if scores and shown is None:
        shown = _scores(query, key, factor, cap if qk_matmul_output_mode else None)
        shown = _with_masks(shown, mask, positions.kept()) if qk_matmul_output_mode == 2 else shown
    output = output.astype(Q.dtype, copy=False)
    if Q.ndim == 3:
        output = output.swapaxes(1, 2).reshape((*Q.shape[:2], -1))
    return (output, key, value) if shown is None else (output, key, value, shown.astype(Q.dtype, copy=False))


def with_heads(x: Array, heads: int | None, name: str) -> Array:
    """``x`` as (batch, heads, seq, dim)."""
    if x.ndim == 4:
        return x
    if not heads or x.ndim != 3 or x.shape[2] % heads:
        raise ValueError(
            f"{name}: {heads} for an input of shape {x.shape}, expected a number that divides its last axis"
        )
    return x.reshape((*x.shape[:2], heads, -1)).swapaxes(1, 2)


def _side(size: int | None, name: str) -> int:
    if size is not None and size < -1:
        raise ValueError(f"{name}: {size}, expected -1 or more")
    return -1 if size is None else size


def _four_axes(mask: Array | None, key_len: int, dtype: np.dtype[Any]) -> Array | None:
    """A mask of bool, or of ``dtype`` that is added, with four axes. Keys that it does not reach are left out."""
    if mask is None:
        return None
    if mask.dtype != bool:
        mask = mask.astype(dtype, copy=False)
    missing = key_len - mask.shape[-1]
    if missing > 0:
        fill = np.full((*mask.shape[:-1], missing), False if mask.dtype == bool else -np.inf, mask.dtype)
        mask = np.concatenate((mask, fill), axis=-1)
    return mask.reshape((1,) * (4 - mask.ndim) + mask.shape)


class _Positions(NamedTuple):
    """Which keys a query sees by their positions."""

    query_len: int
    key_len: int
    past: int
    lengths: Array | None
    causal: bool
    window: tuple[int, int]

    def keywords(self) -> dict[str, Any]:
        """The keywords of :func:`headwise.flash_attention`."""
        found: dict[str, Any] = {}
        if self.lengths is not None:
            found["key_lengths"] = self.lengths.astype(np.int64).reshape(-1)
        if not self.causal and self.window == (-1, -1):
            return found
        at_end = self.lengths is not None or self.past == self.key_len - self.query_len
        if not at_end and self.past:  # the keys of this call are not those of its queries
            return {"mask": self.kept()}
        alignment = "lower_right" if self.lengths is not None or self.past else "upper_left"
        window = None if self.window == (-1, -1) else self.window
        return {**found, "is_causal": self.causal, "window_size": window, "causal_alignment": alignment}

    def kept(self) -> Array:
        """True where a query sees a key, (batch or 1, 1, query_len, key_len)."""
        first = np.array([self.past]) if self.lengths is None else self.lengths.reshape(-1).astype(int) - self.query_len
        i = first[:, np.newaxis, np.newaxis, np.newaxis] + np.arange(self.query_len)[:, np.newaxis]
        j = np.arange(self.key_len)
        kept = np.ones(np.broadcast_shapes(i.shape, j.shape), bool)
        if self.causal:
            kept &= j <= i
        left, right = self.window
        if left >= 0:
            kept &= j >= i - left
        if right >= 0:
            kept &= j <= i + right
        if self.lengths is not None:
            kept &= j < self.lengths.reshape((-1, 1, 1, 1))
        return kept


def _with_masks(scores: Array, mask: Array | None, kept: Array) -> Array:
    if mask is not None and mask.dtype == bool:
        kept = kept & mask
    elif mask is not None:
        scores = scores + mask
    return np.where(kept, scores, -np.inf)


def _scores(query: Array, key: Array, scale: float, softcap: float | None) -> Array:
    """``query @ key.T * scale`` after softcap, in float32 at least."""
    found: Array
    compute = np.float64 if query.dtype == np.float64 else np.float32
    groups = query.shape[1] // key.shape[1]
    q = query.astype(compute).reshape((query.shape[0], key.shape[1], groups, *query.shape[2:]))
    found = np.matmul(q * scale, key.astype(compute).swapaxes(-1, -2)[:, :, np.newaxis])
    found = found.reshape((*query.shape[:3], key.shape[2]))
    return found if softcap is None else softcap * np.tanh(found / softcap)


def linear_attention(  # noqa: PLR0913 (the inputs and attributes of the operator)
    query: Array,
    key: Array,
    value: Array,
    past_state: Array | None = None,
    decay: Array | None = None,
    beta: Array | None = None,
    *,
    q_num_heads: int | None = None,
    kv_num_heads: int | None = None,
    scale: float | None = None,
    update_rule: str | None = None,
    chunk_size: int | None = None,  # noqa: ARG001 (a hint, which changes no result)
) -> tuple[Array, Array]:
    """(output, present_state) of LinearAttention, whose decays are logarithms."""
    q = with_heads(query, q_num_heads, "q_num_heads")
    k, v = (with_heads(x, kv_num_heads, "kv_num_heads") for x in (key, value))
    if decay is not None:
        one_per_head = decay.shape[-1] == kv_num_heads
        decay = np.exp(decay.astype(np.float64 if decay.dtype == np.float64 else np.float32))
        decay = decay.swapaxes(1, 2) if one_per_head else with_heads(decay, kv_num_heads, "kv_num_heads")
    output, state = hw.linear_attention(
        q, k, v, feature_map=None, scale=float(scale) if scale else q.shape[-1] ** -0.5, is_causal=True,
        decay=decay, beta=None if beta is None else beta.swapaxes(1, 2), rule=update_rule or "gated_delta",
        state=past_state,
    )  # fmt: skip
    output = output.swapaxes(1, 2).reshape((*query.shape[:2], -1)).astype(query.dtype, copy=False)
    return output, state.astype((query if past_state is None else past_state).dtype, copy=False)
