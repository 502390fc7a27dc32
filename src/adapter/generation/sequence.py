"""One request on its way through the scheduler."""

from __future__ import annotations

import logging
import queue
import threading
import time
from typing import Literal, TypeAlias

import pyllama
from adapter.errors import RequestTimeoutError
from adapter.generation.blocks import BLOCK, block_hashes, n_reusable
from adapter.generation.completion import Completion, token_logprob
from adapter.generation.request import Delta, GenerationRequest, GenerationResult
from adapter.generation.sampling import sampler_chain

logger = logging.getLogger(__name__)

Event: TypeAlias = "Delta | GenerationResult | BaseException | None"


class Sequence:
    """A request with its sampler, its text so far, and where its caller waits for it.

    The scheduler's thread alone uses it, but for ``events`` and ``abandoned``.
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
        self.n_reusable = n_reusable(request.prompt)
        self.state: Literal["queued", "prefilling", "running", "ended"] = "queued"
        #: Tokens whose keys and values are in memory.
        self.n_past = 0
        #: Those of the prompt that were not computed for this request.
        self.n_cached = 0
        self.arrived = time.monotonic()
        #: What the caller is to be given; None says that it gave up.
        self.events: queue.SimpleQueue[Event] = queue.SimpleQueue()
        #: Set by a caller's thread that does not wait for the result any more.
        self.abandoned = False
        self._cancelled = cancelled
        self._vocab = vocab
        self._max_tokens = max_tokens
        self._completion = Completion(vocab, request, max_tokens)
        self._chain: pyllama.SamplerChain | None = None

    @property
    def n_needed(self) -> int:
        """Tokens that it takes at the most."""
        return len(self.request.prompt) + self._max_tokens

    @property
    def n_computed_blocks(self) -> int:
        """Whole blocks of the prompt that are in memory."""
        return min(self.n_past // BLOCK, len(self.hashes))

    @property
    def _is_abandoned(self) -> bool:
        """Whether its caller has gone."""
        return self.abandoned or self._cancelled.is_set()

    @property
    def n_sampled(self) -> int:
        """Tokens sampled so far."""
        return len(self._completion.tokens)

    @property
    def n_tokens(self) -> int:
        """Tokens of the prompt and of the answer so far."""
        return len(self.request.prompt) + self.n_sampled

    @property
    def last_token(self) -> int:
        """The token that was sampled last."""
        return self._completion.tokens[-1]

    def begin(self) -> None:
        """Make the sampler, and tell it the prompt.

        :raises pyllama.LlamaError: a grammar that this model cannot follow.
        """
        request = self.request
        self._chain = sampler_chain(
            self._vocab,
            request.sampling,
            request.seed,
            request.constraint,
            prompt=request.prompt,
            reasoning_budget=request.reasoning_budget,
        )

    def sample(self, context: pyllama.Context, index: int) -> None:
        """Take the next token from an output, and give its text to the caller."""
        assert self._chain is not None
        token = self._chain.sample(context, index)
        logprob = None
        if self.request.logprobs is not None:
            logprob = token_logprob(context.logits(index), token, self.request.logprobs)
        delta = self._completion.push(token, logprob)
        if delta is not None:
            self.events.put(delta)
        if self._completion.finish_reason is not None:
            self._finish()

    def ended_by_caller_or_clock(self) -> bool:
        """End it if its caller has gone or its time is over, and say whether."""
        timeout = self.request.timeout
        if self._is_abandoned:
            self._end(None)
        elif timeout is not None and time.monotonic() - self.arrived > timeout:
            self._end(RequestTimeoutError(timeout, self.n_sampled))
        return self.state == "ended"

    def fail(self, error: BaseException) -> None:
        """End it with an error, which its caller gets."""
        self._end(error)

    def _finish(self) -> None:
        rest, result = self._completion.finish(cache_read_tokens=self.n_cached)
        if rest is not None:
            self.events.put(rest)
        self._end(result)

    def _end(self, last: Event) -> None:
        self.state = "ended"
        outcome = last.finish_reason if isinstance(last, GenerationResult) else repr(last)
        logger.debug(
            "request: %s; %d tokens of prompt, %d of them in memory; %d sampled; %.3f s",
            *("given up" if last is None else outcome, len(self.request.prompt)),
            *(self.n_cached, self.n_sampled, time.monotonic() - self.arrived),
        )
        if self._chain is not None:
            self._chain.close()
        self.events.put(last)
