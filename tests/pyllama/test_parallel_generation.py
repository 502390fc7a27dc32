"""Many sequences that go on by several tokens: the same as one step after the other."""

from __future__ import annotations

import copy
import pickle
import threading
import time

import numpy as np
import pytest

import pyllama
from pyllama import (
    Batch,
    Context,
    Forcing,
    GrammarSampler,
    Run,
    Sampler,
    SamplerChain,
    generate_each,
)

N_SEQUENCES = 4
N_STEPS = 12
LENGTHS = (3, 1, 5, 2)

CHAINS = {
    "greedy": lambda _vocab, _seed: SamplerChain([Sampler.greedy()]),
    "dist": lambda _vocab, seed: SamplerChain([Sampler.top_k(20), Sampler.dist(seed)]),
    "penalties": lambda vocab, seed: SamplerChain(
        [Sampler.penalties(vocab, last_n=8, repeat=1.5), Sampler.dist(seed)]
    ),
    "grammar": lambda vocab, seed: SamplerChain(
        [Sampler.dist(seed)], grammar=GrammarSampler(vocab, "root ::= [a-z]+")
    ),
}


def context_of(model, **options) -> Context:
    return Context(model, n_ctx=64 * N_SEQUENCES, n_seq_max=N_SEQUENCES, n_threads=1, **options)


def beginning() -> tuple[Batch, list[int]]:
    """Prompts of several lengths in one batch, and the outputs after them."""
    batch, outputs = Batch(64), []
    for seq_id, length in enumerate(LENGTHS):
        prompt = np.arange(5 + seq_id, 5 + seq_id + length, dtype=np.int32)
        batch.add_tokens(prompt, pos=0, seq_id=seq_id, outputs="last")
        outputs.append(len(batch) - 1)
    return batch, outputs


def runs_of(chains, outputs, **options) -> dict[int, Run]:
    return {
        output: Run(chains[seq_id], seq_id, LENGTHS[seq_id], **{"max_tokens": N_STEPS, **options})
        for seq_id, output in enumerate(outputs)
    }


def step_by_step(model, make) -> list[list[int]]:
    """By decode() and sample(), up to an end of generation."""
    chains = [make(model.vocab, seed) for seed in range(N_SEQUENCES)]
    found: list[list[int]] = [[] for _ in chains]
    with context_of(model) as context:
        batch, outputs = beginning()
        rows = dict(enumerate(outputs))
        for _ in range(N_STEPS):
            context.decode(batch)
            for seq_id, output in rows.items():
                found[seq_id].append(chains[seq_id].sample(context, output))
            batch.clear()
            going_on = [i for i in rows if not model.vocab.is_eog(found[i][-1])]
            for seq_id in going_on:
                pos = LENGTHS[seq_id] + len(found[seq_id]) - 1
                batch.add(found[seq_id][-1], pos, (seq_id,), output=True)
            rows = {seq_id: row for row, seq_id in enumerate(going_on)}
            if not rows:
                break
    return found


@pytest.mark.parametrize("n_threads", [1, 3])
@pytest.mark.parametrize("kind", CHAINS)
def test_the_tokens_are_those_of_single_steps(tiny, kind, n_threads):
    chains = [CHAINS[kind](tiny.vocab, seed) for seed in range(N_SEQUENCES)]
    taken: list[list[int]] = [[] for _ in chains]
    with context_of(tiny) as context:
        batch, outputs = beginning()
        rows = dict(enumerate(outputs))
        while rows:
            runs = {
                row: Run(chains[i], i, LENGTHS[i] + len(taken[i]), N_STEPS - len(taken[i]))
                for i, row in rows.items()
            }
            options = {"max_steps": 5, "seconds": 60, "n_threads": n_threads}
            generated = generate_each(context, batch, runs, **options)
            assert generated.error is None
            for i, row in rows.items():
                taken[i] += generated[row].tokens
            batch.clear()
            going_on = [
                i for i in rows if len(taken[i]) < N_STEPS and not tiny.vocab.is_eog(taken[i][-1])
            ]
            for i in going_on:
                batch.add(taken[i][-1], LENGTHS[i] + len(taken[i]) - 1, (i,), output=True)
            rows = {i: row for row, i in enumerate(going_on)}
    assert taken == step_by_step(tiny, CHAINS[kind])


def test_one_step_leaves_its_outputs(tiny):
    chains = [SamplerChain([Sampler.greedy()]) for _ in LENGTHS]
    with context_of(tiny) as context:
        batch, outputs = beginning()
        generated = generate_each(context, batch, runs_of(chains, outputs))
        assert generated.n_steps == 1
        for output in outputs:
            assert generated[output].tokens == [context.logits(output).argmax()]


def test_it_pauses_at_a_stop_text(tiny):
    """With the token that completes it; the others go on."""
    chains = [CHAINS["grammar"](tiny.vocab, seed) for seed in range(N_SEQUENCES)]
    whole = step_by_step(tiny, CHAINS["grammar"])
    text = "".join(tiny.vocab.token_to_piece(token).decode() for token in whole[0])
    stop = text[2:4]
    with context_of(tiny) as context:
        batch, outputs = beginning()
        runs = {
            outputs[0]: Run(chains[0], 0, LENGTHS[0], N_STEPS, stops=("never", stop)),
        }
        generated = generate_each(context, batch, runs, max_steps=N_STEPS, seconds=60)
    drawn = generated[outputs[0]]
    assert drawn.tokens == whole[0][: len(drawn.tokens)]
    shown = [tiny.vocab.token_to_piece(token).decode() for token in drawn.tokens]
    assert stop in "".join(shown)
    assert stop not in "".join(shown[:-1])


@pytest.mark.parametrize(
    ("stop", "text", "piece", "n_drawn"),
    [
        ("xy", b"x", "y", 1),
        ("yx", b"x", "y", N_STEPS),
        ("\u20ac", b"\xe2\x82", "\u20ac", 1),  # the last byte of a character
        ("\0", b"", "\0", 1),
        ("\ud800", b"", "x", N_STEPS),
        ("a\ufffd", b"a\xc3", "x", 1),  # it stands for bytes that are no UTF-8
        ("xy", b"", "<unk>", 1),  # it shows no text, so the stop text may be around it
    ],
)
def test_it_finds_any_stop_text_that_began_before(tiny, stop, text, piece, n_drawn):
    """The sequence goes on with one token again and again."""
    *_, token = tiny.vocab.tokenize(piece, add_special=False, parse_special=True)
    chain = SamplerChain([Sampler.logit_bias(tiny.vocab, {token: 1e6}), Sampler.greedy()])
    with context_of(tiny) as context:
        run = Run(chain, 0, 1, N_STEPS, stops=(stop,), text=text)
        batch = Batch.from_tokens([5])
        generated = generate_each(context, batch, {0: run}, max_steps=N_STEPS, seconds=60)
    assert generated[0].tokens == [token] * n_drawn


def test_it_tells_where_the_text_may_end(tiny):
    grammar = 'root ::= "a" [b-c] "hello world"? '
    with context_of(tiny) as context:
        batch, outputs = beginning()
        bound = SamplerChain([Sampler.greedy()], grammar=GrammarSampler(tiny.vocab, grammar))
        free = SamplerChain(
            [Sampler.dist(1)], grammar=GrammarSampler(tiny.vocab, "root ::= [a-c]*")
        )
        runs = {
            outputs[0]: Run(bound, 0, LENGTHS[0], 2, tells_ends=True),
            outputs[1]: Run(free, 1, LENGTHS[1], 3, tells_ends=True),
        }
        generated = generate_each(context, batch, runs, max_steps=8, seconds=60)
    assert generated[outputs[0]].may_end == [False, True]
    assert all(generated[outputs[1]].may_end)


FORCING = 'root ::= "so: " [a-z] ", and so on: " [a-z] " the end" [a-z]'


def forced_by_hand(model, never=(), n_max=100) -> list[int]:
    """Sampled token by token, with the tokens of forced texts between."""
    chain = SamplerChain([Sampler.greedy()], grammar=GrammarSampler(model.vocab, FORCING))
    rule, found = Forcing(2, 32, never), []
    with context_of(model) as context:
        batch, outputs = beginning()
        context.decode(batch)
        output = outputs[0]
        while True:
            added = [chain.sample(context, output)]
            if not model.vocab.is_eog(added[0]):
                forced = chain.grammar.forced_tokens(rule)
                for token in forced:
                    chain.accept(token)
                added += forced
            pos = LENGTHS[0] + len(found)
            found += added
            if model.vocab.is_eog(added[0]) or len(found) >= n_max:
                return found[:n_max]
            batch.clear()
            batch.add_tokens(added, pos=pos, seq_id=0, outputs="last")
            context.decode(batch)
            output = len(added) - 1


def test_a_rule_can_be_copied_once_it_was_used(tiny):
    """It keeps its tokens as C reads them, so that many are not copied for each token."""
    rule = Forcing(never=tuple(range(200)))
    chain = SamplerChain([Sampler.greedy()], grammar=GrammarSampler(tiny.vocab, FORCING))
    chain.grammar.forced_tokens(rule)
    kept = rule._never
    chain.grammar.forced_tokens(rule)
    assert rule._never is kept
    assert pickle.loads(pickle.dumps(rule)) == copy.deepcopy(rule) == rule


@pytest.mark.parametrize("max_steps", [1, 3, 50])
@pytest.mark.parametrize("n_max", [6, 100])
@pytest.mark.parametrize("biased", [False, True])
def test_it_writes_what_is_forced(tiny, max_steps, n_max, biased):
    """In whatever calls, and up to its last token; the rest of what is in memory is told."""
    never = tuple(tiny.vocab.tokenize(",", add_special=False)) if biased else ()
    expected = forced_by_hand(tiny, never, n_max)
    chain = SamplerChain([Sampler.greedy()], grammar=GrammarSampler(tiny.vocab, FORCING))
    found: list[int] = []
    with context_of(tiny) as context:
        batch, outputs = beginning()
        output, n_steps = outputs[0], 0
        while len(found) < n_max and not (found and tiny.vocab.is_eog(found[-1])):
            pos = LENGTHS[0] + len(found)
            run = Run(chain, 0, pos, n_max - len(found), forcing=Forcing(2, 32, never))
            generated = generate_each(
                context, batch, {output: run}, max_steps=max_steps, seconds=60
            )
            drawn = generated[output]
            n_steps += generated.n_steps
            assert context.memory.seq_pos_max(0) == pos + drawn.n_computed - 1
            found += drawn.tokens
            left = drawn.tokens[drawn.n_computed :]
            assert left
            batch.clear()
            batch.add_tokens(left, pos=pos + drawn.n_computed, seq_id=0, outputs="last")
            output = len(left) - 1
    assert found == expected
    assert n_steps < len(found)  # some were not sampled


def test_a_stop_text_within_what_is_forced(tiny):
    """It pauses there, and what is forced after it is not written."""
    expected = forced_by_hand(tiny)
    chain = SamplerChain([Sampler.greedy()], grammar=GrammarSampler(tiny.vocab, FORCING))
    with context_of(tiny) as context:
        batch, outputs = beginning()
        run = Run(chain, 0, LENGTHS[0], 100, stops=("and",), forcing=Forcing())
        drawn = generate_each(context, batch, {outputs[0]: run}, max_steps=50, seconds=60)[
            outputs[0]
        ]
    assert drawn.at_stop
    assert drawn.tokens == expected[: len(drawn.tokens)]
    assert b"".join(map(tiny.vocab.token_to_piece, drawn.tokens)).endswith(b"and")
    rest = chain.grammar.forced_tokens(Forcing())
    assert rest == expected[len(drawn.tokens) :][: len(rest)]


def test_forced_texts_that_fill_more_than_a_batch(tiny):
    """The call ends before a decode that cannot have them all."""
    with Context(
        tiny, n_ctx=64 * N_SEQUENCES, n_seq_max=N_SEQUENCES, n_batch=32, n_threads=1
    ) as context:
        batch, outputs = beginning()
        chains = [
            SamplerChain([Sampler.dist(i)], grammar=GrammarSampler(tiny.vocab, FORCING))
            for i in range(N_SEQUENCES)
        ]
        runs = {
            output: Run(chains[i], i, LENGTHS[i], 40, forcing=Forcing())
            for i, output in enumerate(outputs)
        }
        generated = generate_each(context, batch, runs, max_steps=50, seconds=60)
        assert generated.error is None
        left = sum(len(generated[o].tokens) - generated[o].n_computed for o in outputs)
        assert left > 32


@pytest.mark.parametrize("n_tokens", [None, 3])
def test_it_tells_whether_the_bounds_of_a_grammar_ruled_a_token_out(tiny, n_tokens):
    grammar = GrammarSampler(tiny.vocab, 'root ::= "x"+ "!"')
    grammar.complete_within(n_tokens)
    (x,) = tiny.vocab.tokenize("x", add_special=False)
    chain = SamplerChain(
        [Sampler.logit_bias(tiny.vocab, {x: 1e6}), Sampler.greedy()], grammar=grammar
    )
    with context_of(tiny) as context:
        run = Run(chain, 0, 1, 8, forcing=Forcing())
        generated = generate_each(
            context, Batch.from_tokens([5]), {0: run}, max_steps=8, seconds=60
        )
    assert generated[0].bounded is bool(grammar.shortened()) is (n_tokens is not None)


def test_the_tokens_before_a_failure_are_kept(tiny):
    """A later decode without room: what was sampled before it is told, and it is removable."""
    with Context(tiny, n_ctx=256, n_seq_max=1, n_threads=1) as context:
        batch = Batch.from_tokens(np.full(250, 5, dtype=np.int32))
        chain = SamplerChain([Sampler.logit_bias(tiny.vocab, {7: 1e6}), Sampler.greedy()])
        generated = generate_each(
            context, batch, {249: Run(chain, 0, 250, 100)}, max_steps=100, seconds=60
        )
        assert isinstance(generated.error, pyllama.MemoryFullError)
        assert generated[249].tokens == [7] * 7
        assert context.memory.seq_pos_max(0) == 255
        context.memory.seq_rm(0, 250)
        context.decode_token(7, 250)


def test_an_error_of_the_batch_is_raised_and_samples_nothing(tiny):
    chain, fresh = (SamplerChain([Sampler.dist(3)]) for _ in range(2))
    with context_of(tiny) as context:
        batch = Batch.from_tokens([10**6])
        with pytest.raises(pyllama.InvalidBatchError):
            generate_each(context, batch, {0: Run(chain, 0, 1, 5)}, max_steps=5, seconds=60)
        batch, outputs = beginning()
        first = generate_each(context, batch, {outputs[0]: Run(chain, 0, LENGTHS[0], 5)})
        assert first[outputs[0]].tokens == [fresh.sample(context, outputs[0])]


def test_an_error_in_one_sequence_leaves_the_others(tiny):
    (x,) = tiny.vocab.tokenize("x", add_special=False)
    likely = Sampler.logit_bias(tiny.vocab, {x: 1000.0})
    grammar = GrammarSampler(tiny.vocab, 'root ::= "<tool>"', trigger_patterns=["x"])
    chains = [SamplerChain([Sampler.dist(seed)]) for seed in range(3)]
    chains.append(SamplerChain([likely, Sampler.greedy()], grammar=grammar))
    with context_of(tiny) as context:
        batch, outputs = beginning()
        generated = generate_each(context, batch, runs_of(chains, outputs))
    assert isinstance(generated[outputs[3]].error, pyllama.NativeError)
    assert generated[outputs[3]].tokens == []
    for output in outputs[:3]:
        assert generated[output].error is None
        assert len(generated[output].tokens) == 1


def test_it_can_be_cancelled(tiny):
    chain = SamplerChain([Sampler.logit_bias(tiny.vocab, {7: 1e6}), Sampler.greedy()])
    with Context(tiny, n_ctx=512, n_threads=1) as context:
        done = threading.Event()

        def cancel() -> None:
            while not done.is_set():
                context.cancel()
                time.sleep(0.001)

        thread = threading.Thread(target=cancel)
        thread.start()
        try:
            for _ in range(1000):
                context.memory.clear()
                try:
                    generated = generate_each(
                        context,
                        Batch.from_tokens([5]),
                        {0: Run(chain, 0, 1, 400)},
                        max_steps=400,
                        seconds=60,
                    )
                except pyllama.DecodeCancelled:
                    break
                if generated.error is not None:
                    assert isinstance(generated.error, pyllama.DecodeCancelled)
                    assert generated[0].tokens == [7] * generated.n_steps
                    break
            else:
                pytest.fail("it was never cancelled")
        finally:
            done.set()
            thread.join()


def test_refused(tiny):
    chain = SamplerChain([Sampler.greedy()])
    run = Run(chain, 0, 1, 4)
    with context_of(tiny) as context:
        batch = Batch.from_tokens([5])
        for runs, message in (
            ({0: run, 1: run}, "once"),
            ({3: run}, "outputs of the batch"),
            ({0: Run(chain, 0, 1, 4, stops=("",))}, "stops"),
            ({0: Run(chain, 0, 2**31 - 2, 4)}, "pos"),
            ({0: Run(SamplerChain([Sampler.top_k(3)]), 0, 1, 4)}, "selects"),
        ):
            with pytest.raises(ValueError, match=message):
                generate_each(context, batch, runs)
        for runs in (
            {0: chain},
            [run],
            {"0": run},
            {0: Run(chain, 0, 1, 4, text="")},
            {0: Run(chain, 0, 1, 4, forcing=True)},
        ):
            with pytest.raises(TypeError):
                generate_each(context, batch, runs)
        for options in ({"max_steps": 0}, {"seconds": -1.0}, {"n_threads": 0}):
            with pytest.raises(ValueError, match=next(iter(options))):
                generate_each(context, batch, {0: run}, **options)
        assert context.memory.seq_pos_max(0) == -1
