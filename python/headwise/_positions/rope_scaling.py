"""The families of rotary frequencies: a formula each, and what it is given.

Names and parameters are those of a Hugging Face configuration's ``rope_parameters`` (``rope_scaling`` before version 5
of transformers), and the numbers are those of its ``ROPE_INIT_FUNCTIONS``, in float64. Below, ``d`` is the number of
features that are turned, ``b`` the base, ``s`` the factor, ``L`` the length that the model was trained for, and
``f[k] = b ** (-2 k / d)`` the frequency of pair ``k`` without scaling, in radians a position.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from headwise._base.outputs import check_room
from headwise._base.typing import FLOAT64

if TYPE_CHECKING:
    from headwise._base.typing import Array


class RotaryScaling(NamedTuple):
    """Frequencies and the factor of cosines and sines, by the length of the sequence."""

    rope_type: str
    dim: int  # d of the formulas; of an odd one the last pair has a partner in the feature behind
    base: float
    trained_length: int | None  # where frequencies begin to depend on the length, if they do
    parameters: Mapping[str, Any]

    @property
    def rotary_dim(self) -> int:
        return self.dim + self.dim % 2

    def regime(self, length: int | None) -> int:
        """The same number for all lengths that have the same frequencies, and one of those lengths."""
        if self.trained_length is None:
            return 0
        if length is None or length <= self.trained_length:
            return self.trained_length
        return length if self.rope_type == "dynamic" else self.trained_length + 1

    def inv_freq(self, length: int | None) -> Array:
        """Radians a position for each pair, (pairs,), float64, where the sequence is ``length`` long."""
        return FAMILIES[self.rope_type].inv_freq(self, self.regime(length))

    @property
    def attention_factor(self) -> float:
        return FAMILIES[self.rope_type].attention_factor(self)


# --- frequencies ---


def _default(rope: RotaryScaling, length: int = 0) -> Array:
    """``f[k] = b ** (-2 k / d)``: Su et al., "RoFormer" (2021), section 3.2.2."""
    return _powers(rope.base, rope.dim, rope.dim)


def _linear(rope: RotaryScaling, length: int) -> Array:
    """``f / s``, as positions ``p / s``: Chen et al., "Extending Context Window of Large Language Models via Positional
    Interpolation" (2023), equation 4."""
    inv_freq = _default(rope)
    inv_freq /= rope.parameters["factor"]
    return inv_freq


def _proportional(rope: RotaryScaling, length: int) -> Array:
    """``f / s`` for the first ``r d / 2`` pairs of all ``d`` features, ``r`` the ``partial_rotary_factor``; the others
    stand still. So pairs are as far apart as without it: the partial rotation of Gemma 4."""
    inv_freq = _default(rope)
    inv_freq[int(rope.parameters.get("partial_rotary_factor", 1.0) * rope.dim // 2) :] = 0.0
    inv_freq /= rope.parameters.get("factor", 1.0)
    return inv_freq


def _dynamic(rope: RotaryScaling, length: int) -> Array:
    """``b' ** (-2 k / d)`` with ``b' = b (s n / L - (s - 1)) ** (d / (d - 2))`` for a sequence of ``n >= L``: the least
    frequency is divided by what stands in brackets, the greatest stays. "NTK-aware scaled RoPE" by u/bloc97 and its
    dynamic form by u/emozilla (2023); Peng et al. (2023), sections 3.1 and 3.3."""
    if rope.dim <= 2 or rope.trained_length is None:
        return _default(rope)  # the one pair's frequency is 1 for any base
    factor = rope.parameters["factor"]
    stretch = factor * length / rope.trained_length - (factor - 1.0)
    return _default(rope) * _powers(stretch, rope.dim, rope.dim - 2)


def _yarn(rope: RotaryScaling, length: int) -> Array:
    """``f (1 - g) + g f / s``: pairs that turn often within ``L`` stay, those that do not turn once are interpolated,
    and ``g`` goes from 0 to 1 in between. Peng et al., "YaRN: Efficient Context Window Extension of Large Language
    Models" (2023), section 3.2, "NTK-by-parts".

    As in the authors' code the ramp is linear in the number of the pair, from the one that turns ``beta_fast`` times
    to the one that turns ``beta_slow`` times: ``L f[k] = 2 pi beta`` at ``k = d ln(L / (2 pi beta)) / (2 ln b)``.
    """
    given, plain = rope.parameters, _default(rope)

    def pair_turning(times: float) -> float:
        turn = 2.0 * math.pi * times
        return rope.dim * math.log(given[TRAINED] / turn) / (2.0 * math.log(rope.base))

    first, last = pair_turning(given.get("beta_fast", 32.0)), pair_turning(given.get("beta_slow", 1.0))
    if given.get("truncate", True):
        first, last = math.floor(first), math.ceil(last)
    first, last = max(first, 0), min(last, rope.dim - 1)
    width = last - first or 0.001  # a step, where they are one
    ramp = np.clip((np.arange(len(plain)) - first) / width, 0.0, 1.0)
    return _between(plain, ramp, given["factor"])


def _llama3(rope: RotaryScaling, length: int) -> Array:
    """``f (1 - g) + g f / s``, where ``g`` goes by the number of turns within ``L``: it is 0 from ``high_freq_factor``
    turns on, 1 below ``low_freq_factor`` turns, and linear in the turns in between. Llama 3.1's reference code,
    ``apply_scaling`` (Meta, 2024)."""
    given, plain = rope.parameters, _default(rope)
    low, high = given["low_freq_factor"], given["high_freq_factor"]
    turns = given[TRAINED] * plain / (2.0 * math.pi)
    return _between(plain, 1.0 - np.clip((turns - low) / (high - low), 0.0, 1.0), given["factor"])


def _longrope(rope: RotaryScaling, length: int) -> Array:
    """``f[k] / c[k]``, with divisors ``c`` found by search, one set for sequences up to ``L`` and one for longer ones:
    Ding et al., "LongRoPE: Extending LLM Context Window Beyond 2 Million Tokens" (2024), section 3."""
    longer = rope.trained_length is not None and length > rope.trained_length
    inv_freq = _default(rope)
    inv_freq /= rope.parameters["long_factor" if longer else "short_factor"]
    return inv_freq


def _between(plain: Array, ramp: Array, factor: float) -> Array:
    """``f (1 - g) + g f / s``."""
    inv_freq: Array = plain * (1.0 - ramp) + plain / factor * ramp
    return inv_freq


def _powers(base: float, dim: int, divisor: int) -> Array:
    """``base ** (-2 k / divisor)`` for each of the pairs that ``dim`` features make."""
    check_room(dim)
    powers: Array = np.power(base, -np.arange(0, dim, 2, dtype=FLOAT64) / divisor)
    return powers


# --- factors of cosines and sines: their square is that of the scores ---


def _none(rope: RotaryScaling) -> float:
    return 1.0


def _yarn_attention(rope: RotaryScaling) -> float:
    """``0.1 ln(s) + 1``: Peng et al. (2023), section 3.4. With ``mscale`` and ``mscale_all_dim``, as DeepSeek has them,
    the ratio of two such factors, whose logarithms are multiplied by either."""
    given = rope.parameters
    if "attention_factor" in given:
        return float(given["attention_factor"])
    log = 0.1 * math.log(given["factor"])
    above, below = given.get("mscale", 0.0), given.get("mscale_all_dim", 0.0)
    return (above * log + 1.0) / (below * log + 1.0) if above and below else log + 1.0


def _longrope_attention(rope: RotaryScaling) -> float:
    """``sqrt(1 + ln(s) / ln(L))``: the code of Phi-3 (Microsoft, 2024)."""
    given = rope.parameters
    if "attention_factor" in given:
        return float(given["attention_factor"])
    if given["factor"] <= 1.0:
        return 1.0
    return math.sqrt(1.0 + math.log(given["factor"]) / math.log(given[TRAINED]))


class Family(NamedTuple):
    """How frequencies are made, and the parameters for it: those that must and those that may be given."""

    inv_freq: Callable[[RotaryScaling, int], Array]
    required: tuple[str, ...] = ()
    optional: tuple[str, ...] = ()
    attention_factor: Callable[[RotaryScaling], float] = _none


TRAINED = "original_max_position_embeddings"
FAMILIES = {
    "default": Family(_default),
    "linear": Family(_linear, ("factor",)),
    "proportional": Family(_proportional, (), ("factor",)),
    "dynamic": Family(_dynamic, ("factor",)),
    "yarn": Family(
        _yarn,
        ("factor", TRAINED),
        ("attention_factor", "beta_fast", "beta_slow", "mscale", "mscale_all_dim", "truncate"),
        _yarn_attention,
    ),
    "llama3": Family(_llama3, ("factor", "low_freq_factor", "high_freq_factor", TRAINED)),
    "longrope": Family(
        _longrope, ("short_factor", "long_factor", TRAINED), ("attention_factor", "factor"), _longrope_attention
    ),
}
