"""Attention with every keyword of headwise as a function of PyTorch's autograd."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from headwise._ops.attention.dense import flash_attention
from headwise._ops.gradients.attention import NAMES, flash_attention_backward
from headwise.integrations.torch._tensors import BFLOAT16, Tensor, to_array, to_tensor, torch

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence


class Dropout(NamedTuple):
    """Dropout by the draws of one seed, which the backward pass repeats; none at a rate of 0."""

    rate: float = 0.0
    seed: int = 0

    def keywords(self) -> dict[str, Any]:
        return {} if self.rate == 0.0 else {"dropout_rate": self.rate, "rng": np.random.default_rng(self.seed)}


def new_seed(generator: Any = None) -> int:
    """A seed from a generator of PyTorch, by default the one that torch.manual_seed sets."""
    return int(torch.randint(1 << 62, (), generator=generator).item())


def apply(arguments: Sequence[Any], keywords: Mapping[str, Any], dropout: Dropout) -> tuple[Any, Any]:
    """The output and the lse, both differentiable by every tensor of ``arguments``, which are those of ``NAMES``.

    ``keywords`` are the other arguments of :func:`headwise.flash_attention`; tensors among them have no gradients.
    """
    if torch.is_grad_enabled() and any(isinstance(x, Tensor) and x.requires_grad for x in arguments):
        return _Attention.apply(keywords, dropout, *arguments)  # type: ignore[no-any-return]
    return forward(arguments, keywords, dropout)


def forward(arguments: Sequence[Any], keywords: Mapping[str, Any], dropout: Dropout) -> tuple[Any, Any]:
    """The results of :func:`apply` as plain tensors."""
    query, value = arguments[0], arguments[2]
    written = _output_like(query, value)
    given = {name: _as_array(x) for name, x in zip(NAMES, arguments, strict=True) if x is not None}
    given |= {name: _as_array(x) for name, x in keywords.items()}
    out = None if written is None else to_array(written)
    output, lse = flash_attention(**given, return_lse=True, out=out, **dropout.keywords())
    if written is None:
        written = to_tensor(output, torch.bfloat16 if BFLOAT16 is None and query.dtype is torch.bfloat16 else None)
    return written, to_tensor(lse)


def backward(
    arguments: Sequence[Any],
    keywords: Mapping[str, Any],
    dropout: Dropout,
    results: tuple[Any, Any, Any, Any],
    needed: Sequence[bool],
) -> list[Any]:
    """The gradients by the arguments that need one; None for the others.

    ``results`` are the output, the lse and the gradients by both, of which one may be None.
    """
    output, lse, d_output, d_lse = map(_as_array, results)
    wrt = tuple(name for name, need in zip(NAMES, needed, strict=True) if need)
    if not wrt or (d_output is None and d_lse is None):
        return [None] * len(NAMES)
    given = {name: _as_array(x) for name, x in zip(NAMES, arguments, strict=True) if x is not None}
    given |= {name: _as_array(x) for name, x in keywords.items()}
    found = flash_attention_backward(
        d_output, output=output, lse=lse, d_lse=d_lse, wrt=wrt, **given, **dropout.keywords()
    )
    by_name = dict(zip(wrt, found, strict=True))
    return [
        to_tensor(by_name[name], x.dtype) if name in by_name else None for name, x in zip(NAMES, arguments, strict=True)
    ]


def _output_like(query: Any, value: Any) -> Any:
    """An output whose axes lie in memory as those of ``query``, as in PyTorch; None where headwise allocates it."""
    if query.ndim != 4 or query.is_contiguous() or query.shape[3] != value.shape[-1] or query.dtype != value.dtype:
        return None
    if not query.is_floating_point() or (BFLOAT16 is None and query.dtype is torch.bfloat16):
        return None
    output = torch.empty_like(query)
    return output if output.stride(3) == 1 else None


def _as_array(argument: Any) -> Any:
    return to_array(argument) if isinstance(argument, Tensor) else argument


class _Attention(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, keywords: Mapping[str, Any], dropout: Dropout, *arguments: Any) -> Any:
        output, lse = forward(arguments, keywords, dropout)
        given = dict(zip(NAMES, arguments, strict=True)) | dict(keywords)
        ctx.names = [name for name, x in given.items() if isinstance(x, Tensor)]
        ctx.save_for_backward(output, lse, *(given.pop(name) for name in ctx.names))
        ctx.others, ctx.dropout = given, dropout
        ctx.set_materialize_grads(False)
        return output, lse

    @staticmethod
    def backward(ctx: Any, d_output: Any, d_lse: Any) -> Any:
        if torch._C._functorch.peek_interpreter_stack() is not None:  # noqa: SLF001 (there is no public name)
            raise NotImplementedError(
                "headwise: gradients of attention by torch.func or in batches (is_grads_batched), expected "
                "torch.autograd.grad or backward() for one gradient of the output"
            )
        output, lse, *tensors = ctx.saved_tensors
        keywords = ctx.others | dict(zip(ctx.names, tensors, strict=True))
        arguments = [keywords.pop(name) for name in NAMES]
        results = (output, lse, d_output, d_lse)
        gradients = backward(arguments, keywords, ctx.dropout, results, ctx.needs_input_grad[2:])
        if torch.is_grad_enabled():
            gradients = _Once.apply(len(NAMES), *gradients, *arguments, d_output, d_lse)
        return (None, None, *gradients)


class _Once(torch.autograd.Function):
    """Gradients that are not differentiated again; an error says so."""

    @staticmethod
    def forward(ctx: Any, count: int, *tensors: Any) -> Any:  # noqa: ARG004 (the others make the error reachable)
        return tuple(None if gradient is None else gradient.view_as(gradient) for gradient in tensors[:count])

    @staticmethod
    def backward(ctx: Any, *_: Any) -> Any:
        raise NotImplementedError(
            "headwise has no second derivatives of attention; for these, leave a call to PyTorch: "
            "with torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH)"
        )
