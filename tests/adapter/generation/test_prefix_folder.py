"""Beginnings of prompts in a folder: found by later processes, and never wrong."""

from __future__ import annotations

import random

import pytest
import synthetic
from schedules import CONTEXT_LENGTH, request_of, same, tokens

import pyllama
from adapter import ModelPool
from adapter.generation.blocks import BLOCK, LEAST_LEFT
from adapter.generation.prefix_cache import SavedPrefix
from adapter.generation.prefix_folder import MAGIC, PrefixFolder
from adapter.generation.scheduler import Scheduler


def hashes(*names):
    return tuple(f"{name:<16}".encode() for name in names)


@pytest.fixture
def folder(tmp_path):
    return PrefixFolder(tmp_path, "a model", max_bytes=10_000)


def test_the_longest_beginning_is_found_by_another_process(folder, tmp_path):
    folder.add(SavedPrefix(hashes("a", "b"), b"short"))
    folder.add(SavedPrefix(hashes("a", "b", "c", "x"), b"long"))
    other = PrefixFolder(tmp_path, "a model", max_bytes=10_000)
    wanted = hashes("a", "b", "c", "d")
    assert other.find(wanted, more_than=0, whole=False).state == b"long"
    assert other.find(wanted, more_than=0, whole=True).state == b"short"
    assert other.find(wanted, more_than=3, whole=False) is None
    assert other.find(hashes("z"), more_than=0, whole=False) is None
    assert (
        PrefixFolder(tmp_path, "another", max_bytes=9).find(wanted, more_than=0, whole=False)
        is None
    )


@pytest.mark.parametrize("damage", ["state", "magic", "cut", "count", "empty"])
def test_a_damaged_file_is_not_used(folder, tmp_path, damage):
    folder.add(SavedPrefix(hashes("a"), b"state" * 100))
    (path,) = tmp_path.rglob("*.prefix")
    content = path.read_bytes()
    path.write_bytes(
        {
            "state": content[:-1] + b"!",
            "magic": b"other" + content[5:],
            "cut": content[:-7],
            "count": content[: len(MAGIC) + 32] + b"\xff\xff\xff\x7f" + content[len(MAGIC) + 36 :],
            "empty": b"",
        }[damage]
    )
    other = PrefixFolder(tmp_path, "a model", max_bytes=10_000)
    assert other.find(hashes("a"), more_than=0, whole=False) is None


def test_what_was_used_longest_ago_makes_room(folder):
    for name in "abc":
        folder.add(SavedPrefix(hashes(name), name.encode() * 3000))
    assert folder.find(hashes("a"), more_than=0, whole=False) is not None
    folder.add(SavedPrefix(hashes("d"), b"d" * 3000))
    kept = [name for name in "abcd" if folder.find(hashes(name), more_than=0, whole=False)]
    assert kept == ["a", "c", "d"]
    folder.add(SavedPrefix(hashes("e"), b"e" * 20_000))
    assert folder.find(hashes("e"), more_than=0, whole=False) is None


@pytest.mark.parametrize("architecture", ["llama", "mamba"])
def test_the_next_scheduler_takes_it_up_and_gives_the_same_bytes(tmp_path, architecture):
    path = synthetic.write_model(
        tmp_path / "tiny.gguf", architecture=architecture, n_ctx_train=CONTEXT_LENGTH
    )
    prompt = tokens(0, 300)
    requests = [request_of(prompt + tokens(seed, 20)) for seed in (1, 2)]
    results = []
    for request in requests:
        with pyllama.Model(path) as model:
            scheduler = Scheduler(
                model, context_length=CONTEXT_LENGTH, n_threads=1, n_cells=4 * CONTEXT_LENGTH,
                max_sequences=4, max_queued=9, cache_bytes=2**26, reproducible=True,
                prefix_folder=PrefixFolder(tmp_path, "tiny", max_bytes=2**26),
            )  # fmt: skip
            results.append(scheduler.generate(request))
            scheduler.close()
    assert results[0].cache_read_tokens == 0
    if architecture == "llama":
        assert results[1].cache_read_tokens == 300 // BLOCK * BLOCK
    with pyllama.Model(path) as model:
        cold = Scheduler(
            model, context_length=CONTEXT_LENGTH, n_threads=1, n_cells=4 * CONTEXT_LENGTH,
            max_sequences=4, max_queued=9, cache_bytes=0, reproducible=True,
        )  # fmt: skip
        assert same(cold.generate(requests[1]), results[1])
        cold.close()


def test_a_pool_keeps_prefixes_where_it_is_told(tmp_path):
    synthetic.write_model(tmp_path / "tiny.gguf", n_ctx_train=CONTEXT_LENGTH)
    found = []
    for seed in (1, 2):
        with ModelPool(tmp_path, prefix_folder=tmp_path / "prefixes") as pool:
            generator = pool.load_model("tiny").generators["batched"]
            prompt = random.Random(0).choices(range(3, 200), k=200)
            found.append(generator.generate(request_of([*prompt, seed, seed])))
    assert found[0].cache_read_tokens == 0
    assert found[1].cache_read_tokens == 202 - LEAST_LEFT - 202 % BLOCK
