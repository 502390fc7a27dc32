"""Going on with many sequences by several tokens in one call."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from pyllama._arguments import INT32_MAX, MAX_POS, integer, real
from pyllama._native._binding import ffi, lib
from pyllama._object import holding_all
from pyllama.batch import Batch
from pyllama.context import Context
from pyllama.sampler_chain import SamplerChain
from pyllama.threadpool import MAX_THREADS

if TYPE_CHECKING:
    from pyllama._native._binding import Pointer, llama_batch, llama_context, pyllama_run

MAX_STEPS = 4096
"""The most decodes of one call, each with a token of each sequence."""


@dataclass(frozen=True)
class Run:
    """How a sequence goes on after a batch.

    Attributes:
        chain: samples its tokens.
        seq_id: the sequence, which has an output in the batch.
        pos: the position of the token that is sampled first.
        max_tokens: the most tokens to sample, at least 1.
        stops: texts after which it pauses: a token that completes one is its last.
        text: the end of its text so far, where a stop text may have begun.
        pauses_where_forced: whether it pauses where the grammar leaves no choice about the text.
        tells_ends: whether to find out after each token if the text may end there, by its grammar.
    """

    chain: SamplerChain
    seq_id: int
    pos: int
    max_tokens: int
    stops: tuple[str, ...] = ()
    text: bytes = b""
    pauses_where_forced: bool = False
    tells_ends: bool = False


@dataclass(frozen=True)
class Drawn:
    """What was sampled for one sequence.

    Attributes:
        tokens: all but the last are in memory.
        may_end: for each token, whether the text may end there; False where that was not asked for.
        error: why the token after them could not be sampled, as from ``SamplerChain.sample``.
    """

    tokens: list[int]
    may_end: list[bool]
    error: Exception | None = None


class Generated:
    """What ``generate_each`` sampled.

    Attributes:
        n_steps: how many decodes were done.
        error: why there were no more, where one failed. What it computed of sequences that were
            going on is in memory behind their last token but one: remove it.
    """

    def __init__(self, runs: Mapping[int, Run]) -> None:
        self.n_steps = 0
        self.error: Exception | None = None
        self._runs = runs
        self._kept: list[object] = []  # what the struct points into
        self._structs = ffi.new("pyllama_run[]", max(1, len(runs)))
        self._by_output = dict(zip(runs, self._structs, strict=False))

    def __getitem__(self, output: int) -> Drawn:
        """What was sampled from an output of the batch on."""
        struct, n = self._by_output[output], self._by_output[output].n_tokens
        last = self._runs[output].chain._end_draw(struct.draw)
        error = last if isinstance(last, Exception) else None
        if not n:
            return Drawn([], [], error)
        return Drawn(ffi.unpack(struct.tokens, n), ffi.unpack(struct.may_end, n), error)

    def _fill(self, context: Context, max_steps: int) -> Pointer[pyllama_run]:
        for struct, (output, run) in zip(self._structs, self._runs.items(), strict=False):
            struct.draw.chain, struct.draw.output = run.chain._begin_draw(context), output
            struct.seq_id, struct.pos = run.seq_id, run.pos
            struct.n_max = min(run.max_tokens, max_steps)
            grammar = run.chain.grammar
            struct.eog = lib.LLAMA_TOKEN_NULL
            if run.tells_ends and grammar is not None:
                struct.eog = grammar._eog
            struct.pauses_where_forced = run.pauses_where_forced
            # A text that is not valid Unicode is never found.
            encoded = [stop.encode("utf-8", "surrogatepass") for stop in run.stops]
            texts = [ffi.new("char[]", stop) for stop in encoded]
            stops, sizes = ffi.new("char *[]", texts), ffi.new("size_t[]", list(map(len, encoded)))
            struct.stops, struct.stop_sizes, struct.n_stops = stops, sizes, len(texts)
            text = ffi.new("char[]", run.text)
            struct.text, struct.text_size = text, len(run.text)
            tokens = ffi.new("llama_token[]", struct.n_max)
            may_end = ffi.new("bool[]", struct.n_max)
            struct.tokens, struct.may_end = tokens, may_end
            self._kept += [*texts, stops, sizes, text, tokens, may_end]
        return self._structs


def generate_each(
    context: Context,
    batch: Batch,
    runs: Mapping[int, Run],
    *,
    max_steps: int = 1,
    seconds: float = 0.0,
    n_threads: int | None = None,
) -> Generated:
    """Decode a batch, sample from its outputs, and go on with those sequences token by token.

    The same as ``Context.decode``, ``sample_each``, and so on in turn, but in one call and without
    the interpreter. It ends after ``max_steps`` decodes, after ``seconds``, or when more than one
    in 16 sequences has paused: with a token that ends generation, with a stop text, where text
    is forced, at their ``max_tokens``, or over an error. After more than one decode, the context's
    outputs cannot be read.

    Args:
        runs: by the output of the batch, as in ``Context.logits``, from which the first token is
            sampled; each chain and each sequence once. Chains as in ``sample_each``.
        n_threads: threads that sample; None for as many as the context has for one token.

    Raises:
        ValueError: runs that cannot be used here. Nothing was done.
        LlamaError: as ``Context.decode`` raises for the batch. Nothing was sampled. The error of a
            later decode is in the result.
    """
    if not isinstance(context, Context):
        raise TypeError(f"context must be a pyllama.Context, got {context!r}")
    if not isinstance(batch, Batch):
        raise TypeError(f"batch must be a pyllama.Batch, got {batch!r}")
    steps = integer("max_steps", max_steps, 1, MAX_STEPS)
    limit = real("seconds", seconds, 0.0, 3600.0)
    threads = context.n_threads if n_threads is None else n_threads
    threads = integer("n_threads", threads, 1, MAX_THREADS)
    asked = _checked(runs)
    generated = Generated(asked)

    def generate() -> None:
        for output, run in asked.items():
            if not batch._gives(output):
                raise ValueError(f"runs must begin at outputs of the batch, got {output}")
            context._require_position(run.pos + min(run.max_tokens, steps) - 1)
        structs = generated._fill(context, steps)
        n_steps = ffi.new("int32_t *")

        def call(pointer: Pointer[llama_context], filled: Pointer[llama_batch]) -> int:
            code = lib.guarded_generate_each(
                pointer, filled, structs, len(asked), steps, limit, threads, n_steps
            )
            generated.n_steps = n_steps[0]
            return code

        try:
            context._decode_by(call, batch)
        except Exception as error:
            if not generated.n_steps:
                raise
            generated.error = error
        if generated.n_steps > 1:
            context._forget_outputs()

    def under_its_lock() -> None:
        with context._lock, batch._lock:
            generate()

    # In one order: two threads may have the same chains.
    holding_all(sorted((run.chain for run in asked.values()), key=id), under_its_lock)
    return generated


def _checked(runs: Mapping[int, Run]) -> dict[int, Run]:
    """The runs by their outputs, or ValueError or TypeError for what no context can use."""
    if not isinstance(runs, Mapping):
        raise TypeError(f"runs must map outputs to pyllama.Runs, got {runs!r}")
    asked = {}
    for output, run in runs.items():
        if not isinstance(run, Run) or not isinstance(run.chain, SamplerChain):
            raise TypeError(f"runs must hold pyllama.Run objects with a SamplerChain, got {run!r}")
        integer("seq_id", run.seq_id, 0, INT32_MAX)
        integer("max_tokens", run.max_tokens, 1, INT32_MAX)
        integer("pos", run.pos, 0, MAX_POS - min(run.max_tokens, MAX_STEPS))
        if not all(isinstance(stop, str) and stop for stop in run.stops):
            raise ValueError(f"stops must be texts that are not empty, got {run.stops!r}")
        if not isinstance(run.text, bytes):
            raise TypeError(f"text must be bytes, got {run.text!r}")
        asked[integer("output", output, 0, INT32_MAX)] = run
    for keys in ([id(run.chain) for run in asked.values()], [run.seq_id for run in asked.values()]):
        if len(set(keys)) < len(asked):
            raise ValueError(f"runs must hold each chain and sequence once, got {runs!r}")
    return asked
