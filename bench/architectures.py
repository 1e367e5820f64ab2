"""The attention layers of models, made from their configurations, beside their modules in transformers.

    python bench/architectures.py > docs/architectures.md
    python bench/architectures.py --time

Small configurations with random weights. Errors are the largest difference of the results divided by the largest
result, of the layer in float64 and in float32 against the module in float64. ``--time`` compares layers of the sizes of
published models in float32 with their modules in transformers on PyTorch, called in turn.
"""

from __future__ import annotations

import argparse
import dataclasses
import logging
import statistics
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np

import headwise as hw

sys.path.append(str(Path(__file__).parents[1] / "tests"))
from layers.models import CASES, WIDTH, ModelCase, Reference, float64_for_float32

HEAD = """# Architectures

Attention layers of models beside their modules in transformers {version}, with random weights. A layer is made
and loaded by two lines:

```python
import headwise as hw

config = {{"model_type": "llama", "hidden_size": 64, "num_attention_heads": 4}}
layer = hw.MultiHeadAttention.from_config(config, layer_index=0)
layer.load_state_dict(layer.state_dict("llama", prefix="model.layers.0.self_attn."), "model.layers.0.self_attn.")
```

The error is the largest difference of the results, divided by the largest result: of the layer in float64 and in
float32, against the module in float64. The modules of ministral3 and GPT-J compute scales or angles in float32. T5 has
a test of its own, as its softmax is in float32. `python bench/architectures.py` writes this page.

| model | model type | layer | state dict | float64 | float32 |
| --- | --- | --- | --- | --- | --- |"""


def row(name: str, case: ModelCase) -> str:
    """A line of the table."""
    with float64_for_float32():
        reference = Reference(case)
        kind = hw.CausalAttention if case.decoder else hw.MultiHeadAttention
        layer = kind.from_config(reference.config, case.layer)
        layer.load_state_dict(reference.state)
        x = np.random.default_rng(0).standard_normal((2, 11, WIDTH)).astype(np.float32)
        expected = reference(x.astype(np.float64))
    errors = [np.abs(layer(x.astype(dtype))[0] - expected).max() / np.abs(expected).max() for dtype in ("f8", "f4")]
    measured = " | ".join(f"{error:.0e}" for error in errors)
    made = type(layer).__name__
    return f"| {name} | `{reference.config.model_type}` | `{made}` | `{case.form}` | {measured} |"


SIZES = {
    "Qwen3 0.6B": (
        "qwen3", {"hidden_size": 1024, "num_attention_heads": 16, "num_key_value_heads": 8, "head_dim": 128},
    ),
    "Gemma 3 1B": (
        "gemma3-sliding", {"hidden_size": 1152, "num_attention_heads": 4, "num_key_value_heads": 1, "head_dim": 256,
                           "query_pre_attn_scalar": 256, "sliding_window": 512},
    ),
}  # fmt: skip
TOKENS, ROUNDS = 512, 30


def times(name: str, threads: int) -> str:
    """A line of the table of times: one sequence of 512 tokens, the angles of the module computed beforehand."""
    import torch

    case, sizes = SIZES[name]
    reference = Reference(dataclasses.replace(CASES[case], given=CASES[case].given | sizes, window=""))
    reference.config._attn_implementation = "sdpa"  # noqa: SLF001 (as transformers names it)
    module = reference.module.float()
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.mul_(0.1)
    layer = hw.CausalAttention.from_config(reference.config, CASES[case].layer, dtype=np.float32)
    layer.load_state_dict(reference.state)
    x = np.random.default_rng(0).standard_normal((1, TOKENS, sizes["hidden_size"])).astype(np.float32)
    rows = torch.from_numpy(x)
    angles = reference.rotation(rows, torch.arange(TOKENS)[None])

    def theirs() -> np.ndarray:
        with torch.inference_mode():
            return module(rows, position_embeddings=angles, attention_mask=None)[0].numpy()

    def ours() -> np.ndarray:
        return layer(x, need_weights=False)[0]

    hw.set_num_threads(threads)
    torch.set_num_threads(threads)
    for _ in range(3):
        error = abs(ours() - theirs()).max() / abs(theirs()).max()
    if error > 1e-4:
        raise SystemExit(f"{name}: results differ by {error:.1e}")
    samples: dict[Any, list[float]] = {ours: [], theirs: []}
    for _ in range(ROUNDS):
        for call, seconds in samples.items():
            start = time.perf_counter()
            call()
            seconds.append(time.perf_counter() - start)
    own, peer = (statistics.median(seconds) for seconds in samples.values())
    return f"| {name}, 1 x {TOKENS} tokens | {own * 1e3:.2f} ms | {peer * 1e3:.2f} ms | {peer / own:.2f} |"


def main() -> None:
    import transformers

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--time", action="store_true", help="compare times instead of results")
    parser.add_argument("--threads", type=int, default=hw.get_num_threads(), help="of headwise and of PyTorch")
    options = parser.parse_args()
    if options.time:
        print("| layer | headwise | transformers on PyTorch | slowdown |\n| --- | ---: | ---: | ---: |")
        for name in SIZES:
            print(times(name, options.threads), flush=True)
        return

    logging.disable(logging.WARNING)  # of transformers, on token ids that small vocabularies have not
    print(HEAD.format(version=transformers.__version__))
    for name, case in CASES.items():
        print(row(name, case), flush=True)


if __name__ == "__main__":
    main()
