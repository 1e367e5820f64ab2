"""Whether what CI downloads is pinned: actions to commits with their version as a comment, packages to versions and
hashes in .ci/requirements, which has every requirement of the dependency groups it is made from (.ci/lock)."""

from __future__ import annotations

import re
import sys
from pathlib import Path

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

ROOT = Path(__file__).parents[2]
ACTION = re.compile(r"[\w.-]+/[\w./-]+@[0-9a-f]{40} # v\d+(\.\d+)*")
REQUIREMENT = re.compile(r"(?P<name>[\w.-]+)==(?P<version>[\w.]+)( ; .+?)?( --hash=sha256:[0-9a-f]{64})+")


def normal(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def of_group(groups: dict[str, list[str | dict[str, str]]], name: str) -> list[str]:
    """The requirements of a group, with those of the groups it includes."""
    found = []
    for entry in groups[name]:
        found += [entry] if isinstance(entry, str) else of_group(groups, entry["include-group"])
    return found


def faults() -> list[str]:
    found = []
    for workflow in sorted((ROOT / ".github/workflows").iterdir()):
        text = workflow.read_text()
        found += [f"{workflow.name}: {use}" for use in re.findall(r"uses: *(.+)", text) if not ACTION.fullmatch(use)]
        found += [
            f"{workflow.name}: {line}"
            for line in re.findall(r".*pip(?:x run| install).*", text)
            if "hashes" not in line
        ]
        if "\npermissions:\n  contents: read\n" not in text:
            found.append(f"{workflow.name}: expected `permissions: contents: read` for the whole workflow")
    groups = tomllib.loads((ROOT / "pyproject.toml").read_text())["dependency-groups"]
    for lock in sorted((ROOT / ".ci/requirements").glob("*.txt")):
        lines = re.sub(r"#.*\n", "", lock.read_text()).replace(" \\\n    --hash", " --hash").splitlines()
        pinned = {}
        for line in lines:
            if match := REQUIREMENT.fullmatch(line):
                pinned[normal(match["name"])] = match["version"]
            else:
                found.append(f"{lock.name}: {line}")
        for requirement in of_group(groups, lock.stem):
            name, exact, version = requirement.partition("==")
            name = normal(re.split(r"[<>=!~;\[ ]", name)[0])
            if name not in pinned or (exact and pinned[name] != version):
                found.append(f"{lock.name}: {pinned.get(name)}, expected {requirement}; run .ci/lock")
    return found


if __name__ == "__main__":
    for fault in (all_faults := faults()):
        print(f"not pinned: {fault}")
    sys.exit(bool(all_faults))
