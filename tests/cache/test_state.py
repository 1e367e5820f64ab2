"""The state of a cache: pickles that were changed, and threads that change one cache at once."""

from __future__ import annotations

import pickle
import pickletools
import threading
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

import headwise as hw
from implementations import PROFILE
from support import normal

pytestmark = pytest.mark.above_operations


def filled(ring: bool, new: int = 5) -> hw.KVCache:
    cache = hw.KVCache(2, 1, 4 if ring else 8, 4, ring=ring)
    cache.append(normal((2, 1, new, 4)), normal((2, 1, new, 4), 1))
    return cache


def restored(state: Any) -> hw.KVCache:
    cache = hw.KVCache.__new__(hw.KVCache)
    cache.__setstate__(state)
    return cache


ROWS = np.zeros((1, 5, 4), np.float32)
TAMPERED: dict[str, tuple[dict[str, Any], str]] = {
    "no batch_size": ({"batch_size": None}, "batch_size"),
    "capacity 0": ({"capacity": 0}, "capacity: 0, expected at least 1"),
    "capacity 3": ({"capacity": 3}, r"state: keys\[0\]: shape \(1, 5, 4\), expected"),
    "head_dim": ({"head_dim": 5}, r"state: keys\[0\]: shape"),
    "value_dim": ({"value_dim": 3}, r"state: values\[0\]: shape"),
    "dtype": ({"dtype": np.dtype(np.float64)}, r"state: keys\[0\]: float32, expected an array of float64"),
    "batch": ({"batch_size": 3}, r"state: lengths: shape \(2,\), expected one for each sequence, \(3,\)"),
    "no rows": ({"_rows": None}, "state: None, expected lengths, keys and values"),
    "negative length": ({"_rows": ([-1, 5], [ROWS, ROWS], [ROWS, ROWS])}, r"keys\[0\]: shape \(1, 5, 4\)"),
    "length beyond the rows": ({"_rows": ([99, 5], [ROWS, ROWS], [ROWS, ROWS])}, r"keys\[0\]: shape \(1, 5, 4\)"),
    "length below the rows": ({"_rows": ([5, 2], [ROWS, ROWS], [ROWS, ROWS])}, r"keys\[1\]: shape \(1, 5, 4\)"),
    "one array": ({"_rows": ([5, 5], [ROWS], [ROWS, ROWS])}, "state: keys: list, expected a list of 2 arrays"),
    "keep_first": ({"keep_first": 1}, "keep_first: 1, expected 0 without ring=True"),
    "value_from_key": ({"value_from_key": (1, 9)}, "value_from_key: 9, expected at most 4"),
    "no values": ({"value_from_key": (0, 4)}, "expected lengths and keys"),
    "keys and values": ({"_rows": ([5, 5], [ROWS, ROWS], [ROWS, ROWS[:, :4]])}, r"values\[1\]: "),
}


@pytest.mark.single_implementation
@pytest.mark.parametrize(("changes", "message"), TAMPERED.values(), ids=TAMPERED)
def test_a_changed_state_is_refused(changes: dict[str, Any], message: str) -> None:
    state = filled(False).__getstate__() | changes
    with pytest.raises((ValueError, TypeError), match=message):
        restored(state)


@pytest.mark.single_implementation
def test_a_state_of_an_older_version() -> None:
    state = filled(True).__getstate__()
    cache = restored({name: value for name, value in state.items() if name not in ("keep_first", "value_from_key")})
    assert cache.keep_first == 0 and cache.value_from_key is None and len(cache) == 5


@pytest.mark.single_implementation
def test_a_ring_keeps_the_keys_that_the_next_query_sees() -> None:
    state = filled(True, new=90).__getstate__()
    lengths, keys, values = state["_rows"]
    assert len(restored(state | {"_rows": (lengths, [k[:, :3] for k in keys], [v[:, :3] for v in values])})) == 90
    with pytest.raises(ValueError, match="with 3 to"):
        restored(state | {"_rows": (lengths, [k[:, :2] for k in keys], [v[:, :2] for v in values])})


@pytest.mark.single_implementation
@pytest.mark.parametrize("state", [None, {}, (), {"capacity": 3}])
def test_no_state(state: Any) -> None:
    with pytest.raises(ValueError, match="expected the state of a pickled KVCache"):
        restored(state)


@pytest.mark.single_implementation
def test_attributes_have_the_types_of_a_new_cache() -> None:
    state = hw.KVCache(1, 2, 3, 4, dtype=np.float64).__getstate__()
    cache = restored(state | {"dtype": None, "capacity": np.int8(3)})  # None is the default dtype of layers
    assert cache.dtype == np.float64 and type(cache.capacity) is int
    assert repr(cache) == repr(hw.KVCache(1, 2, 3, 4, dtype=np.float64))


def memo_size(data: bytes) -> int:
    """How many objects the unpickler makes room for."""
    return max((arg for opcode, arg, _ in pickletools.genops(data) if opcode.name.endswith("PUT")), default=0)


@pytest.mark.single_implementation
@pytest.mark.parametrize("ring", [False, True])
def test_bits_of_pickles_are_refused_or_whole(ring: bool) -> None:
    """A cache that was read works: no damage of its pickle leaves lengths without rows."""
    data = pickle.dumps(filled(ring).__getstate__())
    rng = np.random.default_rng(0)
    for _ in range({"default": 50, "ci": 200}.get(PROFILE, 2000)):
        damaged = bytearray(data)
        damaged[rng.integers(len(data))] ^= 1 << rng.integers(8)
        try:
            if memo_size(bytes(damaged)) > 10**6:  # pickle would clear gigabytes first
                continue
            state = pickle.loads(bytes(damaged))
        except Exception:  # those of pickle and NumPy
            continue
        try:
            cache = restored(state)
        except (ValueError, TypeError, MemoryError):
            continue
        x = np.ones((cache.batch_size, cache.num_kv_heads, 1, cache.head_dim), cache.dtype)
        cache.reset()
        cache.extend(x, x, np.ones((*x.shape[:3], cache.value_dim), cache.dtype))


def race(work: Callable[[int], Any], threads: int = 4, rounds: int = 1) -> list[Exception]:
    """The errors of ``work(thread)``, ``rounds`` times on each of the threads, which begin together."""
    barrier, errors = threading.Barrier(threads), []

    def caller(thread: int) -> None:
        barrier.wait(timeout=60)
        for _ in range(rounds):
            try:
                work(thread)
            except Exception as error:
                errors.append(error)

    callers = [threading.Thread(target=caller, args=(thread,), daemon=True) for thread in range(threads)]
    for one in callers:
        one.start()
    for one in callers:
        one.join(timeout=300)
    assert not any(one.is_alive() for one in callers), "a caller hangs"
    return errors


ROUNDS = {"default": 25, "ci": 100}.get(PROFILE, 1000)


@pytest.mark.parametrize("ring", [False, True])
def test_threads_that_extend_one_cache(ring: bool) -> None:
    """Each call extends the cache, or says that it is for one thread at a time; no call leaves it half changed."""
    cache = hw.KVCache(1, 2, 40 if ring else 10**5, 16, ring=ring)
    x = normal((1, 2, 9, 16))
    done = [0] * 4

    def work(thread: int) -> None:
        cache.extend(x, x, x)
        done[thread] += 1

    errors = race(work, rounds=ROUNDS)
    assert {type(error) for error in errors} <= {RuntimeError}
    assert all("one thread at a time" in str(error) for error in errors)
    assert len(cache) == 9 * sum(done) and sum(done) + len(errors) == 4 * ROUNDS
    expected = np.concatenate([x] * 5, axis=2)[:, :, -40:] if ring else np.concatenate([x] * sum(done), axis=2)
    np.testing.assert_array_equal(cache.keys[:, :, -9:], expected[:, :, -9:])


def test_a_cache_says_when_it_is_used_twice() -> None:
    """While one thread is inside a change, every method of another thread that reads or changes rows refuses."""
    cache, x = filled(False), normal((2, 1, 1, 4))
    inside, leave = threading.Event(), threading.Event()

    class Slow:
        def __array__(self, dtype: Any = None, copy: Any = None) -> np.ndarray:
            inside.set()
            assert leave.wait(60)
            return x

    thread = threading.Thread(target=lambda: cache.append(Slow(), x), daemon=True)
    thread.start()
    assert inside.wait(60)
    calls: list[Callable[[], Any]] = [
        lambda: cache.append(x, x),
        lambda: cache.extend(x, x, x),
        lambda: cache.attend(x),
        lambda: cache.truncate(1),
        cache.reset,
        lambda: cache.reorder([1, 0]),
    ]
    for call in calls:
        with pytest.raises(RuntimeError, match="cache: another thread is changing this KVCache"):
            call()
    leave.set()
    thread.join(60)
    assert len(cache) == 6
    for call in calls:
        call()


def test_threads_that_read_one_cache() -> None:
    cache, query = filled(False), normal((2, 1, 1, 4), 7)
    expected = cache.attend(query)

    def work(_: int) -> None:
        assert cache.attend(query).tobytes() == expected.tobytes()

    assert race(work, rounds=ROUNDS) == []


def test_threads_that_call_one_layer() -> None:
    """Layers are for any number of threads, as long as none of them changes parameters."""
    layer, x = hw.MultiHeadAttention(16, 2, rng=0), normal((1, 5, 16))
    expected = layer(x)[0]

    def work(_: int) -> None:
        assert layer(x)[0].tobytes() == expected.tobytes()

    assert race(work, rounds=ROUNDS) == []


def test_an_error_in_a_change_ends_it() -> None:
    cache, x = filled(False), normal((2, 1, 1, 4))
    with pytest.raises(ValueError, match="key: shape"):
        cache.extend(x, x[..., :3], x)
    with pytest.raises(TypeError, match="softcap"):
        cache.extend(x, x, x, softcap="1")
    assert race(lambda _: cache.extend(x, x, x), threads=1) == []
    assert len(cache) == 6
