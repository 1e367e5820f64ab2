"""The attention layers of models, made from their configurations, beside their modules in transformers.

    python bench/architectures.py > docs/architectures.md

Small configurations with random weights. Errors are the largest difference of the results divided by the largest
result, of the layer in float64 and in float32 against the module in float64.
"""

from __future__ import annotations

import logging
import sys
from pathlib import Path

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
a test of its own, as its relative bias is an argument of the call. `python bench/architectures.py` writes this page.

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


def main() -> None:
    import transformers

    logging.disable(logging.WARNING)  # of transformers, on token ids that small vocabularies have not
    print(HEAD.format(version=transformers.__version__))
    for name, case in CASES.items():
        print(row(name, case), flush=True)


if __name__ == "__main__":
    main()
