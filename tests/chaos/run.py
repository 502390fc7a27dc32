"""Proves what the documentation promises for failures, shutdown and load: ``nox -s chaos``.

    python tests/chaos/run.py [--seed N] [--seconds N] [--count N] [--case N] [exits] [binding] …

Without names all instruments run. Exits with 1 after a failure, and says how to repeat the case.
"""

from __future__ import annotations

import argparse
import importlib
import random
import signal
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

sys.path[:0] = [str(Path(__file__).parents[1])]

from instruments import Asked, Failure  # noqa: E402

#: Each is a module, and has a share of the time.
INSTRUMENTS = {
    "exits": 0.25,
    "binding": 0.25,
    "pool": 0.2,
    "soak": 0.1,
    "shortage": 0.1,
    "caches": 0.1,
}


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("names", nargs="*", metavar="name", help=f"of {', '.join(INSTRUMENTS)}")
    parser.add_argument("--seed", type=int, help="by default another one each time")
    parser.add_argument("--seconds", type=float, default=240, help="for all together (240)")
    parser.add_argument("--count", type=int, help="the most cases of each")
    parser.add_argument("--case", type=int, help="run this case alone")
    given = parser.parse_args()
    # A shell has what it starts in the background ignore Ctrl-C, and children inherit that.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    names = given.names or list(INSTRUMENTS)
    if unknown := set(names) - set(INSTRUMENTS):
        parser.error(
            f"no such instrument: {', '.join(unknown)}; there are {', '.join(INSTRUMENTS)}"
        )
    seed = random.randrange(10**6) if given.seed is None else given.seed
    print(f"seed {seed}", flush=True)
    whole = sum(INSTRUMENTS[name] for name in names)
    failed = 0
    for name in names:
        with tempfile.TemporaryDirectory(prefix="chaos-") as folder:
            seconds = given.seconds * INSTRUMENTS[name] / whole
            asked = Asked(seed, seconds, given.count, given.case, Path(folder))
            began = time.monotonic()
            told = importlib.import_module(name).run(asked)
        took = time.monotonic() - began
        print(f"{name}: {told.done} cases in {took:.0f} s, {len(told.failures)} failed")
        for note, count in told.notes.most_common(60):
            print(f"    {count:8} {note}")
        _print_failures(name, seed, told.failures)
        failed += len(told.failures)
    return 1 if failed else 0


def _print_failures(name: str, seed: int, failures: list[Failure]) -> None:
    for kind, count in Counter(failure.kind for failure in failures).most_common():
        first = next(failure for failure in failures if failure.kind == kind)
        print(f"\n  {count} times: {kind}")
        print(f"  repeat: nox -s chaos -- --seed {seed} --case {first.case} {name}")
        print("\n".join(f"    {line}" for line in first.detail.splitlines()))
    sys.stdout.flush()


if __name__ == "__main__":
    sys.exit(main())
