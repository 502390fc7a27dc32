"""Tokens that a ``Generation`` drafts: fewer batches, and nothing else is different."""

from __future__ import annotations

import pytest
from test_generation import PROMPTS, add, endless, finished
from test_parallel_generation import (
    CHAINS,
    FORCING,
    LENGTHS,
    N_SEQUENCES,
    context_of,
    forced_by_hand,
    step_by_step,
)

import pyllama
from pyllama import Context, Forcing, GrammarSampler, Model, Run, Sampler, SamplerChain
from pyllama.generation import Generation

ROUNDS = 4


@pytest.fixture(scope="module")
def exact(tiny_model_path):
    """On the CPU, whatever PYLLAMA_BACKEND says: a GPU rounds by how many rows a batch has."""
    with Model(tiny_model_path, devices=[]) as model:
        yield model


def again(context, generation, chains, n_max=12, **options):
    """Have sequences answer once more; return their tokens."""
    for seq_id, chain in enumerate(chains):
        context.memory.seq_rm(seq_id)
        add(generation, seq_id, chain, n_max, **options)
    return finished(generation)


@pytest.mark.parametrize("n_draft", [1, 8, 64])
@pytest.mark.parametrize("kind", CHAINS)
def test_the_tokens_are_those_without_drafts(exact, kind, n_draft):
    expected = step_by_step(exact, CHAINS[kind])
    with context_of(exact) as context, Generation(context, n_draft=n_draft) as generation:
        for _ in range(ROUNDS):
            chains = [CHAINS[kind](exact.vocab, seed) for seed in range(N_SEQUENCES)]
            found = again(context, generation, chains)
            assert [found[seq_id] for seq_id in range(N_SEQUENCES)] == expected
            for seq_id, tokens in found.items():
                end = LENGTHS[seq_id] + len(tokens) - 2  # the last one is not computed
                assert context.memory.seq_pos_max(seq_id) == end


def test_answers_that_were_there_twice_take_fewer_batches(exact):
    counts = {}
    for n_draft in (0, 8):
        with context_of(exact) as context, Generation(context, n_draft=n_draft) as generation:
            chain, told = CHAINS["dist"](exact.vocab, 3), []
            for _ in range(ROUNDS):
                context.memory.seq_rm(0)
                chain.reset()
                generation.add(0, PROMPTS[0], 0, Run(chain, 0, LENGTHS[0], 40), each=True)
                context.reset_performance()
                found = finished(generation)[0]
                told.append(found)
            assert told == [told[0]] * ROUNDS
            counts[n_draft] = context.performance.n_eval
    assert counts[0] == 39
    assert counts[8] < 20


@pytest.mark.parametrize("grammar", [None, 'root ::= "abcdefghijklmno"'])
@pytest.mark.parametrize("n_max", [2, 6, 40])
def test_neither_the_last_token_nor_what_follows_an_end_is_drafted(tiny, n_max, grammar):
    with context_of(tiny) as context, Generation(context) as generation:
        for _ in range(ROUNDS):
            chain = endless(tiny)
            if grammar is not None:
                only = GrammarSampler(tiny.vocab, grammar)
                chain = SamplerChain([Sampler.greedy()], grammar=only)
            context.reset_performance()
            (tokens,) = again(context, generation, [chain], n_max).values()
        counts = context.performance
    assert len(tokens) == min(n_max, 40 if grammar is None else 16)
    n_prompt = LENGTHS[0]  # llama.cpp counts calls of one token and of several apart, each from 1
    assert counts.n_p_eval + counts.n_eval <= n_prompt + len(tokens) - 1 + 1


def test_what_was_expected_and_does_not_come_is_removed(tiny):
    """The answers part where the table expects the others' tokens."""
    (x,) = tiny.vocab.tokenize("x", add_special=False)
    with context_of(tiny) as context, Generation(context) as generation:
        again(context, generation, [endless(tiny)], n_max=40)
        grammar = GrammarSampler(tiny.vocab, 'root ::= "x" [a-z]*')
        for n_max in (5, 9, 30):
            chain = SamplerChain([Sampler.dist(1)], grammar=grammar.clone())
            (tokens,) = again(context, generation, [chain], n_max).values()
            assert tokens[0] == x
            assert context.memory.seq_pos_max(0) == LENGTHS[0] + len(tokens) - 2


@pytest.mark.parametrize("n_max", [6, 7, 100])
def test_what_is_forced_may_be_drafted(tiny, n_max):
    expected = forced_by_hand(tiny, n_max=n_max)
    with context_of(tiny) as context, Generation(context) as generation:
        for _ in range(ROUNDS):
            grammar = GrammarSampler(tiny.vocab, FORCING)
            chain = SamplerChain([Sampler.greedy()], grammar=grammar)
            found = again(context, generation, [chain], n_max, forcing=Forcing())
            assert found[0] == expected
            # A forced text that is cut off is not computed, unless it was drafted.
            assert LENGTHS[0] <= context.memory.seq_pos_max(0) < LENGTHS[0] + len(expected) - 1


@pytest.mark.parametrize("n_max", [1, 2, 5, 13])
def test_the_most_tokens_and_stop_texts_end_within_what_is_drafted(tiny, n_max):
    with context_of(tiny) as context, Generation(context) as generation:
        assert again(context, generation, [endless(tiny)], 40)[0] == [7] * 40
        assert again(context, generation, [endless(tiny)], n_max)[0] == [7] * n_max
        assert context.memory.seq_pos_max(0) == LENGTHS[0] + n_max - 2
        stop = 3 * tiny.vocab.token_to_piece(7).decode()
        assert again(context, generation, [endless(tiny)], 40, stops=(stop,))[0] == [7] * 3
        assert context.memory.seq_pos_max(0) == LENGTHS[0] + 1


def test_an_error_within_what_is_drafted_leaves_the_others(tiny):
    (x,) = tiny.vocab.tokenize("x", add_special=False)

    def chain(**options):
        likely = Sampler.logit_bias(tiny.vocab, {x: 1000.0})
        return SamplerChain([likely, Sampler.greedy()], **options)

    with context_of(tiny) as context, Generation(context) as generation:
        again(context, generation, [chain()], 40)
        grammar = GrammarSampler(tiny.vocab, 'root ::= "<tool>"', trigger_patterns=["x{6}"])
        context.memory.seq_rm(0)
        add(generation, 0, chain(grammar=grammar), 40)
        add(generation, 1, endless(tiny), 40)
        n_tokens, errors = 0, {}
        while len(generation):
            for seq_id, progress in generation.wait(60).items():
                n_tokens += (seq_id == 0) * len(progress.drawn.tokens)
                errors[seq_id] = progress.drawn.error
        assert isinstance(errors[0], pyllama.NativeError)
        assert errors[1] is None
        assert context.memory.seq_pos_max(0) == LENGTHS[0] + n_tokens - 1
        assert again(context, generation, [endless(tiny)], 5)[0] == [7] * 5


def test_a_memory_that_is_full_with_drafts_is_used_without_them(tiny):
    with Context(tiny, n_ctx=256, n_seq_max=2, n_threads=1, kv_unified=True) as context:
        generation = Generation(context, n_draft=64)
        generation.add(0, [7] * 100, 0, Run(endless(tiny), 0, 100, 156))
        generation.add(1, [7] * 100, 0, Run(endless(tiny), 1, 100, 156))
        sampled, error = [0, 0], None
        while error is None:
            for seq_id, progress in generation.wait(60).items():
                sampled[seq_id] += len(progress.drawn.tokens)
            error = generation.error
        assert isinstance(error, pyllama.MemoryFullError)
        assert sum(sampled) >= 57  # 56 cells hold all but the last of each
        generation.close()


@pytest.mark.parametrize("n_draft", [-1, 65, 1.5])
def test_numbers_of_drafted_tokens_that_cannot_be_are_refused(tiny, n_draft):
    with context_of(tiny) as context, pytest.raises((ValueError, TypeError), match="n_draft"):
        Generation(context, n_draft=n_draft)
