"""Sampler chains that a context runs on its device; without a GPU, llama.cpp's CPU backend."""

from __future__ import annotations

import gc
import threading

import pytest
from decoding import PROMPT

import pyllama
from pyllama import Batch, Context, Sampler, SamplerChain

CHAINS = {
    "greedy": lambda: [Sampler.greedy()],
    "top_k": lambda: [Sampler.top_k(5), Sampler.temp(0.8), Sampler.dist(3)],
    "top_p": lambda: [
        *(Sampler.top_k(40), Sampler.top_p(0.95), Sampler.min_p(0.05)),
        *(Sampler.temp(0.8), Sampler.dist(3)),
    ],
}


def generate(context, chain, count=8):
    context.decode(Batch.from_tokens(PROMPT))
    tokens = []
    for pos in range(len(PROMPT), len(PROMPT) + count):
        tokens.append(chain.sample(context))
        context.decode_token(tokens[-1], pos)
    return tokens


def attached(tiny, steps, **options):
    chain = SamplerChain(steps)
    return chain, Context(tiny, n_ctx=256, n_threads=1, samplers={0: chain}, **options)


def test_a_greedy_chain_selects_what_it_selects_alone(tiny, context):
    with SamplerChain([Sampler.greedy()]) as alone:
        expected = generate(context, alone)
    chain, used = attached(tiny, [Sampler.greedy()])
    with used:
        assert generate(used, chain) == expected


@pytest.mark.parametrize("name", CHAINS)
def test_the_same_seed_gives_the_same_tokens(tiny, name):
    found = []
    for _ in range(2):
        chain, used = attached(tiny, CHAINS[name]())
        with used:
            found.append(generate(used, chain))
    assert found[0] == found[1]


def test_what_devices_cannot_run_the_cpu_does(tiny, context):
    def steps():
        return [Sampler.penalties(tiny.vocab, last_n=16, repeat=1.5), Sampler.greedy()]

    with SamplerChain(steps()) as alone:
        expected = generate(context, alone)
    chain, used = attached(tiny, steps())
    with used:
        assert generate(used, chain) == expected


def test_each_sequence_has_its_own(write_tiny_model):
    # Vulkan wants each row of logits to begin at a multiple of 64 bytes.
    with pyllama.Model(write_tiny_model(extra_tokens=("a b",))) as model:
        assert model.vocab.n_tokens % 16 == 0
        check_each_sequence(model)


def check_each_sequence(model):
    chains = {seq_id: SamplerChain([Sampler.greedy()]) for seq_id in range(2)}
    with Context(model, n_ctx=512, n_seq_max=2, n_threads=1, samplers=chains) as context:
        batch = Batch(2)
        batch.add(7, 0, (0,), output=True)
        batch.add(8, 0, (1,), output=True)
        context.decode(batch)
        both = [chains[index].sample(context, index) for index in range(2)]
    for token, expected in zip((7, 8), both, strict=True):
        chain, used = attached(model, [Sampler.greedy()])
        with used:
            used.decode_token(token, 0)
            assert chain.sample(used) == expected


def test_no_output_there(tiny):
    chain, used = attached(tiny, [Sampler.greedy()])
    with used:
        used.decode_token(1, 0)
        with pytest.raises(IndexError, match="index 5"):
            chain.sample(used, 5)


def test_one_output_for_each_sequence(tiny):
    _, used = attached(tiny, [Sampler.greedy()])
    batch = Batch.from_tokens(PROMPT, outputs="all")
    with used, pytest.raises(pyllama.InvalidBatchError, match="1 outputs per sequence"):
        used.decode(batch)


def test_an_attached_chain_stays_as_it_is(tiny):
    chain, used = attached(tiny, [Sampler.greedy()])
    with pytest.raises(ValueError, match="attached"):
        chain.add(Sampler.greedy())
    with pytest.raises(ValueError, match="attached"):
        chain.remove()
    with pytest.raises(ValueError, match="attached"):
        Context(tiny, n_ctx=256, samplers={0: chain})
    used.close()
    chain.remove()
    chain.close()


def test_closing_a_chain_closes_its_context(tiny):
    chain, used = attached(tiny, [Sampler.greedy()])
    chain.close()
    assert used.closed


def test_a_context_keeps_its_chains(tiny):
    used = attached(tiny, [Sampler.greedy()])[1]
    gc.collect()
    with used:
        used.decode_token(1, 0)
        used.decode_token(2, 1)


@pytest.mark.parametrize(
    ("make", "error", "match"),
    [
        (lambda _: [1], TypeError, "map"),
        (lambda _: {0: 3}, TypeError, "SamplerChain"),
        (lambda _: {1: SamplerChain([Sampler.greedy()])}, ValueError, "sequence id"),
        (lambda _: {0: SamplerChain([Sampler.top_k(3)])}, ValueError, "select"),
        (
            lambda m: {
                0: SamplerChain(
                    [Sampler.greedy()], grammar=pyllama.GrammarSampler(m.vocab, 'root ::= "a"')
                )
            },
            ValueError,
            "grammar",
        ),
    ],
)
def test_what_cannot_be_attached_is_refused(tiny, make, error, match):
    with pytest.raises(error, match=match):
        Context(tiny, n_ctx=256, samplers=make(tiny))


def meanwhile(monkeypatch, work):
    """Have a thread do something while a context is made; it must wait for that."""
    describe, raised = Context._describe, []

    def run():
        try:
            work()
        except ValueError as error:
            raised.append(error)

    thread = threading.Thread(target=run)

    def describe_slowly(context, *arguments):
        describe(context, *arguments)
        thread.start()
        thread.join(0.2)  # long enough to do it, if it may
        assert thread.is_alive()

    monkeypatch.setattr(Context, "_describe", describe_slowly)
    return thread, raised


def test_a_chain_that_is_closed_while_its_context_is_made_closes_that(tiny, monkeypatch):
    chain = SamplerChain([Sampler.greedy()])
    thread, raised = meanwhile(monkeypatch, chain.close)
    context = Context(tiny, n_ctx=256, n_threads=1, samplers={0: chain})
    thread.join()
    assert not raised
    assert chain.closed
    assert context.closed


def test_a_thread_that_waited_for_a_chain_does_not_use_it_once_attached(tiny, monkeypatch):
    chain = SamplerChain([Sampler.greedy()])
    thread, raised = meanwhile(monkeypatch, chain.reset)
    with Context(tiny, n_ctx=256, n_threads=1, samplers={0: chain}) as context:
        thread.join()
        assert ["attached to a context" in str(error) for error in raised] == [True]
        assert len(generate(context, chain)) == 8
