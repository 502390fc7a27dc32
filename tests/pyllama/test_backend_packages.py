"""Backends in packages of their own: found, loaded, refused."""

from __future__ import annotations

import ctypes
import json
import logging
import re
import shutil
import sys
from pathlib import Path

import pytest
from decoding import run_python

import pyllama
from pyllama import device
from pyllama._guard import to_str
from pyllama._native._binding import lib
from pyllama.backend_packages import _find_library, _reason, find_packages, load_packages

COMMIT = to_str(lib.pyllama_upstream_commit())
OTHER_COMMIT = "0123456789abcdef0123456789abcdef01234567"
MODULE = next(iter(sorted(Path(device._LIBRARIES).glob("*ggml-cpu-x64.*"))), None)

# Loads the backends with the packages in a folder, and tells what became of them.
LOAD = """
    import json, logging, sys
    sys.path.insert(0, sys.argv[1])
    import pyllama
    found = [(each.name, each.problem) for each in pyllama.backend_packages()]
    paths = [backend.path for backend in pyllama.backends()]
    print(json.dumps([found, paths, pyllama.devices()[-1].name]))
"""


@pytest.fixture
def install(tmp_path, monkeypatch):
    """Writes a package as pip installs it, into a folder that Python looks into."""
    monkeypatch.syspath_prepend(tmp_path)

    def write(
        entry="cuda13",
        *,
        module=b"",
        file_name="libggml-cuda.so",
        commit=COMMIT,
        description=None,
        folder=True,
    ):
        name = f"pyllama_dspy_{entry}"
        info = tmp_path / f"{name}-0.1.0.dist-info"
        info.mkdir()
        (info / "METADATA").write_text(
            f"Metadata-Version: 2.1\nName: pyllama-dspy-{entry}\nVersion: 0.1.0\n"
        )
        (info / "entry_points.txt").write_text(f"[pyllama.backends]\n{entry} = {name}\n")
        if not folder:
            return tmp_path
        (tmp_path / name).mkdir()
        (tmp_path / name / "__init__.py").write_text("raise RuntimeError('nothing runs it')\n")
        facts = {
            "backend": "CUDA",
            "llama_cpp_commit": commit,
            "backend_api_version": 2,
            "module": file_name,
            "library_folders": ["other/lib"],
        }
        text = json.dumps(facts) if description is None else description
        (tmp_path / name / "backend.json").write_text(text)
        path = tmp_path / name / file_name
        if isinstance(module, Path):
            shutil.copy(module, path)
        elif module is not None:
            path.write_bytes(module)
        return tmp_path

    return write


def load(folder):
    return json.loads(run_python(LOAD, folder))


def test_a_package_is_found_and_none_of_its_code_runs(install):
    folder = install()
    (package,) = find_packages()
    assert package.problem is None
    assert (package.name, package.version) == ("pyllama-dspy-cuda13", "0.1.0")
    assert (package.backend, package.llama_cpp_commit) == ("CUDA", COMMIT)
    assert package.path == str(folder / "pyllama_dspy_cuda13" / "libggml-cuda.so")
    assert "pyllama_dspy_cuda13" not in sys.modules


def test_one_of_another_llama_cpp_is_refused_and_both_are_named(install):
    install(commit=OTHER_COMMIT)
    (package,) = find_packages()
    assert package.is_unfit
    assert OTHER_COMMIT[:10] in package.problem
    assert COMMIT[:10] in package.problem
    assert "pip install --upgrade" in package.problem
    assert "[cuda13]'" in package.problem


def test_one_whose_llama_cpp_is_not_known_is_refused(install):
    install(commit="unpinned")
    (package,) = find_packages()
    assert package.is_unfit
    assert "pyllama.load_backend(" in package.problem


@pytest.mark.parametrize(
    "changes",
    [
        {"description": "{"},
        {"description": "[]"},
        {"description": "3"},
        {"description": '{"backend": "CUDA"}'},
        {"folder": False},
        {"module": None},
    ],
    ids=["no JSON", "no object", "a number", "no commit", "no folder", "no module"],
)
def test_an_incomplete_one_is_refused(install, changes):
    install("cuda99", **changes)  # so that none that is installed here can be in its place
    (package,) = [each for each in find_packages() if each.name == "pyllama-dspy-cuda99"]
    assert package.is_unfit
    assert "pip install --force-reinstall --no-deps pyllama-dspy-cuda99" in package.problem


def test_a_package_with_damaged_metadata_hides_no_other(install):
    folder = install()
    for name, text in {
        "a": "[pyllama.backends]\nno value\n",
        "b": "[pyllama.backends]\nb = no.b\n",
    }.items():
        (folder / f"{name}-1.dist-info").mkdir()
        (folder / f"{name}-1.dist-info" / "entry_points.txt").write_text(text)
    names = {package.name: package.is_unfit for package in find_packages()}
    assert names == {"pyllama-dspy-cuda13": False, "no.b": True}
    assert pyllama.distribution_name()


def test_the_later_of_two_comes_first(install):
    install("cuda12")
    install("cuda13")
    names = [package.name for package in find_packages()]
    assert names == ["pyllama-dspy-cuda13", "pyllama-dspy-cuda12"]


@pytest.mark.skipif(MODULE is None, reason="this build's backends are no modules")
def test_its_module_is_loaded_and_the_next_for_the_same_devices_is_not(install):
    install("one", module=MODULE)
    folder = install("other", module=MODULE)
    found, paths, _ = load(folder)
    assert found[0] == ["pyllama-dspy-other", None]
    assert found[1][0] == "pyllama-dspy-one"
    assert "pyllama-dspy-other drives the same devices" in found[1][1]
    assert str(folder / "pyllama_dspy_other" / "libggml-cuda.so") in paths


def test_one_that_cannot_be_loaded_leaves_the_others_at_work(install):
    folder = install(module=b"not a library")
    ((name, problem),), paths, last = load(folder)
    assert name == "pyllama-dspy-cuda13"
    assert "it could not be loaded" in problem
    assert "libggml-cuda.so" in problem
    assert not any("pyllama_dspy" in path for path in paths)
    assert last == "CPU"


@pytest.mark.parametrize(
    ("library", "reason"),
    [
        ("libcuda.so.1", "NVIDIA's driver, which brings libcuda.so.1, is not installed here"),
        ("libcublas.so.13", "libcublas.so.13, which it needs, is not installed here"),
    ],
)
def test_a_library_that_is_missing_is_named(library, reason):
    said = f"loading /x.so: failed to load /x.so: {library}: cannot open shared object file: No"
    assert _reason(said) == reason


def test_libraries_of_other_packages_are_found_wherever_pip_put_them(
    install, tmp_path_factory, monkeypatch
):
    install(module=b"a module")
    (package,) = find_packages()
    assert _find_library(package, "libcublas.so.13") is None
    elsewhere = tmp_path_factory.mktemp("elsewhere")
    (elsewhere / "other" / "lib").mkdir(parents=True)
    library = elsewhere / "other" / "lib" / "libcublas.so.13"
    library.touch()
    monkeypatch.syspath_prepend(elsewhere)
    assert _find_library(package, "libcublas.so.13") == str(library)

    tried, loaded = [], []

    def load_module(path):
        tried.append(path)
        if not loaded:
            raise pyllama.BackendError(f"{library.name}: cannot open shared object file: No such")
        raise pyllama.BackendError("libcuda.so.1: cannot open shared object file: No such")

    monkeypatch.setattr(ctypes, "CDLL", loaded.append)
    (package,) = load_packages(elsewhere, load_module)
    assert "NVIDIA's driver" in package.problem
    assert tried == [package.path] * 2
    assert loaded == [str(library)]


@pytest.mark.skipif(MODULE is None, reason="this build's backends are no modules")
def test_a_backend_that_the_build_has_is_not_loaded_twice(install):
    folder = install(module=MODULE, file_name=MODULE.name)
    ((_, problem),), _, _ = load(folder)
    assert "this build has a CUDA backend of its own" in problem


def test_a_refused_one_is_a_warning_and_one_without_driver_is_none(install, caplog):
    install("cuda12", commit=OTHER_COMMIT)
    install("cuda13", module=b"not a library")
    caplog.set_level(logging.INFO, "pyllama.backends")
    load_packages(device._LIBRARIES, device._load_module)
    told = {record.args[0]: record.levelname for record in caplog.records}
    assert told["pyllama-dspy-cuda12"] == "WARNING"
    assert told["pyllama-dspy-cuda13"] == "INFO"


def test_asking_for_its_backend_says_why_it_is_not_used(install):
    folder = install(module=b"not a library")
    told = run_python(
        """
        import sys
        sys.path.insert(0, sys.argv[1])
        import pyllama
        try:
            pyllama.backend_devices("cuda")
        except pyllama.BackendError as error:
            print(error)
        """,
        folder,
    )
    if "its driver offers no GPU" not in told:  # of a build with a CUDA backend of its own
        assert "pyllama-dspy-cuda13 is not used: " in told
    assert re.search("Devices here: .*CPU", told)  # and a GPU of another backend, if there is one


def test_no_package_is_loaded_with_modules_of_a_folder(install):
    folder = install(module=b"not a library")
    told = run_python(
        """
        import sys
        sys.path.insert(0, sys.argv[1])
        import pyllama
        from pyllama.device import _LIBRARIES
        pyllama.load_backends(_LIBRARIES)
        print(pyllama.backend_packages())
        """,
        folder,
    )
    assert told.strip() == "[]"
