"""The gated delta rule of Hugging Face models (Qwen3-Next and its like, Kimi Linear) by headwise.

transformers has no interface for linear attention. A file that defines such a model has functions for whole sequences
and for single tokens, which the forward pass of a layer calls by their names. :func:`adopt` replaces these functions of
the file; they compute by headwise while a layer runs whose configuration says "headwise", and as before otherwise.
"""

from __future__ import annotations

import importlib
import inspect
import sys
import threading
from functools import cache, wraps
from typing import TYPE_CHECKING, Any

import numpy as np

import headwise as hw
from headwise.integrations._transformers_calls import needs_gradient

if TYPE_CHECKING:
    from collections.abc import Callable

    from headwise.integrations._transformers_masks import Tensor

torch: Any = importlib.import_module("torch")

#: The functions with (query, key, value, g=, beta=, initial_state=, output_final_state=, use_qk_l2norm_in_kernel=), and
#: the attributes of layers that hold them in transformers 5.0.
_FUNCTIONS = (
    "torch_chunk_gated_delta_rule",
    "torch_recurrent_gated_delta_rule",
    "chunk_kimi_delta_attention",
    "recurrent_kimi_delta_attention",
)
_ATTRIBUTES = ("chunk_gated_delta_rule", "recurrent_gated_delta_rule")
#: Keywords that keep packed sequences apart, which one state cannot.
_PACKED = ("cu_seqlens", "cu_seq_lens_q", "seq_idx")
#: The square of a length to which transformers adds this number before the root.
_EPSILON = 1e-6


class _Layer(threading.local):
    """Whether this thread is in the forward pass of a layer that runs on headwise."""

    on_headwise = False


_layer = _Layer()


def adopt(model: Any) -> None:
    """Have the linear attention of a model follow its ``attn_implementation``; models without any stay as they are."""
    for part in model.modules():
        config = getattr(part, "config", None)
        layers = _layers_of_file(type(part).__module__) if hasattr(config, "_attn_implementation") else ()
        for layer in part.modules() if layers else ():
            if isinstance(layer, layers):
                _adopt_layer(layer, config)


@cache
def _layers_of_file(name: str) -> tuple[type, ...]:
    """The classes of layers with linear attention in a file of transformers, whose functions are replaced."""
    file = sys.modules.get(name)
    functions = [function for function in _FUNCTIONS if callable(getattr(file, function, None))]
    layers = []
    for cls in [x for x in vars(file).values() if inspect.isclass(x)] if functions else ():
        code = getattr(inspect.unwrap(vars(cls).get("forward", None) or len), "__code__", None)
        if code is not None and any(function in code.co_names for function in (*functions, *_ATTRIBUTES)):
            layers.append(cls)
            _follow_configuration(cls)
    for function in functions:
        setattr(file, function, _dispatched(getattr(file, function)))
    return tuple(layers)


def _follow_configuration(cls: Any) -> None:
    """Wrap the methods of a class of layers: they note the configuration, and whether it says "headwise"."""
    init, forward = cls.__init__, cls.forward

    @wraps(init)
    def noting_init(self: Any, config: Any, *arguments: Any, **options: Any) -> None:
        init(self, config, *arguments, **options)
        _adopt_layer(self, config)

    @wraps(forward)
    def following_forward(self: Any, *arguments: Any, **options: Any) -> Any:
        if torch.compiler.is_compiling():
            return forward(self, *arguments, **options)
        config, before = getattr(self, "_headwise_config", None), _layer.on_headwise
        _layer.on_headwise = getattr(config, "_attn_implementation", None) == "headwise"
        try:
            return forward(self, *arguments, **options)
        finally:
            _layer.on_headwise = before

    cls.__init__, cls.forward = noting_init, following_forward


def _adopt_layer(layer: Any, config: Any) -> None:
    vars(layer)["_headwise_config"] = config
    for name in _ATTRIBUTES:
        function = vars(layer).get(name)
        if function is not None and not hasattr(function, "by_headwise"):
            vars(layer)[name] = _dispatched(function)


@cache
def _dispatched(original: Callable[..., Any]) -> Callable[..., Any]:
    """A function of transformers, by headwise where a layer asks for that and no gradient is needed."""

    @wraps(original)
    def dispatched(query: Tensor, key: Tensor, value: Tensor, *arguments: Any, **options: Any) -> Any:
        if not torch.compiler.is_compiling() and _layer.on_headwise and not arguments:
            found = _gated_delta_rule(query, key, value, **options)
            if found is not None:
                return found
        return original(query, key, value, *arguments, **options)

    vars(dispatched)["by_headwise"] = True
    return dispatched


def _gated_delta_rule(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    *,
    g: Tensor | None = None,
    beta: Tensor | None = None,
    initial_state: Tensor | None = None,
    output_final_state: bool = False,
    use_qk_l2norm_in_kernel: bool = False,
    **options: Any,
) -> tuple[Tensor, Tensor | None] | None:
    """The output (batch, seq, heads, value_dim) and the state; None if headwise does not compute the call.

    query, key (batch, seq, key_heads, head_dim), value (batch, seq, heads, value_dim), beta (batch, seq, heads), g,
    logarithms of decays, (batch, seq, heads) or (batch, seq, heads, head_dim), and the states (batch, heads, head_dim,
    value_dim).
    """
    if g is None or beta is None:
        return None
    tensors = [x for x in (query, key, value, g, beta, initial_state) if x is not None]
    packed = any(options.get(name) is not None for name in _PACKED)
    if packed or needs_gradient(*tensors) or torch.jit.is_tracing() or not all(x.is_cpu for x in tensors):
        return None
    # Logarithms may be so small that the decay is 0, which headwise takes for an error; NaN is left to PyTorch.
    decay = g.detach().float().clamp(min=-87.0).exp()
    if not bool((decay <= 1).all()):
        return None
    q, k = (_repeated(_rows(x, use_qk_l2norm_in_kernel), value.shape[2]) for x in (query, key))
    state = None if initial_state is None else initial_state.detach().float().numpy()
    output, last = hw.linear_attention(
        *(x.numpy().swapaxes(1, 2) for x in (q, k, _rows(value, False))), feature_map=None, scale=q.shape[3] ** -0.5,
        rule="gated_delta", decay=decay.numpy().swapaxes(1, 2), beta=beta.detach().float().numpy().swapaxes(1, 2),
        state=state,
    )  # fmt: skip
    result = torch.from_numpy(np.ascontiguousarray(output.swapaxes(1, 2))).to(query.dtype)
    return result, torch.from_numpy(last) if output_final_state else None


def _rows(x: Tensor, normalize: bool) -> Tensor:
    """float32 rows, of length 1 if ``normalize``."""
    rows = x.detach().float()
    return rows * torch.rsqrt((rows * rows).sum(dim=-1, keepdim=True) + _EPSILON) if normalize else rows


def _repeated(x: Tensor, heads: int) -> Tensor:
    """(batch, seq, heads, head_dim): each key head serves several consecutive heads of values."""
    return x if x.shape[2] == heads else x.repeat_interleave(heads // x.shape[2], dim=2)
