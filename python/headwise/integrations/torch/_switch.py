"""Whether PyTorch's attention on CPU runs on headwise, in this process."""

from __future__ import annotations

import contextlib
import threading
import warnings
from typing import TYPE_CHECKING, Any

from headwise.integrations.torch import _fused, _sdpa
from headwise.integrations.torch._tensors import torch

if TYPE_CHECKING:
    from collections.abc import Iterator

_KERNELS = (
    ("_scaled_dot_product_flash_attention_for_cpu", _fused.forward, "CPU"),
    ("_scaled_dot_product_flash_attention_for_cpu_backward", _fused.backward, "CPU"),
    ("scaled_dot_product_attention", _sdpa.with_autograd, "AutogradCPU"),
    ("scaled_dot_product_attention", _sdpa.without_autograd, "CPU"),
)
_fast_path = torch.backends.mha


class _Switch:
    """The state, and what it has changed in PyTorch."""

    def __init__(self) -> None:
        self.lock = threading.RLock()
        self.on = False  # by enable() and disable()
        self.blocks = 0  # of enabled() that are running
        self.library: Any = None  # what registers the kernels, as long as it exists
        self.kept: list[Any] = []
        self.fast_path = False

    def apply(self) -> None:
        """Make PyTorch's operators agree with the state. The lock is held."""
        wanted = self.on or self.blocks > 0
        if wanted and self.library is None:
            self.library = _register()
            # A thread may be in an operator while its kernel is taken back. PyTorch frees a kernel then, unless there
            # is a reference to it, which PyTorch gives out from 2.9 on.
            if hasattr(torch.library, "get_kernel"):
                self.kept += [torch.library.get_kernel(f"aten::{name}", key) for name, _, key in _KERNELS]
            # Layers have a path of their own for inference, which does not call scaled_dot_product_attention.
            self.fast_path = _fast_path.get_fastpath_enabled()
            _fast_path.set_fastpath_enabled(False)
        elif not wanted and self.library is not None:
            self.library = None
            _forget_dispatch()
            if self.fast_path:
                _fast_path.set_fastpath_enabled(True)


def _leave_untraced(function: Any) -> None:
    """Keep torch.compile from tracing a kernel that eager code calls between two of its graphs.

    Without this, and in PyTorch 2.6, which has no such setting for all functions below, it tries, gives up and warns.
    """
    frames = torch._C._dynamo.eval_frame  # noqa: SLF001 (torch.compiler.disable takes seconds to import)
    if hasattr(frames, "set_code_exec_strategy") and hasattr(frames, "_FrameExecStrategy"):
        skip = frames._FrameAction.SKIP  # noqa: SLF001
        frames.set_code_exec_strategy(function.__code__, frames._FrameExecStrategy(skip, skip))  # noqa: SLF001


def _register() -> Any:
    library = torch.library.Library("aten", "IMPL")
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=r"(?s).*[Oo]verrid", category=UserWarning)
        for name, function, key in _KERNELS:
            library.impl(name, function, key)
            _leave_untraced(function)
    _forget_dispatch()
    return library


def _forget_dispatch() -> None:
    """Operators remember the kernels that tracing has found."""
    for name, _, _ in _KERNELS:
        getattr(getattr(torch.ops.aten, name).default, "_dispatch_cache", {}).clear()


_switch = _Switch()


def enable() -> None:
    """Let headwise compute PyTorch's attention on CPU, in the whole process, until :func:`disable`.

    ``torch.nn.functional.scaled_dot_product_attention``, and with it ``torch.nn.MultiheadAttention``,
    ``torch.nn.TransformerEncoderLayer`` and models of other packages, call headwise from now on, forward and backward;
    in eager mode, in inference mode and in graphs of ``torch.compile``, those compiled before included. Tensors on
    other devices, and calls that headwise cannot compute, are PyTorch's as before.

    See Also
    --------
    enabled : The same for a block of code.
    attention : Every keyword of headwise, without a change to PyTorch.

    Examples
    --------
    >>> import torch
    >>> from headwise.integrations.torch import disable, enable
    >>> query = torch.ones(1, 8, 16, 64)
    >>> enable()
    >>> torch.nn.functional.scaled_dot_product_attention(query, query, query).shape
    torch.Size([1, 8, 16, 64])
    >>> disable()
    """
    with _switch.lock:
        _switch.on = True
        _switch.apply()


def disable() -> None:
    """Leave attention to PyTorch again, as it was before :func:`enable`; blocks of :func:`enabled` run to their end.

    Notes
    -----
    Threads may call attention meanwhile from PyTorch 2.9 on. PyTorch 2.6 to 2.8 free a kernel that a thread is about to
    call, and raise an error in it: with these, call this function, and leave the last block of :func:`enabled`, while
    no other thread is in attention.

    Examples
    --------
    >>> from headwise.integrations.torch import disable
    >>> disable()
    """
    with _switch.lock:
        _switch.on = False
        _switch.apply()


def is_enabled() -> bool:
    """Whether headwise computes PyTorch's attention on CPU now.

    Returns
    -------
    bool

    Examples
    --------
    >>> from headwise.integrations.torch import enabled, is_enabled
    >>> with enabled():
    ...     is_enabled()
    True
    """
    return _switch.library is not None


@contextlib.contextmanager
def enabled() -> Iterator[None]:
    """:func:`enable` for a block of code; blocks may be nested, also in several threads.

    The process is as before at the end of the last block, errors included. The choice is that of the whole process:
    calls of other threads meanwhile run on headwise, too.

    Examples
    --------
    >>> import torch
    >>> from headwise.integrations.torch import enabled
    >>> query = torch.ones(1, 8, 16, 64)
    >>> with enabled():
    ...     output = torch.nn.functional.scaled_dot_product_attention(query, query, query, is_causal=True)
    >>> output.shape
    torch.Size([1, 8, 16, 64])
    """
    with _switch.lock:
        _switch.blocks += 1
        _switch.apply()
    try:
        yield
    finally:
        with _switch.lock:
            _switch.blocks -= 1
            _switch.apply()
