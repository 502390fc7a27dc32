"""Chains of samplers, and sampling under a grammar."""

from __future__ import annotations

import operator
import threading
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, SupportsIndex

from pyllama import _process
from pyllama._arguments import INT32_MAX, integer
from pyllama._guard import CAUGHT, caught_error, check, raise_caught, raise_if_caught, to_str
from pyllama._half_made import or_half_made
from pyllama._handle import Handle
from pyllama._native._binding import ffi, lib
from pyllama._sampling import SamplerObject, refusal
from pyllama.candidates import Candidates
from pyllama.errors import LlamaError, NativeAssertionError
from pyllama.grammar import GrammarSampler
from pyllama.model import Model
from pyllama.outputs import ContextOutputs
from pyllama.python_sampler import raise_from_python
from pyllama.sampler import Sampler
from pyllama.vocab import Vocab

if TYPE_CHECKING:
    from pyllama._native._binding import Pointer, pyllama_chain, pyllama_draw


@dataclass(frozen=True)
class SamplerPerf:
    """What a chain has done since it was made, or since ``SamplerChain.perf_reset``."""

    #: Milliseconds in its samplers, without the grammar; 0 unless made with ``no_perf=False``.
    t_sample_ms: float
    #: Tokens accepted.
    n_sample: int
    #: How often the grammar refused the first choice, and the token was sampled again.
    n_resampled: int


class SamplerChain(SamplerObject["Pointer[pyllama_chain]"]):
    """Samplers applied one after the other (``llama_sampler_chain_init``).

    It behaves as a sequence of them. One thread uses it at a time: calls from several threads
    wait for each other.

    With a grammar, a token is first chosen without it, and chosen again under it only if the
    grammar refuses the first choice. The tokens are those that the grammar allows, at a fraction of
    the cost of ruling out the others each time. llama.cpp's own tools do the same. For the
    distribution that a grammar gives as the first step, make it the first sampler.

    Args:
        samplers: in the order they apply; only the last one may select a token.
        grammar: what sampled tokens must follow. Like the samplers, it belongs to the chain.
        no_perf: do not measure ``SamplerPerf.t_sample_ms``.

    Raises:
        ValueError: a sampler that is in a chain, or of another vocabulary than the others.
    """

    def __init__(
        self,
        samplers: Iterable[Sampler] = (),
        *,
        grammar: GrammarSampler | None = None,
        no_perf: bool = True,
    ) -> None:
        super().__init__()
        if not isinstance(samplers, Iterable):
            raise TypeError(f"samplers must hold pyllama.Sampler objects, got {samplers!r}")
        steps = list(samplers)
        if grammar is not None and not isinstance(grammar, GrammarSampler):
            raise TypeError(f"grammar must be a pyllama.GrammarSampler, got {grammar!r}")
        self._steps: list[Sampler] = []
        self._grammar: GrammarSampler | None = None
        self._vocab: Vocab | None = None
        self._likeness = object()  # shared with clones, as long as they hold the same samplers
        self._context: ContextOutputs | None = None
        self._require_fitting([*steps, *([] if grammar is None else [grammar])], steps)
        with self._lock:  # closing the model of a sampler meanwhile closes this as well
            self._own_chain(lib.guarded_chain_init(bool(no_perf)))
            for step in steps:
                self._take(step)
            if grammar is not None:
                self._depend_on(grammar)
                joined, pointer = grammar._join(self), self._open().pointer
                check(lib.guarded_chain_set_grammar(pointer, joined), "adding a grammar")
                self._grammar = grammar

    # Its samplers

    def add(self, sampler: Sampler) -> None:
        """Add a sampler at the end (``llama_sampler_chain_add``).

        Raises:
            ValueError: as when a chain is made; nothing has changed then.
        """
        with self._lock:
            self._open()
            self._require_idle()
            self._require_detached()
            self._require_fitting([sampler], [*self._steps, sampler])
            self._take(sampler)
            self._likeness = object()

    def remove(self, index: SupportsIndex = -1) -> Sampler:
        """Take a sampler out, and give it back to its owner (``llama_sampler_chain_remove``).

        Raises:
            IndexError: there is none at the index.
        """
        with self._lock:
            handle = self._open()
            self._require_idle()
            self._require_detached()
            position = range(len(self._steps))[integer("index", index, -INT32_MAX, INT32_MAX)]
            if lib.guarded_chain_remove(handle.pointer, position) == ffi.NULL:
                raise_caught("removing a sampler")
            sampler = self._steps.pop(position)
            self._likeness = object()
            sampler._leave()
            return sampler

    @property
    def grammar(self) -> GrammarSampler | None:
        """The grammar that sampled tokens follow, if there is one."""
        return self._grammar

    @property
    def names(self) -> tuple[str, ...]:
        """The names of its samplers, in order."""
        return tuple(step.name for step in self._steps)

    @property
    def selects(self) -> bool:
        """Whether its last sampler selects a token, as ``sample`` needs."""
        return bool(self._steps) and self._steps[-1].selects

    def __len__(self) -> int:
        return len(self._steps)

    def __iter__(self) -> Iterator[Sampler]:
        return iter(tuple(self._steps))

    def __getitem__(self, index: SupportsIndex) -> Sampler:
        return self._steps[operator.index(index)]

    def close(self) -> None:
        """Free it, after closing the context that it is attached to. Closing again does nothing."""
        while not _process.ended and not self._close_under(self._lock):
            self._require_idle()
            if self._context is not None:
                self._context.close()

    def _close_under(self, lock: threading.RLock) -> bool:
        """Close it. Returns False if it was attached to a context before the lock was acquired."""
        with lock:
            if self._context is not None and not self._context.closed:
                return False
            super().close()
            return True

    def _open(self) -> Handle[Pointer[pyllama_chain]]:
        # A thread that waited for the lock of the chain before it was attached.
        if self._context is not None and not self._lock._is_owned():  # type: ignore[attr-defined]
            self._require_detached()
        return super()._open()

    def _require_attachable(self, model: Model) -> None:
        """Refuse to be attached to a context of a model."""
        if self.grammar is not None:
            raise ValueError(
                "samplers must hold chains without a grammar: devices do not run those"
            )
        if not self.selects:
            raise ValueError(f"samplers must hold chains that select a token, got {self!r}")
        if self._vocab is not None and self._vocab is not model.vocab:
            raise ValueError(f"samplers must hold chains for this model's vocabulary, got {self!r}")
        self._require_detached()

    def _attach(self, context: ContextOutputs) -> None:
        """Become part of a context, whose decodes run it. Nothing else may use it meanwhile."""
        self._context = context
        self._lock = context._lock

    def _require_detached(self) -> None:
        if self._context is not None and not self._context.closed:
            raise ValueError("this chain is attached to a context, which has built it into itself")

    # Sampling

    def sample(self, context: ContextOutputs, index: int = -1) -> int:
        """Select a token from an output of the last decode, and accept it.

        ``llama_sampler_sample``. What the context has run on its device (``samplers`` of
        ``Context``) is not done again.

        Args:
            index: the output, as in ``Context.logits``.

        Raises:
            IndexError: the last decode gave no output there.
            ValueError: a context of another model than the samplers are for, or a chain that does
                not select a token.
            SamplingError: the samplers left no token, or the grammar does not let any follow. The
                chain has accepted nothing, but random numbers may have been drawn.
        """
        if not isinstance(context, ContextOutputs):
            raise TypeError(f"context must be a pyllama.Context, got {context!r}")
        index = integer("index", index, -INT32_MAX, INT32_MAX)
        attached = self._context is context
        call = lib.guarded_chain_sample_attached if attached else lib.guarded_chain_sample
        with self._lock:
            pointer = self._open().pointer
            self._require_sampling(context)
            token = context._reading(
                lambda outputs: self._run("sampling", call, pointer, outputs, index)
            )
            if token == lib.PYLLAMA_NO_OUTPUT:
                context._raise_no_output(index)
            return token

    def _require_sampling(self, context: ContextOutputs) -> None:
        if not (self._steps and self._steps[-1].selects):
            raise ValueError(_selecting_last(self._steps))
        if self._vocab is not None and self._vocab is not context.model.vocab:
            raise ValueError(
                "context must be of the model that the samplers of this chain are for, "
                f"got {context!r}"
            )

    def _begin_draw(self, context: ContextOutputs) -> Pointer[pyllama_chain]:
        """For ``sample_each``, which holds the lock: the pointer, if it can go with others."""
        pointer = self._open().pointer
        self._require_idle()
        self._require_sampling(context)
        if any(step.calls_python for step in self._steps):
            raise ValueError(f"{self!r} holds a sampler written in Python: sample() with it alone")
        if self._context is not None:
            raise ValueError(f"{self!r} is attached to a context: sample() with it alone")
        return pointer

    def _end_draw(self, draw: pyllama_draw) -> int | LlamaError:
        """What ``sample`` would have returned, or raised."""
        token: int = draw.token
        if token >= 0:
            return token
        if token != CAUGHT:
            return refusal(token, "sampling")
        error = caught_error(draw.caught, to_str(draw.message), "sampling")
        if isinstance(error, NativeAssertionError):
            self._spoil(str(error))
        return error

    def apply(self, candidates: Candidates) -> Candidates:
        """The candidates that its samplers leave (``llama_sampler_apply``), without the grammar."""
        with self._lock, self._open() as pointer:
            self._require_known(candidates)
            return self._run_apply(lib.guarded_chain_apply, pointer, candidates)

    def accept(self, token: int, *, accept_grammar: bool = True) -> None:
        """Tell the samplers that a token was chosen (``llama_sampler_accept``).

        ``sample`` does it for the token it returns.

        Args:
            accept_grammar: whether the grammar accepts it, too; False for the tokens of a prompt.

        Raises:
            GrammarError: the grammar does not let it follow; nothing has changed then.
        """
        token = self._known_token(token)
        with self._lock, self._open() as pointer:
            what = f"accepting token {token}"
            self._run(what, lib.guarded_chain_accept, pointer, token, bool(accept_grammar))

    def reset(self) -> None:
        """Forget accepted tokens, and restart the random numbers (``llama_sampler_reset``)."""
        with self._lock, self._open() as pointer:
            self._run("resetting", lib.guarded_chain_reset, pointer)

    def clone(self) -> SamplerChain:
        """Return an independent copy in the same state (``llama_sampler_clone``)."""
        with self._lock, self._open() as pointer:
            self._require_idle()
            other = SamplerChain.__new__(SamplerChain)
            SamplerObject.__init__(other)
            other._vocab, other._likeness, other._context = self._vocab, self._likeness, None
            copied = lib.guarded_chain_clone(pointer)
            other._own_chain(copied)
            other._steps = [
                step._like(lib.guarded_chain_get(copied, position), other)
                for position, step in enumerate(self._steps)
            ]
            other._grammar = self._grammar and self._grammar._like(
                lib.guarded_chain_grammar(copied), other
            )
            for step in [*self._steps, *([] if self._grammar is None else [self._grammar])]:
                other._depend_on(step)
            return other

    def copy_state(self, source: SamplerChain) -> None:
        """Take over the state of another chain (``llama_sampler_copy``).

        Args:
            source: a clone of this chain, or what this is a clone of: to go back to where it was
                cloned, for example.

        Raises:
            ValueError: any other chain, or samplers were added or removed since.
        """
        if not isinstance(source, SamplerChain):
            raise TypeError(f"source must be a pyllama.SamplerChain, got {source!r}")
        first, second = sorted((self, source), key=id)  # two threads may copy crosswise
        with first._lock, second._lock, self._open() as pointer, source._open() as other:
            source._require_idle()
            if source._likeness is not self._likeness:
                raise ValueError(f"source must be a clone with the same samplers, got {source!r}")
            self._run("copying a chain", lib.guarded_chain_copy_state, other, pointer)

    @property
    def seed(self) -> int | None:
        """The seed of its last sampler that has one (``llama_sampler_get_seed``), or None."""
        with self._lock, self._open() as pointer:
            seed: int = lib.guarded_chain_get_seed(pointer)
            raise_if_caught("the seed of a chain")
        return None if seed == lib.LLAMA_DEFAULT_SEED else seed

    def perf(self) -> SamplerPerf:
        """What it has done so far (``llama_perf_sampler``)."""
        with self._lock, self._open() as pointer:
            perf = ffi.new("pyllama_chain_perf *")
            self._run("reading counters", lib.guarded_chain_perf, pointer, perf)
            return SamplerPerf(perf.t_sample_ms, perf.n_sample, perf.n_resampled)

    def perf_reset(self) -> None:
        """Count from 0 (``llama_perf_sampler_reset``)."""
        with self._lock, self._open() as pointer:
            self._run("resetting counters", lib.guarded_chain_perf_reset, pointer)

    @or_half_made
    def __repr__(self) -> str:
        steps = " → ".join(self.names) or "empty"
        return f"<pyllama.SamplerChain {steps}{', with a grammar' if self._grammar else ''}>"

    def _own_chain(self, pointer: Pointer[pyllama_chain]) -> None:
        if pointer == ffi.NULL:
            raise_from_python()
            raise_caught("making a sampler chain")
        self._free = _FreeChain()
        self._own(pointer, self._free)

    def _require_fitting(self, new: list[Sampler], steps: list[Sampler]) -> None:
        """Refuse samplers that cannot be added, before anything is changed."""
        for sampler in new:
            if not isinstance(sampler, Sampler):
                raise TypeError(f"samplers must hold pyllama.Sampler objects, got {sampler!r}")
        if any(step.selects for step in steps[:-1]):
            raise ValueError(_selecting_last(steps))
        vocab = self._vocab
        for position, sampler in enumerate(new):
            sampler._require_free(new[:position])
            vocab = vocab or sampler._vocab
            if sampler._vocab is not None and sampler._vocab is not vocab:
                raise ValueError(
                    f"the {sampler.name} sampler is for another model's vocabulary than those "
                    "before it"
                )

    def _take(self, sampler: Sampler) -> None:
        self._depend_on(sampler)
        sampler._add_to(self, self._open().pointer)
        self._steps.append(sampler)

    def _depend_on(self, sampler: Sampler) -> None:
        """Keep the model alive whose vocabulary a sampler reads, and let it close this first."""
        self._free.needs.extend(sampler._keep_model(self))
        self._vocab = self._vocab or sampler._vocab


class _FreeChain:
    """Frees a chain, and keeps the models that its samplers read until then."""

    def __init__(self) -> None:
        self.needs: list[Handle[Any]] = []

    def __call__(self, pointer: Pointer[pyllama_chain]) -> None:
        lib.guarded_chain_free(pointer)
        self.needs.clear()


def _selecting_last(steps: list[Sampler]) -> str:
    names = ", ".join(step.name for step in steps)
    return (
        "samplers must end with one that selects a token (greedy, dist or a like one), and hold no "
        f"other of them, got: {names or 'none'}"
    )
