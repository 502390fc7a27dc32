"""What is put right after an error: batches undone, contexts replaced, trials made anew."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
import traceback
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import pytest
from schedules import (
    AS_ON_GPUS,
    FORCING,
    alone,
    any_batch_is_fast,
    endless,
    on_gpu,
    raising,
    request_of,
    same,
    scheduler_of,
    tokens,
)

import pyllama
from adapter.errors import (
    InferenceError,
    ModelNotLoadedError,
    RequestTimeoutError,
)
from adapter.generation import answer_writer, batch_plan, exactness
from adapter.generation import scheduler as scheduler_module
from adapter.generation.request import GenerationResult
from adapter.generation.sampling import Constraint
from adapter.generation.scoring import ScoringRequest


def fail_batches(patch, *, least, times, code=-2):
    """Have batches of several sequences fail after a part of them was computed, so many times.

    That is what a GPU does which runs out of memory: what llama.cpp computed before stays.
    """
    decode, failed = pyllama.Context.decode, []

    def failing(context, batch):
        sequences = sorted({int(batch._seq_id[index, 0]) for index in range(len(batch))})
        if len(failed) >= times or len(sequences) < least:
            decode(context, batch)
            return
        failed.append(len(sequences))
        part = pyllama.Batch(len(batch))
        for index in range(len(batch)):
            if batch._seq_id[index, 0] in sequences[: least // 2]:
                token, pos = int(batch._token[index]), int(batch._pos[0, index])
                part.add(token, pos, (int(batch._seq_id[index, 0]),), output=index % 2 == 0)
        decode(context, part)
        raise pyllama.DecodeError(f"decode: llama.cpp returned {code}", code)

    patch.setattr(pyllama.Context, "decode", failing)
    failed_later = fail_generations(patch, least=least, times=times, code=code)
    return Both(failed, failed_later)


class Both:
    """Two lists as one."""

    def __init__(self, *lists):
        self.lists = lists

    def __len__(self):
        return sum(map(len, self.lists))


def fail_generations(patch, *, least, times, code=-2):
    """Have answers that go on by themselves fail, so many times, if so many do.

    The shortest of them gets tokens of the longest in memory, which it does not have: llama.cpp
    takes no token whose position does not follow those in memory.
    """
    wait, failed = pyllama.Generation.wait, []

    def failing(generation, seconds):
        news = wait(generation, seconds)
        parts = {
            seq_id: member.part
            for seq_id, member in generation._members.items()
            if member.part.computed
        }
        if len(failed) < times and len(parts) >= least and generation.error is None:
            ends = {part.pos + part.n_tokens: seq_id for seq_id, part in parts.items()}
            shortest, longest = min(ends), max(ends)
            if longest - shortest > 100:
                failed.append(len(parts))
                generation._change(ends[longest], ends[shortest], longest - 20, -1)
        return news

    patch.setattr(pyllama.Generation, "wait", failing)
    patch.setattr(
        pyllama.Generation,
        "_failure",
        lambda _generation, _code: pyllama.DecodeError(f"decode: llama.cpp returned {code}", code),
    )
    return failed


@pytest.mark.parametrize("name", ["llama", "mamba", "jamba", "gemma2"])
@pytest.mark.parametrize("options", [{}, AS_ON_GPUS])
def test_a_batch_that_failed_half_way_is_undone(models, name, options, monkeypatch):
    """Nobody in it fails, and the bytes are those of each alone."""
    model = models[name]
    # A model whose batches change the bytes has none; here that does not matter.
    any_batch_is_fast(monkeypatch, exact=False)
    requests = [
        request_of(tokens(seed, 30 + 50 * seed), max_tokens=30, seed=seed) for seed in range(5)
    ]
    requests.append(request_of(tokens(9, 100), max_tokens=40, constraint=FORCING))
    exact = not options and name == "llama" and not on_gpu()
    expected = [alone(model, request) for request in requests]
    scheduler = scheduler_of(model, **options)
    with monkeypatch.context() as patch, ThreadPoolExecutor(6) as threads:
        failed = fail_batches(patch, least=3, times=3)
        found = list(threads.map(scheduler.generate, requests))
    assert failed
    assert all(result.completion_tokens > 0 for result in found)
    if exact:
        assert all(map(same, found, expected))
    assert scheduler.generate(requests[0]).completion_tokens > 0
    scheduler.close()


def lengths_of_three(model):
    """The lengths of three answers of 60 tokens, computed together."""
    scheduler = scheduler_of(model, **AS_ON_GPUS)
    requests = [replace(endless(seed), max_tokens=60) for seed in range(3)]
    requests[2] = replace(requests[2], prompt=tokens(2, 200))
    with ThreadPoolExecutor(3) as threads:
        found = list(threads.map(scheduler.generate, requests))
    scheduler.close()
    return [result.completion_tokens for result in found]


def test_answers_that_went_on_until_a_batch_failed(models, monkeypatch):
    """What was sampled before stays, and what the batch left in memory does not."""
    failed = fail_generations(monkeypatch, least=2, times=4)
    assert lengths_of_three(models["llama"]) == [60] * 3
    assert failed


def test_outputs_that_could_not_be_read_are_computed_again(models, monkeypatch):
    """The batch was computed, and nothing was sampled from it."""
    failed = fail_generations(monkeypatch, least=2, times=1)
    wait, computed = pyllama.Generation.wait, []

    def computing(generation, seconds):
        members = dict(generation._members)
        news = wait(generation, seconds)
        if generation.error is None:
            return news
        for seq_id, progress in news.items():
            part, drawn = members[seq_id].part, progress.drawn
            begin = part.pos + part.n_tokens
            in_memory = begin + part.n_in_memory
            generation._context.memory.seq_rm(seq_id, in_memory)
            if part.n_sampled > part.n_in_memory:
                last = members[seq_id]._struct.tokens[part.n_sampled - 1]
                batch = pyllama.Batch.from_tokens([last], pos=in_memory, seq_id=seq_id)
                generation._context.decode(batch)
                news[seq_id] = replace(
                    progress, drawn=replace(drawn, n_computed=drawn.n_computed + 1)
                )
                computed.append(seq_id)
        return news

    monkeypatch.setattr(pyllama.Generation, "wait", computing)
    assert lengths_of_three(models["llama"]) == [60] * 3
    assert failed
    assert computed


def test_log_probabilities_that_cannot_be_sampled_fail_with_the_cause(models, monkeypatch):
    """Others go on meanwhile."""
    scheduler = scheduler_of(models["llama"], **AS_ON_GPUS)
    request = request_of(tokens(1, 30), max_tokens=8, logprobs=2)
    with ThreadPoolExecutor(1) as threads, monkeypatch.context() as patch:
        going_on = threads.submit(scheduler.generate, replace(endless(0), max_tokens=200))
        patch.setattr(pyllama, "sample_each", raising(pyllama.NativeError("sampling: no memory")))
        with pytest.raises(Exception, match="no memory"):
            scheduler.generate(request)
        assert going_on.result(60).completion_tokens == 200
    assert scheduler.generate(request).completion_tokens == 8
    assert scheduler.generate(request_of(tokens(1, 30), max_tokens=8)).completion_tokens == 8
    scheduler.close()


@pytest.mark.parametrize("name", ["mamba", "jamba", "gemma2"])
def test_what_cannot_be_cut_back_is_computed_anew_in_the_same_calls(models, name, monkeypatch):
    """Prompt, sampled tokens and forced ones, each as before: the bytes stay."""
    model = models[name]
    requests = [
        request_of(tokens(1, 200), max_tokens=40, constraint=FORCING, seed=1),
        request_of(tokens(2, 90), max_tokens=60, seed=2, logprobs=2),
    ]
    expected = [alone(model, request) for request in requests]
    scheduler = scheduler_of(model)
    running, runner = scheduler._core.running, scheduler._core.runner
    restarted, roll_back, compute = [], running.roll_back, runner.compute
    n_calls = [0]

    def failing(group):
        """All running sequences at once, which fails, every tenth step."""
        n_calls[0] += 1
        slots = group[0].slot.cache.running if group else []
        if n_calls[0] % 10 or len(restarted) >= 4 or len(slots) < 2:
            return compute(group)
        error = pyllama.DecodeError("decode: llama.cpp returned -3", -3)
        parts = batch_plan.choose_parts(slots, [], room=200, chunk=64)
        for slot in slots:
            slot.cache.context.memory.seq_rm(slot.seq_id)  # what a decode that failed may leave
        runner._undo(parts, error)
        return iter(())

    monkeypatch.setattr(runner, "compute", failing)
    monkeypatch.setattr(
        running,
        "roll_back",
        lambda part, **options: (restarted.append(part), roll_back(part, **options)),
    )
    with ThreadPoolExecutor(2) as threads:
        found = list(threads.map(scheduler.generate, requests))
    assert len(restarted) >= 2
    assert all(map(same, found, expected))
    scheduler.close()


@pytest.mark.parametrize("name", ["llama", "mamba"])
def test_batches_that_always_fail_leave_each_request_alone(models, name, monkeypatch):
    """No sequence is computed anew for ever: after the first time it is computed by itself."""
    any_batch_is_fast(monkeypatch, exact=False)
    requests = [request_of(tokens(seed, 40), max_tokens=20, seed=seed) for seed in range(4)]
    scheduler = scheduler_of(models[name])
    with monkeypatch.context() as patch, ThreadPoolExecutor(4) as threads:
        fail_batches(patch, least=2, times=10**6)
        found = list(threads.map(scheduler.generate, requests))
    assert all(map(same, found, [alone(models[name], request) for request in requests]))
    scheduler.close()


@pytest.mark.parametrize("count", [1, 2, 3, 8])
def test_a_poisoned_context_fails_all_its_requests_once(model, count):
    scheduler = scheduler_of(model)
    requests = [replace(endless(seed), max_tokens=900) for seed in range(count)]
    streams = [scheduler.stream(request) for request in requests]
    for stream in streams:
        next(stream)
    contexts = [cache.context for cache in scheduler._core.memory]
    for context in contexts:
        context._poison = "GGML_ASSERT(mine) failed"
    for stream in streams:
        with pytest.raises(InferenceError, match=r"GGML_ASSERT\(mine\)"):
            list(stream)
    for stream in streams:
        assert list(stream) == []
    request = request_of(tokens(0, 40))
    assert same(scheduler.generate(request), alone(model, request))
    assert all(context.closed for context in contexts)
    assert scheduler.failed is None
    scheduler.close()


def test_a_poisoned_scoring_context_is_replaced(model):
    scheduler = scheduler_of(model)
    request = ScoringRequest(tokens(0, 90), ((5,), (6, 7)), (2,))
    scores = scheduler.score(request).scores
    scheduler._scoring._context._poison = "GGML_ASSERT(mine) failed"
    with pytest.raises(InferenceError, match="mine"):
        scheduler.score(request)
    assert scheduler.score(request).scores == scores
    scheduler.close()


def test_a_cancelled_computation_is_not_tried_again(model, monkeypatch):
    scheduler = scheduler_of(model)
    requests = [replace(endless(seed), max_tokens=900) for seed in range(3)]
    streams = [scheduler.stream(request) for request in requests]
    for stream in streams:
        next(stream)
    (_,) = scheduler._core.memory
    calls = []
    with monkeypatch.context() as patch:
        cancelled = pyllama.DecodeCancelled("decode: cancelled", 2)
        patch.setattr(pyllama.Context, "decode", lambda *_: calls.append(1) or raising(cancelled)())
        for stream in streams:
            with pytest.raises(InferenceError, match="cancelled"):
                list(stream)
    assert len(calls) == 1
    assert scheduler.generate(request_of(tokens(0, 30))).completion_tokens > 0
    scheduler.close()


def test_a_trial_that_fails_is_made_again_later(model, monkeypatch):
    """Sequences are decoded one by one meanwhile, and prompts cut at whole chunks."""
    monkeypatch.setattr(exactness, "RETRY_SECONDS", 0.2)
    # What a trial finds on a GPU is another question.
    any_batch_is_fast(monkeypatch, exact=not on_gpu())
    if on_gpu():
        monkeypatch.setattr(exactness, "exact_cuts", lambda _context: True)
    scheduler = scheduler_of(model)
    requests = [request_of(tokens(seed, 40), max_tokens=30, seed=seed) for seed in range(4)]
    with monkeypatch.context() as patch:
        no_memory = pyllama.NativeMemoryError("no memory")
        patch.setattr(scheduler._core.plan._exactness, "_make", raising(no_memory))
        with ThreadPoolExecutor(4) as threads:
            found = list(threads.map(scheduler.generate, requests))
        assert scheduler.metrics.snapshot().histograms["batch_size"].mean == 1
        assert not scheduler._core.plan._exactness.cuts_anywhere
    if not on_gpu():
        assert all(map(same, found, [alone(model, request) for request in requests]))
    time.sleep(0.2)
    with ThreadPoolExecutor(4) as threads:
        list(threads.map(scheduler.generate, requests))
    assert scheduler.metrics.snapshot().histograms["batch_size"].mean > 1
    assert scheduler._core.plan._exactness.cuts_anywhere
    scheduler.close()


def test_closing_while_a_step_is_long_cancels_it(model, monkeypatch):
    monkeypatch.setattr(scheduler_module, "GRACE_SECONDS", 0.0)
    scheduler = scheduler_of(model)
    stream = scheduler.stream(endless(0))
    next(stream)
    scheduler.close()
    assert not scheduler._thread.is_alive()
    with pytest.raises(Exception, match="closed"):
        list(stream)


def test_a_request_that_timed_out_or_failed_gave_all_back(model):
    scheduler = scheduler_of(model, max_sequences=1)
    with pytest.raises(RequestTimeoutError):
        scheduler.generate(request_of(tokens(0, 300), max_tokens=1500, timeout=0.01))
    assert isinstance(scheduler.generate(request_of(tokens(1, 20))), GenerationResult)
    scheduler.close()


NO_IMPORT = """
import sys
from schedules import isolated_of, request_of, scheduler_of, tokens
from adapter.generation.sampling import Constraint
from adapter.generation.scoring import ScoringRequest
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
import pyllama

model = pyllama.Model(sys.argv[1])
before = set(sys.modules)
for make in (scheduler_of, isolated_of):
    scheduler = make(model)
    bound = Constraint('root ::= "so: " [a-z]+')
    with ThreadPoolExecutor(4) as threads:
        requests = [request_of(tokens(0, 100) + tokens(n, 9), logprobs=2) for n in range(3)]
        requests.append(request_of(tokens(5, 9), constraint=bound))
        list(threads.map(scheduler.generate, requests))
    scheduler.score(ScoringRequest(tokens(0, 90), ((5,), (6, 7)), (2,)))
    scheduler.close()
print(sorted(name for name in set(sys.modules) - before if "concurrent" not in name))
"""


def test_nothing_is_imported_while_requests_are_computed(tiny_model_path):
    """An import takes memory, and one that failed for the want of it is failed for ever."""
    done = subprocess.run(
        [sys.executable, "-c", NO_IMPORT, tiny_model_path],
        env={"PYTHONPATH": ":".join(sys.path)},
        capture_output=True,
        text=True,
        timeout=120,
        check=True,
    )
    assert done.stdout.strip() == "[]", done.stdout


def test_a_grammar_that_is_refused_costs_nothing_that_is_held(model, monkeypatch):
    scheduler, prompt = scheduler_of(model), tokens(5, 400)
    try:
        scheduler.generate(request_of(prompt))
        reused = scheduler.generate(request_of(prompt)).cache_read_tokens
        assert reused > 300
        make, made = answer_writer.sampler_chain, []

        def counting(*arguments, **options):
            made.append(arguments)
            return make(*arguments, **options)

        with monkeypatch.context() as patch:
            patch.setattr(answer_writer, "sampler_chain", counting)
            with pytest.raises(InferenceError, match="nowhere"):
                scheduler.generate(request_of(prompt, constraint=Constraint("root ::= nowhere")))
        assert len(made) == 1
        assert scheduler.generate(request_of(prompt)).cache_read_tokens == reused
    finally:
        scheduler.close()


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system has no fork()")
@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_a_stream_that_began_before_fork_is_refused_in_the_child(model):
    scheduler = scheduler_of(model)
    stream = scheduler.stream(endless(1))
    next(stream)
    child = os.fork()
    if child == 0:
        code = 1
        try:
            with pytest.raises(ModelNotLoadedError, match="fork"):
                list(stream)
            code = 0
        finally:
            os._exit(code)
    end = time.monotonic() + 60
    while not (ended := os.waitpid(child, os.WNOHANG))[0] and time.monotonic() < end:
        time.sleep(0.01)
    if not ended[0]:
        os.kill(child, signal.SIGKILL)
        ended = os.waitpid(child, 0)
    assert os.waitstatus_to_exitcode(ended[1]) == 0
    assert next(stream)  # here it goes on
    scheduler.close()


def test_each_caller_raises_an_error_of_its_own(model):
    scheduler, errors = scheduler_of(model), []

    def ask(seed):
        try:
            scheduler.generate(endless(seed))
        except ModelNotLoadedError as error:
            errors.append(error)

    with ThreadPoolExecutor(4) as threads:
        for seed in range(4):
            threads.submit(ask, seed)
        while len(scheduler._core.memory.taken) < 4:
            time.sleep(0.001)
        scheduler.close()
    assert len({id(error) for error in errors}) == 4
    assert len({str(error) for error in errors}) == 1
    for error in errors:
        frames = [frame.name for frame in traceback.extract_tb(error.__traceback__)]
        assert frames.count("ask") == 1
