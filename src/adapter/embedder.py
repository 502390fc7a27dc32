"""Embeddings and reranking with a model of a pool, for dspy.Embedder and retrieval."""

from __future__ import annotations

import hashlib
import re
import threading
from collections.abc import Iterator, Sequence
from typing import Any, Literal, NoReturn, get_args

import numpy as np
from numpy.typing import NDArray

import pyllama
from adapter.errors import (
    ConfigurationError,
    InvalidParameterError,
    TextTooLongError,
)
from adapter.generation.busy import BUSY
from adapter.generation.contexts import warnings_as_info
from adapter.generation.failures import translated
from adapter.generation.memory.prefix_reuse import rolls_back
from adapter.models.context_settings import decisive
from adapter.models.loaded import LoadedModel

Floats = NDArray[np.float32]
Pooling = Literal["mean", "cls", "last", "rank"]

# The smallest context, which is doubled as needed; and the most texts in one.
_STEP, _MAX_TEXTS = 512, 64

# The fewest tokens that all texts begin with alike that are worth a call of their own.
_LEAST_SHARED = 8


class LlamaCppEmbedder:
    """Turns texts into vectors, many at a time. Give it to ``dspy.Embedder``, or call it.

    ::

        embedder = LlamaCppEmbedder(pool.load_model("nomic-embed"))
        retrieve = dspy.retrievers.Embeddings(corpus, dspy.Embedder(embedder), k=3)

    Up to rounding, a vector depends only on its text, and not on other texts or their order. Any
    number of threads may call the embedder; they take turns.

    Args:
        loaded: an embedding model, a reranker, or any other model that pools.
        pooling: how the embeddings of a text's tokens are combined into one: ``"mean"``, ``"cls"``,
            ``"last"``, or ``"rank"`` for the score of a reranker. None for what the model says.
        normalize: scale each vector to length 1 (L2).
        truncate: cut texts that are longer than the model's context, instead of refusing them. The
            end is cut, except for the token that marks it.

    Raises:
        InvalidParameterError: there is no such pooling.
        ConfigurationError: the model does not say how it pools and ``pooling`` is None, or the
            model has no head that ranks and ``pooling`` is ``"rank"``.
    """

    def __init__(
        self,
        loaded: LoadedModel,
        *,
        pooling: Pooling | None = None,
        normalize: bool = True,
        truncate: bool = False,
    ) -> None:
        if pooling is not None and pooling not in get_args(Pooling):
            raise InvalidParameterError("pooling", pooling, f"one of {get_args(Pooling)}, or None")
        #: The model.
        self.loaded = loaded
        #: Whether each vector has length 1.
        self.normalize = normalize
        #: Whether texts that are too long are cut.
        self.truncate = truncate
        self._asked = pooling
        self._lock = threading.Lock()
        self._context: pyllama.Context | None = None
        with self.loaded.lease() as model, self._lock, translated():
            context = self._context_for(model, 1)
            if context.pooling_type == "none":
                raise ConfigurationError(
                    f"model {loaded.name!r} does not say how it pools embeddings; give pooling="
                    "'last' or 'mean', or load an embedding model"
                )
            if context.pooling_type == "rank" and not model.has_classifier:
                self._drop_context()
                raise ConfigurationError(
                    f"model {loaded.name!r} has no head that ranks (a tensor cls.weight or "
                    "cls.output.weight), so its scores would mean nothing; load a reranker, or "
                    "give pooling='mean', 'cls' or 'last' for vectors"
                )
            #: How the embeddings of a text's tokens become one.
            self.pooling = context.pooling_type
            #: Numbers in a vector.
            self.n_embd: int = context.n_embd_out
        # DSPy's cache knows a callable by this name alone.
        self.__name__ = (
            f"llamacpp/{loaded.name}/{self.pooling}/{normalize:d}{truncate:d}/"
            f"{loaded.context_length}/{loaded.fingerprint[:16]}"
        )
        for settings in decisive(loaded.placement.context):
            self.__name__ += f"/{hashlib.sha256(settings.encode()).hexdigest()[:16]}"

    def __call__(self, texts: Sequence[str]) -> Floats:
        """Compute the vectors of texts.

        Args:
            texts: the texts.

        Returns:
            a float32 array of shape (len(texts), n_embd).

        Raises:
            InvalidParameterError: a text is empty.
            TextTooLongError: a text has more tokens than the model's context. Nothing was computed.
            PromptError: a text has no UTF-8 form.
            ConfigurationError: the model is a reranker.
        """
        if self.pooling == "rank":
            raise ConfigurationError(
                f"model {self.loaded.name!r} gives scores, not vectors: use rerank()"
            )
        _require_texts("texts", texts)
        with self.loaded.lease() as model, translated():
            entries = [
                self._fitting(model.vocab.tokenize(text), f"texts[{index}]", model.vocab)
                for index, text in enumerate(texts)
            ]
            vectors = self._compute(model, entries, self.n_embd)
        if self.normalize:
            lengths = np.linalg.norm(vectors, axis=1, keepdims=True)
            vectors /= np.where(lengths > 0, lengths, 1)
        return vectors

    def rerank(self, query: str, documents: Sequence[str]) -> Floats:
        """Score how well each document answers a query.

        Query and document are joined as in llama.cpp's server: by the model's own template
        ``"rerank"`` if it has one, or else as two sentences between special tokens.

        Args:
            query: the question.
            documents: the texts to score.

        Returns:
            a float32 array of shape (len(documents),). Higher is better; only the order counts.

        Raises:
            ConfigurationError: the model is not a reranker.
            InvalidParameterError: a text is empty.
            TextTooLongError: a pair has more tokens than the model's context.
            PromptError: a text has no UTF-8 form.
        """
        if self.pooling != "rank":
            raise ConfigurationError(
                f"model {self.loaded.name!r} pools by {self.pooling!r}: it is no reranker"
            )
        _require_texts("query", [query])
        _require_texts("documents", documents)
        with self.loaded.lease() as model, translated():
            entries = [
                self._pair(model, query, document, f"documents[{index}]")
                for index, document in enumerate(documents)
            ]
            # A classifier has more outputs. The first is what llama.cpp's server uses.
            return self._compute(model, entries, None)[:, 0]

    def __deepcopy__(self, memo: dict[int, Any]) -> LlamaCppEmbedder:
        # Copies of a program share its models, as they would share a server.
        return self

    def __reduce__(self) -> NoReturn:
        raise TypeError(
            "a LlamaCppEmbedder lives in its process and cannot be pickled; save what it computed "
            "instead, as dspy.retrievers.Embeddings.save() does"
        )

    def __repr__(self) -> str:
        if "n_embd" not in vars(self):
            return "<LlamaCppEmbedder, which could not be made>"
        return f"<LlamaCppEmbedder {self.loaded.name!r}: {self.n_embd} numbers, {self.pooling}>"

    # Tokens

    def _fitting(self, tokens: list[int], argument: str, vocab: pyllama.Vocab) -> list[int]:
        """The tokens, cut to the context if requested."""
        limit = self.loaded.context_length
        if not tokens:
            raise InvalidParameterError(argument, "", "a text with at least one token")
        if len(tokens) <= limit:
            return tokens
        if not self.truncate:
            raise TextTooLongError(argument, len(tokens), limit)
        if tokens[-1] in (vocab.eos, vocab.sep):
            return [*tokens[: limit - 1], tokens[-1]]
        return tokens[:limit]

    def _pair(self, model: pyllama.Model, query: str, document: str, argument: str) -> list[int]:
        """A query and a document as one text for a reranker."""
        vocab, template = model.vocab, model.chat_template("rerank")
        if template is not None:
            # Both at once, since the query may contain the document's placeholder.
            texts = {"{query}": query, "{document}": document}
            prompt, literal = "", []
            for part in re.split(r"(\{query\}|\{document\})", template):
                text = texts.get(part, part)
                if part in texts:
                    literal.append((len(prompt), len(prompt) + len(text)))
                prompt += text
            tokens = vocab.tokenize(prompt, add_special=False, parse_special=True, literal=literal)
            return self._fitting(tokens, argument, vocab)
        end = vocab.sep if vocab.eos is None else vocab.eos
        pair: list[int | None] = [
            *[vocab.bos] * vocab.add_bos,
            *vocab.tokenize(query, add_special=False),
            *[end] * vocab.add_eos,
            *[vocab.sep] * vocab.add_sep,
            *vocab.tokenize(document, add_special=False),
            *[end] * vocab.add_eos,
        ]
        return self._fitting([token for token in pair if token is not None], argument, vocab)

    # Computing

    def _compute(
        self, model: pyllama.Model, entries: Sequence[list[int]], width: int | None
    ) -> Floats:
        """The outputs of the entries, one row each."""
        if not entries:
            return np.empty((0, width or 1), dtype=np.float32)
        call = object()
        try:
            BUSY.add(call)
            with self._lock:
                return np.stack(self._rows(model, entries))
        finally:
            BUSY.discard(call)

    def _rows(self, model: pyllama.Model, entries: Sequence[list[int]]) -> list[Floats]:
        """The same, computed with as many entries in a batch as fit. A beginning that all share is
        computed once, if the outputs allow it.
        """
        context = self._context_for(model, max(map(len, entries)))
        batch = pyllama.Batch(context.n_batch)
        rows: list[Floats] = []
        try:
            n_shared = _n_shared(entries) if _reads_the_end(context) else 0
            if n_shared >= _LEAST_SHARED:
                context.memory.clear(data=False)
                batch.add_tokens(entries[0][:n_shared], outputs="all")
                context.decode(batch)
                rests = [tokens[n_shared:] for tokens in entries]
                room = context.n_batch - n_shared
                for group in _groups(rests, room, context.n_seq_max - 1):
                    rows += _continued(context, batch, group, n_shared)
                return rows
            for group in _groups(entries, context.n_batch, context.n_seq_max):
                batch.clear()
                for seq_id, tokens in enumerate(group):
                    batch.add_tokens(tokens, pos=0, seq_id=seq_id, outputs="all")
                context.memory.clear(data=False)
                if model.has_encoder:
                    context.encode(batch)
                else:
                    context.decode(batch)
                rows += [context.embeddings_seq(seq_id) for seq_id in range(len(group))]
        except BaseException:
            self._drop_context()  # its state cannot be trusted
            raise
        return rows

    def _context_for(self, model: pyllama.Model, n_tokens: int) -> pyllama.Context:
        """A context that computes this many tokens at once.

        It is kept for the next call, and made again if it is too small or the model was loaded
        again. The sequences share one memory, since their lengths may differ.
        """
        context = self._context
        if context is not None and context.model is model and context.n_batch >= n_tokens:
            return context
        self._drop_context()
        size = _STEP
        while size < n_tokens:
            size *= 2
        with warnings_as_info():
            placement = self.loaded.placement
            self._context = pyllama.Context(
                model,
                placement.context,
                n_ctx=size,
                n_batch=size,
                n_ubatch=size,
                n_seq_max=min(_MAX_TEXTS, pyllama.max_parallel_sequences()),
                n_threads=placement.n_threads,
                pooling_type=self._asked or "unspecified",
                kv_unified=True,
                embeddings=True,
            )
        return self._context

    def _drop_context(self) -> None:
        context, self._context = self._context, None
        if context is not None:
            context.close()


def _reads_the_end(context: pyllama.Context) -> bool:
    """Whether an output depends on the last token alone, and tokens on those before them.

    Then texts that begin alike can be continued from one computation of that beginning.
    """
    model = context.model
    at_the_end = context.pooling_type in ("rank", "last") and not model.has_encoder
    return at_the_end and context.causal_attn and rolls_back(model)


def _n_shared(entries: Sequence[list[int]]) -> int:
    """How many tokens all entries begin with alike, if there are several; no entry is without a
    token of its own.
    """
    if len(entries) < 2:
        return 0
    first, last = min(entries), max(entries)  # all others are between them
    pairs = enumerate(zip(first, last, strict=False))
    n_common = next((at for at, (one, other) in pairs if one != other), len(first))
    return min(n_common, min(map(len, entries)) - 1)


def _continued(
    context: pyllama.Context, batch: pyllama.Batch, rests: Sequence[list[int]], n_shared: int
) -> list[Floats]:
    """The outputs of entries whose beginning is in sequence 0.

    Args:
        rests: what follows the beginning in each.
    """
    batch.clear()
    context.memory.seq_keep(0)
    for seq_id, tokens in enumerate(rests, start=1):
        context.memory.seq_cp(0, seq_id)
        batch.add_tokens(tokens, pos=n_shared, seq_id=seq_id, outputs="all")
    context.decode(batch)
    return [context.embeddings_seq(seq_id) for seq_id in range(1, len(rests) + 1)]


def _groups(
    entries: Sequence[list[int]], max_tokens: int, max_entries: int
) -> Iterator[list[list[int]]]:
    """Split the entries, in order, into groups that fit one batch."""
    group: list[list[int]] = []
    n_tokens = 0
    for entry in entries:
        if group and (n_tokens + len(entry) > max_tokens or len(group) == max_entries):
            yield group
            group, n_tokens = [], 0
        group.append(entry)
        n_tokens += len(entry)
    yield group


def _require_texts(name: str, texts: Sequence[str]) -> None:
    if isinstance(texts, str) or not isinstance(texts, Sequence):
        raise InvalidParameterError(name, texts, "a list of texts")
    for index, text in enumerate(texts):
        if not isinstance(text, str) or not text.strip():
            argument = name if name == "query" else f"{name}[{index}]"
            raise InvalidParameterError(argument, text, "a text that is not empty")
