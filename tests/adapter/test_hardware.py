from __future__ import annotations

import pytest

import pyllama
from adapter import hardware


@pytest.mark.parametrize(
    ("limit", "threads"),
    [("200000 100000", 2), ("max 100000", 8), ("50000 100000", 1), ("nonsense", 8)],
)
def test_threads_stay_within_the_container(tmp_path, monkeypatch, limit, threads):
    quota = tmp_path / "cpu.max"
    quota.write_text(f"{limit}\n")
    monkeypatch.setattr(hardware, "_CPU_QUOTA", quota)
    monkeypatch.setattr(pyllama, "cpu_math_cores", lambda: 8)
    assert hardware.cpu_threads() == threads


def test_without_a_container_all_cores_count(tmp_path, monkeypatch):
    monkeypatch.setattr(hardware, "_CPU_QUOTA", tmp_path / "absent")
    assert hardware.cpu_threads() == pyllama.cpu_math_cores()


def _device(kind: str) -> pyllama.Device:
    return pyllama.Device(kind.upper(), "made up", kind, kind, None)


@pytest.mark.parametrize(
    ("kinds", "layers", "chosen"),
    [
        (["cpu"], -1, "cpu"),
        (["gpu", "cpu"], -1, "gpu"),
        (["igpu", "cpu"], 10, "igpu"),
        (["gpu", "cpu"], 0, "cpu"),
        (["accel", "cpu"], -1, "cpu"),
    ],
)
def test_a_gpu_runs_the_model_unless_no_layer_goes_there(monkeypatch, kinds, layers, chosen):
    monkeypatch.setattr(pyllama, "devices", lambda: [_device(kind) for kind in kinds])
    assert hardware.running_device(layers).type == chosen
