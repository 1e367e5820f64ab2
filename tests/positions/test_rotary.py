"""RotaryPositionalEmbedding: scaled and partial rotation, offsets, tables, copies, threads."""

from __future__ import annotations

import copy
import itertools
import pickle
import threading
import tracemalloc
from typing import Any

import numpy as np
import pytest

import headwise as hw
import oracle
from headwise._positions.position_table import PositionTable
from headwise.rope import rope_parameters
from positions.rope_scalings import DYNAMIC, PROPORTIONAL, SMALL, longrope
from support import LAYOUTS, assert_close, dtype_named, normal

pytestmark = pytest.mark.above_operations

once = pytest.mark.single_implementation
pairing = pytest.mark.parametrize("interleaved", [False, True], ids=["half-split", "interleaved"])


def turned(x: np.ndarray, positions: Any, inv_freq: np.ndarray, factor: float, interleaved: bool) -> np.ndarray:
    """The rotation in float64, of the features that have frequencies."""
    angles = np.multiply.outer(np.asarray(positions, np.float64), inv_freq)
    if angles.ndim == 3 and x.ndim == 4:
        angles = angles[:, None]
    width = 2 * len(inv_freq)
    answer = oracle.double(x).copy()
    answer[..., :width] = oracle.rope(x[..., :width], factor * np.cos(angles), factor * np.sin(angles), interleaved)
    return answer


LAYERS: dict[str, dict[str, Any]] = {
    **{name: {"scaling": scaling} for name, scaling in SMALL.items()},
    "proportional": {"scaling": PROPORTIONAL},
    "partial": {"rotary_dim": 6},
    "partial-yarn": {"scaling": SMALL["yarn"], "rotary_dim": 10},
    "partial-factor": {"scaling": {**DYNAMIC, "partial_rotary_factor": 0.25}},
    "partial-both": {"scaling": {"partial_rotary_factor": 0.5}, "rotary_dim": 8},
}


def layer(name: str, **more: Any) -> hw.RotaryPositionalEmbedding:
    return hw.RotaryPositionalEmbedding(16, max_position_embeddings=32, **LAYERS[name], **more)


def parameters(name: str, length: int) -> tuple[np.ndarray, float]:
    given = LAYERS[name]
    scaling = dict(given.get("scaling", {}))
    dim = given.get("rotary_dim", 16)
    if "rotary_dim" in given:
        scaling.pop("partial_rotary_factor", None)
    return rope_parameters(dim, scaling=scaling, seq_len=length, max_position_embeddings=32)


@pairing
@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32", "float64"])
@pytest.mark.parametrize("name", LAYERS)
def test_rotation_equals_the_formula(name: str, dtype: str, interleaved: bool) -> None:
    rope = layer(name, interleaved=interleaved)
    for shape in ((7, 16), (3, 40, 16), (2, 3, 33, 16), (2, 3, 1, 16)):
        x = normal(shape).astype(dtype_named(dtype))
        expected = turned(x, np.arange(shape[-2]), *parameters(name, shape[-2]), interleaved)
        got = rope(x)
        assert got.dtype == x.dtype
        assert_close(got, expected, 2.0)
        width = rope.rotary_dim
        assert width == 2 * len(rope.inv_freq)
        np.testing.assert_array_equal(got[..., width:].view(np.uint8), x[..., width:].copy().view(np.uint8))


@pairing
@pytest.mark.parametrize("name", LAYERS)
def test_norms_and_distances(name: str, interleaved: bool) -> None:
    """Norms grow by the attention factor; scores depend on the distance alone, for one set of frequencies."""
    rope = layer(name, interleaved=interleaved)
    width, factor = rope.rotary_dim, rope.attention_factor
    query, key = (np.tile(normal((16,), seed, np.float64), (50, 1)) for seed in (1, 2))
    queries, keys = rope(query), rope(key)
    for part in (slice(0, width), slice(width, 16)):
        norms = np.linalg.norm(queries[:, part], axis=-1)
        scale = factor if part.start == 0 else 1.0
        np.testing.assert_allclose(norms, scale * np.linalg.norm(query[:, part], axis=-1), rtol=1e-13)
    scores = queries @ keys.T
    for distance in (-40, -3, 0, 1, 49):
        diagonal = np.diagonal(scores, distance)
        np.testing.assert_allclose(diagonal, diagonal[0], rtol=0, atol=1e-11)
    assert np.ptp(scores[0]) > 1e-3


@pytest.mark.parametrize("name", LAYERS)
@pytest.mark.parametrize("offset", [0, 1, 31, 60, 5000, -3])
def test_offset_equals_positions(name: str, offset: int) -> None:
    """Offsets and positions give equal results, in float64 those of the formula."""
    rope = layer(name, max_len=8)
    for seq in (1, 2, 9):
        x = normal((2, 3, seq, 16), dtype=np.float64)
        where = np.arange(offset, offset + seq)
        expected = turned(x, where, *parameters(name, max(0, offset + seq)), False)
        np.testing.assert_allclose(rope(x, offset=offset), expected, rtol=0, atol=1e-10)
        for positions in (where, where[None], np.tile(where, (2, 1)), where.tolist(), where.astype(np.int32)):
            np.testing.assert_allclose(rope(x, positions), expected, rtol=0, atol=1e-10)
            np.testing.assert_allclose(rope.forward(x[:, 0], positions), expected[:, 0], rtol=0, atol=1e-10)
        np.testing.assert_allclose(rope(x[0, 0], offset=np.int64(offset)), expected[0, 0], rtol=0, atol=1e-10)
        reversed_ = rope(x[:, :, ::-1], where[::-1])
        np.testing.assert_allclose(reversed_, expected[:, :, ::-1], rtol=0, atol=1e-10)


def test_positions_of_each_sequence() -> None:
    """A step of a batch of sequences of different lengths; the longest determines the frequencies."""
    for name in LAYERS:
        rope, x = layer(name), normal((3, 2, 1, 16), dtype=np.float64)
        for positions in ([[3], [0], [31]], [[3], [40], [7]]):
            expected = turned(x, positions, *parameters(name, int(np.max(positions)) + 1), False)
            np.testing.assert_allclose(rope(x, positions), expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize("position", [10**5 + 1, 10**6, 10**6 + 1, 10**9])
def test_far_positions_are_exact(position: int) -> None:
    """Float32 angles would be wrong by 0.03 at 10^6. The reference is exact."""
    rope = hw.RotaryPositionalEmbedding(64)
    x = normal((1, 64), dtype=np.float64)
    expected = oracle.rope(x, *oracle.rope_tables([position], 64))
    bound = 4e-16 * position + 1e-15
    for got in (rope(x, offset=position), rope(x, [position]), rope(np.tile(x, (2, 1)), [0, position])[1:]):
        np.testing.assert_allclose(got, expected, rtol=0, atol=bound)
        got32 = rope(x.astype(np.float32), offset=position)
        np.testing.assert_allclose(got32, expected, rtol=0, atol=1e-6 + bound)
    difference = rope(x, offset=position) @ rope(x, offset=position - 5).T
    np.testing.assert_allclose(difference, rope(x, offset=5) @ x.T, rtol=0, atol=64 * bound)


@pytest.mark.parametrize("name", ["dynamic", "longrope", "partial-factor"])
def test_frequencies_follow_the_length_of_each_call(name: str) -> None:
    """Earlier calls have no influence."""
    rope = layer(name, max_len=4)
    x = normal((100, 16), dtype=np.float64)
    for length in (5, 40, 33, 100, 32, 100, 2, 41, 40, 5):
        expected = turned(x[:length], np.arange(length), *parameters(name, length), False)
        for dtype in (np.float32, np.float64, np.float32):
            assert_close(rope(x[:length].astype(dtype)), expected.astype(dtype), 2.0)
            for position in (length, length, length - 1, length + 7):
                step = turned(x[:1], [position], *parameters(name, position + 1), False)
                assert_close(rope(x[:1].astype(dtype), offset=position), step.astype(dtype), 2.0)
    # Attributes belong to the trained length.
    trained, _ = parameters(name, 32)
    np.testing.assert_array_equal(rope.inv_freq, trained)


def test_cached_tables_rotate() -> None:
    rope = layer("yarn", max_len=6)
    angles = np.multiply.outer(np.arange(6), rope.inv_freq)
    assert rope.cos_cached.shape == rope.sin_cached.shape == (6, 8)
    np.testing.assert_allclose(rope.cos_cached, rope.attention_factor * np.cos(angles), rtol=0, atol=1e-15)
    np.testing.assert_allclose(rope.sin_cached, rope.attention_factor * np.sin(angles), rtol=0, atol=1e-15)
    rope(normal((1, 16)), offset=20)
    assert len(rope.cos_cached) >= 21
    for array in (rope.cos_cached, rope.sin_cached, rope.inv_freq):
        with pytest.raises(ValueError, match="read-only"):
            array[:] = 0


def test_far_steps_allocate_no_table() -> None:
    """Decoding at a length with its own frequencies, beyond the limit of a table."""
    x = normal((1, 16))
    for rope, offset in ((layer("dynamic"), 50_000), (layer("longrope"), 10**8), (layer("default"), 10**8)):
        rope(x)
        tracemalloc.start()
        rope(x, offset=offset)
        rope(x, [offset])
        rope(np.tile(x, (3, 1)), [offset, 0, 7])
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert peak < 100_000
        assert len(rope.cos_cached) == 2048
    assert PositionTable.max_bytes < 10**8


@pairing
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("name", ["yarn", "partial"])
def test_layouts_and_out(name: str, layout: str, interleaved: bool) -> None:
    rope = layer(name, interleaved=interleaved)
    plain = normal((2, 3, 9, 16))
    expected = turned(plain, np.arange(4, 13), *parameters(name, 13), interleaved)
    x = LAYOUTS[layout](plain.copy())
    assert_close(rope(x, offset=4), expected, 2.0)
    np.testing.assert_array_equal(x, plain)  # the input is not written
    out = np.full_like(plain, np.nan)
    assert rope(x, offset=4, out=out) is out
    assert_close(out, expected, 2.0)
    if x.flags.writeable and x.flags.aligned and x.dtype.isnative:
        assert rope(x, offset=4, out=x) is x
        assert_close(x, expected, 2.0)
        strided = LAYOUTS[layout](np.zeros_like(plain))
        assert rope(plain, np.arange(4, 13), out=strided) is strided
        assert_close(strided, expected, 2.0)


@pytest.mark.parametrize("name", ["default", "partial"])
def test_in_place_in_a_joint_projection(name: str) -> None:
    """Queries and keys as views of one projection: the values beside them are not changed."""
    joint = normal((2, 5, 3 * 2 * 16))
    before = joint.copy()
    query, key, value = joint.reshape(2, 5, 3, 2, 16).transpose(2, 0, 3, 1, 4)
    rope = layer(name)
    expected = [rope(part.copy(), offset=7) for part in (query, key)]
    for part in (query, key):
        assert rope.forward(part, offset=7, out=part) is part
    np.testing.assert_array_equal(query, expected[0])
    np.testing.assert_array_equal(key, expected[1])
    np.testing.assert_array_equal(value, before.reshape(2, 5, 3, 2, 16).transpose(2, 0, 3, 1, 4)[2])


def test_partial_rotation_keeps_the_other_features() -> None:
    """Payloads of NaN, infinities and subnormal numbers of the other features keep their bits."""
    special = np.array([np.nan, -np.inf, 1e-45, -0.0, 3e38], np.float32)
    special[:1].view(np.uint32)[:] |= 0x1234
    x = np.concatenate([normal((3, 6)), np.tile(special, (3, 2))], axis=1)
    rope = layer("partial")
    for out in (None, np.empty_like(x), x.copy()):
        got = rope(x if out is None or out[0, 0] != x[0, 0] else out, out=out)
        np.testing.assert_array_equal(got[:, 6:].view(np.uint32), x[:, 6:].view(np.uint32))
        assert np.isfinite(got[:, :6]).all()
    integers = np.arange(32).reshape(2, 16)
    assert rope(integers).dtype == np.float64
    np.testing.assert_array_equal(rope(integers)[:, 6:], integers[:, 6:])


@pytest.mark.parametrize("name", LAYERS)
@pytest.mark.parametrize("shape", [(0, 16), (0, 3, 16), (2, 0, 3, 16), (2, 3, 0, 16)])
def test_empty(name: str, shape: tuple[int, ...]) -> None:
    x = np.zeros(shape, np.float32)
    assert layer(name)(x).shape == layer(name)(x, offset=100).shape == shape
    assert layer(name)(x, np.arange(shape[-2])).shape == shape


@pairing
@pytest.mark.parametrize("name", ["default", "partial"])
def test_rotate_half(name: str, interleaved: bool) -> None:
    rope, x = layer(name, interleaved=interleaved), normal((2, 5, 16), dtype=np.float64)
    cos, sin = np.ones((5, 16)), np.zeros((5, 16))
    for full, table in ((cos, rope.cos_cached[:5]), (sin, rope.sin_cached[:5])):
        full[:, : rope.rotary_dim] = np.repeat(table, 2, axis=-1) if interleaved else np.tile(table, 2)
    np.testing.assert_allclose(x * cos + rope.rotate_half(x) * sin, rope(x), rtol=0, atol=1e-14)


@once
@pytest.mark.parametrize("name", LAYERS)
def test_copies(name: str) -> None:
    rope = layer(name, max_len=5)
    x = normal((50, 16))
    rope(x), rope(x[:, :], offset=3)
    for twin in (copy.copy(rope), copy.deepcopy(rope), pickle.loads(pickle.dumps(rope))):
        for offset in (0, 3, 100, 0):
            np.testing.assert_array_equal(twin(x, offset=offset), rope(x, offset=offset))
        assert not twin.cos_cached.flags.writeable and not twin.inv_freq.flags.writeable
    assert len(pickle.dumps(rope)) < 4000  # tables are not pickled


@pytest.mark.parametrize("name", ["default", "dynamic", "longrope", "partial-yarn"])
def test_from_many_threads(name: str) -> None:
    """Threads that grow tables and change frequencies at once have the results that each has alone."""
    lengths = [3, 40, 33, 90, 20, 31, 64, 5]
    x = {dtype: normal((100, 16), dtype=dtype) for dtype in (np.float32, np.float64)}

    def calls(rope: hw.RotaryPositionalEmbedding, dtype: type, length: int) -> list[np.ndarray]:
        """A sequence, a step after it, and a step of two sequences of different lengths."""
        rows = x[dtype]
        step, steps = rope(rows[:1], offset=length), rope(rows[:2, None], [[length], [2]])
        return [rope(rows[:length]), step, steps, rope(rows[:1], [length])]

    expected = {key: calls(layer(name), *key) for key in itertools.product((np.float32, np.float64), lengths)}
    rope = layer(name, max_len=2)
    wrong: list[tuple[type, int]] = []
    start = threading.Barrier(len(lengths))

    def work(seed: int) -> None:
        start.wait()
        for turn in range(30):
            key = (np.float32, np.float64)[(seed + turn // 2) % 2], lengths[(seed + turn) % len(lengths)]
            if not all(map(np.array_equal, calls(rope, *key), expected[key])):
                wrong.append(key)

    threads = [threading.Thread(target=work, args=(seed,)) for seed in range(len(lengths))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


@once
def test_inputs_are_not_written() -> None:
    scaling = longrope(4, factor=4.0)
    before = copy.deepcopy(scaling)
    rope = hw.RotaryPositionalEmbedding(8, scaling=scaling)
    scaling["long_factor"][:] = [1e9] * 4
    scaling["factor"] = 1e9
    fresh = hw.RotaryPositionalEmbedding(8, scaling=before)
    x = normal((4100, 8))
    np.testing.assert_array_equal(rope(x), fresh(x))


# --- errors ---


@once
@pytest.mark.parametrize(
    ("error", "message", "arguments"),
    [
        (ValueError, "^d_model: 7, expected an even number", {"d_model": 7}),
        (ValueError, "^rotary_dim: 3, expected an even number", {"rotary_dim": 3}),
        (ValueError, "^rotary_dim: 10, expected an even number up to d_model = 8", {"rotary_dim": 10}),
        (ValueError, "^rotary_dim: 0", {"rotary_dim": 0}),
        (TypeError, "^rotary_dim: ", {"rotary_dim": 4.0}),
        (ValueError, "^rotary_dim: 4, expected 2 as by", {"rotary_dim": 4, "scaling": {"partial_rotary_factor": 0.25}}),
        (ValueError, "^rotary_dim: 4, expected None with", {"rotary_dim": 4, "scaling": PROPORTIONAL}),
        (TypeError, "^interleaved: ", {"interleaved": "yes"}),
        (ValueError, "^base: -2.0", {"base": -2}),
    ],
)
def test_bad_construction(error: type[Exception], message: str, arguments: dict[str, Any]) -> None:
    with pytest.raises(error, match=message):
        hw.RotaryPositionalEmbedding(**{"d_model": 8, **arguments})
    assert hw.RotaryPositionalEmbedding(7, rotary_dim=4)(np.ones((2, 7))).shape == (2, 7)


@pytest.mark.parametrize(
    ("error", "message", "arguments"),
    [
        (ValueError, "^x: shape", {"x": np.ones((2, 6))}),
        (ValueError, "^x: shape", {"x": np.ones(8)}),
        (ValueError, "^x: shape", {"x": np.ones((1, 1, 1, 2, 8))}),
        (ValueError, "^offset: 3, expected 0 if positions are given", {"offset": 3, "positions": [0, 1]}),
        (TypeError, "^offset: ", {"offset": 1.0}),
        (TypeError, "^offset: ", {"offset": None}),
        (ValueError, "^offset: ", {"offset": 2**60}),
        (ValueError, "^positions: shape", {"positions": [0, 1, 2]}),
        (TypeError, "^positions: ", {"positions": [0.0, 1.0]}),
        (TypeError, "^positions: ", {"positions": [True, False]}),
        (ValueError, "^out: shape", {"out": np.ones((2, 6))}),
        (TypeError, "^out: dtype float32", {"out": np.ones((2, 8), np.float32)}),
        (TypeError, "^out: list", {"out": []}),
    ],
)
def test_bad_calls(error: type[Exception], message: str, arguments: dict[str, Any]) -> None:
    out = arguments.get("out")
    before = None if out is None else np.copy(out)
    with pytest.raises(error, match=message):
        hw.RotaryPositionalEmbedding(8).forward(**{"x": np.ones((2, 8)), **arguments})
    if out is not None:
        np.testing.assert_array_equal(out, before)


def test_out_must_not_overlap_the_input() -> None:
    memory = np.ones((3, 8))
    with pytest.raises(ValueError, match=r"^out: shares memory with x"):
        hw.RotaryPositionalEmbedding(8)(memory[:2], out=memory[1:])
