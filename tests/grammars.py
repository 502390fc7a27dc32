"""What several test modules use to try a grammar."""

from __future__ import annotations

import numpy as np
from hypothesis import settings
from hypothesis import strategies as st

from pyllama import GrammarSampler

# The ids of the single bytes in synthetic.write_model's vocabulary.
BYTES = range(5, 261)

no_deadline = settings(deadline=None, max_examples=200)

# What is put together to random grammars; some are refused.
items = st.sampled_from([
    '"x"', '"ab"', '"é价"', "[a-z]", "[à-ü🦙]", '[^"\\\\]', "[^à-ü ]", ".",
    '""', "[]", "<[3]>", "!<[4]>", "a", "b", "root",
])  # fmt: skip
repeats = st.sampled_from(["", "", "", "*", "+", "?", "{2}", "{1,3}", "{0,2}", "{2,}", "{0}"])
sequences = st.lists(st.tuples(items, repeats).map("".join), max_size=3).map(" ".join)
alternatives = st.lists(sequences, min_size=1, max_size=3).map(" | ".join)
groups = st.tuples(alternatives, repeats, sequences).map(lambda p: f"({p[0]}){p[1]} {p[2]}")
rules = st.one_of(alternatives, groups)
grammars = st.tuples(rules, rules, rules).map(
    lambda bodies: "".join(
        f"{n} ::= {b}\n" for n, b in zip(("root", "a", "b"), bodies, strict=True)
    )
)


def matches(vocab, grammar, text):
    """Whether the grammar takes the text, byte by byte, and lets it end there."""
    with GrammarSampler(vocab, grammar) as sampler:
        for byte in text.encode():
            token = BYTES[byte]
            if not sampler.allows([token])[0]:
                return False
            sampler.accept(token)
        return sampler.complete


def allowed_one_by_one(sampler):
    """The tokens that llama.cpp's own check lets follow: so few at once are left to it."""
    ids = np.arange(sampler._n_vocab, dtype=np.int32)
    return np.concatenate([few[sampler.allows(few)] for few in np.array_split(ids, len(ids) // 50)])


def feed(sampler, vocab, text):
    for token in vocab.tokenize(text, add_special=False):
        sampler.accept(token)
