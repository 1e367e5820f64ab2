"""Attention as an operator, which graphs of torch.compile hold: PyTorch traces no functions of NumPy arrays."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from headwise._ops.gradients.attention import NAMES, ROWS
from headwise.integrations.torch._function import Dropout, backward, forward
from headwise.integrations.torch._tensors import Tensor, torch

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

_KEYWORDS = {  # with their types in the schema of the operator
    "mask": "Tensor?",
    "key_padding_mask": "Tensor?",
    "key_lengths": "Tensor?",
    "is_causal": "bool?",
    "causal_alignment": "str?",
    "scale": "float?",
    "window_size": "int[]?",
    "softcap": "float?",
    "precision": "str?",
}
_KINDS = {name: "Tensor" if name in ROWS else "Tensor?" for name in NAMES} | _KEYWORDS
_SCHEMA = ", ".join([*(f"{kind} {name}" for name, kind in _KINDS.items()), "float rate, int seed"])
_COUNT = len(NAMES)

_library = torch.library.Library("headwise", "DEF")
_library.define(f"attention({_SCHEMA}) -> (Tensor, Tensor)")
_library.define(
    "attention_backward(Tensor output, Tensor lse, Tensor? d_output, Tensor? d_lse, bool[] needed, "
    f"{_SCHEMA}) -> Tensor[]"
)


def run_compiled(arguments: Sequence[Any], keywords: Mapping[str, Any], dropout: Dropout) -> tuple[Any, Any]:
    """The output and the lse, by the operator."""
    for name in keywords:
        if name not in _KEYWORDS:
            raise TypeError(f"{name}: not in a function that torch.compile compiles, expected some of {_NAMES}")
    window = keywords.get("window_size")
    given = dict(keywords)
    if window is not None:
        given["window_size"] = [window, window] if isinstance(window, int) else list(window)
    values = [given.get(name) for name in _KEYWORDS]
    return torch.ops.headwise.attention(*arguments, *values, *dropout)  # type: ignore[no-any-return]


_NAMES = ", ".join((*NAMES, *_KEYWORDS))


def _keywords(values: Sequence[Any]) -> dict[str, Any]:
    given = {name: x for name, x in zip(_KEYWORDS, values, strict=True) if x is not None}
    if "window_size" in given:
        given["window_size"] = tuple(given["window_size"])
    return given


def _forward(*inputs: Any) -> tuple[Any, Any]:
    keywords, dropout = _keywords(inputs[_COUNT:-2]), Dropout(*inputs[-2:])
    return forward(inputs[:_COUNT], keywords, dropout)


def _backward(output: Any, lse: Any, d_output: Any, d_lse: Any, needed: Sequence[bool], *inputs: Any) -> list[Any]:
    keywords, dropout = _keywords(inputs[_COUNT:-2]), Dropout(*inputs[-2:])
    found = backward(inputs[:_COUNT], keywords, dropout, (output, lse, d_output, d_lse), needed)
    return [gradient for gradient in found if gradient is not None]


def _forward_shapes(query: Any, key: Any, value: Any, *_: Any) -> tuple[Any, Any]:  # noqa: ARG001
    output = torch.empty_like(query) if query.shape[-1] == value.shape[-1] else _new_output(query, value)
    dtype = torch.float64 if query.dtype is torch.float64 else torch.float32
    return output, query.new_empty(query.shape[:-1], dtype=dtype)


def _new_output(query: Any, value: Any) -> Any:
    return query.new_empty((*query.shape[:-1], value.shape[-1]))


def _backward_shapes(output: Any, lse: Any, d_output: Any, d_lse: Any, needed: Any, *inputs: Any) -> list[Any]:  # noqa: ARG001
    return [torch.empty(x.shape, dtype=x.dtype) for x, need in zip(inputs, needed, strict=False) if need]


def _save(ctx: Any, inputs: Any, output: Any) -> None:
    ctx.save_for_backward(*output, *(x for x in inputs if isinstance(x, Tensor)))
    ctx.others = [None if isinstance(x, Tensor) else (x,) for x in inputs]
    ctx.set_materialize_grads(False)


def _differentiate(ctx: Any, d_output: Any, d_lse: Any) -> tuple[Any, ...]:
    output, lse, *tensors = ctx.saved_tensors
    remaining = iter(tensors)
    inputs = [next(remaining) if other is None else other[0] for other in ctx.others]
    needed = list(ctx.needs_input_grad[:_COUNT])
    found = iter(torch.ops.headwise.attention_backward(output, lse, d_output, d_lse, needed, *inputs))
    gradients = [next(found) if need else None for need in needed]
    return (*gradients, *(None,) * (len(inputs) - _COUNT))


_library.impl("attention", _forward, "CPU")
_library.impl("attention_backward", _backward, "CPU")
torch.library.register_fake("headwise::attention", _forward_shapes, lib=_library)
torch.library.register_fake("headwise::attention_backward", _backward_shapes, lib=_library)
torch.library.register_autograd("headwise::attention", _differentiate, setup_context=_save, lib=_library)
