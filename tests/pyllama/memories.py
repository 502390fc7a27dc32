"""Contexts with each kind of memory that llama.cpp has, and what tests ask of them."""

from __future__ import annotations

from pyllama import Context

# Full attention, recurrent, sliding window, hybrid, and M-RoPE.
ARCHITECTURES = ("llama", "mamba", "gemma2", "jamba", "qwen2vl")
PREFIX = list(range(10, 50))


def make(model, **options):
    return Context(model, **{"n_ctx": 512, "n_seq_max": 2, "n_threads": 1} | options)


def next_logits(context, token=50, seq_id=0):
    context.decode_token(token, context.memory.seq_pos_max(seq_id) + 1, seq_id)
    return context.logits()


def span(context, seq_id=0):
    return context.memory.seq_pos_min(seq_id), context.memory.seq_pos_max(seq_id)
