"""Linear attention: when it pays, and how fast it is.

    python bench/linear_attention.py                 # time and error beside softmax attention over lengths
    python bench/linear_attention.py --onnxruntime   # beside ONNX Runtime's LinearAttention, and one token with a state
    python bench/linear_attention.py --processor-time  # seconds of processor time on one thread, for a busy machine

Medians of interleaved rounds. The table of lengths is that of docs/linear_attention.md.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

import headwise as hw

Array = NDArray[Any]
Call = Callable[[], Any]


def medians(calls: dict[str, Call], rounds: int, clock: Callable[[], float]) -> dict[str, float]:
    """Milliseconds of each call."""
    times: dict[str, list[float]] = {name: [] for name in calls}
    for _ in range(rounds):
        for name, call in calls.items():
            start = clock()
            call()
            times[name].append(1e3 * (clock() - start))
    return {name: statistics.median(values) for name, values in times.items()}


def lengths(rounds: int, clock: Callable[[], float]) -> None:
    """Causal attention of 8 heads of 64: times, and the relative error of Performers against the softmax."""
    print("| tokens | softmax, ms | elu, ms | Performer of 128, ms | error | of 512, ms | error |")
    print("| --- | --- | --- | --- | --- | --- | --- |")
    rng = np.random.default_rng(0)
    small, large = (hw.performer_features(64, count, rng=0) for count in (128, 512))
    for length in (256, 1024, 4096, 16384):
        q, k, v = rng.standard_normal((3, 1, 8, length, 64), dtype=np.float32)
        q, k = 0.5 * q, 0.5 * k
        exact = hw.flash_attention(q, k, v, is_causal=True)

        def performer(features: Any, q: Array = q, k: Array = k, v: Array = v) -> Array:
            return hw.linear_attention(q, k, v, feature_map=features, is_causal=True)[0]

        errors = [
            float(np.linalg.norm(performer(features) - exact) / np.linalg.norm(exact)) for features in (small, large)
        ]
        calls: dict[str, Call] = {
            "softmax": lambda q=q, k=k, v=v: hw.flash_attention(q, k, v, is_causal=True),
            "elu": lambda q=q, k=k, v=v: hw.linear_attention(q, k, v, is_causal=True),
            "small": lambda performer=performer: performer(small),
            "large": lambda performer=performer: performer(large),
        }
        ms = medians(calls, rounds, clock)
        print(
            f"| {length} | {ms['softmax']:.1f} | {ms['elu']:.1f} | {ms['small']:.1f} | {errors[0]:.2f} "
            f"| {ms['large']:.1f} | {errors[1]:.2f} |"
        )


def session(rule: str, feeds: dict[str, Array], heads: int, threads: int, domain: str) -> Any:
    """A model of one LinearAttention on ``threads`` threads: the kernel of the domain com.microsoft, or the operator of
    opset 27, which ONNX Runtime 1.32 runs as a Scan over tokens."""
    import onnxruntime
    from onnx import TensorProto, helper

    names = ["query", "key", "value", "state", "decay" if "gated" in rule else "", "beta" if "delta" in rule else ""]
    while not names[-1]:
        names.pop()
    node = helper.make_node(
        "LinearAttention", names, ["output", "present"], domain=domain, q_num_heads=heads, kv_num_heads=heads,
        update_rule=rule, scale=1.0,
    )  # fmt: skip
    shapes = {name: x.shape for name, x in feeds.items()}
    shapes |= {"output": feeds["query"].shape, "present": feeds["state"].shape}
    floats = [helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name, shape in shapes.items()]
    graph = helper.make_graph([node], rule, floats[:-2], floats[-2:])
    opsets = [helper.make_opsetid("", 21 if domain else 27), helper.make_opsetid("com.microsoft", 1)]
    model = helper.make_model(graph, opset_imports=opsets, ir_version=10)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    return onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])


def beside_onnxruntime(rounds: int, clock: Callable[[], float], threads: int) -> None:
    print("| rule | tokens | headwise, ms | com.microsoft, ms | ratio | opset 27, ms | ratio | copy of the state, ms |")
    print("| --- | --- | --- | --- | --- | --- | --- | --- |")
    rng = np.random.default_rng(0)
    for length, heads in ((2048, 8), (1, 8), (1, 64)):
        for rule in ("linear", "gated", "delta", "gated_delta"):
            q, k, v = rng.standard_normal((3, 1, heads, length, 128), dtype=np.float32)
            k /= np.linalg.norm(k, axis=-1, keepdims=True)
            logarithms = -0.1 * rng.random((1, heads, length), dtype=np.float32)
            options: dict[str, Any] = {"state": np.zeros((1, heads, 128, 128), np.float32)}
            feeds = {
                name: np.ascontiguousarray(x.swapaxes(1, 2).reshape(1, length, -1))
                for name, x in (("query", q), ("key", k), ("value", v))
            } | options
            if "gated" in rule:
                feeds["decay"] = np.ascontiguousarray(logarithms.swapaxes(1, 2))
                options["decay"] = np.exp(logarithms)
            if "delta" in rule:
                options["beta"] = rng.random((1, heads, length), dtype=np.float32)
                feeds["beta"] = np.ascontiguousarray(options["beta"].swapaxes(1, 2))
            kernel, operator = (session(rule, feeds, heads, threads, domain).run for domain in ("com.microsoft", ""))
            state, copy = options["state"], np.empty_like(options["state"])

            def ours(q: Array = q, k: Array = k, v: Array = v, rule: str = rule, options: Any = options) -> Array:
                return hw.linear_attention(q, k, v, feature_map=None, is_causal=True, rule=rule, **options)[0]

            for run in (kernel, operator):
                difference = np.abs(run(None, feeds)[0] - ours().swapaxes(1, 2).reshape(1, length, -1)).max()
                assert difference < 1e-3, f"{rule}: results differ by {difference}"
            calls: dict[str, Call] = {
                "ours": ours,
                "kernel": lambda kernel=kernel, feeds=feeds: kernel(None, feeds),
                "operator": lambda operator=operator, feeds=feeds: operator(None, feeds),
                "copy": lambda copy=copy, state=state: np.copyto(copy, state),
            }
            ms = medians(calls, rounds if length > 1 else 50 * rounds, clock)
            print(
                f"| {rule} | {length}, {heads} heads | {ms['ours']:.3f} | {ms['kernel']:.3f} "
                f"| {ms['kernel'] / ms['ours']:.1f} | {ms['operator']:.3f} | {ms['operator'] / ms['ours']:.1f} "
                f"| {ms['copy']:.3f} |"
            )


def main() -> None:
    parser = argparse.ArgumentParser(description=str(__doc__).partition("\n")[0])
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--onnxruntime", action="store_true", help="beside ONNX Runtime's operator")
    parser.add_argument("--processor-time", action="store_true", help="processor time of one thread")
    options = parser.parse_args()
    threads = 1 if options.processor_time else options.threads
    clock = time.process_time if options.processor_time else time.perf_counter
    hw.set_num_threads(threads)
    if options.onnxruntime:
        beside_onnxruntime(options.rounds, clock, threads)
    else:
        lengths(options.rounds, clock)


if __name__ == "__main__":
    main()
