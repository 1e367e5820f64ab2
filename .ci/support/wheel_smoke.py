"""Smoke test of an installed headwise: each instruction set, import before and after PyTorch, a forked child.

`python wheel_smoke.py`, or `python wheel_smoke.py torch first` and `... torch last`.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

import numpy as np


def expected(query: np.ndarray, key: np.ndarray, value: np.ndarray) -> np.ndarray:
    """Causal attention by its formula."""
    scores = query @ key.swapaxes(-1, -2) / np.sqrt(query.shape[-1])
    scores = np.where(np.tri(scores.shape[-2], dtype=bool), scores, -np.inf)
    weights = np.exp(scores - scores.max(-1, keepdims=True))
    return weights / weights.sum(-1, keepdims=True) @ value


def check_headwise() -> None:
    for target in hw.list_targets():
        hw.set_target(target)
        np.testing.assert_allclose(hw.flash_attention(*arrays, is_causal=True), wanted, atol=1e-5, err_msg=target)
    hw.set_target(hw.list_targets()[0])


def check_torch() -> None:
    import torch

    got = torch.nn.functional.scaled_dot_product_attention(*map(torch.from_numpy, arrays), is_causal=True)
    np.testing.assert_allclose(got.numpy(), wanted, atol=1e-5)


def openmp_libraries() -> set[str]:
    """Names of the OpenMP runtimes loaded into this process."""
    lines = Path("/proc/self/maps").read_text().splitlines() if sys.platform == "linux" else []
    return {Path(line.split()[-1]).name for line in lines if "libgomp" in line or "libomp" in line}


def check_in_child(check: object) -> None:
    """Run the check in a forked child of a process that has run parallel regions; an alarm ends a child that hangs."""
    import signal

    child = os.fork()
    if child == 0:
        signal.alarm(60)
        status = 1
        try:
            check()  # type: ignore[operator]
            status = 0
        finally:
            os._exit(status)
    status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    if status != 0:
        raise SystemExit(f"the forked child ended with {status}")


beside, order = [*sys.argv[1:], "", ""][:2]
if order == "first":
    import torch  # noqa: F401

import headwise as hw  # noqa: E402

home = Path(hw.__file__).parent
if home.parent.name == "python":
    raise SystemExit(f"headwise was imported from the source tree: {home}")
if hw.config()["backend"] != "native":
    raise SystemExit(f"expected the native core: {hw.config()}")

rng = np.random.default_rng(0)
arrays = tuple(rng.standard_normal((3, 2, 8, 512, 64), dtype=np.float32))
wanted = expected(*(array.astype(np.float64) for array in arrays))
hw.set_num_threads(4)
check_headwise()
if beside == "torch":
    check_torch()
    check_headwise()
    check_torch()
if hasattr(os, "fork"):
    check_in_child(check_headwise)  # not PyTorch: its operations hang in a forked child
check_headwise()
print(f"{home}: {', '.join(hw.list_targets())}; {beside} {order} {sorted(openmp_libraries())}")
