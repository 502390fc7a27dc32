"""Grammars: what generated text must look like, in GBNF."""

from __future__ import annotations

import json
import re
import weakref
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

from pyllama import _callbacks  # noqa: F401  (installs the guard before any guarded call)
from pyllama import _sampler_arguments as checked
from pyllama._arguments import INT32_MAX, integer, token_array
from pyllama._guard import check, raise_caught, take_str
from pyllama._half_made import or_half_made
from pyllama._handle import Handle
from pyllama._native._binding import ffi, lib
from pyllama.errors import GrammarError, NativeError
from pyllama.forced_text import Forcing
from pyllama.sampler import Sampler
from pyllama.vocab import Vocab

if TYPE_CHECKING:
    from pyllama._native._binding import Pointer, llama_sampler, llama_vocab, pyllama_tokens

MAX_SOURCE = 2**22  # bytes of GBNF
MAX_SCHEMA = 2**19  # bytes of JSON; each takes up to 1 KiB of stack
MAX_PIECE = 1024  # bytes of a token; llama.cpp recurses once for each character
MAX_PATTERN = 1024  # bytes of a trigger pattern
MAX_PATTERN_GROUPS = 50

# Bytes of stack that std::regex takes at most for each byte of text and item of its pattern.
_STACK_PER_ITEM = 192
_ITEM = re.compile(rb"\\.|\[(?:\\.|[^\]\\])*\]|.", re.DOTALL)
Ending = Literal["goes on", "may end", "ends"]
_ENDINGS: tuple[Ending, ...] = ("goes on", "may end", "ends")
_COUNTS = ("minItems", "maxItems", "minLength", "maxLength")
_BOUNDS = ("minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum")


@dataclass(frozen=True)
class Grammar:
    """A grammar in GBNF, checked when it is made.

    llama.cpp's own parser reads it, and gives a repetition with a maximum over 2000 no maximum.
    Beyond what llama.cpp refuses by itself (left recursion, repetitions that stand for more than
    2000 rules), these limits hold: 4 MiB of text, 64 MiB in memory with repetitions written out,
    parentheses 200 deep, 50,000 continuations at one place, chains of 4,000 rules that begin with
    the next one, and no rule that can begin with itself after parts that may be empty.

    Args:
        gbnf: the rules.
        root: the rule to begin with.

    Raises:
        GrammarError: what is wrong, in the parser's own words, with line and column.
    """

    #: The rules.
    gbnf: str
    #: The rule to begin with.
    root: str = "root"
    #: Regular expressions of a JSON schema that have no equivalent in GBNF: any string passes.
    unsupported_patterns: tuple[str, ...] = field(default=(), kw_only=True)

    def __post_init__(self) -> None:
        problem = _problem(ffi.NULL, self)
        if problem:
            raise GrammarError(problem)

    @classmethod
    def from_json_schema(cls, schema: Mapping[str, Any] | bool | str) -> Grammar:
        """The grammar of the JSON texts that a schema describes.

        The conversion is llama.cpp's own. It ignores keywords that it does not know. ``$ref`` may
        only refer to parts of the schema; nothing is fetched.
        ``unsupported_patterns`` holds each ``pattern`` that it could not convert.

        Args:
            schema: the schema as a mapping, its JSON text, or True for any value; at most 512 KiB
                of JSON.

        Raises:
            GrammarError: it is not a schema, cannot be converted, or exceeds the limits.
        """
        text = _schema_text(schema)
        try:
            answer = take_str(
                lib.guarded_json_schema_to_grammar(text, len(text)), "converting the JSON schema"
            )
        except NativeError as error:
            raise GrammarError(str(error)) from None
        converted = json.loads(answer)
        try:
            return cls(converted["gbnf"], unsupported_patterns=tuple(converted["patterns"]))
        except GrammarError as error:
            raise GrammarError(f"the grammar of the JSON schema cannot be used: {error}") from None

    @or_half_made
    def __repr__(self) -> str:
        return f"<pyllama.Grammar of {self.gbnf.count('::=')} rules, from {self.root!r}>"


class GrammarSampler(Sampler):
    """Excludes tokens that a grammar does not allow, like ``llama_sampler_init_grammar``.

    Give it to a ``SamplerChain`` as its ``grammar``. As one of the chain's samplers it would be
    applied to all candidates, for every token.

    The vocabulary is searched as a tree of characters, with the same result as llama.cpp's own
    check of each token. That takes about 0.2 ms if little is allowed, milliseconds if nearly
    everything is, and no time in a state that it was in before. For grammars that name tokens
    (``<[7]>``) and texts that stop within a character, all tokens are checked one by one.

    With triggers it is lazy, like ``llama_sampler_init_grammar_lazy_patterns``: everything is
    allowed until a trigger has been accepted, and from then on the grammar applies.

    Args:
        vocab: of the model to sample for; closing the model closes the sampler.
        grammar: a grammar, or its GBNF with the root ``"root"``.
        trigger_patterns: ECMAScript regular expressions, searched in all text so far. The grammar
            begins with the first group that matched, or else with the whole match.
        trigger_tokens: the grammar begins with the first of these tokens.
        shown: None to read every token as llama.cpp does. Otherwise, while the grammar applies,
            tokens that the text of the answer would not show are excluded: control and unknown
            tokens, except for these, and bytes that are not UTF-8.

    Raises:
        GrammarError: a grammar or pattern that cannot be used with this vocabulary.
        TokenizationError: the model has no tokenizer.
    """

    def __init__(
        self,
        vocab: Vocab,
        grammar: Grammar | str,
        *,
        trigger_patterns: Iterable[str] = (),
        trigger_tokens: Iterable[int] = (),
        shown: Iterable[int] | None = None,
    ) -> None:
        checked.tokenizing(vocab)
        if not isinstance(grammar, Grammar):
            if not isinstance(grammar, str):
                raise TypeError(f"grammar must be a pyllama.Grammar or a str, got {grammar!r}")
            grammar = Grammar(grammar)
        patterns = _patterns(trigger_patterns)
        tokens = _tokens_in("trigger_tokens", vocab, trigger_tokens)
        names = None if shown is None else _tokens_in("shown", vocab, shown)
        with vocab._open() as pointer:
            # Without tokens named by their text it means the same for every vocabulary.
            problem = _problem(pointer, grammar) if "<" in grammar.gbnf else ""
            if problem:
                raise GrammarError(problem)
            with _tokens_of(vocab, pointer) as known:
                sampler = _init(pointer, known, grammar, patterns, tokens, names)
            super().__init__(sampler, selects=False, vocab=vocab, reads_vocab=True)
            self._eog = check(lib.guarded_grammar_eog(pointer), "looking for end tokens")
        #: The grammar it follows.
        self.grammar = grammar

    def allows(self, tokens: ArrayLike) -> NDArray[np.bool_]:
        """Which tokens may follow, each by itself.

        Args:
            tokens: integers of shape (n,).

        Returns:
            bool array of shape (n,).

        Raises:
            ValueError: a token outside the vocabulary.
        """
        ids = np.ascontiguousarray(token_array(tokens))
        n_vocab = self._n_vocab
        if ids.size and int(ids.max()) >= n_vocab:
            raise ValueError(f"tokens must be between 0 and {n_vocab - 1}, got {ids.max()}")
        allowed = np.zeros(len(ids), dtype=np.bool_)
        with self._held() as owner:
            owner._run(
                "asking a grammar",
                lib.guarded_grammar_allowed,
                self._pointer,
                ffi.from_buffer("llama_token[]", ids),
                len(ids),
                ffi.from_buffer("bool[]", allowed),
            )
        return allowed

    def allowed_tokens(self) -> NDArray[np.int32]:
        """All tokens that may follow, int32 of shape (n,); a single one is forced."""
        ids = np.arange(self._n_vocab, dtype=np.int32)
        tokens: NDArray[np.int32] = ids[self.allows(ids)]
        return tokens

    @property
    def complete(self) -> bool:
        """Whether the text may end here, by a token that ends generation.

        False for a vocabulary without such a token.
        """
        return self._eog != lib.LLAMA_TOKEN_NULL and bool(self.allows([self._eog])[0])

    def forced_text(self) -> str:
        """The text about which the grammar leaves no choice: every continuation begins with it.

        A token may end anywhere in it, or extend beyond it. The call takes microseconds and changes
        nothing.

        Returns:
            at most 1 KiB of it. Empty where several characters may come next or the text may end,
            while a lazy grammar waits, and where a token ended within a character.
        """
        with self._held():
            return take_str(lib.guarded_grammar_forced_text(self._pointer), "asking a grammar")

    def forced_tokens(self, forcing: Forcing) -> list[int]:
        """The tokens of ``forced_text()`` that can be written without sampling, if any."""
        if not isinstance(forcing, Forcing):
            raise TypeError(f"forcing must be a pyllama.Forcing, got {forcing!r}")
        assert self._vocab is not None
        struct, tokens = ffi.new("pyllama_forcing *"), ffi.new("llama_token[]", forcing.most)
        kept = forcing._fill(struct, self._vocab)
        with self._held(), self._vocab._open() as vocab:
            n = lib.guarded_grammar_forced_tokens(self._pointer, vocab, struct, tokens)
        del kept
        if n == lib.PYLLAMA_CAUGHT:
            raise_caught("asking a grammar")
        forced: list[int] = ffi.unpack(tokens, n)
        return forced

    def complete_within(self, n_tokens: int | None, *, end_repetitions: bool = False) -> None:
        """Exclude tokens after which the text could not be completed in time.

        The fewest tokens that complete it are kept in reserve. Before they are needed, room is kept
        for the values that still come, and a long text is ended with a sentence, a line or a word
        that ends in time. What is allowed depends on the text so far. This applies to what a
        ``SamplerChain`` samples under this grammar; ``accept`` and ``allows`` ignore it. Nothing is
        excluded if completing the text takes more than ``n_tokens``, or if ``fewest_tokens`` is not
        known.

        Args:
            n_tokens: how many more tokens may come, at least 1, without the one that ends the
                text. A lazy grammar also counts them while it waits. None for any number.
            end_repetitions: end a text whose line repeats itself: the last 64 tokens or more are at
                least 8 times the same span of up to 64 tokens, without a line break. What follows
                the text comes next. Texts in which no line may end, such as those in JSON, and
                blocks of code (```) are not ended.
        """
        n = 0 if n_tokens is None else integer("n_tokens", n_tokens, 1, INT32_MAX)
        with self._held() as owner:
            owner._run(
                "bounding a grammar",
                lib.guarded_grammar_complete_within,
                self._pointer,
                n,
                bool(end_repetitions),
            )

    @property
    def fewest_tokens(self) -> int | None:
        """The fewest tokens that complete the text from here on.

        0 if it may end here. None if that is not known: for a grammar that names tokens or whose
        shortest text has more than 16 KiB, and while a lazy grammar waits.
        """
        found = ffi.new("int64_t *")
        with self._held() as owner:
            owner._run("asking a grammar", lib.guarded_grammar_fewest_tokens, self._pointer, found)
        return None if found[0] < 0 else int(found[0])

    def fits(self, tokens: ArrayLike) -> bool:
        """Whether these tokens may follow and the text can still be completed in time.

        Without ``complete_within`` any tokens fit.

        Args:
            tokens: integers of shape (n,); none that ends the text.

        Raises:
            ValueError: a token outside the vocabulary.
        """
        ids = np.ascontiguousarray(token_array(tokens))
        if ids.size and int(ids.max()) >= self._n_vocab:
            raise ValueError(f"tokens must be between 0 and {self._n_vocab - 1}, got {ids.max()}")
        with self._held():
            fits = lib.guarded_grammar_fits(
                self._pointer, ffi.from_buffer("llama_token[]", ids), len(ids)
            )
            if fits == lib.PYLLAMA_CAUGHT:
                raise_caught("asking a grammar")
            return bool(fits)

    def shortened(self, *, here: bool = False) -> list[frozenset[str]]:
        """The places where ``complete_within`` excluded a token that would have been chosen.

        Args:
            here: include the current place.

        Returns:
            for each place the names of the rules that it is in. If a rule is the last part of
            another, some may be missing.
        """
        with self._held():
            text = take_str(
                lib.guarded_grammar_shortened(self._pointer, bool(here)), "asking a grammar"
            )
        return _places(text)

    def repeated(self) -> list[frozenset[str]]:
        """The places where ``complete_within`` ended a text because it repeated itself.

        Returns:
            as ``shortened`` does.
        """
        with self._held():
            text = take_str(lib.guarded_grammar_repeated(self._pointer), "asking a grammar")
        return _places(text)

    @property
    def ending(self) -> Ending:
        """Whether the text may end here, and whether it has to because nothing may follow."""
        with self._held():
            ending: int = lib.guarded_grammar_ending(self._pointer)
            if ending == lib.PYLLAMA_CAUGHT:
                raise_caught("asking a grammar")
        return _ENDINGS[ending]

    @property
    def _n_vocab(self) -> int:
        assert self._vocab is not None
        return self._vocab.n_tokens


def _places(text: str) -> list[frozenset[str]]:
    return [frozenset(line.split()) for line in text.split("\n")[:-1]]


def _problem(vocab: Pointer[llama_vocab], grammar: Grammar) -> str:
    """The error of the grammar, or an empty text."""
    for name in ("gbnf", "root"):
        value = getattr(grammar, name)
        if not isinstance(value, str):
            raise TypeError(f"{name} must be a str, got {value!r}")
    try:
        source, root = grammar.gbnf.encode(), grammar.root.encode()
    except UnicodeEncodeError as error:
        return f"the grammar is no Unicode text: {error}"
    if b"\0" in source or b"\0" in root:
        return "the grammar holds a null character"
    if len(source) > MAX_SOURCE:
        return f"the grammar is longer than {MAX_SOURCE} bytes"
    return take_str(lib.guarded_grammar_check(vocab, source, root), "checking a grammar")


# The tokens of a vocabulary in the form that grammars traverse. Making it takes milliseconds.
_tokens: weakref.WeakKeyDictionary[Vocab, Handle[Pointer[pyllama_tokens]]] = (
    weakref.WeakKeyDictionary()
)


def _tokens_of(vocab: Vocab, pointer: Pointer[llama_vocab]) -> Handle[Pointer[pyllama_tokens]]:
    """The tokens of a vocabulary whose model is open, made once: see Vocab._tokenizer."""
    with vocab._lock:
        tokens = _tokens.get(vocab)
        if tokens is None:
            made = lib.guarded_tokens_init(pointer)
            if made == ffi.NULL:
                raise_caught("looking at all tokens")
            tokens = _tokens[vocab] = Handle(made, lib.guarded_tokens_free)
    longest = lib.guarded_tokens_longest(tokens.pointer)
    if longest > MAX_PIECE:
        raise GrammarError(
            f"the vocabulary has a token of {longest} bytes; grammars can be used with tokens of "
            f"at most {MAX_PIECE}"
        )
    return tokens


def _init(
    vocab: Pointer[llama_vocab],
    known: Pointer[pyllama_tokens],
    grammar: Grammar,
    patterns: list[bytes],
    tokens: list[int],
    shown: list[int] | None,
) -> Pointer[llama_sampler]:
    texts = [ffi.new("char[]", pattern) for pattern in patterns]
    return lib.guarded_sampler_init_grammar(
        vocab,
        known,
        grammar.gbnf.encode(),
        grammar.root.encode(),
        texts,
        len(texts),
        tokens,
        len(tokens),
        ffi.NULL if shown is None else ffi.new("llama_token[]", shown or 1),
        len(shown or ()),
        max(map(_stack_per_byte, patterns), default=0),
    )


def _patterns(patterns: Iterable[str]) -> list[bytes]:
    if isinstance(patterns, str) or not isinstance(patterns, Iterable):
        raise TypeError(f"trigger_patterns must hold texts, got {patterns!r}")
    checked = []
    for pattern in patterns:
        if not isinstance(pattern, str):
            raise TypeError(f"trigger_patterns must hold texts, got {pattern!r}")
        data = pattern.encode("utf-8", "replace")
        if not 0 < len(data) <= MAX_PATTERN or b"\0" in data:
            raise GrammarError(
                f"trigger_patterns must hold texts of 1 to {MAX_PATTERN} bytes, got {pattern!r}"
            )
        if data.count(b"(") > MAX_PATTERN_GROUPS:
            raise GrammarError(
                f"trigger_patterns must have at most {MAX_PATTERN_GROUPS} groups, got {pattern!r}"
            )
        problem = take_str(lib.guarded_grammar_check_pattern(data), "checking a pattern")
        if problem:
            raise GrammarError(f"trigger_patterns: {pattern!r}: {problem}")
        checked.append(data)
    return checked


def _stack_per_byte(pattern: bytes) -> int:
    """How much stack the search for the pattern takes, for each byte of the text."""
    items = _ITEM.findall(pattern)
    repeats = any(item in (b"*", b"+", b"{") for item in items)
    return len(items) * _STACK_PER_ITEM if repeats else 0


def _tokens_in(name: str, vocab: Vocab, tokens: Iterable[int]) -> list[int]:
    if not isinstance(tokens, Iterable):
        raise TypeError(f"{name} must hold tokens, got {tokens!r}")
    return [integer(name, token, 0, vocab.n_tokens - 1) for token in tokens]


def _schema_text(schema: Mapping[str, Any] | bool | str) -> bytes:
    """The schema as JSON that the converter reads correctly."""
    if not isinstance(schema, (Mapping, bool, str)):
        raise TypeError(f"schema must be a mapping, a bool or JSON text, got {schema!r}")
    try:
        value = json.loads(schema) if isinstance(schema, str) else schema
        text = json.dumps(dict(value) if isinstance(value, Mapping) else value, allow_nan=False)
        value = json.loads(text)
    except RecursionError:
        raise GrammarError("the JSON schema nests too deep") from None
    except TypeError as error:
        raise TypeError(f"schema must hold what JSON can say: {error}") from None
    except ValueError as error:
        raise GrammarError(f"the JSON schema is no JSON: {error}") from None
    if value is True:
        text = "{}"
    elif not isinstance(value, dict):
        raise GrammarError(f"the JSON schema must be an object or true, got {text[:50]}")
    if len(text) > MAX_SCHEMA:
        raise GrammarError(f"the JSON schema is longer than {MAX_SCHEMA} bytes")
    _require_sound(value)
    return text.encode()


def _require_sound(schema: Any) -> None:
    """Refuse what the converter would convert wrongly."""
    todo = [schema]
    while todo:
        value = todo.pop()
        if isinstance(value, list):
            todo += value
        elif isinstance(value, dict):
            todo += value.values()
            types = value.get("type")
            if isinstance(types, list) and len(set(map(repr, types))) < len(types):
                # Each would be converted by itself, with all that it contains.
                raise GrammarError(f"the JSON schema has a type twice in {types!r}")
            for key in _COUNTS:
                count = value.get(key)
                if isinstance(count, int) and count > INT32_MAX:
                    raise GrammarError(f"the JSON schema has a {key} over {INT32_MAX}: {count}")
            if types == "integer" or (isinstance(types, list) and "integer" in types):
                _require_sound_bounds(value)


def _require_sound_bounds(schema: dict[str, Any]) -> None:
    for key in _BOUNDS:
        bound = schema.get(key)
        if isinstance(bound, (int, float)) and not -(2**63) <= bound < 2**63:
            raise GrammarError(f"the JSON schema has a {key} of more than 64 bits: {bound}")
    low, high = schema.get("minimum"), schema.get("maximum")
    if isinstance(low, (int, float)) and isinstance(high, (int, float)) and low > high:
        raise GrammarError(f"the JSON schema has a minimum over its maximum: {low}, {high}")
