"""Detection of a :class:`headwise.KVCache` that two threads use at once."""

from __future__ import annotations

from threading import get_ident


class Exclusive:
    """A context manager for the changes of one cache: RuntimeError while another thread changes it.

    It does not wait for the other thread: if two threads append in no order, neither order is what they want. The
    thread is recorded instead of a lock held, so a KeyboardInterrupt between the record and the block, which Python
    allows, does not shut out the thread that catches it.
    """

    __slots__ = ("_thread",)

    def __init__(self) -> None:
        self._thread: dict[str, int] = {}  # dict.setdefault compares and sets in one step

    def __enter__(self) -> None:
        me = get_ident()
        if self._thread.setdefault("id", me) != me:
            self._refuse()

    def __exit__(self, *_: object) -> None:
        self._thread.pop("id", None)

    def check(self) -> None:
        """RuntimeError while another thread changes the cache; for methods that only read it."""
        me = get_ident()
        if self._thread.get("id", me) != me:
            self._refuse()

    def _refuse(self) -> None:
        raise RuntimeError(
            "cache: another thread is changing this KVCache, which is for one thread at a time; expected a cache for "
            "each thread, or a lock around the calls"
        )
