"""``PYTHONPATH=tests python -m fuzz SECONDS [FUZZER...]``: runs each fuzzer, in a process of its own, for that long."""

from __future__ import annotations

import argparse
import random
import subprocess
import sys
import time
import warnings
from collections import Counter

import fuzz
from fuzz import runner

#: Seconds beyond its time after which a fuzzer is said to hang. Shrinking an example may take five minutes.
PATIENCE = 600


def child(name: str, seconds: float, seed: int) -> None:
    """Runs one fuzzer from one seed on."""
    stop, count = time.monotonic() + seconds, Counter[str]()
    while time.monotonic() < stop:
        print(f"seed {seed}", file=sys.stderr, flush=True)
        count += runner.run(name, seed, max_examples=20, derandomize=False, database=None)
        seed += 1
    print(f"{name}: {', '.join(f'{n:,} {what}' for what, n in count.items())}, no finding", flush=True)


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m fuzz", description=fuzz.__doc__.split("\n", 1)[0])
    parser.add_argument("seconds", type=float)
    parser.add_argument("fuzzers", nargs="*", default=list(runner.FUZZERS), metavar="FUZZER")
    parser.add_argument("--seed", type=int, help="of the first examples; random by default")
    parser.add_argument("--here", action="store_true", help="run the fuzzer in this process")
    given = parser.parse_args()
    seed = random.randrange(2**32) if given.seed is None else given.seed
    failed = 0
    for name in given.fuzzers:
        if given.here:
            warnings.simplefilter("error")
            child(name, given.seconds, seed)
            continue
        command = [
            sys.executable,
            "-X",
            "faulthandler",
            "-m",
            "fuzz",
            f"{given.seconds}",
            name,
            f"--seed={seed}",
            "--here",
        ]
        try:
            ended = subprocess.run(
                command, check=False, stderr=subprocess.PIPE, text=True, timeout=given.seconds + PATIENCE
            )
            status, log = ended.returncode, ended.stderr
        except subprocess.TimeoutExpired as late:
            status, log = "none: it hangs", (late.stderr or b"").decode()
        if status != 0:
            failed += 1
            lines = log.splitlines()
            last = [line.split()[1] for line in lines if line.startswith("seed ")][-1:]
            print(f"{name}: exit status {status}", *(line for line in lines if not line.startswith("seed ")), sep="\n")
            print(
                f"To run it again: PYTHONPATH=tests python -m fuzz 1 {name} --here --seed {(last or [seed])[0]}",
                flush=True,
            )
    return min(failed, 1)


if __name__ == "__main__":
    sys.exit(main())
