"""The operations of PyTorch."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import torch
import torch.nn.functional as F

from comparison.peers.base import Call, Peer

if TYPE_CHECKING:
    from types import SimpleNamespace

    from comparison.cases import Attention, Case, Elementwise, LayerNorm, Linear, MultiHead, Rope, Softmax, Varlen


class PyTorch(Peer):
    """Eager mode, without gradients."""

    label = "PyTorch"
    version = torch.__version__
    dtypes = ("float16", "bfloat16", "float32", "float64")

    def __init__(self, threads: int) -> None:
        torch.set_num_threads(threads)
        torch.set_grad_enabled(False)

    def prepare(self, case: Case, data: SimpleNamespace) -> Call | None:
        torch.set_float32_matmul_precision(case.precision)  # "medium" permits bfloat16 products
        return super().prepare(case, data)

    def attention(self, case: Attention, data: SimpleNamespace) -> Call:
        query, key, value = (tensor(a) for a in (data.query, data.key, data.value))
        if case.weights:  # F.scaled_dot_product_attention does not return weights

            def with_weights() -> Any:
                weights = torch.softmax(query @ key.mT * case.shape[-1] ** -0.5, -1)
                return weights @ value, weights

            return with_weights
        mask = None if data.mask is None else tensor(data.mask)
        causal = case.causal and mask is None
        grouped = key.shape[1] != query.shape[1]
        return lambda: F.scaled_dot_product_attention(query, key, value, mask, is_causal=causal, enable_gqa=grouped)

    def varlen(self, case: Varlen, data: SimpleNamespace) -> Call:
        """Padded, with a mask. Packing the output again is not timed."""
        sequences, heads, longest, head_dim = case.shape
        self._kept = kept = tensor(data.kept)
        padded = torch.zeros(3, sequences, longest, heads, head_dim, dtype=tensor(data.packed[0]).dtype)
        padded[:, kept] = torch.stack([tensor(a) for a in data.packed])
        query, key, value = padded.transpose(2, 3).contiguous()
        mask = kept[:, None, None]
        if case.causal:
            mask = mask & torch.ones(longest, longest, dtype=torch.bool).tril()
        return lambda: F.scaled_dot_product_attention(query, key, value, mask)

    def multi_head(self, case: MultiHead, data: SimpleNamespace) -> Call:
        """Returns the weights of each head, which is less work than the default, their average."""
        x, layer = tensor(data.x), torch.nn.MultiheadAttention(case.shape[-1], case.heads, batch_first=True).eval()
        layer.in_proj_weight.copy_(torch.cat([tensor(weight).T for weight in data.weights[:3]]))
        layer.in_proj_bias.copy_(torch.cat([tensor(bias) for bias in data.biases[:3]]))
        layer.out_proj.weight.copy_(tensor(data.weights[3]).T)
        layer.out_proj.bias.copy_(tensor(data.biases[3]))
        if case.weights:
            return lambda: layer(x, x, x, average_attn_weights=False)
        return lambda: layer(x, x, x, need_weights=False)[0]

    def arrays(self, case: Case, result: Any) -> list[Any]:
        if case.operation == "varlen":
            result = result.transpose(1, 2)[self._kept]
        # NumPy has no dtype for PyTorch's bfloat16.
        return [a.float() if a.dtype == torch.bfloat16 else a for a in super().arrays(case, result)]

    def softmax(self, case: Softmax, data: SimpleNamespace) -> Call:
        x, out = tensor(data.x), _optional(data.out)
        return lambda: torch.softmax(x, case.axis, out=out)

    def log_softmax(self, case: Softmax, data: SimpleNamespace) -> Call:
        x, out = tensor(data.x), _optional(data.out)
        return lambda: torch.log_softmax(x, case.axis, out=out)

    def rope(self, case: Rope, data: SimpleNamespace) -> Call | None:
        """The formula of the models in ``transformers``."""
        if case.out:
            return None
        x = tensor(data.x)
        cos, sin = (tensor(a).repeat(1, 2) for a in (data.cos, data.sin))

        def rotate_half(x: torch.Tensor) -> torch.Tensor:
            a, b = x.chunk(2, -1)
            return torch.cat((-b, a), -1)

        return lambda: x * cos + rotate_half(x) * sin

    def layer_norm(self, case: LayerNorm, data: SimpleNamespace) -> Call | None:
        if case.out:
            return None
        x, gamma, beta = (tensor(a) for a in (data.x, data.gamma, data.beta))
        return lambda: F.layer_norm(x, gamma.shape, gamma, beta)

    def rms_norm(self, case: Elementwise, data: SimpleNamespace) -> Call | None:
        x, gamma = tensor(data.x), tensor(data.gamma)
        return None if case.out else lambda: F.rms_norm(x, gamma.shape, gamma, 1e-6)

    def gelu(self, case: Elementwise, data: SimpleNamespace) -> Call | None:
        x = tensor(data.x)
        return None if case.out else lambda: F.gelu(x)

    def silu(self, case: Elementwise, data: SimpleNamespace) -> Call | None:
        x = tensor(data.x)
        return None if case.out else lambda: F.silu(x)

    def swiglu(self, case: Elementwise, data: SimpleNamespace) -> Call | None:
        x, up = tensor(data.x), tensor(data.up)
        return None if case.out else lambda: F.silu(x) * up

    def linear(self, case: Linear, data: SimpleNamespace) -> Call:
        x, weight, bias = (tensor(a) for a in (data.x, data.weight, data.bias))
        return lambda: torch.addmm(bias, x, weight)


def tensor(a: Any) -> torch.Tensor:
    """A tensor over the memory of an array; bfloat16 is passed as uint16."""
    if a.dtype.name == "bfloat16":
        return torch.from_numpy(a.view(np.uint16)).view(torch.bfloat16)
    return torch.from_numpy(a)


def _optional(out: Any) -> torch.Tensor | None:
    return None if out is None else tensor(out)


PEERS = {"torch": PyTorch}
