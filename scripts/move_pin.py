"""Move the pin of llama.cpp, and say what that breaks.

    python scripts/move_pin.py VERSION COMMIT [--archive PATH] [--only-report]

VERSION is that of the package whose sdist holds llama.cpp (see vendor/llama_cpp_pin.json), and
COMMIT the llama.cpp that it holds. Each step is printed, and the first one that fails ends the run:

1. fetch the archive, write its version, commit and SHA-256 into the pin, and unpack it
2. say what changed in llama.h, and which parts of llama.cpp did
3. build
4. write new functions into coverage.ini as "not yet", take out those that are gone, and write
   docs/coverage.md
5. run the tests of the parts that changed, part by part, and list those that fail

To go back: git checkout vendor scripts docs, and python vendor/fetch_llama_cpp.py
"""

from __future__ import annotations

import argparse
import hashlib
import json
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Mapping
from fnmatch import fnmatch
from pathlib import Path

import coverage_table
from coverage_table import Function

ROOT = Path(__file__).resolve().parents[1]
VENDOR = ROOT / "vendor"
PIN_FILE = VENDOR / "llama_cpp_pin.json"
FETCH = VENDOR / "fetch_llama_cpp.py"

PARTS = {
    "API": (
        ["include/*", "ggml/include/*"],
        ["tests/test_binding_stub.py", "tests/test_coverage_table.py", "tests/pyllama"],
    ),
    "vocabularies": (
        ["src/llama-vocab*", "src/unicode*"],
        ["tests/pyllama/test_vocab.py", "tests/pyllama/test_long_text.py"],
    ),
    "samplers and grammars": (
        ["src/llama-sampler*", "src/llama-grammar*", "common/json-schema*", "common/*budget*"],
        [
            "tests/pyllama/test_*sampler*.py",
            "tests/pyllama/test_*grammar*.py",
            "tests/adapter/grammar",
        ],
    ),
    "chat templates": (
        ["common/chat*", "common/jinja/*", "common/peg*", "vendor/*"],
        ["tests/pyllama/test_chat*.py", "tests/adapter/engine", "tests/adapter/signatures"],
    ),
    "contexts and memory": (
        ["src/llama-context*", "src/llama-kv*", "src/llama-memory*", "src/llama-batch*"],
        [
            "tests/pyllama/test_context*.py",
            "tests/pyllama/test_memory*.py",
            "tests/adapter/generation",
        ],
    ),
    "models": (
        [
            "src/llama-model*",
            "src/llama-arch*",
            "src/llama-hparams*",
            "src/models/*",
            "ggml/src/gguf*",
        ],
        ["tests/pyllama/test_*model*.py", "tests/pyllama/test_corrupt*.py", "tests/adapter/models"],
    ),
    "quantization and adapters": (
        ["src/llama-quant*", "src/llama-adapter*"],
        ["tests/pyllama/test_quantize*.py", "tests/pyllama/test_*lora*.py"],
    ),
    "computing": (["ggml/*", "src/llama-graph*"], ["tests"]),
}
"""What to run for which files: patterns of paths in llama.cpp, and of our tests."""

UNDECIDED = "not yet: decide where it belongs"


class StepFailed(Exception):
    """A step failed; the message says what to do."""


def changed_files(before: Mapping[str, str], after: Mapping[str, str]) -> set[str]:
    """Paths whose contents differ, or that only one side has."""
    return {path for path in before.keys() | after.keys() if before.get(path) != after.get(path)}


def changed_parts(paths: Iterable[str]) -> dict[str, int]:
    """How many of the paths belong to each part, for those parts that have any."""
    paths = list(paths)
    found = {
        part: sum(any(fnmatch(path, pattern) for pattern in patterns) for path in paths)
        for part, (patterns, _) in PARTS.items()
    }
    return {part: count for part, count in found.items() if count}


def changes_of_functions(
    before: Mapping[str, Function], after: Mapping[str, Function]
) -> list[str]:
    """What changed among the functions of llama.h, one line each."""
    lines = [f"new: {name} ({after[name].section})" for name in after if name not in before]
    lines += [f"gone: {name}" for name in before if name not in after]
    lines += [
        f"deprecated: {name}"
        for name, function in after.items()
        if function.deprecated and name in before and not before[name].deprecated
    ]
    return lines


def updated_mapping(text: str, functions: Mapping[str, Function]) -> str:
    """coverage.ini for other functions: known ones keep their line, new ones are undecided."""
    known = {}
    for line in text.splitlines():
        name, equals, _ = line.partition(" = ")
        if equals:
            known[name] = line
    parts, section = [], None
    for name, function in functions.items():
        if function.section != section:
            parts += [""] * (section is not None) + [f"[{function.section}]"]
            section = function.section
        parts.append(known.get(name, f"{name} = {UNDECIDED}"))
    return "\n".join(parts) + "\n"


def hashes(folder: Path) -> dict[str, str]:
    """The SHA-256 of each file under a folder, by its path there."""
    return {
        path.relative_to(folder).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in folder.rglob("*")
        if path.is_file() and path.name != ".stamp"
    }


def write_pin(path: Path, version: str, commit: str, archive: Path) -> None:
    """Point the pin to an archive."""
    pin = json.loads(path.read_text(encoding="utf-8"))
    digest = hashlib.sha256(archive.read_bytes()).hexdigest()
    pin.update(commit=commit, version=version, sha256=digest)
    path.write_text(json.dumps(pin, indent=2) + "\n", encoding="utf-8")


def download(version: str, folder: Path) -> Path:
    """Have pip download the package's sdist, whose hash is not known yet."""
    package = json.loads(PIN_FILE.read_text(encoding="utf-8"))["package"]
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--no-binary", package]
    run([*command, "--dest", str(folder), f"{package}=={version}"], "download the archive")
    (archive,) = folder.glob("*.tar.gz")
    return archive


def run(command: list[str], what: str) -> None:
    """Run a command, whose output is shown."""
    print(f"\n== {what}: {' '.join(command)}", flush=True)
    if subprocess.run(command, cwd=ROOT, check=False).returncode:
        raise StepFailed(f"could not {what}; its output is above")


def run_tests(parts: Iterable[str]) -> list[str]:
    """Run the tests of some parts, and return the parts with failures."""
    failed = []
    for part in parts:
        paths = [
            str(path.relative_to(ROOT))
            for pattern in PARTS[part][1]
            for path in sorted(ROOT.glob(pattern))
        ]
        print(f"\n== tests of {part}", flush=True)
        command = [sys.executable, "-m", "pytest", "-q", "--no-header", "--showlocals", *paths]
        if subprocess.run(command, cwd=ROOT, check=False).returncode:
            failed.append(part)
    return failed


def fetch(version: str, commit: str, archive: Path | None) -> None:
    """Step 1."""
    with tempfile.TemporaryDirectory(prefix="pyllama-pin-") as scratch:
        found = archive or download(version, Path(scratch))
        write_pin(PIN_FILE, version, commit, found)
        for name in ([], ["--test-data"]):
            run([sys.executable, str(FETCH), *name, "--archive", str(found)], "unpack llama.cpp")


def main() -> int:
    parser = argparse.ArgumentParser(description="Move the pin of llama.cpp.")
    parser.add_argument("version", help="of the package whose sdist holds llama.cpp")
    parser.add_argument("commit", help="the llama.cpp that it holds")
    parser.add_argument("--archive", type=Path, help="the sdist, already downloaded")
    parser.add_argument("--only-report", action="store_true", help="stop before the build")
    arguments = parser.parse_args()
    sources = VENDOR / "llama.cpp"
    try:
        run([sys.executable, str(FETCH)], "see what the old pin holds")
        functions, files = coverage_table.read_header(), hashes(sources)
        fetch(arguments.version, arguments.commit, arguments.archive)

        after = coverage_table.read_header()
        parts = changed_parts(changed_files(files, hashes(sources)))
        changes = changes_of_functions(functions, after) or ["no function came, went or aged"]
        print("\n== llama.h", *changes, sep="\n   ")
        print(
            "\n== files that changed", *(f"{n:5} {part}" for part, n in parts.items()), sep="\n   "
        )
        if arguments.only_report:
            return 0

        build = [sys.executable, "-m", "pip", "install", "--no-build-isolation", "-e", ".[test]"]
        run(build, "build (a .cdef that no longer fits llama.h is an error of the compiler)")

        mapping = coverage_table.MAPPING
        text = updated_mapping(mapping.read_text(encoding="utf-8"), after)
        mapping.write_text(text, encoding="utf-8")
        run([sys.executable, "scripts/coverage_table.py"], "write docs/coverage.md")
        failed = run_tests(parts)
    except StepFailed as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    undecided = [line for line in text.splitlines() if line.endswith(UNDECIDED)]
    print("\n== what is left to do")
    for line in undecided:
        print(f"   decide in scripts/coverage.ini: {line.partition(' = ')[0]}")
    for part in failed:
        print(f"   tests fail: {part}")
    print("   then: nox -s fuzz, nox -s chaos, and the commit in CHANGELOG.md")
    return bool(failed or undecided)


if __name__ == "__main__":
    sys.exit(main())
