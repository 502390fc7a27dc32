"""How the next token is chosen: the numbers, and llama.cpp's samplers made of them."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache, partial
from types import MappingProxyType
from weakref import ref

import pyllama

KEPT_GRAMMARS = 64
"""Grammars that stay checked: a program asks for the same few again and again."""


@dataclass(frozen=True)
class Constraint:
    """A grammar that a completion must follow.

    gbnf              llama.cpp's form of it, whose root is "root"
    trigger_patterns  regular expressions; the grammar applies from the first match on
    trigger_tokens    tokens from which on it applies; with neither it applies at once
    begun             tokens at the prompt's end that belong to what the grammar describes
    shown             control tokens that it may name: the answer shows their names, or needs none.
                      Of no other token does it take the name for text
    """

    gbnf: str
    trigger_patterns: tuple[str, ...] = ()
    trigger_tokens: tuple[int, ...] = ()
    begun: tuple[int, ...] = ()
    shown: frozenset[int] = frozenset()

    @property
    def is_lazy(self) -> bool:
        """Whether a completion is free until a trigger comes."""
        return bool(self.trigger_patterns or self.trigger_tokens)


@dataclass(frozen=True)
class ReasoningBudget:
    """How many tokens a model may reason for before it answers.

    start     the tokens that begin its reasoning
    ends      sequences of tokens that end it; once the budget is spent, the first one is written
    n_tokens  0 or more; how many tokens come between the two
    begun     whether the prompt ends within the reasoning
    """

    start: tuple[int, ...]
    ends: tuple[tuple[int, ...], ...]
    n_tokens: int
    begun: bool = False


@dataclass(frozen=True)
class Sampling:
    """How the next token is chosen. Names and defaults are those of llama.cpp's server.

    temperature            0 to 2; 0 takes the likeliest token
    dynatemp_range         0 or more; how far the temperature follows the entropy, 0 = not
    dynatemp_exponent      0 or more; how steeply it does
    top_k                  candidates kept, 0 = all
    top_p                  0 to 1; smallest set of candidates whose probabilities reach it, 1 = all
    min_p                  0 to 1; least probability, relative to the likeliest token, 0 = off
    typical_p              0 to 1; as top_p, of candidates nearest the expected surprise, 1 = off
    top_n_sigma            candidates within so many standard deviations of the best, 0 = off
    xtc_probability        0 to 1; how often the likeliest candidates are left out, 0 = off
    xtc_threshold          0 to 1; what is at least so likely is one of them
    mirostat               1 or 2 in place of the six above: a steady surprise; 0 = off
    mirostat_tau           the surprise to reach, in bits
    mirostat_eta           how fast it is corrected
    repeat_penalty         above 0; divides the logits of recent tokens, 1 = off
    repeat_last_n          how many recent tokens the three penalties look at, 0 = none
    frequency_penalty      -2 to 2; subtracted from a recent token's logit for each occurrence
    presence_penalty       -2 to 2; subtracted once from each recent token's logit
    dry_multiplier         0 or more; penalty on going on with a repetition, 0 = off
    dry_base               1 or more; what it grows by for each token of the repetition
    dry_allowed_length     repetitions shorter than so many tokens are let be
    dry_penalty_last_n     how many recent tokens it looks at
    dry_sequence_breakers  texts that no repetition spans
    logit_bias             what is added to a token's logit, by token
    """

    temperature: float = 0.8
    dynatemp_range: float = 0.0
    dynatemp_exponent: float = 1.0
    top_k: int = 40
    top_p: float = 0.95
    min_p: float = 0.05
    typical_p: float = 1.0
    top_n_sigma: float = 0.0
    xtc_probability: float = 0.0
    xtc_threshold: float = 0.1
    mirostat: int = 0
    mirostat_tau: float = 5.0
    mirostat_eta: float = 0.1
    repeat_penalty: float = 1.0
    repeat_last_n: int = 64
    frequency_penalty: float = 0.0
    presence_penalty: float = 0.0
    dry_multiplier: float = 0.0
    dry_base: float = 1.75
    dry_allowed_length: int = 2
    dry_penalty_last_n: int = 1024
    dry_sequence_breakers: tuple[str, ...] = ("\n", ":", '"', "*")
    logit_bias: Mapping[int, float] = field(default_factory=lambda: MappingProxyType({}))

    @property
    def n_last(self) -> int:
        """How many tokens of the prompt the samplers have to be told."""
        return max(self.repeat_last_n, self.dry_penalty_last_n if self.dry_multiplier else 0)


def sampler_chain(
    vocab: pyllama.Vocab,
    sampling: Sampling,
    seed: int,
    constraint: Constraint | None = None,
    *,
    prompt: Sequence[int] = (),
    reasoning_budget: ReasoningBudget | None = None,
    complete_within: int | None = None,
) -> pyllama.SamplerChain:
    """The samplers of a request, in llama.cpp's own order, told of the prompt's last tokens.

    Args:
        complete_within: how many tokens there are to complete the grammar's text in; None where it
            may be cut off.

    Raises:
        pyllama.GrammarError: a grammar that this vocabulary cannot follow.
    """
    steps = _reweighting(vocab, sampling)
    for step in steps:
        for token in prompt[max(0, len(prompt) - sampling.n_last) :]:
            step.accept(token)
    if reasoning_budget is not None:
        # It is not told of the prompt, in which earlier thoughts may stand.
        is_bound = constraint is not None and not constraint.is_lazy
        steps.insert(0, reasoning_budget_sampler(vocab, reasoning_budget, once=is_bound))
    steps += _choosing(vocab, sampling, seed)
    grammar = None
    if constraint is not None:
        grammar = grammar_sampler(vocab, constraint)
        if complete_within is not None:
            grammar.complete_within(complete_within)
    return pyllama.SamplerChain(steps, grammar=grammar)


def reasoning_budget_sampler(
    vocab: pyllama.Vocab, budget: ReasoningBudget, *, once: bool = False
) -> pyllama.ReasoningBudgetSampler:
    """What ends the model's reasoning when its budget is spent.

    Args:
        once: whether there is reasoning at the answer's beginning only, as where the rest follows a
            grammar.
    """
    return pyllama.ReasoningBudgetSampler(
        vocab,
        start=budget.start,
        ends=budget.ends,
        forced=budget.ends[0],
        budget=budget.n_tokens,
        counting=budget.begun,
        once=once,
    )


def grammar_sampler(vocab: pyllama.Vocab, constraint: Constraint) -> pyllama.GrammarSampler:
    """What keeps an answer to a grammar, past what the prompt already holds of the answer."""
    sampler = pyllama.GrammarSampler(
        vocab,
        checked_grammar(constraint.gbnf),
        trigger_patterns=constraint.trigger_patterns,
        trigger_tokens=constraint.trigger_tokens,
        shown=constraint.shown | {*constraint.trigger_tokens},
    )
    for token in constraint.begun:
        sampler.accept(token)
    return sampler


@lru_cache(KEPT_GRAMMARS)
def checked_grammar(gbnf: str) -> pyllama.Grammar:
    """A grammar that has been parsed once.

    Raises:
        pyllama.GrammarError: it is none.
    """
    return pyllama.Grammar(gbnf)


def fewest_tokens(vocab: pyllama.Vocab, constraint: Constraint) -> int | None:
    """How many tokens the shortest completion has that follows a constraint, or None.

    None where that is not known, or where a completion need not follow it. It is kept.

    Raises:
        pyllama.GrammarError: a grammar that this vocabulary cannot follow.
    """
    if constraint.is_lazy:
        return None
    kept = _fewest_tokens.setdefault(vocab, lru_cache(KEPT_GRAMMARS)(partial(_fewest, ref(vocab))))
    return kept(constraint)


def _fewest(vocab: weakref.ref[pyllama.Vocab], constraint: Constraint) -> int | None:
    alive = vocab()
    assert alive is not None  # it was asked for
    with grammar_sampler(alive, constraint) as sampler:
        return sampler.fewest_tokens


_fewest_tokens: weakref.WeakKeyDictionary[pyllama.Vocab, Callable[[Constraint], int | None]] = (
    weakref.WeakKeyDictionary()
)


def _reweighting(vocab: pyllama.Vocab, sampling: Sampling) -> list[pyllama.Sampler]:
    """What looks at earlier tokens, or at a list of tokens."""
    steps = []
    if sampling.logit_bias:
        steps.append(pyllama.Sampler.logit_bias(vocab, sampling.logit_bias))
    if sampling.repeat_penalty != 1 or sampling.frequency_penalty or sampling.presence_penalty:
        steps.append(
            pyllama.Sampler.penalties(
                vocab,
                last_n=sampling.repeat_last_n,
                repeat=sampling.repeat_penalty,
                freq=sampling.frequency_penalty,
                present=sampling.presence_penalty,
            )
        )
    if sampling.dry_multiplier:
        steps.append(
            pyllama.Sampler.dry(
                vocab,
                multiplier=sampling.dry_multiplier,
                base=sampling.dry_base,
                allowed_length=sampling.dry_allowed_length,
                last_n=sampling.dry_penalty_last_n,
                breakers=sampling.dry_sequence_breakers,
            )
        )
    return steps


def _choosing(vocab: pyllama.Vocab, sampling: Sampling, seed: int) -> list[pyllama.Sampler]:
    """What narrows the candidates down to one."""
    make = pyllama.Sampler
    if sampling.temperature == 0:
        return [make.greedy()]
    temperature = make.temp_ext(
        sampling.temperature, sampling.dynatemp_range, sampling.dynatemp_exponent
    )
    tau, eta = sampling.mirostat_tau, sampling.mirostat_eta
    if sampling.mirostat == 1:
        return [temperature, make.mirostat(vocab, seed, tau=tau, eta=eta)]
    if sampling.mirostat == 2:
        return [temperature, make.mirostat_v2(seed, tau=tau, eta=eta)]
    steps = []
    if sampling.top_n_sigma:
        steps.append(make.top_n_sigma(sampling.top_n_sigma))
    steps.append(make.top_k(sampling.top_k))
    if sampling.typical_p != 1:
        steps.append(make.typical(sampling.typical_p))
    steps += [make.top_p(sampling.top_p), make.min_p(sampling.min_p)]
    if sampling.xtc_probability:
        steps.append(make.xtc(sampling.xtc_probability, sampling.xtc_threshold, seed))
    return [*steps, temperature, make.dist(seed)]
