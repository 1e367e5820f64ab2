"""The base class of layers, and the parameters of layers."""

from __future__ import annotations

import sys
from abc import ABC, abstractmethod
from typing import TYPE_CHECKING, Any, Generic, NamedTuple, TypeVar, overload

import numpy as np

from headwise._base.arrays import as_array, check_dtype
from headwise._base.ieee import cast_dtype
from headwise._base.messages import shown
from headwise._base.typing import FLOAT64

if TYPE_CHECKING:
    from numpy.typing import ArrayLike, DTypeLike

    from headwise._base.typing import Array

T = TypeVar("T")  # the type of a parameter: an array, or Any if it may be None


class Layer(ABC):
    """The base class of layers: ``layer(x)`` is ``layer.forward(x)``, and dropout acts only if ``training`` is true."""

    training: bool = False

    if not TYPE_CHECKING:  # for type checkers each layer declares `__call__ = forward`, with its signature

        def __call__(self, *args: Any, **kwargs: Any) -> Any:
            return self.forward(*args, **kwargs)

    @abstractmethod
    def forward(self, *args: Any, **kwargs: Any) -> Any: ...

    def _cast(self, name: str, dtype: np.dtype[Any]) -> Array:
        """The parameter ``name`` in ``dtype``; see :class:`Parameter`."""
        slot: Slot = vars(self)[name]
        return slot.cast(dtype)

    def _has(self, name: str) -> bool:
        """Whether the parameter ``name`` is not None."""
        return vars(self)[name] is not None


class LayerGradients(NamedTuple):
    """What the pullback of a layer's ``vjp`` returns."""

    #: A named tuple of the gradients by the input arrays, ``d_x`` or ``d_query`` and so on, each in the shape and dtype
    #: of its array.
    inputs: Any
    #: The gradients by the parameters, under the names of the attributes and of ``state_dict``, in their dtypes.
    parameters: dict[str, Array]


class Parameter(Generic[T]):
    """An array attribute that users may read, replace or change in place, and whose cast to another dtype is cached.

    Assignment copies, so that the layer owns its array: the parts of ``np.split`` would keep each other's memory alive.
    A layer with float64 parameters computes in float32 if its input is float32. The cast is reused as long as the
    numbers cannot have changed: reading the attribute discards it, and no cast is cached while there is an outside
    reference to the array or to the memory that it views.
    """

    def __init__(self, *axes: str) -> None:
        self._axes = axes  # the names of the layer's attributes that hold the sizes
        self._optional = False

    @classmethod
    def optional(cls, *axes: str) -> Parameter[T]:
        """A parameter that may be None."""
        parameter = cls(*axes)
        parameter._optional = True
        return parameter

    def shape(self, layer: Layer) -> tuple[int, ...]:
        return tuple(getattr(layer, axis) for axis in self._axes)

    def __set_name__(self, owner: type[Layer], name: str) -> None:
        self._name = name

    @overload
    def __get__(self, layer: None, owner: type[Layer]) -> Parameter[T]: ...

    @overload
    def __get__(self, layer: Layer, owner: type[Layer]) -> T: ...

    def __get__(self, layer: Layer | None, owner: type[Layer]) -> Any:
        if layer is None:
            return self
        slot: Slot | None = vars(layer)[self._name]
        return None if slot is None else slot.open()

    def __set__(self, layer: Layer, value: ArrayLike | None) -> None:
        if value is None and self._optional:
            vars(layer)[self._name] = None
            return
        array = as_array(value, self._name)
        check_dtype(array.dtype, self._name)
        dtype = FLOAT64 if array.dtype.kind in "biu" else array.dtype.newbyteorder("=")
        self._check_shape(layer, array)
        vars(layer)[self._name] = Slot(np.array(array, dtype, order="C"))

    def adopt(self, layer: Layer, array: Array) -> None:
        """Assign an array of a floating dtype to which there is no other reference, without a copy."""
        vars(layer)[self._name] = self.slot(layer, array)

    def slot(self, layer: Layer, array: Array) -> Slot:
        """What :meth:`adopt` would put into ``vars(layer)``."""
        self._check_shape(layer, array)
        return Slot(array)

    def _check_shape(self, layer: Layer, array: Array) -> None:
        shape = self.shape(layer)
        if array.shape != shape:
            axes = ", ".join(axis.lstrip("_") for axis in self._axes)
            raise ValueError(f"{self._name}: shape {array.shape}, expected ({axes}) = {shape}")


def parameter_dtype(dtype: DTypeLike | None) -> np.dtype[Any]:
    """``dtype``, checked, as the dtype of parameters; float64 by default."""
    if dtype is None:
        return FLOAT64
    try:
        made = np.dtype(dtype)
    except Exception as error:  # SyntaxError for "01", ValueError for {"names": []}
        raise TypeError(f"dtype: {shown(dtype)}, expected float16, bfloat16, float32 or float64") from error
    check_dtype(made, "dtype")
    if made.kind in "biu":
        raise TypeError(f"dtype: {made}, expected float16, bfloat16, float32 or float64")
    return made


class Slot:
    """A parameter's array and its last cast, which carries the version of the array it was made from.

    ``version`` is a new object after each read of the attribute, as the reader may change the array.
    """

    __slots__ = ("_cast", "array", "version")

    def __init__(self, array: Array) -> None:
        self.array = array
        self._cast: tuple[object, Array] | None = None
        self.version = object()

    def __reduce__(self) -> tuple[type[Slot], tuple[Array]]:
        return Slot, (self.array,)  # copies and pickles have no cast

    def open(self) -> Array:
        """The array, for a reader who may change it. The cast is discarded; a cast that another thread is making is
        invalid too, as it will carry the old version."""
        self.version = object()
        self._cast = None
        return self.array

    def cast(self, dtype: np.dtype[Any]) -> Array:
        if self.array.dtype == dtype:
            return self.array
        version, kept = self.version, self._cast
        if not self.is_private():
            return cast_dtype(self.array, dtype)
        if kept is None or kept[0] is not version or kept[1].dtype != dtype:
            kept = self._cast = version, cast_dtype(self.array, dtype)
        return kept[1]

    def is_private(self) -> bool:
        """Whether there is no outside reference to the array or to the memory that it views."""
        if sys.getrefcount(self.array) > _PRIVATE:
            return False
        if self.array.base is None:
            return True
        # NumPy's views refer to the owner of the memory, also views of views. Unpickled arrays are views of bytes.
        return _owns_memory(self.array.base) and sys.getrefcount(self.array.base) <= _PRIVATE


def _owns_memory(base: object) -> bool:
    return isinstance(base, bytes) or (type(base) is np.ndarray and base.base is None)


# The value of sys.getrefcount for an attribute without other references; it depends on the Python version.
_probe = Slot(np.empty(0))
_PRIVATE = sys.getrefcount(_probe.array)
