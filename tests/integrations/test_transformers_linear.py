"""Linear attention of transformers' models (the gated delta rule) with attn_implementation="headwise"."""

from __future__ import annotations

import copy
import pickle
from typing import Any

import pytest

torch = pytest.importorskip("torch", reason="needs PyTorch")
transformers = pytest.importorskip("transformers", reason="needs transformers")

import headwise as hw  # noqa: E402
import headwise.integrations.transformers as hwt  # noqa: E402
from headwise.integrations import _transformers_linear as linear  # noqa: E402
from integrations.transformers_models import LINEAR, VOCABULARY, make_model  # noqa: E402

pytestmark = [
    pytest.mark.single_implementation,
    pytest.mark.filterwarnings("ignore:.*:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:.*:FutureWarning"),
]
QUICK = {"Qwen3Next", "KimiLinear"}
FAMILIES = [pytest.param(name, marks=() if name in QUICK else pytest.mark.slow) for name in LINEAR]


@pytest.fixture(autouse=True)
def _registered() -> None:
    hwt.register()
    transformers.utils.logging.set_verbosity_error()


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """The rule of every call of hw.linear_attention."""
    seen: list[Any] = []
    original = hw.linear_attention

    def linear_attention(*arrays: Any, **options: Any) -> Any:
        seen.append(options["rule"])
        return original(*arrays, **options)

    monkeypatch.setattr(hw, "linear_attention", linear_attention)
    return seen


def make(name: str, implementation: str = "eager") -> Any:
    if not hasattr(transformers, f"{name}Config"):
        pytest.skip(f"transformers {transformers.__version__} has no {name}")
    return make_model(name, LINEAR[name], "AutoModelForCausalLM", implementation)


def batch(length: int = 70) -> dict[str, Any]:
    """Token ids and mask of two sequences, one of them padded on the left."""
    ids = torch.randint(3, VOCABULARY, (2, length), generator=torch.Generator().manual_seed(1))
    mask = torch.ones_like(ids)
    mask[0, :5] = 0
    return {"input_ids": ids, "attention_mask": mask}


def assert_close(actual: Any, expected: Any, bound: float = 2e-5) -> None:
    torch.testing.assert_close(actual, expected, rtol=bound, atol=bound)


@pytest.mark.parametrize("name", FAMILIES)
def test_families(name: str, calls: list[Any]) -> None:
    """Whole sequences, and tokens of `generate`; the eager implementation does not change."""
    model, tokens = make(name), batch()
    options = {"do_sample": False, "max_new_tokens": 5, "min_new_tokens": 5}
    with torch.no_grad():
        expected, generated = model(**tokens).logits, model.generate(**tokens, **options)
        model.set_attn_implementation("headwise")
        actual = model(**tokens).logits
        assert calls == ["gated_delta"]
        assert torch.equal(model.generate(**tokens, **options), generated)
        assert len(calls) == 1 + 5
        kept = tokens["attention_mask"].bool()
        assert_close(actual[kept], expected[kept])
        model.set_attn_implementation("eager")
        assert torch.equal(model(**tokens).logits, expected)
        assert len(calls) == 1 + 5


@pytest.mark.parametrize("name", [pytest.param("Qwen3Next"), pytest.param("KimiLinear", marks=pytest.mark.slow)])
def test_in_parts(name: str, calls: list[Any]) -> None:
    """A prompt in two parts and single tokens by a cache, as the eager implementation computes them."""
    model = make(name)
    ids = batch()["input_ids"]
    found: list[Any] = []
    for implementation in ("eager", "headwise"):
        model.set_attn_implementation(implementation)
        cache, start = None, 0
        with torch.no_grad():
            for stop in (40, 67, 68, 69, 70):
                step = model(ids[:, start:stop], past_key_values=cache, use_cache=True)
                cache, start = step.past_key_values, stop
                found.append(step.logits)
    assert len(calls) == 5
    for actual, expected in zip(found[5:], found[:5], strict=True):
        assert_close(actual, expected)


def test_gradients_are_those_of_pytorch(calls: list[Any]) -> None:
    gradients = []
    for implementation in ("eager", "headwise"):
        model = make("Qwen3Next", implementation)
        model(batch(20)["input_ids"]).logits.square().mean().backward()
        gradients.append([p.grad for p in model.parameters() if p.grad is not None])
    for actual, expected in zip(*reversed(gradients), strict=True):
        torch.testing.assert_close(actual, expected, rtol=1e-4, atol=1e-6)
    assert not calls


def test_a_copied_model(calls: list[Any]) -> None:
    """It follows its own configuration."""
    model = make("Qwen3Next", "headwise")
    copied = copy.deepcopy(model)
    copied.set_attn_implementation("eager")
    with torch.no_grad():
        copied(**batch(9))
        assert not calls
        model(**batch(9))
        assert len(calls) == 1


def test_a_pickled_model(calls: list[Any]) -> None:
    """The layers of a model that was made before it was set to headwise are pickled by the names of their classes."""
    model = make("Qwen3Next")
    model.set_attn_implementation("headwise")
    loaded = pickle.loads(pickle.dumps(model))
    with torch.no_grad():
        assert torch.equal(loaded(**batch(9)).logits, model(**batch(9)).logits)
    assert len(calls) == 2


def test_bfloat16(calls: list[Any]) -> None:
    pytest.importorskip("ml_dtypes", reason="NumPy has bfloat16 from ml_dtypes only")
    model = make("Qwen3Next").to(torch.bfloat16)
    with torch.no_grad():
        expected = model(**batch()).logits
        model.set_attn_implementation("headwise")
        actual = model(**batch()).logits
    assert actual.dtype == torch.bfloat16
    assert calls
    kept = batch()["attention_mask"].bool()
    assert_close(actual[kept], expected[kept], 0.02)


def test_compiled_models_keep_their_graph(calls: list[Any]) -> None:
    model = make("Qwen3Next", "headwise").model.layers[0].linear_attn
    x = torch.randn(1, 9, 32)
    with torch.no_grad():
        actual = torch.compile(model, backend="eager", fullgraph=True)(x)
        assert not calls
        assert_close(actual, model(x))


def arguments(**changes: Any) -> dict[str, Any]:
    q, k, v = (torch.randn(2, 9, 2, 4) for _ in range(3))
    given = {"query": q, "key": k, "value": v, "g": -torch.rand(2, 9, 2), "beta": torch.rand(2, 9, 2)}
    return given | {"initial_state": None, "use_qk_l2norm_in_kernel": True, "output_final_state": True} | changes


@pytest.mark.parametrize("smallest", [-50.0, -200.0, -torch.inf])
def test_decays_that_round_to_zero(smallest: float) -> None:
    """They forget the state, in PyTorch's function of single tokens as here."""
    file = pytest.importorskip("transformers.models.qwen3_next.modeling_qwen3_next")
    given = arguments()
    given["g"][:, 4] = smallest
    ours, expected = linear._gated_delta_rule(**given), file.torch_recurrent_gated_delta_rule(**given)
    assert ours is not None
    for actual, wanted in zip(ours, expected, strict=True):
        assert_close(actual, wanted)


@pytest.mark.parametrize(
    "changes",
    [
        {"g": torch.full((2, 9, 2), torch.nan)},
        {"g": torch.full((2, 9, 2), 0.1)},
        {"g": None},
        {"cu_seqlens": torch.tensor([0, 4, 9])},
        {"beta": torch.rand(2, 9, 2, requires_grad=True)},
        {"query": torch.empty(2, 9, 2, 4, device="meta")},
    ],
)
def test_calls_that_are_left_to_pytorch(changes: dict[str, Any]) -> None:
    assert linear._gated_delta_rule(**arguments(**changes)) is None
