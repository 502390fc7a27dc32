"""llama.cpp's log goes to Python's logging, and nowhere else."""

from __future__ import annotations

import logging

import pytest

import pyllama
from pyllama import Batch, Context

NAME = "pyllama.llama_cpp"


def test_warnings_are_logged(tiny, caplog):
    with Context(tiny, n_ctx=1024):
        pass
    (record,) = [record for record in caplog.records if "n_ctx_train" in record.message]
    assert record.name == NAME
    assert record.levelno == logging.WARNING
    assert "\n" not in record.message


def test_errors_are_logged_and_raised(tiny_model_path, tmp_path, caplog):
    path = tmp_path / "model.gguf"
    path.write_bytes(tiny_model_path.read_bytes()[:-100])
    with pytest.raises(pyllama.ModelLoadError) as caught:
        pyllama.Model(path)
    errors = [record for record in caplog.records if record.levelno == logging.ERROR]
    assert errors
    assert all(record.name == NAME for record in errors)
    assert errors[0].message.strip() in str(caught.value)


def test_nothing_is_written_to_stdout_or_stderr(tiny_model_path, tmp_path, capfd):
    with pyllama.Model(tiny_model_path) as model, Context(model, n_ctx=1024) as context:
        context.decode(Batch.from_tokens(model.vocab.tokenize("hello")))
        with pytest.raises(pyllama.InvalidBatchError):
            context.decode(Batch.from_tokens([1], pos=99))
        template = pyllama.ChatTemplate(model)
        template.apply([{"role": "user", "content": "Hello"}])
        with pytest.raises(pyllama.ChatTemplateError):
            pyllama.ChatTemplate(model, "{% for")
        with pytest.raises(pyllama.ChatTemplateError):
            template.apply([{"role": 3}])
    path = tmp_path / "model.gguf"
    path.write_bytes(b"GGUF" + bytes(100))
    with pytest.raises(pyllama.ModelLoadError):
        pyllama.Model(path)
    pyllama.devices()
    captured = capfd.readouterr()
    assert captured.out == ""
    assert captured.err == ""


def test_an_assertion_is_not_written_to_stderr(tiny, capfd):
    with Context(tiny, n_ctx=256, n_batch=32) as context:
        context.n_batch = 256  # past the check
        with pytest.raises(pyllama.NativeAssertionError):
            context.decode(Batch.from_tokens([1] * 33))
    assert capfd.readouterr() == ("", "")


def test_a_handler_that_raises_does_no_harm(tiny, monkeypatch):
    class Broken(logging.Handler):
        def emit(self, record):
            raise RuntimeError("broken handler")

        def handle(self, record):
            self.handled = True
            self.emit(record)

    caught = []
    monkeypatch.setattr("sys.unraisablehook", caught.append)
    handler = Broken()
    logger = logging.getLogger(NAME)
    logger.addHandler(handler)
    try:
        with Context(tiny, n_ctx=1024) as context:
            context.decode(Batch.from_tokens([1, 2, 3]))
            assert context.logits().size
    finally:
        logger.removeHandler(handler)
    assert handler.handled


def test_silenced_logging_still_gives_the_reason(tiny_model_path, tmp_path):
    path = tmp_path / "model.gguf"
    path.write_bytes(tiny_model_path.read_bytes()[:3000])
    logging.disable()
    try:
        with pytest.raises(pyllama.ModelLoadError) as caught:
            pyllama.Model(path)
    finally:
        logging.disable(logging.NOTSET)
    assert len(str(caught.value)) > len(str(path)) + 30
