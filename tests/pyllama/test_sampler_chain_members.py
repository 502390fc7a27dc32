"""Chains: samplers that join and leave, copies, vocabularies, and threads."""

from __future__ import annotations

import contextlib
import gc
import threading

import numpy as np
import pytest

import pyllama
from pyllama import Candidates, Sampler, SamplerChain


def most_likely(context, count):
    """The most likely tokens, best first."""
    return np.argsort(-context.logits())[:count].tolist()


# Adding, removing, copying


def test_a_chain_grows_and_shrinks(ready):
    best = most_likely(ready, 3)
    with SamplerChain() as chain:
        assert len(chain) == 0
        assert "empty" in repr(chain)
        with pytest.raises(ValueError, match="end with one that selects"):
            chain.sample(ready)
        chain.add(Sampler.top_k(3))
        assert not chain.selects
        with pytest.raises(ValueError, match="end with one that selects"):
            chain.sample(ready)
        chain.add(Sampler.greedy())
        assert chain.selects
        assert chain.sample(ready) == best[0]
        with pytest.raises(ValueError, match="end with one that selects"):
            chain.add(Sampler.temp(0.5))
        greedy = chain.remove()
        chain.add(Sampler.temp(100.0))
        chain.add(Sampler.dist(1))
        assert chain.names == ("top-k", "temp", "dist")
        assert {chain.sample(ready) for _ in range(100)} == set(best)
        assert chain.remove(0).name == "top-k"
        assert chain.names == ("temp", "dist")
    with SamplerChain([greedy]) as chain:
        assert chain.sample(ready) == best[0]


def test_a_chain_is_a_sequence_of_its_samplers():
    steps = [Sampler.top_k(3), Sampler.temp(0.5), Sampler.greedy()]
    with SamplerChain(steps) as chain:
        assert list(chain) == steps
        assert chain[0] is steps[0]
        assert chain[-1] is steps[-1]
        assert len(chain) == 3
        for index in (3, -4):
            with pytest.raises(IndexError):
                chain[index]
            with pytest.raises(IndexError):
                chain.remove(index)
        for index in ("0", 0.0, None, slice(0, 2)):
            with pytest.raises(TypeError):
                chain[index]
            with pytest.raises(TypeError):
                chain.remove(index)


def test_a_removed_sampler_keeps_its_state(tiny, ready):
    best = most_likely(ready, 3)
    with SamplerChain([Sampler.penalties(tiny.vocab, present=1e6), Sampler.greedy()]) as chain:
        chain.sample(ready)
        penalties = chain.remove(0)
    with SamplerChain([penalties, Sampler.greedy()]) as chain:
        assert chain.sample(ready) == best[1]


def test_a_sampler_works_inside_its_chain(tiny, ready):
    best = most_likely(ready, 2)
    with SamplerChain([Sampler.penalties(tiny.vocab, present=1e6), Sampler.greedy()]) as chain:
        chain[0].accept(best[0])
        assert chain.sample(ready) == best[1]
        chain[0].reset()
        assert chain.sample(ready) == best[0]
        assert chain[1].apply(Candidates(ready.logits())).token == best[0]
        with chain[0].clone() as copy:
            assert copy.apply(Candidates(ready.logits())).logit[best[0]] < -1e5
        assert not chain[0].closed
        chain[0].close()  # its chain owns it
        assert chain.sample(ready) == best[1]


def test_samplers_are_closed_with_their_chain():
    for drop in (False, True):
        chain = SamplerChain([Sampler.greedy()])
        greedy = chain[0]
        chain.close()
        if drop:
            del chain
            gc.collect()
        assert greedy.closed
        for use in (greedy.reset, greedy.clone):
            with pytest.raises(pyllama.ClosedError):
                use()
        with pytest.raises(ValueError, match="chain"):
            SamplerChain([greedy])


def test_a_closed_sampler_cannot_join():
    greedy = Sampler.greedy()
    greedy.close()
    with pytest.raises(pyllama.ClosedError):
        SamplerChain([greedy])


def test_a_chain_is_not_a_sampler_of_a_chain():
    with SamplerChain([Sampler.greedy()]) as inner, pytest.raises(TypeError, match="Sampler"):
        SamplerChain([inner])


def test_a_clone_continues_and_goes_its_own_way(tiny, ready):
    def make():
        penalties = Sampler.penalties(tiny.vocab, present=0.5)
        return SamplerChain([penalties, Sampler.temp(1.5), Sampler.dist(3)])

    with make() as chain, make() as same:
        first = [chain.sample(ready) for _ in range(10)]
        with chain.clone() as copy:
            assert copy.names == chain.names
            rest = [chain.sample(ready) for _ in range(10)]
            assert [copy.sample(ready) for _ in range(10)] == rest
        assert [same.sample(ready) for _ in range(20)] == first + rest


def test_a_chain_goes_back_to_where_it_was_cloned(tiny, ready):
    with SamplerChain(
        [Sampler.penalties(tiny.vocab, present=0.5), Sampler.temp(1.5), Sampler.dist(3)]
    ) as chain:
        chain.sample(ready)
        saved = chain.clone()
        first = [chain.sample(ready) for _ in range(10)]
        chain.copy_state(saved)
        assert [chain.sample(ready) for _ in range(10)] == first
        chain.copy_state(chain)
        saved.copy_state(chain)
        assert saved.sample(ready) == chain.sample(ready)


def test_only_the_state_of_a_like_chain_is_copied():
    chain = SamplerChain([Sampler.top_k(3), Sampler.greedy()])
    alike = SamplerChain([Sampler.top_k(3), Sampler.greedy()])
    copy = chain.clone()
    with pytest.raises(ValueError, match="clone"):
        chain.copy_state(alike)
    with pytest.raises(TypeError, match="source"):
        chain.copy_state(Sampler.greedy())
    copy.remove(0)
    with pytest.raises(ValueError, match="clone"):
        chain.copy_state(copy)
    copy.close()
    with pytest.raises(pyllama.ClosedError):
        chain.copy_state(copy)


def test_the_seed_of_a_chain(tiny):
    with SamplerChain([Sampler.top_k(3), Sampler.dist(77)]) as chain:
        assert chain.seed == 77
        assert chain[1].seed == 77
        assert chain.clone().seed == 77
    with SamplerChain([Sampler.greedy()]) as chain:
        assert chain.seed is None


def test_counters(ready):
    with SamplerChain([Sampler.top_k(3), Sampler.greedy()], no_perf=False) as chain:
        for _ in range(5):
            chain.sample(ready)
        perf = chain.perf()
        assert (perf.n_sample, perf.n_resampled) == (5, 0)
        assert perf.t_sample_ms > 0
        chain.perf_reset()
        assert chain.perf() == pyllama.SamplerPerf(0.0, 0, 0)
    with SamplerChain([Sampler.greedy()]) as chain:
        chain.sample(ready)
        assert chain.perf() == pyllama.SamplerPerf(0.0, 1, 0)


def test_apply_of_a_chain(ready):
    with SamplerChain([Sampler.top_k(3), Sampler.temp(0.5)]) as chain:
        left = chain.apply(Candidates(ready.logits()))
    assert left.id.tolist() == most_likely(ready, 3)
    np.testing.assert_allclose(left.logit, 2 * ready.logits()[left.id])
    assert left.selected is None


# Vocabularies


FOR_A_VOCABULARY = {
    "penalties": lambda vocab: Sampler.penalties(vocab, repeat=1.1),
    "dry": lambda vocab: Sampler.dry(vocab, multiplier=1.0, breakers=()),
    "logit-bias": lambda vocab: Sampler.logit_bias(vocab, {1: 1.0}),
    "infill": Sampler.infill,
    "grammar": lambda vocab: pyllama.GrammarSampler(vocab, "root ::= [a-z]*"),
}


@pytest.mark.parametrize("name", FOR_A_VOCABULARY)
def test_samplers_for_another_model_are_refused(tiny_model_path, tiny, ready, name):
    make = FOR_A_VOCABULARY[name]
    with pyllama.Model(tiny_model_path, vocab_only=True) as other:
        chain = SamplerChain([make(other.vocab), Sampler.greedy()])
        with chain, pytest.raises(ValueError, match="context must be of the model"):
            chain.sample(ready)
        with SamplerChain([make(tiny.vocab), Sampler.greedy()]) as chain:
            chain.sample(ready)
            chain.remove()
            with pytest.raises(ValueError, match="another model's vocabulary"):
                chain.add(make(other.vocab))
        with pytest.raises(ValueError, match="another model's vocabulary"):
            SamplerChain([make(tiny.vocab), make(other.vocab), Sampler.greedy()])
    with pyllama.Model(tiny_model_path, vocab_only=True) as other:
        mirostat = Sampler.mirostat(other.vocab, 1)
        with SamplerChain([mirostat]) as chain, pytest.raises(ValueError, match="context must be"):
            chain.sample(ready)


# Threads


def test_a_sampler_moves_between_chains_while_threads_use_it(ready):
    sampler = Sampler.top_k(3)
    given = Candidates(ready.logits())
    stop = threading.Event()
    unexpected = []

    def use():
        try:
            while not stop.is_set():
                assert len(sampler.apply(given)) == 3
        except BaseException as error:
            unexpected.append(error)

    threads = [threading.Thread(target=use) for _ in range(3)]
    for thread in threads:
        thread.start()
    with SamplerChain() as one, SamplerChain() as other:
        for _ in range(200):
            one.add(sampler)
            other.add(one.remove())
            other.remove()
    stop.set()
    for thread in threads:
        thread.join()
    assert not unexpected


def test_threads_copy_chains_crosswise(ready):
    one = SamplerChain([Sampler.temp(1.5), Sampler.dist(1)])
    two = one.clone()
    threads = [
        threading.Thread(target=lambda a=a, b=b: [a.copy_state(b) for _ in range(300)])
        for a, b in ((one, two), (two, one))
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
        assert not thread.is_alive()
    assert one.sample(ready) >= 0


def test_a_model_that_is_closed_while_a_chain_is_made_waits_for_it(tiny_model_path, monkeypatch):
    adopt, closing = pyllama.Model._adopt, []

    def adopt_and_close(model, dependent):
        adopt(model, dependent)
        if not isinstance(dependent, SamplerChain):
            return
        closing.append(threading.Thread(target=model.close))
        closing[0].start()
        closing[0].join(0.2)  # long enough to free the chain, if it may
        assert closing[0].is_alive()

    monkeypatch.setattr(pyllama.Model, "_adopt", adopt_and_close)
    model = pyllama.Model(tiny_model_path)
    sampler = Sampler.infill(model.vocab)
    with contextlib.suppress(pyllama.ClosedError):
        SamplerChain([sampler, Sampler.greedy()])
    closing[0].join()
    assert model.closed
