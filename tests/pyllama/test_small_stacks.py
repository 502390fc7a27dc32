"""Grammars on threads with little stack: Python's, and those that help sample_each()."""

from __future__ import annotations

import pytest
from decoding import run_python

LONG = "a" * 1000
DEEP = "\n".join(
    ["root ::= r0", *(f'r{n} ::= r{n + 1} "x"' for n in range(3900)), "r3900 ::= [a-z]+"]
)
WIDE = 'root ::= "a" root "b" | "a"'


@pytest.fixture(scope="module")
def long_tokens(write_tiny_model):
    return write_tiny_model(extra_tokens=(LONG, "b" * 1000))


@pytest.mark.parametrize("kib", [64, 128, 512])
def test_grammars_in_a_thread_of_python(long_tokens, kib):
    written = run_python(
        """
        import sys, threading
        import pyllama
        from pyllama import Context, Grammar, GrammarSampler, Model, Sampler, SamplerChain

        model = Model(sys.argv[1], devices=[])
        long = model.vocab.n_tokens - 2

        def work():
            for source in sys.argv[3:]:
                sampler = GrammarSampler(model.vocab, Grammar(source))
                print(sampler.allows([long, long + 1])[0], end=" ")
                sampler.accept(long)
                sampler.forced_text()
                sampler.reset()
                copied = sampler.clone()
                chain = SamplerChain([Sampler.greedy()], grammar=copied)
                chain.accept(long)

        threading.stack_size(int(sys.argv[2]) * 1024)
        thread = threading.Thread(target=work)
        thread.start()
        thread.join()
        """,
        long_tokens,
        kib,
        DEEP,
        WIDE,
    )
    assert written == "True True "


def test_grammars_in_threads_that_help(long_tokens):
    written = run_python(
        """
        import resource, sys

        # What std::thread would take from here on; musl's default is as small.
        hard = resource.getrlimit(resource.RLIMIT_STACK)[1]
        resource.setrlimit(resource.RLIMIT_STACK, (128 * 1024, hard))

        import pyllama
        from pyllama import Batch, Context, GrammarSampler, Model, Sampler, SamplerChain

        model = Model(sys.argv[1], devices=[])
        long = model.vocab.n_tokens - 2
        with Context(model, n_ctx=64, n_threads=1) as context:
            context.decode(Batch.from_tokens([5] * 4, outputs="all"))
            chains = {
                output: SamplerChain(
                    [Sampler.logit_bias(model.vocab, {long: 1e6}), Sampler.greedy()],
                    grammar=GrammarSampler(model.vocab, sys.argv[2]),
                )
                for output in range(4)
            }
            chosen = pyllama.sample_each(context, chains, n_threads=4)
            print(all(token == long for token in chosen.values()))
        """,
        long_tokens,
        DEEP,
    )
    assert written == "True\n"
