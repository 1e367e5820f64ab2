"""Checks the relative links of the Markdown files in this repository: the file exists, and it has the heading.

python docs/check_links.py
"""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
_IGNORED = {".venv", "build", "dist"}
_FENCE = re.compile(r"^```.*?^```$", re.MULTILINE | re.DOTALL)
_LINK = re.compile(r"\[[^\]]*\]\(([^)\s]+)\)")
_HEADING = re.compile(r"^#{1,6} +(.+?)\s*$", re.MULTILINE)


def main() -> int:
    """Print each broken link; the exit status is 1 if there are any."""
    files = markdown_files()
    broken = [f"{file.relative_to(ROOT)}: {link}" for file in files for link in broken_links(file)]
    print(*broken, sep="\n", end="\n" if broken else "")
    print(f"{len(files)} files, {len(broken)} broken links")
    return bool(broken)


def markdown_files() -> list[Path]:
    """The Markdown files of the git repository, or of the folder if it is not a git repository."""
    command = ["git", "ls-files", "--cached", "--others", "--exclude-standard", "*.md"]
    try:
        names = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout.splitlines()
    except (OSError, subprocess.CalledProcessError):
        return sorted(file for file in ROOT.rglob("*.md") if not _IGNORED & {*file.relative_to(ROOT).parts})
    return [ROOT / name for name in names if (ROOT / name).exists()]


def broken_links(file: Path) -> list[str]:
    """The relative links of one file whose target or heading does not exist."""
    return [link for link in _LINK.findall(_FENCE.sub("", file.read_text(encoding="utf-8"))) if not _exists(file, link)]


def _exists(file: Path, link: str) -> bool:
    if re.match(r"[a-z]+:", link):
        return True
    name, _, anchor = link.partition("#")
    target = (file.parent / name).resolve() if name else file
    if not target.exists():
        return False
    return not anchor or target.suffix != ".md" or anchor in anchors(target.read_text(encoding="utf-8"))


def anchors(text: str) -> set[str]:
    """The anchors that GitHub makes of the headings: lower case, punctuation removed, spaces as hyphens."""
    headings = _HEADING.findall(_FENCE.sub("", text))
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


if __name__ == "__main__":
    sys.exit(main())
