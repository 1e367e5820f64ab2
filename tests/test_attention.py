"""The functional module ``headwise.attention``: each documented example with its claims, then details."""

from __future__ import annotations

import inspect
from typing import Any

import numpy as np
import pytest

import headwise as hw
import oracle
from headwise import attention

BATCH, LENGTH = 32, 10

pytestmark = pytest.mark.above_operations


@pytest.fixture
def x(rng: np.random.Generator) -> np.ndarray:
    return rng.standard_normal((BATCH, LENGTH, 512))


@pytest.fixture
def qkv(rng: np.random.Generator) -> np.ndarray:
    return rng.standard_normal((3, BATCH, LENGTH, 64))


def heads_by_hand(
    query: np.ndarray, key: np.ndarray, value: np.ndarray, params: dict[str, np.ndarray], heads: int, **keywords: Any
) -> oracle.Attention:
    """Multi-head attention with a slice of each projection for each head, joined and projected."""
    projected = [a @ params[name] for a, name in zip((query, key, value), ("W_q", "W_k", "W_v"), strict=True)]
    split = [np.stack(np.split(a, heads, axis=-1), axis=1) for a in projected]
    output, weights, lse = oracle.attention(*split, **keywords)
    joined = np.concatenate(np.moveaxis(output, 1, 0), axis=-1)
    return oracle.Attention(joined @ params["W_o"], weights, lse)


def random_params(rng: np.random.Generator, width: int, d_model: int) -> dict[str, np.ndarray]:
    shapes = {"W_q": (width, d_model), "W_k": (width, d_model), "W_v": (width, d_model), "W_o": (d_model, d_model)}
    return {name: rng.standard_normal(shape) / np.sqrt(shape[0]) for name, shape in shapes.items()}


class TestQuickStart:
    """The calls of the quick start, in order."""

    def test_scaled_dot_product(self, qkv: np.ndarray) -> None:
        from headwise.attention import scaled_dot_product_attention

        q, k, v = qkv
        output, weights = scaled_dot_product_attention(q, k, v)
        assert output.shape == (32, 10, 64)
        assert weights.shape == (32, 10, 10)
        assert np.allclose(np.sum(weights, axis=-1), 1.0)
        expected = oracle.softmax(q @ k.swapaxes(1, 2) / 8)
        np.testing.assert_allclose(weights, expected, atol=1e-14)
        np.testing.assert_allclose(output, expected @ v, atol=1e-13)

    def test_multi_head(self, qkv: np.ndarray) -> None:
        from headwise.attention import multi_head_attention

        q, k, v = qkv
        output, weights = multi_head_attention(q, k, v, num_heads=8, d_model=64)
        assert output.shape == (32, 10, 64)
        assert weights.shape == (32, 8, 10, 10)
        np.testing.assert_allclose(weights.sum(axis=-1), 1.0)

    def test_self_attention(self, x: np.ndarray) -> None:
        from headwise.attention import self_attention

        output, weights = self_attention(x, d_model=512)
        assert output.shape == x.shape
        assert weights.shape == (32, 10, 10)
        expected = oracle.softmax(x @ x.swapaxes(1, 2) / np.sqrt(512)) @ x
        np.testing.assert_allclose(output, expected, atol=1e-12)

    def test_cross_attention(self, x: np.ndarray, rng: np.random.Generator) -> None:
        from headwise.attention import cross_attention

        context = rng.standard_normal((32, 20, 512))
        output, weights = cross_attention(x, context, d_model=512)
        assert output.shape == (32, 10, 512)
        assert weights.shape == (32, 10, 20)
        expected = oracle.softmax(x @ context.swapaxes(1, 2) / np.sqrt(512)) @ context
        np.testing.assert_allclose(output, expected, atol=1e-12)

    def test_positions_and_causal_mask(self, qkv: np.ndarray) -> None:
        from headwise.attention import create_causal_mask, positional_encoding, scaled_dot_product_attention

        pos_enc = positional_encoding(seq_len=100, d_model=512)
        assert pos_enc.shape == (100, 512)
        assert (np.zeros((32, 100, 512)) + pos_enc).shape == (32, 100, 512)

        q, k, v = qkv
        mask = create_causal_mask(seq_len=10)
        output, weights = scaled_dot_product_attention(q, k, v, mask=mask)
        assert output.shape == (32, 10, 64)
        assert (np.triu(weights, k=1) == 0).all()
        np.testing.assert_allclose(weights.sum(axis=-1), 1.0)


def test_inputs_narrower_than_d_model(qkv: np.ndarray) -> None:
    """The multi-head example projects vectors 64 wide to a model 512 wide."""
    q, k, v = qkv
    output, weights = attention.multi_head_attention(q, k, v, num_heads=8, d_model=512)
    assert output.shape == (32, 10, 512)
    assert weights.shape == (32, 8, 10, 10)


def test_transformer_block(x: np.ndarray) -> None:
    from headwise.attention import multi_head_self_attention, positional_encoding
    from headwise.normalization import layer_normalization

    x = x + positional_encoding(seq_len=10, d_model=512)
    attn_output, attn_weights = multi_head_self_attention(x, num_heads=8, d_model=512)
    assert attn_weights.shape == (32, 8, 10, 10)
    x = layer_normalization(x + attn_output, gamma=np.ones(512), beta=np.zeros(512))
    assert x.shape == (32, 10, 512)
    np.testing.assert_allclose(x.mean(axis=-1), 0, atol=1e-12)
    np.testing.assert_allclose(x.std(axis=-1), 1, atol=1e-3)


def test_gpt_style_causal_attention(x: np.ndarray) -> None:
    """Position 0 attends to position 0 alone, position 5 to positions 0 to 5."""
    from headwise.attention import create_causal_mask, positional_encoding, scaled_dot_product_attention

    x = x + positional_encoding(seq_len=10, d_model=512)
    mask = create_causal_mask(seq_len=10)
    output, weights = scaled_dot_product_attention(x, x, x, mask=mask)
    np.testing.assert_array_equal(weights[:, 0], np.broadcast_to(np.eye(10)[0], (32, 10)))
    np.testing.assert_array_equal(output[:, 0], x[:, 0])
    small = x / 16  # so that no weight underflows to 0, the weight of a masked key
    _, weights = scaled_dot_product_attention(small, small, small, mask=mask)
    assert (weights[:, 5, :6] > 0).all()
    assert (weights[:, 5, 6:] == 0).all()


def test_bert_style_bidirectional_attention(rng: np.random.Generator) -> None:
    from headwise.attention import create_padding_mask, multi_head_self_attention, positional_encoding

    seq = np.array([[1, 2, 3, 4, 0, 0], [1, 2, 3, 0, 0, 0]])
    x = rng.standard_normal((2, 6, 768)) + positional_encoding(seq_len=6, d_model=768)
    mask = create_padding_mask(seq, pad_token=0)
    output, weights = multi_head_self_attention(x, num_heads=12, d_model=768)
    assert output.shape == (2, 6, 768)
    assert weights.shape == (2, 12, 6, 6)

    _, masked = multi_head_self_attention(x, num_heads=12, d_model=768, mask=mask)
    kept = np.broadcast_to((seq != 0)[:, None, None, :], masked.shape)
    assert (masked[~kept] == 0).all()
    assert (masked[kept] > 0).all()
    np.testing.assert_allclose(masked.sum(axis=-1), 1)


def test_encoder_decoder(rng: np.random.Generator) -> None:
    from headwise.attention import create_causal_mask, cross_attention, multi_head_self_attention

    encoder_output, _ = multi_head_self_attention(rng.standard_normal((32, 20, 512)), num_heads=8, d_model=512)
    decoder_input = rng.standard_normal((32, 10, 512))
    mask = create_causal_mask(seq_len=10)
    decoder_self_attn, weights = multi_head_self_attention(decoder_input, num_heads=8, d_model=512, mask=mask)
    assert (np.triu(weights, k=1) == 0).all()
    decoder_output, cross_weights = cross_attention(decoder_self_attn, encoder_output, d_model=512)
    assert decoder_output.shape == (32, 10, 512)
    assert cross_weights.shape == (32, 10, 20)


def test_names_and_aliases() -> None:
    aliases = {
        "sdp_attention": "scaled_dot_product_attention",
        "mha": "multi_head_attention",
        "self_attn": "self_attention",
        "cross_attn": "cross_attention",
        "pos_encoding": "positional_encoding",
        "causal_mask": "create_causal_mask",
        "padding_mask": "create_padding_mask",
        "create_look_ahead_mask": "create_causal_mask",
    }
    for alias, name in aliases.items():
        assert getattr(attention, alias) is getattr(attention, name)
        assert {alias, name} <= set(attention.__all__)
    for name in (
        "multi_head_self_attention",
        "learned_positional_encoding",
        "softmax",
        "dropout",
        "attention_score_visualization",
    ):
        assert callable(getattr(attention, name))
        assert name in attention.__all__
    assert inspect.ismodule(hw.positional_encoding)
    assert inspect.isfunction(attention.positional_encoding)
    for name in ("multi_head_attention", "multi_head_self_attention", "self_attention", "cross_attention"):
        assert getattr(hw, name) is getattr(attention, name)


SQUARE = {name: np.eye(8) for name in ("W_q", "W_k", "W_v", "W_o")}


class TestMultiHead:
    @pytest.mark.parametrize("dtype", [np.float64, np.float32])
    def test_numbers(self, rng: np.random.Generator, dtype: type) -> None:
        query, memory = rng.standard_normal((2, 3, 6)), rng.standard_normal((2, 5, 6))
        params = random_params(rng, 6, 8)
        expected = heads_by_hand(query, memory, memory[::-1], params, 4)
        output, weights, lse = attention.multi_head_attention(
            *(a.astype(dtype) for a in (query, memory, memory[::-1])), 4, 8, params=params, return_lse=True
        )
        assert output.dtype == weights.dtype == lse.dtype == dtype
        tolerance = 1e-13 if dtype is np.float64 else 1e-5
        for got, want in zip((output, weights, lse), expected, strict=True):
            np.testing.assert_allclose(got, want, atol=tolerance)

    def test_keywords_reach_attention(self, rng: np.random.Generator) -> None:
        x = rng.standard_normal((2, 5, 8))
        params = random_params(rng, 8, 8)
        keywords: dict[str, Any] = {
            "bias": rng.standard_normal((2, 1, 5, 5)),
            "is_causal": True,
            "scale": 0.7,
            "window_size": (2, 0),
            "softcap": 3.0,
            "alibi_slopes": [0.5, 0.25],
            "sinks": [0.1, -0.2],
            "key_padding_mask": [[1, 1, 1, 1, 0], [1, 0, 1, 1, 1]],
        }
        expected = heads_by_hand(x, x, x, params, 2, **keywords)
        output, weights = attention.multi_head_self_attention(x, 2, 8, params=params, **keywords)
        np.testing.assert_allclose(weights, expected.weights, atol=1e-13)
        np.testing.assert_allclose(output, expected.output, atol=1e-13)
        without, none = attention.multi_head_self_attention(x, 2, 8, params=params, need_weights=False, **keywords)
        assert none is None
        np.testing.assert_allclose(without, expected.output, atol=1e-13)

    def test_same_seed_same_result(self, rng: np.random.Generator) -> None:
        x = rng.standard_normal((2, 5, 8))

        def run(seed: Any) -> np.ndarray:
            return attention.multi_head_self_attention(x, 2, 8, dropout_rate=0.5, rng=seed)[0]

        np.testing.assert_array_equal(run(7), run(7))
        np.testing.assert_array_equal(run(7), run(np.random.default_rng(7)))
        assert not np.array_equal(run(7), run(8))
        assert not np.array_equal(run(None), run(None))

    def test_global_random_state_is_left_alone(self, rng: np.random.Generator) -> None:
        before = np.random.get_state()[1].copy()
        attention.multi_head_self_attention(rng.standard_normal((1, 3, 4)), 2, 4, dropout_rate=0.5)
        np.testing.assert_array_equal(np.random.get_state()[1], before)

    def test_drawn_projections_are_glorot_uniform(self) -> None:
        identity = np.eye(64)
        _, drawn = attention.multi_head_attention(identity, identity, identity, 1, 192, rng=3)
        generator = np.random.default_rng(3)
        limit = np.sqrt(6 / (64 + 192))
        W_q, W_k = (generator.uniform(-limit, limit, (64, 192)) for _ in range(2))
        np.testing.assert_allclose(drawn[0], oracle.softmax(W_q @ W_k.T / np.sqrt(192)), atol=1e-13)

    def test_params_of_a_layer(self, rng: np.random.Generator) -> None:
        layer = hw.MultiHeadAttention(8, 2, rng=0)
        x = rng.standard_normal((2, 5, 8))
        np.testing.assert_array_equal(attention.mha(x, x, x, 2, 8, params=layer)[0], layer(x)[0])
        mapping = {name: getattr(layer, name) for name in ("W_q", "W_k", "W_v", "W_o")}
        np.testing.assert_array_equal(attention.mha(x, x, x, 2, 8, params=mapping)[0], layer(x)[0])

    def test_causal_layer_parameters_make_the_call_causal(self, rng: np.random.Generator) -> None:
        x, layer = rng.standard_normal((2, 4, 8)), hw.CausalAttention(8, 2, rng=0)
        for got, expected in zip(attention.mha(x, x, x, 2, 8, params=layer), layer(x), strict=True):
            np.testing.assert_array_equal(got, expected)

    def test_dropout_is_applied_after_the_returned_weights(self, rng: np.random.Generator) -> None:
        x, params = rng.standard_normal((2, 50, 8)), random_params(rng, 8, 8)
        plain, weights = attention.multi_head_self_attention(x, 2, 8, params=params)
        dropped, same = attention.multi_head_self_attention(x, 2, 8, dropout_rate=0.5, params=params, rng=0)
        np.testing.assert_allclose(same, weights, atol=1e-14)
        assert abs(plain - dropped).max() > 0.01

    def test_unbatched(self, rng: np.random.Generator) -> None:
        x, params = rng.standard_normal((5, 8)), random_params(rng, 8, 8)
        mask = hw.create_padding_mask([[1, 1, 1, 0, 0]])
        batch = attention.multi_head_self_attention(x[None], 2, 8, mask, params=params, return_lse=True)
        for keywords in ({"mask": mask}, {"key_padding_mask": mask}, {"key_padding_mask": mask[0]}):
            single = attention.multi_head_self_attention(x, 2, 8, params=params, return_lse=True, **keywords)
            for one, many in zip(single, batch, strict=True):
                np.testing.assert_array_equal(one, many[0])

    @pytest.mark.parametrize(
        ("error", "message", "change"),
        [
            (ValueError, "divisible", {"num_heads": 3}),
            (ValueError, "^num_heads", {"num_heads": 0}),
            (ValueError, "^d_model", {"d_model": -8}),
            (TypeError, "^d_model", {"d_model": 8.0}),
            (ValueError, "^query", {"query": np.ones(8)}),
            (ValueError, "^query", {"query": np.ones((1, 2, 5, 8))}),
            (ValueError, "^key", {"key": np.ones((3, 5, 8))}),
            (ValueError, "^key", {"key": np.ones((5, 8))}),
            (ValueError, "^value", {"value": np.ones((2, 4, 8))}),
            (TypeError, "^value", {"value": np.ones((2, 5, 8), complex)}),
            (ValueError, "^dropout_rate", {"dropout_rate": 1.0}),
            (TypeError, "^rng", {"rng": "seed"}),
            (TypeError, "^params", {"params": 3}),
            (ValueError, "^params", {"params": {"W_q": np.eye(8)}}),
            (ValueError, "^params.*W_o", {"params": SQUARE | {"W_o": [1.0]}}),
            (ValueError, "^params", {"params": SQUARE | {"b_q": np.zeros(8)}}),
            (ValueError, "^params", {"params": hw.MultiHeadAttention(8, 4)}),
            (ValueError, "^query", {"params": SQUARE | {"W_q": np.ones((9, 8))}}),
            (ValueError, "^mask", {"mask": np.ones((3, 5, 5))}),
            (ValueError, "^bias", {"bias": np.ones((2, 5, 4))}),
            (TypeError, "nonsense", {"nonsense": 1}),
        ],
    )
    def test_bad_arguments(self, error: type[Exception], message: str, change: dict[str, Any]) -> None:
        x = np.ones((2, 5, 8))
        arguments = {"query": x, "key": x, "value": x, "num_heads": 2, "d_model": 8} | change
        with pytest.raises(error, match=message):
            attention.multi_head_attention(**arguments)


class TestUnprojected:
    def test_masks_of_every_rank(self, rng: np.random.Generator) -> None:
        x = rng.standard_normal((3, 4, 8))
        causal = np.tri(4) > 0
        expected = oracle.attention(x, x, x, mask=causal)
        full = np.broadcast_to(causal, (3, 4, 4))
        for mask in (causal, causal[None], full, causal[None, None], full[:, None], hw.create_causal_mask(4)):
            output, weights = attention.self_attention(x, 8, mask)
            np.testing.assert_allclose(weights, expected.weights, atol=1e-14)
            np.testing.assert_allclose(output, expected.output, atol=1e-14)

    def test_unbatched_and_with_heads(self, rng: np.random.Generator) -> None:
        for shape in ((4, 8), (2, 3, 4, 8)):
            x = rng.standard_normal(shape)
            output, weights = attention.self_attention(x, d_model=8)
            np.testing.assert_allclose(weights, oracle.attention(x, x, x).weights, atol=1e-14)
            assert output.shape == shape

    def test_dropout(self, x: np.ndarray) -> None:
        first, _ = attention.self_attention(x, 512, dropout_rate=0.5, rng=0)
        second, _ = attention.self_attention(x, 512, dropout_rate=0.5, rng=0)
        np.testing.assert_array_equal(first, second)
        assert not np.array_equal(first, attention.self_attention(x, 512)[0])

    @pytest.mark.parametrize(
        ("message", "call"),
        [
            ("^x", lambda x: attention.self_attention(x, 9)),
            ("^x", lambda x: attention.self_attention(x[0, 0], 8)),
            ("^d_model", lambda x: attention.self_attention(x, 0)),
            ("^dropout_rate", lambda x: attention.self_attention(x, 8, dropout_rate=-0.1)),
            ("^query", lambda x: attention.cross_attention(x, x, 9)),
            ("^context", lambda x: attention.cross_attention(x, x[..., :4], 8)),
            ("^context", lambda x: attention.cross_attention(x, x[:1], 8)),
            ("^context", lambda x: attention.cross_attention(x, x[0], 8)),
            ("^x", lambda x: attention.multi_head_self_attention(x[0, 0], 2, 8)),
        ],
    )
    def test_bad_arguments(self, message: str, call: Any) -> None:
        with pytest.raises(ValueError, match=message):
            call(np.ones((2, 5, 8)))


class TestPositionalEncoding:
    @pytest.mark.parametrize(("d_model", "n"), [(8, 10000), (7, 10000), (1, 10000), (6, 100.0)])
    def test_formula(self, d_model: int, n: float) -> None:
        expected = np.empty((50, d_model))
        for position, column in np.ndindex(expected.shape):
            angle = position / n ** (2 * (column // 2) / d_model)
            expected[position, column] = np.cos(angle) if column % 2 else np.sin(angle)
        encoding = attention.positional_encoding(50, d_model, n=n)
        assert encoding.dtype == np.float64
        np.testing.assert_allclose(encoding, expected, atol=1e-13)

    def test_learned(self) -> None:
        encoding = attention.learned_positional_encoding(100, 64, rng=0)
        assert encoding.shape == (100, 64)
        assert encoding.flags.writeable
        assert 0.01 < encoding.std() < 0.03
        np.testing.assert_array_equal(encoding, attention.learned_positional_encoding(seq_len=100, d_model=64, rng=0))

    @pytest.mark.parametrize(
        ("error", "message", "call"),
        [
            (ValueError, "^seq_len", lambda: attention.positional_encoding(0, 8)),
            (ValueError, "^d_model", lambda: attention.positional_encoding(8, -1)),
            (TypeError, "^seq_len", lambda: attention.positional_encoding(8.5, 8)),  # type: ignore[arg-type]
            (ValueError, "^n:", lambda: attention.positional_encoding(8, 8, n=0)),
            (ValueError, "^n:", lambda: attention.positional_encoding(8, 8, n=np.inf)),
            (ValueError, "^seq_len", lambda: attention.learned_positional_encoding(0, 8)),
            (ValueError, "^d_model", lambda: attention.learned_positional_encoding(8, 0)),
        ],
    )
    def test_bad_arguments(self, error: type[Exception], message: str, call: Any) -> None:
        with pytest.raises(error, match=message):
            call()


class TestVisualization:
    weights = np.random.default_rng(0).dirichlet(np.ones(4), size=(2, 3, 4))

    def test_a_single_map(self) -> None:
        view = attention.attention_score_visualization(self.weights[0, 0], ["the", "cat", "sat", "down"])
        np.testing.assert_array_equal(view["weights"], self.weights[0, 0])
        assert view["tokens"] == ["the", "cat", "sat", "down"]
        assert view["shape"] == (4, 4)
        assert view["max_attention"] == self.weights[0, 0].max()
        assert view["min_attention"] == self.weights[0, 0].min()
        assert set(view) == {"weights", "tokens", "shape", "max_attention", "min_attention"}

    def test_batch_and_head(self) -> None:
        see = attention.attention_score_visualization
        np.testing.assert_array_equal(see(self.weights)["weights"], self.weights[0, 0])
        np.testing.assert_array_equal(see(self.weights, batch=1, head=2)["weights"], self.weights[1, 2])
        np.testing.assert_array_equal(see(self.weights, batch=-1, head=-1)["weights"], self.weights[1, 2])
        np.testing.assert_array_equal(see(self.weights[0], batch=2)["weights"], self.weights[0, 2])

    def test_labels_by_default(self) -> None:
        assert attention.attention_score_visualization(self.weights)["tokens"] == ["0", "1", "2", "3"]

    def test_wrong_number_of_tokens(self) -> None:
        few = attention.attention_score_visualization(self.weights, ["a", "b"])
        assert few["tokens"] == ["a", "b", "", ""]
        assert "2 labels for 4 keys" in few["note"]
        many = attention.attention_score_visualization(self.weights, tuple("abcdef"))
        assert many["tokens"] == list("abcd")
        assert "6 labels for 4 keys" in many["note"]

    @pytest.mark.parametrize(
        ("message", "keywords"),
        [
            ("^attention_weights", {"attention_weights": np.ones(3)}),
            ("^attention_weights", {"attention_weights": np.ones((0, 3))}),
            ("^batch", {"attention_weights": weights, "batch": 2}),
            ("^head", {"attention_weights": weights, "head": 3}),
            ("^head", {"attention_weights": weights[0], "head": 1}),
        ],
    )
    def test_bad_arguments(self, message: str, keywords: dict[str, Any]) -> None:
        with pytest.raises(ValueError, match=message):
            attention.attention_score_visualization(**keywords)


if __name__ == "__main__":
    raise SystemExit(pytest.main([__file__]))
