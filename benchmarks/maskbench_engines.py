"""The engines that maskbench.py compares: each makes grammars of schemas and checks tokens."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import json
from collections.abc import Callable
from functools import partial
from typing import Any, Protocol

import numpy as np

import pyllama
from adapter.grammar.schema.json_schema import json_schema_grammar


class Engine(Protocol):
    """One way to make a grammar of a schema and to check tokens against it.

    told    keywords of the schema that the grammar leaves out, as the engine itself says
    """

    told: tuple[str, ...]

    def compile(self, schema: Any) -> None:
        """Be ready to check texts of a schema. Raises whatever says that it cannot be done."""

    def begin(self) -> None:
        """Begin a text of the schema."""

    def check(self, token: int) -> bool:
        """Take the next token of the text, and say whether it may be there."""

    def mask(self) -> None:
        """Find all tokens that may come next."""

    def complete(self) -> bool:
        """Whether the text may end here."""

    def finish(self) -> None:
        """Let go of the schema."""


class Pyllama:
    """This project's grammars, with keys in the schema's order or in any."""

    def __init__(self, vocab: pyllama.Vocab, *, any_order: bool = False) -> None:
        self._any_order = any_order
        self._vocab = vocab
        self._all = np.arange(vocab.n_tokens, dtype=np.int32)
        self.told: tuple[str, ...] = ()

    def compile(self, schema: Any) -> None:
        made = json_schema_grammar(json.dumps(schema), any_order=self._any_order)
        json_schema_grammar.cache_clear()
        self.told = made.unchecked
        self._compiled = pyllama.GrammarSampler(self._vocab, pyllama.Grammar(made.gbnf))
        self._now = self._compiled

    def begin(self) -> None:
        if self._now is not self._compiled:
            self._now.close()
        self._now = self._compiled.clone()

    def check(self, token: int) -> bool:
        allowed = bool(self._now.allows([token])[0])
        if allowed:
            self._now.accept(token)
        return allowed

    def mask(self) -> None:
        self._now.allows(self._all)

    def complete(self) -> bool:
        return self._now.complete

    def finish(self) -> None:
        self._now.close()
        self._compiled.close()


class LLGuidance:
    """The llguidance package."""

    def __init__(self, vocab: pyllama.Vocab) -> None:
        import llguidance
        import llguidance.numpy

        class Words:
            eos_token_id = vocab.eos
            bos_token_id = vocab.bos
            tokens = _pieces(vocab)
            special_token_ids = _special(vocab)

            def __call__(self, text: bytes) -> list[int]:
                return vocab.tokenize(text, add_special=False)

        self._llguidance = llguidance
        self._words = llguidance.LLTokenizer(llguidance.TokenizerWrapper(Words()))
        self._fill = llguidance.numpy.fill_next_token_bitmask
        self._bits = llguidance.numpy.allocate_token_bitmask(1, vocab.n_tokens)
        self.told: tuple[str, ...] = ()

    def compile(self, schema: Any) -> None:
        grammar = json.dumps({"grammars": [{"json_schema": schema}]})
        self._compiled = self._llguidance.LLMatcher(self._words, grammar)
        if self._compiled.is_error():
            raise ValueError(self._compiled.get_error())

    def begin(self) -> None:
        self._now = self._compiled.deep_copy()

    def check(self, token: int) -> bool:
        return bool(self._now.try_consume_tokens([token]) == 1)

    def mask(self) -> None:
        self._fill(self._now, self._bits, 0)

    def complete(self) -> bool:
        return bool(self._now.is_accepting())

    def finish(self) -> None:
        self._now = self._compiled = None


class XGrammar:
    """The xgrammar package, with any white space and other keys where the schema lets them be."""

    def __init__(self, vocab: pyllama.Vocab) -> None:
        import xgrammar

        self._xgrammar = xgrammar
        pieces = _pieces(vocab)
        info = xgrammar.TokenizerInfo(pieces, stop_token_ids=[vocab.eos])
        self._eos = vocab.eos
        self._bits = xgrammar.allocate_token_bitmask(1, info.vocab_size)
        self._compiler = xgrammar.GrammarCompiler(info, max_threads=1, cache_enabled=False)
        self.told: tuple[str, ...] = ()

    def compile(self, schema: Any) -> None:
        self._compiled = self._compiler.compile_json_schema(
            json.dumps(schema), any_whitespace=True, strict_mode=False
        )

    def begin(self) -> None:
        self._now = self._xgrammar.GrammarMatcher(self._compiled)

    def check(self, token: int) -> bool:
        return bool(self._now.accept_token(token))

    def mask(self) -> None:
        self._now.fill_next_token_bitmask(self._bits)

    def complete(self) -> bool:
        return bool(self._now.accept_token(self._eos))

    def finish(self) -> None:
        self._now = self._compiled = None


def _pieces(vocab: pyllama.Vocab) -> list[bytes]:
    return [vocab.token_to_piece(token) for token in range(vocab.n_tokens)]


def _special(vocab: pyllama.Vocab) -> list[int]:
    return [token for token in range(vocab.n_tokens) if vocab.is_control(token)]


ENGINES: dict[str, Callable[[pyllama.Vocab], Engine]] = {
    "pyllama": Pyllama,
    "pyllama-any-order": partial(Pyllama, any_order=True),
    "llguidance": LLGuidance,
    "xgrammar": XGrammar,
}


def installed() -> list[str]:
    """The engines that can be imported here."""
    return [name for name in ENGINES if importlib.util.find_spec(name.partition("-")[0])]


def version(name: str) -> str:
    """The version of an engine's package."""
    package = name.partition("-")[0]
    return pyllama.__version__ if package == "pyllama" else importlib.metadata.version(package)
