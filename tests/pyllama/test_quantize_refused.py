"""What quantize() refuses, and that nothing is left then."""

from __future__ import annotations

import os

import numpy as np
import pytest
from decoding import run_python

import pyllama


@pytest.fixture(scope="module")
def source(write_tiny_model):
    """Rows long enough for every type."""
    return write_tiny_model(n_embd=256, n_ff=512)


@pytest.fixture
def target(tmp_path):
    return tmp_path / "quantized.gguf"


def test_a_full_disk_leaves_nothing(source, tmp_path):
    run_python(
        """
        import os, resource, sys, logging
        import pyllama
        logging.disable()
        resource.setrlimit(resource.RLIMIT_FSIZE, (300_000, 300_000))
        try:
            pyllama.quantize(sys.argv[1], sys.argv[2] + "/model.gguf", "Q8_0")
        except pyllama.QuantizeError as error:
            assert "cannot be written: is the disk full" in str(error), error
        else:
            raise SystemExit("quantized")
        assert os.listdir(sys.argv[2]) == []
        """,
        source,
        tmp_path,
    )


def test_the_source_is_not_the_target(source, tmp_path):
    link = tmp_path / "link.gguf"
    link.symlink_to(source)
    before = source.read_bytes()
    for dst in (source, link):
        with pytest.raises(ValueError, match="dst must not be the source"):
            pyllama.quantize(source, dst, "Q8_0")
    assert source.read_bytes() == before


def test_sources_that_are_no_models(target, tmp_path, tiny_model_path):
    with pytest.raises(FileNotFoundError):
        pyllama.quantize(tmp_path / "absent.gguf", target, "Q8_0")
    path = tmp_path / "broken.gguf"
    path.write_bytes(b"hello world")
    with pytest.raises(pyllama.ModelLoadError, match="no GGUF file"):
        pyllama.quantize(path, target, "Q8_0")
    content = tiny_model_path.read_bytes()
    for kept in (4, 30, 1000, len(content) // 2):
        path.write_bytes(content[:kept])
        with pytest.raises(pyllama.QuantizeError, match=r"broken\.gguf"):
            pyllama.quantize(path, target, "Q8_0")
    assert os.listdir(tmp_path) == ["broken.gguf"]


def test_an_alignment_that_llama_cpp_would_not_keep(source, target):
    with pytest.raises(pyllama.QuantizeError):
        pyllama.quantize(source, target, "Q8_0", kv_overrides={"general.alignment": 4096})
    assert not target.exists()


@pytest.mark.parametrize(
    ("argument", "value", "error"),
    [
        ("ftype", "Q9_9", ValueError),
        ("ftype", "q8_0", ValueError),
        ("ftype", "NVFP4", ValueError),
        ("ftype", 7, ValueError),
        ("output_tensor_type", "q8_1", ValueError),
        ("token_embedding_type", "Q8_0", ValueError),
        ("tensor_types", {"attn": "i32"}, ValueError),
        ("tensor_types", {"": "q8_0"}, ValueError),
        ("tensor_types", {"a" * 257: "q8_0"}, ValueError),
        ("tensor_types", {"a\0": "q8_0"}, ValueError),
        ("tensor_types", {"\udc80": "q8_0"}, ValueError),
        ("tensor_types", {3: "q8_0"}, TypeError),
        ("tensor_types", ["attn=q8_0"], TypeError),
        ("prune_layers", [2], ValueError),
        ("prune_layers", [-1], ValueError),
        ("prune_layers", [0, 1], ValueError),
        ("prune_layers", ["0"], TypeError),
        ("prune_layers", 0, TypeError),
        ("kv_overrides", {"key": -1}, ValueError),
        ("kv_overrides", {"key": 2**32}, ValueError),
        ("kv_overrides", {"": 1}, ValueError),
        ("kv_overrides", {"k" * 128: 1}, ValueError),
        ("kv_overrides", {"key": "v" * 128}, ValueError),
        ("kv_overrides", {"key": float("nan")}, ValueError),
        ("kv_overrides", {"key": None}, TypeError),
        ("kv_overrides", {3: 3}, TypeError),
        ("nthread", 0, ValueError),
        ("nthread", 513, ValueError),
        ("nthread", "all", TypeError),
        ("max_buf_size", -1, ValueError),
        ("max_buf_size", 1.5, TypeError),
        ("progress", 3, TypeError),
        ("imatrix", 3, TypeError),
        ("imatrix", {3: np.ones(3)}, TypeError),
        ("imatrix", {"a": "b"}, TypeError),
        ("imatrix", {"a": np.ones((2, 2))}, ValueError),
        ("imatrix", {"a": np.ones(0)}, ValueError),
        ("dst", None, TypeError),
        ("dst", "", IsADirectoryError),
        ("dst", "a\0b", ValueError),
        ("dst", b"model.gguf", TypeError),
    ],
)
def test_arguments_are_checked(source, target, argument, value, error):
    arguments = {"dst": target, "ftype": "Q8_0", argument: value}
    with pytest.raises(error, match="folder|file to write" if value == "" else argument):
        pyllama.quantize(source, **arguments)
    assert not target.exists()


def test_a_pattern_that_is_no_regular_expression(source, target):
    for pattern in ("([", "*", "a{2,1}"):
        with pytest.raises(pyllama.QuantizeError, match=r"expression|repeat|brace|range|regex"):
            pyllama.quantize(source, target, "Q4_0", tensor_types={pattern: "q8_0"})
    deep = "(" * 127 + "a" + ")" * 127
    pyllama.quantize(source, target, "Q4_0", tensor_types={deep: "q8_0"})
