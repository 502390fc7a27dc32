from __future__ import annotations

import json
from shutil import copyfile
from types import SimpleNamespace

import pytest

from adapter.models import embedded_model


def test_models_lists_a_folder_and_reports_problems(run, tiny_model_path, tmp_path):
    copyfile(tiny_model_path, tmp_path / "tiny.gguf")
    (tmp_path / "bad.gguf").write_bytes(b"GGUF and no more")
    result = run("models", str(tmp_path))
    assert result.exit_code == 0
    [row] = [line for line in result.stdout.splitlines() if "tiny" in line]
    assert "llama" in row
    assert "109K" in row
    assert "bad: " in result.stderr


def test_models_of_no_folder_is_one_line(run, tmp_path):
    result = run("models", str(tmp_path / "nowhere"))
    assert result.exit_code == 1
    assert "nowhere" in result.stderr
    assert "Traceback" not in result.output


def test_models_as_json_has_whole_names_and_sizes_in_bytes(run, tiny_model_path, tmp_path):
    name = "a-model-whose-name-is-longer-than-a-terminal-is-wide-" + "x" * 60
    copyfile(tiny_model_path, tmp_path / f"{name}.gguf")
    (model,) = json.loads(run("models", tmp_path, "--json").stdout)
    assert model["name"] == name
    assert model["size"] == tiny_model_path.stat().st_size
    assert model["architecture"] == "llama"
    assert model["problem"] is None
    table = run("models", tmp_path, env={"COLUMNS": "80"}).stdout
    letters = "".join(line.split()[0] for line in table.splitlines() if line.split())
    assert name in letters  # wrapped, and not cut


@pytest.fixture
def own_folder(monkeypatch, tmp_path, hub):
    """pyllama's own folder, in a home in which other programs keep nothing."""
    folder = tmp_path / "own"
    monkeypatch.setattr(embedded_model, "model_dir", lambda: folder)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("USERPROFILE", str(tmp_path))
    monkeypatch.delenv("OLLAMA_MODELS", raising=False)
    return folder


def test_models_of_other_programs_are_listed_and_shown(run, own_folder, hub, tiny_model_path):
    assert "pyllama pull" in run("models").stderr
    own_folder.mkdir()
    copyfile(tiny_model_path, own_folder / "mine.gguf")
    hub.add("owner/repo", {"tiny-F32.gguf": tiny_model_path.read_bytes()})
    run("pull", "owner/repo")
    listed = json.loads(run("models", "--json").stdout)
    assert [model["name"] for model in listed] == ["mine", "hf:owner/repo:F32"]
    assert all(model["architecture"] == "llama" for model in listed)
    for name in ("mine", "hf:owner/repo:F32", "owner/repo", own_folder / "mine.gguf"):
        assert run("show", name).exit_code == 0


@pytest.mark.parametrize("command", ["show", "fit", "rm", "quantize", "run", "bench"])
def test_what_is_no_model_is_called_what_it_is(run, own_folder, tmp_path, monkeypatch, command):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "folder").mkdir()
    (tmp_path / "text.txt").write_text("hello")
    for given, code, words in (
        ("folder", 1, "it is a folder; give a .gguf file"),
        (tmp_path / "folder", 2, "is a folder, of which pyllama convert may make a model"),
        ("text.txt", 1, "no .gguf file"),
        ("./text.txt", 2, "no .gguf file"),
        ("none.gguf", 1, "'none.gguf': none.gguf does not exist"),
        ("folder/none.gguf", 1, "folder/none.gguf does not exist"),
        ("none", 1, "pyllama models lists"),
    ):
        more = {"quantize": ["Q8_0"], "run": ["hello"]}.get(command, [])
        result = run(command, given, *more)
        assert result.exit_code == code
        assert words in result.stderr
        assert result.stderr.count("\n") == 1


def test_a_model_of_the_own_folder_may_be_called_by_its_files_name(
    run, own_folder, tiny_model_path, tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    own_folder.mkdir()
    copyfile(tiny_model_path, own_folder / "mine.gguf")
    (tmp_path / "mine").mkdir()
    for name in ("mine", "mine.gguf"):
        assert run("show", name, "--json").exit_code == 0


@pytest.mark.parametrize(
    ("answer", "code"), [("", 1), ("n", 1), (EOFError, 1), (KeyboardInterrupt, 130), ("y", 0)]
)
def test_on_a_terminal_rm_asks(run, own_folder, tiny_model_path, monkeypatch, answer, code):
    def typed(_question):
        if isinstance(answer, str):
            return answer
        raise answer

    own_folder.mkdir()
    copyfile(tiny_model_path, own_folder / "mine.gguf")
    terminal = SimpleNamespace(stdin=SimpleNamespace(isatty=lambda: True))
    monkeypatch.setattr("adapter.cli.models.sys", terminal)
    monkeypatch.setattr("builtins.input", typed)
    result = run("rm", "mine")
    assert result.exit_code == code, result.output
    assert ("nothing was deleted" in result.stderr) == (code == 1)
    assert (own_folder / "mine.gguf").exists() == (code != 0)


def test_rm_deletes_a_model_of_the_folder_or_of_the_cache(run, own_folder, hub, tiny_model_path):
    own_folder.mkdir()
    copyfile(tiny_model_path, own_folder / "mine.gguf")
    hub.add("owner/repo", {"tiny-F32.gguf": tiny_model_path.read_bytes()})
    run("pull", "owner/repo")
    refused = run("rm", "mine")
    assert refused.exit_code == 1
    assert "--yes" in refused.stderr
    assert (own_folder / "mine.gguf").exists()
    for name in ("mine", "owner/repo"):
        result = run("rm", name, "--yes")
        assert result.exit_code == 0, result.output
        assert "deleted" in result.stdout
        assert run("rm", name, "--yes").exit_code == 1
    assert json.loads(run("models", "--json").stdout) == []


@pytest.mark.parametrize(
    ("name", "code"), [("nothing", 1), ("ollama:tiny", 1), ("../x", 2), ("./x.gguf", 1)]
)
def test_what_rm_does_not_own_is_left_alone(run, own_folder, name, code):
    result = run("rm", name, "--yes")
    assert result.exit_code == code
    assert result.stderr.startswith("error: ")
    assert "Traceback" not in result.output


def test_a_model_elsewhere_is_not_deleted(run, own_folder, tiny_model_path, tmp_path):
    path = copyfile(tiny_model_path, tmp_path / "elsewhere.gguf")
    assert run("rm", path, "--yes").exit_code == 1
    assert path.exists()


def test_without_a_folder_of_ones_own_other_models_work_all_the_same(
    run, hub, own_folder, tiny_model_path
):
    hub.add("owner/repo", {"tiny-F32.gguf": tiny_model_path.read_bytes()})
    assert run("run", "owner/repo:F32", "hello", "-n", 1, "-c", 256).exit_code == 0
    missing = run("show", "nothing")
    assert missing.exit_code == 1
    assert "pyllama models lists" in missing.stderr
    assert "lmstudio" not in run("rm", "ollama:x:latest").stderr
    assert "ollama rm x:latest" in run("rm", "ollama:x:latest").stderr
    assert "LM Studio" in run("rm", "lmstudio:x").stderr
    assert run("rm", "hf:owner/repo:F32", "--yes").exit_code == 0
    assert not own_folder.exists()
