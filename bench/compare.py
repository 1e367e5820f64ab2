"""Times headwise and other libraries in interleaved rounds in one process, and prints their slowdown.

python bench/compare.py --quick
python bench/compare.py --json results.json --chart results.png
"""

from __future__ import annotations

import argparse
import os
import sys

from comparison.cases import SECTIONS, Case
from comparison.peers import LABELS, load

from comparison import environment

# Each round times every library once.
ROUNDS, QUICK_ROUNDS = 21, 5


def main() -> int:
    parser = make_parser()
    args = parser.parse_args()
    sections = select(args.cases, args.quick)
    if not sections:
        parser.error(f"--cases: no case has {args.cases!r} in its name")
    if args.list:
        print("\n".join(case.name for cases in sections.values() for case in cases))
        return 0

    environment.limit_threads(args.threads)
    # Imported here, because NumPy and other libraries read the number of threads when they are imported.
    from comparison import report, timing

    if args.chart:  # fail before the measurements if matplotlib is missing
        try:
            from comparison import chart
        except ModuleNotFoundError as error:
            parser.error(f"--chart: {error}")

    libraries, missing = load(args.peers, args.threads)
    if not environment.has_bfloat16():
        missing.append("ml_dtypes (needed for bfloat16)")
    if args.target:
        import headwise

        try:
            headwise.set_target(args.target)
        except ValueError as error:
            parser.error(f"--target: {error}")
    facts = environment.describe(libraries, missing, args.threads)
    for warning in environment.warnings(facts):
        print(f"warning: {warning}", file=sys.stderr)

    rounds = args.rounds or (QUICK_ROUNDS if args.quick else ROUNDS)
    results, failures = timing.run(sections, libraries, rounds)

    print(report.markdown(facts, results))
    if args.json:
        report.write_json(args.json, facts, results)
    if args.chart:
        chart.draw(args.chart, facts, results)
    for failure in failures:
        print(f"error: {failure}", file=sys.stderr)
    return 1 if failures else 0


def select(substring: str, quick: bool) -> dict[str, list[Case]]:
    """The selected cases that can run on this machine, by section, without empty sections."""
    bfloat16 = environment.has_bfloat16()

    def wanted(case: Case) -> bool:
        return substring in case.name and (case.quick or not quick) and (bfloat16 or case.dtype != "bfloat16")

    chosen = {title: list(filter(wanted, cases)) for title, cases in SECTIONS.items()}
    return {title: cases for title, cases in chosen.items() if cases}


def make_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="a small selection of cases, in less than a minute")
    parser.add_argument("--cases", default="", metavar="SUBSTRING", help="only cases with this in their names")
    parser.add_argument("--list", action="store_true", help="print the names of the cases and stop")
    parser.add_argument(
        "--peers", type=parse_peers, default=list(LABELS), help=f"some of {','.join(LABELS)}; default: all"
    )
    parser.add_argument("--target", help="headwise's instruction set: avx512, avx2, …; default: the best")
    parser.add_argument(
        "--threads",
        type=positive,
        default=environment.available_processors(),
        help="number of threads of each library; default: the processors that this process may use (%(default)s)",
    )
    parser.add_argument("--rounds", type=positive, help=f"default: {ROUNDS}, or {QUICK_ROUNDS} with --quick")
    parser.add_argument("--json", metavar="FILE", help="write every sample to this file")
    parser.add_argument("--chart", metavar="FILE.png", help="draw a chart of the ratios into this file")
    return parser


def parse_peers(text: str) -> list[str]:
    names = [name for name in text.split(",") if name]
    unknown = [name for name in names if name not in LABELS]
    if unknown:
        message = f"{', '.join(unknown)}: expected some of {', '.join(LABELS)}"
        raise argparse.ArgumentTypeError(message)
    return names


def positive(text: str) -> int:
    number = int(text)
    if number < 1:
        message = f"{number}: expected at least 1"
        raise argparse.ArgumentTypeError(message)
    return number


if __name__ == "__main__":
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")  # hides messages of XLA
    sys.exit(main())
