"""Sampling for many sequences at once."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from pyllama._arguments import INT32_MAX, integer
from pyllama._guard import check
from pyllama._native._binding import ffi, lib
from pyllama._object import holding_all
from pyllama.context import Context
from pyllama.errors import LlamaError
from pyllama.sampler_chain import SamplerChain
from pyllama.threadpool import MAX_THREADS

if TYPE_CHECKING:
    from pyllama._native._binding import Pointer, llama_context


def sample_each(
    context: Context, chains: Mapping[int, SamplerChain], *, n_threads: int | None = None
) -> dict[int, int | LlamaError]:
    """Select a token from each of several outputs of the last decode, with a chain for each.

    Every chain selects and accepts what ``SamplerChain.sample`` would. Several threads work in
    parallel, in C++ and without the interpreter. With a vocabulary of 150,000 tokens, sampling
    takes a noticeable part of the time that a GPU takes to decode.

    Args:
        chains: by output, as in ``Context.logits``; each chain once. They must neither hold
            samplers written in Python nor be attached to a context.
        n_threads: threads to use; None for as many as the context has for one token.

    Returns:
        by output, the token, or the ``SamplingError`` or other ``LlamaError`` that
        ``SamplerChain.sample`` would have raised.

    Raises:
        IndexError: the last decode gave no output there; no chain has changed then.
        ValueError: chains that cannot be used here, or as in ``SamplerChain.sample``.
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

    def sample(pointer: Pointer[llama_context]) -> dict[int, int | LlamaError]:
        draws = ffi.new("pyllama_draw[]", max(1, len(asked)))
        for draw, (output, chain) in zip(draws, asked.items(), strict=False):
            draw.chain, draw.output = chain._begin_draw(context), output
        code = check(lib.guarded_sample_each(pointer, draws, len(asked), threads), "sampling")
        if code:
            context._raise_no_output(draws[code - 1].output)
        return {
            output: chain._end_draw(draw)
            for draw, (output, chain) in zip(draws, asked.items(), strict=False)
        }

    # Always in one order: two threads may have the same chains.
    return holding_all(sorted(asked.values(), key=id), lambda: context._reading(sample))
