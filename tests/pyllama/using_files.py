"""What users do with files, for child processes that are given damaged ones."""

from __future__ import annotations

import contextlib
import functools
from pathlib import Path

import numpy as np

import pyllama

TEXT = "Hello world, <|im_end|> 123\n\tπ 🦙"


def use_model(path: Path) -> None:
    """Load a model, and do with it what depends on what the file says."""
    with pyllama.Model(path) as model:
        tokens = _use_vocab(model.vocab)
        if model.chat_template() is not None:
            with contextlib.suppress(pyllama.ChatTemplateError):
                pyllama.ChatTemplate(model).apply([{"role": "user", "content": "Hello"}])
        # One thread, in which an assertion that fails while computing can be caught and told.
        with (
            pyllama.Context(model, n_ctx=256, n_threads=1) as context,
            pyllama.SamplerChain([pyllama.Sampler.greedy()]) as chain,
        ):
            context.decode(pyllama.Batch.from_tokens(tokens))
            context.decode_token(chain.sample(context), len(tokens))
            context.logits()


def _use_vocab(vocab: pyllama.Vocab) -> list[int]:
    """Read every token, and return those of a text."""
    if vocab.type == "none":
        return [1]
    for token in range(min(vocab.n_tokens, 300)):
        vocab.token_to_piece(token)
        vocab.get_text(token)
        vocab.get_score(token)
        vocab.is_eog(token)
    tokens = vocab.tokenize(TEXT, parse_special=True)[:32]
    vocab.detokenize(tokens)
    return tokens or [0]


def use_lora(path: Path, model: str) -> None:
    """Load an adapter, and decode with it."""
    with pyllama.LoraAdapter(_loaded(model), path) as adapter, _context(model) as context:
        pyllama.set_adapters_lora(context, {adapter: 1.0})
        context.decode(pyllama.Batch.from_tokens([1, 10, 20]))
        context.logits()


def use_control_vector(path: Path, model: str) -> None:
    """Load a control vector, and decode with it if it fits the model."""
    directions = pyllama.load_control_vector(path)
    if directions.shape[1] == _loaded(model).n_embd and np.isfinite(directions).all():
        with _context(model) as context:
            pyllama.set_control_vector(context, directions[: _loaded(model).n_layer - 1])
            context.decode(pyllama.Batch.from_tokens([1, 10, 20]))


def use_imatrix(path: Path) -> None:
    """Load an importance matrix."""
    for values in pyllama.load_imatrix(path).values():
        values.sum()


def use_state(path: Path, model: str, form: str) -> None:
    """Set a saved state, and continue from it, and take it again.

    :param form: ``"file"`` or ``"bytes"``, or ``"forged"`` for bytes whose checksum is made to
        fit; ``"sequence file"`` and so on for one sequence.
    """
    with _context(model) as context:
        state = context.state
        if form == "file":
            state.load_file(path)
        elif form == "sequence file":
            state.seq_load_file(path, 1)
        else:
            data = path.read_bytes()
            if form.endswith("forged"):
                data = _with_checksum(data)
            if form.startswith("sequence"):
                state.seq_set_data(data, 1)
            else:
                state.set_data(data)
        for seq_id in range(context.n_seq_max):
            pos = context.memory.seq_pos_max(seq_id) + 1
            if pos < 2**31 - 1:
                with contextlib.suppress(pyllama.MemoryFullError):
                    context.decode_token(10, pos, seq_id)
        state.get_data()
        state.seq_get_data(1)
        context.memory.clear()
        context.decode(pyllama.Batch.from_tokens([1, 10, 20]))


@functools.cache
def _loaded(path: str) -> pyllama.Model:
    return pyllama.Model(path)


def _context(model: str) -> pyllama.Context:
    return pyllama.Context(_loaded(model), n_ctx=512, n_seq_max=2, n_threads=1)


def _with_checksum(data: bytes) -> bytes:
    """The state with the length and checksum in its header that its bytes have."""
    header = pyllama.state._HEADER
    forged = bytearray(data.ljust(header.size, b"\0"))
    fields = header.unpack_from(forged)[:-2]
    for checksum in (0, None):
        if checksum is None:
            checksum = pyllama.state._checksum(memoryview(forged))
        header.pack_into(forged, 0, *fields, len(forged) - header.size, checksum)
    return bytes(forged)
