"""Scores how likely given continuations of a prompt are.

The continuations form a trie after the prompt: a common beginning is computed once. All tokens of
the trie are computed together, each seeing the prompt and the tokens on its own path only. In
llama.cpp a path is a sequence, and the prompt is shared by copying its sequence
(``llama_memory_seq_cp``, which in a unified memory copies only the right to see it). A token on
several paths belongs to all of their sequences.
"""

from __future__ import annotations

from collections.abc import Iterator
from collections.abc import Sequence as Items
from dataclasses import dataclass, field
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

import pyllama
from adapter.generation.memory.blocks import longest_call
from adapter.generation.token_count import TokenCount

MAX_BRANCHES = 32
"""Continuations that are computed together. More are computed in groups of this size."""


@dataclass(frozen=True)
class ScoringRequest:
    """Continuations to score after one prompt.

    Attributes:
        prompt: token ids, at least one.
        continuations: the token ids of each, at least one; a continuation may be empty.
        ends: tokens that end the continuation: those at which a generator would stop.
        timeout: seconds that it may take, counted from its arrival; None for no limit.
        taken: counts the tokens that it has taken while it is computed.
    """

    prompt: tuple[int, ...]
    continuations: tuple[tuple[int, ...], ...]
    ends: tuple[int, ...]
    timeout: float | None = None
    taken: TokenCount = field(default_factory=TokenCount, compare=False, repr=False)


@dataclass(frozen=True)
class Score:
    """Natural log-probabilities of one continuation, by the model's logits.

    Attributes:
        tokens: of each of its tokens, given the prompt and the tokens before it.
        end: of ending there: of all of the request's ``ends`` together.
    """

    tokens: tuple[float, ...]
    end: float

    def total(self, begin: int = 0) -> float:
        """The log-probability of its tokens from the index ``begin`` on, and of ending there."""
        return sum(self.tokens[begin:]) + self.end


@dataclass(frozen=True)
class ScoringResult:
    """The score of each continuation, in their order.

    Attributes:
        cache_read_tokens: the tokens among prompt_tokens that were cached.
        n_computed: tokens of the continuations that were computed.
    """

    scores: tuple[Score, ...]
    prompt_tokens: int
    n_computed: int
    cache_read_tokens: int = 0

    @classmethod
    def of(
        cls, request: ScoringRequest, scores: Items[Score], *, cache_read_tokens: int = 0
    ) -> ScoringResult:
        """The result of a request whose continuations have these scores."""
        return cls(
            tuple(scores),
            len(request.prompt),
            n_trie_tokens(request.continuations),
            cache_read_tokens,
        )


@dataclass(eq=False)
class _Node:
    """A token on the path of one or more continuations; the root stands for the prompt."""

    token: int
    depth: int
    branches: list[int] = field(default_factory=list)
    children: dict[int, _Node] = field(default_factory=dict)
    logprobs: dict[int, float] = field(default_factory=dict)
    end: float = 0.0

    def walk(self) -> list[_Node]:
        """All nodes below, the nearer to the root first."""
        nodes = list(self.children.values())
        for node in nodes:
            nodes.extend(node.children.values())
        return nodes


class Scorer:
    """Scores continuations of the prompt that sequence 0 of a context holds.

    Sequence 0 is left as it was. The result depends on the prompt, the continuations and the
    context's settings alone, so the same request gives the same bytes on a CPU.

    Args:
        context: a context with a unified memory and more than one sequence; or one whose model is
            recurrent or hybrid, whose continuations are computed one by one, each from the saved
            state of the prompt.
    """

    def __init__(self, context: pyllama.Context) -> None:
        self._context = context
        model = context.model
        self._has_tree = not (model.is_recurrent or model.is_hybrid)
        self._branches = range(1, context.n_seq_max)
        self._batch = pyllama.Batch(context.n_batch, n_seq_max=max(1, len(self._branches)))

    def score(self, request: ScoringRequest, *, room: int) -> Iterator[list[Score]]:
        """Score the continuations in groups, in their order. Each step is one call of the model.

        A step that does not end a group gives no scores. The context's last output must be that of
        the prompt's last token.

        Args:
            room: tokens that the longest context for this model has beside the prompt. The groups,
                and so the bytes, depend on it and not on this context's length.
        """
        first = _log_softmax(self._context.logits())
        groups = trie_groups(
            request.continuations,
            room=room,
            max_branches=len(self._branches) if self._has_tree else 1,
        )
        state = None if self._has_tree else self._context.state.seq_get_data(0)
        for group in groups:
            root = _trie(group)
            self._read(root, first, request.ends)
            nodes = root.walk()
            if nodes and state is not None:
                for _ in self._compute_chain(nodes, len(request.prompt), request.ends):
                    yield []
                self._context.memory.seq_rm(0)
                self._context.state.seq_set_data(state, 0)
            elif nodes:
                for _ in self._compute_tree(nodes, len(group), len(request.prompt), request.ends):
                    yield []
            request.taken.answer += len(nodes)
            yield [_score(root, continuation) for continuation in group]

    def _compute_tree(
        self, nodes: list[_Node], n_branches: int, begin: int, ends: tuple[int, ...]
    ) -> Iterator[None]:
        memory = self._context.memory
        seq_ids = self._branches[:n_branches]
        try:
            for seq_id in seq_ids:
                memory.seq_cp(0, seq_id)
            for index in range(0, len(nodes), self._context.n_batch):
                block = nodes[index : index + self._context.n_batch]
                ids = [[seq_ids[branch] for branch in node.branches] for node in block]
                self._compute(block, begin, ends, ids)
                if index + self._context.n_batch < len(nodes):
                    yield
        finally:
            for seq_id in seq_ids:
                memory.seq_rm(seq_id)

    def _compute_chain(
        self, nodes: list[_Node], begin: int, ends: tuple[int, ...]
    ) -> Iterator[None]:
        for index in range(0, len(nodes), self._context.n_batch):
            block = nodes[index : index + self._context.n_batch]
            self._compute(block, begin, ends, [[0]] * len(block))
            if index + self._context.n_batch < len(nodes):
                yield

    def _compute(
        self, nodes: list[_Node], begin: int, ends: tuple[int, ...], seq_ids: list[list[int]]
    ) -> None:
        batch = self._batch
        batch.clear()
        for node, ids in zip(nodes, seq_ids, strict=True):
            batch.add(node.token, begin + node.depth - 1, ids, output=True)
        self._context.decode(batch)
        for index, node in enumerate(nodes):
            self._read(node, _log_softmax(self._context.logits(index)), ends)

    def _read(self, node: _Node, logprobs: NDArray[np.float64], ends: tuple[int, ...]) -> None:
        node.logprobs = {token: float(logprobs[token]) for token in node.children}
        node.end = float(np.logaddexp.reduce(logprobs[list(ends)])) if ends else 0.0


def scoring_context(
    model: pyllama.Model, params: pyllama.ContextParams, length: int, *, chunk: int
) -> pyllama.Context:
    """Make a context for scoring that computes as the scheduler's contexts do.

    Args:
        params: its other settings.
        length: tokens that it holds, over all sequences.
        chunk: tokens of a prompt that are computed at once.
    """
    n_batch = min(longest_call(chunk), length)
    # A recurrent model would keep a state for each sequence.
    recurrent = model.is_recurrent or model.is_hybrid
    return pyllama.Context(
        model,
        params,
        n_ctx=length,
        n_seq_max=1 if recurrent else min(MAX_BRANCHES + 1, n_batch),
        kv_unified=True,
        n_batch=n_batch,
    )


def longest_continuation(request: ScoringRequest) -> int:
    """How many tokens the longest continuation of a request has."""
    return max(map(len, request.continuations))


def trie_groups(
    continuations: Items[tuple[int, ...]], *, room: int, max_branches: int
) -> list[list[tuple[int, ...]]]:
    """Split the continuations, in their order, into lists whose tries fit.

    Args:
        room: tokens that a trie may have. A longer continuation stands alone.
        max_branches: continuations that a trie may have.
    """
    groups: list[list[tuple[int, ...]]] = []
    trie = _Trie()
    for continuation in continuations:
        fits = trie.n_tokens + trie.n_new(continuation) <= room
        if groups and len(groups[-1]) < max_branches and fits:
            groups[-1].append(continuation)
        else:
            groups.append([continuation])
            trie = _Trie()
        trie.add(continuation)
    return groups


def n_trie_tokens(continuations: Items[tuple[int, ...]]) -> int:
    """How many tokens the trie of the continuations has: common beginnings count once."""
    trie = _Trie()
    for continuation in continuations:
        trie.add(continuation)
    return trie.n_tokens


_Branches: TypeAlias = "dict[int, _Branches]"


class _Trie:
    """Counts the tokens of continuations, in time and memory that grow with their number."""

    def __init__(self) -> None:
        self.n_tokens = 0
        self._root: _Branches = {}

    def n_new(self, continuation: tuple[int, ...]) -> int:
        """How many tokens a continuation would add."""
        node, n_known = self._root, 0
        for token in continuation:
            if token not in node:
                break
            node, n_known = node[token], n_known + 1
        return len(continuation) - n_known

    def add(self, continuation: tuple[int, ...]) -> None:
        """Add a continuation, counting only its tokens that are not there yet."""
        self.n_tokens += self.n_new(continuation)
        node = self._root
        for token in continuation:
            node = node.setdefault(token, {})


def _trie(continuations: Items[tuple[int, ...]]) -> _Node:
    root = _Node(token=-1, depth=0)
    for branch, continuation in enumerate(continuations):
        node = root
        for token in continuation:
            node = node.children.setdefault(token, _Node(token, node.depth + 1))
            node.branches.append(branch)
    return root


def _score(root: _Node, continuation: tuple[int, ...]) -> Score:
    logprobs = []
    node = root
    for token in continuation:
        logprobs.append(node.logprobs[token])
        node = node.children[token]
    return Score(tuple(logprobs), node.end)


def _log_softmax(logits: NDArray[np.float32]) -> NDArray[np.float64]:
    values = logits.astype(np.float64)
    values -= values.max()
    values -= np.log(np.exp(values).sum())
    return values
