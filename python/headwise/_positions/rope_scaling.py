"""The types of rotary scaling: a formula for the frequencies of each, and its parameters.

Names and parameters are those of ``rope_parameters`` in a Hugging Face configuration (``rope_scaling`` before version 5
of transformers). The results are those of its ``ROPE_INIT_FUNCTIONS``, computed in float64. Below, ``d`` is the number
of rotated features, ``b`` the base, ``s`` the factor, ``L`` the length that the model was trained for, and ``f[k] = b
** (-2 k / d)`` the frequency of pair ``k`` without scaling, in radians per position.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from headwise._base.ieee import ieee
from headwise._base.outputs import check_room
from headwise._base.typing import FLOAT64

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from headwise._base.typing import Array


class RotaryScaling(NamedTuple):
    """Frequencies by the length of the sequence, and the factor of cosines and sines."""

    rope_type: str
    dim: int  # d of the formulas; if odd, the last pair includes the feature after the first d
    base: float
    trained_length: int | None  # the length above which frequencies depend on it; None: they do not
    parameters: Mapping[str, Any]
    pinned: int | None = None  # the length that stands for every other one

    @property
    def rotary_dim(self) -> int:
        return self.dim + self.dim % 2

    @property
    def _family(self) -> Family:
        return FAMILIES.get(self.rope_type, GIVEN)

    def regime(self, length: int | None) -> int:
        """A representative of the lengths that have the same frequencies as ``length``."""
        if self.trained_length is None:
            return 0
        if self.pinned is not None:
            length = self.pinned
        if length is None or length <= self.trained_length:
            return self.trained_length
        return length if self.rope_type == "dynamic" else self.trained_length + 1

    @ieee
    def inv_freq(self, length: int | None) -> Array:
        """The frequencies in radians per position, (pairs,), float64, for sequences of ``length``."""
        return self._family.inv_freq(self, self.regime(length))

    def attention_factor(self, length: int | None) -> float:
        """The factor of cosines and sines for sequences of ``length``."""
        return self._family.attention_factor(self, self.regime(length))

    @ieee
    def query_scale(self, positions: Array) -> Array | None:
        """``1 + beta ln(1 + floor(p / L))``, the factor of queries at positions ``p``; None without ``beta``.

        ``beta`` is ``llama_4_scaling_beta``: Ministral 3 (Mistral AI, 2025), after the temperature of Llama 4.
        """
        beta = self.parameters.get(QUERY_SCALE)
        if beta is None:
            return None
        scale: Array = 1.0 + beta * np.log1p(np.floor(np.maximum(positions, 0) / self.parameters[TRAINED]))
        return scale


# --- frequencies ---


def _default(rope: RotaryScaling, _length: int = 0) -> Array:
    """``f[k] = b ** (-2 k / d)``: Su et al., "RoFormer" (2021), section 3.2.2."""
    return _powers(rope.base, rope.dim, rope.dim)


def _linear(rope: RotaryScaling, _length: int) -> Array:
    """``f / s``, equivalent to positions ``p / s``: Chen et al., "Extending Context Window of Large Language Models via
    Positional Interpolation" (2023), equation 4."""
    inv_freq = _default(rope)
    inv_freq /= rope.parameters["factor"]
    return inv_freq


def _proportional(rope: RotaryScaling, _length: int) -> Array:
    """``f / s`` for the first ``r d / 2`` of all pairs, where ``r`` is the ``partial_rotary_factor``, and 0 for the
    others. The two features of a pair are ``d / 2`` apart as without ``r``: the partial rotation of Gemma 4."""
    inv_freq = _default(rope)
    inv_freq[int(rope.parameters.get("partial_rotary_factor", 1.0) * rope.dim // 2) :] = 0.0
    inv_freq /= rope.parameters.get("factor", 1.0)
    return inv_freq


def _dynamic(rope: RotaryScaling, length: int) -> Array:
    """``b' ** (-2 k / d)`` with ``b' = b (s n / L - (s - 1)) ** (d / (d - 2))`` for a sequence of length ``n >= L``.

    The minimum frequency is divided by ``s n / L - (s - 1)``, and the maximum is unchanged. "NTK-aware scaled RoPE" by
    u/bloc97 and its dynamic form by u/emozilla (2023); Peng et al. (2023), sections 3.1 and 3.3.
    """
    if rope.dim <= 2 or rope.trained_length is None:
        return _default(rope)  # the frequency of a single pair is 1 for any base
    factor = rope.parameters["factor"]
    stretch = factor * length / rope.trained_length - (factor - 1.0)
    return _default(rope) * _powers(stretch, rope.dim, rope.dim - 2)


def _yarn(rope: RotaryScaling, _length: int) -> Array:
    """``f (1 - g) + g f / s``: Peng et al., "YaRN: Efficient Context Window Extension of Large Language Models", 2023,
    section 3.2, "NTK-by-parts".

    ``g`` is 0 for pairs that rotate many times within ``L`` positions, 1 for pairs that rotate less than once, and
    increases in between. As in the authors' code it is linear in the index of the pair, from the pair that rotates
    ``beta_fast`` times to the pair that rotates ``beta_slow`` times: ``L f[k] = 2 pi beta`` at ``k = d ln(L / (2 pi
    beta)) / (2 ln b)``.
    """
    given, plain = rope.parameters, _default(rope)

    def pair_rotating(times: float) -> float:
        # A difference of logarithms, as the quotient may overflow.
        return rope.dim * (math.log(given[TRAINED] / (2.0 * math.pi)) - math.log(times)) / (2.0 * math.log(rope.base))

    first, last = pair_rotating(given.get("beta_fast", 32.0)), pair_rotating(given.get("beta_slow", 1.0))
    if given.get("truncate", True):
        first, last = math.floor(first), math.ceil(last)
    first, last = max(first, 0), min(last, rope.dim - 1)
    width = last - first or 0.001  # if both are equal, a step
    ramp = np.clip((np.arange(len(plain)) - first) / width, 0.0, 1.0)
    return _between(plain, ramp, given["factor"])


def _llama3(rope: RotaryScaling, _length: int) -> Array:
    """``f (1 - g) + g f / s``: ``apply_scaling`` in the reference code of Llama 3.1 (Meta, 2024).

    ``g`` depends on the number of rotations within ``L`` positions: 0 from ``high_freq_factor`` on, 1 below
    ``low_freq_factor``, and linear in between. If both are equal (Llama 4 Scout), it is a step.
    """
    given, plain = rope.parameters, _default(rope)
    low, high = given["low_freq_factor"], given["high_freq_factor"]
    rotations = given[TRAINED] * plain / (2.0 * math.pi)
    kept = np.clip((rotations - low) / (high - low), 0.0, 1.0) if high > low else (rotations >= low).astype(FLOAT64)
    return _between(plain, 1.0 - kept, given["factor"])


def _longrope(rope: RotaryScaling, length: int) -> Array:
    """``f[k] / c[k]``, with one set of divisors ``c`` for sequences up to ``L`` and one for longer sequences.

    Both sets were found by search: Ding et al., "LongRoPE: Extending LLM Context Window Beyond 2 Million Tokens"
    (2024), section 3.
    """
    inv_freq = _default(rope)
    inv_freq /= rope.parameters["long_factor" if _is_longer(rope, length) else "short_factor"]
    return inv_freq


def _is_longer(rope: RotaryScaling, length: int) -> bool:
    return rope.trained_length is not None and length > rope.trained_length


def _given(rope: RotaryScaling, _length: int) -> Array:
    """The argument ``inv_freq`` of the rotary layer."""
    inv_freq: Array = rope.parameters["inv_freq"]
    return inv_freq


def _between(plain: Array, ramp: Array, factor: float) -> Array:
    """``f (1 - g) + g f / s``."""
    inv_freq: Array = plain * (1.0 - ramp) + plain / factor * ramp
    return inv_freq


def _powers(base: float, dim: int, divisor: int) -> Array:
    """``base ** (-2 k / divisor)`` for each pair of ``dim`` features."""
    check_room(dim)
    powers: Array = np.power(base, -np.arange(0, dim, 2, dtype=FLOAT64) / divisor)
    return powers


# --- factors of cosines and sines: scores are multiplied by their square ---


def _none(_rope: RotaryScaling, _length: int) -> float:
    return 1.0


def _yarn_attention(rope: RotaryScaling, _length: int) -> float:
    """``0.1 ln(s) + 1``: Peng et al. (2023), section 3.4. With ``mscale`` and ``mscale_all_dim`` (DeepSeek) it is
    ``(0.1 mscale ln(s) + 1) / (0.1 mscale_all_dim ln(s) + 1)``."""
    given = rope.parameters
    if "attention_factor" in given:
        return float(given["attention_factor"])
    log = 0.1 * math.log(given["factor"])
    above, below = given.get("mscale", 0.0), given.get("mscale_all_dim", 0.0)
    return (above * log + 1.0) / (below * log + 1.0) if above and below else log + 1.0


def _longrope_attention(rope: RotaryScaling, length: int) -> float:
    """``sqrt(1 + ln(s) / ln(L))``: the code of Phi-3 (Microsoft, 2024). Phi-3.5-MoE gives both numbers itself."""
    given = rope.parameters
    if "short_mscale" in given:
        return float(given["long_mscale" if _is_longer(rope, length) else "short_mscale"])
    if "attention_factor" in given:
        return float(given["attention_factor"])
    if given["factor"] <= 1.0:
        return 1.0
    return math.sqrt(1.0 + math.log(given["factor"]) / math.log(given[TRAINED]))


class Family(NamedTuple):
    """The formulas of a type of scaling, and their required and optional parameters."""

    inv_freq: Callable[[RotaryScaling, int], Array]
    required: tuple[str, ...] = ()
    optional: tuple[str, ...] = ()
    attention_factor: Callable[[RotaryScaling, int], float] = _none


TRAINED = "original_max_position_embeddings"
QUERY_SCALE = "llama_4_scaling_beta"
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
        _longrope,
        ("short_factor", "long_factor", TRAINED),
        ("attention_factor", "factor", "short_mscale", "long_mscale"),
        _longrope_attention,
    ),
}
# The argument inv_freq of the rotary layer, which is no type of a configuration.
GIVEN = Family(_given)
