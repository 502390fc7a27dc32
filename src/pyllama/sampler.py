"""Samplers: how the next token is chosen from logits (llama_sampler_*)."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

from pyllama import _callbacks  # noqa: F401  (installs the guard before any guarded call)
from pyllama._arguments import INT32_MAX, UINT32_MAX, integer, real
from pyllama._guard import check, raise_caught, to_str
from pyllama._handle import Handle
from pyllama._native._binding import ffi, lib
from pyllama._object import NativeObject
from pyllama.context import Context
from pyllama.vocab import Vocab

MAX_LAST_N = 2**24  # the window is allocated at once, 4 bytes for each token


class Sampler:
    """One step of a :class:`SamplerChain`, made by one of the class methods.

    A chain owns what it is given: a sampler can be put into one chain, once.

    Steps either narrow and reweight the candidates, or select one of them (``greedy``, ``dist``);
    a chain ends with one that selects.
    """

    def __init__(self, pointer: Any, *, selects: bool) -> None:
        if pointer == ffi.NULL:
            raise_caught("making a sampler")
        self._handle: Handle | None = Handle(pointer, lib.guarded_sampler_free)
        #: llama.cpp's name for it, such as ``"top-k"``; a ``?`` marks one without effect.
        self.name = to_str(lib.guarded_sampler_name(pointer))
        #: Whether it selects a token.
        self.selects = selects

    @classmethod
    def greedy(cls) -> Sampler:
        """Select the most likely token (``llama_sampler_init_greedy``)."""
        return cls(lib.guarded_sampler_init_greedy(), selects=True)

    @classmethod
    def dist(cls, seed: int) -> Sampler:
        """Select at random, by probability (``llama_sampler_init_dist``).

        :param seed: 0 to 2**32 - 2; the same seed selects the same tokens.
        """
        seed = integer("seed", seed, 0, UINT32_MAX - 1)
        return cls(lib.guarded_sampler_init_dist(seed), selects=True)

    @classmethod
    def temp(cls, temperature: float) -> Sampler:
        """Divide the logits by a temperature (``llama_sampler_init_temp``).

        :param temperature: 0 or less keeps the most likely token alone.
        """
        value = real("temperature", temperature, -1e6, 1e6)
        return cls(lib.guarded_sampler_init_temp(value), selects=False)

    @classmethod
    def top_k(cls, k: int) -> Sampler:
        """Keep the k most likely tokens; 0 or less keeps all (``llama_sampler_init_top_k``)."""
        return cls(
            lib.guarded_sampler_init_top_k(integer("k", k, -INT32_MAX, INT32_MAX)), selects=False
        )

    @classmethod
    def top_p(cls, p: float, *, min_keep: int = 1) -> Sampler:
        """Keep the smallest set of tokens whose probability reaches p (nucleus sampling).

        ``llama_sampler_init_top_p``; Holtzman et al., The Curious Case of Neural Text Degeneration.

        :param p: 0 to 1; 1 keeps all.
        :param min_keep: keep at least so many.
        """
        value, keep = real("p", p, 0.0, 1.0), integer("min_keep", min_keep, 0, INT32_MAX)
        return cls(lib.guarded_sampler_init_top_p(value, keep), selects=False)

    @classmethod
    def min_p(cls, p: float, *, min_keep: int = 1) -> Sampler:
        """Keep tokens at least p times as likely as the most likely one.

        ``llama_sampler_init_min_p``.

        :param p: 0 to 1; 0 keeps all.
        :param min_keep: keep at least so many.
        """
        value, keep = real("p", p, 0.0, 1.0), integer("min_keep", min_keep, 0, INT32_MAX)
        return cls(lib.guarded_sampler_init_min_p(value, keep), selects=False)

    @classmethod
    def penalties(
        cls,
        vocab: Vocab,
        *,
        last_n: int = 64,
        repeat: float = 1.0,
        freq: float = 0.0,
        present: float = 0.0,
    ) -> Sampler:
        """Make tokens that were accepted lately less likely (``llama_sampler_init_penalties``).

        :param last_n: how many accepted tokens count; 0 turns it off.
        :param repeat: divides the logit of a token that occurred; more than 0, 1 is off.
        :param freq: subtracted from the logit for each occurrence.
        :param present: subtracted from the logit of a token that occurred.
        """
        if not isinstance(vocab, Vocab):
            raise TypeError(f"vocab must be a pyllama.Vocab, got {vocab!r}")
        last_n = integer("last_n", last_n, 0, MAX_LAST_N)
        repeat = real("repeat", repeat, 1e-6, 1e6)
        freq, present = real("freq", freq, -1e6, 1e6), real("present", present, -1e6, 1e6)
        pointer = lib.guarded_sampler_init_penalties(vocab.n_tokens, last_n, repeat, freq, present)
        return cls(pointer, selects=False)

    def __repr__(self) -> str:
        return f"<pyllama.Sampler {self.name}{'' if self._handle else ', in a chain'}>"

    def _give_up(self) -> Any:
        """The pointer, for a chain to own."""
        handle, self._handle = self._handle, None
        if handle is None:
            raise ValueError(f"the {self.name} sampler belongs to a chain already: make another")
        handle.release.detach()
        return handle.pointer


class SamplerChain(NativeObject):
    """Samplers applied one after the other (``llama_sampler_chain_init``).

    One thread uses it at a time: calls from several threads wait for each other.

    :param samplers: in the order they apply; the last one, and no other, selects a token.
    """

    def __init__(self, samplers: Iterable[Sampler]) -> None:
        super().__init__()
        steps = list(samplers)
        for step in steps:
            if not isinstance(step, Sampler):
                raise TypeError(f"samplers must hold pyllama.Sampler objects, got {step!r}")
        if not steps or [step.selects for step in steps] != [False] * (len(steps) - 1) + [True]:
            names = ", ".join(step.name for step in steps)
            raise ValueError(
                "samplers must end with one that selects a token (greedy or dist), and hold no "
                f"other of them, got: {names or 'none'}"
            )
        pointer = lib.guarded_sampler_chain_init()
        if pointer == ffi.NULL:
            raise_caught("making a sampler chain")
        self._own(pointer, lib.guarded_sampler_free)
        for step in steps:
            check(lib.guarded_sampler_chain_add(pointer, step._give_up()), f"adding {step.name}")
        #: The names of its samplers, in order.
        self.names = tuple(step.name for step in steps)

    def sample(self, context: Context, index: int = -1) -> int:
        """Select a token from an output of the last decode, and accept it.

        ``llama_sampler_sample``.

        :param index: the output, as in :meth:`Context.logits`.
        :raises IndexError: the last decode gave no output there.
        """
        if not isinstance(context, Context):
            raise TypeError(f"context must be a pyllama.Context, got {context!r}")
        index = integer("index", index, -INT32_MAX, INT32_MAX)
        with self._lock, context._lock:
            chain, source = self._open().pointer, context._open().pointer
            token = self._check(lib.guarded_sampler_sample(chain, source, index), "sampling")
            if token == lib.LLAMA_TOKEN_NULL:
                context._raise_no_output(index)
            return token

    def accept(self, token: int) -> None:
        """Tell the samplers that a token was chosen, as penalties need (``llama_sampler_accept``).

        :meth:`sample` does it for the token it returns.
        """
        self._call(lib.guarded_sampler_accept, integer("token", token, 0, INT32_MAX))

    def reset(self) -> None:
        """Forget accepted tokens, and start the random numbers anew (``llama_sampler_reset``)."""
        self._call(lib.guarded_sampler_reset)

    def __repr__(self) -> str:
        return f"<pyllama.SamplerChain {' → '.join(self.names)}>"

    def _call(self, call: Callable[..., int], *arguments: Any) -> int:
        with self._lock:
            return self._check(call(self._open().pointer, *arguments), "sampling")
