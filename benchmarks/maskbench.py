"""MaskBench: how many public JSON schemas a grammar holds to, and how fast.

    python benchmarks/maskbench.py DATA [--vocab GGUF] [--engines pyllama,pyllama-any-order,…]
        [--every N] [--shard I/N] [--masks] [--processes N] [--timeout SECONDS] [--details FILE]
    python benchmarks/maskbench.py --join FILE…

DATA is the folder `maskbench/data` of the repository guidance-ai/jsonschemabench: one schema a
file, with instances that fit it and instances that do not. GGUF is any model or vocabulary,
the embedded model if it is left out; all engines have the same. llguidance and xgrammar run where
they are installed beside pyllama.

An instance is written as `json.dumps` writes it, tokenized, and taken token by token until one is
refused; at its end the text must be complete. As in MaskBench itself, a schema passes if it can be
compiled, all of its valid instances are taken, and none of its invalid ones. An invalid instance
that is taken is counted as "told" where the engine itself said which keywords it leaves out, and
such a schema does not pass either.

Times are processor time of one process. "compile" goes from the schema to a grammar that is ready;
"token check" is the check of one token and its acceptance, which is what sampling does for nearly
every token here; with --masks, "mask" is finding all tokens that may come next, before each. For
times that mean something, the machine must be quiet, and --processes no more than half its cores.

A run can be made in parts, on one machine or on several: --shard 1/4 examines a quarter of the
files, and --details keeps what was found. --join makes one table of all parts and all engines.
"""

from __future__ import annotations

import argparse
import gc
import json
import multiprocessing
import resource
import signal
import time
import zlib
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass, field
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any

import numpy as np
from maskbench_engines import ENGINES, Engine, installed, version

import pyllama
from adapter.models import embedded_model

HALVES = ("even", "odd")
"""Of the files, by a checksum of their names: what was learned from one is tried on the other."""

TIMES = ("checks", "masks")
"""Of an outcome: an array each."""


@dataclass
class Outcome:
    """What became of one schema.

    refused    valid instances that were not taken, each with what was left of its text
    taken      invalid instances that were
    failure    why there was no grammar, or no end
    """

    file: str
    half: str
    n_tests: int = 0
    compile_ms: float = 0.0
    failure: str = ""
    told: list[str] = field(default_factory=list)
    refused: list[tuple[int, str]] = field(default_factory=list)
    taken: list[int] = field(default_factory=list)
    checks: Any = field(default_factory=lambda: np.zeros(0, np.float32))  # microseconds
    masks: Any = field(default_factory=lambda: np.zeros(0, np.float32))

    @property
    def passes(self) -> bool:
        """As MaskBench has it."""
        return not (self.failure or self.refused or self.taken)


def half_of(path: Path) -> str:
    """Which half a file belongs to."""
    return HALVES[zlib.crc32(path.name.encode()) % 2]


def examine(engine: Engine, vocab: pyllama.Vocab, path: Path, masks: bool) -> Outcome:
    """Compile one schema, and try its instances."""
    given = json.loads(path.read_text())
    tests = given["tests"]
    outcome = Outcome(path.name, half_of(path), len(tests))
    gc.collect()  # what the last schema left is not this one's to pay for
    began = time.process_time()
    try:
        engine.compile(given["schema"])
    except Exception as error:  # whatever an engine raises is its answer
        outcome.failure = f"{type(error).__name__}: {error}"[:300]
        return outcome
    outcome.compile_ms = 1000 * (time.process_time() - began)
    outcome.told = [*engine.told]
    checks: list[int] = []
    mask_times: list[int] = []
    for index, test in enumerate(tests):
        text = json.dumps(test["data"], ensure_ascii=False)
        tokens = vocab.tokenize(text, add_special=False)
        engine.begin()
        n_taken = 0
        for token in tokens:
            if masks:
                start = time.process_time_ns()
                engine.mask()
                mask_times.append(time.process_time_ns() - start)
            start = time.process_time_ns()
            allowed = engine.check(token)
            checks.append(time.process_time_ns() - start)
            if not allowed:
                break
            n_taken += 1
        fits = n_taken == len(tokens) and engine.complete()
        if fits and not test["valid"]:
            outcome.taken.append(index)
        if test["valid"] and not fits:
            outcome.refused.append((index, vocab.detokenize(tokens[n_taken:])[:120]))
    engine.finish()
    outcome.checks = np.array(checks, np.float32) / 1000
    outcome.masks = np.array(mask_times, np.float32) / 1000
    return outcome


def work(name: str, vocab_path: Path, options: argparse.Namespace, work: Connection) -> None:
    """Examine the files that are sent, one at a time."""
    limit = options.memory << 30
    resource.setrlimit(resource.RLIMIT_DATA, (limit, limit))
    with pyllama.Model(vocab_path, vocab_only=True) as model:
        engine = ENGINES[name](model.vocab)
        work.send(None)
        while (path := work.recv()) is not None:
            signal.alarm(options.timeout)  # ends the process
            outcome = examine(engine, model.vocab, path, options.masks)
            signal.alarm(0)
            work.send(outcome)


class Worker:
    """A process that examines files, and is replaced where one of them ends it."""

    def __init__(self, start: Callable[[Connection], multiprocessing.Process]) -> None:
        self.connection, other = multiprocessing.Pipe()
        self.process = start(other)
        other.close()
        self.path: Path | None = None

    def give(self, path: Path | None) -> None:
        """Send the next file, or None for the end."""
        self.path = path
        self.connection.send(path)

    def answer(self) -> Outcome | None:
        """What became of the file. Raises EOFError where the process did not live to say."""
        return self.connection.recv()  # type: ignore[no-any-return]

    def end(self) -> str:
        """How a process that is gone came to its end."""
        self.process.join()
        code = self.process.exitcode
        return "timeout" if code == -signal.SIGALRM else f"crash: exit code {code}"


def run(name: str, paths: Iterable[Path], options: argparse.Namespace) -> list[Outcome]:
    """Examine all files with one engine."""
    context = multiprocessing.get_context("spawn")

    def start(connection: Connection) -> Any:
        process = context.Process(
            target=work, args=(name, options.vocab, options, connection), daemon=True
        )
        process.start()
        return process

    todo = iter(paths)
    found: list[Outcome] = []
    workers = [Worker(start) for _ in range(options.processes)]
    while workers:
        for connection in wait([worker.connection for worker in workers]):
            [worker] = [one for one in workers if one.connection is connection]
            try:
                outcome = worker.answer()
            except EOFError:
                if worker.path is None:
                    raise SystemExit(f"{name} cannot begin: {worker.end()}") from None
                failure = worker.end()
                found.append(Outcome(worker.path.name, half_of(worker.path), failure=failure))
                workers[workers.index(worker)] = Worker(start)
                continue
            if outcome is not None:
                found.append(outcome)
            path = next(todo, None)
            worker.give(path)
            if path is None:
                workers.remove(worker)
    return found


def saved(name: str, outcome: Outcome) -> str:
    """One engine's outcome as a line of JSON; times in tenths of a microsecond, to be short."""
    times = {key: np.rint(10 * getattr(outcome, key)).astype(int).tolist() for key in TIMES}
    return json.dumps({"engine": name, **asdict(outcome), **times})


def joined(paths: Iterable[Path]) -> dict[str, list[Outcome]]:
    """The outcomes that runs kept, by engine.

    Raises ValueError where a schema was examined twice with one engine.
    """
    found: dict[str, dict[str, Outcome]] = {}
    for path in paths:
        with path.open() as lines:
            for line in lines:
                given = json.loads(line)
                of_engine = found.setdefault(given.pop("engine"), {})
                given |= {key: np.array(given[key], np.float32) / 10 for key in TIMES}
                if given["file"] in of_engine:
                    raise ValueError(f"{path} has {given['file']}, which another file has too")
                of_engine[given["file"]] = Outcome(**given)
    return {name: [*outcomes.values()] for name, outcomes in found.items()}


def percentiles(values: Any, digits: int) -> str:
    """The middle, the tail and the worst of some times."""
    if not len(values):
        return ""
    shown = [np.percentile(values, share) for share in (50, 95, 99, 100)]
    return " / ".join(f"{value:.{digits}f}" for value in shown)


def column(outcomes: list[Outcome]) -> dict[str, str]:
    """What one engine's column of the table says."""
    n_files = len(outcomes)

    def share(of: list[Outcome]) -> str:
        n_passed = sum(one.passes for one in of)
        return f"{n_passed} ({100 * n_passed / max(1, len(of)):.1f} %)"

    untold = [one for one in outcomes if one.taken and not one.told]
    told = [one for one in outcomes if one.taken and one.told]
    compiled = [one.compile_ms for one in outcomes if not one.failure] or [0.0]
    checks = np.concatenate([one.checks for one in outcomes])
    masks = np.concatenate([one.masks for one in outcomes])
    halves = {half: [one for one in outcomes if one.half == half] for half in HALVES}
    failures = [one.failure for one in outcomes if one.failure]
    n_ended = sum(failure.startswith(("timeout", "crash")) for failure in failures)
    rows = {
        "schemas": str(n_files),
        "passed": share(outcomes),
        **{f"passed, {half} half": share(halves[half]) for half in HALVES},
        "compile error": str(len(failures) - n_ended),
        "timeout or crash": str(n_ended),
        "valid refused": str(sum(bool(one.refused) for one in outcomes)),
        "invalid taken, untold": str(len(untold)),
        "invalid taken, told": str(len(told)),
        "tokens": str(len(checks)),
        "compile, mean (ms)": f"{np.mean(compiled):.2f}",
        "p50/p95/p99/worst": percentiles(compiled, 1),
        "token check, mean (µs)": f"{np.mean(checks):.1f}",
        "p50/p95/p99/worst ": percentiles(checks, 0),
    }
    if len(masks):
        rows |= {
            "mask, mean (µs)": f"{np.mean(masks):.1f}",
            "p50/p95/p99/worst  ": percentiles(masks, 0),
        }
    return rows


def table(columns: dict[str, dict[str, str]]) -> str:
    """All engines beside each other, in Markdown."""
    names = dict.fromkeys(row for rows in columns.values() for row in rows)
    lines = [["", *columns]]
    lines += [[row.strip(), *(rows.get(row, "") for rows in columns.values())] for row in names]
    widths = [max(len(line[i]) for line in lines) for i in range(len(lines[0]))]
    lines.insert(1, ["-" * (width - 1) + (":" if i else "-") for i, width in enumerate(widths)])
    return "\n".join(
        "|" + "|".join(
            one.rjust(width) if i else one.ljust(width)
            for i, (one, width) in enumerate(zip(line, widths, strict=True))
        ) + "|"
        for line in lines
    )  # fmt: skip


def shard(text: str) -> tuple[int, int]:
    """Which part of how many: "2/4" is the second of four."""
    number, _, count = text.partition("/")
    if not (number.isdecimal() and count.isdecimal() and 1 <= int(number) <= int(count)):
        raise argparse.ArgumentTypeError(f"{text!r} is no part such as 2/4")
    return int(number), int(count)


def main() -> None:
    """Run what the command line asks for."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("data", type=Path, nargs="?")
    parser.add_argument("--vocab", type=Path, default=None)
    parser.add_argument("--engines", default=",".join(installed()))
    parser.add_argument("--every", type=int, default=1, help="of the files, in order of checksums")
    parser.add_argument("--shard", type=shard, default=(1, 1), help="I/N: part I of N of the files")
    parser.add_argument("--half", choices=HALVES)
    parser.add_argument("--masks", action="store_true")
    parser.add_argument("--processes", type=int, default=1)
    parser.add_argument("--timeout", type=int, default=60, help="seconds for a schema")
    parser.add_argument("--memory", type=int, default=4, help="GiB for a process")
    parser.add_argument("--details", type=Path, help="a file for one line of JSON a schema")
    parser.add_argument("--join", type=Path, nargs="+", help="files of --details, for one table")
    options = parser.parse_args()
    if options.join:
        columns = {name: column(outcomes) for name, outcomes in joined(options.join).items()}
    elif options.data is None:
        parser.error("give the folder maskbench/data, or --join and files of --details")
    else:
        columns = examined(parser, options)
    print(table(columns))


def examined(
    parser: argparse.ArgumentParser, options: argparse.Namespace
) -> dict[str, dict[str, str]]:
    """Examine what the options say. Returns each engine's column."""
    if options.vocab is None:
        options.vocab = embedded_model.fetch()
    number, count = options.shard
    paths = sorted(
        options.data.glob("*.json"), key=lambda path: (zlib.crc32(path.name.encode()), path.name)
    )[:: options.every][number - 1 :: count]
    if options.half:
        paths = [path for path in paths if half_of(path) == options.half]
    if not paths:
        parser.error(f"{options.data} has no schemas: give the folder maskbench/data")
    columns = {}
    details = options.details.open("w") if options.details else None
    for engine in options.engines.split(","):
        began = time.monotonic()
        outcomes = run(engine, paths, options)
        name = f"{engine} {version(engine)}"
        columns[name] = column(outcomes)
        print(f"{engine}: {time.monotonic() - began:.0f} s", flush=True)
        if details:
            details.writelines(saved(name, outcome) + "\n" for outcome in outcomes)
            details.flush()
    return columns


if __name__ == "__main__":
    main()
