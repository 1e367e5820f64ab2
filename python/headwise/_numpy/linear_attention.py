"""Linear attention in chunks of tokens, for all four rules.

With the product ``P_t`` of the decays from the chunk's begin to token t, and the state ``S`` before the chunk::

    U = T (V - (P * K) S)      T = inverse(I + beta * strict_lower(M)) beta,  M_tj = sum_d k_td (P_td / P_jd) k_jd
    O = (P * Q) S + A U        A_tj = sum_d q_td (P_td / P_jd) k_jd,  0 for j > t
    S = P_C S + ((P_C / P) * K).T U

The rules without a correction have U = V. This is the chunked form of Yang et al. 2024 ("Parallelizing Linear
Transformers with the Delta Rule over Sequence Length", arXiv:2406.06484; with gates arXiv:2412.06464). A quotient of
decays is never divided: :class:`Decays` has products of decays between two tokens, so that a decay near 0 neither
overflows nor cancels. ``T`` comes from halves (the inverse of a block triangular matrix), as products too.

A product of a chunk multiplies 0 by the rows of later tokens. Where a chunk's results are not finite, they are
therefore computed again by the recurrence, token by token: NaN reaches no earlier token.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from headwise._base.ieee import assign, cast_dtype, ieee
from headwise._base.typing import FLOAT32
from headwise._numpy.blocks import head_blocks, heads_per_key_head

if TYPE_CHECKING:
    from collections.abc import Iterator

    from headwise._base.linear_attention_spec import LinearAttentionSpec
    from headwise._base.typing import Array

_MAX_CHUNK = 256  # the scores of a chunk are a square


class _Inputs(NamedTuple):
    """The arrays of some (batch entries, key heads), as they are stored."""

    q: Array  # (batch, kv_heads, group, query_len, features)
    k: Array  # (batch, kv_heads, key_len, features)
    v: Array  # (batch, kv_heads, key_len, value_dim)
    decay: Array | None  # axes may be 1
    beta: Array | None


class _Chunk(NamedTuple):
    """The tokens of a chunk in the dtype of the computation, of some (batch entries, key heads)."""

    q: Array  # (batch, kv_heads, group, C, features), the feature map applied, as to k
    k: Array  # (batch, kv_heads, C, features)
    v: Array  # (batch, kv_heads, C, value columns), with a last column of 1 if outputs are normalized
    decay: Array | None  # (batch, kv_heads, C, features or 1)
    beta: Array | None  # (batch, kv_heads, C)


@ieee
def linear_attention(  # noqa: PLR0913, PLR0917 (the arrays of the operation)
    query: Array,
    key: Array,
    value: Array,
    decay: Array | None,
    beta: Array | None,
    state: Array | None,
    output: Array,
    new_state: Array,
    spec: LinearAttentionSpec,
) -> None:
    query, key, value = query.view(), key.view(), value.view()  # whose shapes no other thread can change
    group = heads_per_key_head(query, key)
    batch, kv_heads, key_len, features = key.shape
    length = min(spec.chunk, _MAX_CHUNK, key_len if spec.is_causal else max(key_len, query.shape[2]))
    size = max(1, length) * ((group + 2) * max(features, length) + (group + 1) * new_state.shape[3])
    for b, h in head_blocks(batch, kv_heads, size):
        heads = slice(h.start * group, h.stop * group)
        q = query[b, heads]
        q = q.reshape((len(q), q.shape[1] // group, group, *q.shape[2:]))
        inputs = _Inputs(q, key[b, h], value[b, h], _of_heads(decay, b, h), _of_heads(beta, b, h))
        current = new_state[b, h]
        if state is None:
            current[...] = 0
        else:
            assign(current, state[b, h])
        out = output[b, heads].reshape((*q.shape[:-1], value.shape[3]))
        if spec.is_causal:
            for tokens in _slices(key_len, length):
                chunk = _read(inputs, tokens, tokens, spec)
                _write(out, tokens, _causal(chunk, current), spec)
        else:
            for tokens in _slices(key_len, length):
                chunk = _read(inputs, slice(0, 0), tokens, spec)
                current += chunk.k.swapaxes(-1, -2) @ chunk.v
            for rows in _slices(query.shape[2], length):
                chunk = _read(inputs, rows, slice(0, 0), spec)
                _write(out, rows, chunk.q @ current[:, :, None], spec)


def _of_heads(rates: Array | None, b: slice, h: slice) -> Array | None:
    if rates is None:
        return None
    return rates[b if len(rates) > 1 else slice(None), h if rates.shape[1] > 1 else slice(None)]


def _slices(length: int, step: int) -> Iterator[slice]:
    return (slice(start, min(start + step, length)) for start in range(0, length, step)) if length else iter(())


def _read(inputs: _Inputs, rows: slice, tokens: slice, spec: LinearAttentionSpec) -> _Chunk:
    q, k, v, decay, beta = inputs
    dtype = FLOAT32 if q.dtype.itemsize == 2 else q.dtype
    q, k, v = (cast_dtype(a, dtype) for a in (q[..., rows, :], k[:, :, tokens], v[:, :, tokens]))
    if spec.elu:
        q, k = elu_features(q), elu_features(k)
    if spec.normalize:
        v = np.concatenate([v, np.ones((*v.shape[:-1], 1), dtype)], axis=-1)
    elif spec.scale != 1:
        q = q * dtype.type(spec.scale)
    return _Chunk(
        q,
        k,
        v,
        None if decay is None else decay[:, :, tokens if decay.shape[2] > 1 else slice(None)],
        None if beta is None else beta[:, :, tokens if beta.shape[2] > 1 else slice(None)],
    )


def elu_features(x: Array) -> Array:
    """``elu(x) + 1`` of Katharopoulos et al. 2020: exp(x) up to 0, x + 1 above."""
    result = np.exp(np.minimum(x, 0))
    result += np.maximum(x, 0)
    return result


def _write(out: Array, rows: slice, result: Array, spec: LinearAttentionSpec) -> None:
    """The rows of the output, divided by the sums of their weights if that is asked for; 0 where such a sum is 0."""
    if spec.normalize:
        total = result[..., -1:]
        result = np.where(total == 0, 0, result[..., :-1] / total)
    assign(out[..., rows, :], result)


def _causal(chunk: _Chunk, state: Array) -> Array:
    """The rows of the output of a chunk, whose tokens ``state`` then includes."""
    before = state.copy()
    result = _in_products(chunk, state)
    if not (np.isfinite(result).all() and np.isfinite(state).all()):
        assign(state, before)
        result = _token_by_token(chunk, state)
    return result


def _in_products(chunk: _Chunk, state: Array) -> Array:
    tokens = chunk.k.shape[2]
    width = 1 << (tokens - 1).bit_length()
    q, k, v = (padded(a, width) for a in (chunk.q, chunk.k, chunk.v))
    decay = None
    if chunk.decay is not None:
        decay = np.ones((*chunk.decay.shape[:2], width, chunk.decay.shape[3]), k.dtype)
        decay[:, :, :tokens] = chunk.decay
    decays = Decays(decay, width)
    if chunk.beta is not None:
        beta = np.zeros((*k.shape[:3], 1), k.dtype)
        beta[:, :, :tokens, 0] = chunk.beta
        v = correct(decays, k, v, beta, state).u
    # A query head at a time, so that its group shares the decays.
    result = np.empty((*q.shape[:-1], v.shape[-1]), q.dtype)
    for g in range(q.shape[2]):
        rows = q[:, :, g]
        np.matmul(decays.scores(rows, k), v, out=result[:, :, g])
        result[:, :, g] += decays.from_begin(rows) @ state
    if decays.whole is not None:
        state *= decays.whole.swapaxes(-1, -2)
    state += decays.to_end(k).swapaxes(-1, -2) @ v
    return result[..., :tokens, :]


def padded(a: Array, tokens: int) -> Array:
    """``a`` with rows of 0 behind its own."""
    if a.shape[-2] == tokens:
        return a
    result = np.zeros((*a.shape[:-2], tokens, a.shape[-1]), a.dtype)
    result[..., : a.shape[-2], :] = a
    return result


class Decays:
    """Products of the decays of a chunk of ``width`` tokens, a power of 2.

    A product over a range of tokens is that of two halves, which levels of 1, 2, 4, … tokens share: a block of 2 s
    tokens has the pairs (i, j) with i in its second half and j in its first, and the decay between them is that from
    the middle to i times that from j to the middle.
    """

    def __init__(self, decay: Array | None, width: int) -> None:
        self.width = width
        #: Tokens of a half, products from the begin of a half to each token, and behind each token to the half's end.
        self.levels: list[tuple[int, Array, Array]] = []
        self.begin = self.end = self.whole = None  # from the chunk's begin, to its end, and over all of it
        self.pairs: Array | None = None
        if decay is None:
            return
        begin, end = decay, np.ones_like(decay)
        size = 1
        while size < width:
            self.levels.append((size, begin, end))
            begin, end = begin.copy(), end.copy()
            left, right = (_halves(a, size) for a in (begin, end))
            total_first, total_second = left[0][..., -1:, :].copy(), left[1][..., -1:, :].copy()
            left[1][...] *= total_first
            right[0][...] *= total_second
            size *= 2
        self.begin, self.end, self.whole = begin, end, begin[:, :, -1:]
        if decay.shape[3] == 1:
            self.pairs = self._of_pairs(decay)

    def _of_pairs(self, decay: Array) -> Array:
        """The decay between each pair of tokens, (batch, kv_heads, C, C), 0 above the diagonal."""
        pairs = np.zeros((*decay.shape[:2], self.width, self.width), decay.dtype)
        pairs[..., range(self.width), range(self.width)] = 1
        for size, begin, end in self.levels:
            second, first = _halves(begin, size)[1], _halves(end, size)[0]
            _diagonal_blocks(pairs, size)[...] = second @ first.swapaxes(-1, -2)
        return pairs

    def from_begin(self, rows: Array) -> Array:
        return rows if self.begin is None else rows * self.begin

    def to_end(self, rows: Array) -> Array:
        return rows if self.end is None else rows * self.end

    def scores(self, rows: Array, k: Array) -> Array:
        """``sum_d rows_td (P_td / P_jd) k_jd`` for j <= t, else 0; (batch, kv_heads, C, C)."""
        if self.begin is None:
            return np.tril(rows @ k.swapaxes(-1, -2))
        if self.pairs is not None:
            scores: Array = rows @ k.swapaxes(-1, -2)
            scores *= self.pairs
            return scores
        scores = np.zeros((*k.shape[:3], self.width), k.dtype)
        scores[..., range(self.width), range(self.width)] = (rows * k).sum(axis=-1)
        for size, begin, end in self.levels:
            second, first = _halves(rows * begin, size)[1], _halves(k * end, size)[0]
            _diagonal_blocks(scores, size)[...] = second @ first.swapaxes(-1, -2)
        return scores

    def add_pairs(self, pairs: Array, rows: Array, to: Array, *, transposed: bool = False) -> None:
        """``to_t += sum_j pairs_tj (P_t / P_j) * rows_j`` over j <= t or, transposed,
        ``to_j += sum_t pairs_tj (P_t / P_j) * rows_t``. ``pairs`` is lower triangular."""
        if self.begin is None or self.pairs is not None:
            if self.pairs is not None:
                pairs = pairs * self.pairs
            to += (pairs.swapaxes(-1, -2) if transposed else pairs) @ rows
            return
        to += pairs.diagonal(axis1=-2, axis2=-1)[..., None] * rows
        for size, begin, end in self.levels:
            block = _diagonal_blocks(pairs, size)
            if transposed:
                _halves(to, size)[0][...] += _halves(end, size)[0] * (
                    block.swapaxes(-1, -2) @ _halves(rows * begin, size)[1]
                )
            else:
                _halves(to, size)[1][...] += _halves(begin, size)[1] * (block @ _halves(rows * end, size)[0])


def _halves(a: Array, size: int) -> tuple[Array, Array]:
    """The first and second halves of blocks of 2 ``size`` rows of ``a``, (batch, heads, rows, n), as views."""
    blocks = a.reshape((*a.shape[:2], -1, 2, size, a.shape[3]))
    return blocks[..., 0, :, :], blocks[..., 1, :, :]


def _diagonal_blocks(a: Array, size: int, row: int = 1, column: int = 0) -> Array:
    """A view (batch, heads, blocks, size, size) of C-contiguous square matrices: in each block of 2 ``size`` on the
    diagonal, the quarter at (``row``, ``column``)."""
    width = a.shape[-1]
    corner = a[..., row * size :, column * size :]
    step = 2 * size * (a.strides[-1] + a.strides[-2])
    shape = (*a.shape[:2], width // (2 * size), size, size)
    return np.lib.stride_tricks.as_strided(corner, shape, (*a.strides[:2], step, *a.strides[-2:]))


def unit_lower_inverse(lower: Array) -> Array:
    """The inverse of ``I + lower``, strictly lower triangular, of a width that is a power of 2.

    ``[[A, 0], [B, C]]`` has the inverse ``[[A', 0], [-C' B A', C']]`` with those of A and C.
    """
    width = lower.shape[-1]
    inverse = np.zeros_like(lower, order="C")
    inverse[..., range(width), range(width)] = 1
    lower = np.ascontiguousarray(lower)
    size = 1
    while size < width:
        first, second = _diagonal_blocks(inverse, size, 0, 0), _diagonal_blocks(inverse, size, 1, 1)
        between = second @ _diagonal_blocks(lower, size) @ first
        np.negative(between, out=_diagonal_blocks(inverse, size))
        size *= 2
    return inverse


class Correction(NamedTuple):
    """The correction of the delta rules in a chunk: ``u = beta * (v - P * k @ state - scores @ u)``."""

    scores: Array  # of keys for the keys before them, (batch, kv_heads, C, C)
    inverse: Array  # of I + beta * scores
    read: Array  # v - P * k @ state, (batch, kv_heads, C, value columns)
    u: Array


def correct(decays: Decays, k: Array, v: Array, beta: Array, state: Array) -> Correction:
    scores = np.tril(decays.scores(k, k), -1)
    inverse = unit_lower_inverse(beta * scores)
    read = v - decays.from_begin(k) @ state
    return Correction(scores, inverse, read, inverse @ (beta * read))


def _token_by_token(chunk: _Chunk, state: Array) -> Array:
    """The recurrence itself."""
    result = np.empty((*chunk.q.shape[:-1], chunk.v.shape[-1]), chunk.q.dtype)
    for t in range(chunk.k.shape[2]):
        k, u = chunk.k[:, :, t, :, None], chunk.v[:, :, t, None]
        if chunk.decay is not None:
            state *= chunk.decay[:, :, min(t, chunk.decay.shape[2] - 1), :, None]
        if chunk.beta is not None:
            beta = chunk.beta[:, :, min(t, chunk.beta.shape[2] - 1), None, None]
            u = beta * (u - (k * state).sum(axis=-2, keepdims=True))
        state += k * u
        result[..., t, :] = (chunk.q[..., t, :, None] * state[:, :, None]).sum(axis=-2)
    return result
