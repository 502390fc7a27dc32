"""The real model says what llama.cpp itself says.

How the expectations were made, with the tools of the pinned llama.cpp, built by its own CMake
with GGML_BACKEND_DL and GGML_CPU_ALL_VARIANTS, on the CPU:

- text: ``llama-simple -m MODEL -n 24 PROMPT``, which chooses greedily until the end of generation
- prompt ids: ``llama-completion -m MODEL -no-cnv --verbose-prompt -n 1 -p PROMPT``
"""

from __future__ import annotations

import pytest

from pyllama import Batch, Context, Detokenizer, Model, Sampler, SamplerChain

pytestmark = pytest.mark.model

N_PREDICT = 24

EXPECTED = {
    "The capital of France is": (
        [504, 3575, 282, 4649, 314],
        " Paris.\n\nThe United States has a population of approximately 311 million people.\n\n"
        "The United States",
    ),
    "def fibonacci(n):": (
        [1604, 3987, 46477, 24, 94, 727],
        "\n    if n == 0:\n        return 1\n    return n * fibonacci(n - 1)\n",
    ),
    "<|im_start|>user\nName three colours.<|im_end|>\n<|im_start|>assistant\n": (
        [1, 4093, 198, 5820, 1296, 14797, 30, 2, 198, 1, 520, 9531, 198],
        "1. Red\n2. Blue\n3. Green",
    ),
    "Les élèves mangent des pommes 🍎 parce que": (
        [
            39571,
            26411,
            92,
            11180,
            1099,
            555,
            6768,
            708,
            273,
            1864,
            266,
            15107,
            231,
            232,
            1280,
            319,
            10168,
        ],
        " les pommes de la France.\n\nL'événement de la France est un év",
    ),
    "1, 2, 3, 4,": (
        [33, 28, 216, 34, 28, 216, 35, 28, 216, 36, 28],
        " 5, 6, 7, 8, 9, 10, 11, ",
    ),
}


def generate(model, context, prompt):
    """Greedy tokens after a prompt, up to N_PREDICT or the end of generation."""
    context.memory.clear()
    context.decode(Batch.from_tokens(prompt))
    tokens = []
    with SamplerChain([Sampler.greedy()]) as chain:
        while len(tokens) < N_PREDICT:
            token = chain.sample(context)
            if model.vocab.is_eog(token):
                break
            tokens.append(token)
            context.decode_token(token, len(prompt) + len(tokens) - 1)
    return tokens


@pytest.fixture(scope="module")
def smollm2(smollm2_path):
    """On the CPU, whatever PYLLAMA_BACKEND says: GPUs round differently."""
    with Model(smollm2_path, devices=[]) as made:
        yield made


@pytest.fixture(scope="module")
def context(smollm2):
    with Context(smollm2, n_ctx=256) as made:
        yield made


@pytest.mark.parametrize("prompt", EXPECTED)
def test_prompt_ids(smollm2, prompt):
    assert smollm2.vocab.tokenize(prompt, parse_special=True) == EXPECTED[prompt][0]


@pytest.mark.parametrize("prompt", EXPECTED)
def test_greedy_text(smollm2, context, prompt):
    ids, expected = EXPECTED[prompt]
    tokens = generate(smollm2, context, ids)
    assert smollm2.vocab.detokenize(tokens) == expected
    stream = Detokenizer(smollm2.vocab)
    assert "".join(map(stream.push, tokens)) + stream.flush() == expected


def test_the_same_tokens_each_time(smollm2, context):
    ids, _ = EXPECTED["The capital of France is"]
    first = generate(smollm2, context, ids)
    context.memory.clear()
    context.decode(Batch.from_tokens([5, 6, 7]))
    assert generate(smollm2, context, ids) == first


def test_the_same_seed_gives_the_same_text_in_another_context(smollm2, context):
    ids, _ = EXPECTED["The capital of France is"]

    def sampled(context, seed):
        context.memory.clear()
        context.decode(Batch.from_tokens(ids))
        steps = [Sampler.top_k(40), Sampler.temp(1.2), Sampler.dist(seed)]
        with SamplerChain(steps) as chain:
            tokens = [chain.sample(context)]
            for pos in range(len(ids), len(ids) + 15):
                context.decode_token(tokens[-1], pos)
                tokens.append(chain.sample(context))
        return tokens

    first = sampled(context, 11)
    with Context(smollm2, n_ctx=256) as other:
        assert sampled(other, 11) == first
        assert sampled(other, 12) != first
