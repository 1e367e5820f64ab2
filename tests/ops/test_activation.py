"""gelu, silu, swiglu and geglu against the oracle, and at the ends of the range."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

import headwise as hw
import oracle
from support import LAYOUTS, assert_close, assert_rounded_once, dtype_named, normal

Array = np.ndarray[Any, Any]


def gelu_tanh(x: Any, **keywords: Any) -> Array:
    return hw.gelu(x, approximate="tanh", **keywords)


FUNCTIONS: dict[str, tuple[Callable[..., Array], Callable[..., Array]]] = {
    "gelu": (hw.gelu, oracle.gelu),
    "gelu_tanh": (gelu_tanh, lambda x: oracle.gelu(x, "tanh")),
    "silu": (hw.silu, oracle.silu),
}
every = pytest.mark.parametrize("name", FUNCTIONS)
FLOATS = ["float32", "float64"]


@every
@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("n", [*range(1, 70), 511, 512, 513, 5000])
def test_width(n: int, dtype: str, name: str) -> None:
    function, expected = FUNCTIONS[name]
    x = 4 * normal((n,), 1, dtype)
    assert_close(function(x), expected(x), factor=2)


#: gelu, gelu(approximate="tanh") and silu of x, in 40 digits by mpmath.
GOLDEN = {
    -0.015625: (-0.0077151059453142235, -0.007715105964926623, -0.007751466085483117),
    -0.5: (-0.15426876936299344, -0.15428599017485609, -0.18877033439907273),
    -1: (-0.15865525393145705, -0.1588080093917233, -0.2689414213699951),
    -2: (-0.04550026389635842, -0.04540230591222498, -0.23840584404423512),
    -3.5: (-0.0008142017766243376, -0.0006161976553736633, -0.10259280762974711),
    -5: (-1.4332578593959695e-06, -2.291796196629506e-07, -0.03346425462142428),
    -6.25: (-1.2826646407618368e-09, -7.920355792295742e-12, -0.012042091645796721),
    -8: (-4.976768459417427e-15, -3.1077829375011112e-21, -0.002682801043731825),
    -9.5: (-9.969789321594476e-21, -6.678928766783882e-33, -0.0007110391613508067),
    -10.5: (-4.534956633699692e-25, -7.42490055607904e-43, -0.00028912475670312646),
    -13: (-7.952313719414843e-38, -1.0511517767632533e-76, -2.938421587274647e-05),
    -13.75: (-3.501404934464191e-42, -1.1214666581565862e-89, -1.468091446310702e-05),
    -20: (-5.507248237212468e-88, -3.3754509563109673e-261, -4.122307236380407e-08),
    -30: (-1.472014178144456e-196, -0.0, -2.8072868906517896e-12),
    -37.5: (-1.7270073785932332e-306, -0.0, -1.9408331271757007e-15),
    -80: (-0.0, -0.0, -1.4438811102763322e-33),
    -100: (-0.0, -0.0, -3.720075976020836e-42),
    -700: (-0.0, -0.0, -6.90177358063184e-302),
}


@every
@pytest.mark.parametrize("dtype", FLOATS)
def test_relative_error_is_small_for_negative_numbers(dtype: str, name: str) -> None:
    """``x * (1 + erf(x / sqrt(2))) / 2`` would have no correct digit from -6 on in float32, from -9 on in float64.
    The tanh form multiplies the rounding error of the argument y of its exponential by ``abs(y)``."""
    info = np.finfo(dtype)
    x = np.array(list(GOLDEN), dtype)
    expected = np.array([row[list(FUNCTIONS).index(name)] for row in GOLDEN.values()])
    y = 1.6 * np.abs(x + 0.0447 * x**3) if name == "gelu_tanh" else 0
    got = FUNCTIONS[name][0](x).astype(np.float64)
    bound = (6 + y) * float(info.eps) * np.abs(expected) + float(info.smallest_subnormal)
    assert (np.abs(got - expected) <= bound).all(), np.abs(got - expected) / bound


@every
@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32", "float64"])
def test_ends(dtype: str, name: str) -> None:
    kind = dtype_named(dtype)
    large = {"float16": 6e4, "float64": 1e308}.get(dtype, 1e38)
    x = np.array([np.inf, -np.inf, np.nan, 0.0, -0.0, large, -large, 1e-30, -1e-30]).astype(kind)
    got = oracle.double(FUNCTIONS[name][0](x))
    tiny = oracle.double(x[-2:]) / 2
    np.testing.assert_array_equal(got, [np.inf, -0.0, np.nan, 0.0, -0.0, oracle.double(x[5]), -0.0, *tiny])
    np.testing.assert_array_equal(np.signbit(got[[1, 3, 4, 6]]), [True, False, True, True])


@every
@pytest.mark.parametrize("layout", LAYOUTS)
def test_layout(layout: str, name: str) -> None:
    function, expected = FUNCTIONS[name]
    x = normal((4, 6, 10), 1)
    assert_close(function(LAYOUTS[layout](x)), expected(x), factor=2)


@every
@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_16bit_is_rounded_once(dtype: str, name: str) -> None:
    """All numbers of the dtype."""
    function, expected = FUNCTIONS[name]
    x = np.arange(1 << 16, dtype=np.uint16).view(dtype_named(dtype))
    with np.errstate(over="ignore", invalid="ignore"):
        assert_rounded_once(function(x), expected(x), rtol=1e-5)


def test_gelu_of_0_axes_and_integers() -> None:
    assert hw.gelu(2.0).shape == () and hw.gelu(2.0) == hw.gelu([2.0])[0]
    assert hw.gelu(np.array([1, 2])).dtype == np.float64
    assert hw.silu(np.zeros((3, 0, 2))).shape == (3, 0, 2)


@pytest.mark.parametrize("function", [hw.swiglu, hw.geglu])
@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32", "float64"])
@pytest.mark.parametrize("n", [1, 7, 64, 700])
def test_halves_of_a_joined_projection(n: int, dtype: str, function: Callable[..., Array]) -> None:
    joined = normal((2, 5, 2 * n)).astype(dtype_named(dtype))
    gate, up = np.split(joined, 2, axis=-1)
    got = function(gate, up)
    assert_close(got, getattr(oracle, function.__name__)(gate, up), factor=2)
    np.testing.assert_array_equal(oracle.double(function(gate.copy(), up.copy())), oracle.double(got))
    out = gate.copy()
    assert function(out, up, out=out) is out
    np.testing.assert_array_equal(oracle.double(out), oracle.double(got))


def test_gated_forms_promote() -> None:
    gate, up = normal((3, 4)), normal((3, 4), 1, np.float64)
    assert hw.swiglu(gate, up).dtype == np.float64
    assert_close(hw.swiglu(gate, up), oracle.swiglu(gate.astype(np.float64), up))


def test_gated_forms_are_ieee_products() -> None:
    gate = np.array([-np.inf, -np.inf, np.inf, np.nan, 0.0])
    up = np.array([np.inf, 2.0, 0.0, 0.0, np.inf])
    np.testing.assert_array_equal(hw.swiglu(gate, up), [np.nan, 0.0, np.nan, np.nan, np.nan])


def test_out_may_not_be_up() -> None:
    gate, up = normal((3, 4)), normal((3, 4), 1)
    with pytest.raises(ValueError, match="out: is up itself"):
        hw.swiglu(gate, up, out=up)
