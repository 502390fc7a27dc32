"""The tables and plots of what serve.py measured.

    python benchmarks/serve_report.py FILE [--plots FOLDER]

Tables are Markdown, on stdout. A figure is the median of the rounds, with the least and the most in
brackets. ``--plots`` writes a PNG for each, with matplotlib: requests a second by task, first
tokens of a conversation by turn, and requests a second by threads if they were scanned.
"""

from __future__ import annotations

import argparse
import json
import statistics
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

OWN = (
    "pyllama",
    "pyllama, isolated",
    "pyllama, reproducible=False",
    "pyllama, LlamaCppAdapter",
)
ALONE = ("chat", "reading", "pair")
"""Tasks in which one thread asks."""

SCAN = "scan"
"""The task of runs with other numbers of threads."""

MIB = 2**20

Figures = dict[str, Any]
Run = dict[str, Any]
Results = dict[str, Any]
Column = tuple[str, Callable[[Figures], float], str]


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("results", type=Path)
    parser.add_argument("--plots", type=Path, help="a folder")
    given = parser.parse_args()
    results = json.loads(given.results.read_text())
    print(report(results))
    if given.plots:
        given.plots.mkdir(parents=True, exist_ok=True)
        plot(results, given.plots)


def report(results: Results) -> str:
    """All tables."""
    parts = ["\n".join(f"- {line}" for line in results["about"])]
    for task in names(results, "task"):
        parts += [f"**{task}**", table(results, task), *notes(results, task)]
    return "\n\n".join(parts)


def names(results: Results, key: str, task: str | None = None) -> list[str]:
    """The tasks or peers of the runs, in the order of the first round."""
    runs = [run for run in results["runs"] if task in (None, run["task"])]
    first = {run[key]: None for run in runs}
    return [name for name in first if isinstance(name, str)]


def rounds(runs: Iterable[Run], peer: str, task: str) -> list[Figures]:
    """The figures of each round; nothing if one did not end in time."""
    found = [run["figures"] for run in runs if (run["peer"], run["task"]) == (peer, task)]
    return found if all(found) else []


def medians(runs: Iterable[Run], peer: str, task: str) -> Figures:
    """The median of each number."""
    found = rounds(runs, peer, task)
    return {
        key: statistics.median(figures[key] for figures in found)
        for key, value in (found[0] if found else {}).items()
        if not isinstance(value, list)
    }


def per_second(key: str) -> Callable[[Figures], float]:
    """A count, a second."""
    return lambda figures: float(figures[key] / figures["seconds"])


def quantile(fraction: float) -> Callable[[Figures], float]:
    """A quantile of the times to the first token."""

    def of(figures: Figures) -> float:
        values = sorted(figures["first_tokens"])
        return float(values[min(len(values) - 1, int(fraction * len(values)))])

    return of


def number(key: str, divided_by: float = 1.0) -> Callable[[Figures], float]:
    """A figure as it is."""
    return lambda figures: float(figures[key] / divided_by)


MEMORY: Column = ("memory, peak (MiB)", number("memory", MIB), ".0f")
FIRST: list[Column] = [
    ("first token p50 (s)", quantile(0.5), ".2f"),
    ("p95 (s)", quantile(0.95), ".2f"),
]
THROUGHPUT: list[Column] = [
    ("requests/s", per_second("requests"), ".2f"),
    ("processor s a request", lambda f: float(f["cpu_seconds"] / f["requests"]), ".2f"),
    ("prompt t/s", per_second("prompt_tokens"), ".0f"),
    ("output t/s", per_second("output_tokens"), ".0f"),
    ("output tokens", number("output_tokens"), ".0f"),
    ("not parsed", number("failures"), ".0f"),
    MEMORY,
]
COLUMNS: dict[str, list[Column]] = {
    "chat": THROUGHPUT,
    "json": THROUGHPUT,
    "predict": THROUGHPUT + FIRST,
    "unrelated": THROUGHPUT + FIRST,
    "reading": [*FIRST, ("processor s", number("cpu_seconds"), ".1f"), MEMORY],
    "pair": [
        ("first token of the short prompt (s)", number("first_short"), ".2f"),
        ("of the long one (s)", number("first_long"), ".2f"),
        MEMORY,
    ],
    SCAN: [("requests/s", per_second("requests"), ".2f")],
}


def table(results: Results, task: str) -> str:
    """One task: a line for each peer."""
    if task == SCAN:
        return scan_table(results)
    columns = COLUMNS[task]
    lines = [row("", *(title for title, _, _ in columns)), row("---", *["---:"] * len(columns))]
    for peer in names(results, "peer", task):
        found = rounds(results["runs"], peer, task)
        cells = [spread([value(f) for f in found], form) for _, value, form in columns if found]
        lines.append(row(peer, *(cells or ["not done in time"])))
    return "\n".join(lines)


def row(*cells: str) -> str:
    """A line of a table."""
    return "| " + " | ".join(cells) + " |"


def spread(values: list[float], form: str) -> str:
    """A median, and between what the rounds were."""
    middle = f"{statistics.median(values):{form}}"
    least, most = f"{min(values):{form}}", f"{max(values):{form}}"
    return middle if least == most else f"{middle} ({least} to {most})"


def notes(results: Results, task: str) -> list[str]:
    """What follows from a table: the best of the other side, and the limit."""
    found = []
    if "requests/s" in (title for title, _, _ in COLUMNS[task]) and task != SCAN:
        rates = {
            peer: figures["requests"] / figures["seconds"]
            for peer in names(results, "peer", task)
            if (figures := medians(results["runs"], peer, task))
        }
        servers = {peer: rate for peer, rate in rates.items() if "llama-server" in peer}
        if servers:
            best = max(servers, key=lambda peer: servers[peer])
            against = [
                f"{peer}: {rates[peer] / servers[best]:.2f}" for peer in OWN if peer in rates
            ]
            found.append(f"Beside the best llama-server ({best}): {'; '.join(against)}.")
    for each in results["limits"]:
        if each["task"] == task:
            own = medians(results["runs"], each["peer"], task)
            found.append(
                f"The limit for {each['peer']}'s tokens is {each['seconds']:.1f} s, "
                f"{own['requests'] / each['seconds']:.2f} requests/s, of which it reaches "
                f"{each['seconds'] / own['seconds']:.2f}: "
                f"{own['shared_tokens']:.0f} tokens that all prompts share, "
                f"{own['unique_tokens'] - own['shared_tokens']:.0f} others, "
                f"{own['output_tokens']:.0f} of answers."
            )
    return found


def scan_table(results: Results) -> str:
    """Requests a second by threads."""
    scanned = [run for run in results["runs"] if run["task"] == SCAN]
    threads = sorted({run["threads"] for run in scanned})
    lines = [
        row("requests/s by threads", *map(str, threads)),
        row("---", *["---:"] * len(threads)),
    ]
    for peer in names(results, "peer", SCAN):
        cells = []
        for count in threads:
            runs = [run for run in scanned if run["threads"] == count]
            found = rounds(runs, peer, SCAN)
            rates = [per_second("requests")(figures) for figures in found]
            cells.append(spread(rates, ".2f") if rates else "-")
        lines.append(row(peer, *cells))
    return "\n".join(lines)


def plot(results: Results, folder: Path) -> None:
    """Write one PNG for each picture."""
    from matplotlib import pyplot

    tasks = names(results, "task")
    for task in tasks:
        if task in (SCAN, "reading", "pair"):
            continue
        peers = [
            peer for peer in names(results, "peer", task) if rounds(results["runs"], peer, task)
        ]
        rates = [
            [per_second("requests")(f) for f in rounds(results["runs"], peer, task)]
            for peer in peers
        ]
        middle = [statistics.median(each) for each in rates]
        below = [at - min(each) for at, each in zip(middle, rates, strict=True)]
        above = [max(each) - at for at, each in zip(middle, rates, strict=True)]
        figure, axes = pyplot.subplots(figsize=(7, 0.4 * len(peers) + 1))
        colors = ["C0" if peer in OWN else "C7" for peer in peers]
        axes.barh(peers, middle, xerr=[below, above], color=colors, capsize=3)
        axes.invert_yaxis()
        axes.set_xlabel("requests a second")
        axes.set_title(task)
        figure.savefig(folder / f"{task}.png", dpi=120, bbox_inches="tight")
    if "reading" in tasks:
        figure, axes = pyplot.subplots(figsize=(7, 4))
        for peer in names(results, "peer", "reading"):
            found = rounds(results["runs"], peer, "reading")
            turns = zip(*(figures["first_tokens"] for figures in found), strict=False)
            axes.plot([statistics.median(turn) for turn in turns], marker=".", label=peer)
        finish(axes, "turn", "seconds to the first token", "a conversation with pauses")
        figure.savefig(folder / "reading.png", dpi=120, bbox_inches="tight")
    if SCAN in tasks:
        figure, axes = pyplot.subplots(figsize=(6, 4))
        for peer in names(results, "peer", SCAN):
            runs = [run for run in results["runs"] if run["task"] == SCAN and run["peer"] == peer]
            threads = sorted({run["threads"] for run in runs})
            rates = [
                [
                    per_second("requests")(run["figures"])
                    for run in runs
                    if run["threads"] == count and run["figures"]
                ]
                for count in threads
            ]
            axes.plot(
                threads, [statistics.median(r) if r else 0.0 for r in rates], "o-", label=peer
            )
        axes.set_xscale("log", base=2)
        axes.set_xticks(threads, [str(count) for count in threads])
        finish(axes, "threads", "requests a second", "dspy.Predict with five demos")
        figure.savefig(folder / "threads.png", dpi=120, bbox_inches="tight")


def finish(axes: Any, x: str, y: str, title: str) -> None:
    """Label a plot."""
    axes.set_ylim(bottom=0)
    axes.set_xlabel(x)
    axes.set_ylabel(y)
    axes.set_title(title)
    axes.legend()


if __name__ == "__main__":
    main()
