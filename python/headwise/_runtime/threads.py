"""The default number of threads, from the environment or from the processors that this process may use."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from headwise._base.messages import shown
from headwise._runtime import processors

if TYPE_CHECKING:
    from collections.abc import Mapping


def default_count(environ: Mapping[str, str] = os.environ) -> int:
    """``HEADWISE_NUM_THREADS``, else ``OMP_NUM_THREADS``, else the processors that :func:`available` counts.

    The last two are limited by ``OMP_THREAD_LIMIT``.
    """
    ours = environ.get("HEADWISE_NUM_THREADS", "").strip()
    if ours:
        count = _positive(ours)
        if count is None:
            raise ValueError(f"HEADWISE_NUM_THREADS: {shown(ours)}, expected a positive integer")
        return count
    # OMP_NUM_THREADS may be a list with an entry for each nesting level. Bad values are OpenMP's to report.
    count = _positive(environ.get("OMP_NUM_THREADS", "").split(",")[0].strip())
    count = available() if count is None else count
    return min(count, _positive(environ.get("OMP_THREAD_LIMIT", "").strip()) or count)


def available(root: str = "/") -> int:
    """The number of processors of this process, or of all if they are unknown, limited by the cgroup's CPU quota.

    ``root`` is the folder that has ``proc`` and ``sys``.
    """
    allowed = processors.allowed()
    count = len(allowed) if allowed else os.cpu_count() or 1
    quota = _cgroup_quota(root)
    return count if quota is None else max(1, min(count, int(quota)))


def _positive(text: str) -> int | None:
    """``text`` as a positive integer that fits a C int, else None."""
    digits = text.isascii() and text.isdigit() and len(text) <= 10
    return int(text) if digits and 0 < int(text) < 1 << 31 else None


def _cgroup_quota(root: str) -> float | None:
    """The min CPU quota, in processors, of this process's cgroup and its ancestors; None if none of them has one."""
    quotas = []
    for line in _read(root, "proc/self/cgroup").splitlines():
        hierarchy, _, rest = line.partition(":")
        controllers, _, group = rest.partition(":")
        if hierarchy == "0":
            mount, read = "sys/fs/cgroup", _quota_v2
        elif "cpu" in controllers.split(","):
            mount, read = "sys/fs/cgroup/cpu", _quota_v1
        else:
            continue
        group = group.strip("/")
        while True:
            quotas.append(read(os.path.join(root, mount, group)))
            if not group:
                break
            group = os.path.dirname(group)
    return min((quota for quota in quotas if quota is not None), default=None)


def _quota_v2(folder: str) -> float | None:
    return _ratio(_read(folder, "cpu.max").split())


def _quota_v1(folder: str) -> float | None:
    return _ratio([_read(folder, "cpu.cfs_quota_us").strip(), _read(folder, "cpu.cfs_period_us").strip()])


def _ratio(fields: list[str]) -> float | None:
    # Without a quota the first field is "max" (version 2) or "-1" (version 1).
    if len(fields) == 2 and fields[0].isdigit() and fields[1].isdigit() and int(fields[1]) > 0:
        return int(fields[0]) / int(fields[1])
    return None


def _read(folder: str, name: str) -> str:
    try:
        with open(os.path.join(folder, name), encoding="utf-8", errors="replace") as file:
            return file.read()
    except OSError:
        return ""
