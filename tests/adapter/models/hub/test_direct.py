from __future__ import annotations

import hashlib
import os
import shutil
from types import SimpleNamespace

import pytest
from huggingface_hub import constants
from synthetic_files import holding

from adapter.errors import ModelDownloadError
from adapter.models.hub import direct

MODEL = holding(bytes(range(256)) * 4_000)


@pytest.fixture
def url(hub):
    hub.add("any/server", {"m.gguf": MODEL})
    return f"{hub.url}/content/any/server/m.gguf"


def test_a_url_is_downloaded_whole(url, tmp_path):
    done = []
    (path,) = direct.download(url, tmp_path / "m", report=lambda *numbers: done.append(numbers))
    assert path == tmp_path / "m" / "m.gguf"
    assert path.read_bytes() == MODEL
    assert done[-1] == (len(MODEL), len(MODEL))
    with pytest.raises(ModelDownloadError, match="pyllama rm m"):
        direct.download(url, tmp_path / "m")


def test_the_token_of_the_hub_goes_to_no_other_server(hub, url, tmp_path, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "a-token")
    direct.download(url, tmp_path)
    assert all("Authorization" not in headers for _, _, headers in hub.requests)


@pytest.mark.parametrize("ranges", [True, False])
def test_a_url_is_resumed_where_the_server_can(hub, url, tmp_path, ranges):
    hub.ranges = ranges

    def stop(done, _total):
        if done:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        direct.download(url, tmp_path, report=stop)
    (partial,) = tmp_path.glob(".incomplete/*-m.gguf")
    arrived = partial.stat().st_size
    (path,) = direct.download(url, tmp_path)
    assert path.read_bytes() == MODEL
    assert hub.requests[-1][2]["Range"] == f"bytes={arrived}-"


def test_what_changed_on_the_server_is_not_mixed_with_what_arrived(hub, url, tmp_path):
    def stop(_done, _total):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        direct.download(url, tmp_path, report=stop)
    hub.served["m.gguf"] = changed = holding(MODEL[:44:-1])
    (path,) = direct.download(url, tmp_path)
    assert path.read_bytes() == changed


def test_another_part_than_was_asked_for_is_not_put_behind_what_arrived(hub, url, tmp_path):
    hub.drops, hub.shift = [len(MODEL) // 2], 7
    with pytest.raises(ModelDownloadError, match="try again"):
        direct.download(url, tmp_path)
    assert not list(tmp_path.glob("*.gguf"))
    hub.shift = 0
    (path,) = direct.download(url, tmp_path)
    assert path.read_bytes() == MODEL
    assert hub.requests[-1][2]["If-Range"].startswith('"')


def test_the_parts_of_a_split_model_come_together(hub, tmp_path):
    parts = {f"m-0000{i}-of-00002.gguf": holding(bytes([i]) * 99) for i in (1, 2)}
    hub.add("any/server", parts)
    url = f"{hub.url}/content/any/server/m-00001-of-00002.gguf"
    paths = direct.download(url, tmp_path / "models")
    assert [path.read_bytes() for path in paths] == list(parts.values())
    copies = direct.copy(paths[0], tmp_path / "copies")
    assert [path.read_bytes() for path in copies] == list(parts.values())
    with pytest.raises(ModelDownloadError, match="split"):
        direct.download(url, tmp_path / "more", sha256="0" * 64)


def test_a_sha256_that_is_given_is_checked(url, tmp_path):
    with pytest.raises(ModelDownloadError, match=r"its SHA-256 is .* Compare"):
        direct.download(url, tmp_path, sha256="0" * 64)
    assert not list(tmp_path.glob("*.gguf"))
    digest = hashlib.sha256(MODEL).hexdigest().upper()
    (path,) = direct.download(url, tmp_path, sha256=digest)
    with pytest.raises(ModelDownloadError, match="its SHA-256 is"):
        direct.copy(path, tmp_path / "copies", sha256="0" * 64)
    assert not list((tmp_path / "copies").iterdir())
    assert direct.copy(path, tmp_path / "copies", sha256=digest)


def test_what_is_no_model_is_not_kept(hub, url, tmp_path):
    hub.served["m.gguf"] = b"<html>" + b" " * 500
    with pytest.raises(ModelDownloadError, match="no GGUF"):
        direct.download(url, tmp_path / "models")
    assert not list((tmp_path / "models").rglob("*.gguf"))
    text = tmp_path / "text.gguf"
    text.write_text("text")
    with pytest.raises(ModelDownloadError, match="no GGUF"):
        direct.copy(text, tmp_path / "models")
    assert not list((tmp_path / "models").rglob("*.gguf"))


def test_a_file_that_was_cut_is_not_kept(hub, url, tiny_model_path, tmp_path):
    whole = tiny_model_path.read_bytes()
    cut = tmp_path / "cut.gguf"
    for size in (len(whole) - 1, len(whole) // 2, 2_000, 30):
        hub.served["m.gguf"] = whole[:size]
        with pytest.raises(ModelDownloadError, match="the file is damaged: "):
            direct.download(url, tmp_path / "models")
        cut.write_bytes(whole[:size])
        with pytest.raises(ModelDownloadError, match="the file is damaged: "):
            direct.copy(cut, tmp_path / "models")
    assert not list((tmp_path / "models").rglob("*.gguf"))


@pytest.mark.parametrize(
    "name", ["m.bin", "", "..%2f..%2fm.gguf", ".gguf", "a%00.gguf", "%5cm.gguf"]
)
def test_a_url_without_the_plain_name_of_a_model_is_refused(hub, name, tmp_path):
    with pytest.raises(ModelDownloadError, match="not the name of a"):
        direct.download(f"{hub.url}/content/any/server/{name}", tmp_path)
    assert hub.requests == []


def test_errors_of_the_server_and_of_the_disk_are_reported(hub, url, tmp_path, monkeypatch):
    with pytest.raises(ModelDownloadError, match="404"):
        direct.download(f"{hub.url}/elsewhere/m.gguf", tmp_path)
    with pytest.raises(ModelDownloadError, match="no connection"):
        direct.download("http://127.0.0.1:9/m.gguf", tmp_path)
    with monkeypatch.context() as patched:
        patched.setattr(constants, "HF_HUB_OFFLINE", True)
        with pytest.raises(ModelDownloadError, match="offline"):
            direct.download(url, tmp_path)
    full = SimpleNamespace(free=len(MODEL))
    monkeypatch.setattr(shutil, "disk_usage", lambda _folder: full)
    with pytest.raises(ModelDownloadError, match="MB free"):
        direct.download(url, tmp_path)
    with pytest.raises(ModelDownloadError, match="No such file"):
        direct.copy(tmp_path / "none.gguf", tmp_path / "models")


def test_a_url_of_the_hub_itself_is_a_name_of_it(hub):
    name = direct.hub_name(f"{hub.url}/owner/repo/resolve/main/q/m-Q8_0.gguf?download=true")
    assert str(name) == "hf:owner/repo:q/m-Q8_0.gguf"
    assert direct.hub_name(f"{hub.url}/owner/repo/blob/v2/m.gguf") is None
    assert direct.hub_name("http://127.0.0.1:9/owner/repo/resolve/main/m.gguf") is None


def test_a_copy_deletes_what_a_killed_one_left(tiny_model_path, tmp_path):
    left = tmp_path / ".fetching-half"
    left.mkdir()
    (left / "half.gguf").touch()
    lock = left / "pyllama-scratch.lock"
    lock.touch()
    os.utime(lock, (1e9, 1e9))
    direct.copy(tiny_model_path, tmp_path)
    assert os.listdir(tmp_path) == [tiny_model_path.name]
