"""Moving the pin of llama.cpp, as far as it needs no network."""

from __future__ import annotations

import fnmatch
import hashlib
import json

import coverage_table
import move_pin
import pytest
from coverage_table import Function


def functions(*names, section="Model", deprecated=()):
    return {name: Function(name, section, name in deprecated) for name in names}


def test_what_changed_in_the_header_is_reported():
    before = functions("llama_a", "llama_b", "llama_c")
    after = functions("llama_a", "llama_c", "llama_d", deprecated=["llama_c"])
    assert move_pin.changes_of_functions(before, after) == [
        "new: llama_d (Model)",
        "gone: llama_b",
        "deprecated: llama_c",
    ]


def test_the_mapping_follows_the_header():
    text = "[Model]\nllama_a = pyllama.Model\nllama_b = left out: of no use\n"
    after = functions("llama_b", "llama_new") | functions("llama_c", section="Vocab")
    assert move_pin.updated_mapping(text, after) == (
        "[Model]\n"
        "llama_b = left out: of no use\n"
        f"llama_new = {move_pin.UNDECIDED}\n"
        "\n"
        "[Vocab]\n"
        f"llama_c = {move_pin.UNDECIDED}\n"
    )


def test_the_mapping_stays_for_the_same_header():
    text = coverage_table.MAPPING.read_text(encoding="utf-8")
    assert move_pin.updated_mapping(text, coverage_table.read_header()) == text


def test_an_undecided_function_can_be_read(tmp_path):
    path = tmp_path / "coverage.ini"
    path.write_text(move_pin.updated_mapping("", functions("llama_a")), encoding="utf-8")
    assert coverage_table.read_mapping(path)["llama_a"].reason == "not yet"


def test_files_that_came_went_or_changed(tmp_path):
    (tmp_path / "src").mkdir()
    for name in ("same", "other", "gone"):
        (tmp_path / "src" / name).write_text(name)
    before = move_pin.hashes(tmp_path)
    (tmp_path / "src" / "other").write_text("new text")
    (tmp_path / "src" / "gone").rename(tmp_path / "src" / "come")
    after = move_pin.hashes(tmp_path)
    assert move_pin.changed_files(before, after) == {"src/other", "src/gone", "src/come"}


def test_parts_are_reported_by_their_files():
    found = move_pin.changed_parts(["src/llama-vocab.cpp", "src/unicode.cpp", "common/chat.cpp"])
    assert found == {"vocabularies": 2, "chat templates": 1}


@pytest.mark.parametrize("part", move_pin.PARTS)
def test_every_pattern_finds_something(part):
    sources = move_pin.VENDOR / "llama.cpp"
    paths = [path.relative_to(sources).as_posix() for path in sources.rglob("*")]
    patterns, tests = move_pin.PARTS[part]
    assert [pattern for pattern in patterns if not fnmatch.filter(paths, pattern)] == []
    assert [pattern for pattern in tests if not list(move_pin.ROOT.glob(pattern))] == []


def test_the_pin_is_written_as_the_script_reads_it(tmp_path):
    archive = tmp_path / "archive.tar.gz"
    archive.write_bytes(b"an archive")
    pin = tmp_path / "pin.json"
    pin.write_text(move_pin.PIN_FILE.read_text(encoding="utf-8"), encoding="utf-8")
    move_pin.write_pin(pin, "9.9.9", "c" * 40, archive)
    before = json.loads(move_pin.PIN_FILE.read_text(encoding="utf-8"))
    assert json.loads(pin.read_text(encoding="utf-8")) == {
        **before,
        "version": "9.9.9",
        "commit": "c" * 40,
        "sha256": hashlib.sha256(b"an archive").hexdigest(),
    }
