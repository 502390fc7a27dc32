"""What a plan says that a model takes, and what it takes when all of it is used."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import synthetic

PROGRAM = Path(__file__).with_name("memory_at_its_peak.py")

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")


def plan_and_use(folder, name, **settings):
    ran = subprocess.run(
        [sys.executable, PROGRAM, folder, name, json.dumps(settings)],
        capture_output=True,
        text=True,
        timeout=400,
        check=False,
    )
    assert ran.returncode == 0, ran.stderr
    return json.loads(ran.stdout)


@pytest.mark.parametrize(
    ("architecture", "settings"),
    [
        ("llama", {}),
        ("llama", {"context_length": 512}),
        ("llama", {"max_contexts": 2}),
        ("llama", {"reproducible": False}),
        ("gemma2", {"context_length": 2048}),
        ("mamba", {"context_length": 2048}),
        ("jamba", {"context_length": 2048}),
    ],
)
def test_a_model_takes_no_more_than_planned(tmp_path, architecture, settings):
    synthetic.write_model(
        tmp_path / "one.gguf", architecture=architecture, n_ctx_train=4096, n_embd=256
    )
    planned, taken, n_cells, n_contexts = plan_and_use(tmp_path, "one", **settings)
    assert planned / 4 < taken <= planned
    assert n_cells > 0
    assert n_contexts >= settings.get("max_contexts", 16)


@pytest.mark.model
def test_a_real_model_takes_no_more_than_planned(smollm2_path):
    planned, taken, n_cells, n_contexts = plan_and_use(
        smollm2_path.parent, smollm2_path.stem, context_length=1024
    )
    assert planned / 3 < taken <= planned
    assert n_contexts == 16
    assert n_cells >= 16 * 1024
