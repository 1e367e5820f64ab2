"""headwise.integrations.dask on Dask's schedulers, and on a cluster of which a worker dies."""

from __future__ import annotations

import os
import time
from typing import Any

import numpy as np
import pytest

import headwise as hw
from support import normal

da: Any = pytest.importorskip("dask.array", reason="the package dask is not installed")
adapter: Any = pytest.importorskip("headwise.integrations.dask")

pytestmark = [pytest.mark.single_implementation, pytest.mark.slow]


def arrays() -> list[Any]:
    return [normal((2, 40, 8), seed, np.float64) for seed in range(3)]


def chunked(given: list[Any]) -> list[Any]:
    return [da.from_array(a, chunks=(1, 8, 8)) for a in given]


@pytest.mark.parametrize("scheduler", ["threads", "processes"])
def test_schedulers(scheduler: str) -> None:
    given = arrays()
    found = adapter.flash_attention(*chunked(given), is_causal=True)
    np.testing.assert_allclose(
        found.compute(scheduler=scheduler, num_workers=2), hw.flash_attention(*given, is_causal=True), rtol=1e-12
    )


@pytest.mark.parametrize("scheduler", ["threads", "processes"])
def test_every_function(scheduler: str) -> None:
    """Their tasks are pickled, score_mod and the blocks of masks included."""
    q, k, v = given = arrays()
    x = chunked(given)
    mask, packed = hw.BlockMask.documents(np.arange(40) // 15, block_size=4), [a.swapaxes(0, 1) for a in given]
    output, lse = hw.flash_attention(*given, mask, return_lse=True)
    found, statistics, gradients, sequences = da.compute(
        adapter.flash_attention(*x, score_mod=lambda score, b, h, q, k: score + 0.1 * q - 0.2 * k),
        adapter.attention_statistics(*x[:2], mask=mask)[:3],
        adapter.flash_attention_backward(output, *x, output, lse, mask=mask)[:],
        adapter.varlen_attention(*(a.swapaxes(0, 1) for a in x), [0, 15, 40], is_causal=True),
        scheduler=scheduler, num_workers=2,
    )  # fmt: skip
    expected = hw.flash_attention(*given, score_mod=lambda score, b, h, q, k: score + 0.1 * q - 0.2 * k)
    np.testing.assert_allclose(found, expected, rtol=1e-11, atol=1e-13)
    for one, several in zip(hw.attention_statistics(q, k, mask=mask)[:3], statistics, strict=True):
        np.testing.assert_allclose(several, one, rtol=1e-11, atol=1e-13)
    expected = hw.flash_attention_backward(output, q, k, v, output, lse, mask=mask)
    for one, several in zip(expected, gradients, strict=True):
        np.testing.assert_allclose(several, one, rtol=1e-11, atol=1e-13)
    expected = hw.varlen_attention(*packed, [0, 15, 40], is_causal=True)
    np.testing.assert_allclose(sequences, expected, rtol=1e-11, atol=1e-13)


def test_a_worker_of_a_cluster_is_killed() -> None:
    """Its parts are computed again by the others, and the result is that of one call."""
    distributed: Any = pytest.importorskip("distributed", reason="the package distributed is not installed")
    given = arrays()
    expected = hw.flash_attention(*given, is_causal=True)
    with (
        distributed.LocalCluster(n_workers=2, threads_per_worker=1, dashboard_address=None) as cluster,
        distributed.Client(cluster) as client,
    ):
        slow = [a.map_blocks(_slowly, dtype=a.dtype) for a in chunked(given)]
        future = client.compute(adapter.flash_attention(*slow, is_causal=True))
        end = time.monotonic() + 60
        while not any(client.has_what().values()):
            assert time.monotonic() < end, "no worker computes"
            time.sleep(0.01)
        client.run(_die, workers=[next(iter(client.has_what()))], wait=False, nanny=False, on_error="ignore")
        np.testing.assert_allclose(future.result(timeout=60), expected, rtol=1e-12, atol=1e-13)


def _slowly(block: Any) -> Any:
    time.sleep(0.02)
    return block


def _die() -> None:
    os._exit(1)
