"""``BlockMask``: its builders and operators beside dense masks, and attention beside that of the dense mask."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import headwise as hw
import oracle
from headwise._base.attention_spec import AttentionSpec
from headwise._base.blocks import Blocks
from support import assert_close, check_attention, dtype_named, normal

QUERIES, KEYS = 70, 101
Q, K = np.arange(QUERIES)[:, None], np.arange(KEYS)
IDS = np.sort(np.random.default_rng(0).integers(0, 5, KEYS))
SIZES: list[Any] = [None, 1, 5, (64, 7), (32, 48), 100, 4096]
RANDOM = np.random.default_rng(1).random((2, 4, QUERIES, KEYS)) < 0.03


def pairs(b: Any, h: Any, q: Any, k: Any) -> Any:
    """Of ranges as well as of indices: every operation that they have."""
    near = (abs(q - k) <= 4 + 3 * b) & ~((q // (h + 2)) % 3 == 1)
    return near | (np.minimum(-k, 2) + np.maximum(q, 3) * 2 > 99) & (k != 7) ^ (k % 7 == q % 5)


#: A mask, for a block size, and the dense mask that it is.
BUILT: dict[str, tuple[Any, Any]] = {
    "causal": (lambda size: hw.BlockMask.causal(QUERIES, KEYS, block_size=size), K <= Q),
    "lower-right": (
        lambda size: hw.BlockMask.causal(QUERIES, KEYS, alignment="lower_right", block_size=size),
        K <= Q + KEYS - QUERIES,
    ),
    "window": (lambda size: hw.BlockMask.window((9, 2), QUERIES, KEYS, block_size=size), (Q - K <= 9) & (K - Q <= 2)),
    "one-sided": (lambda size: hw.BlockMask.window((-1, 2), QUERIES, KEYS, block_size=size), K - Q <= 2),
    "documents": (lambda size: hw.BlockMask.documents(IDS[:QUERIES], IDS, block_size=size), IDS[Q] == IDS[K]),
    "documents-batch": (
        lambda size: hw.BlockMask.documents(IDS[:QUERIES], [IDS, IDS[::-1]], block_size=size),
        np.stack([IDS[Q] == IDS[K], IDS[Q] == IDS[::-1][K]])[:, None],
    ),
    "prefix": (lambda size: hw.BlockMask.prefix_lm(30, QUERIES, KEYS, block_size=size), (K < 30) | (K <= Q)),
    "prefix-batch": (
        lambda size: hw.BlockMask.prefix_lm([0, 30], QUERIES, KEYS, block_size=size),
        np.stack([K <= Q, (K < 30) | (K <= Q)])[:, None],
    ),
    "global": (
        lambda size: hw.BlockMask.global_tokens([3, 90], QUERIES, KEYS, block_size=size),
        np.isin(Q, [3, 90]) | np.isin(K, [3, 90]),
    ),
    "first-global": (lambda size: hw.BlockMask.global_tokens(2, QUERIES, KEYS, block_size=size), (Q < 2) | (K < 2)),
    "strided": (lambda size: hw.BlockMask.strided(3, QUERIES, KEYS, block_size=size), (Q - K) % 3 == 0),
    "from_dense": (lambda size: hw.BlockMask.from_dense(RANDOM, block_size=size), RANDOM),
    "from_mod": (
        lambda size: hw.BlockMask.from_mod(pairs, QUERIES, KEYS, batch=2, heads=4, block_size=size),
        pairs(np.arange(2).reshape(2, 1, 1, 1), np.arange(4).reshape(4, 1, 1), Q, K),
    ),
    "from_mod-indexed": (  # of ranges there is no answer
        lambda size: hw.BlockMask.from_mod(
            lambda b, h, q, k: RANDOM[b, h, q, k], QUERIES, KEYS, batch=2, heads=4, block_size=size
        ),
        RANDOM,
    ),
    "nothing": (lambda size: hw.BlockMask.from_mod(lambda *_: False, QUERIES, KEYS, block_size=size), K < 0 * Q),
    "everything": (lambda size: hw.BlockMask.from_mod(lambda *_: True, QUERIES, KEYS, block_size=size), K >= 0 * Q),
}


@pytest.mark.single_implementation
@pytest.mark.parametrize("size", SIZES, ids=str)
@pytest.mark.parametrize("name", BUILT)
def test_masks_are_the_dense_masks(name: str, size: Any) -> None:
    build, dense = BUILT[name]
    mask, other = build(size), hw.BlockMask.from_dense(RANDOM[:1, :1], block_size=size)
    given = (size, size) if isinstance(size, int) else size or (16, 16)
    assert mask.block_size == given and mask.shape == np.shape(dense)[-len(mask.shape) :]
    np.testing.assert_array_equal(mask.to_dense(), dense)
    np.testing.assert_array_equal((~mask).to_dense(), ~dense)
    np.testing.assert_array_equal((mask & other).to_dense(), (dense & RANDOM[:1, :1]).reshape((mask & other).shape))
    np.testing.assert_array_equal((mask | other).to_dense(), (dense | RANDOM[:1, :1]).reshape((mask | other).shape))
    assert mask.kept == pytest.approx(np.mean(dense)) and (~mask).kept == pytest.approx(1 - np.mean(dense))
    assert (mask | ~mask).kept == 1 and (mask & ~mask).kept_blocks == 0


@pytest.mark.single_implementation
def test_top_k_blocks() -> None:
    scores = np.array([[0.5, 2.0, 1.0, 2.0], [-np.inf, -np.inf, 3.0, -np.inf]])
    mask = hw.BlockMask.top_k_blocks(scores, 2, 5, 14, block_size=(3, 4))
    expected = np.zeros((2, 4), bool)
    expected[[0, 0, 1], [1, 3, 2]] = True
    np.testing.assert_array_equal(mask.to_dense(), expected.repeat(3, axis=0).repeat(4, axis=1)[:5, :14])


OPTIONS: dict[str, dict[str, Any]] = {
    "plain": {},
    "causal": {"is_causal": True, "causal_alignment": "lower_right", "softcap": 3.0},
    "window": {"window_size": (40, 9), "alibi_slopes": np.array([0.1, 0.2, 0.3, 0.4])},
    "masks": {
        "bias": normal((4, QUERIES, 1)),
        "key_padding_mask": np.arange(KEYS) < np.array([KEYS, 60])[:, None],
        "sinks": np.arange(4.0),
    },
    "lengths": {"key_lengths": [33, KEYS]},
}
MASKS = ["causal", "window", "documents-batch", "global", "strided", "from_dense", "nothing", "everything"]


def arrays(dtype: str, queries: int = QUERIES) -> list[np.ndarray]:
    shapes = (2, 4, queries, 16), (2, 2, KEYS, 16), (2, 2, KEYS, 12)
    return [normal(shape, seed).astype(dtype_named(dtype)) for seed, shape in enumerate(shapes)]


@pytest.mark.parametrize(("name", "options"), [(name, list(OPTIONS)[i % 5]) for i, name in enumerate(MASKS)])
@pytest.mark.parametrize("size", [16, (7, 40), 64], ids=str)
@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32", "float64"])
def test_attention_against_the_oracle(dtype: str, size: Any, name: str, options: str) -> None:
    build, dense = BUILT[name]
    given, keywords = arrays(dtype), OPTIONS[options]
    expected = oracle.attention(*given, dense, **keywords)
    check_attention(given, {**keywords, "mask": build(size)}, expected, factor=2)


@pytest.mark.parametrize("name", MASKS)
def test_gradients_are_those_of_the_dense_mask(name: str) -> None:
    build, dense = BUILT[name]
    given, d_output = arrays("float64"), normal((2, 4, QUERIES, 12), 5)
    for keywords in OPTIONS.values():
        found = [
            hw.vjp(hw.flash_attention, *given, mask=mask, **keywords)[1](d_output) for mask in (build((16, 48)), dense)
        ]
        for ours, expected in zip(*found, strict=True):
            assert_close(ours, expected, factor=20)


@pytest.mark.parametrize("queries", [1, 2])
@pytest.mark.parametrize("name", ["window", "from_dense", "nothing"])
def test_few_queries(name: str, queries: int) -> None:
    dense = np.asarray(BUILT[name][1])[..., -queries:, :]
    given = arrays("float32", queries)
    check_attention(given, {"mask": hw.BlockMask.from_dense(dense)}, oracle.attention(*given, dense))


def test_dropout_draws_as_with_the_dense_mask(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("headwise._ops.attention.dropout._BLOCK", 8 * KEYS * 13)  # several calls of 13 queries
    build, dense = BUILT["from_dense"]
    given = arrays("float64")
    found = [hw.flash_attention(*given, mask, dropout_rate=0.4, rng=2) for mask in (build(16), dense)]
    assert_close(*found)


@pytest.mark.parametrize("size", [None, 16, (24, 7), 40])
@pytest.mark.parametrize("stride", [1, 2, 5, 16, 33, 500])
@pytest.mark.parametrize("alignment", ["upper_left", "lower_right"])
def test_a_stride_is_that_of_its_function(alignment: str, stride: int, size: Any) -> None:
    offset = 29 if alignment == "lower_right" else 0
    expected = hw.BlockMask.from_mod(lambda b, h, q, k: (q + offset - k) % stride == 0, 131, 160, block_size=size)
    found = hw.BlockMask.strided(stride, 131, 160, alignment=alignment, block_size=size)
    np.testing.assert_array_equal(found.to_dense(), expected.to_dense())
    assert (found.kept, found.kept_blocks) == (expected.kept, expected.kept_blocks)


@pytest.mark.parametrize("name", ["causal", "from_dense", "strided"])
def test_what_is_masked_reaches_nothing(name: str) -> None:
    build, dense = BUILT[name]
    dense = np.broadcast_to(dense, RANDOM.shape) & (K != 40)
    mask = build(16) & hw.BlockMask.from_mod(lambda b, h, q, k: k != 40, QUERIES, KEYS, block_size=16)
    query, key, value = arrays("float32")
    d_output = normal((2, 4, QUERIES, 12), 5).astype(np.float32)
    clean = hw.vjp(hw.flash_attention, query, key, value, mask)
    key[:, :, 40], value[:, :, 40] = np.nan, np.inf
    output, pullback = hw.vjp(hw.flash_attention, query, key, value, mask)
    np.testing.assert_array_equal(output, clean[0])
    for ours, expected in zip(pullback(d_output), clean[1](d_output), strict=True):
        np.testing.assert_array_equal(ours, expected)


@pytest.mark.parametrize("name", ["window", "from_dense"])
def test_bits_do_not_depend_on_the_number_of_threads(name: str) -> None:
    rng = np.random.default_rng(0)
    query, key, value, d_output = rng.standard_normal((4, 1, 2, 700, 32), dtype=np.float32)
    mask = {
        "window": hw.BlockMask.window((99, 20), 700, 700, block_size=64),
        "from_dense": hw.BlockMask.from_dense(rng.random((700, 700)) < 0.003, block_size=48),
    }[name]
    threads, found = hw.get_num_threads(), []
    try:
        for n in (1, 3):
            hw.set_num_threads(n)
            output, pullback = hw.vjp(hw.flash_attention, query, key, value, mask)
            found.append((output, *pullback(d_output)))
    finally:
        hw.set_num_threads(threads)
    for one, three in zip(*found, strict=True):
        np.testing.assert_array_equal(one, three)


@pytest.mark.above_operations
def test_layers_and_caches() -> None:
    layer = hw.MultiHeadAttention(32, 4, rng=0, dtype=np.float64)
    x, mask = normal((2, 40, 32)).astype(float), hw.BlockMask.window((7, 0), 40, 40)
    for ours, expected in zip(layer(x, mask=mask), layer(x, mask=mask.to_dense()), strict=True):
        assert_close(ours, expected)
    q, k = normal((2, 4, 3, 8)).astype(float), normal((2, 4, 9, 8), 1).astype(float)
    rows = hw.BlockMask.from_dense(np.random.default_rng(0).random((2, 4, 3, 9)) < 0.6)
    for lengths in ([9, 9], [5, 9]):
        cache = hw.KVCache(2, 4, 16, 8, dtype=np.float64)
        cache.append(k, k, lengths=lengths)
        assert_close(cache.attend(q, mask=rows), cache.attend(q, mask=rows.to_dense()))


X = np.ones((2, 4, 8, 4))
REFUSED: dict[str, tuple[type[Exception], str, Any]] = {
    "int": (TypeError, "mask_mod: .*int64.*bool", lambda: hw.BlockMask.from_mod(lambda b, h, q, k: q + k, 8, 8)),
    "list": (TypeError, "mask_mod: .*list", lambda: hw.BlockMask.from_mod(lambda b, h, q, k: [True], 8, 8)),
    "shape": (
        ValueError, r"mask_mod: .*\(3,\)", lambda: hw.BlockMask.from_mod(lambda b, h, q, k: np.ones(3, bool), 8, 8),
    ),
    "outside": (
        ValueError, "mask_mod: .*out of bounds.*keys 0 to 7",
        lambda: hw.BlockMask.from_mod(lambda b, h, q, k: np.ones(4, bool)[k], 8, 8),
    ),
    "no-function": (TypeError, "mask_mod: ", lambda: hw.BlockMask.from_mod("causal", 8, 8)),  # type: ignore[arg-type]
    "length": (ValueError, "query_len: 0", lambda: hw.BlockMask.causal(0, 8)),
    "length-type": (TypeError, "key_len: ", lambda: hw.BlockMask.causal(8, 8.0)),  # type: ignore[arg-type]
    "block-size": (ValueError, "block_size: 0", lambda: hw.BlockMask.causal(8, 8, block_size=0)),
    "block-sizes": (ValueError, "block_size: ", lambda: hw.BlockMask.causal(8, 8, block_size=(1, 2, 3))),  # type: ignore[arg-type]
    "block-type": (TypeError, "block_size: ", lambda: hw.BlockMask.causal(8, 8, block_size="8")),  # type: ignore[arg-type]
    "huge-block": (ValueError, "block_size: 8192", lambda: hw.BlockMask.causal(8, 8, block_size=8192)),
    "alignment": (ValueError, "alignment", lambda: hw.BlockMask.causal(8, 8, alignment="left")),
    "window": (ValueError, "window_size: -2", lambda: hw.BlockMask.window(-2, 8, 8)),
    "documents": (TypeError, "ids: dtype float64", lambda: hw.BlockMask.documents(np.ones(8))),
    "documents-axes": (ValueError, "ids: shape", lambda: hw.BlockMask.documents(np.ones((1, 1, 8), int))),
    "documents-batch": (
        ValueError, "key_ids: ", lambda: hw.BlockMask.documents(np.ones((2, 8), int), np.ones((3, 8), int)),
    ),
    "prefix": (ValueError, "prefix: -1", lambda: hw.BlockMask.prefix_lm(-1, 8, 8)),
    "tokens": (ValueError, "tokens: position 8", lambda: hw.BlockMask.global_tokens([8], 8, 8)),
    "stride": (ValueError, "stride: 0", lambda: hw.BlockMask.strided(0, 8, 8)),
    "scores": (ValueError, "scores: shape", lambda: hw.BlockMask.top_k_blocks(np.ones((2, 3)), 1, 8, 8, block_size=4)),
    "scores-nan": (ValueError, "scores: NaN", lambda: hw.BlockMask.top_k_blocks([[np.nan]], 1, 8, 8)),
    "dense": (ValueError, "mask: numbers", lambda: hw.BlockMask.from_dense(np.full((8, 8), 0.5))),
    "dense-axes": (ValueError, "mask: shape", lambda: hw.BlockMask.from_dense(np.ones((2, 8, 8), bool))),
    "and": (TypeError, "&: ndarray", lambda: hw.BlockMask.causal(8, 8) & np.ones((8, 8), bool)),
    "other-length": (ValueError, "mask: .*9", lambda: hw.BlockMask.causal(8, 8) | hw.BlockMask.causal(8, 9)),
    "other-blocks": (
        ValueError, "block_size", lambda: hw.BlockMask.causal(8, 8) | hw.BlockMask.causal(8, 8, block_size=4),
    ),
    "scores-length": (
        ValueError, "mask: .*key_len is 9", lambda: hw.flash_attention(X, X, X, hw.BlockMask.causal(8, 9)),
    ),
    "scores-heads": (
        ValueError, "mask: .*heads is 3", lambda: hw.flash_attention(
            X, X, X, hw.BlockMask.from_mod(lambda b, h, q, k: h < q, 8, 8, heads=3)
        ),
    ),
    "bias": (TypeError, "bias: .*BlockMask", lambda: hw.flash_attention(X, X, X, bias=hw.BlockMask.causal(8, 8))),
    "constructor": (TypeError, "class methods", hw.BlockMask),
}  # fmt: skip


@pytest.mark.single_implementation
@pytest.mark.parametrize("name", REFUSED)
def test_refusals(name: str) -> None:
    error, words, call = REFUSED[name]
    with pytest.raises(error, match=words):
        call()


# ------------------------------------------------------------------------------------------------------------ score_mod


def sees(score: Any, batch: Any, head: Any, q: Any, k: Any) -> Any:
    """Depends on every argument, and drops some keys."""
    return np.where((q + k) % 7 == 3, -np.inf, score + 0.1 * batch - 0.2 * head + 0.01 * q)


@pytest.mark.parametrize("options", OPTIONS)
@pytest.mark.parametrize("dtype", ["float16", "float32", "float64"])
def test_score_mod_against_the_oracle(dtype: str, options: str) -> None:
    given, keywords = arrays(dtype), {**OPTIONS[options], "score_mod": sees}
    check_attention(given, keywords, oracle.attention(*given, **keywords), factor=3)


def test_score_mod_with_a_block_mask_and_dropout(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("headwise._ops.attention.dropout._BLOCK", 8 * KEYS * 13)
    build, dense = BUILT["from_dense"]
    given = arrays("float64")
    for more in ({}, {"dropout_rate": 0.4, "rng": 2}, {"key_lengths": [20, KEYS]}):
        found = [hw.flash_attention(*given, mask, score_mod=sees, **more) for mask in (build(16), dense)]
        assert_close(*found)
    bias = sees(0.0, np.arange(2).reshape(2, 1, 1, 1), np.arange(4).reshape(4, 1, 1), Q, K)
    found = [
        hw.flash_attention(*given, dropout_rate=0.4, rng=2, **more) for more in ({"score_mod": sees}, {"bias": bias})
    ]
    assert_close(*found)


@pytest.mark.single_implementation
def test_score_mod_sees_blocks_of_rows() -> None:
    x, most = normal((1, 1, 3000, 4)), 0

    def watch(score: Any, batch: Any, head: Any, q: Any, k: Any) -> Any:
        nonlocal most
        most = max(most, score.size)
        return score

    assert_close(hw.flash_attention(x, x, x, score_mod=watch), hw.flash_attention(x, x, x), factor=3)
    assert most <= 1 << 17


@pytest.mark.single_implementation
@pytest.mark.parametrize(
    ("error", "words", "function"),
    [
        (TypeError, "score_mod: .*bool", lambda score, b, h, q, k: score > 0),
        (TypeError, "score_mod: .*NoneType", lambda score, b, h, q, k: None),
        (ValueError, "score_mod: .*shape", lambda score, b, h, q, k: score[..., :1]),
    ],
)
def test_score_mod_refusals(error: type[Exception], words: str, function: Any) -> None:
    with pytest.raises(error, match=words):
        hw.flash_attention(X, X, X, score_mod=function)


@pytest.mark.single_implementation
def test_score_mod_has_no_gradient() -> None:
    with pytest.raises(TypeError, match=r"score_mod: .*bias="):
        hw.vjp(hw.flash_attention, X, X, X, score_mod=lambda score, *_: score)


ENTRIES = np.full((1, 1, 2, 2), 2, np.int32)
BITS = np.ones((1, 4, 1), np.uint64)
WRONG: dict[str, Blocks] = {
    "entry": Blocks(ENTRIES + 1, BITS, 4, 4),
    "negative": Blocks(ENTRIES - 3, BITS, 4, 4),
    "no-bits": Blocks(ENTRIES, BITS[:0], 4, 4),
    "few-queries": Blocks(ENTRIES[:, :, :1], BITS, 4, 4),
    "few-keys": Blocks(ENTRIES[..., :1].copy(), BITS, 4, 4),
    "behind": Blocks(ENTRIES, BITS, 4, 4, 1),
    "before": Blocks(ENTRIES, BITS, 4, 4, -1),
    "batch": Blocks(ENTRIES.repeat(3, axis=0), BITS, 4, 4)._replace(entries=ENTRIES[:0]),
    "heads": Blocks(ENTRIES.repeat(3, axis=1), BITS, 4, 4),
    "size": Blocks(ENTRIES, BITS, 0, 4),
    "row-of-bits": Blocks(ENTRIES, BITS.repeat(2, axis=2), 4, 4),
    "strided": Blocks(ENTRIES.repeat(2, axis=3)[..., ::2], BITS, 4, 4),
}


@pytest.mark.single_implementation
@pytest.mark.parametrize("name", WRONG)
def test_the_core_checks_what_decides_addresses(name: str) -> None:
    core = pytest.importorskip("headwise._core", reason="there is no native core")
    x = np.ones((2, 4, 8, 4), np.float32)
    with pytest.raises(ValueError, match="blocks"):
        core.attention(x, x, x, x.copy(), None, None, AttentionSpec(1.0, blocks=WRONG[name]))
