"""The native extension: the functions of :class:`headwise._runtime.backend.Backend`, which documents them.

``spec`` is a :class:`headwise._base.attention_spec.AttentionSpec` and ``sequences`` a
:class:`headwise._base.attention_spec.PackedSequences`, read by position.
"""

from typing import Any

from numpy.typing import NDArray

__version__: str

def softmax(x: NDArray[Any], out: NDArray[Any]) -> None: ...
def log_softmax(x: NDArray[Any], out: NDArray[Any]) -> None: ...
def logsumexp(x: NDArray[Any], out: NDArray[Any]) -> None: ...
def attention(
    query: NDArray[Any],
    key: NDArray[Any],
    value: NDArray[Any],
    output: NDArray[Any],
    weights: NDArray[Any] | None,
    lse: NDArray[Any] | None,
    spec: tuple[Any, ...],
) -> None: ...
def attention_statistics(
    query: NDArray[Any],
    key: NDArray[Any],
    results: tuple[Any, ...],
    block_size: tuple[int, int],
    spec: tuple[Any, ...],
) -> None: ...
def attention_backward(
    d_output: NDArray[Any],
    query: NDArray[Any],
    key: NDArray[Any],
    value: NDArray[Any],
    output: NDArray[Any],
    lse: NDArray[Any],
    d_lse: NDArray[Any] | None,
    d_weights: NDArray[Any] | None,
    d_query: NDArray[Any] | None,
    d_key: NDArray[Any] | None,
    d_value: NDArray[Any] | None,
    d_bias: tuple[Any, ...],
    d_alibi_slopes: NDArray[Any] | None,
    d_sinks: NDArray[Any] | None,
    d_relative_bias: NDArray[Any] | None,
    spec: tuple[Any, ...],
) -> None: ...
def attention_varlen_backward(
    d_output: NDArray[Any],
    query: NDArray[Any],
    key: NDArray[Any],
    value: NDArray[Any],
    output: NDArray[Any],
    lse: NDArray[Any],
    d_lse: NDArray[Any] | None,
    d_query: NDArray[Any] | None,
    d_key: NDArray[Any] | None,
    d_value: NDArray[Any] | None,
    d_alibi_slopes: NDArray[Any] | None,
    d_sinks: NDArray[Any] | None,
    sequences: tuple[Any, ...],
    spec: tuple[Any, ...],
) -> None: ...
def attention_varlen(
    query: NDArray[Any],
    key: NDArray[Any],
    value: NDArray[Any],
    output: NDArray[Any],
    lse: NDArray[Any] | None,
    sequences: tuple[Any, ...],
    spec: tuple[Any, ...],
) -> None: ...
def apply_rope(x: NDArray[Any], cos: NDArray[Any], sin: NDArray[Any], out: NDArray[Any], interleaved: bool) -> None: ...
def add_alibi(scores: NDArray[Any], slopes: NDArray[Any], offset: int, out: NDArray[Any]) -> None: ...
def linear(
    x: NDArray[Any], weight: NDArray[Any], bias: NDArray[Any] | None, out: NDArray[Any], precision: str
) -> None: ...

class PackedLinear:
    def __call__(self, x: NDArray[Any], out: NDArray[Any]) -> None: ...

def pack_linear(weight: NDArray[Any], bias: NDArray[Any] | None, precision: str) -> PackedLinear: ...
def linear_attention(
    query: NDArray[Any],
    key: NDArray[Any],
    value: NDArray[Any],
    decay: NDArray[Any] | None,
    beta: NDArray[Any] | None,
    state: NDArray[Any] | None,
    output: NDArray[Any],
    new_state: NDArray[Any],
    spec: tuple[Any, ...],
) -> None: ...
def layer_normalization(
    x: NDArray[Any], gamma: NDArray[Any] | None, beta: NDArray[Any] | None, eps: float, out: NDArray[Any]
) -> None: ...
def rms_norm(x: NDArray[Any], gamma: NDArray[Any] | None, eps: float, out: NDArray[Any]) -> None: ...
def layer_normalization_backward(
    d_out: NDArray[Any],
    x: NDArray[Any],
    gamma: NDArray[Any] | None,
    eps: float,
    d_x: NDArray[Any],
    d_gamma: NDArray[Any],
    d_beta: NDArray[Any],
) -> None: ...
def rms_norm_backward(
    d_out: NDArray[Any],
    x: NDArray[Any],
    gamma: NDArray[Any] | None,
    eps: float,
    d_x: NDArray[Any],
    d_gamma: NDArray[Any],
) -> None: ...
def activation(x: NDArray[Any], up: NDArray[Any] | None, out: NDArray[Any], function: str) -> None: ...
def activation_backward(
    d_out: NDArray[Any],
    x: NDArray[Any],
    up: NDArray[Any] | None,
    d_x: NDArray[Any],
    d_up: NDArray[Any] | None,
    function: str,
) -> None: ...
def set_num_threads(n: int) -> None: ...
def get_num_threads() -> int: ...
def set_worker_processors(processors: list[int]) -> None: ...
def set_target(name: str) -> None: ...
def get_target() -> str: ...
def list_targets() -> list[str]: ...
