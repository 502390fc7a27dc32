from __future__ import annotations

import gguf
import pytest

import pyllama


def test_the_tensors_of_a_file_are_those_that_gguf_reads(write_tiny_model, tmp_path):
    path = tmp_path / "q.gguf"
    pyllama.quantize(write_tiny_model(n_embd=256, n_ff=256), path, "Q4_K_M")
    found = pyllama.tensor_infos(path)
    expected = gguf.GGUFReader(path).tensors
    assert [(t.name, t.shape, t.size) for t in found] == [
        (t.name, tuple(map(int, t.shape)), t.n_bytes) for t in expected
    ]
    assert [t.type.casefold() for t in found] == [t.tensor_type.name.casefold() for t in expected]


def test_a_file_that_is_no_model_is_refused(tmp_path):
    path = tmp_path / "bad.gguf"
    path.write_bytes(b"GGUF\3\0\0\0" + b"\xff" * 16)
    with pytest.raises(pyllama.ModelLoadError, match="damaged"):
        pyllama.tensor_infos(path)
    path.write_bytes(b"text")
    with pytest.raises(pyllama.ModelLoadError):
        pyllama.tensor_infos(path)
    with pytest.raises(FileNotFoundError):
        pyllama.tensor_infos(tmp_path / "none.gguf")
