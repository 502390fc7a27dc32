from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor
from shutil import copyfile

import pytest

import pyllama
from adapter.errors import (
    InvalidModelNameError,
    InvalidParameterError,
    ModelNotFoundError,
    ModelNotLoadedError,
    TokenizationError,
)
from adapter.model_pool import ModelPool


@pytest.fixture
def pool(write_tiny_model, tmp_path):
    for name in ("one", "two"):
        copyfile(write_tiny_model(chat_template=None), tmp_path / f"{name}.gguf")
    (tmp_path / "broken.gguf").write_bytes(b"GGUF but nothing that follows")
    with ModelPool(tmp_path, context_length=64) as pool:
        yield pool


def test_a_model_is_loaded_once(pool):
    assert pool.load_model("one") is pool.load_model("one")
    assert pool.get_loaded_model("one") is pool.get_loaded_model()


def test_threads_that_ask_at_once_wait_for_one_load(pool, monkeypatch):
    loads = []
    barrier = threading.Barrier(8)
    real = pyllama.Model

    def counted(*args, **kwargs):
        loads.append(args)
        return real(*args, **kwargs)

    monkeypatch.setattr(pyllama, "Model", counted)

    def load(_):
        barrier.wait()
        return pool.load_model("one")

    with ThreadPoolExecutor(8) as threads:
        models = set(threads.map(load, range(8)))
    assert len(models) == len(loads) == 1


def test_a_load_that_failed_fails_again_and_can_be_mended(pool):
    for _ in range(2):
        with pytest.raises(pyllama.ModelLoadError, match="broken"):
            pool.load_model("broken")
    copyfile(pool.model_dir / "one.gguf", pool.model_dir / "broken.gguf")
    assert pool.load_model("broken").name == "broken"


@pytest.mark.parametrize(
    "name", ["", " ", "../one", "a/b", "/etc/passwd", "..", ".", "a\\b", "nul\0", "./one"]
)
def test_a_name_that_is_no_plain_file_name_is_refused(pool, name):
    with pytest.raises(InvalidModelNameError) as caught:
        pool.load_model(name)
    assert caught.value.name == name


def test_a_name_that_is_no_string_is_refused(pool):
    with pytest.raises(InvalidModelNameError, match="string"):
        pool.load_model(3)


def test_a_missing_model_names_the_file_that_was_looked_for(pool):
    with pytest.raises(ModelNotFoundError) as caught:
        pool.load_model("three")
    assert caught.value.path == pool.model_dir / "three.gguf"


def test_what_is_not_in_memory_cannot_be_had(pool):
    with pytest.raises(ModelNotLoadedError, match="none"):
        pool.get_loaded_model()
    pool.load_model("one")
    with pytest.raises(ModelNotLoadedError, match="two"):
        pool.get_loaded_model("two")
    pool.load_model("two")
    with pytest.raises(ModelNotLoadedError, match="one"):
        pool.get_loaded_model()


def test_the_folder_must_exist(tmp_path):
    with pytest.raises(NotADirectoryError, match="nowhere"):
        ModelPool(tmp_path / "nowhere")


@pytest.mark.parametrize("value", [0, -1, 1.5, "8"])
def test_a_context_length_out_of_range_is_refused(tmp_path, value):
    with pytest.raises(InvalidParameterError, match="context_length"):
        ModelPool(tmp_path, context_length=value)


def test_progress_names_the_model_and_rises_to_one(pool):
    seen = []
    with ModelPool(pool.model_dir, progress=lambda name, done: seen.append((name, done))) as other:
        other.load_model("one")
    assert {name for name, _ in seen} == {"one"}
    fractions = [done for _, done in seen]
    assert fractions == sorted(fractions)
    assert fractions[-1] == 1.0


def test_the_context_is_no_longer_than_asked_for(pool):
    assert pool.load_model("one").context_length == 64


def test_closing_frees_the_models(pool):
    loaded = pool.load_model("one")
    pool.close()
    with pytest.raises(pyllama.ClosedError):
        loaded.tokenize("text")
    with pytest.raises(ModelNotLoadedError):
        pool.get_loaded_model("one")


def test_the_fingerprint_tells_contents_apart_and_nothing_else(pool, write_tiny_model):
    copyfile(write_tiny_model(chat_template=None, seed=1), pool.model_dir / "other.gguf")
    one, two, other = (pool.load_model(name).fingerprint for name in ("one", "two", "other"))
    assert one == two
    assert other != one


def test_a_model_without_template_gets_the_plain_form(pool):
    loaded = pool.load_model("one")
    prompt = loaded.render(
        [
            {"role": "system", "content": "Answer briefly."},
            {"role": "user", "content": "Hello"},
        ]
    )
    assert prompt == "System: Answer briefly.\n\nUser: Hello\n\nAssistant:"
    # Nothing else tells such a model's turn from the one it would invent next.
    assert "\n\nUser:" in loaded.turn_stops


def test_a_template_that_would_end_the_process_is_an_error(pool, write_tiny_model):
    """This one divides by zero in C++, when it is told to."""
    nasty = (
        "{{ messages[0].content }}"
        "{% if messages[0].content == 'divide' %}{{ 1 is divisibleby(0) }}{% endif %}"
    )
    copyfile(write_tiny_model(chat_template=nasty), pool.model_dir / "nasty.gguf")
    loaded = pool.load_model("nasty")
    hello = {"role": "user", "content": "Hello"}
    with pytest.raises(TokenizationError, match="chat template"):
        loaded.render([{"role": "user", "content": "divide"}])
    assert loaded.render([hello]) == "Hello"


@pytest.mark.model
def test_a_model_with_a_template_is_rendered_by_it(smollm2_path):
    with ModelPool(smollm2_path.parent, context_length=128) as pool:
        loaded = pool.load_model(smollm2_path.stem)
        prompt = loaded.render([{"role": "user", "content": "Hello"}])
        assert prompt.endswith("<|im_start|>user\nHello<|im_end|>\n<|im_start|>assistant\n")
        tokens = loaded.tokenize(prompt)
        assert b"<|im_start|>" in [loaded.piece(token) for token in tokens]
