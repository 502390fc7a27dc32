"""Batches that are padded to a width: the bytes are the same at any load."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import pytest
from schedules import (
    isolated_of,
    mixed_requests,
    request_of,
    same,
    scheduler_of,
    sizes_of_calls,
    tokens,
)

import pyllama
from adapter.generation import exactness
from adapter.generation.batch_sizes import Windows
from adapter.generation.memory.blocks import BLOCK

SHARED = tokens(0, 200)


@pytest.fixture(scope="module")
def quantized(write_tiny_model, tmp_path_factory):
    """Models whose weights are computed differently in batches than by themselves, on many CPUs."""
    folder = tmp_path_factory.mktemp("quantized")
    wide = write_tiny_model(n_embd=256, n_ff=256, n_ctx_train=4096)
    paths = {"gemma2": write_tiny_model(architecture="gemma2", n_ctx_train=4096)}
    for name in ("Q4_K_M", "Q6_K", "F16"):
        paths[name] = folder / f"{name}.gguf"
        pyllama.quantize(wide, paths[name], name)
    made = {name: pyllama.Model(path) for name, path in paths.items()}
    yield made
    for model in made.values():
        model.close()


def requests(seed, count=16):
    """Some share a beginning."""

    def prompt(chosen, index):
        beginning = SHARED[: chosen.choice([0, 0, 40, 200])]
        return beginning + tokens(index, chosen.randrange(1, 400))

    return mixed_requests(seed, count, prompt, longest=24)


@pytest.mark.parametrize(
    ("name", "width"), [("Q4_K_M", 4), ("Q4_K_M", 8), ("Q6_K", 4), ("F16", 4), ("gemma2", 4)]
)
def test_padded_batches_keep_the_bytes_at_any_load(quantized, name, width):
    model, options = quantized[name], {"batch_width": width, "max_sequences": 16}
    asked = requests(width)
    single = scheduler_of(model, **options)
    expected = [single.generate(request) for request in asked]
    single.close()
    together = scheduler_of(model, **options)
    for n_threads in (12, 3):
        with ThreadPoolExecutor(n_threads) as threads:
            found = list(threads.map(together.generate, asked))
        assert all(map(same, found, expected))
    together.close()
    isolated = isolated_of(model, batch_width=width)
    assert all(map(same, map(isolated.generate, asked[:4]), expected))
    isolated.close()


def test_requests_that_leave_change_no_bytes(quantized):
    """Gaps come and go among the sequences of a batch."""
    asked = requests(7, 12)
    scheduler = scheduler_of(quantized["Q4_K_M"], batch_width=4)
    expected = [scheduler.generate(request) for request in asked]

    def begin_and_leave(request):
        stream = scheduler.stream(request)
        next(stream)
        stream.close()

    with ThreadPoolExecutor(12) as threads:
        leaving = [threads.submit(begin_and_leave, request) for request in requests(8, 12)]
        found = list(threads.map(scheduler.generate, asked))
        for each in leaving:
            each.result()
    assert all(map(same, found, expected))
    scheduler.close()


def test_a_lone_answer_is_computed_in_batches_of_that_width(quantized, monkeypatch):
    monkeypatch.setattr(
        exactness,
        "tried_windows",
        lambda context, width: Windows({width: 1.0}, context.n_seq_max),
    )
    scheduler = scheduler_of(quantized["Q4_K_M"], batch_width=4)
    scheduler.generate(request_of(tokens(1, 30)))
    sizes = sizes_of_calls(monkeypatch)
    result = scheduler.generate(request_of(tokens(2, 30), max_tokens=5))
    assert sizes == [30] + [4] * (result.completion_tokens - 1)
    scheduler.close()


def test_padding_leaves_what_is_kept_of_prompts(quantized):
    """In every sequence, up to the last token that one can hold."""
    scheduler = scheduler_of(
        quantized["F16"], batch_width=4, context_length=512, n_cells=4 * 512, max_sequences=4
    )
    prompts = [tokens(seed, 512 - 4) for seed in range(4)]
    for prompt in prompts:
        scheduler.generate(request_of(prompt, max_tokens=4))
    for prompt in prompts:
        result = scheduler.generate(request_of(prompt, max_tokens=4))
        assert len(prompt) - result.cache_read_tokens <= 2 * BLOCK
    scheduler.close()


@pytest.mark.parametrize("max_sequences", [1, 2])
def test_a_context_has_as_many_sequences_as_a_batch(quantized, max_sequences):
    scheduler = scheduler_of(
        quantized["F16"], batch_width=8, n_cells=2048, max_sequences=max_sequences
    )
    asked = [request_of(tokens(seed, 20), seed=seed) for seed in range(4)]
    expected = [scheduler.generate(request) for request in asked]
    assert [cache.count for cache in scheduler._core.memory] == [8]
    with ThreadPoolExecutor(4) as threads:
        assert all(map(same, threads.map(scheduler.generate, asked), expected))
    assert scheduler.metrics.snapshot().histograms["batch_size"].total <= 8 * 12 * max_sequences
    scheduler.close()


@pytest.mark.parametrize("name", ["mamba", "jamba"])
def test_a_memory_that_cannot_be_cut_back_is_not_padded(models, name, monkeypatch):
    scheduler = scheduler_of(models[name], batch_width=4)
    asked = [request_of(tokens(seed, 30), seed=seed) for seed in range(4)]
    expected = [scheduler.generate(request) for request in asked]
    sizes = sizes_of_calls(monkeypatch)
    assert same(scheduler.generate(asked[0]), expected[0])
    assert set(sizes) == {1, 30}
    with ThreadPoolExecutor(4) as threads:
        assert all(map(same, threads.map(scheduler.generate, asked), expected))
    scheduler.close()


def test_a_width_that_changes_the_bytes_is_not_used(quantized, monkeypatch, caplog):
    logits = exactness.Trial.logits

    def changed(trial, seq_ids):
        found = logits(trial, seq_ids)
        return found + len(seq_ids) * trial.tokens[0, 0] if len(seq_ids) == 4 else found

    monkeypatch.setattr(exactness.Trial, "logits", changed)
    scheduler = scheduler_of(quantized["F16"], batch_width=4)
    sizes = sizes_of_calls(monkeypatch)
    scheduler.generate(request_of(tokens(1, 30)))
    scheduler.generate(request_of(tokens(2, 30)))
    assert sizes[-1] == 1
    assert "batches padded to 4 change the logits" in caplog.text
    scheduler.close()


@pytest.mark.parametrize(
    ("seq_ids", "expected"),
    [
        ([3], [range(3, 7)]),
        ([15], [range(12, 16)]),
        ([0, 3], [range(4)]),
        ([0, 4], [range(8)]),  # one of 8 takes less than two of 4
        ([0, 12], [range(4), range(12, 16)]),
        (range(16), [range(16)]),
        ([], []),
    ],
)
def test_windows_hold_all_sequences_in_the_least_time(seq_ids, expected):
    windows = Windows({4: 0.028, 8: 0.041, 12: 0.054, 16: 0.065}, 16)
    assert windows.cover(seq_ids) == expected
