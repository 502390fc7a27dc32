"""Continues many sequences by several tokens in one call."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, NamedTuple

from pyllama._arguments import INT32_MAX, MAX_POS, integer, real
from pyllama._native._binding import ffi, lib
from pyllama._object import holding_all
from pyllama.batch import Batch
from pyllama.context import Context
from pyllama.forced_text import Forcing
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
        forcing: which texts that the grammar forces are written as tokens; None for none.
        tells_ends: whether to find out after each token if the text may end there, by its grammar.
    """

    chain: SamplerChain
    seq_id: int
    pos: int
    max_tokens: int
    stops: tuple[str, ...] = ()
    text: bytes = b""
    forcing: Forcing | None = None
    tells_ends: bool = False


@dataclass(frozen=True)
class Drawn:
    """What was sampled for one sequence, and what its grammar forced.

    Attributes:
        tokens: those that follow, in order.
        may_end: for each token, whether the text may end there; False where that was not asked for.
        error: why the token after them could not be sampled, as from ``SamplerChain.sample``.
        n_computed: how many of the tokens are in memory.
        at_stop: whether it paused over a stop text, so that text which is forced after it was not
            written.
        bounded: whether the grammar's ``shortened()`` or ``repeated()`` have anything to tell.
    """

    tokens: list[int]
    may_end: list[bool]
    error: Exception | None = None
    n_computed: int = 0
    at_stop: bool = False
    bounded: bool = True


class Generated:
    """What ``generate_each`` sampled.

    Attributes:
        n_steps: how many decodes were done.
        error: why there were no more, where one failed. What it computed of sequences that were
            going on is in memory behind their ``n_computed`` tokens: remove it.
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
        tokens, may_end = ffi.unpack(struct.tokens, n), ffi.unpack(struct.may_end, n)
        flags = bool(struct.at_stop), bool(struct.bounded)
        return Drawn(tokens, may_end, error, struct.n_computed, *flags)

    def _fill(self, context: Context, max_steps: int) -> Pointer[pyllama_run]:
        rooms = [_room(run, max_steps) for run in self._runs.values()]
        tokens, may_end = ffi.new("llama_token[]", sum(rooms)), ffi.new("bool[]", sum(rooms))
        self._kept += [tokens, may_end]
        begin = 0
        for struct, room, (output, run) in zip(
            self._structs, rooms, self._runs.items(), strict=False
        ):
            self._kept += fill_run(struct, run, context)
            struct.draw.output, struct.n_room = output, room
            struct.tokens, struct.may_end = tokens + begin, may_end + begin
            begin += room
        return self._structs


def fill_run(struct: pyllama_run, run: Run, context: Context) -> list[object]:
    """Fill a struct of C but for its output and its room, and return what it points to."""
    kept: list[object] = []
    chain = run.chain
    struct.draw.chain = chain._begin_draw(context)
    struct.seq_id, struct.pos, struct.n_max = run.seq_id, run.pos, _n_max(run)
    grammar = chain.grammar
    struct.eog = lib.LLAMA_TOKEN_NULL
    if grammar is not None:
        if run.tells_ends:
            struct.eog = grammar._eog
        if run.forcing is not None:
            kept += run.forcing._fill(struct.forcing, context.model.vocab)
    stops = _stops(run.stops)
    struct.stops, struct.stop_sizes, struct.n_stops = stops.texts, stops.sizes, stops.n_texts
    kept.append(stops)
    if run.text:
        text = ffi.new("char[]", run.text)
        struct.text, struct.text_size = text, len(run.text)
        kept.append(text)
    return kept


def _n_max(run: Run) -> int:
    """The most tokens that a run may have; one if U+FFFD may stand for bytes of a stop text."""
    return 1 if any("\ufffd" in stop for stop in run.stops) else run.max_tokens


def _room(run: Run, max_steps: int) -> int:
    """How many tokens a run may have in a call, with those of a text that is forced at the end."""
    return min(_n_max(run), max_steps + (0 if run.forcing is None else run.forcing.most))


class _Stops(NamedTuple):
    """Stop texts for C, and what they point into."""

    texts: Pointer[Pointer[bytes]]
    sizes: Pointer[int]
    n_texts: int
    kept: object


@lru_cache(64)
def _stops(texts: tuple[str, ...]) -> _Stops:
    # A text that is not valid Unicode is never found.
    encoded = [text.encode("utf-8", "surrogatepass") for text in texts]
    kept = [ffi.new("char[]", text) for text in encoded]
    sizes = ffi.new("size_t[]", [len(text) for text in encoded])
    return _Stops(ffi.new("char *[]", kept), sizes, len(texts), kept)


def generate_each(
    context: Context,
    batch: Batch,
    runs: Mapping[int, Run],
    *,
    max_steps: int = 1,
    max_paused: int = 0,
    seconds: float = 0.0,
    n_threads: int | None = None,
) -> Generated:
    """Decode a batch, sample from its outputs, and go on with those sequences token by token.

    The same as ``Context.decode``, ``sample_each``, and so on in turn, but in one call and without
    the interpreter. It ends after ``max_steps`` decodes, after ``seconds``, or when more sequences
    than ``max_paused`` have paused: with a token that ends generation, with a stop text, at their
    ``max_tokens``, or over an error. After more than one decode, the context's outputs cannot be
    read.

    With a ``Forcing``, the tokens of what the grammar forces after a token are written behind it,
    and are computed together in the next decode.

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
    paused = integer("max_paused", max_paused, 0, INT32_MAX)
    limit = real("seconds", seconds, 0.0, 3600.0)
    threads = context.n_threads if n_threads is None else n_threads
    threads = integer("n_threads", threads, 1, MAX_THREADS)
    asked = _checked(runs)
    generated = Generated(asked)

    def generate() -> None:
        for output, run in asked.items():
            if not batch._gives(output):
                raise ValueError(f"runs must begin at outputs of the batch, got {output}")
            context._require_position(run.pos + _room(run, steps) - 1)
        structs = generated._fill(context, steps)
        n_steps = ffi.new("int32_t *")

        def call(pointer: Pointer[llama_context], filled: Pointer[llama_batch]) -> int:
            code = lib.guarded_generate_each(
                pointer, filled, structs, len(asked), steps, paused, limit, threads, n_steps
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
        require_run(run, MAX_STEPS)
        asked[integer("output", output, 0, INT32_MAX)] = run
    for keys in ([id(run.chain) for run in asked.values()], [run.seq_id for run in asked.values()]):
        if len(set(keys)) < len(asked):
            raise ValueError(f"runs must hold each chain and sequence once, got {runs!r}")
    return asked


def require_run(run: Run, max_steps: int) -> None:
    """Raise ValueError or TypeError for a run that no context can use."""
    if not isinstance(run, Run) or not isinstance(run.chain, SamplerChain):
        raise TypeError(f"runs must be pyllama.Run objects with a SamplerChain, got {run!r}")
    integer("seq_id", run.seq_id, 0, INT32_MAX)
    integer("max_tokens", run.max_tokens, 1, INT32_MAX)
    if run.forcing is not None and not isinstance(run.forcing, Forcing):
        raise TypeError(f"forcing must be a pyllama.Forcing or None, got {run.forcing!r}")
    integer("pos", run.pos, 0, MAX_POS - _room(run, max_steps))
    if not all(isinstance(stop, str) and stop for stop in run.stops):
        raise ValueError(f"stops must be texts that are not empty, got {run.stops!r}")
    if not isinstance(run.text, bytes):
        raise TypeError(f"text must be bytes, got {run.text!r}")
