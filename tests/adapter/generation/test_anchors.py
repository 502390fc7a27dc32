"""Batches whose attention reads a fixed number of cells, as GPUs need it. Here the CPU computes."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from schedules import isolated_of, mixed_requests, request_of, same, scheduler_of, tokens

import pyllama
from adapter.generation import exactness
from adapter.generation.memory import anchors
from adapter.generation.memory.anchors import LEAST, STEP, extend, is_anchor, rounded

OPTIONS = {"batch_width": 4, "anchored": True, "max_sequences": 16, "n_cells": 16 * 2048}


@pytest.fixture(scope="module")
def model(write_tiny_model, tmp_path_factory):
    path = tmp_path_factory.mktemp("anchored") / "q8_0.gguf"
    pyllama.quantize(write_tiny_model(n_ctx_train=4096), path, "Q8_0")
    with pyllama.Model(path) as made:
        yield made


@pytest.fixture
def few_cells(monkeypatch):
    """Shorter anchors, which take less time to compute."""
    for module in (anchors, exactness):
        monkeypatch.setattr(module, "LEAST", 64)
        monkeypatch.setattr(module, "STEP", 32)
    monkeypatch.setattr(exactness, "READ", (64, 96))
    monkeypatch.setattr(exactness, "LONGER", 40)


@pytest.fixture
def read(monkeypatch):
    """By each batch of answers, what its longest sequence holds, which attention reads of all."""
    found = []
    decode = pyllama.Context.decode

    def decoded(context, batch):
        decode(context, batch)
        if len(batch) in (4, 8, 12, 16):  # no prompt below ends with such a call
            held = [context.memory.seq_pos_max(seq_id) + 1 for seq_id in range(context.n_seq_max)]
            found.append(max(held))

    monkeypatch.setattr(pyllama.Context, "decode", decoded)
    return found


def requests(seed, count):
    def prompt(chosen, index):
        return tokens(index, chosen.choice([20, 60, 100, 200, 300]))

    return mixed_requests(seed, count, prompt, longest=24)


def test_each_run_of_sequences_has_one_anchor():
    for width in (4, 16):
        for begin in range(40):
            assert sum(is_anchor(seq_id, width) for seq_id in range(begin, begin + width)) == 1


def test_cells_are_rounded_to_what_keeps_the_bits():
    assert [rounded(n) for n in (1, LEAST, LEAST + 1, LEAST + STEP)] == [
        LEAST,
        LEAST,
        LEAST + STEP,
        LEAST + STEP,
    ]


def test_an_anchor_grows_and_shrinks(model):
    with pyllama.Context(model, n_ctx=4 * 2048, n_seq_max=4, n_batch=96) as context:
        for n_cells in (1024, 2048, 1536, 1024):
            end = extend(context, 3, n_cells)
            assert end == n_cells - 1
            assert context.memory.seq_pos_max(3) + 1 == end
            context.decode_token(1, end, 3)
            assert context.memory.seq_pos_max(3) + 1 == n_cells


@pytest.mark.usefixtures("few_cells")
def test_requests_keep_their_bytes_at_any_load(model):
    asked = requests(1, 8)
    single = scheduler_of(model, **OPTIONS)
    expected = [single.generate(request) for request in asked]
    single.close()
    together = scheduler_of(model, **OPTIONS)
    with ThreadPoolExecutor(8) as threads:
        assert all(map(same, threads.map(together.generate, asked), expected))
    (cache, *_) = together._core.memory
    assert not any(slot.blocks for slot in cache.slots if slot.is_anchor)
    together.close()
    isolated = isolated_of(model, batch_width=4, anchored=True)
    assert all(map(same, map(isolated.generate, asked[:4]), expected))
    isolated.close()


def test_attention_reads_a_number_of_cells_that_keeps_the_bits(model, read):
    scheduler = scheduler_of(model, **OPTIONS)
    scheduler.generate(request_of(tokens(1, 20), max_tokens=3))
    for n_prompt, n_cells in ((20, 1024), (1020, 1024), (1030, 1536), (20, 1024)):
        scheduler.generate(request_of(tokens(n_prompt, n_prompt), max_tokens=3))
        assert read[-2:] == [n_cells, n_cells]
        for cache in scheduler._core.memory:
            for slot in cache.free:
                slot.keep(0)
    scheduler.close()


def test_a_device_that_cuts_its_sums_elsewhere_computes_one_by_one(model, monkeypatch, caplog):
    monkeypatch.setattr(exactness, "READ", (LEAST, LEAST + STEP))
    logits = exactness.Trial.logits

    def changed(trial, seq_ids):
        return logits(trial, seq_ids) + np.float32(trial.n_cells)

    monkeypatch.setattr(exactness.Trial, "logits", changed)
    scheduler = scheduler_of(model, **OPTIONS)
    asked = [request_of(tokens(seed, 30), seed=seed) for seed in range(4)]
    expected = [scheduler.generate(request) for request in asked]
    with ThreadPoolExecutor(4) as threads:
        assert all(map(same, threads.map(scheduler.generate, asked), expected))
    assert scheduler.metrics.snapshot().histograms["batch_size"].mean == 1
    assert "answers are computed one by one" in caplog.text
    scheduler.close()


@pytest.mark.usefixtures("few_cells")
@pytest.mark.parametrize("name", ["mamba", "gemma2"])
def test_a_memory_that_cannot_be_cut_back_is_computed_one_by_one(models, name):
    asked = [request_of(tokens(seed, 40), seed=seed) for seed in range(4)]
    scheduler = scheduler_of(models[name], **OPTIONS)
    expected = [scheduler.generate(request) for request in asked]
    with ThreadPoolExecutor(4) as threads:
        assert all(map(same, threads.map(scheduler.generate, asked), expected))
    assert scheduler.metrics.snapshot().histograms["batch_size"].mean == 1
    scheduler.close()
