"""Vocabularies: tokens to text and back."""

from __future__ import annotations

import operator
import reprlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Concatenate, Literal, NoReturn, ParamSpec

import numpy as np
from numpy.typing import NDArray

from pyllama._arguments import integer
from pyllama._guard import CAUGHT, check, raise_caught, to_str
from pyllama._half_made import or_half_made
from pyllama._handle import Handle
from pyllama._native._binding import ffi, lib
from pyllama._process import make_lock
from pyllama._uncopyable import Uncopyable
from pyllama.errors import NativeAssertionError, NativeError, TokenizationError

if TYPE_CHECKING:
    from pyllama._native._binding import Array, Pointer, llama_vocab, pyllama_tokenizer
    from pyllama._object import NativeObject

A = ParamSpec("A")

VocabType = Literal["none", "spm", "bpe", "wpm", "ugm", "rwkv", "plamo2", "test"]

_TYPES: dict[int, VocabType] = {
    lib.LLAMA_VOCAB_TYPE_NONE: "none",
    lib.LLAMA_VOCAB_TYPE_SPM: "spm",
    lib.LLAMA_VOCAB_TYPE_BPE: "bpe",
    lib.LLAMA_VOCAB_TYPE_WPM: "wpm",
    lib.LLAMA_VOCAB_TYPE_UGM: "ugm",
    lib.LLAMA_VOCAB_TYPE_RWKV: "rwkv",
    lib.LLAMA_VOCAB_TYPE_PLAMO2: "plamo2",
    lib.LLAMA_VOCAB_TYPE_TEST: "test",
}


TokenAttr = Literal[
    "unknown",
    "unused",
    "normal",
    "control",
    "user_defined",
    "byte",
    "normalized",
    "lstrip",
    "rstrip",
    "single_word",
]

_ATTRS: dict[int, TokenAttr] = {
    lib.LLAMA_TOKEN_ATTR_UNKNOWN: "unknown",
    lib.LLAMA_TOKEN_ATTR_UNUSED: "unused",
    lib.LLAMA_TOKEN_ATTR_NORMAL: "normal",
    lib.LLAMA_TOKEN_ATTR_CONTROL: "control",
    lib.LLAMA_TOKEN_ATTR_USER_DEFINED: "user_defined",
    lib.LLAMA_TOKEN_ATTR_BYTE: "byte",
    lib.LLAMA_TOKEN_ATTR_NORMALIZED: "normalized",
    lib.LLAMA_TOKEN_ATTR_LSTRIP: "lstrip",
    lib.LLAMA_TOKEN_ATTR_RSTRIP: "rstrip",
    lib.LLAMA_TOKEN_ATTR_SINGLE_WORD: "single_word",
}


MAX_TEXT = 64 * 1024 * 1024  # bytes that are tokenized at once


class Vocab(Uncopyable):
    """The vocabulary of a model. It belongs to the model and cannot be used after its close().

    Any number of threads may use one at once.
    """

    _instead_of_copying = "Any number of threads may use it; another process opens the model's file"

    def __init__(
        self, model: NativeObject[Any], pointer: Pointer[llama_vocab], *, pre: str | None = None
    ) -> None:
        """

        Args:
            pre: the pre-tokenizer that the model was given in place of its file's.
        """
        self._model = model
        self._pointer = pointer
        self._pre = pre
        self._lock = make_lock(self)
        self._own_tokenizer: Handle[Pointer[pyllama_tokenizer]] | None = None
        #: The kind of tokenizer.
        self.type: VocabType = _TYPES.get(lib.llama_vocab_type(pointer), "none")
        #: Number of tokens; ids are 0 to n_tokens - 1.
        self.n_tokens: int = lib.llama_vocab_n_tokens(pointer)
        # The text of a token wherever it stands, as detokenizers found out: without and with the
        # text of special tokens.
        self._texts: tuple[dict[int, str], dict[int, str]] = ({}, {})
        self._eog: dict[int, bool] = {}
        #: The token that begins a text; None where the model has none.
        self.bos = self._special(lib.llama_vocab_bos(pointer))
        #: The token that ends a text; None where the model has none.
        self.eos = self._special(lib.llama_vocab_eos(pointer))
        #: The token that ends a turn; None where the model has none.
        self.eot = self._special(lib.llama_vocab_eot(pointer))
        #: The token between two sentences; None where the model has none.
        self.sep = self._special(lib.llama_vocab_sep(pointer))
        #: The token of a line break; None where the model has none.
        self.nl = self._special(lib.llama_vocab_nl(pointer))
        #: The token that fills up; None where the model has none.
        self.pad = self._special(lib.llama_vocab_pad(pointer))
        #: The token that stands for a hidden word; None where the model has none.
        self.mask = self._special(lib.llama_vocab_mask(pointer))
        #: The token before the prefix, for filling in the middle; None where there is none.
        self.fim_pre = self._special(lib.llama_vocab_fim_pre(pointer))
        #: The token before the suffix; likewise.
        self.fim_suf = self._special(lib.llama_vocab_fim_suf(pointer))
        #: The token before the middle; likewise.
        self.fim_mid = self._special(lib.llama_vocab_fim_mid(pointer))
        #: The token that pads; likewise.
        self.fim_pad = self._special(lib.llama_vocab_fim_pad(pointer))
        #: The token between repositories; likewise.
        self.fim_rep = self._special(lib.llama_vocab_fim_rep(pointer))
        #: The token between files; likewise.
        self.fim_sep = self._special(lib.llama_vocab_fim_sep(pointer))
        #: Tokens that the model's authors never want sampled (``tokenizer.ggml.suppress_tokens``).
        self.suppress_tokens: tuple[int, ...] = _suppress_tokens(pointer)
        #: Whether tokenize(add_special=True) adds BOS.
        self.add_bos: bool = lib.llama_vocab_get_add_bos(pointer)
        #: Whether it adds EOS.
        self.add_eos: bool = lib.llama_vocab_get_add_eos(pointer)
        #: Whether it adds SEP.
        self.add_sep: bool = lib.llama_vocab_get_add_sep(pointer)

    def __len__(self) -> int:
        return self.n_tokens

    @or_half_made
    def __repr__(self) -> str:
        return f"<pyllama.Vocab {self.type}: {self.n_tokens} tokens>"

    def tokenize(
        self,
        text: str | bytes,
        *,
        add_special: bool = True,
        parse_special: bool = False,
        literal: Sequence[tuple[int, int]] = (),
    ) -> list[int]:
        """The token ids of a text: those of ``llama_tokenize``, however long it is.

        Args:
            text: str, or bytes of UTF-8; at most 64 MiB. Vocabularies of the type ``"bpe"`` take at
                most 2,097,151 characters without a break, such as a space between words.
            add_special: add the BOS, EOS or SEP tokens that the model is configured to want.
            parse_special: turn the text of control tokens such as ``<|im_end|>`` into the tokens
                themselves. Otherwise none of them comes out. Leave it off for text that others
                wrote. (Tokens of the kind ``"user_defined"`` stand for their text in any case.)
            literal: where parse_special does not apply: begins and ends of ranges of the text, in
                its characters or bytes, in ascending order. A control token that has a part there
                is text.

        Raises:
            TokenizationError: text that is no Unicode, or too long; a model without tokenizer.
            ValueError: ranges that are not in order, or beyond the text.
        """
        array = self.tokenize_array(
            text, add_special=add_special, parse_special=parse_special, literal=literal
        )
        tokens: list[int] = array.tolist()
        return tokens

    def tokenize_array(
        self,
        text: str | bytes,
        *,
        add_special: bool = True,
        parse_special: bool = False,
        literal: Sequence[tuple[int, int]] = (),
    ) -> NDArray[np.int32]:
        """The same as ``tokenize``, as an int32 array of shape (n,)."""
        return self._tokenize(text, literal, (add_special, add_special), parse_special)

    def tokenize_prompt(
        self, text: str, *, parse_special: bool = True, literal: Sequence[tuple[int, int]] = ()
    ) -> list[int]:
        """The token ids of a rendered chat: BOS once where the model wants it, and no EOS.

        Args:
            parse_special: see ``tokenize``.
            literal: see ``tokenize``; that of the RenderedChat.

        Raises:
            TokenizationError: see ``tokenize``.
        """
        tokens: list[int] = self._tokenize(text, literal, (True, False), parse_special).tolist()
        return tokens

    def _tokenize(
        self,
        text: str | bytes,
        literal: Sequence[tuple[int, int]],
        added: tuple[bool, bool],
        parse_special: bool,
    ) -> NDArray[np.int32]:
        data = _utf8(text)
        self._require_tokenizer()
        places = _byte_places(text, literal)
        result = ffi.new("llama_token **")
        before, after = added
        with self._model._open(), self._tokenizer as tokenizer:
            count = lib.guarded_tokenize(
                self._pointer,
                tokenizer,
                data,
                len(data),
                places,
                len(places),
                bool(before),
                bool(after),
                bool(parse_special),
                result,
            )
            if count == CAUGHT:
                _raise_tokenization_error(f"tokenizing a text of {len(data)} bytes")
        try:
            tokens = np.empty(count, dtype=np.int32)
            ffi.memmove(tokens, result[0], tokens.nbytes)
            return tokens
        finally:
            lib.pyllama_free(result[0])

    @property
    def _tokenizer(self) -> Handle[Pointer[pyllama_tokenizer]]:
        """Its special tokens, as tokenizing and chat templates look for them.

        Made when first asked for, and once: a second one in its place would free the first under a
        thread that uses it. (cached_property has no lock since Python 3.12.)
        """
        with self._lock:
            if self._own_tokenizer is None:
                self._own_tokenizer = self._make_tokenizer()
            return self._own_tokenizer

    def _make_tokenizer(self) -> Handle[Pointer[pyllama_tokenizer]]:
        with self._model._open() as model:
            pre = ffi.NULL if self._pre is None else self._pre.encode()
            tokenizer = lib.guarded_tokenizer_init(model, pre)
            if tokenizer == ffi.NULL:
                _raise_tokenization_error("reading the vocabulary")
        return Handle(tokenizer, lib.guarded_tokenizer_free)

    def detokenize(
        self,
        tokens: Sequence[int] | NDArray[np.int32],
        *,
        remove_special: bool = False,
        unparse_special: bool = True,
    ) -> str:
        """The text of tokens (``llama_detokenize``), the inverse of ``tokenize``.

        Args:
            remove_special: leave out the BOS and EOS that tokenize() added.
            unparse_special: render special tokens as their text, instead of as nothing.

        Raises:
            TokenizationError: an id outside the vocabulary.

        Bytes that are not UTF-8 (a sequence cut in the middle of a character) become U+FFFD; see
        ``detokenize_bytes`` and ``Detokenizer``.
        """
        return self.detokenize_bytes(
            tokens, remove_special=remove_special, unparse_special=unparse_special
        ).decode("utf-8", "replace")

    def detokenize_bytes(
        self,
        tokens: Sequence[int] | NDArray[np.int32],
        *,
        remove_special: bool = False,
        unparse_special: bool = True,
    ) -> bytes:
        """The same as ``detokenize``, as the exact bytes."""
        self._require_tokenizer()
        ids = self._ids(tokens)
        if remove_special:
            ids = self._without_special(ids)
        if self.type == "bpe":
            # For many of these llama_detokenize makes "?" of " ?". Their pieces are the exact text.
            pieces = (self.token_to_piece(int(token), special=unparse_special) for token in ids)
            return b"".join(pieces)
        array = ffi.from_buffer("llama_token[]", ids)
        return self._bytes(
            8 * len(ids) + 64,
            lambda buffer, room: lib.guarded_detokenize(
                self._pointer, array, len(ids), buffer, room, False, bool(unparse_special)
            ),
            f"detokenizing {len(ids)} tokens",
        )

    def token_to_piece(self, token: int, *, special: bool = True) -> bytes:
        """The bytes of one token (``llama_token_to_piece``); may be part of a character.

        Args:
            special: render a special token as its text, instead of as nothing.
        """
        self._require_tokenizer()
        token = self._id(token)
        return self._bytes(
            64,
            lambda buffer, room: lib.guarded_token_to_piece(
                self._pointer, token, buffer, room, 0, bool(special)
            ),
            f"the text of token {token}",
        )

    def get_text(self, token: int) -> str:
        """The token as the vocabulary spells it, such as ``"ĠHello"``.

        ``llama_vocab_get_text``.
        """
        self._require_tokenizer()
        with self._model._open():
            text = lib.guarded_vocab_get_text(self._pointer, self._id(token))
            if text == ffi.NULL:
                raise_caught(f"the text of token {token}")
            return to_str(text)

    def get_score(self, token: int) -> float:
        """The token's score in an SPM or UGM vocabulary (``llama_vocab_get_score``)."""
        self._require_tokenizer()
        score = ffi.new("float *")
        self._ask(lib.guarded_vocab_get_score, token, score)
        value: float = score[0]
        return value

    def get_attr(self, token: int) -> frozenset[TokenAttr]:
        """What kind of token it is (``llama_vocab_get_attr``), such as ``{"control"}``.

        Empty when the vocabulary does not say.
        """
        self._require_tokenizer()
        flags = self._ask(lib.guarded_vocab_get_attr, token)
        return frozenset(name for flag, name in _ATTRS.items() if flags & flag)

    def is_eog(self, token: int) -> bool:
        """Whether the token ends generation: EOS, EOT and the like (``llama_vocab_is_eog``)."""
        if type(token) is int and token in self._eog:
            self._model._open()
            return self._eog[token]
        ends = bool(self._ask(lib.guarded_vocab_is_eog, token))
        self._eog[int(token)] = ends
        return ends

    def is_control(self, token: int) -> bool:
        """Whether the token is a control token without text (``llama_vocab_is_control``)."""
        self._require_tokenizer()
        return bool(self._ask(lib.guarded_vocab_is_control, token))

    def _ask(
        self,
        question: Callable[Concatenate[Pointer[llama_vocab], int, A], int],
        token: int,
        *arguments: A.args,
        **named: A.kwargs,
    ) -> int:
        token = self._id(token)
        with self._model._open():
            return check(question(self._pointer, token, *arguments, **named), f"token {token}")

    @contextmanager
    def _open(self) -> Iterator[Pointer[llama_vocab]]:
        """Its pointer, as long as its model is kept open."""
        with self._model._open():
            yield self._pointer

    def _bytes(self, room: int, write: Callable[[Array[bytes], int], int], what: str) -> bytes:
        """What ``write`` puts into a buffer, which is enlarged if need be."""
        with self._model._open():
            while True:
                buffer = ffi.new("char[]", room)
                length = write(buffer, room)
                if length >= 0:
                    return bytes(ffi.buffer(buffer, length))
                if length == CAUGHT:
                    raise_caught(what)
                room = -length

    def _require_tokenizer(self) -> None:
        if self.type == "none":
            raise TokenizationError("this model has no tokenizer")

    def _without_special(self, ids: NDArray[np.int32]) -> NDArray[np.int32]:
        """The ids between the BOS and EOS that tokenize() adds.

        llama_detokenize can leave them out too, but keeps the space that sentencepiece puts
        before the text when it does.
        """
        if self.add_bos and len(ids) and ids[0] == self.bos:
            ids = ids[1:]
        if self.add_eos and len(ids) and ids[-1] == self.eos:
            ids = ids[:-1]
        return ids

    def _id(self, token: int) -> int:
        return integer("token", token, 0, self.n_tokens - 1)

    def _ids(self, tokens: Sequence[int] | NDArray[np.int32]) -> NDArray[np.int32]:
        try:
            wide = np.asarray(tokens)
            if wide.size == 0:
                return np.empty(0, dtype=np.int32)
            if wide.ndim != 1 or wide.dtype.kind not in "iu":
                raise TypeError
        except (TypeError, ValueError, OverflowError):
            raise TypeError(f"tokens must be a sequence of integers, got {tokens!r}") from None
        low, high = int(wide.min()), int(wide.max())
        if low < 0 or high >= self.n_tokens:
            wrong = low if low < 0 else high
            raise TokenizationError(
                f"tokens holds {wrong}, but this vocabulary has ids 0 to {self.n_tokens - 1}"
            )
        return np.ascontiguousarray(wide, dtype=np.int32)

    def _special(self, token: int) -> int | None:
        return None if token == lib.LLAMA_TOKEN_NULL else token


def _suppress_tokens(pointer: Pointer[llama_vocab]) -> tuple[int, ...]:
    count = ffi.new("int32_t *")
    tokens = lib.llama_vocab_get_suppress_tokens(pointer, count)
    return tuple(ffi.unpack(tokens, count[0])) if count[0] else ()


def _utf8(text: str | bytes) -> bytes:
    if isinstance(text, str):
        try:
            data = text.encode("utf-8")
        except UnicodeEncodeError as error:
            raise TokenizationError(
                f"text holds a lone surrogate at index {error.start}, which has no UTF-8 form"
            ) from None
    elif isinstance(text, bytes):
        data = text
    else:
        raise TypeError(f"text must be str or bytes, got {type(text).__name__}")
    if len(data) > MAX_TEXT:
        raise TokenizationError(f"text has {len(data)} bytes; at most {MAX_TEXT} are taken")
    return data


def _byte_places(text: str | bytes, ranges: Sequence[tuple[int, int]]) -> list[int]:
    """Begins and ends of ranges of a text, in bytes of its UTF-8."""
    try:
        pairs = [(operator.index(begin), operator.index(end)) for begin, end in ranges]
    except (TypeError, ValueError):
        raise TypeError(f"literal must hold pairs of ints, got {reprlib.repr(ranges)}") from None
    places = [place for pair in pairs for place in pair]
    if places != sorted(places):
        raise ValueError(f"literal must hold pairs in ascending order, got {reprlib.repr(ranges)}")
    if places and (places[0] < 0 or places[-1] > len(text)):
        raise ValueError(
            f"literal must hold places of the text, 0 to {len(text)}, got {reprlib.repr(ranges)}"
        )
    if isinstance(text, bytes) or text.isascii():
        return places
    in_bytes, last, n_bytes = [], 0, 0
    for place in places:
        n_bytes += len(text[last:place].encode())
        last = place
        in_bytes.append(n_bytes)
    return in_bytes


def _raise_tokenization_error(what: str) -> NoReturn:
    try:
        raise_caught(what)
    except NativeAssertionError:
        raise
    except NativeError as error:
        raise TokenizationError(str(error)) from None
