"""Sampling for many sequences at once."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from pyllama._arguments import INT32_MAX, integer
from pyllama._guard import CAUGHT, caught_error, check, to_str
from pyllama._locks import holding
from pyllama._native._binding import ffi, lib
from pyllama._sampling import refusal
from pyllama.context import Context
from pyllama.errors import LlamaError, NativeAssertionError
from pyllama.sampler_chain import SamplerChain
from pyllama.threadpool import MAX_THREADS

if TYPE_CHECKING:
    from pyllama._native._binding import Pointer, pyllama_chain, pyllama_draw


def sample_each(
    context: Context, chains: Mapping[int, SamplerChain], *, n_threads: int | None = None
) -> dict[int, int | LlamaError]:
    """Select a token from each of several outputs of the last decode, with a chain for each.

    Every chain selects and accepts what ``SamplerChain.sample`` would have. Several threads
    do so side by side, in C++, without the interpreter: with a vocabulary of 150,000 tokens
    choosing takes a noticeable part of what a GPU takes to decode.

    Args:
        chains: by output, as in ``Context.logits``; each chain once. They must neither hold
            samplers written in Python nor be attached to a context.
        n_threads: threads to use; None for as many as the context has for one token.

    Returns:
        by output, the token, or the ``SamplingError`` or other ``LlamaError`` that
        ``SamplerChain.sample`` would have raised.

    Raises:
        IndexError: the last decode gave no output there; no chain has changed then.
        ValueError: chains that cannot be used so, or as in ``SamplerChain.sample``.
    """
    if not isinstance(context, Context):
        raise TypeError(f"context must be a pyllama.Context, got {context!r}")
    if not isinstance(chains, Mapping):
        raise TypeError(f"chains must map outputs to SamplerChains, got {chains!r}")
    asked = {integer("chains", key, -INT32_MAX, INT32_MAX): chain for key, chain in chains.items()}
    threads = context.n_threads if n_threads is None else n_threads
    threads = integer("n_threads", threads, 1, MAX_THREADS)
    if len({id(chain) for chain in asked.values()}) < len(asked):
        raise ValueError(f"chains must hold each chain once, got {list(asked.values())!r}")
    for chain in asked.values():
        if not isinstance(chain, SamplerChain):
            raise TypeError(f"chains must hold pyllama.SamplerChain objects, got {chain!r}")

    def sample() -> dict[int, int | LlamaError]:
        pointer = context._open().pointer
        draws = ffi.new("pyllama_draw[]", max(1, len(asked)))
        for draw, (output, chain) in zip(draws, asked.items(), strict=False):
            draw.chain, draw.output = _usable(chain, context), output
        code = check(lib.guarded_sample_each(pointer, draws, len(asked), threads), "sampling")
        if context._lost is not None:
            context._open()
        if code:
            context._raise_no_output(draws[code - 1].output)
        return {
            output: _outcome(draw, chain)
            for draw, (output, chain) in zip(draws, asked.items(), strict=False)
        }

    # In one order: two threads may have the same chains.
    ordered = sorted(asked.values(), key=id)
    return holding([*(chain._lock for chain in ordered), context._lock], sample)


def _usable(chain: SamplerChain, context: Context) -> Pointer[pyllama_chain]:
    """The pointer of a chain that can sample beside others."""
    pointer = chain._open().pointer
    chain._require_idle()
    chain._require_sampling(context)
    if any(step._calls_python for step in chain):
        raise ValueError(f"{chain!r} holds a sampler written in Python: sample() with it alone")
    if chain._context is not None:
        raise ValueError(f"{chain!r} is attached to a context: sample() with it alone")
    return pointer


def _outcome(draw: pyllama_draw, chain: SamplerChain) -> int | LlamaError:
    token: int = draw.token
    if token >= 0:
        return token
    if token != CAUGHT:
        return refusal(token, "sampling")
    detail = "" if draw.message == ffi.NULL else to_str(draw.message)
    lib.pyllama_free(draw.message)
    error = caught_error(draw.caught, detail, "sampling")
    if isinstance(error, NativeAssertionError):
        chain._spoil(str(error))
    return error
