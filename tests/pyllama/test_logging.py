"""llama.cpp's log goes to Python's logging, and nowhere else."""

from __future__ import annotations

import ctypes
import logging
import sys
from pathlib import Path

import pytest
from decoding import Decoding, run_python, slow_batch, slow_context

import pyllama
from pyllama import Batch, Context, Model, _callbacks
from pyllama._guard import last_errors
from pyllama._native import _binding
from pyllama._native._binding import lib

NAME = "pyllama.llama_cpp"

on_linux = pytest.mark.skipif(
    sys.platform != "linux", reason="the library has this name on Linux alone"
)


def test_a_warning_that_a_user_can_act_on_is_a_warning(tiny, caplog):
    with Context(tiny, n_ctx=1024):
        pass
    (record,) = [record for record in caplog.records if "n_ctx_train" in record.message]
    assert record.name == NAME
    assert record.levelno == logging.WARNING
    assert "\n" not in record.message


@pytest.fixture
def log():
    """llama.cpp's function that logs a line at a level."""
    (library,) = Path(_binding.__file__).parent.rglob("libggml-base.so")
    return ctypes.CDLL(str(library)).ggml_log_internal


@on_linux
def test_a_warning_that_a_user_cannot_act_on_is_logged_at_info(log, caplog):
    log(3, b"load: control-looking token: 2 '</s>' was not control-type\n")
    (record,) = caplog.records
    assert record.levelno == logging.INFO


def test_every_advice_is_a_text_of_llama_cpp():
    sources = Path(__file__).parents[2] / "vendor" / "llama.cpp" / "src"
    texts = "".join(path.read_text(encoding="utf-8") for path in sources.glob("*.cpp"))
    assert [advice for advice in _callbacks.ADVICE if advice not in texts] == []


def without_a_tensor(path):
    """A model's file in which a tensor has another name. llama.cpp finds it out, and logs it."""
    return path.read_bytes().replace(b"blk.0.attn_q.weight", b"blk.0.attn_z.weight")


def test_errors_are_raised_and_logged_at_info(tiny_model_path, tmp_path, caplog):
    path = tmp_path / "model.gguf"
    path.write_bytes(without_a_tensor(tiny_model_path))
    with pytest.raises(pyllama.ModelLoadError) as caught:
        pyllama.Model(path)
    logged = [record for record in caplog.records if record.message.strip() in str(caught.value)]
    assert logged
    assert {record.name for record in logged} == {NAME}
    assert {record.levelno for record in caplog.records} == {logging.INFO}


@on_linux
def test_errors_of_a_call_that_succeeds_are_errors(tiny_model_path, tmp_path, log, caplog):
    damaged = tmp_path / "model.gguf"
    damaged.write_bytes(without_a_tensor(tiny_model_path))
    told = []

    def during_the_load(_fraction):
        if not told:
            log(4, b"of the load itself\n")
            with pytest.raises(pyllama.ModelLoadError) as caught:
                Model(damaged)
            told.append(str(caught.value))

    with Model(tiny_model_path, progress=during_the_load):
        pass
    levels = {record.message.strip(): record.levelno for record in caplog.records}
    assert levels.pop("of the load itself") == logging.ERROR
    assert set(levels.values()) == {logging.INFO}  # what was raised within
    assert any(message in told[0] for message in levels)


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


def test_a_handler_that_raises_does_no_harm(tiny, capsys):
    class Broken(logging.Handler):
        def emit(self, record):
            raise RuntimeError("broken handler")

        def handle(self, record):
            self.handled = True
            self.emit(record)

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
    assert "RuntimeError: broken handler" in capsys.readouterr().err


def test_ctrl_c_while_a_line_is_logged_is_not_lost(tiny):
    class Interrupted(logging.Handler):
        def emit(self, record):
            logger.removeHandler(self)
            raise KeyboardInterrupt

    logger = logging.getLogger(NAME)
    handler = Interrupted()
    logger.addHandler(handler)
    try:
        with pytest.raises(KeyboardInterrupt):  # the first call that holds a handle
            Context(tiny, n_ctx=1024).decode(Batch.from_tokens([1, 2, 3]))
    finally:
        logger.removeHandler(handler)
    with Context(tiny, n_ctx=256) as context:
        context.decode(Batch.from_tokens([1, 2, 3]))
        assert context.logits().size


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


# By the raw calls, because the methods of a context begin with a wish to stop that is not set.
def decode(context):
    batch = Batch.from_tokens([1, 2])
    return lib.guarded_decode(context._open().pointer, batch._filled(all_outputs=False))


def decode_token(context):
    return lib.guarded_decode_token(context._open().pointer, 1, 0, 0)


def encode(context):
    batch = Batch.from_tokens([1, 2])
    return lib.guarded_encode(context._open().pointer, batch._filled(all_outputs=True))


@pytest.fixture(params=[(decode, "llama"), (decode_token, "llama"), (encode, "t5")])
def computation(request, write_tiny_model):
    compute, architecture = request.param
    with (
        Model(write_tiny_model(architecture=architecture), devices=[]) as model,
        Context(model, n_ctx=256, n_threads=1) as context,
    ):
        yield context, compute


def stop(context, compute):
    context.cancel()
    assert compute(context) == 2
    assert "failed to compute graph" in last_errors()
    lib.pyllama_interrupt_begin(context._interrupt.pointer, False)


def test_a_stopped_computation_logs_no_errors(computation, caplog):
    caplog.clear()
    stop(*computation)
    assert not caplog.records


def test_a_stopped_computation_is_logged_for_debugging(computation, caplog):
    caplog.set_level(logging.DEBUG, NAME)
    lib.pyllama_set_log_level(1)
    try:
        stop(*computation)
    finally:
        lib.pyllama_set_log_level(3)
    levels = {record.levelno for record in caplog.records if "failed to" in record.message}
    assert levels == {logging.DEBUG}


def test_a_computation_after_a_stopped_one_logs_its_errors(computation, caplog):
    stop(*computation)
    context, _ = computation
    assert lib.guarded_decode_token(context._open().pointer, 10**6, 0, 0) == -1
    assert {record.levelno for record in caplog.records} == {logging.INFO}


def test_a_cancelled_context_logs_no_errors(tiny_model_path, caplog):
    with Model(tiny_model_path, devices=[]) as model, slow_context(model) as context:
        caplog.clear()
        decoding = Decoding(context, slow_batch())
        while decoding.is_alive():
            context.cancel()
            decoding.join(0.001)
        assert isinstance(decoding.raised, pyllama.DecodeCancelled)
        assert not caplog.records


def test_errors_of_a_decode_are_logged(tiny, caplog):
    with Context(tiny, n_ctx=256) as context, pytest.raises(pyllama.InvalidBatchError):
        context.decode(Batch.from_tokens([1], pos=99, seq_id=7))
    assert {record.levelno for record in caplog.records} == {logging.INFO}


def test_an_assertion_ends_the_holding_back(tiny, caplog):
    with Context(tiny, n_ctx=256, n_batch=32) as context:
        context.n_batch = 256  # past the check
        with pytest.raises(pyllama.NativeAssertionError):
            context.decode(Batch.from_tokens([1] * 33))
    caplog.clear()
    test_errors_of_a_decode_are_logged(tiny, caplog)


@pytest.mark.parametrize("has_handler", [False, True])
def test_the_last_resort_gets_nothing_when_the_interpreter_ends(has_handler):
    """run_python() also requires that stderr is empty."""
    written = run_python(
        """
        import atexit, logging, sys
        import pyllama
        from pyllama import _callbacks
        from pyllama._native._binding import ffi

        if "True" in sys.argv:
            logging.basicConfig(stream=sys.stdout)
        atexit.register(_callbacks.pyllama_on_log, 4, ffi.new("char[]", b"late"))
        """,
        has_handler,
    )
    assert ("late" in written) == has_handler
