"""Whether a disk has room for a file."""

import shutil
from types import SimpleNamespace

import pytest

from adapter.models.disk_space import SPARE, too_little_room


def test_some_bytes_stay_free(tmp_path, monkeypatch):
    monkeypatch.setattr(shutil, "disk_usage", lambda _folder: SimpleNamespace(free=10**9))
    assert too_little_room(tmp_path, 10**9 - SPARE) is None
    spare = "1.00 GB free, of which 67.1 MB stay unused"
    assert too_little_room(tmp_path, 10**9 - SPARE + 1) == too_little_room(tmp_path, 10**9) == spare
    assert too_little_room(tmp_path, 10**9 + 1) == "1.00 GB free"


def test_a_folder_that_is_not_there_is_an_error(tmp_path):
    with pytest.raises(FileNotFoundError):
        too_little_room(tmp_path / "none", 1)
