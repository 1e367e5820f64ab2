"""Models of transformers with attn_implementation="headwise" against the same models with "eager"."""

from __future__ import annotations

import warnings
from typing import Any

import pytest

torch = pytest.importorskip("torch", reason="needs PyTorch")
transformers = pytest.importorskip("transformers", reason="needs transformers")

import headwise as hw  # noqa: E402
import headwise.integrations.transformers as hwt  # noqa: E402
from headwise.integrations import _transformers_masks as masks  # noqa: E402
from integrations.transformers_models import (  # noqa: E402
    DECODERS,
    ENCODER_DECODERS,
    ENCODERS,
    VOCABULARY,
    make_model,
)

pytestmark = [
    pytest.mark.single_implementation,
    pytest.mark.filterwarnings("ignore:.*:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:.*:FutureWarning"),
]

#: In the default profile, one family of each kind of attention; the others are marked slow.
QUICK = {
    "Llama", "Qwen3", "Mistral", "Gemma2", "Gemma3Text", "GptOss", "Phi3", "GPT2", "OPT", "Bert", "ModernBert", "Bart",
    "T5",
}  # fmt: skip


@pytest.fixture(autouse=True)
def _registered() -> None:
    hwt.register()
    transformers.utils.logging.set_verbosity_error()


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """The keywords of every call of hw.flash_attention."""
    seen: list[dict[str, Any]] = []
    original = hw.flash_attention

    def flash_attention(*arrays: Any, **options: Any) -> Any:
        seen.append(options)
        return original(*arrays, **options)

    monkeypatch.setattr(hw, "flash_attention", flash_attention)
    return seen


def families(table: dict[str, dict[str, Any]]) -> list[Any]:
    return [pytest.param(name, id=name, marks=() if name in QUICK else pytest.mark.slow) for name in table]


def padded_batch(left: bool) -> dict[str, Any]:
    """Token ids and mask of three sequences, two of them padded."""
    ids = torch.randint(3, VOCABULARY, (3, 13), generator=torch.Generator().manual_seed(1))
    mask = torch.ones_like(ids)
    if left:
        mask[0, :5] = mask[1, :2] = 0
    else:
        mask[0, 8:] = mask[1, 11:] = 0
    return {"input_ids": ids * mask, "attention_mask": mask}


def both(model: Any, call: Any) -> tuple[Any, Any]:
    """What `call` returns of the eager model, and of the model on headwise."""
    if not model._can_set_attn_implementation():
        pytest.skip(f"{type(model).__name__} of transformers {transformers.__version__} has attention of its own")
    with torch.no_grad():
        model.set_attn_implementation("eager")
        expected = call(model)
        model.set_attn_implementation("headwise")
        return expected, call(model)


def assert_close(actual: Any, expected: Any, bound: float = 2e-5) -> None:
    torch.testing.assert_close(actual, expected, rtol=bound, atol=bound)


def generate(model: Any, batch: dict[str, Any], **options: Any) -> Any:
    return model.generate(**batch, do_sample=False, max_new_tokens=8, min_new_tokens=8, **options)


@pytest.mark.parametrize("name", families(DECODERS))
def test_decoders(name: str, calls: list[dict[str, Any]]) -> None:
    model = make_model(name, DECODERS[name], "AutoModelForCausalLM")
    batch = padded_batch(left=True)
    expected, actual = both(model, lambda model: model(**batch).logits)
    kept = batch["attention_mask"].bool()
    assert len(calls) == 2
    assert_close(actual[kept], expected[kept])
    assert_close(*reversed(both(model, lambda model: model(batch["input_ids"]).logits)))
    tokens, ours = both(model, lambda model: generate(model, batch))
    assert torch.equal(ours, tokens)


@pytest.mark.parametrize("name", families(ENCODERS))
def test_encoders(name: str, calls: list[dict[str, Any]]) -> None:
    model = make_model(name, ENCODERS[name], "AutoModel")
    for left in (False, True):
        batch = padded_batch(left)
        expected, actual = both(model, lambda model, batch=batch: model(**batch).last_hidden_state)
        kept = batch["attention_mask"].bool()
        assert_close(actual[kept], expected[kept])
    assert calls
    assert_close(*reversed(both(model, lambda model: model(batch["input_ids"]).last_hidden_state)))


@pytest.mark.parametrize("name", families(ENCODER_DECODERS))
def test_encoder_decoders(name: str, calls: list[dict[str, Any]]) -> None:
    model = make_model(name, ENCODER_DECODERS[name], "AutoModelForSeq2SeqLM")
    batch = padded_batch(left=False)
    expected, actual = both(
        model, lambda model: model(**batch, decoder_input_ids=batch["input_ids"].clamp_min(3)[:, :7]).logits
    )
    assert len(calls) == 6
    assert_close(actual, expected)
    tokens, ours = both(model, lambda model: generate(model, batch))
    assert torch.equal(ours, tokens)
    tokens, ours = both(model, lambda model: generate(model, batch, num_beams=3))
    assert torch.equal(ours, tokens)


@pytest.mark.parametrize("name", ["Llama", "Gemma2", "GptOss", "Mistral", "T5", "Bert"])
def test_gradients(name: str) -> None:
    """Of every parameter, softcap, sinks and position bias included."""
    table = next(table for table in (DECODERS, ENCODERS, ENCODER_DECODERS) if name in table)
    model = make_model(
        name, table[name], {"T5": "AutoModelForSeq2SeqLM", "Bert": "AutoModel"}.get(name, "AutoModelForCausalLM")
    )
    batch = padded_batch(left=False)
    if name == "T5":
        batch["decoder_input_ids"] = batch["input_ids"].clamp_min(3)[:, :7]
    gradients = []
    for implementation in ("eager", "headwise"):
        model.set_attn_implementation(implementation)
        model.zero_grad()
        output = model(**batch)[0]
        output[:, :7].square().mean().backward()
        gradients.append({name: p.grad for name, p in model.named_parameters() if p.grad is not None})
    eager, ours = gradients
    assert ours.keys() == eager.keys()
    for parameter, expected in eager.items():
        torch.testing.assert_close(
            ours[parameter], expected, rtol=1e-4, atol=1e-5 + 1e-5 * expected.abs().max(), msg=parameter
        )


def test_dropout() -> None:
    """Training draws from PyTorch's generator; evaluation drops nothing."""
    model = make_model("Llama", DECODERS["Llama"] | {"attention_dropout": 0.5}, "AutoModel", "headwise")
    ids = padded_batch(left=True)["input_ids"]
    with torch.no_grad():
        kept = model(ids)[0]
        model.train()
        torch.manual_seed(7)
        dropped = model(ids)[0]
        torch.manual_seed(7)
        assert torch.equal(model(ids)[0], dropped)
        assert not torch.equal(model(ids)[0], dropped)
        assert not torch.equal(kept, dropped)
    torch.manual_seed(7)
    torch.testing.assert_close(model(ids)[0].detach(), dropped, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("inference", [True, False])
def test_position_bias_is_copied_again_when_it_changes(inference: bool) -> None:
    with torch.inference_mode(inference), torch.no_grad():
        bias = torch.randn(1, 130, 130, 4).permute(0, 3, 1, 2)
        query = torch.randn(2, 4, 130, 8)
        outputs = [hwt.attention(None, query, query, query, None, is_causal=False, position_bias=bias)[0] for _ in "ab"]
        assert torch.equal(*outputs)
        assert hasattr(bias, "_headwise_copy") != inference  # PyTorch does not count writes in inference_mode
        if not inference:
            copy = bias._headwise_copy[0]
            assert copy.is_contiguous() and torch.equal(copy, bias)
        bias[..., 60, 3] = -torch.inf
        changed = hwt.attention(None, query, query, query, None, is_causal=False, position_bias=bias)[0]
        expected = hwt.attention(None, query, query, query, None, is_causal=False, position_bias=bias.clone())[0]
        torch.testing.assert_close(changed, expected, rtol=1e-5, atol=1e-6)
        assert not torch.equal(changed, outputs[0])


@pytest.mark.slow
def test_whisper() -> None:
    sizes = {"d_model": 32, "encoder_layers": 2, "decoder_layers": 2, "vocab_size": VOCABULARY, "num_mel_bins": 8}
    heads = {"encoder_attention_heads": 4, "decoder_attention_heads": 4, "encoder_ffn_dim": 48, "decoder_ffn_dim": 48}
    special = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2, "decoder_start_token_id": 1}
    config = transformers.WhisperConfig(**sizes, **heads, **special, max_source_positions=20, max_target_positions=16)
    torch.manual_seed(0)
    model = transformers.WhisperForConditionalGeneration(config).eval()
    inputs = {"input_features": torch.randn(2, 8, 40), "decoder_input_ids": torch.randint(3, VOCABULARY, (2, 7))}
    assert_close(*reversed(both(model, lambda model: model(**inputs).logits)))


@pytest.mark.parametrize("name", ["Llama", "Gemma2", "Mistral"])
def test_static_caches_and_beams(name: str) -> None:
    model = make_model(name, DECODERS[name], "AutoModelForCausalLM")
    batch = padded_batch(left=True)
    for options in ({"cache_implementation": "static"}, {"num_beams": 3}, {"use_cache": False}):
        tokens, ours = both(model, lambda model, options=options: generate(model, batch, **options))
        assert torch.equal(ours, tokens), options


@pytest.mark.parametrize("name", ["Llama", "Gemma2", "Mistral", "GptOss"])
def test_a_prompt_in_parts(name: str) -> None:
    """A second call with several tokens and a cache: positions of queries do not begin at 0."""
    model = make_model(name, DECODERS[name], "AutoModelForCausalLM")
    batch = padded_batch(left=True)
    ids, mask = batch["input_ids"], batch["attention_mask"]

    def in_parts(model: Any) -> Any:
        first = model(ids[:, :7], attention_mask=mask[:, :7])
        second = model(ids[:, 7:11], attention_mask=mask[:, :11], past_key_values=first.past_key_values)
        return model(ids[:, 11:], attention_mask=mask, past_key_values=second.past_key_values).logits

    expected, actual = both(model, in_parts)
    assert_close(actual, expected)


def test_no_mask_of_queries_and_keys_is_built(monkeypatch: pytest.MonkeyPatch) -> None:
    def dense(_: Any) -> Any:
        raise AssertionError

    assert masks.patterns_hold()  # compares small dense masks, once in a process
    monkeypatch.setattr(hwt.ImplicitMask, "dense", dense)
    for name in ("Llama", "Mistral", "Gemma2", "GptOss"):
        model = make_model(name, DECODERS[name], "AutoModelForCausalLM", "headwise")
        with torch.no_grad():
            generate(model, padded_batch(left=True))
            generate(model, padded_batch(left=True), cache_implementation="static")
    with torch.no_grad():
        make_model("Bert", ENCODERS["Bert"], "AutoModel", "headwise")(**padded_batch(left=False))
        model = make_model("Bart", ENCODER_DECODERS["Bart"], "AutoModelForSeq2SeqLM", "headwise")
        generate(model, padded_batch(left=False))


@pytest.mark.parametrize("name", ["Bert", "Llama", "Gemma2", "GptOss"])
def test_attention_weights(name: str) -> None:
    auto, table = ("AutoModel", ENCODERS) if name == "Bert" else ("AutoModelForCausalLM", DECODERS)
    model = make_model(name, table[name], auto)
    batch = {"input_ids": padded_batch(left=True)["input_ids"]}
    expected, actual = both(model, lambda model: model(**batch, output_attentions=True).attentions)
    assert len(actual) == len(expected) == 2
    for ours, theirs in zip(actual, expected, strict=True):
        assert_close(ours, theirs)


def test_custom_masks() -> None:
    """Masks of four axes that the caller made, and packed sequences: tensors, not patterns."""
    model = make_model("Llama", DECODERS["Llama"], "AutoModelForCausalLM")
    ids = padded_batch(left=True)["input_ids"]
    keep = torch.rand(3, 1, 13, 13, generator=torch.Generator().manual_seed(2)) < 0.5
    keep |= torch.eye(13, dtype=torch.bool)
    added = torch.zeros(keep.shape).masked_fill_(~keep, torch.finfo(torch.float32).min)
    expected, actual = both(model, lambda model: model(ids, attention_mask=added).logits)
    assert_close(actual, expected)
    with torch.no_grad():
        assert_close(model(ids, attention_mask=keep).logits, expected)
    positions = torch.tensor([*range(5), *range(8)]).expand(3, 13)
    expected, actual = both(model, lambda model: model(ids, position_ids=positions, use_cache=False).logits)
    assert_close(actual, expected)


@pytest.mark.parametrize(
    ("dtype", "name", "bound"), [("float16", "Gemma2", 5e-3), ("bfloat16", "GptOss", 5e-2), ("float64", "Llama", 1e-5)]
)
def test_dtypes(dtype: str, name: str, bound: float) -> None:
    if dtype == "bfloat16":
        pytest.importorskip("ml_dtypes", reason="NumPy has bfloat16 from ml_dtypes")
    model = make_model(name, DECODERS[name], "AutoModelForCausalLM").to(getattr(torch, dtype))
    ids = padded_batch(left=True)["input_ids"]
    expected, actual = both(model, lambda model: model(ids).logits)
    assert actual.dtype == expected.dtype == getattr(torch, dtype)
    assert_close(actual, expected, bound)


def test_a_second_registration_changes_nothing() -> None:
    original = transformers.PreTrainedModel.get_correct_attn_implementation
    hwt.register()
    assert transformers.PreTrainedModel.get_correct_attn_implementation is original


def test_results_do_not_depend_on_the_registration_of_warnings() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        model = make_model("Llama", DECODERS["Llama"], "AutoModelForCausalLM", "headwise")
        with torch.inference_mode():
            assert model(**padded_batch(left=True)).logits.shape == (3, 13, VOCABULARY)


@pytest.mark.slow
def test_sentence_transformers(tmp_path: Any, calls: list[dict[str, Any]]) -> None:
    pytest.importorskip("sentence_transformers", reason="needs sentence-transformers")
    from sentence_transformers import SentenceTransformer
    from tokenizers import Tokenizer, models, pre_tokenizers

    words = ["[PAD]", "[UNK]", *["a", "quick", "fox", "jumps", "over", "two", "lazy", "dogs"]]
    tokenizer = Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    fast = transformers.PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="[PAD]", unk_token="[UNK]")
    fast.save_pretrained(tmp_path)
    make_model("Bert", ENCODERS["Bert"], "AutoModel").save_pretrained(tmp_path)
    sentences = ["a fox", "a quick fox jumps over two lazy dogs", "dogs"]
    eager, ours = (
        SentenceTransformer(str(tmp_path), model_kwargs={"attn_implementation": name}, device="cpu").encode(sentences)
        for name in ("eager", "headwise")
    )
    assert len(calls) == 2
    assert_close(torch.tensor(ours), torch.tensor(eager))
