"""Devices and backends."""

from __future__ import annotations

import re
import threading

import pytest

import pyllama


def test_there_is_a_cpu():
    cpu = [device for device in pyllama.devices() if device.type == "cpu"]
    assert len(cpu) == 1
    assert cpu[0].backend == "CPU"
    assert cpu[0].name
    assert cpu[0].description


def test_a_device_tells_its_memory():
    for device in pyllama.devices():
        free, total = device.memory
        assert 0 <= free <= total
    (cpu,) = [device for device in pyllama.devices() if device.type == "cpu"]
    assert cpu.memory[1] > 2**28


def test_devices_compare_by_what_they_are():
    assert pyllama.devices() == pyllama.devices()
    assert len({device.name for device in pyllama.devices()}) == len(pyllama.devices())


def test_features_of_the_cpu():
    (cpu,) = [device for device in pyllama.devices() if device.type == "cpu"]
    features = pyllama.backend_features(cpu)
    assert features
    assert all(isinstance(key, str) and isinstance(value, str) for key, value in features.items())


def test_the_version_names_the_commit():
    assert re.fullmatch(r"\d+\.\d+\.\d+ \([0-9a-f]{10}\)", pyllama.llama_cpp_version())


def test_backends_are_loaded_once_however_many_threads_ask():
    before = pyllama.devices()
    threads = [threading.Thread(target=pyllama.load_backends) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert pyllama.devices() == before


def test_a_model_on_a_chosen_device(tiny_model_path):
    (cpu,) = [device for device in pyllama.devices() if device.type == "cpu"]
    with (
        pyllama.Model(tiny_model_path, devices=[cpu]) as model,
        pyllama.Context(model, n_ctx=256) as context,
    ):
        context.decode(pyllama.Batch.from_tokens([1, 2, 3]))
        assert context.logits().size == model.vocab.n_tokens


@pytest.mark.parametrize("device", [None, "CPU", 0])
def test_features_of_something_that_is_no_device(device):
    with pytest.raises(TypeError, match="device"):
        pyllama.backend_features(device)
