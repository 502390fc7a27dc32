"""docs/coverage.md: each function of llama.h is in pyllama, or it is said why not."""

from __future__ import annotations

import coverage_table
import pytest
from coverage_table import Entry, is_public


@pytest.fixture(scope="module")
def header():
    return coverage_table.read_header()


@pytest.fixture(scope="module")
def mapping():
    return coverage_table.read_mapping()


def test_the_header_is_read_whole(header):
    text = coverage_table.HEADER.read_text(encoding="utf-8")
    lines = [line.strip() for line in text.splitlines()]
    exported = [line for line in lines if "LLAMA_API " in line and not line.startswith(("#", "//"))]
    assert len(header) == len(exported) > 200
    assert sum(function.deprecated for function in header.values()) == sum(
        "DEPRECATED(" in line for line in exported
    )


def test_each_function_stands_in_the_mapping_in_the_headers_order(header, mapping):
    missing = [name for name in header if name not in mapping]
    assert not missing, f"llama.h has them, scripts/coverage.ini does not: {missing}"
    gone = [name for name in mapping if name not in header]
    assert not gone, f"scripts/coverage.ini has them, llama.h does not: {gone}"
    assert list(mapping) == list(header)
    assert [entry.section for entry in mapping.values()] == [
        function.section for function in header.values()
    ]


def test_what_is_named_is_public(mapping):
    unknown = {
        function: entry.names
        for function, entry in mapping.items()
        if entry.reason is None and not all(map(is_public, entry.names))
    }
    assert not unknown


def test_what_is_not_yet_public_is_not(mapping):
    """It fails when one of them comes, so that the mapping follows."""
    done = {
        function: entry.detail
        for function, entry in mapping.items()
        if entry.reason == "not yet" and is_public(entry.detail)
    }
    assert not done, f"no longer 'not yet': {done}"


def test_every_reason_is_given(header, mapping):
    for function, entry in mapping.items():
        assert bool(entry.names) != bool(entry.reason), function
        if entry.reason:
            assert entry.detail, function
        assert header[function].deprecated == (entry.reason == "deprecated"), function
        if entry.reason == "deprecated" and entry.detail.startswith("llama_"):
            assert not header[entry.detail].deprecated


def test_the_table_is_up_to_date(header, mapping):
    table = coverage_table.TABLE.read_text(encoding="utf-8")
    assert table == coverage_table.render(header, mapping), "run scripts/coverage_table.py"


@pytest.mark.parametrize(
    ("name", "public"),
    [
        ("pyllama.Context", True),
        ("pyllama.Context.decode", True),
        ("pyllama.Context.n_ctx", True),  # set in __init__
        ("pyllama.Device.memory", True),
        ("pyllama.Device.name", True),  # a dataclass's field
        ("pyllama.SamplerChain.close", True),  # inherited
        ("pyllama.Context.params", False),
        ("pyllama.Context._handle", False),
        ("pyllama.nothing", False),
        ("pyllama.context", False),  # a module
        ("pyllama.Context.decode.more", False),
        ("adapter.Context", False),
        ("pyllama", False),
    ],
)
def test_is_public(name, public):
    assert is_public(name) == public


def test_a_function_that_the_mapping_lacks_is_seen(tmp_path, header, mapping):
    longer = tmp_path / "llama.h"
    text = coverage_table.HEADER.read_text(encoding="utf-8")
    before, after = text.split("    LLAMA_API int32_t llama_decode(\n")
    new = '    DEPRECATED(LLAMA_API struct llama_batch\n        llama_new(void), "use old");\n'
    longer.write_text(f"{before}{new}    LLAMA_API int32_t llama_decode(\n{after}")
    read = coverage_table.read_header(longer)
    assert set(read) - set(mapping) == {"llama_new"}
    assert read["llama_new"] == coverage_table.Function("llama_new", "Decoding", True)


def test_the_table_lists_openly_what_is_not_yet(header):
    mapping = dict.fromkeys(header, Entry("Decoding", names=("pyllama.Context.decode",)))
    assert "Not yet" not in coverage_table.render(header, mapping)
    mapping["llama_decode"] = Entry("Decoding", reason="not yet", detail="pyllama.Context.more")
    table = coverage_table.render(header, mapping)
    assert "## Not yet\n\n- `llama_decode`: pyllama.Context.more\n" in table
    assert "1 not yet" in table
