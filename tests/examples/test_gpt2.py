"""The GPT-2 of the examples against ``transformers``."""

from __future__ import annotations

import json
import subprocess
import sys
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest

FOLDER = Path(__file__).parents[2] / "examples"
sys.path.append(str(FOLDER))

import gpt2  # noqa: E402

CONFIG = {
    "model_type": "gpt2", "n_embd": 48, "n_head": 3, "n_layer": 3, "n_positions": 64, "vocab_size": 97,
    "scale_attn_by_inverse_layer_idx": True, "layer_norm_epsilon": 1e-4,
}  # fmt: skip


@pytest.fixture(scope="module")
def reference() -> Any:
    """A GPT2LMHeadModel in float64, with random weights."""
    torch = pytest.importorskip("torch", reason="the comparison needs PyTorch, package torch")
    transformers = pytest.importorskip("transformers", reason="the comparison needs the package transformers")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.manual_seed(0)
        model = transformers.GPT2LMHeadModel(transformers.GPT2Config(**CONFIG, initializer_range=0.3)).eval()
    for parameter in model.parameters():
        if parameter.ndim == 1:
            parameter.data.normal_(1.0, 0.3)
    return model.double()


@pytest.mark.parametrize(("dtype", "bound"), [("float32", 2e-5), ("float64", 1e-13)])
def test_logits_and_tokens_equal_those_of_transformers(reference: Any, dtype: str, bound: float) -> None:
    import torch

    state = {name: tensor.numpy().astype(dtype) for name, tensor in reference.state_dict().items()}
    state["transformer.h.0.attn.bias"] = np.tril(np.ones((1, 1, 64, 64), dtype))  # files of the hub hold the mask
    model = gpt2.GPT2(CONFIG, state)
    ids = np.random.default_rng(0).integers(0, 97, 30).tolist()
    with torch.inference_mode():
        expected = reference(torch.tensor([ids])).logits[0].numpy()
        written = reference.generate(torch.tensor([ids]), max_new_tokens=8, do_sample=False, pad_token_id=0)[0, 30:]
    cache = model.new_cache(30)
    logits = np.concatenate([model.forward(part, cache) for part in (ids[:20], ids[20:21], ids[21:])])
    assert logits.dtype == dtype
    assert abs(logits - expected).max() <= bound * abs(expected).max()
    assert list(model.generate(ids, 8)) == written.tolist()


@pytest.mark.single_implementation
def test_a_folder_of_files(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name in ("safetensors", "tokenizers"):
        pytest.importorskip(name, reason=f"the files need the package {name}: pip install 'headwise[examples]'")
    from safetensors.numpy import save_file
    from tokenizers import Tokenizer, models, pre_tokenizers

    words = {word: i for i, word in enumerate(["a", "b", "c"])}
    tokenizer = Tokenizer(models.WordLevel(words, unk_token="a"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    config = CONFIG | {"vocab_size": 3}
    (tmp_path / "config.json").write_text(json.dumps(config))
    state = gpt2.random_state(config)
    save_file(state, tmp_path / "model.safetensors")
    gpt2.main(["a b", "--folder", str(tmp_path), "--tokens", "3"])
    written = capsys.readouterr().out.split()
    ids = [words[word] for word in written]
    assert ids == [0, 1, *gpt2.GPT2(config, state).generate([0, 1], 3)]


@pytest.mark.single_implementation
def test_the_command() -> None:
    command = [sys.executable, str(FOLDER / "gpt2.py"), "Hé", "--tokens", "4"]
    run = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert run.returncode == 0, run.stderr
    assert run.stdout.startswith("Hé")


@pytest.mark.single_implementation
def test_bad_arguments(capsys: pytest.CaptureFixture[str]) -> None:
    for arguments in (["", "--tokens", "3"], ["x", "--tokens", "0"], ["x", "--tokens", "256"]):
        with pytest.raises(SystemExit):
            gpt2.main(arguments)
        assert "expected" in capsys.readouterr().err
    with pytest.raises(ValueError, match="relu"):
        gpt2.GPT2(CONFIG | {"activation_function": "relu"}, {})
