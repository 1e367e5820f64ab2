"""The contents of distributions: no file is missing, none is unexpected.

`python wheel_contents.py ROOT FILE...`, for sdists and wheels. A repaired wheel must be self-contained, and its SBOMs
(PEP 770) must list every bundled library.
"""

from __future__ import annotations

import io
import json
import re
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from pathlib import Path

import hardening
from elftools.elf.dynamic import DynamicSection
from elftools.elf.elffile import ELFFile

# sdist.exclude of pyproject.toml
LEFT_OUT = (
    ".ci/",
    ".clang-format",
    ".clang-tidy",
    ".editorconfig",
    ".github/",
    ".gitignore",
    ".pre-commit-config.yaml",
    "CMakePresets.json",
    "noxfile.py",
)
# Libraries of every manylinux system.
SYSTEM = {"libc.so.6", "libgcc_s.so.1", "libm.so.6", "libpthread.so.0", "libstdc++.so.6", "ld-linux-x86-64.so.2"}
LICENSES = {"LICENSE", "csrc/licenses/highway.txt", "csrc/licenses/pybind11.txt"}
MAX_BYTES = 2_000_000

root = Path(sys.argv[1])
tracked = subprocess.run(
    ["git", "-C", root, "ls-files", "--cached"], check=True, capture_output=True, text=True
).stdout.splitlines()


def compare(what: str, found: set[str], wanted: set[str]) -> None:
    if found != wanted:
        raise SystemExit(f"{what}: missing {sorted(wanted - found)}, unexpected {sorted(found - wanted)}")


def check_sdist(file: Path) -> None:
    with tarfile.open(file) as archive:
        found = {name.partition("/")[2] for name in archive.getnames()}
    wanted = {name for name in tracked if not name.startswith(LEFT_OUT)}
    compare(file.name, found, wanted | {"PKG-INFO"})


def dynamic(content: bytes, tag: str) -> list[str]:
    section = ELFFile(io.BytesIO(content)).get_section_by_name(".dynamic")
    assert isinstance(section, DynamicSection)
    names = {"DT_NEEDED": "needed", "DT_RPATH": "rpath", "DT_RUNPATH": "runpath", "DT_SONAME": "soname"}
    return [getattr(entry, names[tag]) for entry in section.iter_tags() if entry.entry.d_tag == tag]


def check_wheel(file: Path) -> None:
    with zipfile.ZipFile(file) as archive:
        content = {name: archive.read(name) for name in archive.namelist() if not name.endswith("/")}
    info = next(name for name in content if name.endswith(".dist-info/METADATA")).partition("/")[0]
    cores = [name for name in content if re.fullmatch(r"headwise/_core\.[\w-]+\.so", name)]
    bundled = {name for name in content if name.startswith("headwise.libs/")}
    wanted = {name.removeprefix("python/") for name in tracked if name.startswith("python/headwise/")}
    wanted |= {f"{info}/{name}" for name in ("METADATA", "RECORD", "WHEEL")}
    wanted |= {f"{info}/licenses/{name}" for name in LICENSES}
    if cores:
        wanted |= {*cores[:1], f"{info}/sboms/core.cdx.json"}
        for name in ("highway", "pybind11"):
            assert name in components(content[f"{info}/sboms/core.cdx.json"]), name
        check_hardened(file.name, content[cores[0]])
    if "manylinux" in file.name:
        wanted |= bundled | {f"{info}/sboms/auditwheel.cdx.json"}
        check_bundled(file.name, content, info, cores[0], bundled)
    compare(file.name, set(content), wanted)
    if len(file.read_bytes()) > MAX_BYTES:
        raise SystemExit(f"{file.name}: more than {MAX_BYTES} bytes")
    installed = sum(map(len, content.values()))
    print(f"{file.name}: {file.stat().st_size / 1e6:.2f} MB, installed {installed / 1e6:.2f} MB")


def check_hardened(wheel: str, core: bytes) -> None:
    with tempfile.NamedTemporaryFile(suffix=".so") as copy:
        copy.write(core)
        copy.flush()
        found = hardening.problems(Path(copy.name))
    if found:
        raise SystemExit(f"{wheel}: the core: {', '.join(found)}")


def components(sbom: bytes) -> dict[str, str]:
    """Names and versions of the components."""
    return {component["name"]: component["version"] for component in json.loads(sbom)["components"]}


def check_bundled(wheel: str, content: dict[str, bytes], info: str, core: str, bundled: set[str]) -> None:
    names = {name.partition("/")[2] for name in bundled}
    for name in [core, *bundled]:
        needed = set(dynamic(content[name], "DT_NEEDED"))
        compare(f"{wheel}: libraries that {name} needs", needed - SYSTEM - names, set())
    paths = dynamic(content[core], "DT_RPATH") + dynamic(content[core], "DT_RUNPATH")
    compare(f"{wheel}: the library path of the core", set(paths), {"$ORIGIN/../headwise.libs"})
    listed = components(content[f"{info}/sboms/auditwheel.cdx.json"])
    print(f"  bundles {', '.join(sorted(names))}; listed: {listed}")
    for name in names:
        stem = name.partition("-")[0]
        if not any(component.startswith(stem) and version for component, version in listed.items()):
            raise SystemExit(f"{wheel}: {name} is not in its SBOM")
    if not any(name.startswith("libgomp-") for name in names):
        raise SystemExit(f"{wheel}: libgomp is not bundled")


for name in sys.argv[2:]:
    if name.endswith(".tar.gz"):
        check_sdist(Path(name))
    else:
        check_wheel(Path(name))
