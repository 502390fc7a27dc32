from __future__ import annotations

import json
import math
from shutil import copyfile

import numpy as np
import pytest

import pyllama
from adapter.models import embedded_model


@pytest.fixture
def wide(write_tiny_model):
    """A model whose rows are long enough for every type."""
    return write_tiny_model(n_embd=256, n_ff=256)


def test_a_model_is_quantized_beside_itself(run, wide, tmp_path):
    path = copyfile(wide, tmp_path / "tiny-F32.gguf")
    planned = json.loads(run("quantize", path, "q8_0", "--dry-run", "--json").stdout)
    assert [one.name for one in tmp_path.iterdir()] == ["tiny-F32.gguf"]
    result = run("quantize", path, "q8_0", "--json")
    assert result.exit_code == 0, result.output
    facts = json.loads(result.stdout)
    written = tmp_path / "tiny-Q8_0.gguf"
    assert facts["paths"] == [str(written)]
    assert facts["size"] == written.stat().st_size < facts["size_before"] == path.stat().st_size
    assert facts["bits_per_weight_before"] == 32
    assert facts["bits_per_weight"] == planned["bits_per_weight"] < 12
    with pyllama.Model(written) as model:
        assert model.ftype == "Q8_0"
    assert "--force" in run("quantize", path, "Q8_0").stderr
    assert run("quantize", path, "Q8_0", "--force").exit_code == 0
    again = run("quantize", written, "Q4_0", tmp_path / "again.gguf")
    assert again.exit_code == 1
    assert "--requantize" in again.stderr
    assert not (tmp_path / "again.gguf").exists()
    assert run("quantize", written, "Q4_0", tmp_path / "again.gguf", "--requantize").exit_code == 0


def test_a_model_by_name_goes_to_the_own_folder(run, wide, tmp_path, monkeypatch):
    monkeypatch.setattr(embedded_model, "model_dir", lambda: tmp_path / "own")
    (tmp_path / "own").mkdir()
    copyfile(wide, tmp_path / "own" / "tiny.gguf")
    result = run("quantize", "tiny", "F16", env={"COLUMNS": "80"})
    assert result.exit_code == 0, result.output
    assert (tmp_path / "own" / "tiny-F16.gguf").is_file()
    assert "32.00" in result.stdout


@pytest.mark.parametrize(
    "arguments", [("Q4_0", "/no/such/folder/x.gguf"), ("Q4_0", "--imatrix", "none")]
)
def test_what_cannot_be_quantized_is_one_line(run, wide, tmp_path, arguments):
    path = copyfile(wide, tmp_path / "tiny.gguf")
    result = run("quantize", path, *arguments)
    assert result.exit_code == 1
    assert result.stderr.startswith("error: ")
    assert "Traceback" not in result.output
    assert [one.name for one in tmp_path.iterdir()] == ["tiny.gguf"]


def test_a_type_that_needs_a_matrix_says_how_to_get_one(run, wide, tmp_path):
    result = run("quantize", wide, "IQ2_XS", tmp_path / "out.gguf")
    assert result.exit_code == 1
    assert result.stderr.startswith("error: IQ2_XS needs an importance matrix: pyllama imatrix ")
    assert not (tmp_path / "out.gguf").exists()


def test_an_adapter_is_not_quantized(run, write_tiny_model, tmp_path):
    path = write_tiny_model(metadata={"general.type": "adapter"})
    result = run("quantize", path, "Q8_0", tmp_path / "out.gguf")
    assert result.exit_code == 1
    assert "LoRA adapter, and no model" in result.stderr


def test_ctrl_c_leaves_nothing_half_made(run, wide, tmp_path, monkeypatch):
    path = copyfile(wide, tmp_path / "tiny.gguf")
    original = pyllama.quantize

    def interrupted(*arguments, **options):
        if not options.get("dry_run"):

            def stop(_done):
                raise KeyboardInterrupt

            options["progress"] = stop
        return original(*arguments, **options)

    monkeypatch.setattr(pyllama, "quantize", interrupted)
    assert run("quantize", path, "Q8_0").exit_code == 130
    assert [one.name for one in tmp_path.iterdir()] == ["tiny.gguf"]


def test_the_perplexity_is_that_of_the_logits(run, tiny, tiny_model_path, tmp_path):
    text = tmp_path / "text.txt"
    text.write_text("hello world " * 40)
    result = run("perplexity", tiny_model_path, text, "-c", 32, "--chunks", 2, "--json")
    assert result.exit_code == 0, result.output
    facts = json.loads(result.stdout)
    tokens = tiny.vocab.tokenize(text.read_text())
    losses = []
    for chunk in (tokens[:32], tokens[32:64]):
        with pyllama.Context(tiny, n_ctx=256, n_threads=1) as context:
            for position, token in enumerate([tiny.vocab.bos, *chunk[1:31]]):
                context.decode_token(token, position)
                if position >= 16:
                    logits = context.logits().astype(np.float64)
                    losses.append(np.log(np.exp(logits).sum()) - logits[chunk[position + 1]])
    assert facts["tokens"] == len(losses) == 30
    assert math.isclose(facts["perplexity"], math.exp(np.mean(losses)), rel_tol=1e-3)
    assert facts["error"] > 0


def test_a_text_that_is_too_short_or_none_is_refused(run, tiny_model_path, tmp_path):
    text = tmp_path / "text.txt"
    text.write_text("hello")
    assert "at least" in run("perplexity", tiny_model_path, text).stderr
    text.write_bytes(b"\xff")
    assert "UTF-8" in run("perplexity", tiny_model_path, text).stderr
    assert run("perplexity", tiny_model_path, tmp_path / "none").exit_code == 1
