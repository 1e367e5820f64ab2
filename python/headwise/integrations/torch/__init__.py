"""headwise inside PyTorch on CPU: behind its own attention, and as a function with every keyword of headwise.

    pip install 'torch>=2.6'

:func:`enable` puts headwise behind ``torch.nn.functional.scaled_dot_product_attention``, so that models run on it
without a change; :func:`enabled` does so for a block of code. :func:`attention` is :func:`headwise.flash_attention` of
tensors, differentiable by autograd. Tensors and arrays share memory. bfloat16 is read directly where the package
``ml_dtypes`` is installed, and by way of float32 copies elsewhere.

>>> import torch
>>> from headwise.integrations.torch import enabled
>>> layer = torch.nn.TransformerEncoderLayer(64, 8, batch_first=True).eval()
>>> with enabled(), torch.inference_mode():
...     output = layer(torch.ones(2, 16, 64))
>>> output.shape
torch.Size([2, 16, 64])
"""

from __future__ import annotations

from headwise.integrations.torch._attention import attention
from headwise.integrations.torch._block_mask import block_mask
from headwise.integrations.torch._switch import disable, enable, enabled, is_enabled

__all__ = ["attention", "block_mask", "disable", "enable", "enabled", "is_enabled"]

for _function in (attention, block_mask, disable, enable, enabled, is_enabled):
    _function.__module__ = __name__
del _function
