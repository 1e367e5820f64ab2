"""headwise.integrations.xarray: dimensions by name, in any order, broadcast, and chunked by Dask."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import headwise as hw
from support import normal

xarray: Any = pytest.importorskip("xarray", reason="the package xarray is not installed")
adapter: Any = pytest.importorskip("headwise.integrations.xarray")

pytestmark = pytest.mark.above_operations

NAMES = {"queries": "time", "keys": "past", "features": "channel"}


def arrays() -> tuple[Any, Any, Any]:
    query = xarray.DataArray(normal((5, 3, 8), 0, np.float64), dims=("time", "head", "channel"))
    key = xarray.DataArray(normal((3, 7, 8), 1, np.float64), dims=("head", "past", "channel"))
    value = xarray.DataArray(normal((7, 4), 2, np.float64), dims=("past", "output"))  # the same for all heads
    return query, key, value


def expected(query: Any, key: Any, value: Any, **options: Any) -> Any:
    v = np.broadcast_to(value.values, (3, 7, 4))
    return hw.flash_attention(query.transpose("head", "time", "channel").values, key.values, v, **options)


@pytest.mark.parametrize("options", [{}, {"is_causal": True, "causal_alignment": "lower_right"}, {"window_size": 2}])
def test_dimensions_by_name(options: dict[str, Any]) -> None:
    given = arrays()
    found = adapter.flash_attention(*given, **NAMES, values="output", **options)
    assert found.dims == ("head", "time", "output")
    np.testing.assert_array_equal(found.values, expected(*given, **options))


def test_coordinates_are_kept() -> None:
    query, key, _ = arrays()
    query = query.assign_coords(time=np.arange(5) * 10, head=["a", "b", "c"])
    found = adapter.flash_attention(query, key, key, **NAMES)
    assert list(found.coords["time"]) == [0, 10, 20, 30, 40] and list(found.coords["head"]) == ["a", "b", "c"]


def test_dask_chunks_stay_chunks() -> None:
    pytest.importorskip("dask.array", reason="the package dask is not installed")
    given = arrays()
    chunks = [given[0].chunk(time=2), given[1].chunk(past=3, head=1), given[2].chunk(past=4)]
    found = adapter.flash_attention(*chunks, **NAMES, values="output", is_causal=True)
    assert found.chunks is not None and found.chunks[1] == (2, 2, 1)
    np.testing.assert_allclose(found.values, expected(*given, is_causal=True), rtol=1e-12, atol=1e-13)


def test_bad_arguments() -> None:
    query, key, value = arrays()
    with pytest.raises(ValueError, match="keys: 'time', the name of the queries as well"):
        adapter.flash_attention(query, key, value, queries="time", keys="time", features="channel")
    with pytest.raises(ValueError, match=r"key: dimensions .* expected 'past'"):
        adapter.flash_attention(query, query, value, **NAMES)
    with pytest.raises(TypeError, match=r"value: ndarray, expected an xarray\.DataArray"):
        adapter.flash_attention(query, key, value.values, **NAMES)
    with pytest.raises(TypeError, match="sinks: no option of DataArrays"):
        adapter.flash_attention(query, key, key, **NAMES, sinks=[1.0])
