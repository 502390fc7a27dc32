"""What models and contexts would take: against their shapes, against real ones, and what fits."""

from __future__ import annotations

import importlib
import logging
import os
import re
import subprocess
import sys
import threading

import gguf
import numpy as np
import pytest
import synthetic
from decoding import PROMPT, logits_of

import pyllama
from pyllama._system_memory import available_memory

GIB = 2**30


def test_a_model_takes_the_size_of_its_tensors(tiny, tiny_model_path):
    use = pyllama.memory_use(tiny_model_path, devices=[])
    assert use.devices == ()
    assert use.host.device is None
    assert use.host.model == tiny.size
    assert (use.n_ctx, use.n_ctx_train, use.n_layer) == (512, 512, 2)
    assert use.host.used == use.host.model + use.host.context + use.host.compute


def test_the_params_of_a_context_count(tiny_model_path):
    params = pyllama.ContextParams(n_ctx=4096, type_k="f32", type_v="f32", n_ubatch=64)
    named = {"type_k": "f32", "type_v": "f32", "n_ubatch": 64}
    expected = pyllama.memory_use(tiny_model_path, n_ctx=1024, **named)
    found = pyllama.memory_use(tiny_model_path, n_ctx=1024, context=params)
    assert (found.host.context, found.host.compute) == (
        expected.host.context,
        expected.host.compute,
    )
    assert pyllama.memory_use(tiny_model_path, context=params).n_ctx == 4096
    plain = pyllama.memory_use(tiny_model_path, n_ctx=1024, context=params, type_k="f16")
    assert plain.host.context == expected.host.context * 3 / 4
    with pytest.raises(TypeError, match="progress"):
        pyllama.memory_use(tiny_model_path, progress=print)


@pytest.mark.parametrize("n_ctx", [256, 1024, 2**20])
@pytest.mark.parametrize(("kind", "bits"), [("f16", 16), ("f32", 32), ("q8_0", 8.5)])
def test_a_context_takes_what_its_keys_and_values_do(write_tiny_model, n_ctx, kind, bits):
    path = write_tiny_model(n_embd=128, n_layer=3)
    use = pyllama.memory_use(
        path, n_ctx=n_ctx, type_k=kind, type_v=kind, flash_attn="enabled", devices=[]
    )
    n_embd_kv = 128 // 4 * 2
    assert use.host.context == n_ctx * 3 * 2 * n_embd_kv * bits / 8
    assert use.n_ctx == n_ctx


def test_sequences_share_the_context(tiny_model_path):
    alone = pyllama.memory_use(tiny_model_path, n_ctx=4096)
    several = pyllama.memory_use(tiny_model_path, n_ctx=4096, n_seq_max=4)
    assert alone.host.context == several.host.context


def test_larger_batches_take_more_to_compute(tiny_model_path):
    small, large = (
        pyllama.memory_use(tiny_model_path, n_ctx=4096, n_ubatch=n_ubatch).host.compute
        for n_ubatch in (32, 1024)
    )
    assert 0 < small < large


def test_llama_cpp_says_the_same_of_a_real_context(tiny_model_path, caplog):
    """Compare with what it logs of the buffers that it really makes."""
    caplog.set_level(logging.INFO, logger="pyllama.llama_cpp")
    set_log_level(2)
    try:
        with pyllama.Model(tiny_model_path) as model, pyllama.Context(model, n_ctx=2048):
            pass
    finally:
        set_log_level(3)
    sizes = {
        kind: float(re.search(rf"{kind} buffer size = *([\d.]+) MiB", caplog.text)[1])
        for kind in ("model", "KV", "compute")
    }
    use = pyllama.memory_use(tiny_model_path, n_ctx=2048).host
    assert use.model / 2**20 == pytest.approx(sizes["model"], abs=0.006)
    assert use.context / 2**20 == pytest.approx(sizes["KV"], abs=0.006)
    assert use.compute / 2**20 == pytest.approx(sizes["compute"], abs=0.006)


def set_log_level(level):
    from pyllama._native._binding import lib

    lib.pyllama_set_log_level(level)


def test_what_other_threads_log_meanwhile_keeps_its_level(tiny, tiny_model_path):
    """llama.cpp sets a log callback of its own to measure, for the whole process."""
    logger, records = logging.getLogger("pyllama.llama_cpp"), []
    measuring = threading.get_ident()

    def warn():
        pyllama.Context(tiny, n_ctx=1024, n_threads=1).close()

    def look(record):
        records.append(record)
        if record.thread == measuring and len(records) == 1:
            other = threading.Thread(target=warn)
            other.start()
            other.join()
        return False

    logger.addFilter(look)
    before = logger.level
    logger.setLevel(logging.DEBUG)
    set_log_level(1)
    try:
        pyllama.memory_use(tiny_model_path, n_ctx=2048)
    finally:
        set_log_level(3)
        logger.setLevel(before)
        logger.removeFilter(look)
    levels = {
        record.thread == measuring: record.levelno
        for record in records
        if "possible training context overflow" in record.getMessage()
    }
    assert levels == {False: logging.WARNING, True: logging.DEBUG}


def test_a_recurrent_model(write_tiny_model):
    path = write_tiny_model(architecture="mamba")
    one, four = (pyllama.memory_use(path, n_seq_max=n).host.context for n in (1, 4))
    assert one > 0
    assert four == 4 * one


@pytest.fixture
def huge_path(tmp_path):
    """A model of 54 GB, of which only the header is on the disk."""
    return write_huge(tmp_path / "huge.gguf")


def write_huge(path, n_embd=8192, n_layer=32, n_ctx_train=2048):
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_context_length(n_ctx_train)
    writer.add_embedding_length(n_embd)
    writer.add_block_count(n_layer)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_feed_forward_length(2 * n_embd)
    writer.add_head_count(64)
    writer.add_head_count_kv(8)
    n_vocab = synthetic.add_tokenizer(writer, "bpe")
    n_kv = n_embd // 8
    shapes = {
        "token_embd": (n_vocab, n_embd),
        "output": (n_vocab, n_embd),
        "output_norm": (n_embd,),
    }
    for layer in range(n_layer):
        for name, shape in {
            "attn_norm": (n_embd,),
            "attn_q": (n_embd, n_embd),
            "attn_k": (n_kv, n_embd),
            "attn_v": (n_kv, n_embd),
            "attn_output": (n_embd, n_embd),
            "ffn_norm": (n_embd,),
            "ffn_gate": (2 * n_embd, n_embd),
            "ffn_up": (2 * n_embd, n_embd),
            "ffn_down": (n_embd, 2 * n_embd),
        }.items():
            shapes[f"blk.{layer}.{name}"] = shape
    for name, shape in shapes.items():
        size = 4 * int(np.prod(shape))
        writer.add_tensor_info(f"{name}.weight", shape, np.dtype(np.float32), size)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    writer.close()
    tensors = 4 * sum(int(np.prod(shape)) for shape in shapes.values())
    os.truncate(path, path.stat().st_size + tensors + 2**20)
    return path


def test_no_weights_are_read_or_given_memory(huge_path):
    program = f"""
import resource, sys
import pyllama
pyllama.devices()
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
print(pyllama.memory_use({str(huge_path)!r}, devices=[]).host.model)
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
"""
    # In a process of its own: this one may have held more memory before.
    command = [sys.executable, "-c", program]
    output = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    weights, growth = map(int, output.split())
    assert weights > 60 * GIB
    assert growth < (100_000_000 if sys.platform == "darwin" else 100_000)  # else kilobytes


def test_a_model_larger_than_the_memory_does_not_fit(huge_path):
    with pytest.raises(pyllama.MemoryFitError, match=r"takes [\d,]+ bytes of the host") as caught:
        pyllama.memory_fit(huge_path, devices=[])
    assert str(huge_path) in str(caught.value)


def test_a_small_model_fits_as_it_is(tiny_model_path):
    fit = pyllama.memory_fit(tiny_model_path, devices=[])
    assert (fit.n_gpu_layers, fit.tensor_split, dict(fit.tensor_buft_overrides)) == (-1, None, {})
    assert fit.n_ctx == fit.use.n_ctx == 512
    with (
        pyllama.Model(tiny_model_path, n_gpu_layers=fit.n_gpu_layers) as model,
        pyllama.Context(model, n_ctx=fit.n_ctx) as context,
    ):
        logits_of(context, PROMPT)


@pytest.fixture
def available(monkeypatch):
    """Lets a test say how much memory the system has available."""

    def set_available(size):
        module = importlib.import_module("pyllama.memory_fit")
        monkeypatch.setattr(module, "available_memory", lambda: size)

    return set_available


def test_the_context_is_made_to_fit(write_tiny_model, available):
    path = write_tiny_model(n_ctx_train=2**20)
    whole = pyllama.memory_use(path, devices=[])
    assert whole.n_ctx == 2**20
    margin = 10 * 2**20
    available(whole.host.used // 2 + margin)
    fit = pyllama.memory_fit(path, margin=margin, n_ctx_min=512, devices=[])
    assert 2**18 < fit.n_ctx < 2**20
    assert fit.n_ctx % 256 == 0
    assert fit.use.n_ctx == fit.n_ctx
    assert fit.use.host.free == whole.host.used // 2 + margin
    assert fit.use.host.used <= whole.host.used // 2
    assert fit.use == pyllama.memory_use(path, n_ctx=fit.n_ctx, devices=[])
    # A context that is asked for is not made smaller.
    with pytest.raises(pyllama.MemoryFitError, match="n_ctx=1048576"):
        pyllama.memory_fit(path, margin=margin, n_ctx=2**20, devices=[])
    # Nor does it go below the least.
    available(margin)
    with pytest.raises(pyllama.MemoryFitError):
        pyllama.memory_fit(path, margin=margin, n_ctx_min=512, devices=[])


def test_what_is_free_is_what_the_system_says(tiny_model_path):
    host = pyllama.memory_use(tiny_model_path).host
    available = available_memory()
    assert available is not None
    assert 0 < host.free < host.total
    assert abs(host.free - available) < GIB


def test_the_log_comes_to_us_afterwards(tiny_model_path, tmp_path, caplog):
    pyllama.memory_use(tiny_model_path)
    pyllama.memory_fit(tiny_model_path)
    path = tmp_path / "broken.gguf"
    path.write_bytes(tiny_model_path.read_bytes().replace(b"llama", b"alien"))
    with pytest.raises(pyllama.ModelLoadError) as caught:
        pyllama.Model(path)
    assert "alien" in str(caught.value)
    assert any(record.name == "pyllama.llama_cpp" for record in caplog.records)


def test_from_many_threads(tiny_model_path):
    def work():
        results.append(pyllama.memory_use(tiny_model_path, n_ctx=4096).host.used)

    results = []
    threads = [threading.Thread(target=work) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(results) == 6
    assert len(set(results)) == 1


# What is refused


def test_files_that_are_no_models(tmp_path, tiny_model_path):
    for measure in (pyllama.memory_use, pyllama.memory_fit):
        with pytest.raises(FileNotFoundError):
            measure(tmp_path / "absent.gguf")
        path = tmp_path / "broken.gguf"
        for kept in (4, 100, 5000, 100_000):
            path.write_bytes(tiny_model_path.read_bytes()[:kept])
            with pytest.raises(pyllama.ModelLoadError, match=r"broken\.gguf"):
                measure(path)


def test_a_context_that_cannot_be_made(tiny_model_path):
    with pytest.raises(pyllama.MemoryFitError, match="flash"):
        pyllama.memory_use(tiny_model_path, type_v="q8_0", flash_attn="disabled")


def test_a_context_too_long_to_simulate(tmp_path):
    path = synthetic.write_model(tmp_path / "long.gguf", n_ctx_train=2**31 - 1)
    for measure in (pyllama.memory_use, pyllama.memory_fit):
        with pytest.raises(pyllama.MemoryFitError, match="give n_ctx"):
            measure(path)
        measure(path, n_ctx=4096)
        key = "llama.context_length"
        measure(path, kv_overrides={key: 2048})
    with pytest.raises(pyllama.MemoryFitError, match="give n_ctx"):
        pyllama.memory_use(path, n_seq_max=4, kv_overrides={key: 2**23})


@pytest.mark.parametrize(
    ("argument", "value", "error"),
    [
        ("n_ctx", -1, ValueError),
        ("n_ctx", 2**24 + 1, ValueError),
        ("n_ctx", 1.5, TypeError),
        ("n_batch", 0, ValueError),
        ("n_ubatch", 2**40, ValueError),
        ("n_seq_max", 0, ValueError),
        ("type_k", "i8", ValueError),
        ("type_v", "DEPRECATED", ValueError),
        ("flash_attn", "maybe", ValueError),
        ("devices", ["CPU"], TypeError),
        ("main_gpu", -1, ValueError),
        ("split_mode", "diagonal", ValueError),
        ("kv_overrides", {"": 1}, ValueError),
        ("n_threads", 1, TypeError),
    ],
)
def test_arguments_are_checked(tiny_model_path, argument, value, error):
    for measure in (pyllama.memory_use, pyllama.memory_fit):
        with pytest.raises(error, match=argument):
            measure(tiny_model_path, **{argument: value})


@pytest.mark.parametrize(
    ("argument", "value", "error"),
    [
        ("margin", -1, ValueError),
        ("margin", float("inf"), TypeError),
        ("n_ctx_min", 0, ValueError),
        ("n_ctx_min", "4096", TypeError),
        ("n_gpu_layers", 1, TypeError),
    ],
)
def test_arguments_of_the_fit_are_checked(tiny_model_path, argument, value, error):
    with pytest.raises(error, match=argument):
        pyllama.memory_fit(tiny_model_path, **{argument: value})


# The real model


@pytest.mark.model
def test_the_real_model(smollm2, smollm2_path):
    use = pyllama.memory_use(smollm2_path, n_ctx=2048)
    # Repacked weights take a little more than the tensors in the file.
    total = sum(memory.model for memory in (*use.devices, use.host))
    assert smollm2.size <= total < 1.5 * smollm2.size
    assert use.n_ctx_train == smollm2.n_ctx_train
    fit = pyllama.memory_fit(smollm2_path)
    assert 0 < fit.n_ctx <= smollm2.n_ctx_train
