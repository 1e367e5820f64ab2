"""What headwise leaves to transformers: with one warning that says why, and the same result."""

from __future__ import annotations

import importlib
import sys
import types
import warnings
from typing import Any

import pytest

torch = pytest.importorskip("torch", reason="needs PyTorch")
transformers = pytest.importorskip("transformers", reason="needs transformers")

import headwise.integrations.transformers as hwt  # noqa: E402
from integrations.transformers_models import DECODERS, ENCODERS, make_model  # noqa: E402

pytestmark = [
    pytest.mark.single_implementation,
    pytest.mark.filterwarnings("ignore:.*:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:.*:FutureWarning"),
]
IDS = torch.randint(3, 61, (2, 9), generator=torch.Generator().manual_seed(0))


@pytest.fixture(autouse=True)
def _registered(monkeypatch: pytest.MonkeyPatch) -> None:
    hwt.register()
    transformers.utils.logging.set_verbosity_error()
    monkeypatch.setattr(hwt, "_warned", set())


def llama(implementation: str) -> Any:
    return make_model("Llama", DECODERS["Llama"], "AutoModel", implementation)


def output_and_warnings(call: Any) -> tuple[Any, list[str]]:
    with warnings.catch_warnings(record=True) as caught, torch.no_grad():
        warnings.simplefilter("always", UserWarning)
        output = call()
    return output, [str(w.message) for w in caught if "headwise" in str(w.message)]


def attention_inputs(kv_heads: int = 2) -> tuple[Any, Any, Any]:
    query, *others = torch.randn(3, 2, 4, 5, 8, generator=torch.Generator().manual_seed(1))
    return (query, *(x[:, :kv_heads] for x in others))


def test_models_with_attention_of_their_own() -> None:
    torch.manual_seed(0)
    config = transformers.BloomConfig(vocab_size=61, hidden_size=32, n_layer=2, n_head=4)

    def make() -> Any:
        return transformers.AutoModelForCausalLM.from_config(config, attn_implementation="headwise").eval()

    model, messages = output_and_warnings(make)
    assert len(messages) == 1
    assert (
        "BloomForCausalLM runs on transformers' default attention, not on headwise: its code does not use"
        in messages[0]
    )
    assert model.config._attn_implementation == "eager"
    output, messages = output_and_warnings(lambda: make()(IDS).logits)
    assert output.isfinite().all()
    assert messages == []


def test_other_devices() -> None:
    try:
        output_and_warnings(lambda: llama("eager").to("meta")(IDS.to("meta")))
    except RuntimeError:
        pytest.skip(f"transformers {transformers.__version__} runs no model on the meta device")
    output, messages = output_and_warnings(lambda: llama("headwise").to("meta")(IDS.to("meta"))[0])
    assert output.shape == (2, 9, 32)
    assert len(messages) == 1, "one for all layers"
    assert "LlamaAttention runs on transformers' eager attention" in messages[0]
    assert "its tensors are on meta" in messages[0]


@pytest.mark.parametrize(
    ("keywords", "reason"),
    [
        ({"block_indices": torch.zeros(1)}, "headwise does not know its keyword block_indices"),
        (
            {"s_aux": torch.zeros(2, 4, 5, 1)},
            r"its sinks have the shape \(2, 4, 5, 1\), headwise needs one for each of 4",
        ),
    ],
)
@pytest.mark.parametrize("masked", [True, False])
def test_calls_with_other_keywords(keywords: dict[str, Any], reason: str, masked: bool) -> None:
    module = llama("headwise").layers[0].self_attn
    tensors = attention_inputs()
    mask = hwt.ImplicitMask((2, 1, 5, 5), hwt.Pattern(causal=True), 0, None, "cpu") if masked else None
    with torch.no_grad():
        expected = hwt.attention(module, *tensors, mask, scaling=0.3)[0]
        with pytest.warns(UserWarning, match=reason):
            actual = hwt.attention(module, *tensors, mask, scaling=0.3, **keywords)[0]
    torch.testing.assert_close(actual, expected, rtol=1e-5, atol=1e-6)


def test_known_keywords_and_none_have_no_effect() -> None:
    module = llama("headwise").layers[0].self_attn
    tensors = attention_inputs()
    call = lambda **options: hwt.attention(module, *tensors, None, scaling=0.3, **options)[0]  # noqa: E731
    expected, _ = output_and_warnings(call)
    output, messages = output_and_warnings(
        lambda: call(sliding_window=3, position_ids=IDS, cu_seq_lens_q=IDS, block_indices=None, softcap=None)
    )
    assert messages == []
    assert torch.equal(output, expected)


def test_mixed_dtypes() -> None:
    """The error is that of the eager function."""
    module = llama("headwise").layers[0].self_attn
    query, key, value = attention_inputs()
    with pytest.warns(UserWarning, match="one floating dtype"), pytest.raises(RuntimeError), torch.no_grad():
        hwt.attention(module, query, key, value.double(), None, scaling=0.3)


def test_bfloat16_without_ml_dtypes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hwt, "_has_bfloat16", lambda: False)
    model = llama("headwise").bfloat16()
    output, messages = output_and_warnings(lambda: model(IDS)[0])
    assert output.dtype == torch.bfloat16
    assert len(messages) == 1
    assert "pip install ml_dtypes" in messages[0]


@pytest.mark.slow
def test_compiled_models() -> None:
    model = make_model("Gemma2", DECODERS["Gemma2"], "AutoModelForCausalLM", "headwise")
    mask = torch.ones_like(IDS)
    mask[0, :3] = 0
    options = {"attention_mask": mask, "max_new_tokens": 5, "do_sample": False}
    with torch.no_grad():
        expected = model(IDS, attention_mask=mask).logits
        tokens = model.generate(IDS, **options)
        model.forward = torch.compile(model.forward, backend="eager")
        torch.testing.assert_close(model(IDS, attention_mask=mask).logits, expected, rtol=1e-5, atol=1e-5)
        assert torch.equal(model.generate(IDS, **options, cache_implementation="static"), tokens)


@pytest.mark.slow
@pytest.mark.parametrize("gradients", [True, False])
def test_attention_is_part_of_a_compiled_graph(gradients: bool) -> None:
    query, key, value = attention_inputs()
    mask = torch.ones(5, 5, dtype=torch.bool).tril().expand(2, 1, 5, 5)
    sinks = torch.zeros(4, requires_grad=gradients)

    def call(query: Any, key: Any, value: Any) -> Any:
        return hwt.attention(None, query, key, value, mask, scaling=0.3, softcap=2.0, s_aux=sinks)[0]

    compiled = torch.compile(call, backend="eager", fullgraph=True)
    torch.testing.assert_close(compiled(query, key, value), call(query, key, value), rtol=1e-5, atol=1e-6)


@pytest.mark.slow
def test_exported_models() -> None:
    model = llama("headwise")
    model.config.use_cache = False
    with torch.no_grad():
        expected = model(IDS).last_hidden_state
    program, messages = output_and_warnings(lambda: torch.export.export(model, (), {"input_ids": IDS}).module())
    assert len(messages) == 1
    assert "not part of an exported or traced graph" in messages[0]
    torch.testing.assert_close(program(input_ids=IDS).last_hidden_state, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.slow
def test_traced_models() -> None:
    model = make_model("Bert", ENCODERS["Bert"], "AutoModel", "headwise")
    mask = torch.ones_like(IDS)
    mask[0, 6:] = 0
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")
        traced = torch.jit.trace(model, (IDS, mask), strict=False)
        actual = traced(IDS.flip(1), mask.flip(0))["last_hidden_state"]
        expected = model(IDS.flip(1), attention_mask=mask.flip(0)).last_hidden_state
    kept = mask.flip(0).bool()
    torch.testing.assert_close(actual[kept], expected[kept], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(("version", "message"), [(None, "not installed"), ("4.57.1", "5.0 or newer, found 4.57.1")])
def test_missing_or_old_transformers(monkeypatch: pytest.MonkeyPatch, version: str | None, message: str) -> None:
    library = None
    if version is not None:
        library = types.ModuleType("transformers")
        library.__version__ = version  # type: ignore[attr-defined]
    for name in ("headwise.integrations.transformers", "headwise.integrations._transformers_calls",
                 "headwise.integrations._transformers_masks"):  # fmt: skip
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "transformers", library)
    with pytest.raises(ImportError, match=message):
        importlib.import_module("headwise.integrations.transformers")
