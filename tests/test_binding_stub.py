"""_binding.pyi, by which mypy checks the calls of C, says what the extension module has."""

from __future__ import annotations

import ast

import binding_stub
import pytest

from pyllama._native._binding import ffi, lib


@pytest.fixture(scope="module")
def stub():
    return binding_stub.STUB.read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def classes(stub):
    return {node.name: node for node in ast.parse(stub).body if isinstance(node, ast.ClassDef)}


def test_the_stub_is_what_the_script_writes(stub):
    assert stub == binding_stub.stub(), "run scripts/binding_stub.py"


def test_the_stub_has_every_name_of_the_extension_module(classes):
    members = classes["_Lib"].body
    functions = {node.name: node for node in members if isinstance(node, ast.FunctionDef)}
    constants = {node.target.id for node in members if isinstance(node, ast.AnnAssign)}
    assert functions.keys() | constants == set(dir(lib))
    for name, function in functions.items():
        n_taken = len(function.args.posonlyargs + function.args.args) - 1  # self
        assert n_taken == len(ffi.typeof(getattr(lib, name)).args), name
