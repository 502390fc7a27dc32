"""How the next token is chosen: the numbers, and llama.cpp's samplers made of them."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache, partial
from typing import Annotated
from weakref import ref

from annotated_types import Ge, Gt, Le

import pyllama
from adapter.generation.settings import Fraction, Words, only_if, setting

KEPT_GRAMMARS = 64
"""Grammars that stay checked: a program asks for the same few again and again."""


@dataclass(frozen=True)
class Constraint:
    """A grammar that a completion must follow.

    Attributes:
        gbnf: the grammar, with the root "root".
        trigger_patterns: regular expressions. The grammar applies from the first match on.
        trigger_tokens: tokens from which on it applies. Without any trigger it applies at once.
        prefix: tokens at the prompt's end that belong to what the grammar describes.
        shown: control tokens that it may name: the answer shows their names, or needs none. It does
            not read the name of any other token as text.
    """

    gbnf: str
    trigger_patterns: tuple[str, ...] = ()
    trigger_tokens: tuple[int, ...] = ()
    prefix: tuple[int, ...] = ()
    shown: frozenset[int] = frozenset()

    @property
    def is_lazy(self) -> bool:
        """Whether a completion is free until a trigger comes."""
        return bool(self.trigger_patterns or self.trigger_tokens)


@dataclass(frozen=True)
class ReasoningBudget:
    """How many tokens a model may reason for before it answers.

    Attributes:
        start: the tokens that begin its reasoning.
        ends: sequences of tokens that end it. When the budget is spent, the first one is written.
        n_tokens: how many tokens may come between the two, 0 or more.
        started: whether the prompt ends within the reasoning.
    """

    start: tuple[int, ...]
    ends: tuple[tuple[int, ...], ...]
    n_tokens: int
    started: bool = False


MAX_LAST_N = 2**24
"""Tokens that a sampler can look back on. It allocates memory for all of them."""

MAX_TOP_K = 2**31 - 1

Factor = Annotated[float, Ge(0), Le(1000)]
Penalty = Annotated[float, Ge(-2), Le(2)]
Count = Annotated[int, Ge(0), Le(MAX_LAST_N)]
Mirostat = Annotated[int, Ge(0), Le(2), Words("0, 1 or 2")]
TopK = Annotated[int, Ge(0), Le(MAX_TOP_K), Words(f"an integer from 0 to {MAX_TOP_K} (0 = off)")]


def _are_breakers(value: object) -> bool:
    return isinstance(value, (list, tuple)) and all(
        isinstance(text, str) and 0 < len(text.encode("utf-8", "replace")) <= 40 for text in value
    )


Breakers = Annotated[
    tuple[str, ...], only_if(_are_breakers), Words("a list of texts of 1 to 40 bytes")
]


def are_biases(value: object) -> bool:
    """Whether a value may be added to logits, by token."""
    return isinstance(value, Mapping) and all(
        isinstance(token, int)
        and isinstance(bias, (int, float))
        and not isinstance(bias, bool)
        and -100 <= bias <= 100
        for token, bias in value.items()
    )


Biases = Annotated[
    Mapping[int, float],
    only_if(are_biases),
    Words("a dict of tokens and numbers from -100 to 100"),
]

_openai, _llamacpp = partial(setting, call="openai"), partial(setting, call="llamacpp")


@dataclass(frozen=True, kw_only=True)
class Sampling:
    """How the next token is chosen. Names and defaults are those of llama.cpp's server.

    A setting that is declared here can be given in a config, in a call, and by name to DSPy; the
    samplers below read it.
    """

    temperature: Annotated[float, Ge(0), Le(2)] = _openai(
        0.8, "0 takes the likeliest token", in_name="always"
    )
    dynatemp_range: Annotated[float, Ge(0), Le(2)] = _llamacpp(
        0.0, "how far the temperature follows the entropy, 0 = not"
    )
    dynatemp_exponent: Factor = _llamacpp(1.0, "how steeply the temperature does so")
    top_k: TopK = _openai(40, "candidates kept, 0 or -1 = all", in_name="always", minus_one=0)
    top_p: Fraction = _openai(
        0.95, "smallest set of candidates whose probabilities reach it, 1 = all", in_name="always"
    )
    min_p: Fraction = _llamacpp(
        0.05, "lowest probability, relative to the likeliest token, 0 = off", in_name="always"
    )
    typical_p: Fraction = _llamacpp(
        1.0, "like top_p, but keeps the candidates nearest the expected surprise, 1 = off"
    )
    top_n_sigma: Factor = _llamacpp(
        0.0, "keeps candidates within this many standard deviations of the best, 0 = off"
    )
    xtc_probability: Fraction = _llamacpp(
        0.0, "how often the likeliest candidates are left out, 0 = off"
    )
    xtc_threshold: Fraction = _llamacpp(
        0.1, "candidates of at least this probability are among them"
    )
    mirostat: Mirostat = _llamacpp(
        0,
        "keeps the surprise steady, by version 1 or 2, instead of top_k, top_p, min_p, typical_p, "
        "top_n_sigma and xtc; 0 = off",
    )
    mirostat_tau: Factor = _llamacpp(5.0, "the surprise to keep, in bits")
    mirostat_eta: Factor = _llamacpp(0.1, "how fast the surprise is corrected")
    adaptive_target: Annotated[float, Ge(-1), Le(1)] = _llamacpp(
        -1.0,
        "choose tokens whose probability is near this one over time, with no more than a mild "
        "min_p before it; below 0 = off",
    )
    adaptive_decay: Annotated[float, Ge(0), Le(0.99)] = _llamacpp(
        0.9, "for how long earlier tokens count, about 1 / (1 - decay) tokens"
    )
    repeat_penalty: Annotated[float, Gt(0), Le(2)] = _llamacpp(
        1.0, "divides the logits of recent tokens, 1 = off", in_name="always"
    )
    repeat_last_n: Count = _llamacpp(
        64, "how many recent tokens the three penalties consider, 0 = none"
    )
    frequency_penalty: Penalty = _openai(
        0.0, "subtracted from a recent token's logit for each occurrence"
    )
    presence_penalty: Penalty = _openai(0.0, "subtracted once from each recent token's logit")
    dry_multiplier: Factor = _llamacpp(0.0, "penalty on continuing a repetition, 0 = off")
    dry_base: Annotated[float, Ge(1), Le(1000)] = _llamacpp(
        1.75, "factor of the penalty for each token of the repetition"
    )
    dry_allowed_length: Count = _llamacpp(
        2, "repetitions shorter than this many tokens have no penalty"
    )
    dry_penalty_last_n: Count = _llamacpp(
        1024, "how many recent tokens are searched for repetitions"
    )
    dry_sequence_breakers: Breakers = _llamacpp(
        ("\n", ":", '"', "*"), "texts that end a repetition"
    )
    logit_bias: Biases = _openai(dict, "what is added to a token's logit, by token")

    @property
    def n_last(self) -> int:
        """How many tokens of the prompt the samplers have to accept."""
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
    end_repetitions: bool = False,
) -> pyllama.SamplerChain:
    """The samplers of a request, in llama.cpp's order; they accepted the prompt's last tokens.

    Args:
        complete_within: how many tokens there are to complete the grammar's text in; None where it
            may be cut off.
        end_repetitions: whether a text of the grammar that repeats itself is ended within them.

    Raises:
        pyllama.GrammarError: a grammar that this vocabulary cannot follow.
    """
    steps = _reweighting(vocab, sampling)
    for step in steps:
        for token in prompt[max(0, len(prompt) - sampling.n_last) :]:
            step.accept(token)
    if reasoning_budget is not None:
        # It does not accept the prompt, in which earlier thoughts may stand.
        is_bound = constraint is not None and not constraint.is_lazy
        steps.insert(0, reasoning_budget_sampler(vocab, reasoning_budget, once=is_bound))
    steps += _choosing(vocab, sampling, seed)
    grammar = None
    if constraint is not None:
        grammar = grammar_sampler(vocab, constraint)
        if complete_within is not None:
            grammar.complete_within(complete_within, end_repetitions=end_repetitions)
    return pyllama.SamplerChain(steps, grammar=grammar)


def reasoning_budget_sampler(
    vocab: pyllama.Vocab, budget: ReasoningBudget, *, once: bool = False
) -> pyllama.ReasoningBudgetSampler:
    """The sampler that ends the model's reasoning when its budget is spent.

    Args:
        once: whether there is reasoning only at the beginning of the answer, as when the rest
            follows a grammar.
    """
    return pyllama.ReasoningBudgetSampler(
        vocab,
        start=budget.start,
        ends=budget.ends,
        forced=budget.ends[0],
        budget=budget.n_tokens,
        counting=budget.started,
        once=once,
    )


def grammar_sampler(vocab: pyllama.Vocab, constraint: Constraint) -> pyllama.GrammarSampler:
    """What keeps an answer to a grammar, past what the prompt already holds of the answer."""
    sampler = pyllama.GrammarSampler(
        vocab,
        checked_grammar(constraint.gbnf),
        trigger_patterns=constraint.trigger_patterns,
        trigger_tokens=constraint.trigger_tokens,
        shown=constraint.shown.union(constraint.trigger_tokens, constraint.prefix),
    )
    for token in constraint.prefix:
        sampler.accept(token)
    return sampler


@lru_cache(KEPT_GRAMMARS)
def checked_grammar(gbnf: str) -> pyllama.Grammar:
    """A grammar that has been parsed once.

    Raises:
        pyllama.GrammarError: it is not a valid grammar.
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
    last = make.dist(seed)
    if sampling.adaptive_target >= 0:
        last = make.adaptive_p(seed, target=sampling.adaptive_target, decay=sampling.adaptive_decay)
    return [*steps, temperature, last]
