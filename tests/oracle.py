"""Reference results of every operation, in double precision or better, written as in the papers.

Nothing here is shared with the package: loops over rows, plain formulas, masked keys left out of the sums instead of
given a weight of zero. Slow and obvious on purpose.

Results are float64, or np.longdouble where an argument is.
"""

from __future__ import annotations

import decimal
import functools
import hashlib
import math
import pickle
from collections.abc import Callable
from decimal import Decimal
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, DTypeLike, NDArray

Array = NDArray[Any]


class Attention(NamedTuple):
    """Everything an attention call can return, in the rank of its query."""

    output: Array
    weights: Array
    lse: Array


def remembered(function: Callable[..., Attention]) -> Callable[..., Attention]:
    """``function`` with a cache of its last results, read-only, up to 2**28 bytes, keyed by the arguments: each
    implementation needs the same results."""
    answers: dict[bytes, Attention] = {}
    room = 2**28

    @functools.wraps(function)
    def ask(*args: Any, **keywords: Any) -> Attention:
        nonlocal room
        question = hashlib.sha256(pickle.dumps((args, sorted(keywords.items())))).digest()
        answer = answers.pop(question, None)
        if answer is None:
            answer = function(*args, **keywords)
            room -= sum(part.nbytes for part in answer)
            for part in answer:
                part.flags.writeable = False
        answers[question] = answer  # now the most recent
        while room < 0:
            room += sum(part.nbytes for part in answers.pop(next(iter(answers))))
        return answer

    return ask


def wide(x: ArrayLike) -> Array:
    """The same numbers (bfloat16 among them, of kind V) in the widest floating type at hand: 80 bits on x86."""
    x = np.asarray(x)
    return (x.astype(np.float32) if x.dtype.kind == "V" else x).astype(np.longdouble)


def double(x: ArrayLike) -> Array:
    """The same numbers as float64; np.longdouble stays."""
    return rounded(wide(x), x)


def rounded(answer: Array, *arguments: ArrayLike) -> Array:
    """``answer`` as float64, or as it is where an argument is np.longdouble."""
    asked = any(np.asarray(x).dtype == np.longdouble for x in arguments)
    return answer if asked else answer.astype(np.float64)


def normal(rng: np.random.Generator, shape: int | tuple[int, ...]) -> Array:
    """``rng.standard_normal(shape)``, with the same bits on every processor.

    NumPy draws by the ziggurat method (Marsaglia and Tsang, 2000), which multiplies and compares up to 3.654; the few
    numbers beyond are logarithms, whose last bits depend on the mathematical library. These are rounded to 2**-30.
    """
    x = rng.standard_normal(shape)
    return np.where(np.abs(x) > 3.5, np.round(x * 2.0**30) * 2.0**-30, x)


Axis = int | tuple[int, ...] | None


def softmax(x: ArrayLike, axis: Axis = -1, where: ArrayLike = True) -> Array:
    """``exp(x) / sum(exp(x))`` over the entries kept by ``where``, 0 elsewhere; an all -inf slice is NaN, as the
    formula says, and a slice without kept entries is 0."""
    with np.errstate(all="ignore"):
        kept = np.where(where, wide(x), -np.inf)
        powers = np.exp(kept - np.max(kept, axis=axis, keepdims=True))
        return rounded(np.where(where, powers / powers.sum(axis=axis, keepdims=True), 0), x)


def logsumexp(
    x: ArrayLike,
    axis: Axis = -1,
    keepdims: bool = False,
    where: ArrayLike = True,
    b: ArrayLike = 1,
    return_sign: bool = False,
) -> Any:
    """``log(sum(b * exp(x)))``, where a slice of -inf (or of nothing) sums to zero: -inf; +inf anywhere: +inf."""
    with np.errstate(all="ignore"):
        kept = np.where(where & (wide(b) != 0), wide(x), -np.inf)
        top = np.max(kept, axis=axis, keepdims=True, initial=-np.inf)
        shift = np.where(np.isfinite(top), top, 0)
        total = (np.where(kept == -np.inf, 0, wide(b) * np.exp(kept - shift))).sum(axis=axis, keepdims=True)
        answers = [shift + np.log(np.abs(total) if return_sign else total), np.sign(total)]
    results = [rounded(answer if keepdims else answer.squeeze(axis), x) for answer in answers]
    return tuple(results) if return_sign else results[0]


def log_softmax(x: ArrayLike, axis: Axis = -1, where: ArrayLike = True) -> Array:
    """``x - logsumexp(x)``, after subtraction of the maximum: a constant of 1e30 would absorb the logarithm."""
    with np.errstate(all="ignore"):
        kept = np.where(where, wide(x), -np.inf)
        shifted = kept - np.max(kept, axis=axis, keepdims=True)
        answer = shifted - np.log(np.exp(shifted).sum(axis=axis, keepdims=True))
        return rounded(np.where(where, answer, -np.inf), x)


def linear(x: ArrayLike, weight: ArrayLike, bias: ArrayLike | None = None) -> Array:
    """``x @ weight + bias``."""
    return rounded(wide(x) @ wide(weight) + (0 if bias is None else wide(bias)), x, weight)


def layer_normalization(
    x: ArrayLike,
    gamma: ArrayLike | None = None,
    beta: ArrayLike | None = None,
    eps: float = 1e-5,
    axis: int = -1,
) -> Array:
    """Ba et al. (2016), with the biased variance."""
    rows = np.moveaxis(wide(x), axis, -1)
    centred = rows - rows.mean(axis=-1, keepdims=True)
    normal = centred / np.sqrt((centred**2).mean(axis=-1, keepdims=True) + np.longdouble(eps))
    scaled = normal * wide(1 if gamma is None else gamma) + wide(0 if beta is None else beta)
    return rounded(np.moveaxis(scaled, -1, axis), x)


def rms_norm(x: ArrayLike, gamma: ArrayLike | None = None, eps: float = 1e-6) -> Array:
    """Zhang and Sennrich (2019)."""
    rows = wide(x)
    normal = rows / np.sqrt((rows**2).mean(axis=-1, keepdims=True) + np.longdouble(eps))
    return rounded(normal * wide(1 if gamma is None else gamma), x)


def layer_normalization_backward(
    d_out: ArrayLike, x: ArrayLike, gamma: ArrayLike | None = None, eps: float = 1e-5, axis: int = -1
) -> tuple[Array, Array, Array]:
    """tests/gradients compares gradients with differences of the forward pass, too."""
    rows, d = (np.moveaxis(wide(a), axis, -1) for a in (x, d_out))
    g = d * wide(1 if gamma is None else gamma)
    centred = rows - rows.mean(axis=-1, keepdims=True)
    by_x, by_gamma = norm_backward(d, g, g - g.mean(axis=-1, keepdims=True), centred, eps)
    return rounded(np.moveaxis(by_x, -1, axis), x), rounded(by_gamma, x), rounded(total(d), x)


def rms_norm_backward(
    d_out: ArrayLike, x: ArrayLike, gamma: ArrayLike | None = None, eps: float = 1e-6
) -> tuple[Array, Array]:
    d, g = wide(d_out), wide(d_out) * wide(1 if gamma is None else gamma)
    by_x, by_gamma = norm_backward(d, g, g, wide(x), eps)
    return rounded(by_x, x), rounded(by_gamma, x)


def norm_backward(d: Array, g: Array, direct: Array, centred: Array, eps: float) -> tuple[Array, Array]:
    root = np.sqrt((centred**2).mean(axis=-1, keepdims=True) + np.longdouble(eps))
    y = centred / root
    return (direct - y * (g * y).mean(axis=-1, keepdims=True)) / root, total(d * y)


def total(x: Array) -> Array:
    """The sum over all axes but the last."""
    return np.asarray(x.sum(axis=tuple(range(x.ndim - 1))))


def gelu(x: ArrayLike, approximate: str = "none") -> Array:
    """Hendrycks and Gimpel (2016); -0 at -inf."""
    return rounded(weighted(x, "gelu" if approximate == "none" else "gelu_tanh")[0], x)


def silu(x: ArrayLike) -> Array:
    """Elfwing et al. (2017); -0 at -inf."""
    return rounded(weighted(x, "silu")[0], x)


def weighted(x: ArrayLike, name: str) -> tuple[Array, Array]:
    """x times a distribution function of x, and the derivative, with their limits at infinity."""
    t = wide(x)
    with np.errstate(all="ignore"):
        if name == "gelu":
            share = erfc(-t / np.sqrt(np.longdouble(2))) / 2
            density = np.exp(-(t**2) / 2) / np.sqrt(2 * PI)
        else:
            rate = 2 * np.sqrt(2 / PI)
            cubic = np.longdouble("0.044715")
            y, y_slope = (t, 1) if name == "silu" else (rate * (t + cubic * t**3), rate * (1 + 3 * cubic * t**2))
            share = 1 / (1 + np.exp(-y))
            density = share / (1 + np.exp(y)) * y_slope
        value, slope = t * share, share + t * density
    limit = np.isinf(t)
    return np.where(t == -np.inf, -0.0, value), np.where(limit, t > 0, slope)


PI = np.longdouble("3.14159265358979323846264338327950288")


def erfc(z: Array) -> Array:
    """By the series 7.1.6 of Abramowitz and Stegun (1964) near 0, else by their continued fraction 7.1.14."""
    a = np.abs(z)
    near = np.minimum(a, 1.5)
    term = series = near
    for n in range(1, 50):
        term = term * 2 * near**2 / (2 * n + 1)
        series = series + term
    fraction = far = np.maximum(a, 1.5)
    for n in range(400, 0, -1):
        fraction = far + np.longdouble(n) / 2 / fraction
    bell = np.exp(-(a**2))
    upper = np.where(a < 1.5, 1 - 2 / np.sqrt(PI) * bell * series, bell / np.sqrt(PI) / fraction)
    return np.where(np.isnan(z), z, np.where(z < 0, 2 - upper, upper))


def gelu_backward(d_out: ArrayLike, x: ArrayLike, approximate: str = "none") -> Array:
    return rounded(wide(d_out) * weighted(x, "gelu" if approximate == "none" else "gelu_tanh")[1], x)


def silu_backward(d_out: ArrayLike, x: ArrayLike) -> Array:
    return rounded(wide(d_out) * weighted(x, "silu")[1], x)


def swiglu(gate: ArrayLike, up: ArrayLike) -> Array:
    """Shazeer (2020), equation 6."""
    return rounded(weighted(gate, "silu")[0] * wide(up), gate, up)


def geglu(gate: ArrayLike, up: ArrayLike, approximate: str = "none") -> Array:
    """Shazeer (2020), equation 5."""
    return rounded(weighted(gate, "gelu" if approximate == "none" else "gelu_tanh")[0] * wide(up), gate, up)


def swiglu_backward(d_out: ArrayLike, gate: ArrayLike, up: ArrayLike) -> tuple[Array, Array]:
    return gated_backward(d_out, gate, up, "silu")


def geglu_backward(d_out: ArrayLike, gate: ArrayLike, up: ArrayLike, approximate: str = "none") -> tuple[Array, Array]:
    return gated_backward(d_out, gate, up, "gelu" if approximate == "none" else "gelu_tanh")


def gated_backward(d_out: ArrayLike, gate: ArrayLike, up: ArrayLike, name: str) -> tuple[Array, Array]:
    value, slope = weighted(gate, name)
    return rounded(wide(d_out) * wide(up) * slope, gate), rounded(wide(d_out) * value, gate)


def rope(x: ArrayLike, cos: ArrayLike, sin: ArrayLike, interleaved: bool = False) -> Array:
    """Su et al. (2021), equation 13: each pair of features is a complex number, multiplied by ``cos + i sin``."""
    x, cos, sin = double(x), double(cos), double(sin)
    answer = np.empty(x.shape, x.dtype)
    half = x.shape[-1] // 2
    real, imaginary = (np.s_[..., 0::2], np.s_[..., 1::2]) if interleaved else (np.s_[..., :half], np.s_[..., half:])
    with np.errstate(invalid="ignore"):  # NumPy's complex product would make NaN of an infinite part alone
        answer[real] = x[real] * cos - x[imaginary] * sin
        answer[imaginary] = x[real] * sin + x[imaginary] * cos
    return answer


def rope_tables(
    positions: ArrayLike, head_dim: int, base: float = 10000.0, dtype: DTypeLike = np.float64
) -> tuple[Array, Array]:
    """Cosine and sine of ``position * base ** (-2 i / head_dim)``, rounded once, from 80 digits, to ``dtype``.

    The bits are the same on every processor and with every NumPy. Those of ``np.cos`` and ``np.sin`` are not: NumPy
    chooses among implementations by instruction set.

    Parameters
    ----------
    positions
        Integers, of any shape (...).
    head_dim
        Of which each pair ``i`` is turned; an odd one has a last pair of one feature.
    base
        Of the geometric series of frequencies.
    dtype
        float64 or longdouble.

    Returns
    -------
    cos, sin
        Both (..., (head_dim + 1) // 2).
    """
    positions, pairs = np.asarray(positions, np.int64), (head_dim + 1) // 2
    with decimal.localcontext() as context:
        context.prec = 80
        frequencies = [Decimal(base) ** (Decimal(-2 * i) / head_dim) for i in range(pairs)]
        columns = [_turns(positions.ravel().tolist(), frequency) for frequency in frequencies]
    # From text, longdouble is rounded once, too; NumPy makes one of a Decimal by way of float64.
    number = (lambda x: np.longdouble(str(x))) if np.dtype(dtype) == np.longdouble else float
    numbers = np.array([[list(map(number, turn)) for turn in column] for column in columns], dtype)
    cos, sin = (
        np.ascontiguousarray(numbers.reshape(pairs, -1, 2)[..., part].T).reshape(*positions.shape, pairs)
        for part in (0, 1)
    )
    return cos, sin


_TWO_PI = Decimal("6.2831853071795864769252867665590057683943387987502116419498891846156328125724179972560696506842")


def _turns(positions: list[int], frequency: Decimal) -> list[tuple[Decimal, Decimal]]:
    """Cosine and sine of ``position * frequency``, each from the ones before it by the addition theorem."""
    cos_sin = functools.cache(lambda position: _cos_sin(position * frequency))
    turns, before, cos, sin = [], 0, Decimal(1), Decimal(0)
    for position in positions:
        c, s = cos_sin(position - before)
        cos, sin, before = cos * c - sin * s, cos * s + sin * c, position
        turns.append((cos, sin))
    return turns


def _cos_sin(angle: Decimal) -> tuple[Decimal, Decimal]:
    """Their Taylor series, after whole turns are taken off."""
    angle -= _TWO_PI * (angle / _TWO_PI).to_integral_value()
    sums, term, n = [Decimal(1), Decimal(0)], Decimal(1), 0
    while n < 8 or abs(term) > Decimal("1e-70"):
        n += 1
        term = term * angle / n
        sums[n % 2] += term if n % 4 < 2 else -term
    return sums[0], sums[1]


def alibi_slopes(num_heads: int) -> Array:
    """Press et al. (2022): for ``n = 2**k`` heads the geometric series whose first term and ratio are ``2**(-8/n)``.

    Other head counts take the series of the power of two below, then every other entry of the series of the power of
    two above, as the authors' code does.
    """

    def series(n: int) -> list[float]:
        return [2.0 ** (-8.0 * (i + 1) / n) for i in range(n)]

    below = 2 ** int(math.log2(num_heads))
    return np.array(series(below) + series(2 * below)[0::2][: num_heads - below])


def alibi_bias(slopes: ArrayLike, query_len: int, key_len: int, offset: int = 0) -> Array:
    """``-slope * |i + offset - j|``."""
    slopes = double(slopes)
    bias = np.empty((len(slopes), query_len, key_len), slopes.dtype)
    for head, slope in enumerate(slopes):
        for i in range(query_len):
            for j in range(key_len):
                bias[head, i, j] = -slope * abs(i + offset - j)
    return bias


def add_alibi(scores: ArrayLike, slopes: ArrayLike | None = None, offset: int = 0) -> Array:
    """Scores with ``alibi_bias`` added; without slopes, those of the paper."""
    scores = double(scores)
    heads, query_len, key_len = scores.shape[-3:]
    with np.errstate(invalid="ignore"):
        return scores + alibi_bias(alibi_slopes(heads) if slopes is None else slopes, query_len, key_len, offset)


def four_dimensional(shape: tuple[int, ...]) -> tuple[int, ...]:
    """``(..., n, m)`` as ``(batch, heads, n, m)``; below rank 4 there is one head."""
    if len(shape) < 4:
        return (math.prod(shape[:-2]), 1, *shape[-2:])
    return (math.prod(shape[:-3]), *shape[-3:])


def spread(extra: Array, shape: tuple[int, ...]) -> Array:
    """A mask or bias for scores ``(..., query_len, key_len)``, broadcast to four dimensions.

    A plain 2-D mask is ``(query_len, key_len)`` where that fits and ``(batch, key_len)`` where it does not; a 4-D one
    is ``(batch, heads, query_len, key_len)`` for calls of lower rank as well; the rest broadcasts as in NumPy.
    """
    four = four_dimensional(shape)
    if extra.ndim == 2 and not all(n in (1, full) for n, full in zip(extra.shape, shape[-2:], strict=True)):
        return np.broadcast_to(extra[:, None, None, :], four)
    if extra.ndim == 4 and len(shape) < 4:
        return np.broadcast_to(extra, four)
    while extra.ndim > len(shape):
        (extra,) = extra
    return np.broadcast_to(extra, shape).reshape(four)


def is_keep(mask: Array) -> bool:
    """bool and integer masks select; so does a float mask of zeros and ones that has a one. Other floats are added."""
    if mask.dtype.kind in "bui":
        return True
    return bool(np.isin(mask, (0.0, 1.0)).all() and (mask == 1.0).any())


def kept_and_added(
    scores: tuple[int, ...],
    dtype: DTypeLike,
    mask: ArrayLike | None,
    bias: ArrayLike | None,
    key_padding_mask: ArrayLike | None,
) -> tuple[Array, Array]:
    """Which scores are kept, and the sum of what is added to them, in four dimensions. ``scores`` is their shape."""
    keep = np.ones(four_dimensional(scores), bool)
    added = np.zeros(keep.shape, dtype)
    biases = [] if bias is None else [double(bias)]
    if mask is not None and is_keep(np.asarray(mask)):
        keep &= spread(np.asarray(mask), scores) != 0
    elif mask is not None:
        biases.append(double(mask))
    if key_padding_mask is not None:
        padding = np.asarray(key_padding_mask)
        batch = scores[:-3] or scores[:-2] or (1,)
        padding = np.broadcast_to(padding, (*batch, scores[-1])).reshape(len(keep), 1, 1, scores[-1])
        if is_keep(padding):
            keep &= padding != 0
        else:
            biases.append(np.broadcast_to(double(padding), keep.shape).reshape(scores))
    highest = np.finfo(added.dtype).max
    for one in biases:
        keep &= spread(one, scores) != -np.inf
        finite = np.isfinite(added) & np.isfinite(spread(one, scores))
        with np.errstate(over="ignore", invalid="ignore"):
            added = added + spread(one, scores)
        added[finite] = np.clip(added[finite], -highest, highest)  # a sum of finite biases stays finite
    return keep, added


@remembered
def attention(  # noqa: PLR0913 (the options of attention, one by one)
    query: ArrayLike,
    key: ArrayLike,
    value: ArrayLike,
    mask: ArrayLike | None = None,
    *,
    bias: ArrayLike | None = None,
    is_causal: bool = False,
    causal_alignment: str = "upper_left",
    scale: float | None = None,
    window_size: int | tuple[int, int] | None = None,
    softcap: float | None = None,
    alibi_slopes: ArrayLike | None = None,
    sinks: ArrayLike | None = None,
    key_padding_mask: ArrayLike | None = None,
    key_lengths: ArrayLike | None = None,
    score_mod: Any = None,
    relative_bias: ArrayLike | None = None,
) -> Attention:
    """One query row at a time: scale, softcap, bias and ALiBi, softmax over the keys that are kept, sum of values."""
    query, key, value = double(query), double(key), double(value)
    lead = query.shape[:-2]
    query_len, key_len, value_dim = query.shape[-2], key.shape[-2], value.shape[-1]
    scores = (*lead, query_len, key_len)
    batch, heads = four_dimensional(scores)[:2]
    query, key, value = (x.reshape(four_dimensional(x.shape)) for x in (query, key, value))
    kv_heads = key.shape[1]

    keep, added = kept_and_added(scores, query.dtype, mask, bias, key_padding_mask)
    lengths = np.full(batch, key_len) if key_lengths is None else np.ravel(key_lengths)
    offsets = lengths - query_len if causal_alignment == "lower_right" else np.zeros(batch, int)
    left, right = (window_size, window_size) if isinstance(window_size, int) else window_size or (-1, -1)
    if is_causal:
        right = 0 if right < 0 else min(right, 0)
    scale = 1 / np.sqrt(query.dtype.type(query.shape[-1])) if scale is None else scale
    slopes = np.zeros(heads) if alibi_slopes is None else double(alibi_slopes)
    sinks = None if sinks is None else double(sinks)
    relative = np.zeros((batch, heads, query_len, 1), query.dtype)
    if relative_bias is not None:
        table = double(relative_bias)
        full = (*(lead[:-1] or lead), heads, query_len, table.shape[-1])
        relative = np.broadcast_to(table, full).reshape(relative.shape[:3] + full[-1:])

    output = np.zeros((batch, heads, query_len, value_dim), query.dtype)
    weights = np.zeros(keep.shape, query.dtype)
    lse = np.full((batch, heads, query_len), -np.inf, query.dtype)
    with np.errstate(all="ignore"):
        for n, h, i in np.ndindex(batch, heads, query_len):
            position = i + int(offsets[n])
            kept = [
                j
                for j in np.flatnonzero(keep[n, h, i, : lengths[n]])
                if (left < 0 or position - left <= j) and (right < 0 or j <= position + right)
                if relative[n, h, i, entry(j - position, relative)] != -np.inf
            ]
            score = scale * (key[n, h * kv_heads // heads, kept] @ query[n, h, i])
            if softcap is not None:
                score = softcap * np.tanh(score / softcap)
            distance = np.array(kept, int) - position
            score = score + added[n, h, i, kept] + relative[n, h, i, entry(distance, relative)]
            score = score - slopes[h] * np.abs(distance)
            if score_mod is not None:
                score = score_mod(score, n, h, i, np.array(kept, int))
            logits = np.append(score, () if sinks is None else sinks[h]).astype(np.longdouble)
            largest = logits.max(initial=-np.inf)
            if not kept and largest == -np.inf:
                continue
            powers = np.exp(logits - largest)
            lse[n, h, i] = largest + np.log(powers.sum())
            weights[n, h, i, kept] = powers[: len(kept)] / powers.sum()
            output[n, h, i] = weights[n, h, i, kept] @ value[n, h * kv_heads // heads, kept]
    return Attention(
        output.reshape(*lead, query_len, value_dim), weights.reshape(scores), lse.reshape(*lead, query_len)
    )


def entry(distance: Any, table: Array) -> Any:
    """The index of a distance in a table of the distances -M to M (Shaw et al., 2018, section 3.2)."""
    middle = table.shape[-1] // 2
    return np.clip(distance, -middle, middle) + middle


def merge_attention(outputs: ArrayLike, lses: ArrayLike, axis: int = 0) -> tuple[Array, Array]:
    """Each part weighs as much as its softmax denominator."""
    sums, lse = wide(lses), wide(logsumexp(wide(lses), axis=axis))
    with np.errstate(invalid="ignore"):
        weights = np.exp(sums - np.expand_dims(lse, axis))
    parts = np.moveaxis(weights, axis, 0)[..., np.newaxis], np.moveaxis(wide(outputs), axis % sums.ndim, 0)
    return rounded(sum(weight * part for weight, part in zip(*parts, strict=True)), outputs), rounded(lse, outputs)


def attention_gradients(
    query: ArrayLike, key: ArrayLike, value: ArrayLike, d_output: ArrayLike, **options: Any
) -> tuple[Array, ...]:
    """Gradients of attention by query, key and value, and by those of bias, alibi_slopes and sinks that are given, from
    whole matrices (Dao et al., 2022, appendix B.2)."""
    for name in ("return_lse", "precision"):
        options.pop(name, None)
    forward = attention(query, key, value, **options)
    q, k, v, d, o, p = (
        x.reshape(four_dimensional(x.shape))
        for x in (*map(double, (query, key, value, d_output)), forward.output, forward.weights)
    )
    lse = forward.lse.reshape(p.shape[:3])
    group = p.shape[1] // k.shape[1]
    k, v = (x.repeat(group, axis=1) for x in (k, v))
    scale = 1 / np.sqrt(q.shape[-1]) if options.get("scale") is None else options["scale"]
    by_head = (p.shape[0], -1, group)
    with np.errstate(all="ignore"):
        delta = (d * o).sum(axis=-1)
        d_scores = np.where(p == 0, 0, p * (d @ v.swapaxes(2, 3) - delta[..., None]))
        rows = d_scores
        if options.get("softcap") is not None:
            rows = d_scores * (1 - np.tanh(scale * (q @ k.swapaxes(2, 3)) / options["softcap"]) ** 2)
        d_key, d_value = scale * (rows.swapaxes(2, 3) @ q), p.swapaxes(2, 3) @ d
        found = [scale * (rows @ k), *(x.reshape(*by_head, *x.shape[2:]).sum(axis=2) for x in (d_key, d_value))]
        results = [x.reshape(np.shape(like)) for x, like in zip(found, (query, key, value), strict=True)]
        if options.get("bias") is not None:
            shape = np.shape(options["bias"])
            d_bias = d_scores.reshape(forward.weights.shape)
            full = (1,) * (d_bias.ndim - len(shape)) + shape
            axes = tuple(n for n in range(d_bias.ndim) if full[n] != d_bias.shape[n])
            results.append(d_bias.sum(axis=axes, keepdims=True).reshape(shape))
        if options.get("alibi_slopes") is not None:
            results.append(-(d_scores * np.abs(distances(p, options))).sum(axis=(0, 2, 3)))
        if options.get("sinks") is not None:
            weights = np.exp(double(options["sinks"])[:, None] - np.where(np.isneginf(lse), 0, lse))
            results.append(-np.where(weights == 0, 0, weights * delta).sum(axis=(0, 2)))
        if options.get("relative_bias") is not None:
            results.append(relative_gradient(d_scores, query, options))
    return tuple(results)


def distances(scores: Array, options: dict[str, Any]) -> Array:
    """(batch, 1, query_len, key_len): of each key from the position of each query."""
    lengths = np.full(len(scores), scores.shape[3])
    if options.get("key_lengths") is not None:
        lengths = np.ravel(options["key_lengths"])
    first = lengths - scores.shape[2] if options.get("causal_alignment") == "lower_right" else 0 * lengths
    return np.arange(scores.shape[3]) - (first[:, None, None, None] + np.arange(scores.shape[2])[:, None])


def relative_gradient(d_scores: Array, query: ArrayLike, options: dict[str, Any]) -> Array:
    """The sums of ``d_scores`` over the pairs that have an entry of the relative bias."""
    table = np.asarray(options["relative_bias"])
    entries = np.broadcast_to(entry(distances(d_scores, options), table), d_scores.shape)
    total = np.zeros((*d_scores.shape[:3], table.shape[-1]), d_scores.dtype)
    n, h, i = (index[..., None] for index in np.indices(d_scores.shape[:3]))
    np.add.at(total, (n, h, i, entries), d_scores)
    lead = np.shape(query)[:-2]
    full = (*(lead[:-1] or lead), *total.shape[1:])
    own = (1,) * (len(full) - table.ndim) + table.shape
    axes = tuple(axis for axis in range(len(full)) if own[axis] != full[axis])
    return total.reshape(full).sum(axis=axes, keepdims=True).reshape(table.shape)


def linear_attention(  # noqa: PLR0913 (the keywords, one by one)
    query: ArrayLike,
    key: ArrayLike,
    value: ArrayLike,
    *,
    feature_map: Any = "elu",
    normalize: bool | None = None,
    scale: float = 1.0,
    is_causal: bool = False,
    decay: ArrayLike | None = None,
    beta: ArrayLike | None = None,
    rule: str = "linear",
    state: ArrayLike | None = None,
    chunk: int | None = None,
) -> tuple[Array, Array]:
    """The recurrence, one token after another (ONNX's LinearAttention; Katharopoulos et al., 2020)."""
    given = (query, key, value, *(() if state is None else (state,)))
    q, k, v = map(wide, (query, key, value))
    if feature_map is not None:
        phi = (lambda x: np.where(x > 0, x + 1, np.exp(np.minimum(x, 0)))) if feature_map == "elu" else feature_map
        q, k = phi(q), phi(k)
    divided = feature_map is not None if normalize is None else normalize
    if divided:
        v = np.concatenate([v, np.ones_like(v[..., :1])], axis=-1)
    else:
        q = q * wide(scale)
    rank, lead = k.ndim, v.shape
    q, k, v = (x.reshape(four_dimensional(x.shape)) for x in (q, k, v))
    q = q.reshape((*k.shape[:2], -1, *q.shape[2:]))  # the query heads of each key head
    S = np.zeros((*k.shape[:2], k.shape[3], v.shape[3]), k.dtype)
    if state is not None:
        S += wide(state).reshape(S.shape)
    rates = [None if rate is None else spread_rate(rate, rank, lead, k.shape) for rate in (decay, beta)]
    rows = []
    with np.errstate(all="ignore"):
        for t in range(k.shape[2]):
            now, u = k[:, :, t, :, None], v[:, :, t, None, :]
            if rates[0] is not None:
                S = rates[0][:, :, t, :, None] * S
            if rates[1] is not None:
                u = rates[1][:, :, t, :, None] * (u - (now * S).sum(axis=2, keepdims=True))
            S = S + now * u
            if is_causal or rule != "linear":
                rows.append((q[:, :, :, t, :, None] * S[:, :, None]).sum(axis=3))
        if not is_causal and rule == "linear":
            rows = [(q[:, :, :, i, :, None] * S[:, :, None]).sum(axis=3) for i in range(q.shape[3])]
        output = np.stack(rows, axis=3) if rows else np.zeros((*q.shape[:4], v.shape[3]), q.dtype)
        if divided:
            output = np.where(output[..., -1:] == 0, 0, output[..., :-1] / output[..., -1:])
    output = output.reshape((*np.shape(query)[:-1], output.shape[-1]))
    return rounded(output, *given), rounded(S.reshape((*lead[:-2], *S.shape[2:])), *given)


def spread_rate(rate: ArrayLike, rank: int, value: tuple[int, ...], key: tuple[int, ...]) -> Array:
    """Rates of tokens as (batch, heads, tokens, 1 or head_dim), of keys of ``rank`` axes."""
    x = wide(rate)
    if x.ndim == rank - 1:
        x = x[..., None]
    elif x.ndim == 1:  # of each head
        x = x[:, None, None]
    x = np.broadcast_to(x, (*value[:-1], x.shape[-1] if x.ndim else 1))
    return x.reshape((*key[:3], x.shape[-1]))
