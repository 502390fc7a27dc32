from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from synthetic_files import holding

from adapter.models import embedded_model


@pytest.fixture(autouse=True)
def own_folder(monkeypatch, tmp_path):
    monkeypatch.setattr(embedded_model, "model_dir", lambda: tmp_path / "models")
    return tmp_path / "models"


def test_pull_says_where_a_model_is(run, hub):
    hub.add("owner/repo", {"m-Q8_0.gguf": holding(b"x" * 999), "mmproj.gguf": holding(b"y")})
    result = run("pull", "owner/repo:Q8_0", "--json")
    assert result.exit_code == 0, result.output
    facts = json.loads(result.stdout)
    assert facts["name"] == "hf:owner/repo:Q8_0"
    assert facts["size"] == 1090
    assert Path(facts["paths"][0]).read_bytes() == holding(b"x" * 999)
    assert Path(facts["mmproj"]).read_bytes() == holding(b"y")
    assert "m-Q8_0.gguf, 1.0 KB" in result.stderr
    assert facts["name"] in run("pull", "hf:owner/repo:Q8_0").stdout


def test_an_unclear_pull_lists_what_to_type(run, hub):
    hub.add("owner/repo", {f"m-{kind}.gguf": b"x" for kind in ("Q4_0", "Q8_0")})
    result = run("pull", "owner/repo", env={"COLUMNS": "80"})
    assert result.exit_code == 1
    assert "owner/repo:Q4_0" in result.stdout
    assert "owner/repo:Q8_0" in result.stdout
    assert "several models" in result.stderr
    assert hub.contents_asked_for() == []
    as_json = json.loads(run("pull", "owner/repo", "--json").stdout)
    assert as_json == {"choices": ["hf:owner/repo:Q4_0", "hf:owner/repo:Q8_0"]}


def test_a_model_without_all_its_parts_is_called_so(run, hub):
    hub.add("owner/repo", {f"m-Q4_0-0000{i}-of-00003.gguf": holding(b"x") for i in (1, 3)})
    for name in ("owner/repo", "owner/repo:Q4_0"):
        result = run("pull", name)
        assert result.exit_code == 1
        assert "m-Q4_0 lacks 1 of its 3 parts" in result.stderr


def test_of_a_repository_in_another_format_convert_makes_a_model(run, hub):
    hub.add("owner/none", {"README.md": b"x"})
    assert "convert" not in run("pull", "owner/none").stderr
    hub.add("owner/repo", {"config.json": b"{}", "model.safetensors": b"x"})
    for name in ("owner/repo", "owner/repo:Q4_0"):
        result = run("pull", name)
        assert result.exit_code == 1
        assert "pyllama convert owner/repo\n" in result.stderr


@pytest.mark.parametrize(
    ("name", "code"), [("nothing", 2), ("owner/none", 1), ("./none.gguf", 1), ("a/b/none.gguf", 1)]
)
def test_a_pull_of_nothing_is_one_line(run, hub, name, code):
    result = run("pull", name)
    assert result.exit_code == code
    assert result.stderr.startswith("error: ")
    assert "Traceback" not in result.output


def test_what_cannot_be_pulled_is_called_what_it_is(run, hub, tmp_path):
    assert "neither a file nor a URL nor owner/repo" in run("pull", "none").stderr
    assert "no file" in run("pull", tmp_path / "none.gguf").stderr
    (tmp_path / "folder").mkdir()
    assert "is a folder; give a .gguf file" in run("pull", tmp_path / "folder").stderr
    assert "is no .gguf file" in run("pull", tmp_path / "none").stderr


def test_a_path_is_copied_where_models_are_looked_for(run, hub, tiny_model_path, own_folder):
    result = run("pull", tiny_model_path)
    assert result.exit_code == 0, result.output
    assert (own_folder / tiny_model_path.name).read_bytes() == tiny_model_path.read_bytes()
    assert run("pull", tiny_model_path).exit_code == 1
    assert run("pull", tiny_model_path, "--sha256", "0" * 64).exit_code == 1


def test_ctrl_c_says_that_the_rest_is_kept(run, hub, monkeypatch):
    hub.add("owner/repo", {"m.gguf": holding(b"x" * 999)})

    def interrupt(*_arguments, **_options):
        raise KeyboardInterrupt

    monkeypatch.setattr("adapter.models.hub.pull.fetch", interrupt)
    result = run("pull", "owner/repo")
    assert result.exit_code == 130
    assert "goes on from there" in result.stderr


def test_the_environment_of_huggingface_hub_counts(hub, tmp_path):
    hub.add("owner/repo", {"m.gguf": holding(b"x" * 999)}, gated=True)
    environment = {
        **os.environ,
        "HF_ENDPOINT": hub.url,
        "HF_HOME": str(tmp_path / "home"),
        "HF_TOKEN": "a-token",
        "HF_HUB_OFFLINE": "0",
    }
    environment.pop("HF_HUB_CACHE", None)
    command = [
        sys.executable,
        "-c",
        "from adapter.cli.app import main; main()",
        "pull",
        "owner/repo",
    ]

    def pull(**variables):
        return subprocess.run(
            command, env=environment | variables, capture_output=True, text=True, timeout=120
        )

    done = pull()
    assert done.returncode == 0, done.stderr
    (path,) = (tmp_path / "home").rglob("m.gguf")
    assert path.read_bytes() == holding(b"x" * 999)
    assert "\x1b" not in done.stdout + done.stderr
    assert pull(HF_HUB_OFFLINE="1").returncode == 0  # it is in the cache
    assert pull(HF_HUB_OFFLINE="1", HF_HOME=str(tmp_path / "other")).returncode == 1


def test_what_a_hub_says_cannot_steer_the_terminal(run, hub):
    hub.status, hub.body = 418, b'{"error": "\\u001b[2Jhello\\u001b]0;title\\u0007"}'
    result = run("pull", "owner/repo")
    assert result.exit_code == 1
    assert "\x1b[2J" not in result.output
    assert "\x07" not in result.output
