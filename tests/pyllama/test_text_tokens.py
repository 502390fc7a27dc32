"""A grammar that is told so takes no token whose text an answer does not show as it reads it."""

import gguf
import pytest
import synthetic

import pyllama

ANY_TEXT = "root ::= [^\\x00]*"
MODELS = {
    "spm": "llama",
    "bpe": "gpt2",
    "wpm": "bert",
    "ugm": "t5",
    "rwkv": "rwkv",
    "plamo2": "plamo2",
}
WITH_BYTES = [kind for kind in MODELS if kind != "wpm"]
KINDS = {
    "<unk>": "UNKNOWN",
    "<s>": "CONTROL",
    "</s>": "CONTROL",
    "[MASK]": "CONTROL",
    "<unused0>": "UNUSED",
    "<mark>": "USER_DEFINED",
    "ab": "NORMAL",
    "nul": "NORMAL",
}


def spelled(model: str, piece: bytes) -> tuple[str, str]:
    """How a vocabulary writes a token of these bytes, and the token's kind."""
    if model == "gpt2":
        spellings = synthetic._byte_spellings()
        return "".join(spellings[byte] for byte in piece), "NORMAL"
    if model == "rwkv":
        return "".join(f"\\x{byte:02x}" for byte in piece), "NORMAL"
    if len(piece) == 1:
        return f"<0x{piece[0]:02X}>", "BYTE"
    return piece.decode("utf-8", "replace"), "NORMAL"


@pytest.fixture(scope="module", params=MODELS)
def vocab(request, tmp_path_factory):
    """A vocabulary of each type, with tokens of every kind."""
    path = tmp_path_factory.mktemp("vocab") / "vocab.gguf"
    model = MODELS[request.param]
    written = {**KINDS}
    pieces = [bytes([byte]) for byte in range(256) if model != "bert"]
    if model in ("gpt2", "rwkv"):
        pieces += [
            b"a\0b",
            b"\xc3\xa4",
            b"\xa4\xa4",
            b"\xe0\x82",
            b"\xed\xa0\x80",
            b"\xa4\xa4\xa4\xa4",
        ]
    for piece in pieces:
        text, kind = spelled(model, piece)
        written.setdefault(text, kind)
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_tokenizer_model(model)
    if model == "gpt2":
        writer.add_tokenizer_pre("gpt-2")
        writer.add_token_merges(["a b"])
    writer.add_token_list([*written])
    writer.add_token_types([gguf.TokenType[kind] for kind in written.values()])
    writer.add_token_scores([-float(index) for index in range(len(written))])
    writer.add_unk_token_id(0)
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.close()
    with pyllama.Model(path, vocab_only=True) as opened:
        assert opened.vocab.type == request.param
        yield opened.vocab


def shown(vocab, token: int) -> bytes:
    return vocab.token_to_piece(token, special=False)


def is_text(piece: bytes) -> bool:
    """Whether it is UTF-8 without a null character."""
    return piece.decode("utf-8", "ignore").encode() == piece and b"\0" not in piece


def may_begin_text(piece: bytes) -> bool:
    """Whether some text in UTF-8 begins with it."""
    fills = (fill * count for fill in (b"\x80", b"\xbf") for count in range(4))
    return any(is_text(piece + fill) for fill in fills)


def test_what_may_follow_is_shown_as_it_is_read(vocab):
    with pyllama.GrammarSampler(vocab, ANY_TEXT, shown=()) as sampler:
        allowed = {*sampler.allowed_tokens().tolist()}
    for token in range(vocab.n_tokens):
        if vocab.is_eog(token):
            continue
        read = vocab.token_to_piece(token)
        fits = bool(read) and shown(vocab, token) == read and may_begin_text(read)
        assert (token in allowed) == fits, (token, read)


def test_without_it_names_are_text_as_in_llama_cpp(vocab):
    with pyllama.GrammarSampler(vocab, ANY_TEXT) as sampler:
        assert {0, 1, 3} <= {*sampler.allowed_tokens().tolist()}


def test_those_that_are_shown_and_those_that_are_named_may_follow(vocab):
    with pyllama.GrammarSampler(vocab, ANY_TEXT, shown=[3]) as sampler:
        allowed = {*sampler.allowed_tokens().tolist()}
        assert allowed & {0, 1, 3} == {3}
    with pyllama.GrammarSampler(vocab, "root ::= <[3]> [^\\x00]*", shown=()) as sampler:
        assert sampler.allowed_tokens().tolist() == [3]


def test_a_lazy_grammar_rules_nothing_out_before_it_begins(vocab):
    [mark] = [token for token in range(vocab.n_tokens) if vocab.token_to_piece(token) == b"<mark>"]
    with pyllama.GrammarSampler(vocab, ANY_TEXT, trigger_tokens=[mark], shown=()) as sampler:
        assert sampler.allows([0, 3]).all()
        sampler.accept(mark)
        assert not sampler.allows([0, 3]).any()


BEGUN = [b"\xe0", b"\xe1", b"\xed", b"\xee", b"\xf0", b"\xf1", b"\xf4", b"\xf1\x80", b"\xf0\x9f"]


@pytest.mark.parametrize("begun", BEGUN)
@pytest.mark.parametrize("vocab", WITH_BYTES, indirect=True)
def test_bytes_that_form_no_character_do_not_follow(vocab, begun):
    tokens = {vocab.token_to_piece(token): token for token in range(vocab.n_tokens)}
    with pyllama.GrammarSampler(vocab, ANY_TEXT, shown=()) as sampler:
        for byte in begun:
            sampler.accept(tokens[bytes([byte])])
        for byte in range(256):
            if bytes([byte]) in tokens:
                fits = may_begin_text(begun + bytes([byte]))
                assert sampler.allows([tokens[bytes([byte])]])[0] == fits, byte


def test_a_shortest_text_counts_no_names(vocab):
    with pyllama.GrammarSampler(vocab, 'root ::= "<s>"', shown=()) as sampler:
        hidden = sampler.fewest_tokens
    with pyllama.GrammarSampler(vocab, 'root ::= "<s>"') as sampler:
        assert sampler.fewest_tokens == 1
    assert hidden is None or hidden > 1
