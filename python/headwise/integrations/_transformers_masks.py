"""Attention masks of transformers as patterns: causal, window, labels and padding, without an array of queries x keys.

transformers describes a mask by a function of (batch, head, query, key) indices and asks the attention implementation
for a tensor. :func:`implicit_mask` recognizes the functions that transformers composes of causal masks, windows, chunks
(Llama 4) and packed sequences and returns an :class:`ImplicitMask`; every other function becomes a bool tensor.
"""

from __future__ import annotations

import importlib
from functools import cache, reduce
from typing import TYPE_CHECKING, Any, NamedTuple, TypeAlias

from headwise._block_mask.mask import BlockMask
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
    """The keys that the query at position p sees: p - left to p + right (None leaves a side open), to p if causal.

    Each function of ``labels`` gives positions (n,) their labels (batch, n), or None if it does not reach one of them.
    A query sees the keys that have its labels.
    """

    causal: bool = False
    left: int | None = None
    right: int | None = None
    labels: tuple[Callable[[Tensor], Tensor | None], ...] = ()

    def __and__(self, other: Pattern) -> Pattern:
        def narrower(a: int | None, b: int | None) -> int | None:
            return b if a is None else a if b is None else min(a, b)

        left, right = narrower(self.left, other.left), narrower(self.right, other.right)
        return Pattern(self.causal or other.causal, left, right, self.labels + other.labels)


class ImplicitMask(torch.Tensor):
    """A bool tensor (batch, 1, query_len, key_len) that is stored as a pattern and the keys that are no padding.

    Attention of headwise reads the pattern. A model that computes with the mask gets the bool tensor that transformers
    makes for its "sdpa" implementation: every operation of PyTorch builds it.
    """

    pattern: Pattern
    query_offset: int  # position of query 0 minus position of key 0
    labels: tuple[tuple[Tensor, Tensor], ...]  # (batch, query_len) and (batch, key_len): a query sees keys of its label
    padding: Tensor | None  # (batch, key_len) of bool, False for padding; None if there is none
    key_lengths: Tensor | None  # (batch,), if the padding of each sequence follows all of its keys
    written: bool  # whether an operation wrote to the bool tensor or returned a view: the pattern may not hold then

    __torch_function__ = torch._C._disabled_torch_function_impl  # noqa: SLF001 (the documented way for wrapper classes)

    @staticmethod
    def __new__(  # noqa: PYI034 (typing.Self is of Python 3.11)
        cls: Any,
        shape: tuple[Any, ...],
        pattern: Pattern,
        offset: int,
        padding: Tensor | None,
        device: Any,
        labels: tuple[tuple[Tensor, Tensor], ...] = (),
    ) -> ImplicitMask:
        self: ImplicitMask = torch.Tensor._make_wrapper_subclass(cls, shape, dtype=torch.bool, device=device)  # noqa: SLF001
        self.pattern, self.query_offset, self.padding, self.labels = pattern, offset, padding, labels
        self.key_lengths = None if padding is None else _key_lengths(padding)
        self.written = False
        self._dense = self._blocks = None
        return self

    _dense: Tensor | None
    _blocks: tuple[slice, Any] | None

    def __repr__(self, **_: Any) -> str:
        padded = "" if self.padding is None else ", padded"
        causal, left, right, labels = self.pattern
        shown = f"causal={causal}, left={left}, right={right}, query_offset={self.query_offset}"
        return f"ImplicitMask({tuple(self.shape)}, {shown}{', labels' * bool(labels)}{padded})"

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
            causal, left, right, _ = self.pattern
            if causal:
                keep &= key <= query
            if left is not None:
                keep &= key >= query - left
            if right is not None:
                keep &= key <= query + right
            if self.padding is not None:
                keep = keep & self.padding[:, None, None, :]
            for of_queries, of_keys in self.labels:
                keep = keep & (of_queries[:, None, :, None] == of_keys[:, None, None, :])
            self._dense = keep.expand(batch, 1, query_len, key_len).contiguous()
        return self._dense

    def blocks(self, keys: slice) -> BlockMask:
        """The labels of some of the keys, as blocks. They are computed once for all layers."""
        if self._blocks is None or self._blocks[0] != keys:
            parts = (BlockMask.documents(q.numpy(), k[:, keys].numpy()) for q, k in self.labels)
            self._blocks = keys, reduce(BlockMask.__and__, parts)
        return self._blocks[1]


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
    labels = None
    if pattern is not None and _readable(attention_mask, first) and patterns_hold():
        start, query_start = int(options.get("kv_offset", 0)), int(first)
        query_len = options["q_length"] if positions is None else len(positions)
        queries, keys = range(query_start, query_start + query_len), range(start, start + kv_length)
        labels = _labels(pattern, batch_size, queries, keys)
    if pattern is None or labels is None:
        options |= {"allow_is_causal_skip": False, "allow_is_bidirectional_skip": False}
        return masking_utils.sdpa_mask(
            batch_size=batch_size,
            kv_length=kv_length,
            mask_function=mask_function,
            attention_mask=attention_mask,
            **options,
        )
    device = options.get("device", "cpu") if positions is None else positions.device
    offset, padding = query_start - start, None
    if attention_mask is not None:
        reach = min(kv_length, offset + query_len) if pattern.causal else kv_length
        padding = _padding(attention_mask, start, kv_length, reach)
    if allow_is_bidirectional_skip and padding is None and pattern == Pattern():
        return None
    return ImplicitMask((batch_size, 1, query_len, kv_length), pattern, offset, padding, device, labels)


def _readable(*arguments: Any) -> bool:
    """Whether the numbers in tensors are known here: on CPU, and PyTorch does not trace."""
    if torch.compiler.is_compiling() or torch.jit.is_tracing():
        return False
    tensors = [x for x in arguments if isinstance(x, torch.Tensor)]
    is_tracing = getattr(import_utils, "is_tracing", None)
    return all(x.is_cpu and not (is_tracing is not None and is_tracing(x)) for x in tensors)


def _labels(pattern: Pattern, batch: int, queries: range, keys: range) -> tuple[tuple[Tensor, Tensor], ...] | None:
    """The labels of positions, without those that are all the same; None if a function does not reach a position."""
    found = []
    for function in pattern.labels:
        of_queries, of_keys = (function(torch.arange(x.start, x.stop)) for x in (queries, keys))
        if of_queries is None or of_keys is None:
            return None
        of_queries, of_keys = of_queries.expand(batch, -1), of_keys.expand(batch, -1)
        first = of_keys[:, :1]
        if not bool((of_queries == first).all() and (of_keys == first).all()):
            found.append((of_queries, of_keys))
    return tuple(found)


def _padding(attention_mask: Tensor, start: int, key_len: int, reach: int) -> Tensor | None:
    """Which of the keys from position `start` on are no padding, (batch, key_len); None if the first `reach` are not.

    Keys behind the end of `attention_mask` are those of a static cache that are not written yet.
    """
    mask = attention_mask[:, start : start + key_len].to(torch.bool)
    if mask.shape[1] >= reach and bool(mask[:, :reach].all()):
        return None
    return torch.nn.functional.pad(mask, (0, key_len - mask.shape[1]))


def recognized(function: Any) -> Pattern | None:
    """The pattern of a mask function that transformers made of parts that are known; None of any other."""
    if function is masking_utils.causal_mask_function:
        return Pattern(causal=True)
    if function is getattr(masking_utils, "bidirectional_mask_function", None):
        return Pattern()
    if getattr(function, "__module__", None) != masking_utils.__name__ or not getattr(function, "__closure__", None):
        return None
    maker = function.__qualname__.partition(".")[0]
    variables = dict(zip(function.__code__.co_freevars, function.__closure__, strict=True))
    values = [variables[name].cell_contents for name in sorted(variables)]
    if maker == "and_masks":
        parts = [recognized(part) for part in values[0]]
        known = [part for part in parts if part is not None]
        return reduce(Pattern.__and__, known, Pattern()) if len(known) == len(parts) else None
    made: Pattern | None = _MAKERS[maker](*values) if maker in _MAKERS else None
    return made


def _chunks(size: int, left_padding: Tensor) -> Pattern:
    """Chunks of Llama 4, which begin after the padding of each sequence."""

    def labels(positions: Tensor) -> Tensor | None:
        return (positions - left_padding[:, None]) // size if left_padding.is_cpu else None

    return Pattern(labels=(labels,))


def _packed(sequences: Tensor) -> Pattern:
    """Sequences that are packed into rows, by their number at each position."""

    def labels(positions: Tensor) -> Tensor | None:
        inside = sequences.is_cpu and bool((positions < sequences.shape[1]).all())
        return sequences[:, positions] if inside else None

    return Pattern(labels=(labels,))


#: Functions of transformers that make mask functions: the pattern by the values in the closure, in the order of names.
_MAKERS: dict[str, Callable[..., Pattern]] = {
    "sliding_window_overlay": lambda size: Pattern(left=int(size) - 1),
    "sliding_window_bidirectional_overlay": lambda size: Pattern(left=int(size), right=int(size)),
    "chunked_overlay": _chunks,
    "packed_sequence_mask_function": _packed,
}


@cache
def patterns_hold() -> bool:
    """Whether this version's functions are those that :func:`recognized` knows: they are compared once, on 7 tokens."""
    numbers = torch.tensor([0, 0, 1, 1, 1, 2, 2])
    arguments: dict[str, tuple[Any, ...]] = {
        "sliding_window_causal_mask_function": (3,),
        "sliding_window_bidirectional_mask_function": (3,),
        "chunked_overlay": (3, numbers[2:3]),
        "packed_sequence_mask_function": (numbers[None],),
    }
    positions = range(7)
    for name, values in arguments.items():
        maker = getattr(masking_utils, name, None)
        if maker is None:
            continue
        function, indices = maker(*values), torch.arange(7)
        pattern = recognized(function)
        labels = None if pattern is None else _labels(pattern, 1, positions, positions)
        if pattern is None or labels is None:
            return False
        found = ImplicitMask((1, 1, 7, 7), pattern, 0, None, "cpu", labels).dense()[0, 0]
        if not torch.equal(found, function(0, 0, indices[:, None], indices[None, :])):
            return False
    return True
