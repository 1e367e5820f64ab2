"""The parameters of rotary embedding in a model's configuration: read, checked and completed."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np

from headwise._base.arrays import as_array, check_dtype
from headwise._base.messages import shown
from headwise._base.scalars import check_flag, check_real, check_size
from headwise._base.typing import FLOAT64
from headwise._positions.rope_scaling import FAMILIES, QUERY_SCALE, TRAINED, RotaryScaling

if TYPE_CHECKING:
    from headwise._base.typing import Array

# In text the three coordinates of a position in "mrope" (Qwen2-VL) are equal, so it is the default rotation.
_FORMER_NAMES = {"su": "longrope", "mrope": "default"}
# Keys of every type; LONGEST stands for the argument of this name.
LONGEST = "max_position_embeddings"
_ALWAYS = ("partial_rotary_factor", "rope_theta", TRAINED, LONGEST, QUERY_SCALE)
# Keys of configurations that change nothing: training records, parameters that transformers does not read, and
# sections of features that rotate by further coordinates of images, which text does not have.
_INERT = ("attn_factor", "finetuned", "mrope_section", "mrope_interleaved")
_PLANAR = ("axial", "2d", "rope_2d")


def read_scaling(
    scaling: object,
    head_dim: int,
    base: float,
    max_position_embeddings: int | None = None,
    rotary_dim: int | None = None,
    *,
    name: str = "dim",
) -> RotaryScaling:
    """The rotary scaling of heads with ``head_dim`` features, which messages call ``name``.

    ``rotary_dim`` is the number of rotated features if ``scaling`` does not give it.
    """
    rope_type, given = _parameters(scaling)
    checked = {key: _CHECKS[key](value, f"scaling[{key!r}]") for key, value in given.items()}
    base, longest = checked.pop("rope_theta", base), checked.pop(LONGEST, None)
    if max_position_embeddings is None:
        max_position_embeddings = longest
    else:
        max_position_embeddings = check_size(max_position_embeddings, LONGEST)
    if max_position_embeddings is not None and rope_type in ("yarn", "llama3"):
        checked.setdefault(TRAINED, max_position_embeddings)
    dim = _rotated(rope_type, head_dim, checked.get("partial_rotary_factor"), rotary_dim, name)
    _complete(rope_type, checked, max_position_embeddings)
    _check_together(rope_type, checked, dim, base)
    trained = {"dynamic": max_position_embeddings, "longrope": checked.get(TRAINED)}.get(rope_type)
    return RotaryScaling(rope_type, dim, base, trained, checked)


def given_frequencies(inv_freq: object, head_dim: int, scaling: object, rotary_dim: object) -> RotaryScaling:
    """The frequencies that a caller gives in place of a type of scaling."""
    if scaling is not None:
        raise ValueError("inv_freq: given with scaling, expected one of the two")
    numbers = _vector(inv_freq, "inv_freq")
    if not np.isfinite(numbers).all():
        raise ValueError(f"inv_freq: {numbers[~np.isfinite(numbers)][0]}, expected finite numbers")
    width = 2 * len(numbers)
    if not 0 < width <= head_dim:
        raise ValueError(f"inv_freq: {len(numbers)} numbers, expected 1 to d_model / 2 = {head_dim // 2}")
    if rotary_dim is not None and check_size(rotary_dim, "rotary_dim") != width:
        raise ValueError(f"rotary_dim: {rotary_dim}, expected {width} as by inv_freq, or None")
    return RotaryScaling("inv_freq", width, 1.0, None, {"inv_freq": numbers})


def _parameters(scaling: object) -> tuple[str, dict[str, Any]]:
    """The type of ``scaling`` and its parameters that are not None, all of which the type has."""
    if scaling is None:
        return "default", {}
    if not isinstance(scaling, Mapping):
        raise TypeError(
            f"scaling: {type(scaling).__name__}, expected None or a mapping such as a configuration's rope_parameters"
        )
    given = {key: value for key, value in scaling.items() if value is not None}
    former = given.pop("type", "default")
    rope_type = given.pop("rope_type", former)
    if not isinstance(rope_type, str):
        raise TypeError(f"scaling['rope_type']: {type(rope_type).__name__}, expected a string")
    rope_type = _FORMER_NAMES.get(rope_type, rope_type)
    if rope_type in _PLANAR:
        raise ValueError(
            f"scaling['rope_type']: {rope_type!r}, rotation by the row and the column of an image patch, expected a "
            "type for positions in a sequence; concatenate rope_tables of rows and of columns for apply_rope instead"
        )
    if rope_type not in FAMILIES:
        raise ValueError(f"scaling['rope_type']: {shown(rope_type)}, expected one of {', '.join(FAMILIES)}")
    for key in (*_INERT, *(("interleaved",) if "mrope_section" in given else ())):
        given.pop(key, None)
    family = FAMILIES[rope_type]
    known = (*family.required, *family.optional, *_ALWAYS)
    unexpected = {key: value for key, value in given.items() if key not in known}
    if unexpected:
        keys = ", ".join(map(shown, list(unexpected)[:12]))
        if all(isinstance(value, Mapping) for value in unexpected.values()):
            raise ValueError(f"scaling: a mapping for each of {keys}, expected the one for a single kind of layer")
        raise ValueError(f"scaling: {keys}, expected only {', '.join(known)} for rope_type {shown(rope_type)}")
    return rope_type, given


def _rotated(rope_type: str, head_dim: int, fraction: float | None, rotary_dim: int | None, name: str) -> int:
    """The number of features in the formulas, ``d``, if ``fraction`` and ``rotary_dim`` agree on the rotated ones."""
    if rope_type == "proportional":
        if rotary_dim is not None:
            raise ValueError(
                f"rotary_dim: {rotary_dim}, expected None with rope_type 'proportional', which pairs all features"
            )
        fraction = None
    if rotary_dim is not None:
        rotary_dim = check_size(rotary_dim, "rotary_dim")
        if rotary_dim % 2 or rotary_dim > head_dim:
            raise ValueError(f"rotary_dim: {rotary_dim}, expected an even number up to {name} = {head_dim}")
    if fraction is None:
        if rotary_dim is None and head_dim % 2:
            raise ValueError(f"{name}: {head_dim}, expected an even number, because features are rotated in pairs")
        return head_dim if rotary_dim is None else rotary_dim
    dim = int(head_dim * fraction)
    rotated = dim + dim % 2
    if not 0 < rotated <= head_dim:
        raise ValueError(
            f"scaling['partial_rotary_factor']: {fraction}, which rotates {rotated} of {head_dim} features, "
            f"expected 2 to {head_dim} of them"
        )
    if rotary_dim not in (None, rotated):
        raise ValueError(
            f"rotary_dim: {rotary_dim}, expected {rotated} as by scaling['partial_rotary_factor'], or None"
        )
    return dim


def _complete(rope_type: str, given: dict[str, Any], max_position_embeddings: int | None) -> None:
    """Compute a missing factor from lengths, as transformers does. ValueError if a parameter is still missing."""
    derived = rope_type in ("yarn", "longrope")
    if derived and "factor" not in given and TRAINED in given and max_position_embeddings is not None:
        given["factor"] = max_position_embeddings / given[TRAINED]
    missing = [key for key in FAMILIES[rope_type].required if key not in given]
    if rope_type == "longrope":
        scales = [key for key in ("short_mscale", "long_mscale") if key not in given]
        if len(scales) == 1:
            missing += scales
        elif scales and "factor" not in given and "attention_factor" not in given:
            missing.append("factor")
    if QUERY_SCALE in given and TRAINED not in given and TRAINED not in missing:
        missing.append(TRAINED)
    if missing:
        instead = ", or max_position_embeddings to compute it from" if derived and missing == ["factor"] else ""
        keys = ", ".join(map(repr, missing))
        reader = f"{QUERY_SCALE!r}" if QUERY_SCALE in given and missing == [TRAINED] else f"rope_type {rope_type!r}"
        raise ValueError(f"scaling: no {keys}, which {reader} requires{instead}")
    if rope_type == "dynamic" and max_position_embeddings is None:
        raise ValueError("max_position_embeddings: None, expected an integer, which rope_type 'dynamic' requires")


def _check_together(rope_type: str, given: dict[str, Any], dim: int, base: float) -> None:
    """The checks that involve several parameters."""
    if rope_type == "yarn":
        if base <= 1.0:
            raise ValueError(f"base: {base}, expected more than 1 with rope_type 'yarn'")
        if given["factor"] < 1.0:
            raise ValueError(
                f"scaling['{TRAINED}']: {given[TRAINED]}, expected at most max_position_embeddings, "
                f"{given['factor']:.4g} times as much"
            )
        fast, slow = given.get("beta_fast", 32.0), given.get("beta_slow", 1.0)
        if fast < slow:
            raise ValueError(f"scaling['beta_fast']: {fast}, expected at least beta_slow, {slow}")
    if rope_type == "llama3" and given["high_freq_factor"] < given["low_freq_factor"]:
        raise ValueError(
            f"scaling['high_freq_factor']: {given['high_freq_factor']}, expected at least low_freq_factor, "
            f"{given['low_freq_factor']}"
        )
    if rope_type == "longrope":
        pairs = (dim + 1) // 2
        for key in ("short_factor", "long_factor"):
            if len(given[key]) != pairs:
                raise ValueError(f"scaling['{key}']: {len(given[key])} numbers, expected {pairs}, one for each pair")
        if given[TRAINED] < 2:
            raise ValueError(f"scaling['{TRAINED}']: {given[TRAINED]}, expected at least 2")


def check_positive(value: object, name: str) -> float:
    number = check_real(value, name)
    if number <= 0.0:
        raise ValueError(f"{name}: {number}, expected a positive number")
    return number


def _at_least(value: object, name: str, minimum: float) -> float:
    number = check_real(value, name)
    if number < minimum:
        raise ValueError(f"{name}: {number}, expected at least {minimum}")
    return number


def _fraction(value: object, name: str) -> float:
    number = check_real(value, name)
    if not 0.0 < number <= 1.0:
        raise ValueError(f"{name}: {number}, expected a fraction in (0, 1]")
    return number


def _vector(value: object, name: str) -> Array:
    numbers = as_array(value, name)
    check_dtype(numbers.dtype, name)
    if numbers.ndim != 1:
        raise ValueError(f"{name}: shape {numbers.shape}, expected a number for each pair")
    return numbers.astype(FLOAT64)


def _divisors(value: object, name: str) -> Array:
    numbers = _vector(value, name)
    if not (np.isfinite(numbers) & (numbers > 0.0)).all():
        raise ValueError(
            f"{name}: {numbers[~(numbers > 0.0) | np.isinf(numbers)][0]}, expected finite positive numbers"
        )
    return numbers


_CHECKS: dict[str, Callable[[object, str], Any]] = {
    "factor": partial(_at_least, minimum=1.0),
    "rope_theta": check_positive,
    "partial_rotary_factor": _fraction,
    TRAINED: check_size,
    "attention_factor": check_positive,
    "beta_fast": check_positive,
    "beta_slow": check_positive,
    "mscale": partial(_at_least, minimum=0.0),
    "mscale_all_dim": partial(_at_least, minimum=0.0),
    "truncate": check_flag,
    "low_freq_factor": check_positive,
    "high_freq_factor": check_positive,
    "short_mscale": check_positive,
    "long_mscale": check_positive,
    LONGEST: check_size,
    QUERY_SCALE: partial(_at_least, minimum=0.0),
    "short_factor": _divisors,
    "long_factor": _divisors,
}
