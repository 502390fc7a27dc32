"""One request in the scheduler."""

from __future__ import annotations

import logging
import threading
import time
from bisect import bisect_right
from contextlib import suppress
from typing import Literal, TypeAlias

import pyllama
from adapter.errors import RequestTimeoutError
from adapter.generation.answer_writer import AnswerWriter
from adapter.generation.failures import insist, note, translation
from adapter.generation.memory.blocks import BLOCK, block_hashes, call_end, last_border, n_reusable
from adapter.generation.outcomes import Outcomes
from adapter.generation.request import Delta, GenerationRequest, GenerationResult, joined

logger = logging.getLogger(__name__)

Event: TypeAlias = Delta | GenerationResult | BaseException


class ScheduledRequest:
    """A request, its answer so far, and the outcomes for its caller.

    Only the scheduler's thread uses it, except for ``events`` and ``abandoned``.
    """

    def __init__(
        self,
        vocab: pyllama.Vocab,
        request: GenerationRequest,
        max_tokens: int,
        cancelled: threading.Event,
    ) -> None:
        self.request = request
        self.hashes = block_hashes(request.prompt)
        #: Blocks of the prompt that need not be computed, and those before its last call.
        self.n_reusable = n_reusable(len(request.prompt))
        self.n_to_border = last_border(len(request.prompt)) // BLOCK
        self.state: Literal["queued", "prefilling", "running", "ended"] = "queued"
        self._n_past = 0
        #: Tokens of the prompt that were not computed for this request.
        self.n_cached = 0
        self.arrived = time.monotonic()
        #: What the caller gets. None means that the request was given up.
        self.events: Outcomes[Event] = Outcomes(self.deadline, cancelled)
        #: Set by the caller's thread when it does not wait for the result any more.
        self.abandoned = False
        #: The last call that computed a part of it, by its runner's count.
        self.step = 0
        #: Whether an error undid what was computed of it. From then on it is computed alone.
        self.restarted = False
        #: Whether it is computed by itself, without being planned.
        self.joined = False
        self._cancelled = cancelled
        self._vocab = vocab
        self._max_tokens = max_tokens
        self._writer: AnswerWriter | None = None
        self._refused: pyllama.GrammarError | None = None
        self._unsent: list[Delta] = []  # of an answer that is not streamed
        self._ends: list[int] = []  # where its calls end, from the first one with an output on

    @property
    def deadline(self) -> float | None:
        """When its time is over; None if it has no limit."""
        timeout = self.request.timeout
        return None if timeout is None else self.arrived + timeout

    @property
    def prompt(self) -> tuple[int, ...]:
        """The tokens of its prompt."""
        return self.request.prompt

    @property
    def n_past(self) -> int:
        """Tokens whose keys and values are in memory."""
        return self._n_past

    @n_past.setter
    def n_past(self, n_past: int) -> None:
        self._n_past = n_past
        self.request.taken.prompt = min(n_past, len(self.request.prompt))

    @property
    def n_needed(self) -> int:
        """The most tokens that it takes."""
        return len(self.request.prompt) + self._max_tokens

    @property
    def n_computed_blocks(self) -> int:
        """Whole blocks of the prompt that are in memory."""
        return min(self.n_past // BLOCK, len(self.hashes))

    @property
    def _is_abandoned(self) -> bool:
        """Whether its caller has given up."""
        return self.abandoned or self._cancelled.is_set()

    @property
    def n_written(self) -> int:
        """Tokens of the answer so far."""
        return 0 if self._writer is None else len(self._writer.tokens)

    @property
    def tokens(self) -> tuple[int, ...]:
        """The tokens of the prompt and of the answer so far."""
        answer = () if self._writer is None else self._writer.tokens
        return (*self.request.prompt, *answer)

    @property
    def n_tokens(self) -> int:
        """How many tokens the prompt and the answer have so far."""
        return len(self.request.prompt) + self.n_written

    def tokens_between(self, begin: int, end: int) -> list[int]:
        """Some tokens of the prompt and the answer."""
        prompt = self.request.prompt
        answer = [] if self._writer is None else self._writer.tokens
        n_prompt = len(prompt)
        if begin >= n_prompt:
            return answer[begin - n_prompt : end - n_prompt]
        return [*prompt[begin:end], *answer[max(0, begin - n_prompt) : max(0, end - n_prompt)]]

    def next_end(self, chunk: int) -> int:
        """Where the next call that computes it ends. If it was computed before, at the same place
        again.

        Args:
            chunk: tokens of a prompt that are computed at once.
        """
        if not self._ends:
            return call_end(self.n_tokens, self._n_past, chunk)
        if self._n_past < self._ends[0]:
            return call_end(self._ends[0], self._n_past, chunk)
        if self._n_past >= self._ends[-1]:
            return self.n_tokens
        return self._ends[bisect_right(self._ends, self._n_past)]

    def computed(self, end: int) -> None:
        """Record a call: what comes before ``end`` is in memory now."""
        self.n_past = end
        if end == self.n_tokens and (not self._ends or end > self._ends[-1]):
            self._ends.append(end)

    def restart(self) -> None:
        """Compute it again, in the same calls as before, so that its bytes stay the same."""
        self.state = "prefilling"
        self.restarted = True
        self.n_past = 0

    def prepare(self) -> None:
        """Make the sampler in the caller's thread. ``begin`` raises a grammar's error, and tries
        again after another.
        """
        with suppress(Exception):
            try:
                self._writer = AnswerWriter(self._vocab, self.request, self._max_tokens)
            except pyllama.GrammarError as error:
                self._refused = error

    def begin(self) -> bool:
        """Make the sampler with the prompt, and write what is forced. Returns whether the answer
        continues.

        Raises:
            pyllama.LlamaError: a grammar that this model cannot follow.
        """
        if self._refused is not None:
            raise self._refused
        if self._writer is None:
            self._writer = AnswerWriter(self._vocab, self.request, self._max_tokens)
        self._writer.begin()
        if self._writer.finish_reason is not None:
            self._finish(self._writer)
            return False
        return True

    @property
    def chain(self) -> pyllama.SamplerChain:
        """The sampler chain of its answer."""
        assert self._writer is not None
        return self._writer.chain

    @property
    def reads_logits(self) -> bool:
        """Whether it needs the logits from which each token was sampled."""
        return self.request.logprobs is not None

    def run(self, seq_id: int) -> pyllama.Run:
        """How it may continue by itself, in a sequence of a context."""
        assert self._writer is not None
        return self._writer.run(seq_id, self.n_tokens)

    def write(self, drawn: pyllama.Drawn, context: pyllama.Context, index: int) -> None:
        """Go on with tokens that were sampled, and give the text to the caller.

        Args:
            index: the output that the first was sampled from.
        """
        assert self._writer is not None
        self.state = "running"
        begin = self.n_tokens
        deltas = self._writer.write(drawn, context, index)
        self.computed(min(begin + drawn.n_computed, self.n_tokens))
        self._give(deltas)
        if self._writer.finish_reason is not None:
            self._finish(self._writer)

    def ended_by_caller_or_clock(self) -> bool:
        """End it if its caller gave up or its time is over. Returns whether it has ended."""
        if self._is_abandoned:
            self._end(None)
        elif self.deadline is not None and time.monotonic() > self.deadline:
            self._end(self.out_of_time())
        return self.state == "ended"

    def out_of_time(self) -> RequestTimeoutError:
        """The error of a request whose time is over."""
        return RequestTimeoutError(self.request.timeout or 0.0, self.n_written)

    def fail(self, error: BaseException) -> None:
        """End it with an error, which its caller gets."""
        self._end(error)

    def _finish(self, writer: AnswerWriter) -> None:
        deltas, result = writer.finish(cache_read_tokens=self.n_cached)
        self._give(deltas)
        self._end(result)

    def _give(self, deltas: list[Delta]) -> None:
        if not self.request.streamed:
            self._unsent += deltas
        elif deltas:
            # Forced text comes whole: DSPy's listeners know a long marker only if it does.
            self.events.put(joined(deltas))

    def _end(self, last: Event | None) -> None:
        """Give the caller its last event. This happens once, and cannot fail."""
        if self.state == "ended":
            return
        try:
            if self._unsent:
                self.events.put(joined(self._unsent))
                self._unsent = []
            if self._writer is not None:
                self._writer.close()
        except Exception as error:
            if isinstance(last, GenerationResult):
                last = translation(error)
        outcome = last.finish_reason if isinstance(last, GenerationResult) else last
        note(
            *(logger, logging.DEBUG),
            "request: %s; %d tokens of prompt, %d of them in memory; %d of answer; %.3f s",
            *("given up" if last is None else outcome, len(self.request.prompt)),
            *(self.n_cached, self.n_written, time.monotonic() - self.arrived),
        )
        insist(lambda: self.events.put(last))
        self.request.taken.pending = False
        self.state = "ended"  # last: until then the caller may be without its last event
