"""PyTorch tensors as NumPy arrays, and back, over the same memory."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

import numpy as np

from headwise._base.arrays import cast_layout
from headwise.integrations._libraries import require

if TYPE_CHECKING:
    from headwise._base.typing import Array

torch: Any = require("torch")
Tensor = torch.Tensor
_TYPES = (Tensor, torch.nn.Parameter)


def _bfloat16() -> np.dtype[Any] | None:
    try:
        dtype: np.dtype[Any] = np.dtype(importlib.import_module("ml_dtypes").bfloat16)
    except ImportError:
        return None
    return dtype


#: NumPy's bfloat16, which the package ml_dtypes has; without it tensors of bfloat16 are computed as float32 copies.
BFLOAT16 = _bfloat16()

#: The dtypes of attention; all arrays of a call have one of them.
DTYPES = (torch.float32, torch.float64, torch.float16, torch.bfloat16)


def is_plain(tensor: Any) -> bool:
    """Whether ``tensor`` is one of this process's main memory, of no subclass whose operations mean something else."""
    return type(tensor) in _TYPES and tensor.is_cpu and tensor.layout is torch.strided


def to_array(tensor: Any) -> Array:
    """``tensor`` as an array over the same memory."""
    if tensor.requires_grad:
        tensor = tensor.detach()
    if tensor.dtype is torch.bfloat16:
        if BFLOAT16 is None:
            as_float: Array = tensor.float().numpy()
            return as_float
        return tensor.view(torch.int16).numpy().view(BFLOAT16)  # type: ignore[no-any-return]
    array: Array = tensor.numpy()
    return array


def to_rows(tensor: Any) -> Array:
    """:func:`to_array` for a backend: aligned, with a contiguous last axis; a copy only of other tensors."""
    array = to_array(tensor)
    flags = array.flags
    if flags.carray or (flags.aligned and array.strides[-1] == array.itemsize):
        return array
    return cast_layout(array, array.dtype, last=True)


def to_tensor(array: Array, dtype: Any = None) -> Any:
    """``array`` as a tensor over the same memory, in ``dtype`` if given."""
    if not array.flags.writeable or any(stride < 0 for stride in array.strides):
        array = array.copy()
    if BFLOAT16 is not None and array.dtype == BFLOAT16:
        tensor = torch.from_numpy(array.view(np.int16)).view(torch.bfloat16)
    else:
        tensor = torch.from_numpy(array)
    return tensor if dtype is None else tensor.to(dtype)
