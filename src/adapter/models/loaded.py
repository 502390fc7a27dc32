"""A handle on a model of a pool: it stays the same while the pool evicts and reloads the model."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from operator import attrgetter
from pathlib import Path
from types import MappingProxyType
from typing import Any, Protocol, TypeVar, get_args

import pyllama
from adapter.errors import PromptError, TemplateAbortedError
from adapter.generation.generator import Generator
from adapter.generation.pending import Pending
from adapter.generation.request import Delta, Execution, GenerationRequest, GenerationResult
from adapter.generation.sampling import Constraint, fewest_tokens
from adapter.generation.scoring import ScoringRequest, ScoringResult
from adapter.models.hardware import Placement
from adapter.models.lease import Lease
from adapter.models.resident import ResidentModel
from adapter.models.template_trials import complaint

T = TypeVar("T")


class Borrow(Protocol):
    """Keeps the model in memory for a block, loading it if need be, and gives a part of it."""

    def __call__(self, give: Callable[[ResidentModel], T]) -> Lease[T]: ...


class LoadedModel:
    """A handle on a model of a ModelPool. Thread-safe.

    The pool may evict the model to make room for another; its next use loads it again.

    Raises:
        ModelNotLoadedError: on use, the model was unloaded or its pool closed.
        ModelChangedError: on use, the file has other contents than when the model was loaded.
        PoolFullError: on use, there is no room to load it again.
    """

    def __init__(
        self,
        name: str,
        path: Path,
        resident: ResidentModel,
        placed: Callable[[], Placement],
        borrow: Borrow,
    ) -> None:
        #: The model's name in its pool.
        self.name = name
        #: Its GGUF file, or the first part of it.
        self.path = path
        #: Hex digest of the file, its chat template and the version of llama.cpp.
        self.fingerprint = resident.fingerprint
        #: What else affects the bytes of its answers: devices, layers on them, threads and so on.
        self.computation = resident.computation
        #: Tokens of context that it was trained with.
        self.n_ctx_train = resident.model.n_ctx_train
        #: Tokens of context that a request and its answer may have together.
        self.context_length = placed().context_length
        #: What its chat template can express.
        self.capabilities = resident.template.capabilities
        #: Names in the chat template, its variables among them.
        self.template_variables = resident.template_variables
        #: Whether it can be given tools, and its calls can be read.
        self.calls_tools = resident.calls_tools
        #: Tokens of its vocabulary.
        self.n_vocab = resident.model.vocab.n_tokens
        #: Whether it has a chat template. A model without one gets a plain form of turns.
        self.has_chat_template = resident.has_template
        #: Texts that end a turn, besides the vocabulary's own tokens.
        self.turn_stops = () if resident.has_template else ("\n\nUser:", "\n\nSystem:")
        self._placed = placed
        placement = placed()
        self._device = placement, _in_words(placement.devices)
        #: Compute completions: ``"batched"`` together with others, ``"isolated"`` one at a time.
        self.generators: Mapping[Execution, Generator] = MappingProxyType(
            {execution: _LeasedGenerator(borrow, execution) for execution in get_args(Execution)}
        )
        self._borrow = borrow
        # No cached_property: before Python 3.12 all handles would share its lock, which one that
        # waits for a load would hold.
        self._turn_ends: tuple[int, ...] | None = None

    @property
    def placement(self) -> Placement:
        """What it runs on, and why. It may change when an RPC server is lost."""
        return self._placed()

    @property
    def device(self) -> str:
        """The first device in words, such as ``"CPU (Intel Xeon)"``."""
        placement, words = self.placement, self._device
        if words[0] is not placement:
            self._device = words = placement, _in_words(placement.devices)
        return words[1]

    def lease(self) -> Lease[pyllama.Model]:
        """The model itself, kept in memory for a ``with`` block.

        Take a lease around a request that uses the model several times. During the block the model
        is neither evicted nor unloaded. Further leases within the block cost nothing.
        """
        return self._borrow(attrgetter("model"))

    def render(self, messages: Sequence[Mapping[str, Any]], **options: Any) -> pyllama.RenderedChat:
        """Apply the model's chat template to a conversation.

        A model without a template gets ``System: … / User: …``.

        Args:
            messages: the turns, as mappings with ``"role"`` and ``"content"``.
            options: as for ``pyllama.ChatTemplate.apply``.

        Returns:
            the prompt, which ends where the assistant's answer begins.

        Raises:
            PromptError: the template refuses the messages.
            TemplateAbortedError: the template does not end, or ends its process.
        """
        with self._borrow(whole) as resident:
            try:
                return resident.template.apply(messages, **options)
            except pyllama.ChatTemplateAborted as error:
                raise TemplateAbortedError(str(error)) from error
            except pyllama.ChatTemplateError as error:
                raise PromptError(complaint(error, messages)) from error

    def reads(self, variable: str) -> bool:
        """Whether a variable has an effect on the chat template, by itself or through llama.cpp."""
        through = self.capabilities.get(f"supports_{variable}")
        return variable in self.template_variables or bool(through)

    def tokenize(self, prompt: pyllama.RenderedChat | str) -> list[int]:
        """The tokens of a rendered prompt, with one BOS if the model wants it.

        Control tokens are recognised only where the chat template wrote them. A str counts as
        written by the template.

        Raises:
            PromptError: the text has no UTF-8 form, or is too long.
        """
        text, literal = (prompt, ()) if isinstance(prompt, str) else (prompt.prompt, prompt.literal)
        with self._borrow(whole) as resident:
            try:
                return resident.model.vocab.tokenize_prompt(
                    text, parse_special=resident.has_template, literal=literal
                )
            except pyllama.TokenizationError as error:
                raise PromptError(str(error)) from error

    def answer_tokens(self, text: str) -> tuple[int, ...]:
        """The tokens of a text within the assistant's turn, special ones recognised."""
        with self._borrow(whole) as resident:
            vocab = resident.model.vocab
            tokens = vocab.tokenize(text, add_special=False, parse_special=True)
            if tokens and not text[:1].isspace() and vocab.token_to_piece(tokens[0])[:1].isspace():
                del tokens[0]  # a space that some tokenizers put before the first special token
            return tuple(tokens)

    def fewest_tokens(self, constraint: Constraint) -> int:
        """The number of tokens of the shortest answer that follows a constraint.

        0 if the number is not known, or if the grammar cannot be used.
        """
        with self._borrow(whole) as resident:
            try:
                return fewest_tokens(resident.model.vocab, constraint) or 0
            except pyllama.LlamaError:
                return 0

    @property
    def turn_ends(self) -> tuple[int, ...]:
        """The tokens at which an answer of one line ends.

        These are the vocabulary's tokens that end generation. A model without a chat template was
        not trained to write one of them, so for it a token that begins with a line break ends the
        answer too.
        """
        if self._turn_ends is None:
            self._turn_ends = self._find_turn_ends()
        return self._turn_ends

    def _find_turn_ends(self) -> tuple[int, ...]:
        with self._borrow(whole) as resident:
            vocab, taught = resident.model.vocab, resident.has_template
            return tuple(
                token
                for token in range(vocab.n_tokens)
                if vocab.is_eog(token)
                or (not taught and vocab.token_to_piece(token, special=False)[:1] == b"\n")
            )

    def piece(self, token: int) -> bytes:
        """The bytes of one token. For many tokens, use the vocabulary of one lease."""
        with self._borrow(whole) as resident:
            return resident.model.vocab.token_to_piece(token)

    def __repr__(self) -> str:
        if "_device" not in vars(self):
            return "<LoadedModel, which could not be made>"
        return f"<LoadedModel {self.name!r} on {self.device}>"


class _LeasedGenerator(Generator):
    """A generator of a model, wherever it is in memory."""

    def __init__(self, borrow: Borrow, execution: Execution) -> None:
        self._borrow = borrow
        self._execution = execution

    def submit(
        self, request: GenerationRequest, cancelled: threading.Event | None = None
    ) -> Pending[Delta | GenerationResult]:
        """See ``Generator``. The model stays in memory until the request is closed."""
        return self._held(lambda generator: generator.submit(request, cancelled))

    def submit_scoring(
        self, request: ScoringRequest, cancelled: threading.Event | None = None
    ) -> Pending[ScoringResult]:
        """See ``submit``."""
        return self._held(lambda generator: generator.submit_scoring(request, cancelled))

    def _held(self, submit: Callable[[Generator], Pending[T]]) -> Pending[T]:
        # The caller's own lease may be on a model that has failed since and was replaced.
        with ExitStack() as held:
            resident = held.enter_context(self._borrow(whole))
            pending = submit(resident.generators[self._execution])
            pending.held = held.pop_all()
        return pending


def _in_words(devices: Sequence[pyllama.Device]) -> str:
    if not devices:
        devices = [device for device in pyllama.devices() if device.type == "cpu"]
    return f"{devices[0].name} ({devices[0].description})"


def whole(resident: ResidentModel) -> ResidentModel:
    """Give a lease's block the whole model."""
    return resident
