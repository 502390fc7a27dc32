from __future__ import annotations

from pathlib import Path

import pytest
from huggingface_hub import constants, scan_cache_dir
from synthetic_files import holding

from adapter.models.hub.cache import CachedRepository
from adapter.models.hub.choice import UnclearError
from adapter.models.hub.names import HubName
from adapter.models.hub.pull import pull
from adapter.models.hub.removal import removable, remove

FILES = {
    "m-Q4_0-00001-of-00002.gguf": holding(b"1"),
    "m-Q4_0-00002-of-00002.gguf": holding(b"2"),
    "m-Q8_0.gguf": holding(b"8"),
    "mmproj.gguf": holding(b"p"),
}


@pytest.fixture
def cached(hub) -> CachedRepository:
    """Both models of a repository, one of them at an older commit, too."""
    repository = hub.add("owner/repo", FILES)
    pull(HubName("owner/repo", "Q4_0"))
    repository.commit = "f" * 40
    pull(HubName("owner/repo", "Q4_0"))
    pull(HubName("owner/repo", "Q8_0"))
    return CachedRepository("owner/repo")


def contents() -> set[bytes]:
    blobs = Path(constants.HF_HUB_CACHE).glob("*/blobs/*")
    return {blob.read_bytes()[-1:] for blob in blobs}


def test_a_model_goes_from_every_commit_and_others_stay(cached):
    files = removable(cached, "Q4_0")
    assert files[0].name == "m-Q4_0-00001-of-00002.gguf"
    remove(cached, files)
    assert contents() == {b"8", b"p"}
    assert cached.find("Q4_0") is None
    assert cached.find("Q8_0") is not None
    assert not scan_cache_dir(constants.HF_HUB_CACHE).warnings


def test_with_the_last_model_the_repository_goes(cached):
    remove(cached, removable(cached, "Q4_0"))
    remove(cached, removable(cached, "Q8_0"))
    assert not cached.folder.exists()


def test_what_is_not_there_or_unclear_deletes_nothing(cached):
    assert removable(cached, "Q2_K") == []
    with pytest.raises(UnclearError):
        removable(cached, None)
    assert contents() == {b"1", b"2", b"8", b"p"}


def test_a_tree_of_files_instead_of_links_is_removed_too(cached):
    path = cached.path("f" * 40, "m-Q8_0.gguf")
    content = path.read_bytes()
    path.unlink()
    path.write_bytes(content)
    remove(cached, removable(cached, "Q8_0"))
    assert cached.find("Q8_0") is None
