"""The linear maps of a multi-head layer, several of one input in one product."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

import numpy as np

from headwise._base.arrays import as_array, check_dtype
from headwise._base.ieee import cast_dtype, ieee
from headwise._base.messages import shown
from headwise._ops.linear import linear, stored_dtype
from headwise._ops.packed_linear import PackedLinear
from headwise._runtime.precision import check_precision

if TYPE_CHECKING:
    from collections.abc import Sequence

    from headwise._base.layer import Slot
    from headwise._base.typing import Array

# The letters of a layer's maps: "q" is ``x @ W_q + b_q``.
Letters = str
_WEIGHTS = ("W_q", "W_k", "W_v", "W_o")


class Projections(Protocol):
    """The projections of multi-head attention."""

    def __call__(self, x: Array, letters: Letters, precision: str | None, out: Array | None = None) -> Array:
        """``x @ [W_1 | W_2 | …] + [b_1 | b_2 | …]`` for the maps of ``letters``, in the dtype of ``x``, as one product.

        Packed and other parameters give the same result bit for bit.
        """
        ...

    def joined(self, letters: Letters, dtype: np.dtype[Any]) -> tuple[Array, Array | None]:
        """``[W_1 | W_2 | …]`` and ``[b_1 | b_2 | …]`` for a product in ``dtype``, with zeros for a map without a bias;
        None if no map has one."""
        ...


class GivenProjections:
    """Projections by arrays ``W_q``, ``W_k``, ``W_v`` and ``W_o`` for one call, without biases."""

    def __init__(self, weights: Mapping[str, Array]) -> None:
        self.weights = weights

    @classmethod
    def of(cls, params: object, d_model: int) -> GivenProjections:
        """The projections in the ``params`` of a caller, checked."""
        if not isinstance(params, Mapping):
            expected = f"a MultiHeadAttention or a mapping with {', '.join(_WEIGHTS)}"
            raise TypeError(f"params: {type(params).__name__}, expected {expected}")
        if set(params) != set(_WEIGHTS):
            raise ValueError(f"params: entries {shown(list(params))}, expected {', '.join(_WEIGHTS)}")
        arrays = {}
        for name in _WEIGHTS:
            array = arrays[name] = as_array(params[name], f"params[{name!r}]")
            check_dtype(array.dtype, f"params[{name!r}]")
            if array.ndim != 2 or array.shape[1] != d_model or (name == "W_o" and array.shape[0] != d_model):
                expected = f"({d_model}, {d_model})" if name == "W_o" else f"(width, {d_model})"
                raise ValueError(f"params[{name!r}]: shape {array.shape}, expected {expected}")
        return cls(arrays)

    @property
    def widths(self) -> tuple[int, int, int]:
        """The widths of query, key and value."""
        q, k, v = (len(self.weights[name]) for name in _WEIGHTS[:3])
        return q, k, v

    def __call__(self, x: Array, letters: Letters, precision: str | None, out: Array | None = None) -> Array:
        return linear(x, self.joined(letters, x.dtype)[0], precision=precision, out=out)

    def joined(self, letters: Letters, dtype: np.dtype[Any]) -> tuple[Array, Array | None]:
        return _join([self.weights["W_" + c] for c in letters], dtype), None


class _Kept(NamedTuple):
    versions: list[object]
    dtype: np.dtype[Any]
    precision: str
    packed: PackedLinear | None  # None: seen in one call so far


class Packs(dict[Letters, _Kept]):
    """The packed parameters of a layer. Copies and pickles are empty."""

    def __reduce__(self) -> tuple[type[Packs], tuple[()]]:
        return Packs, ()


class LayerProjections:
    """Projections by a layer's parameters ``W_*`` and ``b_*``, which users may replace or change at any time.

    Private parameters (:meth:`headwise._base.layer.Slot.is_private`) that are unchanged since the last call are packed,
    and the packed form is used until one of them is read or replaced. Other parameters are concatenated on every call;
    their copy takes about 2 % of the time of a product with 1,000 rows.
    """

    def __init__(self, parameters: Mapping[str, Any], packs: Packs) -> None:
        self._parameters = parameters
        self._packs = packs

    def __call__(self, x: Array, letters: Letters, precision: str | None, out: Array | None = None) -> Array:
        weights: list[Slot] = [self._parameters["W_" + c] for c in letters]
        biases: list[Slot | None] = [self._parameters["b_" + c] for c in letters]
        slots = [slot for slot in (*weights, *biases) if slot is not None]
        # Versions are read before the arrays, so that a form packed from older numbers has an older version.
        versions = [slot.version for slot in slots]
        level = check_precision(precision)
        private = all(slot.is_private() for slot in slots)
        kept = self._packs.get(letters) if private else None
        known = kept is not None and kept.versions == versions and kept.dtype == x.dtype and kept.precision == level
        if kept is not None and known and kept.packed is not None:
            return kept.packed(x, out=out)

        weight, bias = self.joined(letters, x.dtype)
        if not known:
            if private:
                self._packs[letters] = _Kept(versions, x.dtype, level, None)
            else:
                self._packs.pop(letters, None)
            return linear(x, weight, bias, precision=level, out=out)
        packed = PackedLinear(weight, bias, precision=level)
        self._packs[letters] = _Kept(versions, x.dtype, level, packed)
        return packed(x, out=out)

    def joined(self, letters: Letters, dtype: np.dtype[Any]) -> tuple[Array, Array | None]:
        weights: list[Slot] = [self._parameters["W_" + c] for c in letters]
        biases: list[Slot | None] = [self._parameters["b_" + c] for c in letters]
        weight = _join([slot.array for slot in weights], _dtype_of_weights(weights, dtype))
        if not any(biases):
            return weight, None
        parts = zip(weights, biases, strict=True)
        return weight, _join([np.zeros(w.array.shape[1]) if b is None else b.array for w, b in parts], dtype)


def _dtype_of_weights(weights: Sequence[Slot], dtype: np.dtype[Any]) -> np.dtype[Any]:
    """The dtype of the joined weights for a product in ``dtype``: 16-bit parameters under float32 stay 16-bit."""
    stored = {stored_dtype(slot.array, dtype) for slot in weights}
    return stored.pop() if len(stored) == 1 else dtype


@ieee
def _join(arrays: Sequence[Array], dtype: np.dtype[Any]) -> Array:
    """The arrays concatenated along the last axis in ``dtype``; a single array is not copied if it has that dtype."""
    if len(arrays) == 1:
        return cast_dtype(arrays[0], dtype)
    return np.concatenate(arrays, axis=-1, dtype=dtype, casting="unsafe")
