"""Times SmolLM2-135M in float32 on headwise and NumPy (examples/generate.py) and in transformers, and on headwise with
weights kept in bfloat16.

python bench/decoder.py --quick
"""

from __future__ import annotations

import argparse
import gc
import statistics
import sys
import time
from importlib import import_module
from pathlib import Path
from typing import Any

from comparison.progress import ProgressBar

from comparison import environment

sys.path.append(str(Path(__file__).parents[1] / "examples"))

PROMPT = 512  # tokens of the prompt, in one call
STEPS = 8  # tokens after the prompt, one per call
ROUNDS, QUICK_ROUNDS = 15, 3  # each decoder runs the prompt and the steps once per round
# Max difference between logits of headwise in float32 and of another decoder; they reach 30. Rounded weights differ.
TOLERANCE, ROUNDED_TOLERANCE = 1e-3, 3.0


class TimedDecoder:
    """A decoder with its samples. `read` takes the prompt and `step` the next token; both return the last logits."""

    label: str
    version: str
    tolerance = TOLERANCE

    def __init__(self) -> None:
        self.reading: list[float] = []  # seconds for the prompt
        self.stepping: list[float] = []  # seconds for a token


class GenerateDecoder(TimedDecoder):
    """The decoder of examples/generate.py, or a subclass of it."""

    def __init__(self, label: str, decoder: Any) -> None:
        super().__init__()
        self.label, self.version = label, import_module(label.lower().split()[0]).__version__
        if decoder.dtype.itemsize == 2:
            self.tolerance = ROUNDED_TOLERANCE
        self._decoder, self._cache = decoder, decoder.new_cache(PROMPT + STEPS)

    def read(self, ids: list[int]) -> Any:
        for layer in self._cache:
            layer.reset()
        return self._decoder.forward(ids, self._cache, last=True)[0]

    def step(self, token: int) -> Any:
        return self._decoder.forward([token], self._cache, last=True)[0]


class Transformers(TimedDecoder):
    """The LlamaForCausalLM of transformers, eager on PyTorch."""

    label = "transformers"

    def __init__(self, decoder: Any, threads: int) -> None:
        super().__init__()
        import torch
        import transformers
        from comparison.llama import make_model

        torch.set_num_threads(threads)
        self.version = f"{transformers.__version__} on PyTorch {torch.__version__}"
        self._model, self._cache = make_model(decoder), None

    def read(self, ids: list[int]) -> Any:
        self._cache = None
        return self._feed(ids)

    def step(self, token: int) -> Any:
        return self._feed([token])

    def _feed(self, ids: list[int]) -> Any:
        import torch

        with torch.inference_mode():
            answer = self._model(torch.tensor([ids]), past_key_values=self._cache, use_cache=True, logits_to_keep=1)
        self._cache = answer.past_key_values
        return answer.logits[0, 0].numpy()


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="few rounds, in less than a minute")
    parser.add_argument("--threads", type=int, default=environment.available_processors(), help="of each decoder")
    parser.add_argument("--rounds", type=int, help=f"default: {ROUNDS}, or {QUICK_ROUNDS} with --quick")
    args = parser.parse_args()
    environment.limit_threads(args.threads)
    # Imported here, because NumPy and other libraries read the number of threads when they are imported.
    from comparison import report

    decoders, missing = make_decoders(args.threads)
    facts = environment.describe(decoders, missing, args.threads)
    for warning in environment.warnings(facts):
        print(f"warning: {warning}", file=sys.stderr)
    failures = time_rounds(decoders, args.rounds or (QUICK_ROUNDS if args.quick else ROUNDS))
    print("\n".join([*report.heading(facts), *table(decoders)]))
    for failure in failures:
        print(f"error: {failure}", file=sys.stderr)
    return 1 if failures else 0


def make_decoders(threads: int) -> tuple[list[Any], list[str]]:
    """Decoders on headwise, NumPy and, if it is installed, transformers; the labels of the missing ones."""
    from comparison.numpy_decoder import NumPyDecoder
    from generate import Decoder, dtype_named

    decoder = Decoder()
    decoders: list[Any] = [GenerateDecoder("headwise", decoder)]
    missing = []
    try:
        decoders.append(GenerateDecoder("headwise bfloat16", Decoder(weights=dtype_named("bfloat16"))))
    except ModuleNotFoundError as error:
        missing.append(str(error.name or "ml_dtypes"))
    decoders.append(GenerateDecoder("NumPy", NumPyDecoder()))
    try:
        decoders.append(Transformers(decoder, threads))
    except ModuleNotFoundError as error:
        if error.name not in ("torch", "transformers"):
            raise
        missing.append(Transformers.label)
    return decoders, missing


def time_rounds(decoders: list[Any], rounds: int) -> list[str]:
    """Compare the logits, then time the decoders in interleaved rounds. Returns a description of each wrong result."""
    import numpy as np

    rng = np.random.default_rng(0)
    prompt, following = (rng.integers(1000, 40_000, count).tolist() for count in (PROMPT, STEPS))
    answers = [np.array([c.read(prompt), *map(c.step, following)]) for c in decoders]
    bar = ProgressBar(rounds * len(decoders))
    gc.collect()
    gc.disable()
    for _ in range(rounds):
        for decoder in decoders:
            bar.name = decoder.label
            time.sleep(0.05)  # the threads of the previous library spin for a while
            decoder.reading.append(seconds(decoder.read, prompt))
            decoder.stepping += [seconds(decoder.step, token) for token in following]
            bar.advance()
    gc.enable()
    bar.close()
    errors = [float(np.abs(a - answers[0]).max()) for a in answers]
    return [
        f"{c.label}'s logits differ from headwise's by {error:.1e}"
        for c, error in zip(decoders, errors, strict=True)
        if not error <= c.tolerance
    ]


def seconds(call: Any, argument: Any) -> float:
    start = time.perf_counter()
    call(argument)
    return time.perf_counter() - start


def table(decoders: list[Any]) -> list[str]:
    from comparison.report import duration, row

    lines = [row("", "tokens/s", *(c.label for c in decoders)), row("---", *["---:"] * (1 + len(decoders)))]
    for name, tokens, samples in (
        (f"a prompt of {PROMPT} tokens", PROMPT, [c.reading for c in decoders]),
        (f"a token after {PROMPT}", 1, [c.stepping for c in decoders]),
    ):
        own, *others = map(statistics.median, samples)
        peers = [f"{duration(median)} · **{median / own:.2f}**" for median in others]
        lines.append(row(name, f"{tokens / own:,.0f}", duration(own), *peers))
    return lines


if __name__ == "__main__":
    try:
        sys.exit(main())
    except ModuleNotFoundError as error:
        sys.exit(str(error))
