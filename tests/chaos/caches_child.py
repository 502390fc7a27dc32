"""A child of caches.py: a context of some kind, and an operation on its memory."""

from __future__ import annotations

import logging
import random
from collections.abc import Callable
from pathlib import Path
from typing import get_args

import forked

from pyllama import Batch, Context, Model
from pyllama.context_params import CacheType

ARCHITECTURES = ("llama", "mamba", "gemma2", "jamba", "qwen2vl", "bert", "t5")
#: Sizes of embeddings: with four heads, some are multiples of a block of 32, some of 64.
HEADS = (64, 128, 256)


def path_of(folder: Path, architecture: str, n_embd: int) -> Path:
    return folder / f"{architecture}-{n_embd}.gguf"


def decode(context: Context, pos: int, count: int = 1, seq_id: int = 0) -> None:
    model = context.model
    if not model.has_decoder:
        context.encode(Batch.from_tokens([3] * count))
        return
    if model.has_encoder and pos == 0:
        context.encode(Batch.from_tokens([3] * count))
    context.decode(Batch.from_tokens([3] * count, pos=pos, seq_id=seq_id))
    context.synchronize()


def go_on(context: Context) -> None:
    decode(context, 0, 8)
    decode(context, 8)


def fill(context: Context) -> None:
    for pos in range(0, context.n_ctx_seq + 8, 8):
        decode(context, pos, 8)


def shift_back(context: Context) -> None:
    decode(context, 0, 8)
    context.memory.seq_rm(0, 2, 4)
    context.memory.seq_add(0, 4, -1, -2)
    decode(context, 6)
    decode(context, 7)


def shift_on(context: Context) -> None:
    decode(context, 0, 8)
    context.memory.seq_add(0, 0, -1, 5)
    decode(context, 13, 3)


def divide(context: Context) -> None:
    decode(context, 0, 8)
    context.memory.seq_div(0, 0, -1, 2)
    decode(context, 4)


def copy(context: Context) -> None:
    decode(context, 0, 8)
    if context.n_seq_max > 1:
        context.memory.seq_cp(0, 1)
        decode(context, 8, seq_id=1)
        context.memory.seq_keep(1)
        decode(context, 9, seq_id=1)


def save_and_load(context: Context) -> None:
    decode(context, 0, 8)
    whole, one = context.state.get_data(), context.state.seq_get_data(0)
    context.memory.clear()
    context.state.set_data(whole)
    decode(context, 8)
    last = context.n_seq_max - 1
    context.state.seq_set_data(one, last)
    decode(context, 8, seq_id=last)


OPERATIONS = (go_on, fill, shift_back, shift_on, divide, copy, save_and_load)


def case(folder: Path, draw: random.Random) -> tuple[str, Callable[[], None]]:
    architecture, n_embd = draw.choice(ARCHITECTURES), draw.choice(HEADS)
    kinds = get_args(CacheType)
    kind = draw.choice(kinds)
    type_k, type_v = draw.choice([(kind, "f16"), ("f16", kind), (kind, kind)])
    n_seq_max = draw.choice([1, 2])
    options = {
        "type_k": type_k,
        "type_v": type_v,
        "n_seq_max": n_seq_max,
        "n_ctx": n_seq_max * draw.choice([32, 256]),
        "kv_unified": draw.choice([False, True]),
        "flash_attn": draw.choice(["auto", "enabled", "disabled"]),
        "n_threads": draw.choice([1, 2]),
        "n_ubatch": 16,
    }
    operation = draw.choice(OPERATIONS)

    def work() -> None:
        logging.disable()
        path = path_of(folder, architecture, n_embd)
        with Model(path, devices=[]) as model, Context(model, **options) as context:
            operation(context)

    return f"{architecture} {operation.__name__}, n_embd {n_embd}, {options}", work


if __name__ == "__main__":
    forked.work_off(case)
