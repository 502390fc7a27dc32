"""Text to tokens and back: exact round trips, special tokens, streams, upstream's vectors."""

from __future__ import annotations

import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest
import synthetic
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

import pyllama
from pyllama import GrammarSampler, Vocab
from pyllama._handle import Handle

VENDOR = Path(__file__).parents[2] / "vendor"

# Text of every script, without lone surrogates, which have no UTF-8 form.
unicode_text = st.text(st.characters(exclude_categories=["Cs"]), max_size=60)

no_deadline = settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


def test_a_vocabulary_reports_its_special_tokens(tiny):
    vocab = tiny.vocab
    assert vocab.type == "bpe"
    assert len(vocab) == vocab.n_tokens == 5 + 256 + len(synthetic.MERGES)
    assert (vocab.bos, vocab.eos) == (synthetic.BOS, synthetic.EOS)
    assert vocab.sep is None
    assert vocab.mask is None
    assert (vocab.add_bos, vocab.add_eos, vocab.add_sep) == (True, False, False)
    assert "bpe" in repr(vocab)


def test_end_of_generation_and_control_tokens(tiny):
    vocab = tiny.vocab
    assert vocab.is_eog(synthetic.EOS)
    assert vocab.is_eog(synthetic.IM_END)
    assert not vocab.is_eog(synthetic.BOS)
    assert vocab.is_control(synthetic.IM_START)
    letter = vocab.tokenize("h", add_special=False)[0]
    assert not vocab.is_control(letter)
    assert not vocab.is_eog(letter)


def test_attributes_of_tokens(tiny, spm):
    assert tiny.vocab.get_attr(synthetic.EOS) == {"control"}
    letter = tiny.vocab.tokenize("h", add_special=False)[0]
    assert tiny.vocab.get_attr(letter) == {"normal"}
    assert spm.get_attr(synthetic.UNK) == {"unknown"}
    assert spm.get_attr(len(synthetic.SPECIAL_TOKENS)) == {"byte"}


def test_tokens_for_filling_in_and_for_suppressing(tiny, write_tiny_model):
    assert tiny.vocab.fim_pre is None
    assert tiny.vocab.suppress_tokens == ()
    names = ("pre", "suf", "mid", "pad", "rep", "sep")
    keys = {f"tokenizer.ggml.fim_{name}_token_id": 20 + i for i, name in enumerate(names)}
    path = write_tiny_model(metadata={**keys, "tokenizer.ggml.suppress_tokens": [7, 9]})
    with pyllama.Model(path, vocab_only=True) as model:
        found = [getattr(model.vocab, f"fim_{name}") for name in names]
        assert found == [20, 21, 22, 23, 24, 25]
        assert model.vocab.suppress_tokens == (7, 9)


def test_merges_are_applied(tiny):
    tokens = tiny.vocab.tokenize("hello world", add_special=False)
    assert [tiny.vocab.get_text(token) for token in tokens] == ["hello", "Ġworld"]
    assert [tiny.vocab.token_to_piece(token) for token in tokens] == [b"hello", b" world"]


def test_the_array_holds_the_same_tokens(tiny):
    array = tiny.vocab.tokenize_array("hello world")
    assert array.dtype == np.int32
    assert array.tolist() == tiny.vocab.tokenize("hello world")


def test_add_special_adds_what_the_model_wants(tiny):
    plain = tiny.vocab.tokenize("hello", add_special=False)
    assert tiny.vocab.tokenize("hello") == [synthetic.BOS, *plain]
    assert tiny.vocab.tokenize("", add_special=False) == []
    assert tiny.vocab.tokenize("") == [synthetic.BOS]


def test_special_tokens_are_text_unless_parsed(tiny):
    vocab, text = tiny.vocab, "<|im_start|>hello<|im_end|>"
    parsed = vocab.tokenize(text, add_special=False, parse_special=True)
    assert parsed[0] == synthetic.IM_START
    assert parsed[-1] == synthetic.IM_END
    unparsed = vocab.tokenize(text, add_special=False)
    assert synthetic.IM_START not in unparsed
    assert vocab.detokenize(parsed) == vocab.detokenize(unparsed) == text
    assert vocab.detokenize(parsed, unparse_special=False) == "hello"
    assert vocab.token_to_piece(synthetic.IM_START) == b"<|im_start|>"
    assert vocab.token_to_piece(synthetic.IM_START, special=False) == b""


def test_remove_special_takes_away_what_tokenize_added(tiny):
    tokens = tiny.vocab.tokenize("hello")
    assert tiny.vocab.detokenize(tokens) == "<s>hello"
    assert tiny.vocab.detokenize(tokens, remove_special=True) == "hello"


# Round trips


@no_deadline
@given(unicode_text)
@example("")
@example("\0")
@example("a\0b\0")
@example("👩‍👩‍👧‍👦 e\u0301 \u202e \ufeff \U0010ffff")
@example("<s></s><|im_end|>")
@example("What ? No ! Well , I 'm sure . It ' s")
def test_text_comes_back_exactly(tiny, text):
    vocab = tiny.vocab
    tokens = vocab.tokenize(text, add_special=False)
    assert vocab.detokenize(tokens) == text
    assert vocab.detokenize_bytes(tokens) == text.encode()
    assert b"".join(vocab.token_to_piece(token) for token in tokens) == text.encode()
    assert vocab.detokenize(vocab.tokenize(text), remove_special=True) == text


@no_deadline
@given(unicode_text)
@example("<|im_start|>user\nhello<|im_end|>\n")
def test_text_with_parsed_special_tokens_comes_back_exactly(tiny, text):
    tokens = tiny.vocab.tokenize(text, add_special=False, parse_special=True)
    assert tiny.vocab.detokenize(tokens) == text


@no_deadline
@given(st.binary(max_size=60))
@example(b"\xff")
@example(b"\xf0\x9f\xa6")
@example(b"\xed\xa0\x80")
@example(b"\0")
def test_any_bytes_are_tokenized_or_refused(tiny, data):
    try:
        tokens = tiny.vocab.tokenize(data, add_special=False)
    except pyllama.LlamaError:
        return
    assert all(0 <= token < len(tiny.vocab) for token in tokens)


def test_bytes_of_utf8_are_text(tiny):
    text = "hello 🦙"
    assert tiny.vocab.tokenize(text.encode()) == tiny.vocab.tokenize(text)


@no_deadline
@given(st.lists(st.integers(0, 5 + 256 + len(synthetic.MERGES) - 1), max_size=40))
def test_any_tokens_have_text(tiny, tokens):
    vocab = tiny.vocab
    pieces = b"".join(vocab.token_to_piece(token) for token in tokens)
    assert vocab.detokenize_bytes(tokens) == pieces
    assert vocab.detokenize(tokens) == pieces.decode("utf-8", "replace")


def test_two_threads_make_one_tokenizer(tiny_model_path, monkeypatch):
    make, made, seen = Vocab._make_tokenizer, [], []

    def make_slowly(vocab):
        made.append(make(vocab))
        if len(made) == 1:
            other = threading.Thread(target=lambda: seen.append(vocab._tokenizer))
            other.start()
            other.join(0.2)  # long enough to make its own, if it may
            seen.append(other)
        return made[-1]

    monkeypatch.setattr(Vocab, "_make_tokenizer", make_slowly)
    with pyllama.Model(tiny_model_path) as model:
        assert model.vocab.tokenize("ab", add_special=False)
        seen[0].join()
        assert seen[1:] == made == [model.vocab._tokenizer]


def test_two_threads_make_one_list_of_tokens(tiny_model_path, monkeypatch):
    made, others = [], []

    class Counting(Handle):
        def __init__(self, *arguments):
            super().__init__(*arguments)
            made.append(self)
            if len(made) == 1:
                others.append(threading.Thread(target=look))
                others[0].start()
                others[0].join(0.2)  # long enough to make its own, if it may

    def look():
        GrammarSampler(model.vocab, 'root ::= "a"').close()

    monkeypatch.setattr("pyllama.grammar.Handle", Counting)
    with pyllama.Model(tiny_model_path) as model:
        look()
        others[0].join()
        assert len(made) == 1


def test_a_long_text(tiny):
    text = "hello world, déjà vu 🦙\n" * 4_000
    tokens = tiny.vocab.tokenize(text, add_special=False)
    assert tiny.vocab.detokenize(tokens) == text


def test_detokenize_takes_arrays_and_lists(tiny):
    tokens = tiny.vocab.tokenize("hello world", add_special=False)
    for same in (tokens, tuple(tokens), np.array(tokens), np.array(tokens, dtype=np.uint16)):
        assert tiny.vocab.detokenize(same) == "hello world"
    reversed_view = np.array(tokens[::-1], dtype=np.int32)[::-1]
    assert tiny.vocab.detokenize(reversed_view) == "hello world"
    assert tiny.vocab.detokenize([]) == ""


# Sentencepiece


@pytest.fixture(scope="module")
def spm(write_tiny_model):
    with pyllama.Model(write_tiny_model(tokenizer="spm"), vocab_only=True) as model:
        yield model.vocab


def test_sentencepiece_words_have_scores(spm):
    tokens = spm.tokenize("hello world", add_special=False)
    # Only pairs that are tokens themselves are joined, and none leads to the word.
    assert spm.detokenize(tokens) == "hello world"
    assert spm.type == "spm"
    assert spm.get_score(10) == -10.0


@no_deadline
@given(unicode_text)
@example("")
@example("hello")
@example(" hello  world ")
@example("  ")
def test_sentencepiece_text_comes_back(spm, text):
    # U+2581 is sentencepiece's own sign for a space.
    text = text.replace("\u2581", "_")
    assert spm.detokenize(spm.tokenize(text), remove_special=True) == text
    assert spm.detokenize(spm.tokenize(text, add_special=False)) == text


# What is refused


@pytest.mark.parametrize(("text", "index"), [("\ud800", 0), ("a\udfff", 1), ("\udc80abc", 0)])
def test_lone_surrogates_are_refused(tiny, text, index):
    with pytest.raises(pyllama.TokenizationError, match=f"surrogate at index {index}"):
        tiny.vocab.tokenize(text)


@pytest.mark.parametrize("text", [None, 3, ["hello"], bytearray(b"hello"), True])
def test_text_of_another_type_is_refused(tiny, text):
    with pytest.raises(TypeError, match="text must be str or bytes"):
        tiny.vocab.tokenize(text)


@pytest.mark.parametrize("tokens", [[-1], [10**6], [1, 2, 2**40], np.array([-5]), [2**70]])
def test_ids_outside_the_vocabulary_are_refused(tiny, tokens):
    with pytest.raises((pyllama.TokenizationError, TypeError), match="tokens"):
        tiny.vocab.detokenize(tokens)


@pytest.mark.parametrize(
    "tokens", [["a"], [1.5], "hello", [[1, 2]], [None], 3, None, [1, [2]], [True, False], object()]
)
def test_tokens_of_another_type_are_refused(tiny, tokens):
    with pytest.raises(TypeError, match="tokens"):
        tiny.vocab.detokenize(tokens)


@pytest.mark.parametrize(
    "method", ["token_to_piece", "get_text", "get_score", "get_attr", "is_eog"]
)
@pytest.mark.parametrize(
    ("token", "error"),
    [
        (-1, ValueError),
        (10**6, ValueError),
        (2**40, ValueError),
        ("a", TypeError),
        (None, TypeError),
        (1.0, TypeError),
        (True, TypeError),
        (float("nan"), TypeError),
    ],
)
def test_one_token_is_checked(tiny, method, token, error):
    with pytest.raises(error, match="token must be"):
        getattr(tiny.vocab, method)(token)


def test_a_token_that_was_pushed_before_is_checked_as_the_first_time(tiny_model_path):
    with pyllama.Model(tiny_model_path) as model:
        plain = pyllama.Detokenizer(model.vocab)
        special = pyllama.Detokenizer(model.vocab, special=True)
        for _ in range(2):
            assert plain.push(1) == ""
            assert special.push(1) == "<s>"
        for token in (True, 1.0, "1"):
            with pytest.raises(TypeError, match="token"):
                plain.push(token)
    with pytest.raises(pyllama.ClosedError):
        special.push(1)


@pytest.mark.parametrize("times", [1, 2])
def test_a_token_that_ends_a_character_or_stands_alone(tiny, times):
    first, last = tiny.vocab.tokenize("é", add_special=False)
    letter = tiny.vocab.tokenize("h", add_special=False)[0]
    for _ in range(times):
        stream = pyllama.Detokenizer(tiny.vocab)
        assert [stream.push(token) for token in (letter, first, last)] == ["h", "", "é"]
        # The second byte alone is no text; neither is the first before a letter.
        assert [stream.push(token) for token in (last, first, letter)] == ["\ufffd", "", "\ufffdh"]
        assert stream.push(first) == ""
        assert stream.flush() == "\ufffd"
        assert stream.push(letter) == "h"


def test_numpy_integers_are_integers(tiny):
    assert tiny.vocab.token_to_piece(np.int64(synthetic.BOS)) == b"<s>"


def test_a_model_without_tokenizer_says_so(write_tiny_model):
    with pyllama.Model(write_tiny_model(tokenizer="none")) as model:
        assert model.vocab.type == "none"
        assert len(model.vocab) == 300
        with pytest.raises(pyllama.TokenizationError, match="no tokenizer"):
            model.vocab.tokenize("hello")
        for use in (
            lambda: model.vocab.detokenize([1, 2]),
            lambda: model.vocab.token_to_piece(1),
            lambda: model.vocab.get_text(1),
            lambda: model.vocab.get_score(1),
            lambda: model.vocab.get_attr(1),
            lambda: model.vocab.is_control(1),
        ):
            with pytest.raises(pyllama.LlamaError):
                use()
        assert not model.vocab.is_eog(1)


# Streams


def stream(vocab, tokens, **options):
    detokenizer = pyllama.Detokenizer(vocab, **options)
    return [detokenizer.push(token) for token in tokens], detokenizer.flush()


def test_a_character_split_over_tokens_comes_out_whole(tiny):
    tokens = tiny.vocab.tokenize("a🦙é", add_special=False)
    assert len(tokens) == 1 + 4 + 2
    assert stream(tiny.vocab, tokens) == (["a", "", "", "", "🦙", "", "é"], "")


def test_an_unfinished_character_is_flushed_as_a_replacement(tiny):
    tokens = tiny.vocab.tokenize("🦙", add_special=False)
    detokenizer = pyllama.Detokenizer(tiny.vocab)
    assert [detokenizer.push(token) for token in tokens[:3]] == ["", "", ""]
    assert detokenizer.flush() == "\ufffd"
    # The stream begins anew.
    assert [detokenizer.push(token) for token in tokens] == ["", "", "", "🦙"]
    assert detokenizer.flush() == ""


def test_a_stream_leaves_special_tokens_out_unless_asked(tiny):
    tokens = [synthetic.IM_START, *tiny.vocab.tokenize("hello", add_special=False)]
    assert stream(tiny.vocab, tokens) == (["", "hello"], "")
    assert stream(tiny.vocab, tokens, special=True) == (["<|im_start|>", "hello"], "")


@no_deadline
@given(unicode_text)
def test_a_stream_gives_the_whole_text(tiny, text):
    tokens = tiny.vocab.tokenize(text, add_special=False)
    pushed, rest = stream(tiny.vocab, tokens)
    assert "".join(pushed) == text
    assert rest == ""


@no_deadline
@given(st.lists(st.integers(0, 5 + 256 + len(synthetic.MERGES) - 1), max_size=40))
def test_a_stream_of_any_tokens_gives_what_decoding_at_once_does(tiny, tokens):
    pushed, rest = stream(tiny.vocab, tokens, special=True)
    assert "".join(pushed) + rest == tiny.vocab.detokenize(tokens)


# Upstream's vectors


@pytest.fixture(scope="module")
def vocab_folder() -> Path:
    """llama.cpp's vocabulary files with expected tokens, from the pinned archive."""
    script = VENDOR / "fetch_llama_cpp.py"
    subprocess.run([sys.executable, str(script), "--test-data"], check=True)
    return VENDOR / "test-data" / "models"


UPSTREAM = [
    "bert-bge",
    "command-r",
    "deepseek-coder",
    "deepseek-llm",
    "falcon",
    "gemma-4",
    "gpt-2",
    "llama-bpe",
    "llama-spm",
    "mpt",
    "phi-3",
    "qwen2",
    "qwen35",
    "refact",
    "starcoder",
]


def read_vectors(folder: Path, name: str) -> list[tuple[str, list[int]]]:
    """The texts of a .inp file, and beside each the ids of a line of the .out file."""
    stem = folder / f"ggml-vocab-{name}.gguf"
    texts = stem.with_name(f"{stem.name}.inp").read_bytes().decode()
    lines = stem.with_name(f"{stem.name}.out").read_text(encoding="utf-8").splitlines()
    cases = texts.split("\n__ggml_vocab_test__\n")
    if len(cases) == len(lines) + 1 and not cases[-1]:
        cases.pop()
    assert len(cases) == len(lines)
    return [
        (text, [int(token) for token in line.split()])
        for text, line in zip(cases, lines, strict=True)
    ]


@pytest.mark.parametrize("name", UPSTREAM)
def test_upstream_vectors(vocab_folder, name):
    vectors = read_vectors(vocab_folder, name)
    assert len(vectors) > 40
    with pyllama.Model(vocab_folder / f"ggml-vocab-{name}.gguf", vocab_only=True) as model:
        for text, expected in vectors:
            assert model.vocab.tokenize(text, add_special=False) == expected, repr(text)
            # BERT's tokenizer folds case and accents, so its text does not come back.
            if model.vocab.type != "wpm":
                assert model.vocab.detokenize(expected) == text, repr(text)


def test_there_is_no_upstream_vocabulary_with_vectors_that_we_miss(vocab_folder):
    names = [path.name for path in vocab_folder.glob("*.gguf.inp")]
    assert sorted(names) == sorted(f"ggml-vocab-{name}.gguf.inp" for name in UPSTREAM)


# The real model


@pytest.fixture(scope="module")
def smollm2_bytes(smollm2) -> set[bytes]:
    """The bytes that SmolLM2 has tokens for: a few that begin rare characters are missing."""
    pieces = (smollm2.vocab.token_to_piece(token) for token in range(len(smollm2.vocab)))
    return {piece for piece in pieces if len(piece) == 1}


@pytest.mark.model
@no_deadline
@given(unicode_text)
@example("👩‍👩‍👧‍👦")
@example("What ? No ! Well , I 'm sure .")
def test_text_comes_back_from_the_real_model(smollm2, smollm2_bytes, text):
    vocab = smollm2.vocab
    text = "".join(
        character
        for character in text
        if all(bytes([byte]) in smollm2_bytes for byte in character.encode())
    )
    assert vocab.detokenize(vocab.tokenize(text, add_special=False)) == text
    pushed, rest = stream(vocab, vocab.tokenize(text, add_special=False))
    assert "".join(pushed) + rest == text


@pytest.mark.model
def test_an_emoji_of_several_tokens_streams_whole(smollm2):
    tokens = smollm2.vocab.tokenize("🦙", add_special=False)
    assert len(tokens) > 1
    assert stream(smollm2.vocab, tokens) == ([*[""] * (len(tokens) - 1), "🦙"], "")
