"""The rows of a :class:`headwise.KVCache` that queries see."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from headwise._kv_cache.rows import equal

if TYPE_CHECKING:
    from collections.abc import Sequence


class Spans(NamedTuple):
    """The rows of the cache that the queries of each sequence see.

    Sequence ``i`` has ``lengths[i]`` positions. Its queries see ``seen[i]`` rows, which end with its latest position
    and begin in slot ``starts[i]``, apart from the first rows that a ring keeps. Its first ``counts[i]`` queries have
    the latest positions; its other queries are padding.
    """

    starts: Sequence[int]
    seen: Sequence[int]
    counts: Sequence[int]
    lengths: list[int]

    def equal(self) -> bool:
        """Whether all sequences have the same rows and queries."""
        return equal(self.counts) and equal(self.seen) and equal(self.starts)
