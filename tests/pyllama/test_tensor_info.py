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


@pytest.mark.parametrize("alignment", [None, 64])
def test_a_file_that_was_cut_says_so_also_when_it_is_loaded(write_tiny_model, tmp_path, alignment):
    metadata = {"general.alignment": alignment} if alignment else {}
    whole = write_tiny_model(metadata=metadata).read_bytes()
    path = tmp_path / "cut.gguf"
    end = len(whole) - 1
    for size in (end, len(whole) // 2):
        path.write_bytes(whole[:size])
        reason = f"has {size} bytes, and its tensors end at byte {len(whole)}: it is incomplete"
        with pytest.raises(pyllama.ModelLoadError, match=reason):
            pyllama.tensor_infos(path)
        for vocab_only in (True, False):
            with pytest.raises(pyllama.ModelLoadError, match=reason):
                pyllama.Model(path, vocab_only=vocab_only)
    path.write_bytes(whole)
    assert pyllama.tensor_infos(path)
