"""What several test modules use to try a grammar."""

from __future__ import annotations

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
