from __future__ import annotations

import pytest
from fake_device import CPU, FakeDevice, gpu

import pyllama
from adapter.models.device_choice import choose_devices

AMD, NVIDIA = "AMD Radeon RX 7900 XTX", "NVIDIA GeForce RTX 4090"


def used(*devices):
    return [choice.device.name for choice in choose_devices(devices) if choice.used]


def reasons(*devices):
    return {choice.device.name: choice.reason for choice in choose_devices(devices)}


def test_the_devices_of_this_machine_are_judged_too():
    choices = choose_devices(pyllama.devices())
    assert [choice.device for choice in choices] == pyllama.devices()
    assert all(choice.used for choice in choices if choice.device.type == "cpu")
    assert all(choice.reason for choice in choices)


def test_without_a_gpu_the_cpu_computes():
    blas = FakeDevice("BLAS", "BLAS", "accel", "OpenBLAS")
    assert used(blas, CPU) == ["CPU"]
    assert "no GPU" in reasons(blas, CPU)["CPU"]


@pytest.mark.parametrize(
    ("cuda", "vulkan"),
    [
        ("0000:c1:00.0", "0000:c1:00.0"),
        ("0000:C1:00.0", "0000:c1:00.0"),
        ("0000:c1:00.0", None),  # a driver without VK_EXT_pci_bus_info
        (None, None),
    ],
)
@pytest.mark.parametrize("vulkan_first", [False, True])
def test_a_card_of_cuda_and_vulkan_is_used_once_through_cuda(cuda, vulkan, vulkan_first):
    devices = [gpu("CUDA0", device_id=cuda), gpu("Vulkan0", device_id=vulkan), CPU]
    if vulkan_first:
        devices[:2] = devices[1::-1]
    assert used(*devices) == ["CUDA0", "CPU"]
    assert reasons(*devices)["Vulkan0"] == "the same card as CUDA0"


def test_the_makers_backend_comes_before_vulkan_on_each_card():
    devices = [
        gpu("Vulkan0", description=NVIDIA, device_id="0000:01:00.0"),
        gpu("Vulkan1", description=AMD, device_id="0000:02:00.0"),
        gpu("ROCm0", description="AMD Radeon Graphics", device_id="0000:02:00.0"),
        CPU,
    ]
    assert used(*devices) == ["Vulkan0", "ROCm0", "CPU"]


@pytest.mark.parametrize("known", [True, False])
def test_two_like_cards_are_two(known):
    addresses = ["0000:01:00.0", "0000:02:00.0"] if known else [None, None]
    devices = [
        gpu(f"{backend}{index}", device_id=addresses[index])
        for backend in ("CUDA", "Vulkan")
        for index in range(2)
    ]
    assert used(*devices, CPU) == ["CUDA0", "CUDA1", "CPU"]


def test_cards_that_only_look_alike_are_both_used():
    """One is hidden from CUDA (CUDA_VISIBLE_DEVICES), and Vulkan still reaches it."""
    devices = [
        gpu("CUDA0", device_id="0000:01:00.0"),
        gpu("Vulkan0", device_id="0000:01:00.0"),
        gpu("Vulkan1", device_id="0000:02:00.0"),
    ]
    assert used(*devices, CPU) == ["CUDA0", "Vulkan1", "CPU"]


@pytest.mark.parametrize(
    "name", ["llvmpipe (LLVM 15.0.6, 256 bits)", "lavapipe", "SwiftShader Device (Subzero)"]
)
def test_vulkan_made_of_software_is_not_used(name):
    software = gpu("Vulkan0", description=name)
    assert used(software, CPU) == ["CPU"]
    assert "software" in reasons(software, CPU)["Vulkan0"]
    assert used(gpu("CUDA0"), software, CPU) == ["CUDA0", "CPU"]


def test_integrated_gpus_are_used_where_there_is_no_other():
    iris = gpu("Vulkan0", type="igpu", description="Intel Iris Xe")
    spark = gpu("CUDA0", type="igpu", description="NVIDIA GB10")
    arc = gpu("Vulkan1", description="Intel Arc A770", device_id="0000:03:00.0")
    assert used(iris, CPU) == ["Vulkan0", "CPU"]
    assert "integrated" in reasons(iris, CPU)["Vulkan0"]
    assert used(iris, arc, CPU) == ["Vulkan1", "CPU"]
    assert "integrated" in reasons(iris, arc, CPU)["Vulkan0"]
    assert used(spark, iris, CPU) == ["CUDA0", "CPU"]


def test_an_integrated_gpu_of_two_backends_is_used_once():
    vulkan = gpu("Vulkan0", type="igpu", description="Radeon 8060S", device_id="0000:c5:00.0")
    rocm = gpu("ROCm0", type="igpu", description="AMD Radeon", device_id="0000:c5:00.0")
    assert used(vulkan, rocm, CPU) == ["ROCm0", "CPU"]


def test_a_backend_that_was_named_is_used_and_no_other():
    cuda, vulkan = gpu("CUDA0"), gpu("Vulkan0")
    software = gpu("Vulkan1", description="llvmpipe (LLVM 15.0.6, 256 bits)")
    choices = choose_devices([cuda, vulkan, software, CPU], [vulkan, software])
    assert [choice.used for choice in choices] == [False, True, True, True]
    assert not any(choice.used for choice in choose_devices([cuda, CPU], [])[:1])
    assert "not of the backend you chose" in choices[0].reason


def test_metal_is_used():
    assert used(FakeDevice("MTL0", "MTL", description="Apple M3"), CPU) == ["MTL0", "CPU"]


def test_a_device_of_another_machine_is_never_a_double():
    remote = FakeDevice("RPC0", "RPC", device_id=None)
    assert used(gpu("CUDA0"), remote, CPU) == ["CUDA0", "RPC0", "CPU"]
    assert "another machine" in reasons(gpu("CUDA0"), remote, CPU)["RPC0"]
