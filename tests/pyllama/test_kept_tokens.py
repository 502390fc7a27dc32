"""Texts that were tokenized before: the same tokens come out, whatever came between."""

from __future__ import annotations

import random
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

import pyllama

WORDS = ("hello", " world", "the", "\n", "  ", "é", "日本", "<|im_start|>", "<s>", "0", "wor", "ld")


def texts(count: int, seed: int) -> list[str]:
    draw = random.Random(seed)
    return ["".join(draw.choices(WORDS, k=draw.randint(0, 20))) for _ in range(count)]


@pytest.mark.parametrize("tokenizer", ["bpe", "spm", "rwkv"])
def test_a_text_has_the_same_tokens_again(
    write_tiny_model: Callable[..., Path], tokenizer: str
) -> None:
    path = write_tiny_model(tokenizer=tokenizer)
    asked = texts(200, seed=1)

    def tokens(vocab: pyllama.Vocab, text: str) -> list[list[int]]:
        return [
            vocab.tokenize(text, add_special=special, parse_special=parsed)
            for special in (False, True)
            for parsed in (True, False)
        ]

    expected = {}
    for text in asked:  # each by a vocabulary that knows no other
        with pyllama.Model(path, vocab_only=True) as model:
            expected[text] = tokens(model.vocab, text)
    with pyllama.Model(path, vocab_only=True) as model:
        for text in [*asked, *reversed(asked)]:
            assert tokens(model.vocab, text) == expected[text]


def test_a_literal_name_of_a_control_token_stays_text(tiny: pyllama.Model) -> None:
    text = "hello <|im_start|> world"
    literal = ((6, 18),)
    for _ in range(2):
        named = tiny.vocab.tokenize(text, parse_special=True)
        plain = tiny.vocab.tokenize(text, parse_special=True, literal=literal)
        assert named != plain == tiny.vocab.tokenize(text)


def test_threads_get_the_same_tokens_while_texts_are_forgotten(
    write_tiny_model: Callable[..., Path],
) -> None:
    """Several times as much as is kept, by eight threads."""
    with pyllama.Model(write_tiny_model(), vocab_only=True) as model:
        asked = [text * 200 for text in texts(400, seed=2)]
        expected = [model.vocab.tokenize(text) for text in asked]
        assert sum(map(len, expected)) * 4 > 4 << 20
        with ThreadPoolExecutor(8) as pool:
            for made in (asked, asked[:50] * 8):
                found = list(pool.map(model.vocab.tokenize, made))
                assert found == (expected if made is asked else expected[:50] * 8)
