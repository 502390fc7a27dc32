"""Reasoning budgets: they end a model's thoughts after a number of tokens."""

from __future__ import annotations

from collections.abc import Iterable

from pyllama import _sampler_arguments as checked
from pyllama._arguments import INT32_MAX, integer
from pyllama._native._binding import ffi, lib
from pyllama.sampler import Sampler
from pyllama.vocab import Vocab


class ReasoningBudgetSampler(Sampler):
    """Ends a model's reasoning once it has taken its budget (``common_reasoning_budget_init``).

    It counts the tokens accepted after ``start``. After ``budget`` of them it allows only
    ``forced``, token by token, and then everything again. It does not cut within a character. If
    one of ``ends`` comes before, the counting ends. A later ``start`` begins a new budget. Put it
    first in a chain, so that other samplers choose among what it leaves. After ``reset`` it waits
    for a ``start``.

    Other tokens may spell ``start`` and ``ends``, as under a grammar. If the text already ends with
    a part of ``forced``, only the rest is forced. If a grammar allows no token of ``forced``, any
    token is allowed that continues the same text; if there is none, nothing is forced.

    Args:
        vocab: of the model to sample for; closing the model closes the sampler.
        start: tokens that begin the reasoning, at least one.
        ends: sequences of tokens that end it, at least one.
        forced: tokens that end it once the budget is spent, at least one.
        budget: tokens that it may take, 0 or more.
        counting: whether it has already begun, as when the prompt ends with its start.
        once: whether only the beginning of the text can be reasoning, apart from white space. Then
            a later ``start`` is ordinary text, as in an answer that follows a grammar.

    Raises:
        TokenizationError: the model has no tokenizer.
        ValueError: a sequence without tokens, or a value out of range.
    """

    def __init__(
        self,
        vocab: Vocab,
        *,
        start: Iterable[int],
        ends: Iterable[Iterable[int]],
        forced: Iterable[int],
        budget: int,
        counting: bool = False,
        once: bool = False,
    ) -> None:
        checked.tokenizing(vocab)
        if not isinstance(ends, Iterable):
            raise TypeError(f"ends must hold sequences of tokens, got {ends!r}")
        first, last = _tokens(vocab, "start", start), _tokens(vocab, "forced", forced)
        sequences = [_tokens(vocab, "ends", end) for end in ends]
        if not sequences:
            raise ValueError("ends must hold at least one sequence of tokens, got none")
        budget = integer("budget", budget, 0, INT32_MAX)
        with vocab._open() as pointer:
            sampler = lib.guarded_sampler_init_reasoning_budget(
                pointer,
                ffi.new("llama_token[]", first),
                len(first),
                ffi.new("llama_token[]", [token for end in sequences for token in end]),
                ffi.new("size_t[]", [len(end) for end in sequences]),
                len(sequences),
                ffi.new("llama_token[]", last),
                len(last),
                budget,
                bool(counting),
                bool(once),
            )
            super().__init__(sampler, selects=False, vocab=vocab, reads_vocab=True)


def _tokens(vocab: Vocab, name: str, tokens: Iterable[int]) -> list[int]:
    if not isinstance(tokens, Iterable):
        raise TypeError(f"{name} must hold tokens, got {tokens!r}")
    ids = [integer(name, token, 0, vocab.n_tokens - 1) for token in tokens]
    if not ids:
        raise ValueError(f"{name} must hold at least one token, got none")
    return ids
