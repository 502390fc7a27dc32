"""The end of the interpreter while other threads use the binding."""

from __future__ import annotations

import subprocess
import sys
import textwrap

import pytest
from decoding import run_python

BEGINNING = """
import gc, logging, os, sys, threading, time
import pyllama
from pyllama import ChatTemplate, Context, GrammarSampler, Model, Sampler, SamplerChain, Threadpool

path, wait = sys.argv[1], float(sys.argv[2])
logging.disable(logging.WARNING)

def forever(work):
    def run():
        while True:
            try:
                work()
            except (pyllama.ClosedError, pyllama.DecodeCancelled, pyllama.ModelLoadError):
                pass
            except BaseException as error:
                os.write(2, repr(error).encode())
                raise
    threading.Thread(target=run, daemon=True).start()

def context(**settings):
    settings = {"n_ctx": 2048, "n_ubatch": 64, "n_threads": 1, **settings}
    return Context(model, **settings)

def decode(context, batch=pyllama.Batch.from_tokens([7] * 700)):
    context.memory.clear(data=False)
    context.decode(batch)

def generate(context, chain):
    context.memory.clear(data=False)
    context.decode_token(3, 0)
    for position in range(1, 50):
        context.decode_token(chain.sample(context), position)

model = Model(path, devices=[])
"""

PROGRAMS = {
    "a thread that decodes": """
        others = [context() for _ in range(3)]
        used = context()
        forever(lambda: decode(used))
    """,
    "threads of computations": """
        for used in [context(n_threads=2) for _ in range(2)]:
            forever(lambda used=used: decode(used))
    """,
    "threads that wait for one context": """
        used = context()
        for _ in range(4):
            forever(lambda: decode(used))
    """,
    "threads that generate": """
        for seed in range(3):
            chain = SamplerChain([Sampler.temp(0.8), Sampler.dist(seed)])
            forever(lambda used=context(), chain=chain: generate(used, chain))
    """,
    "samplers written in Python": """
        def keep(candidates):
            time.sleep(0.0005)
            return candidates

        for seed in range(3):
            chain = SamplerChain([Sampler.python(keep), Sampler.dist(seed)])
            forever(lambda used=context(), chain=chain: generate(used, chain))
    """,
    "sampling side by side": """
        used = context()
        chains = {i: SamplerChain([Sampler.temp(0.8), Sampler.dist(i)]) for i in range(8)}

        def work():
            used.memory.clear(data=False)
            used.decode(pyllama.Batch.from_tokens([5] * 8, outputs="all"))
            pyllama.sample_each(used, chains, n_threads=3)

        forever(work)
    """,
    "loads with progress": """
        def load():
            with Model(path, devices=[], progress=lambda done: time.sleep(0.0005)) as loaded:
                Context(loaded, n_ctx=64).decode_token(3, 0)

        for _ in range(3):
            forever(load)
    """,
    "a handler of the log": """
        from pyllama._native._binding import lib

        lib.pyllama_set_log_level(1)
        logging.getLogger("pyllama").setLevel(1)
        logging.getLogger("pyllama").addHandler(logging.NullHandler())

        def load():
            with Model(path, devices=[]) as loaded:
                Context(loaded, n_ctx=64).decode_token(3, 0)

        for _ in range(3):
            forever(load)
    """,
    "garbage collected by other threads": """
        class Cycle:
            def __init__(self):
                self.itself = self
                self.context = Context(model, n_ctx=64)
                self.context.decode_token(3, 0)
                self.chain = SamplerChain([Sampler.greedy()])

        forever(Cycle)
        forever(gc.collect)
    """,
    "closing in another thread": """
        def work():
            used = context(n_ctx=512)
            closing = threading.Thread(target=used.close)
            closing.start()
            try:
                decode(used)
            finally:
                closing.join()

        forever(work)
    """,
    "grammars and templates": """
        def work():
            GrammarSampler(model.vocab, "root ::= [a-z]+").allowed_tokens()
            ChatTemplate(model).apply([{"role": "user", "content": "hi"}])

        forever(work)
    """,
    "threadpools and states": """
        def work():
            with context(n_ctx=64, n_threads=2) as used:
                used.attach_threadpool(Threadpool(2))
                used.decode_token(3, 0)
                used.state.set_data(used.state.get_data())

        forever(work)
    """,
}


@pytest.fixture(scope="module")
def slow_path(write_tiny_model):
    return write_tiny_model(n_layer=4, n_embd=256, n_head=8, n_ff=1024, n_ctx_train=4096)


@pytest.mark.parametrize("program", PROGRAMS)
def test_the_interpreter_ends_while_threads_work(slow_path, program):
    code = "\n".join(
        (BEGINNING, textwrap.dedent(PROGRAMS[program]), "time.sleep(wait)", "sys.exit(7)")
    )
    for wait in (0.0, 0.02, 0.15, 0.4):
        ended = subprocess.run(
            [sys.executable, "-c", code, str(slow_path), str(wait)],
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )
        assert ended.returncode == 7, (wait, ended.returncode, ended.stderr)


def test_everything_is_closed_once_the_exit_handlers_have_run(slow_path):
    written = run_python(
        """
        import atexit, sys

        @atexit.register  # before pyllama's, and so called after it
        def look():
            uses = [
                lambda: context.decode_token(3, 1),
                lambda: context.logits(),
                lambda: context.n_threads,
                lambda: context.memory.clear(),
                lambda: context.memory.seq_pos_max(0),
                lambda: context.state.get_data(),
                lambda: context.performance,
                lambda: chain.sample(context),
                lambda: chain.clone(),
                lambda: sampler.reset(),
                lambda: grammar.allowed_tokens(),
                lambda: pyllama.Grammar("root ::= [a-z]"),
                lambda: pyllama.Sampler.greedy(),
                lambda: pyllama.Context(model, n_ctx=64),
                lambda: pyllama.Model(sys.argv[1]),
                lambda: pyllama.Threadpool(2),
                lambda: context.attach_threadpool(pool),
                lambda: model.vocab.tokenize("hello"),
                lambda: pyllama.devices(),
            ]
            for number, use in enumerate(uses):
                try:
                    use()
                except pyllama.ClosedError:
                    pass
                else:
                    print("use", number, "was let through")
            print(model.closed, context.closed, chain.closed, sampler.closed, pool.closed)
            for thing in (chain, sampler, context, pool, model):
                thing.close()

        import pyllama

        model = pyllama.Model(sys.argv[1])
        context = pyllama.Context(model, n_ctx=64)
        context.decode_token(3, 0)
        sampler = pyllama.Sampler.dist(1)
        grammar = pyllama.GrammarSampler(model.vocab, "root ::= [a-z]+")
        chain = pyllama.SamplerChain([pyllama.Sampler.greedy()])
        pool = pyllama.Threadpool(2)
        """,
        slow_path,
    )
    assert written == "True True True True True\n"


def test_what_was_let_in_before_the_end_is_closed_too(slow_path):
    """The end may come between an object's own look at it and the call of C."""
    written = run_python(
        """
        import logging, sys
        import pyllama
        from pyllama import sampler as module
        from pyllama._native._binding import lib

        class Ending:
            def __getattr__(self, name):
                if name == "guarded_sampler_name":  # it was made, and is asked for its name
                    lib.pyllama_end()
                return getattr(lib, name)

        logging.disable(logging.CRITICAL)
        model = pyllama.Model(sys.argv[1])
        context = pyllama.Context(model, n_ctx=64)
        context.decode_token(3, 0)
        pooling = pyllama.Context(model, n_ctx=64, embeddings=True, pooling_type="mean")
        pooling.decode(pyllama.Batch.from_tokens([3, 4], outputs="all"))
        dist = pyllama.Sampler.dist(1)
        chain = pyllama.SamplerChain([pyllama.Sampler.dist(2)])
        device = pyllama.devices()[0]
        module.lib = Ending()
        uses = {
            "name": pyllama.Sampler.greedy,
            "make": pyllama.Sampler.greedy,
            "make from a vocabulary": lambda: pyllama.Sampler.infill(model.vocab),
            "bias": lambda: pyllama.Sampler.logit_bias(model.vocab, {1: 1.0}),
            "clone": dist.clone,
            "seed": lambda: dist.seed,
            "chain": pyllama.SamplerChain,
            "clone of a chain": chain.clone,
            "seed of a chain": lambda: chain.seed,
            "remove": chain.remove,
            "logits": context.logits,
            "all logits": context.all_logits,
            "pooled": pooling.embeddings_seq,
            "chat template": model.chat_template,
            "features": lambda: pyllama.backend_features(device),
            "text": lambda: model.vocab.get_text(3),
            "threadpool": lambda: pyllama.Threadpool(2),
            "grammar": lambda: pyllama.GrammarSampler(model.vocab, "root ::= [a-z]"),
            "template": lambda: pyllama.ChatTemplate(source="{{ 1 }}"),
            "model": lambda: pyllama.Model(sys.argv[1]),
            "context": lambda: pyllama.Context(model, n_ctx=64),
        }
        for name, use in uses.items():
            try:
                print(name, "gave", use())
            except pyllama.ClosedError:
                pass
            except BaseException as error:
                print(name, "raised", repr(error))
        """,
        slow_path,
    )
    assert written == ""


def test_a_thread_that_stays_in_c_does_not_hold_up_the_end(slow_path):
    written = run_python(
        """
        import sys, threading, time
        import pyllama
        from pyllama import _process

        _process._PATIENCE = 0.3
        model = pyllama.Model(sys.argv[1])
        context = pyllama.Context(model, n_ctx=64)
        context.decode_token(3, 0)
        inside = threading.Event()

        def stay(candidates):
            inside.set()
            time.sleep(1000)

        chain = pyllama.SamplerChain([pyllama.Sampler.python(stay), pyllama.Sampler.greedy()])
        threading.Thread(target=chain.sample, args=(context,), daemon=True).start()
        inside.wait()
        print("done")
        """,
        slow_path,
    )
    assert written == "done\n"
