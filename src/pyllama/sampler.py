"""Samplers: how the next token is chosen from logits (llama_sampler_*)."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, cast

from pyllama import _callbacks, _process  # noqa: F401  (installs the guard before any call)
from pyllama import _sampler_arguments as checked
from pyllama._arguments import INT32_MAX, integer, real
from pyllama._guard import check, guarded_str, raise_caught, raise_if_caught
from pyllama._half_made import or_half_made
from pyllama._handle import Handle
from pyllama._native._binding import ffi, lib
from pyllama._sampling import SamplerObject
from pyllama.candidates import Candidates
from pyllama.errors import ClosedError
from pyllama.python_sampler import PythonSampler, raise_from_python, register, registered
from pyllama.vocab import Vocab

if TYPE_CHECKING:
    from typing_extensions import Self

    from pyllama._native._binding import Pointer, llama_sampler, pyllama_chain
    from pyllama.model import Model

MAX_LAST_N = 2**24  # the window is allocated at once, 4 bytes for each token


class Sampler(SamplerObject["Pointer[llama_sampler]"]):
    """One step of a ``SamplerChain``, made by one of the class methods.

    A chain owns what it is given: a sampler is in one chain at a time, and is closed with it.
    Steps either narrow and reweight the candidates, or select one of them, which the last step
    of a chain does.

    One thread uses it at a time: calls from several threads wait for each other.
    """

    _chain: weakref.ref[SamplerObject[Any]] | None = None
    _effect: int = lib.PYLLAMA_ANY_EFFECT
    calls_python = False

    def __init__(
        self,
        pointer: Pointer[llama_sampler],
        *,
        selects: bool,
        vocab: Vocab | None = None,
        reads_vocab: bool = False,
    ) -> None:
        super().__init__()
        if pointer == ffi.NULL:
            raise_from_python()
            raise_caught("making a sampler")
        #: Whether it selects a token.
        self.selects = selects
        self._pointer = pointer
        self._vocab = vocab
        # C reads the vocabulary from then on. So the model must live as long, and closes it.
        self._model = cast("Model", vocab._model) if vocab and reads_vocab else None
        self._own_pointer()
        #: llama.cpp's name for it, such as ``"top-k"``; a ``?`` marks one without effect.
        self.name = guarded_str(lib.guarded_sampler_name(pointer), "the name of a sampler")
        if self._model is not None:
            self._model._adopt(self)

    # Samplers that select a token.

    @classmethod
    def greedy(cls) -> Sampler:
        """Select the most likely token (``llama_sampler_init_greedy``)."""
        sampler = cls(lib.guarded_sampler_init_greedy(), selects=True)
        sampler._effect = lib.PYLLAMA_TAKES_HIGHEST
        return sampler

    @classmethod
    def dist(cls, seed: int) -> Sampler:
        """Select at random, by probability (``llama_sampler_init_dist``).

        Args:
            seed: 0 to 2**32 - 2; the same seed selects the same tokens.
        """
        return cls(lib.guarded_sampler_init_dist(checked.seed(seed)), selects=True)

    @classmethod
    def mirostat(
        cls, vocab: Vocab, seed: int, *, tau: float = 5.0, eta: float = 0.1, m: int = 100
    ) -> Sampler:
        """Select at random so that the surprise stays near a target.

        ``llama_sampler_init_mirostat``; Basu et al., Mirostat, https://arxiv.org/abs/2007.14966.

        Args:
            seed: as in ``dist``.
            tau: the surprise to reach, in bits; 0 to 1000.
            eta: how fast it is corrected, 0 to 1000.
            m: how many of the most likely tokens the estimate looks at, 1 or more.
        """
        n_vocab, seed = checked.vocabulary(vocab).n_tokens, checked.seed(seed)
        tau, eta = real("tau", tau, 0.0, 1e3), real("eta", eta, 0.0, 1e3)
        m = integer("m", m, 1, INT32_MAX)
        pointer = lib.guarded_sampler_init_mirostat(n_vocab, seed, tau, eta, m)
        return cls(pointer, selects=True, vocab=vocab)

    @classmethod
    def mirostat_v2(cls, seed: int, *, tau: float = 5.0, eta: float = 0.1) -> Sampler:
        """The same target, reached by dropping what is too surprising.

        ``llama_sampler_init_mirostat_v2``; parameters as in ``mirostat``.
        """
        seed = checked.seed(seed)
        tau, eta = real("tau", tau, 0.0, 1e3), real("eta", eta, 0.0, 1e3)
        return cls(lib.guarded_sampler_init_mirostat_v2(seed, tau, eta), selects=True)

    @classmethod
    def adaptive_p(cls, seed: int, *, target: float, decay: float = 0.9) -> Sampler:
        """Select tokens whose probability is, over time, near a target.

        ``llama_sampler_init_adaptive_p``. Put no more than a mild ``min_p`` before it.

        Args:
            seed: as in ``dist``.
            target: 0 to 1.
            decay: how long earlier tokens count, 0 to 0.99: about 1 / (1 - decay) tokens.
        """
        seed, target = checked.seed(seed), real("target", target, 0.0, 1.0)
        decay = real("decay", decay, 0.0, 0.99)
        return cls(lib.guarded_sampler_init_adaptive_p(target, decay, seed), selects=True)

    # Samplers that narrow the candidates.

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

        Args:
            p: 0 to 1; 1 keeps all.
            min_keep: the fewest candidates to keep.
        """
        value, keep = real("p", p, 0.0, 1.0), checked.min_keep(min_keep)
        return cls(lib.guarded_sampler_init_top_p(value, keep), selects=False)

    @classmethod
    def min_p(cls, p: float, *, min_keep: int = 1) -> Sampler:
        """Keep tokens at least p times as likely as the most likely one.

        ``llama_sampler_init_min_p``.

        Args:
            p: 0 to 1; 0 keeps all.
            min_keep: the fewest candidates to keep.
        """
        value, keep = real("p", p, 0.0, 1.0), checked.min_keep(min_keep)
        return cls(lib.guarded_sampler_init_min_p(value, keep), selects=False)

    @classmethod
    def typical(cls, p: float, *, min_keep: int = 1) -> Sampler:
        """Keep tokens whose surprise is nearest to the expected one, until they reach p.

        ``llama_sampler_init_typical``; Meister et al., Locally Typical Sampling,
        https://arxiv.org/abs/2202.00666.

        Args:
            p: 0 to 1; 1 keeps all.
            min_keep: the fewest candidates to keep.
        """
        value, keep = real("p", p, 0.0, 1.0), checked.min_keep(min_keep)
        return cls(lib.guarded_sampler_init_typical(value, keep), selects=False)

    @classmethod
    def top_n_sigma(cls, n: float) -> Sampler:
        """Rule out tokens with logits n standard deviations below the best; 0 rules out none.

        ``llama_sampler_init_top_n_sigma``; Tang et al., https://arxiv.org/abs/2411.07641.
        """
        value = real("n", n, 0.0, 1e6)
        return cls(lib.guarded_sampler_init_top_n_sigma(value), selects=False)

    @classmethod
    def xtc(cls, probability: float, threshold: float, seed: int, *, min_keep: int = 1) -> Sampler:
        """Now and then drop the most likely tokens, except for the least likely of them.

        ``llama_sampler_init_xtc`` (exclude top choices).

        Args:
            probability: of doing so for a token, 0 to 1.
            threshold: a token of at least this probability is a top choice, 0 to 1; over 0.5 is
                off.
            seed: as in ``dist``.
            min_keep: do nothing where fewer would be left.
        """
        chance = real("probability", probability, 0.0, 1.0)
        limit = real("threshold", threshold, 0.0, 1.0)
        pointer = lib.guarded_sampler_init_xtc(
            chance, limit, checked.min_keep(min_keep), checked.seed(seed)
        )
        return cls(pointer, selects=False)

    @classmethod
    def infill(cls, vocab: Vocab) -> Sampler:
        """Prefer to end, and join tokens that begin alike, when filling in the middle of a text.

        ``llama_sampler_init_infill``. Put ``top_k`` and ``top_p`` before it: it compares
        all candidates with each other.

        Raises:
            ValueError: a vocabulary without tokens that end a text.
        """
        if checked.tokenizing(vocab).eot is None and vocab.eos is None:
            raise ValueError("vocab must have an end-of-turn or end-of-sequence token for infill")
        with vocab._open() as pointer:
            sampler = lib.guarded_sampler_init_infill(pointer)
        return cls(sampler, selects=False, vocab=vocab, reads_vocab=True)

    # Samplers that reweight them.

    @classmethod
    def temp(cls, temperature: float) -> Sampler:
        """Divide the logits by a temperature (``llama_sampler_init_temp``).

        Args:
            temperature: 0 or less keeps the most likely token alone.
        """
        value = real("temperature", temperature, -1e6, 1e6)
        return cls(lib.guarded_sampler_init_temp(value), selects=False)

    @classmethod
    def temp_ext(cls, temperature: float, delta: float, exponent: float = 1.0) -> Sampler:
        """Divide the logits by a temperature that grows with the entropy of the candidates.

        ``llama_sampler_init_temp_ext``; Zhu et al., dynamic temperature,
        https://arxiv.org/abs/2309.02772.

        Args:
            temperature: the middle of its range.
            delta: how far it may go from there; 0 or less makes this ``temp``.
            exponent: of the normalized entropy, 0 to 1000.
        """
        value, delta = real("temperature", temperature, -1e6, 1e6), real("delta", delta, -1e6, 1e6)
        exponent = real("exponent", exponent, 0.0, 1e3)
        return cls(lib.guarded_sampler_init_temp_ext(value, delta, exponent), selects=False)

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
        """Make recently accepted tokens less likely (``llama_sampler_init_penalties``).

        Args:
            last_n: how many accepted tokens count; 0 turns it off.
            repeat: divides the logit of a token that occurred; more than 0, 1 is off.
            freq: subtracted from the logit for each occurrence.
            present: subtracted from the logit of a token that occurred.
        """
        n_vocab, last_n = (
            checked.vocabulary(vocab).n_tokens,
            integer("last_n", last_n, 0, MAX_LAST_N),
        )
        repeat = real("repeat", repeat, 1e-6, 1e6)
        freq, present = real("freq", freq, -1e6, 1e6), real("present", present, -1e6, 1e6)
        pointer = lib.guarded_sampler_init_penalties(n_vocab, last_n, repeat, freq, present)
        return cls(pointer, selects=False, vocab=vocab)

    @classmethod
    def dry(
        cls,
        vocab: Vocab,
        *,
        multiplier: float,
        base: float = 1.75,
        allowed_length: int = 2,
        last_n: int = 1024,
        breakers: Iterable[str] = ("\n", ":", '"', "*"),
    ) -> Sampler:
        """Make tokens that would continue a repetition less likely (``llama_sampler_init_dry``).

        The penalty is multiplier * base ** (length - allowed_length).

        Args:
            multiplier: 0 turns it off.
            base: 1 or more.
            allowed_length: repetitions shorter than this, in tokens, are ignored.
            last_n: how many accepted tokens are looked at; 0 turns it off.
            breakers: texts that no repetition spans, each at most 40 bytes. Looking them up in the
                vocabulary takes a while.
        """
        checked.tokenizing(vocab)
        multiplier, base = real("multiplier", multiplier, 0.0, 1e6), real("base", base, 1.0, 1e6)
        length = integer("allowed_length", allowed_length, 0, INT32_MAX)
        last_n = integer("last_n", last_n, 0, MAX_LAST_N)
        texts = [ffi.new("char[]", text) for text in checked.breakers(breakers)]
        with vocab._open() as pointer:
            sampler = lib.guarded_sampler_init_dry(
                pointer, multiplier, base, length, last_n, texts, len(texts)
            )
        return cls(sampler, selects=False, vocab=vocab)

    @classmethod
    def logit_bias(cls, vocab: Vocab, biases: Mapping[int, float]) -> Sampler:
        """Add to the logits of some tokens (``llama_sampler_init_logit_bias``).

        Args:
            biases: what to add, by token; minus infinity rules a token out.
        """
        n_vocab = checked.vocabulary(vocab).n_tokens
        if not isinstance(biases, Mapping):
            raise TypeError(f"biases must be a mapping from tokens to numbers, got {biases!r}")
        pairs = [
            (integer("biases", token, 0, n_vocab - 1), checked.bias(token, bias))
            for token, bias in biases.items()
        ]
        array = ffi.new("llama_logit_bias[]", pairs)
        pointer = lib.guarded_sampler_init_logit_bias(n_vocab, len(pairs), array)
        sampler = cls(pointer, selects=False, vocab=vocab)
        if all(bias <= 0 for _, bias in pairs):
            sampler._effect = lib.PYLLAMA_LOWERS
        return sampler

    @classmethod
    def python(cls, sampler: PythonSampler | Callable[[Candidates], Candidates]) -> Sampler:
        """A sampler written in Python (``llama_sampler_init``).

        Args:
            sampler: an object, or a function in place of its ``pyllama.PythonSampler.apply``.
                It is kept until the sampler is freed.
        """
        number = register(sampler)
        implementation = registered(number)
        name = str(implementation.name).replace("\0", "")
        pointer = lib.guarded_sampler_init_python(number, name.encode("utf-8", "replace"))
        made = cls(pointer, selects=bool(implementation.selects))
        made.calls_python = True
        return made

    # What they do

    @property
    def seed(self) -> int | None:
        """The seed of its random numbers (``llama_sampler_get_seed``), or None.

        llama.cpp gives it only for ``dist`` and both mirostats.
        """
        with self._held():
            seed: int = lib.guarded_sampler_get_seed(self._pointer)
            raise_if_caught("the seed of a sampler")
        return None if seed == lib.LLAMA_DEFAULT_SEED else seed

    def apply(self, candidates: Candidates) -> Candidates:
        """The candidates that it leaves (``llama_sampler_apply``)."""
        with self._held() as owner:
            self._require_known(candidates)
            return owner._run_apply(lib.guarded_sampler_apply, self._pointer, candidates)

    def accept(self, token: int) -> None:
        """Tell it that a token was chosen (``llama_sampler_accept``).

        Raises:
            GrammarError: a grammar that does not let it follow; nothing has changed then.
        """
        token = self._known_token(token)
        with self._held() as owner:
            what = f"accepting token {token}"
            owner._run(what, lib.guarded_sampler_accept, self._pointer, token)

    def reset(self) -> None:
        """Forget accepted tokens, and restart the random numbers (``llama_sampler_reset``)."""
        with self._held() as owner:
            owner._run("resetting", lib.guarded_sampler_reset, self._pointer)

    def clone(self) -> Self:
        """Return an independent copy in the same state (``llama_sampler_clone``).

        The random numbers of ``adaptive_p`` start again in the copy.
        """
        with self._held() as owner:
            owner._require_idle()
            return self._like(lib.guarded_sampler_clone(self._pointer))

    @property
    def closed(self) -> bool:
        try:
            return _process.ended or self._owner()._handle is None
        except ClosedError:
            return True

    @or_half_made
    def __repr__(self) -> str:
        return f"<pyllama.{type(self).__name__} {self.name}{', in a chain' if self._chain else ''}>"

    # For chains

    def _require_free(self, others: Sequence[Sampler]) -> None:
        """Refuse to be added to a chain together with others: twice, or while it is in one."""
        if self._chain is not None or any(self is other for other in others):
            raise ValueError(f"the {self.name} sampler belongs to a chain already: make another")
        self._open()

    def _add_to(self, chain: SamplerObject[Any], pointer: Pointer[pyllama_chain]) -> None:
        """Become the last sampler of a chain, which owns it from then on."""
        code = lib.guarded_chain_add(pointer, self._join(chain), self._effect)
        check(code, f"adding {self.name}")

    def _keep_model(self, chain: SamplerObject[Any]) -> Iterator[Handle[Any]]:
        """The object that a chain must keep alive for it: the model whose vocabulary it reads.

        Closing that model closes the chain first.
        """
        if self._model is not None:
            yield self._model._open()
            self._model._adopt(chain)

    def _like(
        self, pointer: Pointer[llama_sampler], chain: SamplerObject[Any] | None = None
    ) -> Self:
        """The same sampler around another pointer, owned by the chain if one is given."""
        other = type(self).__new__(type(self))
        other.__dict__.update(self.__dict__)
        SamplerObject.__init__(other)
        if pointer == ffi.NULL:
            raise_from_python()
            raise_caught(f"copying the {self.name} sampler")
        other._pointer, other._handle, other._chain = pointer, None, None
        if chain is not None:
            other._chain = weakref.ref(chain)
            return other
        other._own_pointer()
        if other._model is not None:
            other._model._adopt(other)
        return other

    def _own_pointer(self) -> None:
        try:
            needs = () if self._model is None else (self._model._open(),)
        except ClosedError:
            lib.guarded_sampler_free(self._pointer)
            raise
        self._own(self._pointer, lib.guarded_sampler_free, *needs)

    def _join(self, chain: SamplerObject[Any]) -> Pointer[llama_sampler]:
        """The pointer, for the chain to own."""
        with self._lock:
            self._require_idle()
            pointer = self._open().pointer
            handle, self._handle = self._open(), None
            handle.disown()
            self._chain = weakref.ref(chain)
            return pointer

    def _leave(self) -> None:
        """Take ownership of the pointer again, which the chain gave back."""
        with self._lock:
            self._chain = None
            self._own_pointer()

    def _owner(self) -> SamplerObject[Any]:
        """The object whose lock and handle apply to the C sampler: itself, or its chain."""
        if self._chain is None:
            return self
        chain = self._chain()
        if chain is None:
            raise ClosedError(f"the chain of this {self.name} sampler is gone, and with it this")
        return chain

    @contextmanager
    def _held(self) -> Iterator[SamplerObject[Any]]:
        """Hold the owner, locked and open. Another thread may be moving it."""
        while True:
            owner = self._owner()
            with owner._lock:
                if owner is self._owner():
                    with owner._open():
                        yield owner
                    return
