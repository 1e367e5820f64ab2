"""Packs and unpacks the corpora of the fuzzers: a file per operation, with an input per line, in hexadecimal, sorted.

``python corpus.py unpack corpus/rope.hex FOLDER`` writes a file for each line, as libFuzzer reads them;
``python corpus.py pack FOLDER corpus/rope.hex`` does the reverse.
"""

from __future__ import annotations

import hashlib
import sys
from pathlib import Path


def unpack(packed: Path, folder: Path) -> None:
    """Name each file by its SHA-1, as libFuzzer does."""
    folder.mkdir(parents=True, exist_ok=True)
    for line in packed.read_text(encoding="ascii").splitlines():
        content = bytes.fromhex(line)
        (folder / hashlib.sha1(content, usedforsecurity=False).hexdigest()).write_bytes(content)


def pack(folder: Path, packed: Path) -> None:
    """Shorter inputs come first."""
    contents = {path.read_bytes() for path in folder.iterdir()}
    lines = [content.hex() + "\n" for content in sorted(contents, key=lambda content: (len(content), content))]
    packed.write_text("".join(lines), encoding="ascii", newline="\n")


if __name__ == "__main__":
    command, source, destination = sys.argv[1:]
    {"unpack": unpack, "pack": pack}[command](Path(source), Path(destination))
