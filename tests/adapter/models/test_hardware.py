from __future__ import annotations

import logging

import pytest
from fake_device import CPU, GIB, FakeDevice, gpu

import pyllama
from adapter.errors import ConfigurationError, InvalidParameterError, ResourceError
from adapter.models import hardware
from adapter.models.cpu_memory import MAX_KEPT_BYTES as KEPT
from adapter.models.hardware import HOST, HardwareManager, margin


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


def test_the_margin_is_a_gibibyte_where_that_is_little():
    assert margin(24 * GIB) == GIB
    assert margin(GIB) == GIB // 8


# On the machine that runs the tests


def on_cpu():
    return HardwareManager(devices=())


def test_a_plan_for_the_cpu_says_what_the_model_takes(tiny_model_path, caplog):
    with caplog.at_level(logging.INFO, logger="adapter.models.hardware"):
        plan = on_cpu().plan(tiny_model_path, context_length=128, n_contexts=2)
    use = pyllama.memory_use(tiny_model_path, n_ctx=128, n_batch=96, devices=())
    assert plan.devices == ()
    assert (plan.context_length, plan.n_contexts) == (128, 2)
    assert plan.n_threads == hardware.cpu_threads()
    # Contexts of requests, of scores and of isolated ones, each padded to 256 tokens.
    assert plan.memory[HOST] > use.host.model + 4 * 2 * use.host.context + 4 * use.host.compute
    assert plan.fits
    assert [record.args[1] for record in caplog.records] == list(plan.reasons)


def test_without_a_length_the_context_is_that_of_training_up_to_4096(write_tiny_model):
    assert on_cpu().plan(write_tiny_model(n_ctx_train=256)).context_length == 256
    assert on_cpu().plan(write_tiny_model(n_ctx_train=8192)).context_length == 4096


@pytest.mark.parametrize(
    "wrong",
    [{"context_length": 0}, {"context_length": 1.5}, {"n_contexts": 0}, {"n_gpu_layers": "all"}],
)
def test_a_number_out_of_range_is_refused(tiny_model_path, wrong):
    with pytest.raises(InvalidParameterError, match=next(iter(wrong))):
        on_cpu().plan(tiny_model_path, **wrong)


def test_a_file_that_is_no_model_is_refused(tmp_path):
    (tmp_path / "text.gguf").write_text("no model")
    with pytest.raises(pyllama.ModelLoadError, match="no GGUF file"):
        on_cpu().plan(tmp_path / "text.gguf")
    with pytest.raises(FileNotFoundError):
        on_cpu().plan(tmp_path / "absent.gguf")


def test_devices_that_were_chosen_are_used_whatever_they_are():
    choices = HardwareManager(devices=()).choices()
    assert [choice.used for choice in choices] == [
        choice.device.type == "cpu" for choice in choices
    ]


# On machines that nobody has here: what llama.cpp would measure is made up


class Machine:
    """A model of some layers, each with weights and keys, on some devices."""

    def __init__(self, monkeypatch, *devices, layer=GIB, layers=10, key_bytes=0, free_host=64):
        self.found = [*devices, CPU]
        self.layer, self.layers, self.key_bytes = layer, layers, key_bytes
        self.free_host = free_host * GIB
        self.fitted = []
        monkeypatch.setattr(pyllama, "devices", lambda: self.found)
        monkeypatch.setattr(pyllama, "memory_use", self.use)
        monkeypatch.setattr(pyllama, "memory_fit", self.fit)

    def use(self, _path, *, n_ctx, n_gpu_layers, devices, **_):
        on_gpus = self.layers if n_gpu_layers < 0 else n_gpu_layers
        on_gpus = on_gpus if devices else 0

        def memory(device, layers):
            free, total = device.memory if device else (self.free_host, 64 * GIB)
            context = layers * self.key_bytes * n_ctx
            return pyllama.DeviceMemory(device, int(layers * self.layer), context, 0, free, total)

        return pyllama.MemoryUse(
            devices=tuple(memory(device, on_gpus / len(devices)) for device in devices),
            host=memory(None, self.layers - on_gpus),
            n_ctx=n_ctx,
            n_ctx_train=131072,
            n_layer=self.layers,
        )

    def fit(self, path, *, devices, margin, n_ctx=0, n_ctx_min=4096, n_seq_max=1, **_):
        self.fitted.append({"devices": [device.name for device in devices], "n_ctx": n_ctx})
        if not devices:
            room = self.free_host - margin - self.layers * self.layer
            length = room // (self.layers * self.key_bytes)
            if length < n_ctx_min:
                raise pyllama.MemoryFitError("does not fit")
            use = self.use(path, n_ctx=length, n_gpu_layers=0, devices=())
            return pyllama.MemoryFit(0, None, {}, length, use)
        room = sum(device.memory[0] - margin for device in devices)
        layers = min(self.layers, room // (self.layer + self.key_bytes * n_ctx))
        if layers < 1:
            raise pyllama.MemoryFitError("does not fit")
        layers = -1 if layers == self.layers else layers
        split = (1.0,) * len(devices) if len(devices) > 1 else None
        use = self.use(path, n_ctx=n_ctx, n_gpu_layers=layers, devices=devices)
        return pyllama.MemoryFit(layers, split, {}, n_ctx, use)


def test_a_model_that_fits_a_gpu_runs_on_the_emptiest(monkeypatch):
    busy = gpu("CUDA0", device_id="1", memory=(20 * GIB, 80 * GIB))
    empty = gpu("CUDA1", device_id="2", memory=(70 * GIB, 80 * GIB))
    machine = Machine(monkeypatch, busy, empty)
    plan = HardwareManager().plan("model.gguf")
    assert plan.devices == (empty,)
    assert (plan.n_gpu_layers, plan.n_contexts) == (-1, 32)
    assert plan.fits
    assert plan.memory == {HOST: KEPT, "CUDA1": 10 * GIB}
    assert machine.fitted == []


def test_a_gpu_of_this_machine_comes_before_a_larger_one_elsewhere(monkeypatch):
    remote = FakeDevice("RPC0", "RPC", memory=(200 * GIB, 200 * GIB))
    Machine(monkeypatch, remote, gpu("CUDA0"))
    assert [device.name for device in HardwareManager().plan("model.gguf").devices] == ["CUDA0"]


def test_contexts_are_counted_on_a_gpu(monkeypatch):
    Machine(monkeypatch, gpu("CUDA0"), key_bytes=2**12)
    plan = HardwareManager().plan("model.gguf", context_length=1024, n_contexts=4)
    # 4 of requests, one of scores and one of isolated requests.
    assert plan.memory["CUDA0"] == 10 * GIB + 6 * 10 * 2**12 * 1024


@pytest.mark.parametrize(
    ("free", "n_contexts"), [(80, 32), (50, 16), (43, 16), (42, 8), (33, 8), (32, 4), (16, 4)]
)
def test_a_gpu_with_room_has_more_contexts_and_half_of_it_stays_free(monkeypatch, free, n_contexts):
    # 10 GiB of weights, and 5/8 GiB for each context of 4096 tokens.
    gpu0 = gpu("CUDA0", memory=(free * GIB, 80 * GIB))
    Machine(monkeypatch, gpu0, key_bytes=2**14)
    plan = HardwareManager().plan("model.gguf")
    assert plan.n_contexts == n_contexts
    assert plan.memory["CUDA0"] == 10 * GIB + (n_contexts + 2) * 10 * 2**14 * 4096
    assert f"with {n_contexts} contexts" in plan.reasons[1]
    assert HardwareManager().plan("model.gguf", n_contexts=6).n_contexts == 6


def test_a_model_too_large_for_one_gpu_is_spread_over_all(monkeypatch):
    cards = [gpu(f"CUDA{i}", device_id=str(i), memory=(8 * GIB, 8 * GIB)) for i in range(2)]
    machine = Machine(monkeypatch, *cards)
    plan = HardwareManager().plan("model.gguf")
    assert plan.devices == tuple(cards)
    assert (plan.n_gpu_layers, plan.tensor_split) == (-1, (1.0, 1.0))
    assert plan.fits
    assert machine.fitted == [{"devices": ["CUDA0", "CUDA1"], "n_ctx": 6 * 4096}]


def test_layers_that_do_not_fit_the_gpu_stay_on_the_cpu(monkeypatch):
    Machine(monkeypatch, gpu("CUDA0", memory=(6 * GIB, 8 * GIB)))
    plan = HardwareManager().plan("model.gguf")
    assert (plan.n_gpu_layers, plan.memory) == (5, {HOST: 5 * GIB + KEPT, "CUDA0": 5 * GIB})
    assert not plan.fits
    assert "5 layers of it fit CUDA0" in plan.reasons


def test_a_gpu_without_room_for_a_layer_leaves_the_model_to_the_cpu(monkeypatch):
    Machine(monkeypatch, gpu("CUDA0", memory=(GIB, 8 * GIB)))
    plan = HardwareManager().plan("model.gguf")
    assert (plan.devices, plan.n_gpu_layers) == ((), 0)
    assert "CPU" in plan.reasons[0]


def test_layers_that_were_asked_for_are_not_questioned(monkeypatch):
    machine = Machine(monkeypatch, gpu("CUDA0", memory=(2 * GIB, 8 * GIB)))
    plan = HardwareManager().plan("model.gguf", n_gpu_layers=7)
    assert (plan.n_gpu_layers, plan.memory["CUDA0"]) == (7, 7 * GIB)
    assert not plan.fits
    assert machine.fitted == []


def test_no_layer_on_the_gpu_is_the_cpu(monkeypatch):
    Machine(monkeypatch, gpu("CUDA0"))
    plan = HardwareManager().plan("model.gguf", n_gpu_layers=0)
    assert (plan.devices, plan.n_contexts) == ((), 16)


def test_devices_that_were_chosen_come_before_what_is_worth_using(monkeypatch):
    iris = gpu("Vulkan0", type="igpu")
    Machine(monkeypatch, gpu("CUDA0"), iris)
    assert [device.name for device in HardwareManager().plan("model.gguf").devices] == ["CUDA0"]
    assert HardwareManager([iris]).plan("model.gguf").devices == (iris,)


def test_on_the_cpu_an_open_context_becomes_smaller_and_a_given_one_does_not(monkeypatch):
    # 10 GiB of weights and 320 KiB for each token: 4096 tokens take 1.25 GiB more.
    Machine(monkeypatch, key_bytes=2**15, free_host=12)
    plan = HardwareManager().plan("model.gguf")
    assert 256 <= plan.context_length < 4096
    assert plan.memory[HOST] <= 11 * GIB
    length = plan.context_length
    assert any(f"context of {length} tokens" in reason for reason in plan.reasons)
    given = HardwareManager().plan("model.gguf", context_length=4096)
    assert (given.context_length, given.fits) == (4096, False)


@pytest.mark.parametrize(
    ("free_host", "n_contexts", "n_cells"),
    [
        (64, 16, 16 * 4096 + 20 * 1024),  # half of it is left to other models
        (40, 16, 16 * 4096 + 20 * 1024),
        (30, None, None),  # as many as leave half
        (20, 5, 16 * 1024 + 4096),  # 16 of ordinary length and a long one, and a margin is left
        (14, None, None),
        (13, None, None),
    ],
)
def test_on_the_cpu_as_many_requests_as_memory_allows(monkeypatch, free_host, n_contexts, n_cells):
    """10 GiB of weights, and 80 KiB for each token, as models of 8 billion weights have."""
    Machine(monkeypatch, key_bytes=2**13, free_host=free_host)
    plan = HardwareManager().plan("model.gguf")
    assert plan.context_length == 4096
    assert plan.n_sequences == 16
    assert n_contexts in (None, plan.n_contexts)
    assert n_cells in (None, plan.n_cells)
    assert plan.fits
    assert plan.memory[HOST] + margin(free_host * GIB) <= free_host * GIB


def test_the_number_of_sequences_does_not_follow_from_their_length(monkeypatch):
    Machine(monkeypatch, key_bytes=2**10)
    for length in (256, 1000, 1024, 2048, 8192, 32768):
        plan = HardwareManager().plan("model.gguf", context_length=length)
        assert (plan.n_contexts, plan.n_sequences) == (16, 16)
        given = HardwareManager().plan("model.gguf", context_length=length, n_contexts=32)
        assert (given.n_contexts, given.n_sequences) == (32, 32)
        assert given.n_cells >= 32 * length


@pytest.mark.parametrize("free_host", [64, 20, 13])
@pytest.mark.parametrize("given", [None, 1])
def test_there_is_memory_for_a_batch_of_requests_of_the_full_length(monkeypatch, free_host, given):
    """A context for them has as many sequences as its batches; else the length is shorter."""
    Machine(monkeypatch, key_bytes=2**13, free_host=free_host)
    plan = HardwareManager().plan("model.gguf", n_contexts=given, batch_width=8)
    assert plan.n_cells >= 8 * plan.context_length
    assert plan.memory[HOST] + margin(free_host * GIB) <= free_host * GIB
    if free_host != 20:
        assert (plan.context_length == 4096) is (free_host == 64)
    assert plan.batch_width == 8
    single = HardwareManager().plan("model.gguf", n_contexts=given)
    assert single.batch_width == 1
    assert single.context_length >= plan.context_length


def test_padded_batches_on_a_gpu_have_their_memory(monkeypatch):
    Machine(monkeypatch, gpu("CUDA0", memory=(80 * GIB, 80 * GIB)), key_bytes=2**13)
    plan = HardwareManager().plan("model.gguf", batch_width=16)
    plain = HardwareManager().plan("model.gguf")
    assert (plan.batch_width, plain.batch_width) == (16, 1)
    assert plan.n_cells >= 16 * plan.context_length
    beside = plan.memory["CUDA0"] - 10 * GIB - plan.n_cells * 10 * 2**13
    # A context for isolated requests, one for scores, and one in which batches are tried.
    assert beside >= (16 * plan.context_length + plan.context_length + 64 * 1024) * 10 * 2**13


def test_a_context_longer_than_the_training_is_reported(write_tiny_model, caplog):
    path = write_tiny_model(n_ctx_train=256)
    on_cpu().plan(path, context_length=256)
    on_cpu().plan(path)
    assert "trained" not in caplog.text
    assert on_cpu().plan(path, context_length=512).context_length == 512
    assert "a context of 512 tokens is more than the 256" in caplog.text


def test_what_others_were_promised_is_left_to_them(monkeypatch):
    Machine(monkeypatch, key_bytes=2**13, free_host=64)
    plan = HardwareManager().plan("model.gguf", room=14 * GIB)
    assert plan.memory[HOST] <= 14 * GIB
    assert plan.fits
    assert not HardwareManager().plan("model.gguf", room=5 * GIB).fits


def test_weights_that_exceed_the_memory_are_reported_and_not_refused(monkeypatch):
    Machine(monkeypatch, key_bytes=2**19, free_host=8)
    plan = HardwareManager().plan("model.gguf")
    assert (plan.context_length, plan.fits) == (4096, False)


# A backend that is named


def test_a_named_backend_alone_is_used(monkeypatch):
    vulkan = gpu("Vulkan0", description="llvmpipe")
    Machine(monkeypatch, gpu("CUDA0"), vulkan)
    monkeypatch.setattr(pyllama, "backend_devices", lambda name: {"vulkan": [vulkan]}[name])
    assert HardwareManager(backend="vulkan").plan("model.gguf").devices == (vulkan,)


def test_the_cpu_can_be_named(tiny_model_path):
    assert HardwareManager(backend="cpu").plan(tiny_model_path).devices == ()


def test_a_named_backend_that_is_not_here_is_an_error(tiny_model_path, monkeypatch):
    lacking = next(
        name
        for name, registered in (("sycl", "SYCL"), ("hip", "ROCm"))
        if registered not in {device.backend for device in pyllama.devices()}
    )
    with pytest.raises(ResourceError, match="Devices here: "):
        HardwareManager(backend=lacking).plan(tiny_model_path)
    with pytest.raises(InvalidParameterError, match="backend='nonsense'"):
        HardwareManager(backend="nonsense")
    with pytest.raises(ConfigurationError, match="not both"):
        HardwareManager((), backend="cpu")
    monkeypatch.setenv("PYLLAMA_BACKEND", "nonsense")
    with pytest.raises(ConfigurationError, match="PYLLAMA_BACKEND"):
        HardwareManager().choices()
