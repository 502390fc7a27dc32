"""Devices and backends."""

from __future__ import annotations

import json
import os
import re
import shutil
import threading

import pytest
from decoding import run_python

import pyllama


def cpu_device():
    (cpu,) = [device for device in pyllama.devices() if device.type == "cpu"]
    return cpu


def cpu_backend():
    (cpu,) = [backend for backend in pyllama.backends() if backend.name == "CPU"]
    return cpu


def other_variant():
    """A CPU variant that any processor of this kind runs, and that is not the one in use."""
    names = sorted(os.listdir(os.path.dirname(cpu_backend().path)))
    pattern = re.compile(r"ggml-cpu-(.+)\.(?:so|dll)")
    variants = [match[1] for name in names if (match := pattern.search(name))]
    plain = [name for name in variants if name in ("x64", "sse42", "armv8.0_1", "apple_m1")]
    if not variants:
        pytest.skip("this build has one CPU module")
    other = next((name for name in plain if name != pyllama.cpu_variant()), None)
    return other or pytest.skip("this processor runs no other CPU module for sure")


@pytest.mark.parametrize(
    ("name", "variant"),
    [
        ("libggml-cpu-haswell.so", "haswell"),
        ("libggml-cpu-armv8.0_1.so", "armv8.0_1"),
        ("libggml-cpu-armv8.6_2.so", "armv8.6_2"),
        ("libggml-cpu-apple_m1.so", "apple_m1"),
        ("ggml-cpu-x64.dll", "x64"),
        ("libggml-cpu.so", None),
        ("libggml-cuda.so", None),
    ],
)
def test_a_variant_is_known_by_the_name_of_its_module(tmp_path, name, variant):
    (tmp_path / name).touch()
    expected = {} if variant is None else {variant: str(tmp_path / name)}
    assert pyllama.device._cpu_modules(str(tmp_path)) == expected


def test_there_is_a_cpu():
    cpu = [device for device in pyllama.devices() if device.type == "cpu"]
    assert len(cpu) == 1
    assert cpu[0].backend == "CPU"
    assert cpu[0].name
    assert cpu[0].description


def test_a_device_reports_its_memory():
    for device in pyllama.devices():
        free, total = device.memory
        assert 0 <= free <= total
    assert cpu_device().memory[1] > 2**28


def test_devices_compare_by_what_they_are():
    assert pyllama.devices() == pyllama.devices()
    assert len({device.name for device in pyllama.devices()}) == len(pyllama.devices())


def test_features_of_the_cpu():
    features = pyllama.backend_features(cpu_device())
    assert features
    assert all(isinstance(key, str) and isinstance(value, str) for key, value in features.items())
    assert pyllama.backend_features(cpu_backend()) == features


def test_capabilities_of_the_cpu():
    caps = cpu_device().caps
    assert set(caps) == {"async", "host_buffer", "buffer_from_host_ptr", "events", "mmap_support"}
    assert caps["buffer_from_host_ptr"] is True
    assert caps["async"] is False
    with pytest.raises(TypeError):
        caps["async"] = True
    assert cpu_device().device_id is None


def test_each_device_is_of_a_backend():
    backends = pyllama.backends()
    assert {device.backend for device in pyllama.devices()} <= {each.name for each in backends}
    assert os.path.isfile(cpu_backend().path)
    assert (pyllama.cpu_variant() or "ggml-cpu") in os.path.basename(cpu_backend().path)


def test_system_info_lists_the_features():
    info = pyllama.system_info()
    assert info.startswith("CPU : ")
    for name, value in pyllama.backend_features(cpu_device()).items():
        assert f"{name} = {value}" in info


def test_system_info_from_many_threads():
    expected = pyllama.system_info()
    found = []
    threads = [
        threading.Thread(target=lambda: found.extend(pyllama.system_info() for _ in range(50)))
        for _ in range(4)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == [expected] * 200


def test_what_llama_cpp_supports():
    types = {device.type for device in pyllama.devices()}
    names = {backend.name for backend in pyllama.backends()}
    assert pyllama.supports_rpc() == ("RPC" in names)
    assert pyllama.supports_gpu_offload() == bool(types & {"gpu", "igpu"} or "RPC" in names)
    assert isinstance(pyllama.supports_mmap(), bool)
    assert isinstance(pyllama.supports_mlock(), bool)
    assert pyllama.max_devices() >= len(pyllama.devices())
    assert pyllama.max_parallel_sequences() >= 64


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
    cpu = cpu_device()
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


REPORT = """
    import json, sys
    import pyllama
    {before}
    with pyllama.Model(sys.argv[1]) as model, pyllama.Context(model, n_ctx=64) as context:
        context.decode(pyllama.Batch.from_tokens([1, 2, 3]))
        finite = bool((context.logits() ** 2 < 1e9).all())
    print(json.dumps([
        pyllama.cpu_variant(), [b.path for b in pyllama.backends()], len(pyllama.devices()), finite
    ]))
"""


def in_another_process(before, path, **environment):
    """What a fresh interpreter says of its CPU backend after some statements."""
    lines = "\n    ".join(before.splitlines())
    code = REPORT.format(before=lines)
    return json.loads(run_python(code, path, env={**os.environ, **environment}))


@pytest.mark.parametrize("way", ["argument", "environment", "module"])
def test_the_cpu_variant_can_be_chosen(tiny_model_path, way):
    variant, folder = other_variant(), os.path.dirname(cpu_backend().path)
    file = os.path.basename(cpu_backend().path).replace(pyllama.cpu_variant(), variant)
    before, environment = {
        "argument": (f"pyllama.load_backends(cpu_variant={variant!r})", {}),
        "environment": ("", {"PYLLAMA_CPU_VARIANT": variant}),
        "module": (f"pyllama.load_backend({os.path.join(folder, file)!r})", {}),
    }[way]
    said = in_another_process(before, tiny_model_path, **environment)
    expected = [os.path.join(folder, file)]
    others = [each.path for each in pyllama.backends() if each.name != "CPU"]
    assert said[0] == variant
    assert sorted(said[1]) == sorted(expected + others)
    assert said[2:] == [len(pyllama.devices()), True]


def test_the_variant_of_the_argument_wins(tiny_model_path):
    variant = pyllama.cpu_variant()
    before = f"pyllama.load_backends(cpu_variant={variant!r})"
    said = in_another_process(before, tiny_model_path, PYLLAMA_CPU_VARIANT=other_variant())
    assert said[0] == variant


def test_backends_from_a_folder(tiny_model_path, tmp_path):
    shutil.copy(cpu_backend().path, tmp_path)
    libraries = os.path.dirname(cpu_backend().path)
    said = in_another_process(
        f"pyllama.load_backends({str(tmp_path)!r})\npyllama.load_backends({str(tmp_path)!r})",
        tiny_model_path,
        LD_LIBRARY_PATH=libraries,
    )
    assert said[0] == pyllama.cpu_variant()
    assert str(tmp_path / os.path.basename(cpu_backend().path)) in said[1]


def test_backends_are_tried_again_after_a_failure(tiny_model_path, tmp_path):
    before = """
try:
    pyllama.load_backends({folder!r}, cpu_variant={variant!r})
except pyllama.BackendError as error:
    assert {reason!r} in str(error), error
else:
    raise AssertionError
"""
    folder = os.path.dirname(cpu_backend().path)
    held = "it holds " if pyllama.cpu_variant() else "one only"
    for options in [
        {"folder": str(tmp_path), "variant": None, "reason": "It holds none"},
        {"folder": str(tmp_path), "variant": "x64", "reason": "one only"},
        {"folder": folder, "variant": "abacus", "reason": held},
    ]:
        said = in_another_process(before.format(**options), tiny_model_path)
        assert said[0] == pyllama.cpu_variant()


def test_what_is_loaded_stays(tmp_path):
    pyllama.load_backends()
    pyllama.load_backends(os.path.dirname(cpu_backend().path), cpu_variant=pyllama.cpu_variant())
    with pytest.raises(pyllama.BackendError, match=r"comes too late: .* with \w+"):
        pyllama.load_backends(cpu_variant=other_variant())
    with pytest.raises(pyllama.BackendError, match="elsewhere"):
        pyllama.load_backends(tmp_path)
    with pytest.raises(pyllama.BackendError, match="before"):
        pyllama.load_backend(cpu_backend().path)


@pytest.mark.parametrize("name", ["missing", "text", "no_backend"])
def test_a_file_that_is_no_backend(tmp_path, name):
    path = tmp_path / "module.so"
    if name == "text":
        path.write_text("hello")
    elif name == "no_backend":
        library = "libggml-base.so"
        shutil.copy(os.path.join(os.path.dirname(cpu_backend().path), library), path)
    code = """
        import logging, sys, pyllama
        logging.disable()
        try:
            pyllama.load_backend(sys.argv[1])
        except (pyllama.BackendError, FileNotFoundError) as error:
            print(type(error).__name__, error)
        assert any(backend.name == "CPU" for backend in pyllama.backends())
    """
    expected = "FileNotFoundError" if name == "missing" else f"BackendError loading {path}: "
    assert run_python(code, path).startswith(expected)


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: pyllama.load_backends(1), TypeError, "folder.*1"),
        (lambda: pyllama.load_backends(b"/"), TypeError, "folder"),
        (lambda: pyllama.load_backends("/no/such"), FileNotFoundError, "folder.*no/such"),
        (lambda: pyllama.load_backends(__file__), NotADirectoryError, "test_device"),
        (lambda: pyllama.load_backends(cpu_variant=3), TypeError, "cpu_variant.*3"),
        (lambda: pyllama.load_backend("a\0b"), ValueError, "null"),
        (lambda: pyllama.load_backend("/no/such"), FileNotFoundError, "no/such"),
        (lambda: pyllama.load_backend(None), TypeError, "path.*None"),
    ],
)
def test_wrong_arguments(call, error, message):
    with pytest.raises(error, match=message):
        call()
