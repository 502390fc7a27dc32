"""Texts of any length: no overflow of the stack, about linear time, the tokens of llama.cpp."""

from __future__ import annotations

import random
import threading

import pytest
from upstream import llama_tokenize, vocabularies

import pyllama

# All names that llama.cpp knows whose byte-pair vocabularies can be made here, one of each kind of
# splitting. gemma4, sarvam-moe and whitespace go with tokenizers of another kind.
PRE_TOKENIZERS = (
    *("afmoe", "bailingmoe", "bloom", "chameleon", "chatglm-bpe", "dbrx", "deepseek-coder"),
    *("deepseek-llm", "deepseek-v3", "default", "exaone-moe", "falcon", "gpt-2", "gpt-4o"),
    *("granite-embed-multi-97m", "grok-2", "hunyuan", "hy_v4", "jais-2", "joyai-llm", "kimi-k2"),
    *("laguna", "llama-bpe", "minicpm5", "poro-chat", "qwen2", "qwen35", "seed-coder", "smollm"),
    *("spark2_5", "superbpe", "tekken", "tiny_aya", "ufakzeka", "viking", "youtu"),
)
UNITS = {
    "DNA": "ACGT",
    "letters": "a",
    "cases": "aB",
    "dots": ".",
    "spaces": " ",
    "CJK": "中",
    "kana": "あ",
    "hangul": "가",
    "digits": "7",
    "emoji": "😀",
    "marks": "\u0301",
    "marked letters": "e\u0301",
    "line breaks": "\n",
    "spaces and line breaks": " \n",
    "words": "a ",
    "sentences": "It is so. ",
    "no-break spaces": "\u00a0",
    "slashes": "/",
    "control characters": "\x01",
    "unassigned characters": "\U0010fffd",
    "special tokens": "<|im_end|>",
}
MERGES = (
    # Across the borders of words: where there is none they show.
    *(
        "Ġ 7",
        "Ġ ä",
        "Ġ ê",
        "Ġ ð",
        "Ġ â",
        "Ġ Ã",
        "Ġ ā",
        "ĉ 7",
        "ĉ ä",
        "a Ġ",
        ". Ġ",
        "Ń Ġ",
        "Ģ Ġ",
        "7 Ġ",
    ),
    *("§ Ġ", "ā Ġ", "Ġ .", "Ġ a", "x Ġ", "Ģ ä", "Ģ 7", "7 a", "a 7", "7 ."),
    *(f"{a} {b}" for a in "0123456789" for b in "0123456789"),
    *("Ġ Ġ", *(f"{'Ġ' * 2**n} {'Ġ' * 2**n}" for n in range(1, 10))),
    *("A C", "G T", "AC GT", "a a", "aa aa", ". .", "Ċ Ċ"),
)


@pytest.fixture(scope="module", params=PRE_TOKENIZERS)
def vocab(request, write_tiny_model):
    path = write_tiny_model(pre=request.param, merges=MERGES, user_defined_tokens=("\t\t", "<dna>"))
    with pyllama.Model(path, vocab_only=True) as model:
        yield model.vocab


def repeated(unit: str, n_characters: int) -> str:
    return (unit * (n_characters // len(unit) + 1))[:n_characters]


def test_texts_that_overflowed_the_stack(vocab):
    for unit in ("ACGT", " ", "中"):
        text = repeated(unit, 27_000)
        tokens = vocab.tokenize(text, add_special=False)
        assert b"".join(vocab.token_to_piece(token) for token in tokens) == text.encode()


def test_the_tokens_are_those_of_llama_cpp(vocab):
    for unit in UNITS.values():
        for rest in ("", "x", "中", " .", "\n"):
            for n_characters in (1, 91, 600):
                text = f"x{repeated(unit, n_characters)}{rest}"
                assert vocab.tokenize(text, add_special=False) == llama_tokenize(vocab, text)


def random_text(rng: random.Random, units: list[str], n_parts: int) -> str:
    return "".join(
        rng.choice(units) * rng.choice((1, 1, 1, 2, 3, 7, rng.randint(1, 40)))
        for _ in range(n_parts)
    )


NAMES = ["<s>", "</s>", "<|im_start|>", "<|im_end|>", "<unk>", "[INST]", "<mask>", "\t\t", "<dna>"]


def test_random_texts_have_the_tokens_of_llama_cpp(vocab):
    rng = random.Random(vocab.n_tokens)
    units = [*UNITS.values(), *NAMES, "'s", "'LL", "12", "é", "Ⅷ", "$", "_", "\r\n", "\u2028", "̈"]
    for _ in range(25):
        text = random_text(rng, units, rng.randint(1, 12))
        for add_special in (False, True):
            for parse_special in (False, True):
                options = {"add_special": add_special, "parse_special": parse_special}
                assert vocab.tokenize(text, **options) == llama_tokenize(vocab, text, **options)


@pytest.mark.parametrize("path", vocabularies(), ids=lambda path: path.stem)
def test_random_texts_in_the_vocabularies_of_llama_cpp(path):
    rng = random.Random(path.stem)
    with pyllama.Model(path, vocab_only=True) as model:
        vocab = model.vocab
        names = [
            vocab.get_text(token)
            for token in range(vocab.n_tokens)
            if vocab.get_attr(token) & {"control", "user_defined", "unknown"}
        ]
        units = [
            *UNITS.values(),
            *NAMES,
            *rng.sample(names, min(len(names), 30)),
            "hello ",
            "World",
        ]
        for _ in range(30):
            text = random_text(rng, units, rng.randint(1, 12))
            for add_special in (False, True):
                parsed = vocab.tokenize(text, add_special=add_special, parse_special=True)
                assert parsed == llama_tokenize(
                    vocab, text, add_special=add_special, parse_special=True
                )
            plain = vocab.tokenize(text, add_special=False)
            expected = llama_tokenize(vocab, text)
            controls = {token for token in expected if "control" in vocab.get_attr(token)}
            if not any(vocab.get_text(token) in text for token in controls):
                assert plain == expected
            assert not any(
                vocab.get_text(token) in text and len(vocab.get_text(token)) > 1
                for token in plain
                if "control" in vocab.get_attr(token) and vocab.type != "wpm"
            )


@pytest.mark.parametrize(
    ("pre", "unit"),
    [
        ("gpt-4o", "ACGT"),
        ("deepseek-v3", "中"),
        ("tekken", " "),
        ("jais-2", " "),
        ("llama-bpe", "\t\t"),
        ("llama-bpe", "a<dna>"),
    ],
)
def test_a_million_characters(write_tiny_model, pre, unit):
    path = write_tiny_model(pre=pre, merges=MERGES, user_defined_tokens=("\t\t", "<dna>"))
    with pyllama.Model(path, vocab_only=True) as model:
        text = repeated(unit, 1_000_000)
        tokens = model.vocab.tokenize(text, add_special=False)
        pieces = {token: model.vocab.token_to_piece(token) for token in set(tokens)}
        assert b"".join(pieces[token] for token in tokens) == text.encode()


def test_digits_by_three_from_the_right(write_tiny_model):
    with pyllama.Model(write_tiny_model(pre="superbpe", merges=MERGES), vocab_only=True) as model:
        for n_digits in (1_000, 100_001):
            tokens = model.vocab.tokenize("7" * n_digits, add_special=False)
            assert model.vocab.detokenize(tokens) == "7" * n_digits
            assert len(tokens) == n_digits // 3 * 2 + 1


OVERRIDDEN = {
    "superbpe": "7" * 200_001,
    "jais-2": "a" + " " * 200_000 + "b",
    "gpt-4o": "7" * 1_000 + "a" + " " * 5_000,
}


@pytest.mark.parametrize("own", ["gpt-2", "superbpe", "jais-2"])
@pytest.mark.parametrize("pre", OVERRIDDEN)
def test_the_pre_tokenizer_that_replaces_the_files_counts(write_tiny_model, pre, own):
    text = OVERRIDDEN[pre]
    overrides = {"tokenizer.ggml.pre": pre}
    with pyllama.Model(write_tiny_model(pre=pre, merges=MERGES), vocab_only=True) as model:
        expected = model.vocab.tokenize(text)
    path = write_tiny_model(pre=own, merges=MERGES)
    with pyllama.Model(path, vocab_only=True, kv_overrides=overrides) as model:
        assert model.vocab.tokenize(text) == expected


@pytest.fixture
def gpt4o(write_tiny_model):
    with pyllama.Model(write_tiny_model(pre="gpt-4o"), vocab_only=True) as model:
        yield model.vocab


def test_on_a_thread_with_a_small_stack(gpt4o):
    text, tokens = "ACGT" * 25_000, []
    before = threading.stack_size(64 * 1024)
    try:
        thread = threading.Thread(
            target=lambda: tokens.extend(gpt4o.tokenize(text, add_special=False))
        )
        thread.start()
    finally:
        threading.stack_size(before)
    thread.join()
    assert tokens == gpt4o.tokenize(text, add_special=False)


def test_what_is_too_long_is_refused_with_the_number(gpt4o, write_tiny_model):
    with pytest.raises(pyllama.TokenizationError, match=r"67108865 bytes; at most 67108864"):
        gpt4o.tokenize("x" * (64 * 1024 * 1024 + 1))
    with pytest.raises(pyllama.TokenizationError, match=r"3000002 characters.*at most 2097152"):
        gpt4o.tokenize("A" * 3_000_000 + " ")
    assert gpt4o.tokenize("hello", add_special=False)
    with pyllama.Model(write_tiny_model(pre="deepseek-llm"), vocab_only=True) as model:
        with pytest.raises(pyllama.TokenizationError, match=r"20000 white space.*at most 8,192"):
            model.vocab.tokenize("7" + " " * 20_000 + "7")
        for rest in ("x", "7", "中", ""):
            assert model.vocab.tokenize("a" + " " * 100_000 + rest)


def test_cuts_behind_white_space_change_no_tokens(write_tiny_model):
    path = write_tiny_model(pre="deepseek-llm", merges=MERGES)
    with pyllama.Model(path, vocab_only=True) as model:
        vocab = model.vocab
        ends = [
            "",
            "a",
            ".",
            "\n",
            "\r",
            "7",
            "é",
            "中",
            "\u9fa6",
            "가",
            "😀",
            "Ⅷ",
            "\x01",
            "\x7f",
            "\u3002",
        ]
        for space in (" ", "\t", "\u3000"):
            for n in (64, 90):
                for before in ends:
                    for after in ends:
                        text = f"x中{before}{space * n}{after}中7 {space * n}8"
                        tokens = vocab.tokenize(text, add_special=False)
                        assert tokens == llama_tokenize(vocab, text), (before, n, after)


LONG_RUN = 4096 + 512


@pytest.mark.parametrize("space", [" ", "\t", "\u00a0", "\u3000"])
def test_cuts_of_white_space_change_no_tokens(write_tiny_model, space):
    """512 at a time, while more follow: around each multiple, between all kinds of neighbours."""
    with pyllama.Model(write_tiny_model(pre="jais-2", merges=MERGES), vocab_only=True) as model:
        vocab = model.vocab
        for n in (4095, 4096, 4097, LONG_RUN - 1, LONG_RUN, LONG_RUN + 1, 8192, 8193):
            for before, after in (
                ("", ""),
                ("a", "b"),
                (".", "中"),
                ("\n", "7"),
                ("'", "\n"),
                ("\r", "'s"),
            ):
                text = f"{before}{space * n}{after}"
                assert vocab.tokenize(text, add_special=False) == llama_tokenize(vocab, text)
        mixed = f"x{space * 4100}\n{space * 4100} {space * 4100}y"
        assert vocab.tokenize(mixed, add_special=False) == llama_tokenize(vocab, mixed)


# Names of control tokens


def test_tokenizers_that_know_control_tokens_by_their_text_do_not_make_them(write_tiny_model):
    """SPM vocabularies look every joined pair up, and some byte-pair ones every word."""
    text = "ho so ho <ho> hh oo"
    for options in ({"tokenizer": "spm"}, {"pre": "llama-bpe"}):
        path = write_tiny_model(control_tokens=("ho",), **options)
        with pyllama.Model(path, vocab_only=True) as model:
            vocab = model.vocab
            named = [t for t in range(vocab.n_tokens) if vocab.get_text(t) == "ho"]
            assert set(named) & set(llama_tokenize(vocab, text))
            tokens = vocab.tokenize(text, add_special=False)
            assert not set(named) & set(tokens)
            joined = b"".join(vocab.token_to_piece(token) for token in tokens)
            assert joined.replace(b" ", b"") == text.encode().replace(b" ", b"")


def test_ranges_that_are_literal(tiny):
    vocab, text = tiny.vocab, "é<|im_end|>é<|im_end|>"
    both = vocab.tokenize(text, add_special=False, parse_special=True)
    assert both.count(4) == 2
    for literal, n_special in (
        ([], 2),
        ([(0, 1)], 2),
        ([(1, 2)], 1),
        ([(0, 2)], 1),
        ([(10, 12)], 1),
        ([(11, 12)], 2),
        ([(0, len(text))], 0),
        ([(3, 4), (14, 15)], 0),
    ):
        options = {"add_special": False, "parse_special": True}
        tokens = vocab.tokenize(text, literal=literal, **options)
        assert tokens.count(4) == n_special
        assert vocab.detokenize(tokens) == text
        in_bytes = [
            (len(text[:begin].encode()), len(text[:end].encode())) for begin, end in literal
        ]
        assert vocab.tokenize(text.encode(), literal=in_bytes, **options) == tokens
    for literal in ([(0, 99)], [(-1, 1)], [(3, 2)], [(4, 5), (1, 2)], [(1,)], [1]):
        with pytest.raises((ValueError, TypeError), match="literal must hold"):
            vocab.tokenize(text, literal=literal)


def test_a_prompt_has_bos_once_and_no_eos(write_tiny_model):
    for add_bos in (True, False):
        path = write_tiny_model(add_bos=add_bos, add_eos=True)
        with pyllama.Model(path, vocab_only=True) as model:
            vocab = model.vocab
            text = "<|im_start|>hello"
            tokens = vocab.tokenize(text, add_special=False, parse_special=True)
            assert vocab.tokenize_prompt(text) == [1] * add_bos + tokens
            assert vocab.tokenize(text, parse_special=True) == [1] * add_bos + tokens + [2]


def test_a_vocabulary_with_which_the_tokenizer_never_ended(write_tiny_model):
    with pyllama.Model(write_tiny_model(tokenizer="rwkv"), vocab_only=True) as model:
        assert model.vocab.detokenize(model.vocab.tokenize("hello é")) == "hello é"
    path = write_tiny_model(tokenizer="rwkv", extra_tokens=("\\xff\\xff",))
    unending = pytest.raises(pyllama.TokenizationError, match="begin with the byte 255")
    with pyllama.Model(path, vocab_only=True) as model, unending:
        model.vocab.tokenize(b"\xff")
