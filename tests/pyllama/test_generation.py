"""Sequences that go on by themselves: the same as step by step, whatever is done meanwhile."""

from __future__ import annotations

import threading
import time

import pytest
from test_parallel_generation import (
    CHAINS,
    FORCING,
    LENGTHS,
    N_SEQUENCES,
    N_STEPS,
    context_of,
    forced_by_hand,
    step_by_step,
)

import pyllama
from pyllama import Batch, Context, Forcing, GrammarSampler, Run, Sampler, SamplerChain
from pyllama.generation import Generation

PROMPTS = [list(range(5 + i, 5 + i + length)) for i, length in enumerate(LENGTHS)]


def endless(model) -> SamplerChain:
    return SamplerChain([Sampler.logit_bias(model.vocab, {7: 1e6}), Sampler.greedy()])


def add(generation, seq_id, chain, n_max=N_STEPS, **options) -> None:
    run = Run(chain, seq_id, LENGTHS[seq_id], n_max, **options)
    generation.add(seq_id, PROMPTS[seq_id], 0, run)


def until(generation, reached) -> None:
    """Wait until something has been reached, with a limit against a hang."""
    deadline = time.monotonic() + 60
    while not reached():
        assert time.monotonic() < deadline
        generation.wait(0.01)


def finished(generation) -> dict[int, list[int]]:
    """What all its sequences get until they end."""
    found: dict[int, list[int]] = {}
    deadline = time.monotonic() + 60
    while len(generation):
        assert time.monotonic() < deadline
        for seq_id, progress in generation.wait(60).items():
            assert progress.computed
            found.setdefault(seq_id, []).extend(progress.drawn.tokens)
    return found


@pytest.mark.parametrize("n_threads", [1, 3])
@pytest.mark.parametrize("kind", CHAINS)
def test_the_tokens_are_those_of_single_steps(tiny, kind, n_threads):
    with context_of(tiny) as context, Generation(context, n_threads=n_threads) as generation:
        for seq_id in range(N_SEQUENCES):
            add(generation, seq_id, CHAINS[kind](tiny.vocab, seq_id))
        found = finished(generation)
    assert [found[seq_id] for seq_id in range(N_SEQUENCES)] == step_by_step(tiny, CHAINS[kind])


def test_each_token_is_told_if_that_is_wanted(tiny):
    with context_of(tiny) as context, Generation(context) as generation:
        run = Run(endless(tiny), 0, LENGTHS[0], 40)
        generation.add(0, PROMPTS[0], 0, run, each=True)
        told, n_tokens = [], 0
        while len(generation):
            for progress in generation.wait(60).values():
                told.append(len(progress.drawn.tokens))
                n_tokens += told[-1]
                in_memory = n_tokens - told[-1] + progress.drawn.n_computed
                assert in_memory == n_tokens - 1  # all but the last
        assert n_tokens == 40
        assert all(told)


def test_tokens_without_a_run_are_computed_and_others_follow_them(tiny):
    (expected,) = [step_by_step(tiny, CHAINS["greedy"])[2]]
    with context_of(tiny) as context, Generation(context) as generation:
        add(generation, 0, endless(tiny), n_max=60)
        generation.add(2, PROMPTS[2][:2], 0)
        until(generation, lambda: 2 not in generation._members)
        generation.add(2, PROMPTS[2][2:], 2, Run(CHAINS["greedy"](tiny.vocab, 0), 2, 5, N_STEPS))
        assert finished(generation)[2] == expected


def test_the_memory_is_changed_between_two_batches(tiny):
    with Context(tiny, n_ctx=256, n_seq_max=4, n_threads=1, kv_unified=True) as context:
        context.decode(Batch.from_tokens(PROMPTS[2], seq_id=3))
        with Generation(context) as generation:
            add(generation, 0, endless(tiny), n_max=150)
            generation.wait(60)
            context.memory.seq_cp(3, 1)
            assert context.memory.seq_rm(1, 3)
            assert context.memory.seq_rm(3, 4)
            generation.add(1, PROMPTS[2][3:], 3, Run(endless(tiny), 1, 5, 3))
            until(generation, lambda: 1 not in generation._members)
            assert context.memory.seq_pos_max(1) == 6  # the last token is not computed
            assert context.memory.seq_pos_max(3) == 3
            finished(generation)
            assert generation.error is None


def test_it_pauses_for_whatever_else_its_thread_does_with_the_context(tiny):
    expected = step_by_step(tiny, CHAINS["greedy"])[1]
    with context_of(tiny) as context, Generation(context) as generation:
        add(generation, 0, endless(tiny), n_max=50)
        generation.wait(60)
        context.decode(Batch.from_tokens(PROMPTS[1], seq_id=1))
        chain, taken = CHAINS["greedy"](tiny.vocab, 0), []
        for pos in range(LENGTHS[1], LENGTHS[1] + len(expected)):
            taken.append(chain.sample(context, -1))
            generation.wait(0)
            context.decode_token(taken[-1], pos, seq_id=1)
        assert taken == expected
        finished(generation)
        assert generation.error is None
        assert context.memory.seq_pos_max(0) == LENGTHS[0] + 50 - 2


def test_a_state_is_restored_after_what_was_there_is_gone(tiny):
    n_tokens = 60
    with context_of(tiny) as context:
        for seq_id in range(2):
            context.decode(Batch.from_tokens(list(range(5, 5 + n_tokens)), seq_id=seq_id))
        state = context.state.seq_get_data(0)
        with Generation(context):
            for _ in range(1000):  # the other thread may be quick or slow
                context.state.seq_set_data(state, 1)
                assert context.memory.seq_pos_max(1) == n_tokens - 1


@pytest.mark.parametrize("n_max", [6, 100])
def test_it_writes_what_is_forced(tiny, n_max):
    chain = SamplerChain([Sampler.greedy()], grammar=GrammarSampler(tiny.vocab, FORCING))
    with context_of(tiny) as context, Generation(context) as generation:
        add(generation, 0, chain, n_max, forcing=Forcing())
        assert finished(generation)[0] == forced_by_hand(tiny, n_max=n_max)


def test_more_than_a_batch_holds_waits_for_the_next(tiny):
    """Prompts in their order, and forced texts one after the other."""
    options = {"n_ctx": 256, "n_seq_max": 4, "n_batch": 32, "n_threads": 1}
    with Context(tiny, **options) as context, Generation(context) as generation:
        for seq_id in range(4):
            grammar = GrammarSampler(tiny.vocab, FORCING)
            chain = SamplerChain([Sampler.dist(seq_id)], grammar=grammar)
            run = Run(chain, seq_id, 20, 40, forcing=Forcing(2, 24))
            generation.add(seq_id, [5] * 20, 0, run)
        found = finished(generation)
    assert all(tiny.vocab.is_eog(tokens[-1]) for tokens in found.values())


def test_a_sequence_that_is_removed_leaves_the_others(tiny):
    with context_of(tiny) as context, Generation(context) as generation:
        chains = [endless(tiny) for _ in range(3)]
        for seq_id, chain in enumerate(chains):
            add(generation, seq_id, chain, n_max=50)
        generation.remove(0)  # before any look, which could find that all have ended
        chains[1].close()  # so is its sequence
        assert len(generation) == 1
        assert not generation.closed
        assert chains[0].sample is not None
        chains[0].reset()
        generation.remove(0)
        context.memory.seq_rm(0)
        add(generation, 0, chains[0], n_max=5)
        assert finished(generation)[0] == [7] * 5


def test_closing_the_context_or_it_ends_it(tiny):
    context = context_of(tiny)
    with Generation(context) as generation:
        add(generation, 0, endless(tiny), n_max=50)
        generation.wait(60)
    chain = endless(tiny)
    context.memory.clear()
    with Generation(context) as other:
        add(other, 0, chain, n_max=50)
        context.close()
        assert other.closed
    assert not chain._lent
    with pytest.raises(pyllama.ClosedError):
        generation.wait()


def test_another_thread_closes_the_model(write_tiny_model):
    with pyllama.Model(write_tiny_model()) as model:
        context = context_of(model)
        generation = Generation(context)
        add(generation, 0, endless(model), n_max=50)
        generation.wait(60)
        closing = threading.Thread(target=model.close)
        closing.start()
        closing.join(60)
        assert context.closed
        with pytest.raises(pyllama.ClosedError):
            generation.wait(60)


def test_another_thread_may_wake_it_but_use_nothing_of_it(tiny):
    with context_of(tiny) as context, Generation(context) as generation:
        chain = endless(tiny)
        add(generation, 0, chain, n_max=50)
        refused = []

        def other():
            uses = [
                generation.wait,
                context.synchronize,
                chain.reset,
                lambda: context.memory.seq_rm(1),
                lambda: add(generation, 1, endless(tiny)),
            ]
            for use in uses:
                with pytest.raises(ValueError, match="another thread"):
                    use()
                refused.append(use)
            generation.wake()

        thread = threading.Thread(target=other)
        thread.start()
        thread.join(60)
        assert len(refused) == 5
        begun = time.monotonic()
        while not generation.wait(60) and len(generation):
            pass
        assert time.monotonic() - begun < 50
        assert generation.wait(0) is not None


def test_a_batch_that_fails_ends_it(tiny):
    """What was sampled before is told, and what is in memory."""
    with Context(tiny, n_ctx=256, n_seq_max=2, n_threads=1, kv_unified=True) as context:
        generation = Generation(context)
        generation.add(0, [5] * 120, 0, Run(endless(tiny), 0, 120, 100))
        generation.add(1, [5] * 120, 0, Run(endless(tiny), 1, 120, 100))
        sampled, error = [0, 0], None
        while error is None:
            for seq_id, progress in generation.wait(60).items():
                sampled[seq_id] += len(progress.drawn.tokens)
                assert not progress.over
            error = generation.error
        assert isinstance(error, pyllama.MemoryFullError)
        assert sampled == [9, 9]
        generation.close()
        assert context.memory.seq_pos_max(0) == context.memory.seq_pos_max(1) == 127
        context.memory.seq_rm(1)
        context.decode_token(7, 128)


def test_an_error_in_one_sequence_leaves_the_others(tiny):
    (x,) = tiny.vocab.tokenize("x", add_special=False)
    likely = Sampler.logit_bias(tiny.vocab, {x: 1000.0})
    grammar = GrammarSampler(tiny.vocab, 'root ::= "<tool>"', trigger_patterns=["x"])
    with context_of(tiny) as context, Generation(context) as generation:
        add(generation, 0, endless(tiny))
        add(generation, 1, SamplerChain([likely, Sampler.greedy()], grammar=grammar))
        found = {}
        while len(generation):
            found |= generation.wait(60)
        assert isinstance(found[1].drawn.error, pyllama.NativeError)
        assert found[0].drawn.error is None


def test_what_cannot_be_used_is_refused(tiny, write_tiny_model):
    recurrent = pyllama.Model(write_tiny_model(architecture="mamba"))
    with recurrent, pytest.raises(ValueError, match="cut back"):
        Generation(context_of(recurrent))
    chain = endless(tiny)
    with context_of(tiny) as context, Generation(context) as generation:
        with pytest.raises(ValueError, match="Generation already"):
            Generation(context)
        with pytest.raises(pyllama.InvalidBatchError, match="tokens"):
            generation.add(0, [10**6], 0)
        with pytest.raises(ValueError, match="number of tokens"):
            generation.add(0, [], 0)
        with pytest.raises(ValueError, match="follow"):
            generation.add(0, [5], 0, Run(chain, 0, 2, 5))
        add(generation, 0, chain)
        with pytest.raises(ValueError, match="not going on"):
            generation.add(0, [5], 0)
        with pytest.raises(ValueError, match="not going on"):
            add(generation, 1, chain)
        assert len(generation) == 1


def test_what_joins_finds_the_memory_changed_as_wanted_before(tiny):
    """However batches of others and the changes meet."""
    with Context(tiny, n_ctx=512, n_seq_max=2, n_threads=1) as context:
        with Generation(context) as generation:
            generation.add(0, [5], 0, Run(endless(tiny), 0, 1, 200))
            for begin in [0] + 2000 * [4]:
                context.memory.seq_rm(1, begin, -1)
                generation.add(1, [5] * (8 - begin), begin)
                until(generation, lambda: 1 not in generation._members)
                assert generation.error is None
                if 0 not in generation._members:
                    context.memory.seq_rm(0)
                    generation.add(0, [5], 0, Run(endless(tiny), 0, 1, 200))
            context.memory.seq_rm(1)
        assert context.memory.seq_pos_max(1) == -1  # also if it ends at once
