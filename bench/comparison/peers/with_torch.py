from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F

from .base import Call, Peer

if TYPE_CHECKING:
    from types import SimpleNamespace

    from ..cases import Attention, LayerNorm, Linear, Rope, Softmax


class PyTorch(Peer):
    """Eager, without gradients."""

    label = "PyTorch"
    version = torch.__version__

    def __init__(self, threads: int) -> None:
        torch.set_num_threads(threads)
        torch.set_grad_enabled(False)

    def attention(self, case: Attention, data: SimpleNamespace) -> Call:
        query, key, value = (torch.from_numpy(a) for a in (data.query, data.key, data.value))
        if case.weights:  # F.scaled_dot_product_attention does not return them

            def with_weights() -> Any:
                weights = torch.softmax(query @ key.mT * case.shape[-1] ** -0.5, -1)
                return weights @ value, weights

            return with_weights
        mask = None if data.mask is None else torch.from_numpy(data.mask)
        causal = case.causal and mask is None
        grouped = key.shape[1] != query.shape[1]
        return lambda: F.scaled_dot_product_attention(query, key, value, mask, is_causal=causal, enable_gqa=grouped)

    def softmax(self, case: Softmax, data: SimpleNamespace) -> Call:
        x, out = torch.from_numpy(data.x), _optional(data.out)
        return lambda: torch.softmax(x, case.axis, out=out)

    def log_softmax(self, case: Softmax, data: SimpleNamespace) -> Call:
        x, out = torch.from_numpy(data.x), _optional(data.out)
        return lambda: torch.log_softmax(x, case.axis, out=out)

    def rope(self, case: Rope, data: SimpleNamespace) -> Call | None:
        """As in the models of ``transformers``."""
        if case.out:
            return None
        x = torch.from_numpy(data.x)
        cos, sin = (torch.from_numpy(a).repeat(1, 2) for a in (data.cos, data.sin))

        def rotate_half(x: torch.Tensor) -> torch.Tensor:
            a, b = x.chunk(2, -1)
            return torch.cat((-b, a), -1)

        return lambda: x * cos + rotate_half(x) * sin

    def layer_norm(self, case: LayerNorm, data: SimpleNamespace) -> Call | None:
        if case.out:
            return None
        x, gamma, beta = (torch.from_numpy(a) for a in (data.x, data.gamma, data.beta))
        return lambda: F.layer_norm(x, gamma.shape, gamma, beta)

    def linear(self, case: Linear, data: SimpleNamespace) -> Call:
        x, weight, bias = (torch.from_numpy(a) for a in (data.x, data.weight, data.bias))
        return lambda: torch.addmm(bias, x, weight)


def _optional(out: Any) -> torch.Tensor | None:
    return None if out is None else torch.from_numpy(out)


PEERS = {"torch": PyTorch}
