"""Importance matrices by llama.cpp's own tool."""

from __future__ import annotations

import os
import re
import stat
import sys
from dataclasses import replace
from pathlib import Path

import gguf
import numpy as np
import pytest

import pyllama
from adapter.errors import ImatrixError
from adapter.models.hardware import HardwareManager
from adapter.models.imatrix import compute_imatrix

TEXT = "hello world, the sea is calm. " * 20


@pytest.fixture
def placed(tiny_model_path):
    """The tiny model, and where it runs."""
    plan = HardwareManager().plan(tiny_model_path, context_length=32, n_gpu_layers=0, n_contexts=1)
    return tiny_model_path, plan


@pytest.fixture
def text(tmp_path) -> Path:
    path = tmp_path / "my tëxt.txt"
    path.write_text(TEXT, encoding="utf-8")
    return path


@pytest.fixture
def tool(monkeypatch, tmp_path):
    """Have a program stand in for llama.cpp's."""

    def stand_in(body: str) -> None:
        script = tmp_path / "tool"
        out = "sys.argv[sys.argv.index('-o') + 1]"
        script.write_text(f"#!{sys.executable}\nimport os, sys, time\nout = {out}\n{body}\n")
        script.chmod(script.stat().st_mode | stat.S_IXUSR)
        monkeypatch.setattr(pyllama, "imatrix_program", lambda: script)

    return stand_in


def left_over(folder: Path) -> list[str]:
    return sorted(
        path.name for path in folder.iterdir() if path.name not in ("my tëxt.txt", "tool")
    )


def test_what_is_computed_is_the_mean_of_the_squared_inputs(placed, text, tmp_path):
    path, placement = placed
    done: list[float] = []
    target = tmp_path / "out.gguf"
    made = compute_imatrix(path, text, target, placement, n_ctx=32, n_chunks=3, report=done.append)
    assert made.n_chunks == 3
    assert done == [pytest.approx(1 / 3), pytest.approx(2 / 3), 1.0]
    assert made.perplexity > 1
    assert made.partial == ()
    found = pyllama.load_imatrix(target)
    assert made.n_tensors == len(found)
    assert left_over(tmp_path) == ["out.gguf"]

    # The inputs of the first layer's attention are the tokens' embeddings, normalized.
    reader = gguf.GGUFReader(path)
    tensors = {tensor.name: np.array(tensor.data, np.float64) for tensor in reader.tensors}
    with pyllama.Model(path, vocab_only=True) as model:
        tokens = model.vocab.tokenize_array(TEXT)[:96].reshape(3, 32)
        tokens[:, 0] = model.vocab.bos
        epsilon = float(model.metadata["llama.attention.layer_norm_rms_epsilon"])
    inputs = tensors["token_embd.weight"][tokens.ravel()]
    inputs /= np.sqrt((inputs**2).mean(axis=1, keepdims=True) + epsilon)
    expected = ((inputs * tensors["blk.0.attn_norm.weight"]) ** 2).mean(axis=0)
    np.testing.assert_allclose(found["blk.0.attn_q.weight"], expected, rtol=1e-3)
    # No path of this machine is in the file.
    keys = gguf.GGUFReader(target)
    assert keys.get_field("imatrix.datasets").contents() == ["my tëxt.txt"]


@pytest.mark.parametrize(
    ("content", "words"),
    [(b"hello", "64 are needed"), (b"\xff" * 999, "UTF-8"), (None, "cannot be read: No such file")],
)
def test_a_text_that_will_not_do_is_refused(placed, text, tool, tmp_path, content, words):
    tool("raise AssertionError")
    if content is None:
        text.unlink()
    else:
        text.write_bytes(content)
    with pytest.raises(ImatrixError, match=words):
        compute_imatrix(placed[0], text, tmp_path / "out.gguf", placed[1], n_ctx=32)
    assert left_over(tmp_path) == []


@pytest.mark.parametrize(
    ("body", "words"),
    [
        ("sys.exit('no memory')", "no memory"),
        ("os.kill(os.getpid(), 9)", "-9"),
        ("pass", "wrote no file"),
        ("open(out, 'wb').write(b'GGUF and no more')", "wrote no file"),
    ],
)
def test_a_tool_that_fails_leaves_nothing(placed, text, tool, tmp_path, body, words):
    tool(body)
    with pytest.raises(ImatrixError, match=words):
        compute_imatrix(placed[0], text, tmp_path / "out.gguf", placed[1], n_ctx=32)
    assert left_over(tmp_path) == []


def test_ctrl_c_ends_the_tool_and_leaves_nothing(placed, text, tool, tmp_path):
    tool(
        "open(out, 'wb').write(b'half')\n"
        "sys.stdout.write('compute_imatrix: computing over 9 chunks\\n[1]2.5,')\n"
        "sys.stdout.flush()\ntime.sleep(600)"
    )

    def interrupt(_done):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        compute_imatrix(
            placed[0], text, tmp_path / "out.gguf", placed[1], n_ctx=32, report=interrupt
        )
    assert left_over(tmp_path) == []


def test_experts_that_no_token_reached_are_reported(placed, text, tool, tmp_path, monkeypatch):
    tool("print(\"save_imatrix: entry '   blk.0.ffn_up_exps.weight' has partial data (50.00%)\")")
    monkeypatch.setattr(pyllama, "load_imatrix", lambda path: path.touch() or {})
    made = compute_imatrix(placed[0], text, tmp_path / "out.gguf", placed[1], n_ctx=32)
    assert made.partial == ("blk.0.ffn_up_exps.weight",)


def test_settings_of_llama_cpps_programs_do_not_reach_the_tool(
    placed, text, tool, tmp_path, monkeypatch
):
    monkeypatch.setenv("LLAMA_ARG_CTX_SIZE", "7")
    tool("assert 'LLAMA_ARG_CTX_SIZE' not in os.environ\nsys.exit('as it should be')")
    with pytest.raises(ImatrixError, match="as it should be"):
        compute_imatrix(placed[0], text, tmp_path / "out.gguf", placed[1], n_ctx=32)


def test_the_backend_of_a_package_is_there_for_the_tool(placed, text, tool, tmp_path, monkeypatch):
    path, placement = placed
    package = pyllama.BackendPackage("p", "1", "CUDA", "c", "/p/module.so", ("libraries",))
    monkeypatch.setattr(pyllama, "backend_packages", lambda: [package])
    monkeypatch.setattr(sys, "path", [*sys.path, str(tmp_path)])
    monkeypatch.setenv("LD_LIBRARY_PATH", "/before")
    (tmp_path / "libraries").mkdir()
    names = "('GGML_BACKEND_PATH', 'LD_LIBRARY_PATH')"
    tool(f"sys.exit(' '.join(map(str, map(os.environ.get, {names}))))")
    on_gpu = replace(placement, devices=(pyllama.devices()[0],))
    expected = f"/p/module.so {tmp_path / 'libraries'}:/before"
    with pytest.raises(ImatrixError, match=re.escape(expected)):
        compute_imatrix(path, text, tmp_path / "out.gguf", on_gpu, n_ctx=32)
    with pytest.raises(ImatrixError, match="None /before"):
        compute_imatrix(path, text, tmp_path / "out.gguf", placement, n_ctx=32)


@pytest.mark.skipif(sys.platform == "win32", reason="Windows knows it by the name's ending")
def test_the_tool_can_be_run():
    assert os.access(pyllama.imatrix_program(), os.X_OK)
