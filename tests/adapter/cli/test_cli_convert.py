from __future__ import annotations

import json
from pathlib import Path
from shutil import copyfile

import pytest
from huggingface_hub import constants

from adapter.models import conversion, embedded_model


@pytest.fixture
def converted(monkeypatch, tmp_path, tiny_model_path):
    """What the converter was asked for; it needs torch, so a copy stands in for its work."""
    asked = []

    def convert(folder, target, **options):
        asked.append((folder, target, options))
        assert folder.is_dir()
        made = target.with_name(target.name.replace("{type}", "F16"))
        return Path(copyfile(tiny_model_path, made))

    monkeypatch.setattr(conversion, "convert", convert)
    monkeypatch.setattr(conversion, "require_converter", lambda: None)
    monkeypatch.setattr(embedded_model, "model_dir", lambda: tmp_path / "own")
    return asked


def test_a_folder_is_converted_into_the_own_folder(run, converted, tmp_path):
    (tmp_path / "my-model").mkdir()
    result = run("convert", tmp_path / "my-model", "--outtype", "f16", "--json")
    assert result.exit_code == 0, result.output
    assert json.loads(result.stdout)["path"] == str(tmp_path / "own" / "my-model-F16.gguf")
    assert converted[0][2]["outtype"] == "f16"
    assert converted[0][2]["lora_base"] is None
    out = tmp_path / "x.gguf"
    assert run("convert", tmp_path / "my-model", out).exit_code == 0
    assert "--force" in run("convert", tmp_path / "my-model", out).stderr
    assert run("convert", tmp_path / "my-model", out, "--force").exit_code == 0


@pytest.mark.parametrize("options", [(), ("--outtype", "f16")])
def test_a_file_of_the_own_folder_is_not_replaced_unasked(run, converted, tmp_path, options):
    (tmp_path / "my-model").mkdir()
    assert run("convert", tmp_path / "my-model", *options).exit_code == 0
    again = run("convert", tmp_path / "my-model", *options)
    assert again.exit_code == 1
    assert "my-model-F16.gguf is there already; to replace it: --force" in again.stderr
    assert len(converted) == 1
    assert run("convert", tmp_path / "my-model", *options, "--force").exit_code == 0


def test_an_adapter_wants_its_option(run, converted, tmp_path):
    (tmp_path / "adapter_config.json").write_text("{}")
    result = run("convert", tmp_path)
    assert result.exit_code == 1
    assert result.stderr.endswith("is a LoRA adapter, and no model: give --lora\n")
    (tmp_path / "config.json").write_text("{}")  # merged, with what was merged beside it
    assert run("convert", tmp_path).exit_code == 0


def test_a_repository_without_weights_is_called_so(run, hub, converted):
    hub.add("owner/none", {"config.json": b"{}"})
    hub.add("owner/repo", {"README.md": b"x", "m-Q4_0.gguf": b"x"})
    for name, hint in (("owner/none", ""), ("owner/repo", "pyllama pull owner/repo")):
        result = run("convert", name)
        assert result.exit_code == 1
        assert f"{name} holds no weights" in result.stderr
        assert result.stderr.endswith(f"{hint}\n")
    assert hub.contents_asked_for() == []


def test_offline_a_repository_of_the_cache_is_converted(run, hub, converted, monkeypatch):
    hub.add("owner/repo", {"config.json": b"{}", "model.safetensors": b"w" * 100})
    assert run("convert", "owner/repo").exit_code == 0
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    asked = len(hub.requests)
    assert run("convert", "owner/repo", "--force").exit_code == 0
    assert converted[0][0] == converted[1][0]
    assert run("convert", "owner/other").exit_code == 1
    assert len(hub.requests) == asked


def test_a_repository_is_downloaded_without_its_code(run, hub, converted):
    files = {
        "config.json": b"{}",
        "tokenizer.json": b"{}",
        "tokenizer.model": b"x",
        "model-00001-of-00001.safetensors": b"w" * 100,
        "pytorch_model.bin": b"p" * 100,
        "consolidated.safetensors": b"c" * 100,
        "modeling_evil.py": b"evil",
        "1_Pooling/config.json": b"{}",
        "onnx/deep/model.json": b"{}",
        "picture.png": b"i",
    }
    hub.add("owner/my-repo", files)
    result = run("convert", "owner/my-repo")
    assert result.exit_code == 0, result.output
    folder = converted[0][0]
    found = {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}
    assert found == {
        "config.json",
        "tokenizer.json",
        "tokenizer.model",
        "model-00001-of-00001.safetensors",
        "1_Pooling/config.json",
    }
    assert "my-repo-F16.gguf" in result.stdout
    run("convert", "owner/my-repo", "--trust-remote-code", "--json", "--force")
    assert (folder / "modeling_evil.py").is_file()


def test_an_adapter_finds_its_base(run, hub, converted, tmp_path):
    adapter = tmp_path / "adapter"
    adapter.mkdir()
    missing = run("convert", adapter, "--lora")
    assert missing.exit_code == 1
    assert "--base" in missing.stderr
    hub.add("owner/base", {"config.json": b"{}", "model.safetensors": b"w" * 100})
    config = {"base_model_name_or_path": "owner/base"}
    (adapter / "adapter_config.json").write_text(json.dumps(config))
    result = run("convert", adapter, "--lora")
    assert result.exit_code == 0, result.output
    base = converted[0][2]["lora_base"]
    assert [path.name for path in base.iterdir()] == ["config.json"]
    assert converted[0][2]["outtype"] == "f32"
    assert "adapter-lora-F16.gguf" in result.stdout


def test_the_output_may_be_a_folder_that_is_there(run, converted, tmp_path):
    (tmp_path / "my-model").mkdir()
    result = run("convert", tmp_path / "my-model", tmp_path)
    assert result.exit_code == 0, result.output
    assert (tmp_path / "my-model-F16.gguf").is_file()
    result = run("convert", tmp_path / "my-model", tmp_path / "none" / "x.gguf")
    assert result.exit_code == 1
    assert f"no folder {tmp_path / 'none'}" in result.stderr


def test_what_is_no_folder_is_called_what_it_is(run, hub, tiny_model_path):
    assert "is a GGUF file already" in run("convert", tiny_model_path).stderr
    assert "neither a folder nor owner/repo" in run("convert", "none").stderr


@pytest.mark.parametrize(
    "arguments", [("owner/none",), ("none",), ("a/b/c",), (".", "--lora", "--base", "none")]
)
def test_what_cannot_be_converted_is_one_line(run, hub, converted, arguments):
    result = run("convert", *arguments)
    assert result.exit_code == 1
    assert result.stderr.startswith("error: ")
    assert "Traceback" not in result.output


def test_what_the_converter_needs_is_looked_for_before_a_download(run, hub, monkeypatch):
    monkeypatch.setattr(conversion, "_NEEDED", ("no_such_package",))
    hub.add("owner/repo", {"config.json": b"{}", "model.safetensors": b"w" * 100})
    result = run("convert", "owner/repo")
    assert result.exit_code == 1
    assert result.stderr.startswith("error: converting needs no_such_package: pip install ")
    assert not hub.requests
