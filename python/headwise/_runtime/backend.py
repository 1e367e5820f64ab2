"""What a backend is, and which one runs.

Two backends implement :class:`Backend`: the native extension ``headwise._core`` and the NumPy module
``headwise._numpy``. Everything reaches them through ``headwise._ops``, which has checked and normalised the
arguments, so a backend never sees a wrong shape, dtype or stride and both raise the same errors by construction.
"""

from __future__ import annotations

import importlib
import os
import warnings
from typing import TYPE_CHECKING, Protocol, cast

from headwise._runtime.threads import default_count
from headwise._version import __version__

if TYPE_CHECKING:
    from headwise._base.attention_spec import AttentionSpec, PackedSequences
    from headwise._base.typing import Array


class PackedLinear(Protocol):
    """What :meth:`Backend.pack_linear` gives."""

    def __call__(self, x: Array, out: Array) -> None:
        """:meth:`Backend.linear` with the weights, bias and precision that were packed."""


class Backend(Protocol):
    """The operations, on normalised arguments.

    All floating arrays of one call share one dtype, float32 or float64, native byte order, aligned, strides that are
    multiples of the item size. Outputs are allocated by the caller and written in place; nothing is returned.
    Only inputs may have strides of 0. ``bool`` arrays are one byte per entry, true = keep.

    What operations read and write, ``x`` (or ``scores``), ``query``, ``key``, ``value``, ``weight`` (of the linear
    map), ``gamma``, ``beta``, ``output``, ``weights`` and ``out``, may be float16 or bfloat16 (of ``ml_dtypes``)
    instead, all of one call the same. All other arrays are float32 then, attention's ``lse`` among them, but for its
    biases, each of which is either. Everything is computed in float32, and results are rounded once; a backend may
    round attention's weights before they meet the values, to no fewer bits than these have. No array of halves is
    copied to float32 as a whole.
    """

    def softmax(self, x: Array, out: Array) -> None:
        """Softmax along axis 1. ``x, out``: (outer, n, inner); ``out`` C-contiguous, ``inner`` contiguous in ``x``
        (or, for ``inner == 1``, axis 1 contiguous). ``out`` may be ``x`` itself."""

    def log_softmax(self, x: Array, out: Array) -> None:
        """Log-softmax along axis 1; as :meth:`softmax`."""

    def logsumexp(self, x: Array, out: Array) -> None:
        """``x``: (outer, n, inner); ``out``: (outer, inner), C-contiguous."""

    def attention(
        self,
        query: Array,  # (batch, heads, query_len, head_dim), last axis contiguous, any other strides
        key: Array,  # (batch, kv_heads, key_len, head_dim), likewise, as the next two
        value: Array,  # (batch, kv_heads, key_len, value_dim)
        output: Array,  # (batch, heads, query_len, value_dim)
        weights: Array | None,  # (batch, heads, query_len, key_len), C-contiguous, filled if given
        lse: Array | None,  # (batch, heads, query_len), C-contiguous, filled if given; natural logarithm
        spec: AttentionSpec,
    ) -> None:
        """Scale, softcap, keep-masks, biases and ALiBi, softmax, dropout, then the weighted sum of the values.

        A row without any kept key gives output 0, weights 0 and an lse of -inf (or the sink's logit). Without
        ``weights`` no array of size query_len x key_len is allocated. Masked keys and values affect no result, whatever
        their entries are, NaN included."""

    def attention_varlen(
        self,
        query: Array,  # (heads, query rows, head_dim), last axis contiguous, any other strides
        key: Array,  # (kv_heads, key rows, head_dim), likewise, as the next two
        value: Array,  # (kv_heads, key rows, value_dim)
        output: Array,  # (heads, query rows, value_dim)
        lse: Array | None,  # (heads, query rows), any strides, filled if given
        sequences: PackedSequences,
        spec: AttentionSpec,  # without masks, biases and dropout
    ) -> None:
        """:meth:`attention` of each sequence by itself, bit for bit. Rows of ``output`` and ``lse`` that belong to no
        sequence are not written."""

    def apply_rope(self, x: Array, cos: Array, sin: Array, out: Array, interleaved: bool) -> None:
        """``x, out``: (batch, heads, seq, dim); ``cos, sin``: (batch, heads, seq, dim / 2), any of the first three
        1 instead. Last axes contiguous. ``out`` may be ``x`` itself."""

    def add_alibi(self, scores: Array, slopes: Array, offset: int, out: Array) -> None:
        """``out[n, h, i, j] = scores[n, h, i, j] - slopes[h] * abs(i + offset - j)``; last axes contiguous; ``out``
        may be ``scores`` itself."""

    def linear(self, x: Array, weight: Array, bias: Array | None, out: Array, precision: str) -> None:
        """``x`` (rows, in) with last axis contiguous, ``weight`` (in, out) with either axis contiguous, ``bias``
        (out,) contiguous, ``out`` (rows, out) C-contiguous."""

    def pack_linear(self, weight: Array, bias: Array | None, precision: str) -> PackedLinear:
        """As :meth:`linear`, for many calls. The arrays are kept, and stay as they are."""
        ...

    def layer_normalization(self, x: Array, gamma: Array, beta: Array, eps: float, out: Array) -> None:
        """Over the last axis of ``x`` (rows, n), last axis contiguous; ``out`` C-contiguous, may be ``x`` itself."""

    def set_num_threads(self, n: int) -> None: ...

    def get_num_threads(self) -> int: ...

    def set_target(self, name: str) -> None:
        """Force an instruction set; ValueError, naming what is available, for an unknown or unsupported one."""

    def get_target(self) -> str: ...

    def list_targets(self) -> list[str]:
        """What this build and this processor have, best first."""
        ...


_CORE = "headwise._core"
_FOLDER = os.path.dirname(os.path.dirname(__file__))  # of the package, where the core is
_CHOICES = ("auto", "native", "numpy")

# Debian's packages of the libraries that a core needs, as far as they are not part of its wheel.
_PACKAGES = {"libgomp": "libgomp1", "libhwy": "libhwy1", "libstdc++": "libstdc++6"}

_current: Backend
_name: str
_error: str | None = None


def current() -> Backend:
    """The backend that runs."""
    return _current


def name() -> str:
    """``"native"``, ``"numpy"`` or ``"custom"``."""
    return _name


def error() -> str | None:
    """Why a native core that is there could not be loaded, or None."""
    return _error


def core_is_installed() -> bool:
    """Whether there is a native core, working or not."""
    from importlib.util import find_spec  # not at the top: only this function needs what it brings along

    return _name == "native" or _error is not None or find_spec(_CORE) is not None


def remedy(error: str) -> str:
    """What may help against an error of loading the native core."""
    package = _PACKAGES.get(error.removeprefix("ImportError: ").partition(".so.")[0])
    if package is None or "cannot open shared object file" not in error:
        return "installing headwise again may help"
    return f"a library is missing (on Debian and Ubuntu: apt-get install {package})"


def use(choice: str | Backend) -> None:
    """Switch this process to the backend ``"native"`` or ``"numpy"``, or to ``"auto"``, the first of them that loads.

    ``choice`` may also be a :class:`Backend` itself, named ``"custom"`` then.

    Raises ImportError, with the reason, if a native core that was asked for cannot be loaded; the backend does not
    change then.
    """
    global _current, _name, _error
    threads = _current.get_num_threads()
    if isinstance(choice, str):
        _select(choice)
    else:
        _current, _name, _error = choice, "custom", None
    _current.set_num_threads(threads)


def set_target(name: str) -> None:
    """Force an instruction set of the backend that runs. What is no name of one, in whatever characters, is a
    ValueError that lists them."""
    available = _current.list_targets()
    if name not in available:
        raise ValueError(
            f"target: {name!r} is unknown or unsupported on this machine; available: {', '.join(available)}"
        )
    _current.set_target(name)


def _select(choice: str, source: str = "backend") -> None:
    global _current, _name, _error
    if choice not in _CHOICES:
        raise ValueError(f"{source}: {choice!r}, expected one of {', '.join(_CHOICES)}")
    failure = None
    if choice != "numpy":
        try:
            _current, _name, _error = _load_core(), "native", None
            return
        except Exception as broken:  # an extension that is there but does not fit here may raise anything
            absent = isinstance(broken, ModuleNotFoundError) and broken.name == _CORE
            failure = None if absent else f"{type(broken).__name__}: {broken}"
            if choice == "native":
                raise ImportError(f"{source}: 'native', but {_complaint(failure)}") from broken
            if failure is not None:
                message = f"headwise: {_complaint(failure)}. NumPy does the work; HEADWISE_BACKEND=numpy asks for that"
                warnings.warn(message, RuntimeWarning, stacklevel=2)
    _current, _name, _error = cast("Backend", importlib.import_module("headwise._numpy")), "numpy", failure


def _load_core() -> Backend:
    """The native core, which has to be of this Python and of this version of headwise."""
    try:
        core = importlib.import_module(_CORE)
    except ModuleNotFoundError as absent:
        others = _cores_of_others() if absent.name == _CORE else []
        if others:
            raise ImportError(f"there is none for this Python, only {', '.join(others)}") from absent
        raise
    version = getattr(core, "__version__", "unknown")
    if version != __version__:
        raise ImportError(f"it is of version {version}, headwise of {__version__}")
    return cast("Backend", core)


def _cores_of_others() -> list[str]:
    """The file names of cores that another Python or system would find here."""
    names = os.listdir(_FOLDER) if os.path.isdir(_FOLDER) else []
    return sorted(name for name in names if name.startswith("_core.") and name.endswith((".so", ".pyd")))


def _complaint(failure: str | None) -> str:
    if failure is None:
        return f"there is no native core ({_CORE}); without it, headwise.show_config() says what it takes to build one"
    return f"the native core cannot be loaded ({failure}): {remedy(failure)}"


def _start() -> None:
    """Do as the environment says. A bad value is an error here, where it is noticed, not at the first call."""
    _select(os.environ.get("HEADWISE_BACKEND", "").strip().lower() or "auto", "HEADWISE_BACKEND")
    _current.set_num_threads(default_count())
    target = os.environ.get("HEADWISE_TARGET", "").strip().lower()
    if target:
        try:
            set_target(target)
        except ValueError as unavailable:
            raise ValueError(f"HEADWISE_TARGET: {unavailable}") from unavailable


_start()
