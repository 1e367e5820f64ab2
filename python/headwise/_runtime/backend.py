"""The interface of a backend, and the selection of the backend that runs.

Two backends implement :class:`Backend`: the native extension ``headwise._core`` and the package ``headwise._numpy``.
Their callers, ``headwise._ops`` and ``headwise._kv_cache``, have checked and converted the arguments. A backend never
receives a wrong shape, dtype or stride, so both raise the same errors.
"""

from __future__ import annotations

import importlib
import os
import warnings
from typing import TYPE_CHECKING, Protocol, cast

from headwise._base.messages import shown
from headwise._runtime import processors
from headwise._runtime.threads import default_count
from headwise._version import __version__

if TYPE_CHECKING:
    from headwise._base.attention_spec import AttentionSpec, PackedSequences
    from headwise._base.attention_statistics import AttentionStatistics
    from headwise._base.linear_attention_spec import LinearAttentionSpec
    from headwise._base.typing import Array


class PackedLinear(Protocol):
    """The result of :meth:`Backend.pack_linear`."""

    def __call__(self, x: Array, out: Array) -> None:
        """:meth:`Backend.linear` with the packed weight, its bias and precision."""


class Backend(Protocol):
    """The operations, on checked arguments.

    Arrays have native byte order, are aligned, and have strides that are multiples of the item size; only inputs may
    have strides of 0. Outputs are allocated by the caller and written in place; nothing is returned. ``bool`` arrays
    have one byte per entry; true keeps.

    The floating arrays of one call are all float32 or all float64, with one exception: the main arrays (``x``,
    ``up``, ``scores``, ``query``, ``key``, ``value``, ``weight``, ``gamma``, ``beta``, ``output``, ``weights``,
    ``out`` and their gradients) may be all float16 or all bfloat16 (of ``ml_dtypes``). The other arrays are float32
    then, except that each bias of attention has either dtype. Beside a float32 ``query``, the ``key`` and ``value`` of
    attention may both be float16, bfloat16 or int8, and int8 has factors in the spec. 16-bit types are computed in
    float32 and results are rounded once; a backend may also round attention's weights to the 16-bit type before the
    product with the values. No 16-bit array is converted to float32 as a whole.
    """

    def softmax(self, x: Array, out: Array) -> None:
        """Softmax along axis 1 of (outer, n, inner).

        ``out`` is C-contiguous. In ``x`` the last axis is contiguous, or axis 1 if the last has size 1. ``out`` may be
        ``x`` itself.
        """

    def log_softmax(self, x: Array, out: Array) -> None:
        """Log-softmax along axis 1; layouts as for :meth:`softmax`."""

    def logsumexp(self, x: Array, out: Array) -> None:
        """``x`` is (outer, n, inner), as for :meth:`softmax`; ``out`` is (outer, inner), C-contiguous."""

    def attention(
        self,
        query: Array,  # (batch, heads, query_len, head_dim), last axis contiguous, any other strides
        key: Array,  # (batch, kv_heads, key_len, head_dim), likewise, as the next two
        value: Array,  # (batch, kv_heads, key_len, value_dim)
        output: Array,  # (batch, heads, query_len, value_dim)
        weights: Array | None,  # (batch, heads, query_len, key_len), C-contiguous, filled if given
        lse: Array | None,  # (batch, heads, query_len), any strides, filled if given; natural logarithm
        spec: AttentionSpec,
    ) -> None:
        """Scale, softcap, biases and ALiBi, keep-masks and window, softmax, dropout, weighted sum of the values.

        A row without any kept key gives output 0, weights 0 and an lse of -inf (or the sink's logit). Without
        ``weights`` no array of size query_len x key_len is allocated. Masked keys and values affect no result, whatever
        their entries are, NaN included. With ``spec.key_lengths``, each batch entry has the results of a call with its
        own keys alone, and weights of 0 for the other keys.
        """

    def attention_backward(  # noqa: PLR0913, PLR0917 (the arrays of the operation)
        self,
        d_output: Array,  # (batch, heads, query_len, value_dim), last axis contiguous, any other strides
        query: Array,  # (batch, heads, query_len, head_dim), likewise, as the next three
        key: Array,  # (batch, kv_heads, key_len, head_dim)
        value: Array,  # (batch, kv_heads, key_len, value_dim)
        output: Array,  # (batch, heads, query_len, value_dim)
        lse: Array,  # (batch, heads, query_len), C-contiguous, in the dtype of the computation, as the next
        d_lse: Array | None,  # (batch, heads, query_len), C-contiguous
        d_weights: Array | None,  # (batch, heads, query_len, key_len), C-contiguous
        d_query: Array | None,  # of the shape of query, last axis contiguous, filled if given, as the next two
        d_key: Array | None,
        d_value: Array | None,
        d_bias: tuple[Array | None, ...],  # for each bias of the spec, of its shape, C-contiguous, filled if given
        d_alibi_slopes: Array | None,  # (heads,), filled if given
        d_sinks: Array | None,  # (heads,), filled if given
        d_relative_bias: Array | None,  # of the shape of spec.relative_bias, C-contiguous, filled if given
        spec: AttentionSpec,
    ) -> None:
        """Gradients of :meth:`attention` by its inputs, from its ``output`` and ``lse``, without an array of scores.

        ``d_output``, ``d_weights``, ``d_query``, ``d_key`` and ``d_value`` have the dtype of ``query``, 16-bit types
        included; the other gradients that of the computation. Where an axis of a bias has size 1, its gradient is
        summed. ``d_lse`` minus the sums of weights * d_weights over the keys is what the caller gives as ``d_lse``.

        With ``P = exp(score - lse)``, 0 for masked keys, and ``delta = sum(d_output * output) - d_lse``::

            d_score       = P * (dropout(d_output @ value.T) + d_weights - delta)
            d_value       = dropout(P).T @ d_output
            d_bias        = d_score,  d_alibi_slope = -sum(d_score * abs(position - j))
            d_query       = scale * (d_score * softcap') @ key,  d_key = scale * (d_score * softcap').T @ query
            d_sink        = -sum(exp(sink - lse) * delta)
            d_relative_bias[M + t] = sum of d_score over the pairs of the distance t

        where ``dropout(x) = x * dropout_keep * dropout_scale``. Masked pairs, and weights of 0, contribute 0 to every
        sum, whatever stands in d_output, d_weights, query, key and value there, NaN included; so does an output of 0 to
        delta. A row with an lse of -inf contributes nothing.
        """

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
        """:meth:`attention` of each sequence by itself, bit for bit.

        Rows of ``output`` and ``lse`` that belong to no sequence are not written.
        """

    def attention_varlen_backward(  # noqa: PLR0913, PLR0917 (the arrays of the operation)
        self,
        d_output: Array,  # (heads, query rows, value_dim), last axis contiguous, any other strides
        query: Array,  # as for attention_varlen, and the next four
        key: Array,
        value: Array,
        output: Array,
        lse: Array,
        d_lse: Array | None,  # (heads, query rows), C-contiguous as lse
        d_query: Array | None,  # of the shape of query, last axis contiguous, filled if given, as the next two
        d_key: Array | None,
        d_value: Array | None,
        d_alibi_slopes: Array | None,  # (sequences, heads), C-contiguous, filled if given, as the next
        d_sinks: Array | None,
        sequences: PackedSequences,  # whose keys do not overlap
        spec: AttentionSpec,  # without masks, biases and dropout
    ) -> None:
        """:meth:`attention_backward` of each sequence by itself, bit for bit.

        Rows of the gradients that belong to no sequence are not written.
        """

    def apply_rope(self, x: Array, cos: Array, sin: Array, out: Array, interleaved: bool) -> None:
        """``x, out`` are (batch, heads, seq, dim); ``cos, sin`` are (batch, heads, seq, dim / 2).

        Each of the first three axes of ``cos`` and ``sin`` may be 1. Last axes are contiguous. ``out`` may be ``x``
        itself.
        """

    def add_alibi(self, scores: Array, slopes: Array, offset: int, out: Array) -> None:
        """``out[n, h, i, j] = scores[n, h, i, j] - slopes[h] * abs(i + offset - j)``.

        Last axes are contiguous. ``out`` may be ``scores`` itself.
        """

    def linear(self, x: Array, weight: Array, bias: Array | None, out: Array, precision: str) -> None:
        """``x`` is (rows, in), last axis contiguous; ``weight`` is (in, out), either axis contiguous. ``weight`` may be
        float16 or bfloat16 under float32 ``x`` and ``out``.

        ``bias`` is (out,), contiguous; ``out`` is (rows, out), C-contiguous.
        """

    def pack_linear(self, weight: Array, bias: Array | None, precision: str) -> PackedLinear:
        """:meth:`linear` with constant weights. The backend keeps the arrays; the caller does not change them.

        The result takes ``x`` of the weight's dtype or, with 16-bit weights, of float32.
        """
        ...

    def layer_normalization(self, x: Array, gamma: Array | None, beta: Array | None, eps: float, out: Array) -> None:
        """Over the last axis of ``x``, (rows, n), contiguous; ``out`` is C-contiguous and may be ``x`` itself.

        ``gamma, beta`` are (n,), contiguous; None is 1 and 0.
        """

    def rms_norm(self, x: Array, gamma: Array | None, eps: float, out: Array) -> None:
        """:meth:`layer_normalization` with a mean of 0, and the mean of squares in place of the variance.

        The last axis of ``out`` is contiguous.
        """

    def layer_normalization_backward(
        self, d_out: Array, x: Array, gamma: Array | None, eps: float, d_x: Array, d_gamma: Array, d_beta: Array
    ) -> None:
        """The gradients of :meth:`layer_normalization`.

        ``d_out, x, d_x`` are (rows, n), last axis contiguous; ``gamma, d_gamma, d_beta`` are (n,), contiguous.
        ``d_gamma`` and ``d_beta`` are float32 for 16-bit ``x``.
        """

    def rms_norm_backward(
        self, d_out: Array, x: Array, gamma: Array | None, eps: float, d_x: Array, d_gamma: Array
    ) -> None:
        """The gradients of :meth:`rms_norm`, in the layouts of :meth:`layer_normalization_backward`."""

    def activation(self, x: Array, up: Array | None, out: Array, function: str) -> None:
        """``out = function(x)``, times ``up`` if that is given, with "gelu", "gelu_tanh" or "silu".

        All are (rows, n) with contiguous last axes. ``out`` may be ``x`` itself.
        """

    def activation_backward(
        self, d_out: Array, x: Array, up: Array | None, d_x: Array, d_up: Array | None, function: str
    ) -> None:
        """The gradients of :meth:`activation`, in the same layouts. ``d_up`` is given if ``up`` is."""

    def linear_attention(  # noqa: PLR0913, PLR0917 (the arrays of the operation)
        self,
        query: Array,  # (batch, heads, query_len, features), last axis contiguous, any other strides
        key: Array,  # (batch, kv_heads, key_len, features), likewise, as the next
        value: Array,  # (batch, kv_heads, key_len, value_dim)
        decay: Array | None,  # (batch or 1, kv_heads or 1, key_len or 1, features or 1), any strides
        beta: Array | None,  # (batch or 1, kv_heads or 1, key_len or 1), any strides
        state: Array | None,  # (batch, kv_heads, features, value columns), last axis contiguous; 0 if None
        output: Array,  # (batch, heads, query_len, value_dim), C-contiguous, as the next
        new_state: Array,  # of the shape of state
        spec: LinearAttentionSpec,
    ) -> None:
        """Linear attention in chunks of tokens; formulas in :func:`headwise.linear_attention`.

        With ``spec.normalize``, states have ``value_dim + 1`` columns, the last of them that of values of 1, else
        ``value_dim``. Without ``spec.is_causal``, there are neither decays nor betas. What stands in a token's row of
        query, key or value affects no earlier output.
        """

    def attention_statistics(
        self,
        query: Array,  # (batch, heads, query_len, head_dim), last axis contiguous, any other strides; not 16-bit
        key: Array,  # (batch, kv_heads, key_len, head_dim), likewise; may be 16-bit beside a float32 query
        results: AttentionStatistics,  # with heads, C-contiguous, in the dtype of query
        block_size: tuple[int, int],  # queries and keys of the blocks of results.block_mass
        spec: AttentionSpec,
    ) -> None:
        """Fill the given fields of ``results``, which hold 0, with statistics of the weights of :meth:`attention`.

        There are at least one query and one key. No array of size query_len x key_len is allocated.
        """

    def set_num_threads(self, n: int) -> None: ...

    def get_num_threads(self) -> int: ...

    def set_target(self, name: str) -> None:
        """Force an instruction set; ValueError, naming those available, for an unknown or unsupported one."""

    def get_target(self) -> str: ...

    def list_targets(self) -> list[str]:
        """The instruction sets that this build and this processor have, best first."""
        ...


_CORE = "headwise._core"
_FOLDER = os.path.dirname(os.path.dirname(__file__))  # of the package, which holds the core
_CHOICES = ("auto", "native", "numpy")

# Debian packages of the libraries that the core links and that its wheel may not bundle.
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
    """The error of loading a native core that is installed, or None."""
    return _error


def core_is_installed() -> bool:
    """Whether a native core is installed, loadable or not."""
    # Takes time to import, and only this function needs it.
    from importlib.util import find_spec  # noqa: PLC0415

    return _name == "native" or _error is not None or find_spec(_CORE) is not None


def remedy(error: str) -> str:
    """What may resolve an error of loading the native core."""
    if "sub-interpreter" in error:
        return "in mod_wsgi, `WSGIApplicationGroup %{GLOBAL}` selects the main interpreter"
    package = _PACKAGES.get(error.removeprefix("ImportError: ").partition(".so.")[0])
    if package is None or "cannot open shared object file" not in error:
        return "reinstalling headwise may help"
    return f"a library is missing (on Debian and Ubuntu: apt-get install {package})"


def use(choice: str | Backend) -> None:
    """Switch this process to a backend: ``"native"``, ``"numpy"``, ``"auto"`` or a :class:`Backend` object.

    ``"auto"`` is the native core if it loads, else NumPy. An object is named ``"custom"``.

    Raises ImportError, with the reason, if ``"native"`` cannot be loaded; the backend does not change then.
    """
    global _current, _name, _error
    threads = _current.get_num_threads()
    if isinstance(choice, str):
        _select(choice)
    else:
        _current, _name, _error = choice, "custom", None
    _current.set_num_threads(threads)


def set_target(name: str) -> None:
    """Force an instruction set of the backend that runs; ValueError, naming those available, for any other name."""
    available = _current.list_targets()
    if name not in available:
        raise ValueError(
            f"target: {shown(name)} is unknown or unsupported on this machine; available: {', '.join(available)}"
        )
    _current.set_target(name)


def _select(choice: str, source: str = "backend") -> None:
    global _current, _name, _error
    if choice not in _CHOICES:
        raise ValueError(f"{source}: {shown(choice)}, expected one of {', '.join(_CHOICES)}")
    failure = None
    if choice != "numpy":
        try:
            core = _load_core()
        except Exception as broken:  # loading an extension that does not fit this machine may raise anything
            absent = isinstance(broken, ModuleNotFoundError) and broken.name == _CORE
            failure = None if absent else f"{type(broken).__name__}: {broken}"
            if choice == "native":
                raise ImportError(f"{source}: 'native', but {_complaint(failure)}") from broken
            if failure is not None:
                message = (
                    f"headwise: {_complaint(failure)}. The NumPy backend is used; HEADWISE_BACKEND=numpy selects it "
                    "without this warning"
                )
                warnings.warn(message, RuntimeWarning, stacklevel=2)
        else:
            _current, _name, _error = core, "native", None
            return
    _current, _name, _error = cast("Backend", importlib.import_module("headwise._numpy")), "numpy", failure


def _load_core() -> Backend:
    """The native core; ImportError unless it was built for this Python and this version of headwise."""
    try:
        with processors.unbound():  # the core loads OpenMP's library
            core = importlib.import_module(_CORE)
    except ModuleNotFoundError as absent:
        others = _cores_for_other_pythons() if absent.name == _CORE else []
        if others:
            raise ImportError(f"it was built for another Python or system: {', '.join(others)}") from absent
        raise
    version = getattr(core, "__version__", "unknown")
    if version != __version__:
        raise ImportError(f"its version is {version}, that of headwise {__version__}")
    allowed = processors.allowed() if processors.binding() else None
    if allowed:
        core.set_worker_processors(sorted(allowed))
    return cast("Backend", core)


def _cores_for_other_pythons() -> list[str]:
    """The file names of cores in the package that this Python cannot import."""
    names = os.listdir(_FOLDER) if os.path.isdir(_FOLDER) else []
    return sorted(name for name in names if name.startswith("_core.") and name.endswith((".so", ".pyd")))


def _complaint(failure: str | None) -> str:
    if failure is None:
        return f"there is no native core ({_CORE}); headwise.show_config() lists the requirements for building it"
    return f"the native core cannot be loaded ({failure}): {remedy(failure)}"


def _start() -> None:
    """Apply the environment variables. A bad value raises here, at import, not at the first call."""
    _select(os.environ.get("HEADWISE_BACKEND", "").strip().lower() or "auto", "HEADWISE_BACKEND")
    _current.set_num_threads(default_count())
    target = os.environ.get("HEADWISE_TARGET", "").strip().lower()
    if target:
        try:
            set_target(target)
        except ValueError as unavailable:
            raise ValueError(f"HEADWISE_TARGET: {unavailable}") from unavailable


_start()
