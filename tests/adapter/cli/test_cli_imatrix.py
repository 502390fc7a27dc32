from __future__ import annotations

import json
from shutil import copyfile

import pytest

import pyllama


@pytest.fixture
def wide(write_tiny_model, tmp_path):
    """A model whose rows are long enough for every type, in a folder of its own."""
    path = write_tiny_model(n_embd=256, n_ff=256)
    return copyfile(path, tmp_path / "tiny-F32.gguf")


@pytest.fixture
def text(tmp_path):
    path = tmp_path / "text.txt"
    path.write_text("hello world, the sea is calm. " * 20)
    return path


def test_a_matrix_makes_the_smallest_types_possible(run, wide, text, tmp_path):
    assert run("quantize", wide, "IQ2_XS").exit_code == 1
    result = run("imatrix", wide, text, "-c", 32, "--json")
    assert result.exit_code == 0, result.output
    facts = json.loads(result.stdout)
    matrix = tmp_path / "tiny-F32-imatrix.gguf"
    assert facts["path"] == str(matrix)
    assert facts["size"] == matrix.stat().st_size
    assert facts["tensors"] == len(pyllama.load_imatrix(matrix))
    assert facts["partial_tensors"] == []
    assert "--force" in run("imatrix", wide, text, "-c", 32).stderr
    assert run("imatrix", wide, text, "-c", 32, "--chunks", 1, "--force").exit_code == 0
    result = run("quantize", wide, "IQ2_XS", "--imatrix", matrix, "--json")
    assert result.exit_code == 0, result.output
    assert json.loads(result.stdout)["bits_per_weight"] < 8
    # It changes which weights are kept precisely, not the sizes.
    plain, weighted = tmp_path / "plain.gguf", tmp_path / "weighted.gguf"
    run("quantize", wide, "Q4_K_S", plain)
    run("quantize", wide, "Q4_K_S", weighted, "--imatrix", matrix)
    assert plain.stat().st_size == pytest.approx(weighted.stat().st_size, rel=0.01)
    assert plain.read_bytes()[-5000:] != weighted.read_bytes()[-5000:]


def test_the_output_may_be_a_folder(run, wide, text, tmp_path):
    (tmp_path / "out").mkdir()
    result = run("imatrix", wide, text, "-c", 32, "--chunks", 1, "-o", tmp_path / "out")
    assert result.exit_code == 0, result.output
    assert [one.name for one in (tmp_path / "out").iterdir()] == ["tiny-F32-imatrix.gguf"]
    assert "1 part\n" in result.stdout


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("none.gguf", "{text}"), "none"),
        (("{model}", "none.txt"), "cannot be read"),
        (("{model}", "."), "cannot be read"),
        (("{model}", "{text}"), "1024 are needed"),
        (("{model}", "{text}", "-o", "/no/such/folder/x.gguf"), "no folder"),
    ],
)
def test_what_cannot_be_computed_is_one_line(run, wide, text, tmp_path, arguments, words):
    filled = [argument.format(model=wide, text=text) for argument in arguments]
    result = run("imatrix", *filled)
    assert result.exit_code == 1
    assert result.stderr.startswith("error: ")
    assert words in result.stderr
    assert "Traceback" not in result.output
    assert sorted(one.name for one in tmp_path.iterdir()) == ["text.txt", "tiny-F32.gguf"]


def test_an_embedding_model_has_none(run, write_tiny_model, text):
    result = run("imatrix", write_tiny_model(architecture="bert"), text)
    assert result.exit_code == 1
    assert "embedding model" in result.stderr
