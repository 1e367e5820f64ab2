"""Results as Markdown and as JSON."""

from __future__ import annotations

import json
from dataclasses import asdict
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING

from comparison.peers import LABELS

if TYPE_CHECKING:
    from comparison.environment import Environment
    from comparison.timing import Result


def markdown(facts: Environment, results: list[Result]) -> str:
    labels = peer_labels(results)
    lines = [
        *heading(facts),
        row("case", "GFLOP/s", "headwise", *labels),
        row("---", *["---:"] * (2 + len(labels))),
    ]
    for section, group in groupby(results, key=lambda result: result.section):
        lines.append(row(f"**{section}**", *[""] * (2 + len(labels))))
        for result in group:
            seconds, ratios = result.seconds, result.ratios
            gflops = "" if result.gflops is None else f"{result.gflops:.3g}"
            cells = [f"{duration(seconds[x])} · **{ratios[x]:.2f}**" if x in ratios else "" for x in labels]
            lines.append(row(result.case.name, gflops, duration(seconds["headwise"]), *cells))
    return "\n".join(lines)


def heading(facts: Environment) -> list[str]:
    """The lines above a table of times."""
    return [
        f"{facts.cpu}; {facts.system}; load {facts.load} before the start.",
        "",
        f"{versions(facts)}. headwise on {facts.target}; {threads(facts)} for each library.",
        *([f"Not installed: {', '.join(facts.missing)}."] if facts.missing else []),
        "",
        "Medians. Behind the time of each peer: its slowdown relative to headwise.",
        "",
    ]


def write_json(path: str, facts: Environment, results: list[Result]) -> None:
    document = {
        "environment": asdict(facts),
        "results": [
            {
                "section": result.section,
                "name": result.case.name,
                "case": {"operation": result.case.operation, **asdict(result.case)},
                "gflops": result.gflops,
                "seconds": result.seconds,
                "ratios": result.ratios,
                "samples": result.samples,
            }
            for result in results
        ],
    }
    Path(path).write_text(json.dumps(document, indent=1), encoding="utf-8")


def peer_labels(results: list[Result]) -> list[str]:
    """The labels of the peers that have a time in any result."""
    return [label for label in LABELS.values() if any(label in result.samples for result in results)]


def versions(facts: Environment) -> str:
    return ", ".join(f"{label} {version}" for label, version in facts.versions.items())


def threads(facts: Environment) -> str:
    return "1 thread" if facts.threads == 1 else f"{facts.threads} threads"


def duration(seconds: float) -> str:
    """Three digits, in s, ms or µs."""
    for unit, size in (("s", 1.0), ("ms", 1e-3)):
        if seconds >= size:
            return f"{seconds / size:.3g} {unit}"
    return f"{seconds / 1e-6:.3g} µs"


def row(*cells: str) -> str:
    return f"| {' | '.join(cells)} |"
