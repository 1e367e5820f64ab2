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


def test_other_labels_are_refused() -> None:
    query, key, _ = arrays()
    query, other = query.assign_coords(head=["a", "b", "c"]), key.assign_coords(head=["a", "c", "b"])
    with pytest.raises(ValueError, match="head"):
        adapter.flash_attention(query, other, other, **NAMES)
    with pytest.raises(ValueError, match="head"):
        adapter.flash_attention(query, key, key, **NAMES, heads="head", sinks=other[:, 0, 0])


def test_dask_chunks_stay_chunks() -> None:
    pytest.importorskip("dask.array", reason="the package dask is not installed")
    given = arrays()
    chunks = [given[0].chunk(time=2), given[1].chunk(past=3, head=1), given[2].chunk(past=4)]
    found = adapter.flash_attention(*chunks, **NAMES, values="output", is_causal=True)
    assert found.chunks is not None and found.chunks[1] == (2, 2, 1)
    np.testing.assert_allclose(found.values, expected(*given, is_causal=True), rtol=1e-12, atol=1e-13)


def lead(x: Any, *dims: str) -> Any:
    return x.transpose("batch", "head", *dims).values


def batched() -> tuple[Any, Any, Any]:
    """Arrays of which the query has no batch."""
    query, key, value = arrays()
    key = key + xarray.DataArray(normal((2,), 5, np.float64), dims="batch")
    return query, key, value.expand_dims(head=3)


SLOPES, SINKS = (xarray.DataArray(normal((3,), seed, np.float64), dims="head") for seed in (6, 7))
MASK = xarray.DataArray(normal((7, 2), 8) > -1, dims=("past", "batch"))
BIAS = xarray.DataArray(normal((5, 3, 7), 9, np.float64), dims=("time", "head", "past"))


@pytest.mark.parametrize("chunked", [False, True])
def test_masks_biases_and_heads_by_name(chunked: bool) -> None:
    given = query, key, value = batched()
    q = np.broadcast_to(query.transpose("head", "time", "channel").values, (2, 3, 5, 8))
    k = lead(key, "past", "channel")
    v = np.broadcast_to(value.transpose("head", "past", "output").values, (2, 3, 7, 4))
    expected, expected_lse = hw.flash_attention(
        q, k, v, MASK.values.T[:, None, None], bias=BIAS.transpose("head", "time", "past").values,
        alibi_slopes=SLOPES.values, sinks=SINKS.values, return_lse=True,
    )  # fmt: skip
    if chunked:
        pytest.importorskip("dask.array", reason="the package dask is not installed")
        given = query.chunk(time=2), key.chunk(past=3), value.chunk(past=4)
    output, lse = adapter.flash_attention(
        *given, **NAMES, values="output", heads="head", mask=MASK, bias=BIAS, alibi_slopes=SLOPES, sinks=SINKS,
        return_lse=True,
    )  # fmt: skip
    assert (output.chunks is not None) == chunked
    np.testing.assert_allclose(lead(output, "time", "output"), expected, rtol=1e-12, atol=1e-13)
    np.testing.assert_allclose(lead(lse, "time"), expected_lse, rtol=1e-12, atol=1e-13)


@pytest.mark.parametrize("chunked", [False, True])
@pytest.mark.parametrize("heads", [None, "head"])
def test_a_dimension_that_the_mask_alone_has(heads: str | None, chunked: bool) -> None:
    given = query, key, value = arrays()
    masks = xarray.DataArray(
        normal((2, 5, 7), 3) > -1, dims=("member", "time", "past"), coords={"member": ["first", "second"]}
    )
    if chunked:
        pytest.importorskip("dask.array", reason="the package dask is not installed")
        given = query.chunk(time=2), key.chunk(past=3), value.chunk(past=4)
    found = adapter.flash_attention(*given, **NAMES, values="output", heads=heads, mask=masks)
    assert found.dims == ("member", "head", "time", "output")
    for member in ("first", "second"):
        alone = adapter.flash_attention(query, key, value, **NAMES, values="output", mask=masks.sel(member=member))
        np.testing.assert_allclose(found.sel(member=member).values, alone.transpose(*found.dims[1:]).values, atol=1e-13)


@pytest.mark.parametrize("chunked", [False, True])
def test_statistics(chunked: bool) -> None:
    query, key, _ = arrays()
    expected = hw.attention_statistics(
        query.transpose("head", "time", "channel").values[None], key.values[None], k=2, block_size=2,
        sinks=SINKS.values, which=("lse", "key_mass", "entropy", "max_weight", "top_k", "block_mass"),
    )  # fmt: skip
    given = query, key
    if chunked:
        pytest.importorskip("dask.array", reason="the package dask is not installed")
        given = query.chunk(time=2), key.chunk(past=4)
    found = adapter.attention_statistics(
        *given, **NAMES, k=2, block_size=2, heads="head", sinks=SINKS,
        which=("lse", "key_mass", "entropy", "max_weight", "top_k", "block_mass"),
    )  # fmt: skip
    assert dict(found.sizes) == {"head": 3, "past": 7, "time": 5, "top": 2, "query_block": 3, "key_block": 4}
    fields = expected._asdict()
    fields["top_weights"], fields["top_indices"] = fields.pop("top_k")
    for name, numbers in fields.items():
        assert found[name].dims[0] == "head"
        np.testing.assert_allclose(found[name].values, numbers[0], rtol=1e-11, err_msg=name)
    assert list(adapter.attention_statistics(*given, **NAMES, which="entropy")) == ["entropy"]


def test_bad_arguments_of_heads_and_scores() -> None:
    given = arrays()
    with pytest.raises(ValueError, match="sinks: given without heads="):
        adapter.flash_attention(*given, **NAMES, values="output", sinks=SINKS)
    with pytest.raises(ValueError, match="heads: 'layer', expected a dimension of query, key or value: head"):
        adapter.flash_attention(*given, **NAMES, values="output", heads="layer")
    with pytest.raises(ValueError, match=r"mask: dimensions \('head',\), expected 'past' among them"):
        adapter.flash_attention(*given, **NAMES, values="output", mask=SINKS > 0)
    with pytest.raises(TypeError, match=r"bias: ndarray, expected an xarray\.DataArray"):
        adapter.flash_attention(*given, **NAMES, values="output", bias=BIAS.values)
    with pytest.raises(ValueError, match="which: 'mass'"):
        adapter.attention_statistics(*given[:2], **NAMES, which="mass")


def test_bad_arguments() -> None:
    query, key, value = arrays()
    with pytest.raises(ValueError, match="keys: 'time', the name of the queries as well"):
        adapter.flash_attention(query, key, value, queries="time", keys="time", features="channel")
    with pytest.raises(ValueError, match=r"key: dimensions .* expected 'past'"):
        adapter.flash_attention(query, query, value, **NAMES)
    with pytest.raises(TypeError, match=r"value: ndarray, expected an xarray\.DataArray"):
        adapter.flash_attention(query, key, value.values, **NAMES)
    with pytest.raises(TypeError, match="dropout_rate: no option of DataArrays"):
        adapter.flash_attention(query, key, key, **NAMES, dropout_rate=0.5)
