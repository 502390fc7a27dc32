"""Closing in any order, dropping, and the end of the interpreter."""

from __future__ import annotations

import gc
import weakref

import pytest
from decoding import PROMPT, run_python

import pyllama
from pyllama import Batch, Context


def test_closing_twice(tiny):
    context = Context(tiny, n_ctx=256)
    assert not context.closed
    context.close()
    context.close()
    assert context.closed
    assert "closed" in repr(context)


def test_use_after_close(tiny):
    context = Context(tiny, n_ctx=256)
    memory = context.memory
    context.decode(Batch.from_tokens(PROMPT))
    context.close()
    uses = [
        lambda: context.decode(Batch.from_tokens([1])),
        lambda: context.decode_token(1, 0),
        lambda: context.logits(),
        lambda: memory.clear(),
        lambda: memory.seq_pos_max(0),
        lambda: memory.can_shift,
        lambda: pyllama.SamplerChain([pyllama.Sampler.greedy()]).sample(context),
    ]
    for use in uses:
        with pytest.raises(pyllama.ClosedError, match="closed"):
            use()
    context.cancel()


def test_with_closes_after_an_error(tiny):
    with pytest.raises(ZeroDivisionError), Context(tiny, n_ctx=256) as context:
        _ = 1 / 0
    assert context.closed


@pytest.mark.parametrize(
    "order", ["model context chain", "context chain model", "chain model context"]
)
def test_closing_in_any_order(tiny_model_path, order):
    model = pyllama.Model(tiny_model_path)
    context = Context(model, n_ctx=256)
    chain = pyllama.SamplerChain([pyllama.Sampler.greedy()])
    context.decode(Batch.from_tokens(PROMPT))
    chain.sample(context)
    made = {"model": model, "context": context, "chain": chain}
    for name in order.split():
        made[name].close()
    assert all(thing.closed for thing in made.values())


def test_a_context_keeps_its_model_alive(tiny_model_path):
    context = Context(pyllama.Model(tiny_model_path), n_ctx=256)
    gc.collect()
    context.decode(Batch.from_tokens(PROMPT))
    assert context.logits().size
    context.close()


def test_what_is_dropped_is_freed(tiny_model_path):
    model = pyllama.Model(tiny_model_path)
    context = Context(model, n_ctx=256)
    releases = [context._handle._finalizer, model._handle._finalizer]
    assert all(release.alive for release in releases)
    del context, model
    gc.collect()
    assert not any(release.alive for release in releases)


def test_objects_in_a_cycle_are_collected(tiny_model_path):
    class Holder:
        pass

    for swapped in (False, True):
        holder = Holder()
        holder.me = holder
        holder.model = pyllama.Model(tiny_model_path)
        holder.context = Context(holder.model, n_ctx=256)
        holder.chain = pyllama.SamplerChain([pyllama.Sampler.greedy()])
        if swapped:
            holder.model.owner = holder
        seen = weakref.ref(holder)
        freed = holder.model._handle._finalizer
        del holder
        gc.collect()
        assert seen() is None
        assert not freed.alive


def test_failed_constructors_leave_nothing_behind(tiny, tiny_model_path, tmp_path):
    gc.collect()
    for _ in range(3):
        with pytest.raises(ValueError, match="n_batch"):
            Context(tiny, n_batch=0)
        with pytest.raises(ValueError, match="main_gpu"):
            pyllama.Model(tiny_model_path, main_gpu=-1)
    gc.collect()


LEAVE = {
    "live objects": "",
    "a cycle": "context.itself = context; model.context = context; del context, model",
    "globals of another module": "sys.modules['json'].kept = context; del context, model",
    "a closed model": "model.close()",
}


@pytest.mark.parametrize("leave", LEAVE)
def test_the_interpreter_ends_cleanly(tiny_model_path, leave):
    written = run_python(
        """
        import json, sys
        import pyllama

        model = pyllama.Model(sys.argv[1])
        context = pyllama.Context(model, n_ctx=256)
        chain = pyllama.SamplerChain([pyllama.Sampler.dist(1)])
        context.decode(pyllama.Batch.from_tokens([1, 2, 3]))
        chain.sample(context)
        template = pyllama.ChatTemplate(model)
        exec(sys.argv[2])
        print("done")
        """,
        tiny_model_path,
        LEAVE[leave],
    )
    assert written == "done\n"


def test_the_interpreter_ends_while_a_daemon_thread_decodes(write_tiny_model):
    written = run_python(
        """
        import logging, sys, threading
        logging.disable()
        import pyllama

        model = pyllama.Model(sys.argv[1])
        context = pyllama.Context(model, n_ctx=32768, n_batch=32768, n_ubatch=64, n_threads=1)
        batch = pyllama.Batch.from_tokens([7] * 32000)

        def work():
            try:
                context.decode(batch)
            except pyllama.DecodeCancelled:
                pass

        threading.Thread(target=work, daemon=True).start()
        while context._lock.acquire(blocking=False):
            context._lock.release()
        print("done")
        """,
        write_tiny_model(n_ctx_train=32_768),
    )
    assert written == "done\n"
