"""The number of threads: from the environment, the affinity, a cgroup, and set_num_threads."""

from __future__ import annotations

import json
import os
from pathlib import Path

import numpy as np
import pytest

import headwise as hw
from headwise._runtime import threads as _threads
from runtime.interpreter import PRINT_CONFIG, config_with, error_with, once, run


@once
@pytest.mark.parametrize(
    ("environment", "threads"),
    [
        ({"HEADWISE_NUM_THREADS": "3"}, 3),
        ({"HEADWISE_NUM_THREADS": "3", "OMP_NUM_THREADS": "2"}, 3),
        ({"HEADWISE_NUM_THREADS": "", "OMP_NUM_THREADS": "2"}, 2),
        ({"OMP_NUM_THREADS": "2"}, 2),
        ({"OMP_NUM_THREADS": " 4,2 "}, 4),
        ({"OMP_NUM_THREADS": "many"}, None),
        ({"OMP_NUM_THREADS": "0"}, None),
        ({"OMP_NUM_THREADS": "-1"}, None),
        ({}, None),
    ],
)
def test_thread_count_comes_from_the_environment(environment: dict[str, str], threads: int | None) -> None:
    assert config_with(**environment)["threads"] == (threads or _threads.available())


@once
@pytest.mark.parametrize("count", ["0", "-2", "two", "1.5", "4,2", "99999999999999999999"])
def test_bad_thread_count_in_the_environment(count: str) -> None:
    message = error_with(HEADWISE_NUM_THREADS=count)
    assert message == f"ValueError: HEADWISE_NUM_THREADS: {count!r}, expected a positive integer"


@once
@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="this system has no sched_setaffinity")
def test_thread_count_follows_the_affinity() -> None:
    code = "import os; os.sched_setaffinity(0, {min(os.sched_getaffinity(0))}); " + PRINT_CONFIG
    assert json.loads(run(code).stdout)["threads"] == 1


@once
def test_thread_count_without_the_right_to_read_the_affinity(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Sandboxes deny the system call: all processors count."""

    def denied(_: int) -> set[int]:
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr(os, "sched_getaffinity", denied, raising=False)
    assert _threads.available(str(tmp_path)) == (os.cpu_count() or 1)


@once
@pytest.mark.parametrize(
    ("files", "quota"),
    [
        ({"proc/self/cgroup": "0::/a/b\n", "sys/fs/cgroup/a/b/cpu.max": "300000 100000\n"}, 3),
        ({"proc/self/cgroup": "0::/a/b\n", "sys/fs/cgroup/a/b/cpu.max": "max 100000\n"}, None),
        (
            {
                "proc/self/cgroup": "0::/a/b\n",
                "sys/fs/cgroup/a/b/cpu.max": "max 100000\n",
                "sys/fs/cgroup/a/cpu.max": "250000 100000\n",
            },
            2,
        ),
        ({"proc/self/cgroup": "0::/\n", "sys/fs/cgroup/cpu.max": "50000 100000\n"}, 1),
        (
            {
                "proc/self/cgroup": "4:cpu,cpuacct:/job\n0::/\n",
                "sys/fs/cgroup/cpu/job/cpu.cfs_quota_us": "400000\n",
                "sys/fs/cgroup/cpu/job/cpu.cfs_period_us": "200000\n",
            },
            2,
        ),
        (
            {
                "proc/self/cgroup": "4:cpu,cpuacct:/\n",
                "sys/fs/cgroup/cpu/cpu.cfs_quota_us": "-1\n",
                "sys/fs/cgroup/cpu/cpu.cfs_period_us": "100000\n",
            },
            None,
        ),
        ({"proc/self/cgroup": "0::/\n", "sys/fs/cgroup/cpu.max": "nonsense\n"}, None),
        ({}, None),
    ],
)
def test_thread_count_follows_the_cgroup(
    files: dict[str, str], quota: int | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, text in files.items():
        file = tmp_path / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(64)), raising=False)
    assert _threads.available(str(tmp_path)) == (quota or 64)
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: {0}, raising=False)
    assert _threads.available(str(tmp_path)) == 1


def test_set_num_threads() -> None:
    hw.set_num_threads(2)
    assert hw.get_num_threads() == hw.config()["threads"] == 2
    hw.set_num_threads(np.int64(1))  # type: ignore[arg-type]
    assert hw.get_num_threads() == 1


@pytest.mark.parametrize(
    ("count", "error"),
    [(0, ValueError), (-1, ValueError), (1 << 40, ValueError), (1.0, TypeError), (True, TypeError), ("2", TypeError)],
)
def test_bad_thread_counts(count: object, error: type[Exception]) -> None:
    before = hw.get_num_threads()
    with pytest.raises(error, match=r"^n: "):
        hw.set_num_threads(count)  # type: ignore[arg-type]
    assert hw.get_num_threads() == before
