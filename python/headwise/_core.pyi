"""The native extension: the functions of :class:`headwise._backend.Backend`, which says what they take."""

from collections.abc import Sequence
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
    keep: Sequence[NDArray[Any]],
    bias: Sequence[NDArray[Any]],
    drop: NDArray[Any] | None,
    slopes: NDArray[Any] | None,
    sinks: NDArray[Any] | None,
    scale: float,
    softcap: float,
    left: int,
    right: int,
    offset: int,
    drop_scale: float,
    precision: str,
) -> None: ...
def attention_varlen(
    query: NDArray[Any],
    key: NDArray[Any],
    value: NDArray[Any],
    output: NDArray[Any],
    lse: NDArray[Any] | None,
    query_starts: NDArray[Any],
    query_lengths: NDArray[Any],
    key_starts: NDArray[Any],
    key_lengths: NDArray[Any],
    offsets: NDArray[Any],
    slopes: NDArray[Any] | None,
    sinks: NDArray[Any] | None,
    scale: float,
    softcap: float,
    left: int,
    right: int,
    precision: str,
) -> None: ...
def apply_rope(x: NDArray[Any], cos: NDArray[Any], sin: NDArray[Any], out: NDArray[Any], interleaved: bool) -> None: ...
def add_alibi(scores: NDArray[Any], slopes: NDArray[Any], offset: int, out: NDArray[Any]) -> None: ...
def linear(
    x: NDArray[Any], weight: NDArray[Any], bias: NDArray[Any] | None, out: NDArray[Any], precision: str
) -> None: ...

class PackedLinear:
    def __call__(self, x: NDArray[Any], out: NDArray[Any]) -> None: ...

def pack_linear(weight: NDArray[Any], bias: NDArray[Any] | None, precision: str) -> PackedLinear: ...
def layer_normalization(
    x: NDArray[Any], gamma: NDArray[Any], beta: NDArray[Any], eps: float, out: NDArray[Any]
) -> None: ...
def set_num_threads(n: int) -> None: ...
def get_num_threads() -> int: ...
def set_target(name: str) -> None: ...
def get_target() -> str: ...
def list_targets() -> list[str]: ...
def _set_tiles_for_any_shape(on: bool) -> None: ...
