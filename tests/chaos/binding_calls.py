"""Calls of models, contexts, batches and memories, as the binding's fuzzer makes them.

Each takes the world and a source of random numbers, from which it draws its arguments and the
objects that it uses. What it draws depends on nothing else, so that a case can be repeated, and
goes on with less when calls are left out of it.
"""

from __future__ import annotations

import copy
import gc
import pickle
import random
from collections.abc import Callable
from typing import Any

import numpy as np
from binding_world import ARCHITECTURES, World, odd, text

import pyllama

Call = Callable[[World, random.Random], object]

#: Every call, by name, and how often it is drawn.
CALLS: dict[str, Call] = {}
WEIGHTS: dict[str, int] = {}

CACHE_TYPES = ("f32", "f16", "bf16", "q8_0", "q4_0", "q4_1", "iq4_nl", "q5_0", "q5_1")
#: Those that llama.cpp splits texts for itself, and those that it has regular expressions for.
PRE_TOKENIZERS = (
    *("gpt-2", "llama-bpe", "qwen2", "gpt-4o", "deepseek-v3", "deepseek-llm", "tekken", "falcon"),
    *("starcoder", "bloom", "viking", "chameleon", "superbpe", "kimi-k2", "jais", "none of them"),
)


def call(weight: int) -> Callable[[Call], Call]:
    def register(function: Call) -> Call:
        CALLS[function.__name__] = function
        WEIGHTS[function.__name__] = weight
        return function

    return register


# Models and vocabularies


@call(2)
def load_model(world: World, draw: random.Random) -> None:
    name = draw.choice([*ARCHITECTURES, "spm", "none"])
    path = world.files / f"{name}.gguf"
    options: dict[str, Any] = {}
    if draw.random() < 0.1:
        options["vocab_only"] = True
    if draw.random() < 0.2:
        options["load_mode"] = odd(draw, draw.choice(["mmap", "none", "mlock", "direct_io"]))
    if draw.random() < 0.2:
        options["progress"] = lambda done: done < 0.5 if draw.random() < 0.2 else True
    if draw.random() < 0.1:
        options["check_tensors"] = True
    if draw.random() < 0.2:
        options["use_extra_bufts"] = False
    if draw.random() < 0.3:
        options["kv_overrides"] = {"tokenizer.ggml.pre": odd(draw, draw.choice(PRE_TOKENIZERS))}
    how = draw.random()
    if how < 0.1:
        world.keep("model", pyllama.Model.from_bytes(path.read_bytes(), **options))
    elif how < 0.2:
        with path.open("rb") as file:
            world.keep("model", pyllama.Model.from_file(file, **options))
    else:
        world.keep("model", pyllama.Model(odd(draw, path, 0.02), **options))


@call(1)
def close_model(world: World, draw: random.Random) -> None:
    world.pick("model", draw).close()


@call(1)
def save_model(world: World, draw: random.Random) -> None:
    path = world.folder / "saved.gguf"
    world.pick("model", draw).save(path)
    world.keep("model", pyllama.Model(path))


@call(2)
def read_model(world: World, draw: random.Random) -> None:
    model = world.pick("model", draw)
    repr(model)
    _ = model.chat_template_names, model.chat_template(odd(draw, None)), model.lost, model.closed


@call(3)
def tokenize(world: World, draw: random.Random) -> None:
    vocab = world.pick("model", draw).vocab
    special = {"add_special": draw.random() < 0.5, "parse_special": draw.random() < 0.5}
    tokens = vocab.tokenize(odd(draw, text(draw)), **special)
    vocab.detokenize(tokens, remove_special=draw.random() < 0.5)


@call(2)
def read_vocab(world: World, draw: random.Random) -> None:
    vocab = world.pick("model", draw).vocab
    token = odd(draw, draw.randrange(300), 0.2)
    for read in (vocab.token_to_piece, vocab.get_text, vocab.get_score, vocab.get_attr):
        read(token)
    vocab.is_eog(token)
    vocab.is_control(token)
    detokenizer = pyllama.Detokenizer(vocab, special=draw.random() < 0.5)
    for _ in range(5):
        detokenizer.push(odd(draw, draw.randrange(260)))
    detokenizer.flush()


# Contexts


def _params(draw: random.Random) -> dict[str, Any]:
    n_seq_max = draw.choice([1, 1, 2, 3, 4, 8])
    params: dict[str, Any] = {
        "n_ctx": draw.choice([32, 64, 128, 256, 250, 1000, 0]),
        "n_seq_max": n_seq_max,
        "n_threads": draw.choice([1, 1, 2]),
    }
    rare: dict[str, Callable[[], Any]] = {
        "n_batch": lambda: draw.choice([8, 32, 64, 100, 512]),
        "n_ubatch": lambda: draw.choice([1, 8, 24, 32, 64, 100, 512]),
        "n_rs_seq": lambda: draw.choice([0, 1, 4]),
        "n_outputs_max": lambda: draw.choice([n_seq_max, 8, 16, 512]),
        "n_threads_batch": lambda: draw.choice([1, 2, 3]),
        "rope_scaling_type": lambda: draw.choice(["none", "linear", "yarn", "longrope"]),
        "pooling_type": lambda: draw.choice(["none", "mean", "cls", "last", "rank"]),
        "attention_type": lambda: draw.choice(["causal", "non_causal"]),
        "flash_attn": lambda: draw.choice(["auto", "enabled", "disabled"]),
        "rope_freq_base": lambda: draw.choice([0.0, 1.0, 10000.0, 1e12]),
        "rope_freq_scale": lambda: draw.choice([0.0, 0.25, 1.0, 1e6]),
        "yarn_ext_factor": lambda: draw.choice([0.0, 1.0]),
        "yarn_orig_ctx": lambda: draw.choice([0, 16, 100000]),
        "type_k": lambda: draw.choice(CACHE_TYPES),
        "type_v": lambda: draw.choice(CACHE_TYPES),
        "offload_kqv": lambda: draw.random() < 0.5,
        "op_offload": lambda: draw.random() < 0.5,
        "swa_full": lambda: draw.random() < 0.5,
        "kv_unified": lambda: draw.random() < 0.6,
        "embeddings": lambda: draw.random() < 0.5,
        "no_perf": lambda: draw.random() < 0.5,
    }
    for name, value in rare.items():
        if draw.random() < 0.25:
            params[name] = value()
    if draw.random() < 0.1:
        name = draw.choice(sorted(params))
        params[name] = odd(draw, params[name], 1.0)
    return params


@call(3)
def make_context(world: World, draw: random.Random) -> None:
    model = world.pick("model", draw)
    params = _params(draw)
    if draw.random() < 0.1:
        chains = world.several("chain", draw, 2)
        params["samplers"] = {draw.randrange(3): chain for chain in chains}
    world.keep("context", pyllama.Context(model, **params))


@call(1)
def close_context(world: World, draw: random.Random) -> None:
    world.pick("context", draw).close()


@call(1)
def cancel(world: World, draw: random.Random) -> None:
    world.pick("context", draw).cancel()


@call(2)
def change_context(world: World, draw: random.Random) -> None:
    context = world.pick("context", draw)
    how = draw.randrange(7)
    if how == 0:
        context.set_embeddings(draw.random() < 0.5)
    elif how == 1:
        context.set_causal_attn(draw.random() < 0.5)
    elif how == 2:
        context.set_n_threads(odd(draw, draw.choice([1, 2, 3])), odd(draw, None))
    elif how == 3:
        context.warmup()
    elif how == 4:
        _ = context.performance, context.reset_performance(), context.causal_attn
    elif how == 5:
        context.synchronize()
    else:
        _ = repr(context), context.n_threads, context.n_threads_batch


@call(1)
def threadpool(world: World, draw: random.Random) -> None:
    how = draw.randrange(4)
    if how == 0:
        poll, cpus = draw.choice([0, 50, 100]), odd(draw, draw.choice([None, [0], [0, 1]]))
        made = pyllama.Threadpool(odd(draw, draw.choice([1, 2, 3])), poll=poll, cpus=cpus)
        world.keep("threadpool", made)
    elif how == 1:
        world.pick("context", draw).attach_threadpool(world.pick("threadpool", draw))
    elif how == 2:
        world.pick("context", draw).detach_threadpool()
    else:
        world.pick("threadpool", draw).close()


# Batches, computing and what comes of it


def _tokens(draw: random.Random, most: int) -> Any:
    tokens = [draw.randrange(260) for _ in range(draw.randint(1, most))]
    if draw.random() < 0.05:
        tokens[draw.randrange(len(tokens))] = draw.choice([-1, 299, 300, 2**31 - 1])
    return tokens


@call(6)
def decode_next(world: World, draw: random.Random) -> None:
    """A batch that continues sequences of a context."""
    context = world.pick("context", draw)
    batch = pyllama.Batch(draw.choice([64, 128, 600]), n_seq_max=2)
    for _ in range(draw.choice([1, 1, 2, 4])):
        sequence = draw.randrange(context.n_seq_max)
        begin = context.memory.seq_pos_max(sequence) + 1
        outputs = draw.choice(["last", "last", "all", "none"])
        tokens = _tokens(draw, draw.choice([1, 4, 30, 64]))
        batch.add_tokens(tokens, pos=begin, seq_id=sequence, outputs=outputs)
    world.keep("batch", batch)
    _run(context, batch, draw)


@call(3)
def decode_any(world: World, draw: random.Random) -> None:
    """A batch that need not fit."""
    context = world.pick("context", draw)
    tokens = _tokens(draw, draw.choice([1, 8, 40]))
    count = len(tokens)
    pos: Any = draw.choice([0, 1, 5, 255, 256, 10**6, 2**31 - 2, list(range(count)), [7] * count])
    if draw.random() < 0.3:
        pos = [draw.randrange(40) for _ in range(count)]
    ids: Any = draw.choice([0, 0, 1, 3, 7, 8, 255, [[0, 1]], [[1, 0]], [[0, 0]], [[0, 7]]])
    outputs = odd(draw, draw.choice(["last", "all", "none"]))
    batch = pyllama.Batch.from_tokens(
        tokens, pos=odd(draw, pos), seq_id=odd(draw, ids), outputs=outputs
    )
    world.keep("batch", batch)
    _run(context, batch, draw)


@call(2)
def decode_again(world: World, draw: random.Random) -> None:
    """A batch that was used before, perhaps by another context."""
    context, batch = world.pick("context", draw), world.pick("batch", draw)
    if draw.random() < 0.2:
        batch.clear()
    if draw.random() < 0.5:
        sequences = [draw.randrange(3) for _ in range(draw.choice([0, 1, 2]))]
        batch.add(draw.randrange(260), odd(draw, draw.randrange(50)), sequences, output=True)
    _run(context, batch, draw)


@call(1)
def decode_embeddings(world: World, draw: random.Random) -> None:
    context = world.pick("context", draw)
    count = draw.choice([1, 4, 20])
    size = odd(draw, context.n_embd_inp)
    batch = pyllama.Batch(count, n_embd=size, n_pos_per_embd=draw.choice([1, 1, 1, 4]))
    rows = np.random.default_rng(draw.randrange(99)).standard_normal((count, size))
    batch.add_embeddings(rows, pos=odd(draw, 0), seq_id=odd(draw, 0), outputs="all")
    world.keep("batch", batch)
    _run(context, batch, draw)


@call(4)
def decode_token(world: World, draw: random.Random) -> None:
    context = world.pick("context", draw)
    sequence = draw.randrange(context.n_seq_max)
    pos = context.memory.seq_pos_max(sequence) + 1
    context.decode_token(odd(draw, draw.randrange(260)), odd(draw, pos), odd(draw, sequence))


def _run(context: pyllama.Context, batch: pyllama.Batch, draw: random.Random) -> None:
    encodes = context.model.has_encoder and draw.random() < 0.5
    (context.encode if encodes else context.decode)(odd(draw, batch, 0.01))


@call(4)
def read_outputs(world: World, draw: random.Random) -> None:
    context = world.pick("context", draw)
    if draw.random() < 0.3:
        decode_next(world, draw)
    index = odd(draw, draw.choice([-1, -1, 0, 1, 5, -2, 40]))
    how = draw.randrange(7)
    if how == 0:
        context.logits(index)
    elif how == 1:
        context.all_logits()
    elif how == 2:
        world.keep("view", context.logits_view()[:, : draw.choice([1, 10, 300])])
    elif how == 3:
        context.embeddings(index)
    elif how == 4:
        context.all_embeddings()
    elif how == 5:
        context.embeddings_seq(odd(draw, draw.randrange(context.n_seq_max)))
    else:
        context.logits(index, out=odd(draw, np.empty(context.model.vocab.n_tokens, np.float32)))


@call(2)
def use_view(world: World, draw: random.Random) -> None:
    if draw.random() < 0.5:
        float(world.pick("view", draw).sum())
    else:
        world.drop("view", draw)


# What is remembered


def _range(draw: random.Random) -> tuple[Any, Any]:
    return tuple(odd(draw, draw.choice([-1, -1, 0, 1, 2, 5, 16, 40, 300])) for _ in range(2))


@call(6)
def change_memory(world: World, draw: random.Random) -> None:
    context = world.pick("context", draw)
    memory, begin_end = context.memory, _range(draw)
    first, second = (odd(draw, draw.randrange(context.n_seq_max)) for _ in range(2))
    how = draw.randrange(9)
    if how == 0:
        memory.clear(data=draw.random() < 0.5)
    elif how in (1, 2):
        memory.seq_rm(draw.choice([first, -1]), *begin_end)
    elif how in (3, 4):
        memory.seq_cp(first, second, *(begin_end if draw.random() < 0.5 else (-1, -1)))
    elif how == 5:
        memory.seq_keep(first)
    elif how in (6, 7):
        memory.seq_add(first, *begin_end, odd(draw, draw.choice([-5, -1, 1, 3, 200])))
    else:
        memory.seq_div(first, *begin_end, odd(draw, draw.choice([2, 3, 7])))
    _ = memory.seq_pos_min(first), memory.seq_pos_max(second), memory.can_shift


# What happens to any object


@call(2)
def drop_object(world: World, draw: random.Random) -> None:
    """Let go of an object that others may stand on."""
    kinds = world.kinds()
    if kinds:
        world.drop(draw.choice(kinds), draw)
    if draw.random() < 0.3:
        gc.collect()


@call(1)
def copy_object(world: World, draw: random.Random) -> None:
    """Whatever this gives must be safe to use and to free."""
    kinds = world.kinds()
    kind = draw.choice(kinds) if kinds else "model"
    original = world.pick(kind, draw)
    how = draw.randrange(3)
    if how == 0:
        world.keep(kind, copy.copy(original))
    elif how == 1:
        world.keep(kind, copy.deepcopy(original))
    else:
        world.keep(kind, pickle.loads(pickle.dumps(original)))


@call(1)
def shorten_memory(world: World, draw: random.Random) -> None:
    """In a case for it: allow the process a little more memory than it has, or any again."""
    world.shorten(draw.choice([None, 1 << 18, 1 << 20, 2 << 20, 5 << 20, 12 << 20, 25 << 20]))
