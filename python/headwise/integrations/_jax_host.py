"""Functions of NumPy arrays in compiled functions of JAX, through XLA's FFI.

XLA calls one handler, a function pointer of ctypes, with the addresses of its buffers; an attribute says which function
is called. ``jax.pure_callback`` is not used: it makes arrays of JAX of the arguments, whose conversion to NumPy waits
for the thread that the callback blocks, so that compiled functions hang.

Layouts are those of ``xla/ffi/api/c_api.h`` in jaxlib, version 0 of the interface. Fields that later minor versions
add stand behind these.
"""

from __future__ import annotations

import atexit
import ctypes
import functools
import importlib
import itertools
import math
import threading
import time
import uuid
from ctypes import POINTER, c_char_p, c_int, c_int64, c_size_t, c_void_p
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from headwise._base.typing import Array, Shape

_HEAD: Any = (("struct_size", c_size_t), ("extension", c_void_p))
_METADATA = 1  # the type of the extension by which XLA asks for the version of a handler
_INTERNAL = 13  # the code of an error


class _Version(ctypes.Structure):
    _fields_ = (*_HEAD, ("major", c_int), ("minor", c_int))


class _Api(ctypes.Structure):
    _fields_ = (*_HEAD, ("version", _Version), ("internal", c_void_p), ("error_create", c_void_p))


class _Metadata(ctypes.Structure):
    _fields_ = (("struct_size", c_size_t), ("version", _Version), ("traits", ctypes.c_uint32))


class _Extension(ctypes.Structure):
    _fields_ = (("struct_size", c_size_t), ("type", c_int), ("next", c_void_p), ("metadata", POINTER(_Metadata)))


class _Buffer(ctypes.Structure):
    _fields_ = (*_HEAD, ("dtype", c_int), ("data", c_void_p), ("rank", c_int64), ("dims", POINTER(c_int64)))


class _Buffers(ctypes.Structure):
    _fields_ = (*_HEAD, ("size", c_int64), ("types", c_void_p), ("entries", POINTER(POINTER(_Buffer))))


class _Scalar(ctypes.Structure):
    _fields_ = (("dtype", c_int), ("value", POINTER(c_int64)))


class _Attributes(ctypes.Structure):
    _fields_ = (
        *_HEAD, ("size", c_int64), ("types", c_void_p), ("names", c_void_p), ("entries", POINTER(POINTER(_Scalar))),
    )  # fmt: skip


class _CallFrame(ctypes.Structure):
    _fields_ = (
        *_HEAD, ("api", POINTER(_Api)), ("context", c_void_p), ("stage", c_int), ("arguments", _Buffers),
        ("results", _Buffers), ("attributes", _Attributes),
    )  # fmt: skip


class _ErrorArguments(ctypes.Structure):
    _fields_ = (*_HEAD, ("message", c_char_p), ("code", c_int))


class _Registered(NamedTuple):
    function: Callable[..., list[Array]]
    ranks: tuple[int, ...]  # of the arguments, without the axes that vmap adds


#: Silence after which no computation is expected to call at the exit of the process, in seconds.
_SILENCE = 0.2


class _Calls:
    """The calls in progress, for the exit of the process: a thread that calls Python after it would hang."""

    def __init__(self) -> None:
        self._running, self._last, self._closed, self._lock = 0, 0.0, False, threading.Lock()

    def __enter__(self) -> None:
        with self._lock:
            if self._closed:
                self._last = time.monotonic()
                raise RuntimeError("the process ends")  # which ends the computation, too
            self._running += 1

    def __exit__(self, *_: object) -> None:
        with self._lock:
            self._running -= 1
            self._last = time.monotonic()

    def close(self) -> None:
        """Refuse further calls, and wait until no computation makes any, also none that is about to begin."""
        self._closed, self._last = True, time.monotonic()
        while self._running or time.monotonic() - self._last < _SILENCE:
            time.sleep(_SILENCE / 50)


_calls = _Calls()

#: Functions by the attribute of their calls. Compiled functions may call them until the process ends.
_registered: dict[int, _Registered] = {}
_count = itertools.count()


def on_host(function: Callable[..., list[Array]], results: Sequence[Any], arrays: Sequence[Any]) -> Sequence[Any]:
    """``function(*arrays)``, whose results have the shapes and dtypes ``results``.

    ``vmap`` is a loop within one call over the axes that it adds.
    """
    jax: Any = importlib.import_module("jax")
    key = next(_count)
    _registered[key] = _Registered(function, tuple(x.ndim for x in arrays))
    types = tuple(jax.ShapeDtypeStruct(y.shape, jax.dtypes.canonicalize_dtype(y.dtype)) for y in results)
    call = jax.ffi.ffi_call(_target(), types, vmap_method="expand_dims")
    found: Sequence[Any] = call(*arrays, call=np.int64(key))
    return found


@functools.cache
def _target() -> str:
    """The registered name of the handler: of this process alone, so that no other one runs what this one compiled."""
    ffi: Any = importlib.import_module("jax.ffi")
    atexit.register(_calls.close)
    name = f"headwise_{uuid.uuid4().hex}"
    ffi.register_ffi_target(name, ffi.pycapsule(ctypes.cast(_handle, c_void_p).value), platform="cpu")
    return name


#: NumPy's names of ``XLA_FFI_DataType``.
_DTYPES = {1: "?", 2: "i1", 3: "i2", 4: "i4", 5: "i8", 6: "u1", 7: "u2", 8: "u4", 9: "u8", 10: "f2", 11: "f4", 12: "f8"}


@functools.cache
def _dtype(code: int) -> np.dtype[Any]:
    """The dtype of ``XLA_FFI_DataType``."""
    if code == 16:
        bfloat16: np.dtype[Any] = np.dtype(importlib.import_module("ml_dtypes").bfloat16)
        return bfloat16
    return np.dtype(_DTYPES[code])


def _arrays(buffers: _Buffers) -> list[Array]:
    """The buffers as arrays, without a copy."""
    found = []
    for buffer in (buffers.entries[n].contents for n in range(buffers.size)):
        dtype, shape = _dtype(buffer.dtype), tuple(buffer.dims[: buffer.rank])
        size = math.prod(shape) * dtype.itemsize
        memory = (ctypes.c_char * size).from_address(buffer.data) if size else b""
        found.append(np.frombuffer(memory, dtype).reshape(shape))
    return found


@ctypes.CFUNCTYPE(c_void_p, POINTER(_CallFrame))
def _handle(pointer: Any) -> int | None:
    """The handler, which returns None or an error of XLA."""
    frame = pointer.contents
    if frame.extension:
        extension = _Extension.from_address(frame.extension)
        if extension.type == _METADATA:
            metadata = extension.metadata.contents
            version = frame.api.contents.version if frame.api else _Version(major=0, minor=1)  # older jaxlib: not given
            metadata.version.major, metadata.version.minor, metadata.traits = version.major, version.minor, 0
            return None
    try:
        with _calls:
            key = frame.attributes.entries[0].contents.value[0]
            _call(_registered[key], _arrays(frame.arguments), _arrays(frame.results))
    except BaseException as error:  # noqa: BLE001 (of a foreign thread, which nothing else can report)
        return _error(frame.api.contents, f"headwise: {type(error).__name__}: {error}")
    return None


def _error(api: _Api, message: str) -> int | None:
    arguments = _ErrorArguments(ctypes.sizeof(_ErrorArguments), None, message.encode(), _INTERNAL)
    create = ctypes.CFUNCTYPE(c_void_p, POINTER(_ErrorArguments))(api.error_create)
    found: int | None = create(ctypes.byref(arguments))
    return found


def _call(registered: _Registered, arrays: list[Array], results: list[Array]) -> None:
    """Write the results of a call, for each entry of the axes that ``vmap`` has added."""
    added: list[Shape] = [x.shape[: x.ndim - rank] for x, rank in zip(arrays, registered.ranks, strict=True)]
    lead = np.broadcast_shapes(*added)
    for x in arrays:
        x.flags.writeable = False
    for entry in np.ndindex(lead):
        parts = [
            x[tuple(0 if size == 1 else i for i, size in zip(entry, axes, strict=True))]
            for x, axes in zip(arrays, added, strict=True)
        ]
        for result, part in zip(results, registered.function(*parts), strict=True):
            result[entry] = part
