from __future__ import annotations

import hashlib
import json
from pathlib import Path
from shutil import copyfile

import pytest
from synthetic_files import holding

from adapter.errors import InvalidModelNameError, ModelNotFoundError
from adapter.models.files import ModelFolder
from adapter.models.hub.names import HubName
from adapter.models.hub.pull import pull
from adapter.models.pool import ModelPool
from adapter.models.stores import stored_models

MODEL, PROJECTOR = "application/vnd.ollama.image.model", "application/vnd.ollama.image.projector"


@pytest.fixture(autouse=True)
def home(tmp_path, monkeypatch, hub) -> Path:
    """A home of its own, in which no program keeps anything."""
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setenv("USERPROFILE", str(tmp_path / "home"))
    monkeypatch.delenv("OLLAMA_MODELS", raising=False)
    monkeypatch.setattr("adapter.models.stores._OLLAMA_SERVICE", str(tmp_path / "service"))
    (tmp_path / "home").mkdir()
    return tmp_path / "home"


def put_blob(models: Path, content: bytes) -> str:
    digest = hashlib.sha256(content).hexdigest()
    (models / "blobs").mkdir(parents=True, exist_ok=True)
    (models / "blobs" / f"sha256-{digest}").write_bytes(content)
    return f"sha256:{digest}"


def put_manifest(models: Path, name: str, layers: object) -> None:
    path = models / "manifests" / "registry.example" / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({"schemaVersion": 2, "layers": layers}))


def put_files(folder: Path, *names: str) -> None:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(b"GGUF")


def names() -> list[str]:
    return [model.name for model in stored_models()]


def test_nothing_is_kept_by_programs_that_are_not_here():
    assert names() == []


def test_models_of_ollama_are_found_by_their_manifests(home, tiny_model_path, tmp_path):
    models = home / ".ollama" / "models"
    layers = [
        {"mediaType": "application/vnd.ollama.image.template", "digest": put_blob(models, b"t")},
        {"mediaType": MODEL, "digest": put_blob(models, tiny_model_path.read_bytes())},
        {"mediaType": PROJECTOR, "digest": put_blob(models, b"GGUF")},
    ]
    put_manifest(models, "library/tiny/latest", layers)
    put_manifest(models, "somebody/tiny/1b", layers)
    latest, other = stored_models()
    assert latest.name == "ollama:tiny:latest"
    assert other.name == "ollama:somebody/tiny:1b"
    assert latest.mmproj is not None
    with ModelPool(tmp_path, context_length=256) as pool:
        loaded = pool.load_model("ollama:tiny")
        assert loaded.path == latest.paths[0]
        with pytest.raises(ModelNotFoundError, match="somebody/tiny:1b"):
            pool.load_model("ollama:tiny:2b")


def test_a_manifest_that_says_anything_names_no_file_elsewhere(home, tmp_path):
    models = home / ".ollama" / "models"
    secret = tmp_path / "secret"
    secret.write_bytes(b"GGUF")
    digests = [
        f"sha256:../../../{secret}", str(secret), "sha256:" + "0" * 64, "sha256:zz", 7, None, {},
    ]  # fmt: skip
    for index, digest in enumerate(digests):
        put_manifest(models, f"library/m{index}/latest", [{"mediaType": MODEL, "digest": digest}])
    for index, layers in enumerate([7, None, [7], [{}], {"mediaType": MODEL}, [[[]]]]):
        put_manifest(models, f"library/n{index}/latest", layers)
    folder = models / "manifests" / "registry.example" / "library" / "text"
    folder.mkdir()
    (folder / "latest").write_text("{" * 100_000)
    (folder / "large").write_bytes(b" " * (2**20 + 1))
    assert names() == []


def test_models_of_lm_studio_are_found(home, tiny_model_path, tmp_path):
    models = home / ".lmstudio" / "models"
    put_files(models, "owner/repo/m-Q4_0-00001-of-00002.gguf", "owner/repo/mmproj-m.gguf")
    put_files(models, "owner/repo/m-Q4_0-00002-of-00002.gguf", "owner/half/m-00001-of-00002.gguf")
    copyfile(tiny_model_path, models / "owner" / "repo" / "tiny.gguf")
    split, tiny = stored_models()
    assert split.name == "lmstudio:owner/repo/m-Q4_0"
    assert len(split.paths) == 2
    assert split.mmproj == models / "owner/repo/mmproj-m.gguf"
    with ModelPool(tmp_path, context_length=256) as pool:
        assert pool.load_model("lmstudio:owner/repo/tiny").path == tiny.paths[0]


def test_the_folder_that_lm_studio_was_told_to_use_counts(home, tmp_path):
    (home / ".lmstudio-home-pointer").write_text(str(tmp_path / "elsewhere"))
    put_files(tmp_path / "elsewhere" / "models", "owner/repo/m.gguf")
    assert names() == ["lmstudio:owner/repo/m"]


def test_models_of_the_hubs_cache_have_names_that_load_them(hub, tmp_path):
    files = ("m-Q4_0.gguf", "m-Q8_0.gguf", "a/x.gguf", "b/x.gguf")
    hub.add("owner/repo", {name: holding(name.encode()) for name in files})
    for name in files:
        pull(HubName("owner/repo", name))
    folder = ModelFolder(tmp_path, {})
    assert {folder.find(name).read_bytes() for name in names()} == {
        holding(name.encode()) for name in files
    }
    assert "hf:owner/repo:Q4_0" in names()


@pytest.mark.parametrize(
    "name", ["ollama:", "ollama:../x", "ollama:/etc/x", "lmstudio:../../x", "lmstudio:a\\b"]
)
def test_a_name_that_leads_elsewhere_is_refused(name, tmp_path):
    with pytest.raises(InvalidModelNameError):
        ModelFolder(tmp_path, {}).find(name)


def test_a_file_of_the_folder_comes_before_another_programs_model(tmp_path):
    put_files(tmp_path, "ollama:tiny.gguf")
    assert ModelFolder(tmp_path, {}).find("ollama:tiny") == tmp_path / "ollama:tiny.gguf"
