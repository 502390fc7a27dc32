"""The public JSON-Schema-Test-Suite: every instance that a grammar lets through is valid.

It lies in the source distribution of the jsonschema package, which pip downloads once.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tarfile
from pathlib import Path

import platformdirs
import pytest
from texts import fits

from adapter.grammar.schema.json_schema import json_schema_grammar
from adapter.grammar.schema.merging import SchemaError

pytestmark = pytest.mark.download

NAME = "jsonschema==4.26.0"
SHA256 = "0c26707e2efad8aa1bfc5b7ce170f3fccc2e4918ff85989ba9ffa9facb2be326"

EXPRESSED = (
    "additionalProperties", "anyOf", "boolean_schema", "const", "default", "enum",
    "exclusiveMaximum", "exclusiveMinimum", "items", "maxItems", "maxLength", "maxProperties",
    "maximum", "minItems", "minLength", "minProperties", "minimum", "pattern",
    "patternProperties", "prefixItems", "properties", "propertyNames", "required", "type",
)  # fmt: skip
"""Groups whose keyword is never left to be checked after."""


@pytest.fixture(scope="module")
def suite():
    """The cases of each group, by draft and group."""
    folder = platformdirs.user_cache_path("pyllama") / "test-data"
    archive = folder / f"{NAME.replace('==', '-')}.tar.gz"
    if not archive.is_file():
        folder.mkdir(parents=True, exist_ok=True)
        requirements = folder / "requirements.txt"
        requirements.write_text(f"{NAME} --hash=sha256:{SHA256}\n")
        subprocess.run(
            [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--no-binary",
             ":all:", "--require-hashes", "--dest", folder, "-r", requirements],
            check=True, stdout=sys.stderr,
        )  # fmt: skip
    groups = {}
    with tarfile.open(archive) as tar:
        for member in tar.getmembers():
            path = Path(member.name)
            if path.match("*/json/tests/draft2020-12/*.json") or path.match(
                "*/json/tests/draft7/*.json"
            ):
                file = tar.extractfile(member)
                groups[path.parent.name, path.stem] = json.load(file)
    return groups


def written(instance):
    """An instance as a model would write it, or None where it has no UTF-8 form."""
    text = json.dumps(instance, ensure_ascii=False, separators=(",", ": "))
    return None if any("\ud800" <= one < "\ue000" for one in text) else text


def test_what_is_let_through_is_valid_or_reported(tiny, suite):
    assert len(suite) > 80
    let_through = kept_out = 0
    for (draft, group), cases in suite.items():
        for case in cases:
            try:
                grammar = json_schema_grammar(json.dumps(case["schema"]))
            except SchemaError:
                continue
            if draft == "draft2020-12" and group in EXPRESSED:
                told = [what for what in grammar.unchecked if what.startswith(group)]
                assert not told, (group, case["description"])
            for test in case["tests"]:
                text = written(test["data"])
                if text is None:
                    continue
                fitting = fits(tiny, grammar.gbnf, text)
                let_through += fitting and test["valid"]
                kept_out += not fitting and not test["valid"]
                if fitting and not test["valid"]:
                    assert grammar.unchecked, (draft, group, case, test)
    # That much is not kept out by letting nothing through.
    assert let_through > 700
    assert kept_out > 500
