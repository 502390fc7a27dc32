"""Many chains at once: the same tokens as one after the other, and errors one by one."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress

import numpy as np
import pytest
from decoding import PROMPT

import pyllama
from pyllama import Batch, Context, GrammarSampler, Sampler, SamplerChain, sample_each

N_SEQUENCES = 16

CHAINS = {
    "greedy": lambda _vocab, _seed: SamplerChain([Sampler.greedy()]),
    "dist": lambda _vocab, seed: SamplerChain([Sampler.top_k(20), Sampler.dist(seed)]),
    "penalties": lambda vocab, seed: SamplerChain(
        [Sampler.penalties(vocab, last_n=8, repeat=1.5), Sampler.dist(seed)]
    ),
    "grammar": lambda vocab, seed: SamplerChain(
        [Sampler.dist(seed)], grammar=GrammarSampler(vocab, "root ::= [a-z]+")
    ),
    "biased": lambda vocab, seed: SamplerChain(
        [Sampler.logit_bias(vocab, {seed: -1.0, seed + 1: 2.0}), Sampler.greedy()]
    ),
}


@pytest.fixture
def wide(tiny):
    """A context with an output for each of many sequences."""
    with Context(tiny, n_ctx=64 * N_SEQUENCES, n_seq_max=N_SEQUENCES, n_threads=1) as context:
        batch = Batch(N_SEQUENCES)
        for seq_id in range(N_SEQUENCES):
            batch.add(5 + seq_id, 0, (seq_id,), output=True)
        context.decode(batch)
        yield context


def chains_of(vocab, make):
    return {output: make(vocab, output) for output in range(N_SEQUENCES)}


@pytest.mark.parametrize("n_threads", [1, 2, 7])
@pytest.mark.parametrize("kind", CHAINS)
def test_the_tokens_are_those_of_one_after_the_other(wide, tiny, kind, n_threads):
    apart, together = (chains_of(tiny.vocab, CHAINS[kind]) for _ in range(2))
    for _ in range(5):
        expected = {output: chain.sample(wide, output) for output, chain in apart.items()}
        assert sample_each(wide, together, n_threads=n_threads) == expected


def test_several_threads_at_once(wide, tiny):
    """Contexts of other threads, which share the helpers."""
    with ThreadPoolExecutor(4) as pool, Context(tiny, n_ctx=64, n_threads=3) as other:
        other.decode(Batch.from_tokens(PROMPT, outputs="all"))
        running = []
        for context, count in ((wide, N_SEQUENCES), (other, len(PROMPT))) * 4:
            expected = {i: int(context.logits(i).argmax()) for i in range(count)}
            chains = {i: SamplerChain([Sampler.greedy()]) for i in range(count)}
            running.append(
                (pool.submit(lambda c=context, o=chains: [sample_each(c, o) for _ in range(50)]),
                 expected)
            )  # fmt: skip
        for future, expected in running:
            assert future.result() == [expected] * 50


def test_nothing_to_sample(wide):
    assert sample_each(wide, {}) == {}


def test_negative_outputs_count_from_the_end(wide):
    with SamplerChain([Sampler.greedy()]) as chain:
        assert sample_each(wide, {-2: chain}) == {-2: wide.logits(-2).argmax()}


def test_one_that_fails_leaves_the_others_their_tokens(wide, tiny):
    vocab = tiny.vocab
    nothing = Sampler.logit_bias(vocab, dict.fromkeys(range(vocab.n_tokens), -float("inf")))
    chains = chains_of(vocab, CHAINS["greedy"])
    chains[3] = SamplerChain([nothing, Sampler.greedy()])
    sampled = sample_each(wide, chains, n_threads=4)
    error = sampled.pop(3)
    assert isinstance(error, pyllama.SamplingError)
    assert "left no candidate" in str(error)
    assert sampled == {i: wide.logits(i).argmax() for i in range(N_SEQUENCES) if i != 3}


def test_what_a_helper_caught_arrives(wide, tiny):
    """An exception is kept by the thread that it was thrown on."""

    (x,) = tiny.vocab.tokenize("x", add_special=False)

    def failing():
        likely = Sampler.logit_bias(tiny.vocab, {x: 1000.0})
        grammar = GrammarSampler(tiny.vocab, 'root ::= "<tool>"', trigger_patterns=["x"])
        return SamplerChain([likely, Sampler.greedy()], grammar=grammar)

    for _ in range(20):
        sampled = sample_each(wide, {i: failing() for i in range(N_SEQUENCES)}, n_threads=8)
        for output, error in sampled.items():
            with failing() as chain, pytest.raises(pyllama.NativeError) as alone:
                chain.sample(wide, output)
            assert type(error) is pyllama.NativeError
            assert "grammar stack" in str(error)
            assert str(error) == str(alone.value)


def test_an_output_that_does_not_exist_changes_no_chain(wide, tiny):
    chains = chains_of(tiny.vocab, CHAINS["dist"])
    extra = SamplerChain([Sampler.dist(0)])
    with pytest.raises(IndexError, match="no output at index 16"):
        sample_each(wide, {**chains, N_SEQUENCES: extra})
    fresh = chains_of(tiny.vocab, CHAINS["dist"])
    assert sample_each(wide, chains) == sample_each(wide, fresh)


def test_refused(wide, tiny):
    chain = SamplerChain([Sampler.greedy()])
    with pytest.raises(ValueError, match="each chain once"):
        sample_each(wide, {0: chain, 1: chain})
    with pytest.raises(ValueError, match="written in Python"):
        sample_each(wide, {0: SamplerChain([Sampler.python(lambda c: c), Sampler.greedy()])})
    with pytest.raises(ValueError, match="must end with one that selects"):
        sample_each(wide, {0: SamplerChain([Sampler.top_k(3)])})
    with pytest.raises(TypeError, match="SamplerChain objects"):
        sample_each(wide, {0: Sampler.greedy()})
    with pytest.raises(ValueError, match="n_threads"):
        sample_each(wide, {0: chain}, n_threads=0)
    with Context(tiny, n_ctx=64, samplers={0: chain}) as attached:
        attached.decode(Batch.from_tokens(PROMPT))
        with pytest.raises(ValueError, match="attached"):
            sample_each(attached, {-1: chain})


def test_a_closed_chain_is_refused(wide):
    chain = SamplerChain([Sampler.greedy()])
    chain.close()
    with pytest.raises(pyllama.ClosedError):
        sample_each(wide, {0: chain})


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_logits_of_broken_weights(write_tiny_model, value):
    """An error for each, greedy or not."""
    path = write_tiny_model(deltas={"output.weight": np.float32(value)})
    kinds = [Sampler.greedy, lambda: Sampler.dist(1)]
    with pyllama.Model(path) as model, Context(model, n_ctx=64, n_seq_max=2) as context:
        batch = Batch(2)
        for seq_id in range(2):
            batch.add(5, 0, (seq_id,), output=True)
        context.decode(batch)
        assert not np.isfinite(context.logits(0)).any()
        chains = {output: SamplerChain([make()]) for output, make in enumerate(kinds)}
        for error in sample_each(context, chains).values():
            assert isinstance(error, pyllama.SamplingError)
            assert "NaN or infinite" in str(error)


def test_closing_waits_for_it(tiny):
    """A chain that another thread closes meanwhile is freed afterwards."""
    with Context(tiny, n_ctx=64, n_threads=1) as context:
        context.decode(Batch.from_tokens(PROMPT, outputs="all"))
        for _ in range(50):
            chains = {i: SamplerChain([Sampler.dist(i)]) for i in range(len(PROMPT))}
            closing = threading.Thread(target=lambda c=chains: [x.close() for x in c.values()])
            closing.start()
            with suppress(pyllama.ClosedError):
                sample_each(context, chains, n_threads=3)
            closing.join()
