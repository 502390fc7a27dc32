from __future__ import annotations

import errno
import hashlib
import shutil
from pathlib import Path
from types import SimpleNamespace

import pytest
from huggingface_hub import constants, scan_cache_dir, try_to_load_from_cache
from synthetic_files import holding

from adapter.errors import (
    InvalidModelNameError,
    ModelDownloadError,
    ModelFileError,
    ModelNotFoundError,
)
from adapter.models.hub import transfer
from adapter.models.hub.names import HubName
from adapter.models.hub.pull import Unclear, pull
from adapter.models.pool import ModelPool

BIG = holding(bytes(range(256)) * 4_000)


def of(text: str) -> HubName:
    return HubName.parse(text)


def test_a_model_is_pulled_as_huggingface_hub_has_it(hub):
    hub.add("owner/repo", {"m-Q8_0.gguf": BIG, "README.md": b"few bytes"})
    done = []
    pulled = pull(of("owner/repo:q8_0"), report=lambda *numbers: done.append(numbers))
    assert pulled.paths[0].read_bytes() == BIG
    assert done[-1] == (len(BIG), len(BIG))
    cached = try_to_load_from_cache("owner/repo", "m-Q8_0.gguf", constants.HF_HUB_CACHE)
    assert cached == str(pulled.paths[0])
    (repository,) = scan_cache_dir(constants.HF_HUB_CACHE).repos
    assert repository.size_on_disk == len(BIG)
    assert not scan_cache_dir(constants.HF_HUB_CACHE).warnings
    left = [path.name for path in Path(constants.HF_HUB_CACHE).rglob("*incomplete*")]
    assert left == []


def test_parts_and_the_mmproj_come_with_it(hub):
    parts = {f"q/m-Q4_0-0000{i}-of-00003.gguf": holding(bytes([i]) * 954) for i in (1, 2, 3)}
    hub.add("owner/repo", {**parts, "mmproj-f16.gguf": holding(b"m" * 455), "m-Q8_0.gguf": BIG})
    pulled = pull(of("owner/repo:Q4_0"))
    assert [path.read_bytes() for path in pulled.paths] == list(parts.values())
    assert pulled.mmproj is not None
    assert pulled.mmproj.read_bytes() == holding(b"m" * 455)
    assert pulled.size == 3 * 999 + 500


def test_a_small_file_is_checked_by_the_digest_of_git(hub):
    hub.add("owner/repo", {"m.gguf": holding(b"tiny")})
    assert pull(of("owner/repo")).paths[0].read_bytes() == holding(b"tiny")
    hub.add("owner/other", {"m.gguf": holding(b"tiny")})
    hub.served["m.gguf"] = holding(b"evil")
    with pytest.raises(ModelDownloadError, match="digest"):
        pull(of("owner/other"))


def test_what_is_there_is_not_downloaded_again_and_repaired_where_it_is_damaged(hub):
    hub.add("owner/repo", {"m.gguf": BIG})
    path = pull(of("owner/repo")).paths[0]
    assert len(hub.contents_asked_for()) == 1
    pull(of("owner/repo"))
    assert len(hub.contents_asked_for()) == 1
    path.resolve().write_bytes(b"x" * len(BIG))
    assert pull(of("owner/repo")).paths[0].read_bytes() == BIG
    assert len(hub.contents_asked_for()) == 2


def test_a_new_commit_is_pulled_beside_the_old_one(hub):
    repository = hub.add("owner/repo", {"m.gguf": holding(b"1")})
    old = pull(of("owner/repo")).paths[0]
    repository.files, repository.commit = {"m.gguf": holding(b"2")}, "f" * 40
    new = pull(of("owner/repo")).paths[0]
    assert old.read_bytes() == holding(b"1")
    assert new.read_bytes() == holding(b"2")


def test_a_file_that_was_cut_before_it_came_to_the_hub_is_an_error(hub, tiny_model_path):
    hub.add("owner/repo", {"m.gguf": tiny_model_path.read_bytes()[:-1]})
    for _ in range(2):
        with pytest.raises(ModelDownloadError, match=r"m\.gguf is damaged: .* tell its owner"):
            pull(of("owner/repo"))
    assert len(hub.contents_asked_for()) == 1


@pytest.mark.parametrize("ranges", [True, False])
def test_a_transfer_that_breaks_off_continues(hub, monkeypatch, ranges):
    monkeypatch.setattr("time.sleep", lambda _seconds: None)
    hub.add("owner/repo", {"m.gguf": BIG})
    hub.drops, hub.ranges = [len(BIG) // 2, 1_000], ranges
    done = []
    pulled = pull(of("owner/repo"), report=lambda *numbers: done.append(numbers))
    assert pulled.paths[0].read_bytes() == BIG
    assert done[-1] == (len(BIG), len(BIG))
    if ranges:
        starts = [headers.get("Range") for _, path, headers in hub.requests if "content" in path]
        assert starts[0] is None
        assert all(start is not None for start in starts[1:])


def test_what_arrived_before_ctrl_c_need_not_come_again(hub):
    hub.add("owner/repo", {"m.gguf": BIG})

    def stop(done, _total):
        if done:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        pull(of("owner/repo"), report=stop)
    (partial,) = Path(constants.HF_HUB_CACHE).rglob("*.incomplete")
    arrived = partial.stat().st_size
    assert 0 < arrived < len(BIG)
    assert not list(Path(constants.HF_HUB_CACHE).rglob("*.gguf"))
    assert pull(of("owner/repo")).paths[0].read_bytes() == BIG
    assert hub.requests[-1][2]["Range"] == f"bytes={arrived}-"


def test_a_damaged_part_of_an_earlier_try_is_thrown_away(hub):
    hub.add("owner/repo", {"m.gguf": BIG})
    digest = hashlib.sha256(BIG).hexdigest()
    blobs = Path(constants.HF_HUB_CACHE, "models--owner--repo", "blobs")
    blobs.mkdir(parents=True)
    for damage in (b"x" * 5_000, b"x" * (len(BIG) + 1)):
        (blobs / f"{digest}.incomplete").write_bytes(damage)
        assert pull(of("owner/repo")).paths[0].read_bytes() == BIG
        (blobs / digest).unlink()


@pytest.mark.parametrize("served", [b"y" * len(BIG), BIG + b"more", BIG[:-1]], ids=len)
def test_contents_that_are_not_what_the_hub_says_are_refused(hub, served, monkeypatch):
    monkeypatch.setattr("time.sleep", lambda _seconds: None)
    hub.add("owner/repo", {"m.gguf": BIG})
    hub.served["m.gguf"] = served
    with pytest.raises(ModelDownloadError):
        pull(of("owner/repo"))
    assert not list(Path(constants.HF_HUB_CACHE).rglob("*.gguf"))
    assert not list(Path(constants.HF_HUB_CACHE).rglob(hashlib.sha256(BIG).hexdigest()))
    hub.served.clear()
    assert pull(of("owner/repo")).paths[0].read_bytes() == BIG


def test_a_full_disk_is_found_before_anything_is_downloaded(hub, monkeypatch):
    hub.add("owner/repo", {"m.gguf": BIG})
    monkeypatch.setattr(shutil, "disk_usage", lambda _folder: SimpleNamespace(free=len(BIG)))
    with pytest.raises(ModelDownloadError, match=r"1\.0 MB are still to come"):
        pull(of("owner/repo"))
    assert hub.contents_asked_for() == []


def test_a_size_beyond_every_disk_is_refused(hub):
    hub.add("owner/repo", {"m.gguf": BIG}, listing={"m.gguf": {"size": 2**52}})
    with pytest.raises(ModelDownloadError, match="make room"):
        pull(of("owner/repo"))


def test_a_disk_that_fills_up_keeps_what_arrived(hub, monkeypatch):
    hub.add("owner/repo", {"m.gguf": BIG})

    def full(_self, _chunk):
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr(transfer.Content, "write", full)
        with pytest.raises(ModelDownloadError, match="the disk is full"):
            pull(of("owner/repo"))
    assert pull(of("owner/repo")).paths[0].read_bytes() == BIG


def test_a_gated_model_wants_a_token_and_the_token_stays_with_the_hub(hub, monkeypatch):
    hub.add("owner/repo", {"m.gguf": BIG}, gated=True)
    with pytest.raises(ModelDownloadError, match="gated"):
        pull(of("owner/repo"))
    monkeypatch.setenv("HF_TOKEN", "another")
    with pytest.raises(ModelDownloadError, match="gated"):
        pull(of("owner/repo"))
    monkeypatch.setenv("HF_TOKEN", "a-token")
    assert pull(of("owner/repo")).paths[0].read_bytes() == BIG
    sent = [headers for _, path, headers in hub.requests if path.startswith("/content/")]
    assert sent
    assert all("Authorization" not in headers for headers in sent)


def test_no_such_repository_no_network_and_an_unknown_server_say_so(hub, monkeypatch):
    monkeypatch.setattr("time.sleep", lambda _seconds: None)
    with pytest.raises(ModelDownloadError, match="private"):
        pull(of("owner/none"))
    hub.body = b"<html>an inn's log-in page</html>"
    with pytest.raises(ModelDownloadError, match="no listing"):
        pull(of("owner/none"))
    for body in (b"[]", b"{}", b'{"id": "a", "sha": 7, "siblings": 7}', b'{"siblings": [{}]}'):
        hub.body = body
        with pytest.raises(ModelDownloadError, match="no listing"):
            pull(of("owner/none"))
    hub.status = 418
    with pytest.raises(ModelDownloadError, match="418"):
        pull(of("owner/none"))
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    with pytest.raises(ModelDownloadError, match="cannot be reached"):
        pull(of("owner/none"))


def test_offline_a_pull_finds_what_the_cache_has(hub, monkeypatch):
    hub.add("owner/repo", {"m-Q8_0.gguf": BIG, "mmproj.gguf": holding(b"m")})
    online = pull(of("owner/repo:Q8_0"))
    asked = len(hub.requests)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert pull(of("owner/repo:Q8_0")) == online
    assert len(hub.requests) == asked


def test_offline_mode_asks_nobody(hub, monkeypatch):
    hub.add("owner/repo", {"m.gguf": BIG})
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(ModelDownloadError, match="HF_HUB_OFFLINE"):
        pull(of("owner/repo"))
    assert hub.requests == []


@pytest.mark.parametrize(
    "facts",
    [
        {"rfilename": "../../m.gguf"}, {"rfilename": "/etc/m.gguf"}, {"rfilename": 7},
        {"size": -1}, {"size": None}, {"size": "9"}, {"size": 2**70},
        {"lfs": {"sha256": "../../x", "size": 1, "pointerSize": 1}},
        {"lfs": {"sha256": "A" * 64, "size": 1, "pointerSize": 1}},
        {"lfs": {"sha256": 7, "size": 1, "pointerSize": 1}},
    ],
)  # fmt: skip
def test_a_file_that_the_hub_describes_wrongly_is_not_there(hub, facts, tmp_path):
    hub.add("owner/repo", {"m.gguf": BIG}, listing={"m.gguf": facts})
    with pytest.raises(ModelDownloadError):
        pull(of("owner/repo"))
    assert hub.contents_asked_for() == []
    assert not list(tmp_path.rglob("*.gguf"))


def test_an_unclear_name_lists_the_names_that_are_clear(hub):
    hub.add("owner/repo", {f"m-{kind}.gguf": b"x" for kind in ("Q4_0", "Q8_0")})
    with pytest.raises(Unclear) as caught:
        pull(of("owner/repo"))
    assert caught.value.choices == ("hf:owner/repo:Q4_0", "hf:owner/repo:Q8_0")
    assert "hf:owner/repo:Q8_0" in str(caught.value)


@pytest.mark.parametrize(
    "name",
    [
        "hf:", "hf:repo", "hf:a/b/c", "hf:../b", "hf:a/..", "hf:a/b:", "hf:a/b: ", "hf:a/b--c",
        "hf:a/b:x\ny", "hf:/b", "hf:a/", "hf:-a/b", "hf:a/b?c", f"hf:a/{'b' * 97}",
        "hf:a/b:" + "q" * 600,
    ],
)  # fmt: skip
def test_a_name_of_no_repository_is_refused(name, tmp_path):
    with ModelPool(tmp_path) as pool, pytest.raises(InvalidModelNameError):
        pool.load_model(name)


def test_a_pool_loads_by_the_hubs_name_and_offline_once_pulled(
    hub, tiny_model_path, tmp_path, monkeypatch
):
    hub.add("owner/repo", {"tiny-F32.gguf": tiny_model_path.read_bytes()})
    name = "hf:owner/repo:F32"
    folder = tmp_path / "models"
    folder.mkdir()
    with ModelPool(folder, context_length=256) as pool:
        with pytest.raises(ModelNotFoundError, match="pyllama pull"):
            pool.unload_model(name)
        loaded = pool.load_model(name)
        assert loaded.name == name
        asked = len(hub.requests)
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
        assert pool.load_model(name) is loaded
        pool.unload_model(name)
        assert pool.load_model(name).fingerprint == loaded.fingerprint
        assert len(hub.requests) == asked
    shutil.rmtree(tmp_path / "hub")
    with ModelPool(folder) as pool, pytest.raises(ModelDownloadError, match="offline"):
        pool.load_model(name)


def test_a_chat_template_comes_with_a_model_and_counts_where_its_file_has_none(
    hub, write_tiny_model, tmp_path
):
    plain = write_tiny_model(chat_template=None).read_bytes()
    own = write_tiny_model(chat_template="{{ 'own' }}").read_bytes()
    hub.add(
        "owner/repo",
        {
            "plain.gguf": plain,
            "q/nearer.gguf": plain,
            "own.gguf": own,
            "chat_template.jinja": b"{{ 'root' }}",
            "q/chat_template.jinja": b"{{ 'q' }}",
        },
    )
    expected = {"plain.gguf": "root", "q/nearer.gguf": "q", "own.gguf": "own"}
    with ModelPool(tmp_path, context_length=256) as pool:
        for file, prompt in expected.items():
            loaded = pool.load_model(f"hf:owner/repo:{file}")
            assert loaded.render([{"role": "user", "content": "x"}]).prompt == prompt
            pool.unload_model(loaded.name)
        (path,) = Path(constants.HF_HUB_CACHE).glob("*/snapshots/*/chat_template.jinja")
        path.unlink()
        assert pool.load_model("hf:owner/repo:plain.gguf").turn_stops
        pool.unload_model("hf:owner/repo:plain.gguf")
        path.write_bytes(b"{% if")
        with pytest.raises(ModelFileError):
            pool.load_model("hf:owner/repo:plain.gguf")
