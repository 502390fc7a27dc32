from __future__ import annotations

import json
from shutil import copyfile


def test_models_lists_a_folder_and_tells_problems(run, tiny_model_path, tmp_path):
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
