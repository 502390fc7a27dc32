"""The distributions' metadata: one name, and add-ons that fit what they are added to."""

from __future__ import annotations

import re
from importlib import metadata
from pathlib import Path

import pytest

import pyllama
from pyllama import backend_choice
from pyllama.backend_packages import GROUP

try:
    import tomllib
except ImportError:  # CPython 3.10
    import tomli as tomllib

ROOT = Path(__file__).parents[1]


def read(folder):
    return tomllib.loads((folder / "pyproject.toml").read_text(encoding="utf-8"))


MAIN = read(ROOT)
NAME = MAIN["project"]["name"]
ADDONS = {
    file.parent.name: file.parent for file in ROOT.glob("packaging/backends/*/pyproject.toml")
}
EXTRAS = MAIN["project"]["optional-dependencies"]


def test_what_is_installed_has_the_name_of_the_project():
    assert pyllama.distribution_name() == NAME
    assert metadata.version(NAME) == pyllama.__version__
    assert pyllama.extra_command("convert") == f"pip install '{NAME}[convert]'"


def test_documents_and_errors_name_extras_that_there_are():
    files = [*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md"), *ROOT.glob("src/**/*.py")]
    named = {
        (path.name, *match.groups())
        for path in files
        for match in re.finditer(r"(\bpyllama[\w-]*)\[(\w+)\]", path.read_text(encoding="utf-8"))
    }
    assert named
    assert [each for each in named if each[1] != NAME or each[2] not in EXTRAS] == []
    assert set(backend_choice._EXTRAS.values()) <= set(EXTRAS)


@pytest.mark.parametrize("folder", ADDONS)
def test_an_addon_fits(folder):
    facts = read(ADDONS[folder])
    project = facts["project"]
    assert project["name"] == f"{NAME}-{folder}"
    assert EXTRAS[folder] == [project["name"]]
    assert project["entry-points"] == {GROUP: {folder: project["name"].replace("-", "_")}}
    version, dependencies = facts["tool"]["dynamic-metadata"]
    assert (ADDONS[folder] / version["input"]).resolve() == ROOT / "src/pyllama/__init__.py"
    assert dependencies["result"][0] == f"{NAME}=={{project[version]}}"
    assert facts["tool"]["scikit-build"]["cmake"]["define"]["PYLLAMA_BACKEND"] in {
        entry.name for entry in pyllama.build_info()
    }


def test_each_addon_has_an_extra():
    assert set(ADDONS) <= set(EXTRAS)
    assert {"cuda12", "cuda13", "rocm"} <= set(ADDONS)


def test_the_release_uses_actions_by_their_commits():
    workflow = (ROOT / ".github" / "workflows" / "release.yml").read_text(encoding="utf-8")
    used = re.findall(r"uses: *(\S+)", workflow)
    assert used
    assert [each for each in used if not re.fullmatch(r"[\w./-]+@[0-9a-f]{40}", each)] == []
