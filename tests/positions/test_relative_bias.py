"""Tables for ``relative_bias=``: as the modules of transformers have them, or as the papers' formulas."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest

import headwise as hw
import oracle
from support import normal

Q, K, V = (normal((2, 4, 9, 8), seed, np.float64) for seed in range(3))
DISTANCES = np.arange(-2000, 2001)


def dense(bias: np.ndarray, query_len: int, key_len: int, offset: int = 0) -> np.ndarray:
    """(..., heads, query_len, key_len), pair by pair."""
    reach = bias.shape[-1] // 2
    rows = np.broadcast_to(bias, (*bias.shape[:-2], query_len, bias.shape[-1]))
    entries = (np.arange(key_len) - np.arange(query_len)[:, None] - offset).clip(-reach, reach) + reach
    return np.take_along_axis(rows, np.broadcast_to(entries, (*rows.shape[:-1], key_len)), axis=-1)


@pytest.mark.single_implementation
@pytest.mark.parametrize("bidirectional", [True, False])
@pytest.mark.parametrize(("buckets", "greatest"), [(32, 128), (32, 20), (8, 100), (40, 1000), (64, 333), (320, 800)])
def test_buckets_of_t5_are_those_of_transformers(buckets: int, greatest: int, bidirectional: bool) -> None:
    torch = pytest.importorskip("torch", reason="the buckets of transformers")
    t5 = pytest.importorskip("transformers.models.t5.modeling_t5", reason="the buckets of transformers")
    wanted = t5.T5Attention._relative_position_bucket(torch.tensor(DISTANCES), bidirectional, buckets, greatest).numpy()
    table = np.stack([np.arange(buckets), -np.arange(buckets)], axis=1).astype(np.float32)
    got = hw.t5_relative_bias(table, 2000, bidirectional=bidirectional, max_distance=greatest)
    assert got.shape == (2, 1, 4001) and got.dtype == np.float32
    np.testing.assert_array_equal(got[:, 0], [wanted, -wanted])
    short = hw.t5_relative_bias(table, greatest, bidirectional=bidirectional, max_distance=greatest)
    np.testing.assert_array_equal(dense(short, 50, 2000, 30), dense(got, 50, 2000, 30))


@pytest.mark.single_implementation
@pytest.mark.parametrize(("buckets", "greatest"), [(256, 512), (32, 512), (10, 60), (128, 2000)])
def test_buckets_of_deberta_are_those_of_transformers(buckets: int, greatest: int) -> None:
    torch = pytest.importorskip("torch", reason="the buckets of transformers")
    deberta = pytest.importorskip("transformers.models.deberta_v2.modeling_deberta_v2", reason="the buckets")
    wanted = deberta.make_log_bucket_position(torch.tensor(DISTANCES), buckets, greatest).numpy()
    query = np.zeros((1, len(DISTANCES) // 2 + 1, 1))
    query[0, 0] = 1
    table = np.arange(2.0 * greatest)[np.newaxis, :, np.newaxis] - greatest
    got = hw.deberta_relative_bias(query, query, table, scale=1.0, buckets=buckets, max_distance=greatest)
    np.testing.assert_array_equal(got[0, 0], wanted[::-1].clip(-greatest, greatest - 1))


def test_t5_decodes_step_by_step() -> None:
    bias = hw.t5_relative_bias(normal((16, 4), 5, np.float64), 9, bidirectional=False, max_distance=9)
    whole = hw.flash_attention(Q, K[:, :2], V[:, :2], relative_bias=bias, is_causal=True, scale=1.0)
    cache = hw.KVCache(2, 2, 9, 8, dtype=np.float64)
    steps = [
        cache.extend(Q[:, :, i : i + 1], K[:, :2, i : i + 1], V[:, :2, i : i + 1], relative_bias=bias, scale=1.0)
        for i in range(9)
    ]
    np.testing.assert_allclose(np.concatenate(steps, axis=2), whole, atol=1e-14)


def test_layers_have_a_relative_bias() -> None:
    bias = hw.t5_relative_bias(normal((16, 4), 5, np.float64), 9, bidirectional=True, max_distance=9)
    layer, plain = (hw.MultiHeadAttention(32, 4, relative=given, rng=0) for given in (bias, None))
    x = normal((2, 9, 32), 6, np.float64)
    wanted = plain(x, relative_bias=bias)
    for got, right in zip(layer(x), wanted, strict=True):
        np.testing.assert_array_equal(got, right)
    cached = hw.CausalAttention(32, 4, relative=bias, rng=0)
    cache = cached.make_cache(2, 9, dtype=np.float64)
    steps = [cached(x[:, i : i + 1], cache=cache, need_weights=False)[0] for i in range(9)]
    np.testing.assert_allclose(np.concatenate(steps, axis=1), cached(x)[0], atol=1e-13)
    *_, pullback = layer.vjp(x, wrt=("query", "relative_bias"))
    d = pullback(np.ones((2, 9, 32)))
    step = normal(bias.shape, 7, np.float64)
    change = (
        plain(x, relative_bias=bias + 1e-6 * step)[0] - plain(x, relative_bias=bias - 1e-6 * step)[0]
    ).sum() / 2e-6
    np.testing.assert_allclose((d.inputs.d_relative_bias * step).sum(), change, rtol=1e-6, atol=1e-8)


def test_layers_have_embeddings_of_distances() -> None:
    """Shaw et al., equation 2, in every way to call a layer."""
    embeddings = hw.RelativePositionalEncoding(8, 3, rng=0)
    layer = hw.MultiHeadAttention(32, 4, relative=embeddings, num_kv_heads=2, rng=0)
    plain = hw.MultiHeadAttention(32, 4, num_kv_heads=2, rng=0)
    assert np.array_equal(layer.relative_embeddings, embeddings.embeddings)
    x, y = normal((2, 9, 32), 6, np.float64), normal((2, 6, 32), 7, np.float64)
    q = plain.split_heads(x @ plain.W_q)
    scores = np.einsum("bhid,ijd->bhij", q, embeddings(9)) / math.sqrt(8)
    for got, right in zip(layer(x), plain(x, bias=scores), strict=True):
        np.testing.assert_allclose(got, right, atol=1e-13)
    np.testing.assert_allclose(layer(x[0])[0], layer(x)[0][0], atol=1e-13)
    crossed, _ = layer(x, y)
    np.testing.assert_allclose(crossed, plain(x, y, bias=scores[..., :6])[0], atol=1e-13)
    np.testing.assert_allclose(layer(x, cache=layer.make_cross_cache(y))[0], crossed, atol=1e-13)
    np.testing.assert_allclose(layer(x, scale=0.7)[0], plain(x, bias=0.7 * math.sqrt(8) * scores, scale=0.7)[0],
                               atol=1e-13)  # fmt: skip
    single = layer(x.astype(np.float32))[0]
    assert single.dtype == np.float32
    np.testing.assert_allclose(single, layer(x)[0], atol=1e-5)
    np.testing.assert_allclose(layer(x.astype(np.float16))[0], layer(x)[0], atol=1e-2)
    results = hw.multi_head_self_attention(x, 4, 32, params=layer)
    np.testing.assert_array_equal(results[0], layer(x)[0])
    other = hw.MultiHeadAttention(32, 4, relative=hw.RelativePositionalEncoding(8, 3), num_kv_heads=2)
    other.load_state_dict(layer.state_dict())
    np.testing.assert_array_equal(other(x)[0], layer(x)[0])
    with pytest.raises(ValueError, match="'llama' has no relative_embeddings, as the layer has; 'headwise' has them"):
        layer.state_dict("llama")


def test_shaw_equals_the_formula() -> None:
    relative = hw.RelativePositionalEncoding(8, 3, rng=0)
    bias = hw.shaw_relative_bias(Q, relative.embeddings)
    scores = (Q @ K.swapaxes(2, 3) + np.einsum("bhid,ijd->bhij", Q, relative(9))) / math.sqrt(8)
    got, weights = hw.scaled_dot_product_attention(Q, K, V, relative_bias=bias)
    np.testing.assert_allclose(weights, oracle.softmax(scores), atol=1e-14)
    np.testing.assert_allclose(got, oracle.softmax(scores) @ V, atol=1e-14)
    per_head = hw.shaw_relative_bias(Q, np.stack([relative.embeddings] * 4), scale=0.5)
    np.testing.assert_allclose(per_head, bias * math.sqrt(8) / 2, atol=1e-14)


def test_relative_key_of_wav2vec2_bert() -> None:
    torch = pytest.importorskip("torch", reason="the module of transformers")
    module = pytest.importorskip("transformers.models.wav2vec2_bert.modeling_wav2vec2_bert", reason="the module")
    config = pytest.importorskip("transformers", reason="the configuration").Wav2Vec2BertConfig(
        hidden_size=32, num_attention_heads=4, position_embeddings_type="relative_key", left_max_position_embeddings=6,
        right_max_position_embeddings=4, attention_dropout=0.0, attn_implementation="eager",
    )  # fmt: skip
    layer = module.Wav2Vec2BertSelfAttention(config).eval()
    x = torch.tensor(normal((2, 9, 32), 3))
    with torch.no_grad():
        wanted = layer(x)[0].numpy()
        q, k, v = (
            getattr(layer, name)(x).numpy().reshape(2, 9, 4, 8).swapaxes(1, 2)
            for name in ("linear_q", "linear_k", "linear_v")
        )
        embeddings = layer.distance_embedding.weight.numpy()  # of -6 to 4
        both = np.concatenate([embeddings, np.repeat(embeddings[-1:], 2, axis=0)])
        output = hw.flash_attention(q, k, v, relative_bias=hw.shaw_relative_bias(q, both))
        got = layer.linear_out(torch.tensor(output.swapaxes(1, 2).reshape(2, 9, 32))).numpy()
    np.testing.assert_allclose(got, wanted, atol=1e-5)
    relative = hw.RelativePositionalEncoding(8, 6)
    relative.embeddings = both
    ours = hw.MultiHeadAttention(32, 4, bias=True, relative=relative)
    for letter in "qkvo":
        linear = getattr(layer, "linear_out" if letter == "o" else f"linear_{letter}")
        setattr(ours, f"W_{letter}", linear.weight.detach().numpy().T)
        setattr(ours, f"b_{letter}", linear.bias.detach().numpy())
    np.testing.assert_allclose(ours(x.numpy())[0], wanted, atol=1e-5)


def test_xlnet_with_memory() -> None:
    torch = pytest.importorskip("torch", reason="the module of transformers")
    xlnet = pytest.importorskip("transformers.models.xlnet.modeling_xlnet", reason="the module of transformers")
    config = pytest.importorskip("transformers", reason="the configuration").XLNetConfig(
        d_model=32, n_head=4, n_layer=1, vocab_size=10, dropout=0.0, d_inner=8
    )
    model = xlnet.XLNetModel(config).eval()
    layer = model.layer[0].rel_attn
    for name in ("q", "k", "v", "o", "r", "r_r_bias", "r_w_bias"):
        getattr(layer, name).data = torch.tensor(normal(tuple(getattr(layer, name).shape), 7))
    x, memory = torch.tensor(normal((5, 2, 32), 3)), torch.tensor(normal((4, 2, 32), 4))
    with torch.no_grad():
        r = model.relative_positional_encoding(5, 9, bsz=2)
        wanted = layer(h=x, g=None, attn_mask_h=None, attn_mask_g=None, r=r, seg_mat=None, mems=memory)[0].numpy()
        projected = torch.einsum("ibh,hnd->ibnd", r[:, :1], layer.r)[:, 0].numpy()  # of distances 9 to -4
    weights = {name: getattr(layer, name).detach().numpy() for name in ("q", "k", "v", "o", "r_w_bias", "r_r_bias")}
    both = np.concatenate([memory.numpy(), x.numpy()])
    q, k, v = (np.einsum("ibh,hnd->bnid", a, weights[name]) for a, name in ((x.numpy(), "q"), (both, "k"), (both, "v")))
    positions = np.zeros((4, 19, 8), np.float32)  # distances of keys -9 to 9, of which those beyond 4 do not occur
    positions[:, : len(projected)] = projected.swapaxes(0, 1)
    bias = hw.transformer_xl_relative_bias(q, positions, weights["r_r_bias"])
    output = hw.flash_attention(
        q + weights["r_w_bias"][:, np.newaxis], k, v, relative_bias=bias, causal_alignment="lower_right",
        window_size=(-1, -1),
    )  # fmt: skip
    projected_out = np.einsum("bnid,hnd->ibh", output, weights["o"])
    got = layer.layer_norm(torch.tensor(projected_out) + x).detach().numpy()
    np.testing.assert_allclose(got, wanted, atol=2e-4)


@pytest.mark.parametrize("buckets", [-1, 6])
def test_deberta_equals_transformers(buckets: int) -> None:
    torch = pytest.importorskip("torch", reason="the module of transformers")
    deberta = pytest.importorskip("transformers.models.deberta_v2.modeling_deberta_v2", reason="the module")
    config = pytest.importorskip("transformers", reason="the configuration").DebertaV2Config(
        hidden_size=32, num_attention_heads=4, relative_attention=True, position_buckets=buckets, share_att_key=True,
        pos_att_type=["c2p", "p2c"], max_relative_positions=7, attention_probs_dropout_prob=0.0,
        hidden_dropout_prob=0.0, attn_implementation="eager",
    )  # fmt: skip
    layer = deberta.DisentangledSelfAttention(config).eval()
    span = buckets if buckets > 0 else 7
    x, embeddings = torch.tensor(normal((2, 9, 32), 3)), torch.tensor(normal((2 * span, 32), 4))
    with torch.no_grad():
        wanted = layer(x, torch.ones(2, 1, 9, 9), rel_embeddings=embeddings)[0].numpy()
        heads = [
            getattr(layer, name)(a).numpy().reshape(*a.shape[:-1], 4, 8).swapaxes(-2, -3)
            for name, a in (
                ("query_proj", x), ("key_proj", x), ("value_proj", x),
                ("key_proj", embeddings), ("query_proj", embeddings),
            )
        ]  # fmt: skip
    scale = 1 / math.sqrt(24)
    bias = hw.deberta_relative_bias(
        *heads[:2], *heads[3:], scale=scale, buckets=buckets if buckets > 0 else None, max_distance=7
    )
    got = hw.flash_attention(*heads[:3], relative_bias=bias, scale=scale)
    np.testing.assert_allclose(got.swapaxes(1, 2).reshape(2, 9, 32), wanted, atol=1e-5)


def test_deberta_of_other_lengths() -> None:
    positions = normal((4, 10, 8), 6, np.float64)
    for rows, keys in ((3, 9), (9, 3), (1, 9)):
        q, k = Q[:, :, :rows], K[:, :, :keys]
        where = (np.arange(rows)[:, None] - np.arange(keys)).clip(-5, 4) + 5
        c2p = np.take_along_axis(q @ positions.swapaxes(1, 2), np.broadcast_to(where, (2, 4, rows, keys)), axis=3)
        p2c = np.take_along_axis(k @ positions.swapaxes(1, 2), np.broadcast_to(where.T, (2, 4, keys, rows)), axis=3)
        got = dense(hw.deberta_relative_bias(q, k, positions, positions, scale=0.3), rows, keys)
        np.testing.assert_allclose(got, 0.3 * (c2p + p2c.swapaxes(2, 3)), atol=1e-13)


@pytest.mark.single_implementation
def test_kerple_and_fire_equal_the_formulas() -> None:
    r1, r2 = np.array([0.5, 2.0]), np.array([1.5, 0.3])
    d = np.abs(np.arange(9) - np.arange(9)[:, None])
    for kernel, wanted in (("log", np.log(1 + r2[:, None, None] * d)), ("power", d ** r2[:, None, None])):
        got = dense(hw.kerple_relative_bias(r1, r2, 8, kernel=kernel), 9, 9)
        np.testing.assert_allclose(got, -r1[:, None, None] * wanted, atol=1e-14)
    i = np.arange(4, 13)
    x = np.log(2.5 * np.abs(np.arange(13) - i[:, None]) + 1) / np.log(2.5 * np.maximum(i, 6) + 1)[:, None]
    fire = hw.fire_relative_bias(lambda x: np.stack([x, x**2], axis=-1), 9, 20, c=2.5, threshold=6, offset=4)
    np.testing.assert_allclose(dense(fire, 9, 13, 4), [x, x**2], atol=1e-14)


WRONG: dict[str, tuple[type[Exception], str, Any]] = {
    "one axis": (ValueError, "table", lambda: hw.t5_relative_bias(np.ones(8), 4, bidirectional=True)),
    "few buckets": (ValueError, "table", lambda: hw.t5_relative_bias(np.ones((3, 2)), 4, bidirectional=True)),
    "no distance": (ValueError, "M", lambda: hw.t5_relative_bias(np.ones((8, 2)), 0, bidirectional=True)),
    "near": (
        ValueError,
        "max_distance",
        lambda: hw.t5_relative_bias(np.ones((8, 2)), 4, bidirectional=True, max_distance=2),
    ),
    "no flag": (TypeError, "bidirectional", lambda: hw.t5_relative_bias(np.ones((8, 2)), 4, bidirectional="yes")),
    "complex": (TypeError, "table", lambda: hw.t5_relative_bias(np.ones((8, 2), complex), 4, bidirectional=True)),
    "even": (ValueError, "table", lambda: hw.shaw_relative_bias(Q, np.ones((6, 8)))),
    "width": (ValueError, "table", lambda: hw.shaw_relative_bias(Q, np.ones((7, 9)))),
    "heads": (ValueError, "table", lambda: hw.shaw_relative_bias(Q, np.ones((3, 7, 8)))),
    "no heads": (ValueError, "query", lambda: hw.shaw_relative_bias(Q[0, 0], np.ones((7, 8)))),
    "scale": (TypeError, "scale", lambda: hw.shaw_relative_bias(Q, np.ones((7, 8)), scale="1")),
    "bias": (ValueError, "position_bias", lambda: hw.transformer_xl_relative_bias(Q, np.ones((7, 8)), np.ones(8))),
    "keys": (ValueError, "key", lambda: hw.deberta_relative_bias(Q, K[:, :2], np.ones((4, 6, 8)), scale=1.0)),
    "none": (ValueError, "position_key", lambda: hw.deberta_relative_bias(Q, K, scale=1.0)),
    "odd": (ValueError, "position_query", lambda: hw.deberta_relative_bias(Q, K, None, np.ones((4, 5, 8)), scale=1.0)),
    "kernel": (ValueError, "kernel", lambda: hw.kerple_relative_bias([1.0], [1.0], 3, kernel="exp")),
    "r2": (ValueError, "r2", lambda: hw.kerple_relative_bias([1.0], [2.5], 3, kernel="power")),
    "r1": (ValueError, "r1", lambda: hw.kerple_relative_bias([-1.0], [2.5], 3)),
    "c": (ValueError, "c", lambda: hw.fire_relative_bias(lambda x: x, 3, 3, c=0.0, threshold=1.0)),
    "function": (ValueError, "function", lambda: hw.fire_relative_bias(lambda x: x, 3, 3, c=1.0, threshold=1.0)),
}


@pytest.mark.single_implementation
@pytest.mark.parametrize(("error", "name", "call"), WRONG.values(), ids=WRONG)
def test_bad_arguments(error: type[Exception], name: str, call: Any) -> None:
    with pytest.raises(error, match=rf"^{name}: "):
        call()
