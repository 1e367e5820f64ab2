"""Hardening of the native core: ``python hardening.py [FILE]``, by default of the installed package (ELF only)."""

from __future__ import annotations

import subprocess
import sys
from importlib import import_module
from pathlib import Path

#: What is checked, with the words of readelf that show it, one set of which must be there.
REQUIRED = {
    "immediate binding (-z now)": ("BIND_NOW", "Flags: NOW"),
    "relocations read-only after start (-z relro)": ("GNU_RELRO",),
    "stack protector (-fstack-protector-strong)": ("__stack_chk_fail",),
}
FORBIDDEN = {"relocations in code": ("TEXTREL",), "an executable stack": ("RWE",)}


def problems(core: Path) -> list[str]:
    """What the core lacks, or has and should not have."""
    command = ["readelf", "--wide", "--dynamic", "--segments", "--dyn-syms", str(core)]
    text = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    missing = [what for what, words in REQUIRED.items() if not any(word in text for word in words)]
    return missing + [what for what, words in FORBIDDEN.items() if any(word in text for word in words)]


def main() -> None:
    file = sys.argv[1] if len(sys.argv) > 1 else import_module("headwise._core").__file__
    found = problems(Path(str(file)))
    if found:
        raise SystemExit(f"{file}: {', '.join(found)}")
    print(f"{file}: hardened")


if __name__ == "__main__":
    main()
