"""``attention_statistics`` equals the statistics of all weights; tests/operations has its options and dtypes."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import headwise as hw
import oracle
from in_process import in_process
from support import assert_close, dtype_named, normal

ALL = ("key_mass", "entropy", "max_weight", "top_k", "block_mass", "lse")


def first_keys(weights: np.ndarray, k: int) -> np.ndarray:
    """The keys of the largest weights, of equal weights the first."""
    return np.argsort(-weights, axis=-1, kind="stable")[..., :k]


@pytest.mark.parametrize("alignment", ["upper_left", "lower_right"])
@pytest.mark.parametrize(
    ("heads", "kv_heads", "queries", "keys"), [(2, 1, 200, 1500), (6, 2, 300, 130), (1, 1, 1, 300_000)]
)
def test_parts_of_several_blocks(heads: int, kv_heads: int, queries: int, keys: int, alignment: str) -> None:
    """Rows, heads and batch entries are divided at these sizes; the weights are those of a call for each row."""
    query, key = normal((3, heads, queries, 8)), normal((3, kv_heads, keys, 8), 1)
    options: dict[str, Any] = {"is_causal": True, "causal_alignment": alignment, "alibi_slopes": np.full(heads, 0.01)}
    options["bias"] = normal((3, 1, queries, 1), 2)
    found = hw.attention_statistics(query, key, which=ALL, k=5, block_size=(48, 70), **options)
    _, weights, lse = hw.scaled_dot_product_attention(query, key, key, return_lse=True, **options)
    wide = weights.astype(np.float64)
    assert found.top_k is not None and found.lse is not None
    np.testing.assert_allclose(found.key_mass, wide.sum(axis=-2), rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(found.max_weight, wide.max(axis=-1), rtol=1e-5)
    terms = wide * np.log(np.where(wide == 0, 1, wide))
    np.testing.assert_allclose(found.entropy, -terms.sum(axis=-1), rtol=1e-5, atol=1e-5)
    blocks = np.add.reduceat(wide, np.arange(0, keys, 70), axis=-1)
    blocks = np.add.reduceat(blocks, np.arange(0, queries, 48), axis=-2)
    np.testing.assert_allclose(found.block_mass, blocks, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(found.lse, lse, rtol=1e-5, atol=1e-5)
    taken = np.take_along_axis(weights, found.top_k.indices, axis=-1)
    np.testing.assert_allclose(found.top_k.weights, taken, rtol=1e-5, atol=1e-9)
    np.testing.assert_allclose(taken, np.take_along_axis(weights, first_keys(weights, 5), axis=-1), rtol=1e-5)


def test_top_k_of_equal_weights_has_the_first_keys() -> None:
    """Queries that see fewer keys than ``k`` have weights of 0 behind them."""
    found = hw.attention_statistics(np.zeros((1, 4, 8)), np.zeros((1, 4, 8)), which="top_k", k=3, is_causal=True)
    assert found.top_k is not None and found.top_k.indices.dtype == np.int64
    assert found.top_k.indices.tolist() == [[[0, 1, 2]] * 4]
    expected = np.array([[1, 0, 0], [1 / 2, 1 / 2, 0], [1 / 3, 1 / 3, 1 / 3], [1 / 4, 1 / 4, 1 / 4]])
    np.testing.assert_allclose(found.top_k.weights[0], expected)


@pytest.mark.parametrize("k", [1, 7, 32, 33, 200, 300])
def test_top_k_among_repeated_keys(k: int) -> None:
    """Every key is there six times, and has the same weight each time: scores are exact."""
    query, key = np.zeros((1, 1, 20, 8)), np.zeros((1, 1, 50, 8))
    query[0, 0, :, 0], key[0, 0, :, 0] = np.arange(1, 21) / 4, np.random.default_rng(0).permutation(50) / 8
    weights = np.tile(oracle.attention(query, key, key, scale=1.0).weights, 6)
    top = hw.attention_statistics(query, np.tile(key, (1, 1, 6, 1)), which="top_k", k=k, scale=1.0).top_k
    assert top is not None
    np.testing.assert_array_equal(top.indices, first_keys(weights, k))
    expected = np.take_along_axis(weights, top.indices, axis=-1) / 6
    np.testing.assert_allclose(top.weights, expected, rtol=1e-5)


@pytest.mark.parametrize("lengths", [None, [900, 500]])
@pytest.mark.parametrize("k", [4, 600])
def test_blocks_and_windows_that_leave_keys_out(lengths: list[int] | None, k: int) -> None:
    """Key blocks are skipped for all rows, or for some of them, and hold NaN where no row keeps them."""
    query, key = normal((2, 4, 100, 8)), normal((2, 2, 900, 8), 1)
    mask = hw.BlockMask.from_mod(
        lambda b, h, q, k: (k // 50 % 3 == h % 3) & (k < 700) & ((q < 50) | (k > 300)), 100, 900, heads=4, block_size=50
    )
    key[:, :, 700:] = np.nan
    options: dict[str, Any] = {"window_size": (300, 550), "sinks": np.array([0.5, -np.inf, 0, 1])}
    if lengths is not None:
        options["key_lengths"] = lengths
    found = hw.attention_statistics(query, key, which=ALL, k=k, block_size=(30, 64), mask=mask, **options)
    weights = oracle.attention(query, key, key, mask=mask.to_dense(), **options).weights
    assert found.top_k is not None
    np.testing.assert_allclose(found.key_mass, weights.sum(axis=-2), rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(found.max_weight, weights.max(axis=-1), rtol=1e-5)
    terms = weights * np.log(np.where(weights == 0, 1, weights))
    np.testing.assert_allclose(found.entropy, -terms.sum(axis=-1), rtol=1e-5, atol=1e-5)
    blocks = np.add.reduceat(weights, np.arange(0, 900, 64), axis=-1)
    blocks = np.add.reduceat(blocks, np.arange(0, 100, 30), axis=-2)
    np.testing.assert_allclose(found.block_mass, blocks, rtol=1e-5, atol=1e-6)
    expected = np.take_along_axis(weights, found.top_k.indices, axis=-1)
    np.testing.assert_allclose(found.top_k.weights, expected, rtol=1e-5, atol=1e-9)
    np.testing.assert_allclose(found.top_k.weights, -np.sort(-weights)[..., :k], rtol=1e-5, atol=1e-9)
    # Behind the kept keys, the first ones of weight 0.
    assert found.top_k.indices[0, 1, 0, -1] == first_keys(weights, k)[0, 1, 0, -1]


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32", "float64", "int32"])
def test_dtypes(dtype: str) -> None:
    """16-bit inputs are computed in float32, and nothing is rounded to 16 bits."""
    query, key = (
        (3 * normal(shape, seed)).astype(dtype_named(dtype)) for seed, shape in enumerate([(2, 70, 16), (2, 90, 16)])
    )
    found = hw.attention_statistics(query, key, which=ALL)
    weights = oracle.attention(query, key, key).weights
    result = np.float64 if dtype in ("float64", "int32") else np.float32
    assert found.top_k is not None
    for array, expected in (
        (found.key_mass, weights.sum(axis=-2)),
        (found.max_weight, weights.max(axis=-1)),
        (found.top_k.weights, np.sort(weights, axis=-1)[..., ::-1][..., :8]),
    ):
        assert array is not None and array.dtype == result
        assert_close(array, expected, 4)
    assert found.entropy is not None and found.block_mass is not None and found.lse is not None
    assert found.entropy.dtype == found.block_mass.dtype == found.lse.dtype == result


@pytest.mark.parametrize("shape", [(5, 8), (2, 5, 8), (2, 4, 5, 8), (2, 3, 4, 5, 8)], ids=str)
@pytest.mark.parametrize("average", [False, True])
def test_shapes(shape: tuple[int, ...], average: bool) -> None:
    query, key = normal(shape), normal((*shape[:-2], 7, 8), 1)
    found = hw.attention_statistics(query, key, which=ALL, k=2, block_size=4, average_heads=average)
    lead = shape[:-3] if average and len(shape) > 3 else shape[:-2]
    assert found.top_k is not None and found.key_mass is not None and found.entropy is not None
    assert found.block_mass is not None and found.lse is not None and found.max_weight is not None
    assert found.key_mass.shape == (*lead, 7)
    assert found.entropy.shape == found.max_weight.shape == (*lead, 5)
    assert found.top_k.weights.shape == found.top_k.indices.shape == (*lead, 5, 2)
    assert found.block_mass.shape == (*lead, 2, 2)
    assert found.lse.shape == shape[:-1]


def test_only_what_is_asked_for() -> None:
    x = normal((1, 2, 5, 8))
    every = hw.attention_statistics(x, x, which=ALL)
    for name in ALL:
        for which in (name, [name], (name,)):
            found = hw.attention_statistics(x, x, which=which)
            assert [field for field in found._fields if getattr(found, field) is not None] == [name]
            ours, theirs = np.asarray(getattr(found, name)), np.asarray(getattr(every, name))
            assert ours.tobytes() == theirs.tobytes()
    assert hw.attention_statistics(x, x)._replace(lse=every.lse)._fields == ALL
    assert hw.attention_statistics(x, x).lse is None


def test_masked_keys_reach_nothing() -> None:
    query, key = normal((2, 4, 60, 8)), normal((2, 2, 300, 8), 1)
    keep = np.ones((2, 300), bool)
    keep[0, 17:260] = keep[1] = False  # a sequence without keys
    clean = hw.attention_statistics(query, key, which=ALL, key_padding_mask=keep)
    for worst in (np.nan, np.inf, -np.inf):
        key[~np.repeat(keep[:, None], 2, axis=1)] = worst
        found = hw.attention_statistics(query, key, which=ALL, key_padding_mask=keep)
        for ours, theirs in zip(found, clean, strict=True):
            np.testing.assert_array_equal(np.asarray(ours), np.asarray(theirs))
    assert clean.key_mass is not None and not clean.key_mass[0, :, 17:260].any()
    assert clean.entropy is not None and clean.max_weight is not None and clean.lse is not None
    assert not clean.entropy[1].any() and not np.signbit(clean.entropy[1]).any()
    assert not clean.max_weight[1].any() and np.isneginf(clean.lse[1]).all()


def test_a_query_of_nan_leaves_other_heads_alone() -> None:
    query, key = normal((1, 2, 9, 8)), normal((1, 2, 20, 8), 1)
    query[0, 0, 4] = np.nan
    found = hw.attention_statistics(query, key, which=ALL, k=3)
    assert found.key_mass is not None and found.entropy is not None and found.top_k is not None
    assert np.isnan(found.key_mass).tolist() == [[[True] * 20, [False] * 20]]
    assert np.argwhere(np.isnan(found.entropy)).tolist() == [[0, 0, 4]]
    assert found.top_k.indices[0, 0, 4].tolist() == [0, 1, 2] and np.isnan(found.top_k.weights[0, 0, 4]).all()


@pytest.mark.parametrize(("queries", "keys", "heads"), [(5, 0, 2), (0, 5, 2), (0, 0, 2), (5, 7, 0)])
@pytest.mark.parametrize("average", [False, True])
def test_nothing_to_do(queries: int, keys: int, heads: int, average: bool) -> None:
    query, key = np.zeros((1, heads, queries, 8)), np.zeros((1, heads, keys, 8))
    found = hw.attention_statistics(query, key, which=ALL, average_heads=average, sinks=np.full(heads, 0.5))
    assert found.key_mass is not None and found.entropy is not None and found.lse is not None
    lead = (1,) if average else (1, heads)
    assert found.key_mass.shape == (*lead, keys) and not found.key_mass.any()
    assert found.entropy.shape == (*lead, queries) and not found.entropy.any()
    assert found.lse.shape == (1, heads, queries)
    assert keys or (found.lse == 0.5).all()


def test_known_entropies() -> None:
    """Equal weights have the logarithm of their number, a single key 0 and not less."""
    query = np.zeros((40, 8), np.float32)
    entropy = hw.attention_statistics(query, query, which="entropy", is_causal=True).entropy
    np.testing.assert_allclose(entropy, np.log(np.arange(1, 41)), rtol=1e-6, atol=1e-7)
    peaked = hw.attention_statistics(100 * normal((30, 8)), normal((30, 8)), which="entropy").entropy
    assert peaked is not None and (peaked >= 0).all()


def test_a_sink_takes_its_share() -> None:
    query, key = normal((1, 2, 9, 8)), normal((1, 2, 20, 8), 1)
    found = hw.attention_statistics(query, key, sinks=[1.0, -np.inf])
    assert found.key_mass is not None
    assert found.key_mass[0, 0].sum() < 8.5
    np.testing.assert_allclose(found.key_mass[0, 1].sum(), 9, rtol=1e-6)


def test_block_mass_chooses_the_blocks_of_a_mask() -> None:
    """64 queries each point at 64 keys: the mask with their blocks keeps nearly all of the output."""
    query, key = normal((1, 2, 256, 16)), normal((1, 2, 256, 16), 1)
    for i in range(4):
        query[..., 64 * i : 64 * i + 64, i] += 12
        key[..., 64 * (3 - i) : 64 * (3 - i) + 64, i] += 6
    mass = hw.attention_statistics(query, key, which="block_mass").block_mass
    assert mass is not None
    np.testing.assert_allclose(mass.sum(axis=-1), np.full(mass.shape[:-1], 16.0), rtol=1e-5)
    mask = hw.BlockMask.top_k_blocks(mass, 4, 256, 256)
    assert mask.kept == 0.25
    whole, some = hw.flash_attention(query, key, key), hw.flash_attention(query, key, key, mask)
    assert np.abs(whole - some).max() < 0.02 * np.abs(whole).max()


@pytest.mark.parametrize("threads", [2, 3, 7])
def test_threads_do_not_change_bits(threads: int) -> None:
    query, key = normal((2, 6, 300, 16)), normal((2, 2, 700, 16), 1)
    results = []
    for count in (1, threads):
        hw.set_num_threads(count)
        found = hw.attention_statistics(query, key, which=ALL, is_causal=True)
        results.append([np.asarray(part).tobytes() for part in (*found, *found.top_k)])  # type: ignore[misc]
    assert results[0] == results[1]


def test_memory_does_not_grow_with_the_scores(implementation: str) -> None:
    """4096 x 4096 scores would take 64 MB."""
    peak = float(
        in_process(
            implementation,
            """
        x = np.ones((1, 1, 4096, 8), np.float32)
        names = ("key_mass", "entropy", "max_weight", "top_k", "block_mass", "lse")
        hw.attention_statistics(x[:, :, :300], x[:, :, :300], which=names)
        before = megabytes("VmHWM")
        hw.attention_statistics(x, x, which=names, is_causal=True)
        print(megabytes("VmHWM") - before)
        """,
        )
    )
    assert peak < 32


X = np.ones((1, 2, 5, 8))


@pytest.mark.parametrize(
    ("keywords", "error", "words"),
    [
        ({"which": "mass"}, ValueError, r"^which: 'mass', expected some of key_mass, entropy,"),
        ({"which": ("entropy", "mean")}, ValueError, "^which: 'mean', expected some of"),
        ({"which": ()}, ValueError, "^which: no name, expected some of"),
        ({"which": None}, TypeError, "^which: NoneType, expected a name or a sequence"),
        ({"which": {"entropy": True}}, TypeError, "^which: dict, expected a name or a sequence"),
        ({"which": (1,)}, TypeError, "^which: 1 of type int, expected some of"),
        ({"k": 0}, ValueError, "^k: 0, expected 1 to 5, the length of key"),
        ({"k": 6}, ValueError, "^k: 6, expected 1 to 5, the length of key"),
        ({"k": 2.0}, TypeError, "^k: 2.0 of type float, expected an integer"),
        ({"block_size": 0}, ValueError, "^block_size: 0, expected at least 1"),
        ({"block_size": (4, 5, 6)}, ValueError, r"^block_size: \(4, 5, 6\), expected an integer or a pair"),
        ({"block_size": 4.0}, TypeError, "^block_size: 4.0 of type float, expected an integer"),
        ({"average_heads": "yes"}, TypeError, "^average_heads: str, expected True or False"),
        ({"value": X}, TypeError, "^value: not a keyword here"),
        ({"causal": True}, TypeError, "^causal: not a keyword here, expected is_causal="),
    ],
    ids=str,
)
@pytest.mark.single_implementation
def test_refused(keywords: dict[str, Any], error: type[Exception], words: str) -> None:
    with pytest.raises(error, match=words):
        hw.attention_statistics(X, X, **keywords)


@pytest.mark.single_implementation
def test_refused_shapes() -> None:
    with pytest.raises(ValueError, match=r"^key: shape .* head_dim is 4, expected 8"):
        hw.attention_statistics(X, X[..., :4])
    with pytest.raises(ValueError, match=r"^key: shape .* not divisible"):
        hw.attention_statistics(np.ones((1, 3, 5, 8)), X)
