"""A child of fork() has none of llama.cpp's threads: what it may not use says so."""

from __future__ import annotations

import subprocess
import sys

import fuzz
import pytest
from decoding import run_python
from synthetic import write_model

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="there is no fork()")

# What every one of these programs begins with: in_child(work) prints what work raised there.
BEGIN = """
    import logging, os, sys, threading, warnings
    logging.disable()
    # Python says itself that a process with threads forks; that is the point here.
    warnings.simplefilter("ignore", DeprecationWarning)
    import pyllama

    def in_child(work):
        sys.stdout.flush()
        child = os.fork()
        if not child:
            try:
                print("child:", work())
            except Exception as error:
                print("child:", type(error).__name__)
            sys.stdout.flush()
            sys.exit()  # runs what is registered for the end of an interpreter
        _, status = os.waitpid(child, 0)
        assert status == 0, status

    def decode():
        with pyllama.Model(sys.argv[1]) as model, pyllama.Context(model, n_ctx=256) as context:
            context.decode(pyllama.Batch.from_tokens([1, 2, 3]))
            return int(context.logits().argmax())
"""


def in_child(code, *arguments):
    written = run_python(BEGIN + code, *arguments)
    return [line.removeprefix("child: ") for line in written.splitlines()]


def test_a_child_cannot_use_what_its_parent_made(tiny_model_path):
    uses = [
        "context.decode(batch)",
        "context.decode_token(1, 3)",
        "context.logits()",
        "context.memory.clear()",
        "context.state.get_data()",
        "chain.sample(context)",
        "chain.reset()",
        "model.vocab.tokenize('hello')",
        "model.vocab.token_to_piece(30)",
        "model.chat_template()",
        "pyllama.Context(model)",
        "pyllama.Model(sys.argv[1])",
        "pyllama.devices()",
        "pyllama.quantize(sys.argv[1], None, 'Q8_0', dry_run=True)",
        "pyllama.Threadpool(2)",
    ]
    code = """
    model = pyllama.Model(sys.argv[1])
    context = pyllama.Context(model, n_ctx=256, n_threads=2)
    batch = pyllama.Batch.from_tokens([1, 2, 3])
    chain = pyllama.SamplerChain([pyllama.Sampler.greedy()])
    context.decode(batch)
    for use in sys.argv[2:]:
        in_child(lambda: eval(use))
    context.decode_token(1, 3)
    print(context.logits().size > 0)
    """
    assert in_child(code, tiny_model_path, *uses) == ["ForkedError"] * len(uses) + ["True"]


def test_a_child_may_close_and_drop_what_its_parent_made(tiny_model_path):
    """Nothing is freed in the child, and nothing waits for threads that are not there."""
    code = """
    import gc

    model = pyllama.Model(sys.argv[1])
    context = pyllama.Context(model, n_ctx=256, n_threads=2)
    chain = pyllama.SamplerChain([pyllama.Sampler.greedy()])
    pool = pyllama.Threadpool(2)
    context.attach_threadpool(pool)
    context.decode(pyllama.Batch.from_tokens([1, 2, 3]))

    def close():
        for thing in (pool, model, context, chain):
            thing.close()
        return model.closed and context.closed

    def drop():
        global model, context, chain
        del model, context, chain
        return gc.collect() >= 0

    in_child(close)
    in_child(drop)
    context.decode_token(1, 3)
    """
    assert in_child(code, tiny_model_path) == ["True", "True"]


def test_a_child_of_a_process_that_is_decoding(write_tiny_model):
    """The locks that its threads held are nobody's in the child."""
    code = """
    model = pyllama.Model(sys.argv[1])
    context = pyllama.Context(model, n_ctx=32768, n_batch=32768, n_ubatch=64, n_threads=2)
    batch = pyllama.Batch.from_tokens([7] * 32000)

    def work():
        try:
            context.decode(batch)
        except pyllama.DecodeCancelled:
            pass

    thread = threading.Thread(target=work)
    thread.start()
    while context._lock.acquire(blocking=False):
        context._lock.release()

    def close():
        context.close()
        return len(batch)

    in_child(close)
    in_child(lambda: context.decode(batch))
    while thread.is_alive():
        context.cancel()
        thread.join(0.001)
    """
    model = write_tiny_model(n_ctx_train=32_768)
    assert in_child(code, model) == ["32000", "ForkedError"]


def test_a_child_of_a_process_that_has_not_begun(tiny_model_path):
    code = """
    in_child(decode)
    in_child(decode)
    print("child:", decode())
    """
    first, *others = in_child(code, tiny_model_path)
    assert others == [first, first]


def test_an_adapter_in_a_child(tmp_path):
    model = write_model(tmp_path / "model.gguf", **fuzz.SMALL)
    code = """
    model = pyllama.Model(sys.argv[1])
    context = pyllama.Context(model, n_ctx=256)
    adapter = pyllama.LoraAdapter(model, sys.argv[2])
    pyllama.set_adapters_lora(context, {adapter: 1.0})
    in_child(lambda: pyllama.set_adapters_lora(context, {}))
    in_child(lambda: adapter.close() or adapter.closed)
    context.decode(pyllama.Batch.from_tokens([1, 2, 3]))
    """
    assert in_child(code, model, fuzz.lora(tmp_path / "lora")) == ["ForkedError", "True"]


@pytest.mark.parametrize("method", ["spawn", "forkserver"])
def test_processes_that_multiprocessing_starts(tiny_model_path, tmp_path, method):
    script = tmp_path / "script.py"
    script.write_text(
        "import multiprocessing, sys\n"
        "import pyllama\n"
        "def work(path):\n"
        "    with pyllama.Model(path, vocab_only=True) as model:\n"
        "        return model.vocab.n_tokens\n"
        "if __name__ == '__main__':\n"
        "    here = work(sys.argv[1])\n"
        "    with multiprocessing.get_context(sys.argv[2]).Pool(1) as pool:\n"
        "        assert pool.apply(work, [sys.argv[1]]) == here\n"
        "    print('done')\n"
    )
    result = subprocess.run(
        [sys.executable, script, tiny_model_path, method],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert (result.stdout, result.stderr) == ("done\n", "")
