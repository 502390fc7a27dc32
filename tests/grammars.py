"""What several test modules use to try a grammar."""

from __future__ import annotations

import numpy as np

from pyllama import GrammarSampler

# The ids of the single bytes in synthetic.write_model's vocabulary.
BYTES = range(5, 261)


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
