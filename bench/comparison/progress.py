"""A progress bar."""

from __future__ import annotations

import sys


class ProgressBar:
    """A progress bar on stderr, if stderr is a terminal."""

    def __init__(self, total: int) -> None:
        self.name = ""
        self._total, self._done = total, 0
        self._shown = sys.stderr.isatty()

    def advance(self) -> None:
        self._done += 1
        if self._shown:
            filled = 30 * self._done // self._total
            bar = "█" * filled + "░" * (30 - filled)
            sys.stderr.write(f"\r\033[K{bar} {self._done / self._total:4.0%} {self.name}")
            sys.stderr.flush()

    def close(self) -> None:
        if self._shown:
            sys.stderr.write("\r\033[K")
