"""Samplers written in Python: what they see, what they may do, and how long they live."""

from __future__ import annotations

import gc
import threading
import weakref

import numpy as np
import pytest
from decoding import PROMPT, run_python

import pyllama
from pyllama import Batch, Candidates, PythonSampler, Sampler, SamplerChain


class Ban(PythonSampler):
    """Rules out what was accepted before."""

    name = "ban"

    def __init__(self):
        self.seen = []

    def apply(self, candidates):
        return candidates.keep(~np.isin(candidates.id, self.seen))

    def accept(self, token):
        self.seen.append(token)

    def reset(self):
        self.seen.clear()


class Last(PythonSampler):
    selects = True

    def apply(self, candidates):
        return candidates.select(len(candidates) - 1)


def test_it_sees_the_logits(ready):
    seen = []

    def look(candidates):
        seen.append(candidates)
        return candidates

    with SamplerChain([Sampler.python(look), Sampler.greedy()]) as chain:
        token = chain.sample(ready)
        assert chain.names == ("look", "greedy")
    np.testing.assert_array_equal(seen[0].logit, ready.logits())
    assert seen[0].id.tolist() == list(range(len(ready.logits())))
    assert token == ready.logits().argmax()


def test_what_it_keeps_outlives_the_call(ready):
    kept = []
    with SamplerChain([Sampler.python(lambda c: kept.append(c) or c), Sampler.greedy()]) as chain:
        for _ in range(50):
            chain.sample(ready)
    for candidates in kept:
        np.testing.assert_array_equal(candidates.logit, ready.logits())


def test_it_narrows_reweights_and_selects(ready):
    logits = ready.logits()
    order = np.argsort(-logits)

    def best_three_reversed(candidates):
        chosen = candidates.keep(order[:3])
        return chosen.with_logits(-chosen.logit)

    with SamplerChain([Sampler.python(best_three_reversed), Sampler.greedy()]) as chain:
        assert chain.sample(ready) == order[2]
    with SamplerChain([Sampler.top_k(5), Sampler.python(Last())]) as chain:
        assert chain.sample(ready) == order[4]


def test_it_is_told_of_tokens_and_resets(ready):
    order = np.argsort(-ready.logits()).tolist()
    ban = Ban()
    with SamplerChain([Sampler.python(ban), Sampler.greedy()]) as chain:
        assert [chain.sample(ready) for _ in range(4)] == order[:4]
        assert ban.seen == order[:4]
        chain.accept(order[4])
        assert chain.sample(ready) == order[5]
        chain.reset()
        assert chain.sample(ready) == order[0]


def test_a_clone_goes_its_own_way(ready):
    order = np.argsort(-ready.logits()).tolist()
    with SamplerChain([Sampler.python(Ban()), Sampler.greedy()]) as chain:
        chain.sample(ready)
        with chain.clone() as copy:
            assert chain.sample(ready) == copy.sample(ready) == order[1]
            copy.accept(order[2])
            assert chain.sample(ready) == order[2]
            assert copy.sample(ready) == order[3]
        copy = chain[0].clone()
        assert copy.name == "ban"
        assert copy.apply(Candidates(ready.logits())).id.tolist() == sorted(order[3:])


def test_a_function_is_shared_by_clones():
    with Sampler.python(lambda candidates: candidates) as sampler, sampler.clone() as copy:
        assert len(copy.apply(Candidates([1.0, 2.0]))) == 2


class _Trouble(Exception):
    pass


class Troubled(PythonSampler):
    def __init__(self, where, error=_Trouble):
        self.where, self.error = where, error

    def _maybe(self, where):
        if where == self.where:
            raise self.error(where)

    def apply(self, candidates):
        self._maybe("apply")
        return candidates

    def accept(self, token):
        self._maybe("accept")

    def reset(self):
        self._maybe("reset")

    def clone(self):
        self._maybe("clone")
        return super().clone()


@pytest.mark.parametrize("error", [_Trouble, KeyboardInterrupt, SystemExit, MemoryError])
@pytest.mark.parametrize(
    ("where", "use"),
    [
        ("apply", lambda chain, context: chain.sample(context)),
        ("apply", lambda chain, _: chain.apply(Candidates([1.0]))),
        ("apply", lambda chain, _: chain[1].apply(Candidates([1.0]))),
        ("accept", lambda chain, context: chain.sample(context)),
        ("accept", lambda chain, _: chain.accept(1)),
        ("reset", lambda chain, _: chain.reset()),
        ("clone", lambda chain, _: chain.clone()),
        ("clone", lambda chain, _: chain[1].clone()),
    ],
)
def test_what_it_raises_comes_out(ready, where, use, error):
    troubled = Troubled(where, error)
    with SamplerChain([Sampler.top_k(9), Sampler.python(troubled), Sampler.greedy()]) as chain:
        with pytest.raises(error) as caught:
            use(chain, ready)
        assert type(caught.value) is error
        # And the chain still works once there is no more trouble.
        troubled.where = None
        assert chain.sample(ready) == ready.logits().argmax()


@pytest.mark.parametrize(
    ("apply", "error", "message"),
    [
        (lambda _: None, TypeError, "must return Candidates"),
        (lambda c: c.logit, TypeError, "must return Candidates"),
        (lambda c: Candidates(np.zeros(len(c) + 1)), ValueError, "out of"),
        (lambda c: c.select(0), ValueError, "selects is False"),
        (lambda c: c.with_logits(np.full(len(c), np.nan)), ValueError, "NaN"),
        (lambda c: c.keep(np.zeros(len(c), bool)), ValueError, "leave a candidate"),
    ],
)
def test_what_it_returns_is_checked(ready, apply, error, message):
    chain = SamplerChain([Sampler.python(apply), Sampler.greedy()])
    with chain, pytest.raises(error, match=message):
        chain.sample(ready)


def test_one_that_selects_must_select(ready):
    class Undecided(Last):
        def apply(self, candidates):
            return candidates

    chain = SamplerChain([Sampler.python(Undecided())])
    with chain, pytest.raises(ValueError, match="must select"):
        chain.sample(ready)


def test_tokens_that_do_not_exist(ready):
    def invent(candidates):
        return Candidates([5.0], ids=[10**9])

    with SamplerChain([Sampler.python(invent), Sampler.greedy()]) as chain:
        assert chain.sample(ready) == 10**9
    with (
        SamplerChain(
            [Sampler.python(invent), Sampler.greedy()],
            grammar=pyllama.GrammarSampler(ready.model.vocab, 'root ::= "a"'),
        ) as chain,
        pytest.raises(pyllama.LlamaError),
    ):
        chain.sample(ready)


@pytest.mark.parametrize("wrong", [None, 3, "greedy", Ban, object()])
def test_what_is_no_sampler(wrong):
    with pytest.raises(TypeError, match="PythonSampler or a function"):
        Sampler.python(wrong)


def test_a_clone_must_be_a_sampler():
    class Odd(Ban):
        def clone(self):
            return "copy"

    with pytest.raises(TypeError, match=r"clone\(\) must return"):
        Sampler.python(Odd()).clone()


def test_it_is_kept_as_long_as_its_sampler(ready):
    ban = Ban()
    seen = weakref.ref(ban)
    chain = SamplerChain([Sampler.python(ban), Sampler.greedy()])
    del ban
    gc.collect()
    assert seen() is not None
    chain.sample(ready)
    copies = [chain.clone() for _ in range(3)]
    chain.close()
    gc.collect()
    assert seen() is None
    for copy in copies:
        copy.sample(ready)


def test_one_that_was_taken_out_lives_on(ready):
    chain = SamplerChain([Sampler.python(Ban()), Sampler.greedy()])
    chain.sample(ready)
    ban = chain.remove(0)
    chain.close()
    assert len(ban.apply(Candidates(ready.logits()))) == len(ready.logits()) - 1


@pytest.mark.parametrize(
    "use",
    [
        lambda chain, _: chain.close(),
        lambda chain, _: chain.reset(),
        lambda chain, context: chain.sample(context),
        lambda chain, _: chain.remove(),
        lambda chain, _: chain.add(Sampler.top_k(1)),
        lambda chain, _: chain.clone(),
        lambda chain, _: chain.accept(1),
        lambda chain, _: chain[0].reset(),
        lambda chain, _: chain[0].clone(),
        lambda chain, _: chain.perf(),
    ],
)
def test_it_must_not_use_its_chain(ready, use):
    chains = []

    def meddle(candidates):
        use(chains[0], ready)
        return candidates

    with SamplerChain([Sampler.python(meddle), Sampler.greedy()]) as chain:
        chains.append(chain)
        with pytest.raises(RuntimeError, match="at work"):
            chain.sample(ready)
        assert not chain.closed


def test_it_may_use_another_chain_and_the_context(tiny):
    with pyllama.Context(tiny, n_ctx=256, n_threads=1) as context:
        context.decode(Batch.from_tokens(PROMPT))
        best = int(context.logits().argmax())
        other = SamplerChain([Sampler.python(Ban()), Sampler.greedy()])

        def meddle(candidates):
            other.sample(context)
            context.memory.clear()
            context.decode(Batch.from_tokens([5, 6, 7]))
            context.close()
            return candidates

        grammar = pyllama.GrammarSampler(tiny.vocab, "root ::= [0-9]+")
        with (
            other,
            SamplerChain([Sampler.python(meddle), Sampler.greedy()]) as chain,
        ):
            assert chain.sample(context) == best
        with pyllama.Context(tiny, n_ctx=256, n_threads=1) as context:
            context.decode(Batch.from_tokens(PROMPT))
            logits = context.logits()
            closing = Sampler.python(lambda c: context.close() or c)
            with SamplerChain([closing, Sampler.greedy()], grammar=grammar) as chain:
                # Resampled under the grammar, though the context is gone.
                digits = grammar.allowed_tokens()
                assert chain.sample(context) == digits[logits[digits].argmax()]
                assert chain.perf().n_resampled == 1


def test_chains_with_python_in_several_threads(tiny):
    wrong = []

    def work(number):
        with pyllama.Context(tiny, n_ctx=256, n_threads=1) as context:
            context.decode(Batch.from_tokens([1, number, 3]))
            order = np.argsort(-context.logits()).tolist()
            with SamplerChain([Sampler.python(Ban()), Sampler.greedy()]) as chain:
                drawn = [chain.sample(context) for _ in range(30)]
            if drawn != order[:30]:
                wrong.append(drawn)

    threads = [threading.Thread(target=work, args=[number]) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


def test_the_interpreter_ends_with_one_alive(tiny_model_path):
    written = run_python(
        """
        import sys
        import pyllama

        model = pyllama.Model(sys.argv[1])
        context = pyllama.Context(model, n_ctx=256)
        context.decode(pyllama.Batch.from_tokens([1, 2, 3]))
        chain = pyllama.SamplerChain(
            [pyllama.Sampler.python(lambda c: c), pyllama.Sampler.greedy()],
            grammar=pyllama.GrammarSampler(model.vocab, "root ::= [a-z]+"),
        )
        chain.sample(context)
        chain.itself = chain
        print("done")
        """,
        tiny_model_path,
    )
    assert written == "done\n"
