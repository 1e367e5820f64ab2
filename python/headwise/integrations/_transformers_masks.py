"""Attention masks of transformers as patterns: causal, window and padding, without an array of queries x keys.

transformers describes a mask by a function of (batch, head, query, key) indices and asks the attention implementation
for a tensor. :func:`implicit_mask` recognizes the functions that transformers composes of causal masks and windows and
returns an :class:`ImplicitMask`; every other function becomes a bool tensor.
"""

from __future__ import annotations

import importlib
from functools import cache, reduce
from typing import TYPE_CHECKING, Any, NamedTuple, TypeAlias

from headwise.integrations._libraries import require

if TYPE_CHECKING:
    from collections.abc import Callable

Tensor: TypeAlias = Any  # torch.Tensor

transformers: Any = require("transformers")
torch: Any = importlib.import_module("torch")
masking_utils: Any = importlib.import_module("transformers.masking_utils")
import_utils: Any = importlib.import_module("transformers.utils.import_utils")
tree_map_only: Any = importlib.import_module("torch.utils._pytree").tree_map_only


class Pattern(NamedTuple):
    """The keys that the query at position p sees: p - left to p + right (None leaves a side open), to p if causal."""

    causal: bool = False
    left: int | None = None
    right: int | None = None

    def __and__(self, other: Pattern) -> Pattern:
        def narrower(a: int | None, b: int | None) -> int | None:
            return b if a is None else a if b is None else min(a, b)

        return Pattern(self.causal or other.causal, narrower(self.left, other.left), narrower(self.right, other.right))


class ImplicitMask(torch.Tensor):
    """A bool tensor (batch, 1, query_len, key_len) that is stored as a pattern and the keys that are no padding.

    Attention of headwise reads the pattern. A model that computes with the mask gets the bool tensor that transformers
    makes for its "sdpa" implementation: every operation of PyTorch builds it.
    """

    pattern: Pattern
    query_offset: int  # position of query 0 minus position of key 0
    padding: Tensor | None  # (batch, key_len) of bool, False for padding; None if there is none
    key_lengths: Tensor | None  # (batch,), if the padding of each sequence follows all of its keys
    written: bool  # whether an operation wrote to the bool tensor or returned a view: the pattern may not hold then

    __torch_function__ = torch._C._disabled_torch_function_impl  # noqa: SLF001 (the documented way for wrapper classes)

    @staticmethod
    def __new__(  # noqa: PYI034 (typing.Self is of Python 3.11)
        cls: Any, shape: tuple[Any, ...], pattern: Pattern, offset: int, padding: Tensor | None, device: Any
    ) -> ImplicitMask:
        self: ImplicitMask = torch.Tensor._make_wrapper_subclass(cls, shape, dtype=torch.bool, device=device)  # noqa: SLF001
        self.pattern, self.query_offset, self.padding = pattern, offset, padding
        self.key_lengths = None if padding is None else _key_lengths(padding)
        self.written = False
        self._dense = None
        return self

    _dense: Tensor | None

    def __repr__(self, **_: Any) -> str:
        padded = "" if self.padding is None else ", padded"
        return f"ImplicitMask({tuple(self.shape)}, {self.pattern}, query_offset={self.query_offset}{padded})"

    def __deepcopy__(self, memo: Any) -> Tensor:
        return self.dense().clone()

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        schema = func._schema  # noqa: SLF001 (PyTorch has no other name for it)
        writes = any(argument.alias_info is not None for argument in schema.arguments)

        def dense(mask: ImplicitMask) -> Tensor:
            mask.written |= writes
            return mask.dense()

        args, kwargs = tree_map_only(cls, dense, (args, kwargs or {}))
        return func(*args, **kwargs)

    def dense(self) -> Tensor:
        """The bool tensor (batch, 1, query_len, key_len)."""
        if self._dense is None:
            batch, _, query_len, key_len = self.shape
            query = torch.arange(query_len, device=self.device)[:, None] + self.query_offset
            key = torch.arange(key_len, device=self.device)
            keep = torch.ones(query_len, key_len, dtype=torch.bool, device=self.device)
            causal, left, right = self.pattern
            if causal:
                keep &= key <= query
            if left is not None:
                keep &= key >= query - left
            if right is not None:
                keep &= key <= query + right
            if self.padding is not None:
                keep = keep & self.padding[:, None, None, :]
            self._dense = keep.expand(batch, 1, query_len, key_len).contiguous()
        return self._dense


def _key_lengths(padding: Tensor) -> Tensor | None:
    """The number of keys of each sequence if they precede all padding, else None."""
    return padding.sum(dim=1) if bool((padding[:, :-1] >= padding[:, 1:]).all()) else None


def implicit_mask(
    *,
    batch_size: int,
    kv_length: int,
    mask_function: Callable[..., Any],
    attention_mask: Tensor | None = None,
    allow_is_bidirectional_skip: bool = False,
    **options: Any,
) -> Tensor | None:
    """The mask function that :func:`headwise.integrations.transformers.register` gives to transformers.

    The arguments are those of ``transformers.masking_utils.sdpa_mask``. Returns None for a mask that keeps everything,
    where the model allows that, else an :class:`ImplicitMask`; a bool tensor (batch, 1, query_len, key_len) if the
    pattern is not known, or PyTorch traces.
    """
    positions = options.get("cache_position")  # of transformers before 5.4, instead of q_length and q_offset
    first = options.get("q_offset", 0) if positions is None else positions[0]
    pattern = None if options.get("use_vmap") else recognized(mask_function)
    if pattern is None or not _readable(attention_mask, first) or not patterns_hold():
        options |= {"allow_is_causal_skip": False, "allow_is_bidirectional_skip": False}
        return masking_utils.sdpa_mask(
            batch_size=batch_size,
            kv_length=kv_length,
            mask_function=mask_function,
            attention_mask=attention_mask,
            **options,
        )
    query_len = options["q_length"] if positions is None else len(positions)
    device = options.get("device", "cpu") if positions is None else positions.device
    start = int(options.get("kv_offset", 0))
    offset, padding = int(first) - start, None
    if attention_mask is not None:
        reach = min(kv_length, offset + query_len) if pattern.causal else kv_length
        padding = _padding(attention_mask, start, kv_length, reach)
    if allow_is_bidirectional_skip and padding is None and pattern == Pattern():
        return None
    return ImplicitMask((batch_size, 1, query_len, kv_length), pattern, offset, padding, device)


def _readable(*arguments: Any) -> bool:
    """Whether the numbers in tensors are known here: on CPU, and PyTorch does not trace."""
    if torch.compiler.is_compiling() or torch.jit.is_tracing():
        return False
    tensors = [x for x in arguments if isinstance(x, torch.Tensor)]
    is_tracing = getattr(import_utils, "is_tracing", None)
    return all(x.is_cpu and not (is_tracing is not None and is_tracing(x)) for x in tensors)


def _padding(attention_mask: Tensor, start: int, key_len: int, reach: int) -> Tensor | None:
    """Which of the keys from position `start` on are no padding, (batch, key_len); None if the first `reach` are not.

    Keys behind the end of `attention_mask` are those of a static cache that are not written yet.
    """
    mask = attention_mask[:, start : start + key_len].to(torch.bool)
    if mask.shape[1] >= reach and bool(mask[:, :reach].all()):
        return None
    return torch.nn.functional.pad(mask, (0, key_len - mask.shape[1]))


def recognized(function: Any) -> Pattern | None:
    """The pattern of a mask function that transformers made of causal masks and windows; None of any other."""
    if function is masking_utils.causal_mask_function:
        return Pattern(causal=True)
    if function is getattr(masking_utils, "bidirectional_mask_function", None):
        return Pattern()
    if getattr(function, "__module__", None) != masking_utils.__name__ or not getattr(function, "__closure__", None):
        return None
    maker = function.__qualname__.partition(".")[0]
    value = function.__closure__[0].cell_contents
    if maker == "and_masks":
        parts = [recognized(part) for part in value]
        known = [part for part in parts if part is not None]
        return reduce(Pattern.__and__, known, Pattern()) if len(known) == len(parts) else None
    windows = {
        "sliding_window_overlay": lambda: Pattern(left=int(value) - 1),
        "sliding_window_bidirectional_overlay": lambda: Pattern(left=int(value), right=int(value)),
    }
    return windows[maker]() if maker in windows else None


@cache
def patterns_hold() -> bool:
    """Whether this version's windows are those that :func:`recognized` knows: they are compared once, on 7 tokens."""
    for name in ("sliding_window_causal_mask_function", "sliding_window_bidirectional_mask_function"):
        maker = getattr(masking_utils, name, None)
        if maker is None:
            continue
        function, indices = maker(3), torch.arange(7)
        pattern = recognized(function)
        expected = function(0, 0, indices[:, None], indices[None, :])
        if pattern is None:
            return False
        if not torch.equal(ImplicitMask((1, 1, 7, 7), pattern, 0, None, "cpu").dense()[0, 0], expected):
            return False
    return True
