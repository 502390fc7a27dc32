"""Layers of the architectures that synthetic.write_model() knows beside llama and mamba."""

from __future__ import annotations

from typing import TYPE_CHECKING

import gguf
import numpy as np

if TYPE_CHECKING:
    from synthetic import Shape, Weights


def add_gemma2(writer: gguf.GGUFWriter, weights: Weights, shape: Shape) -> None:
    """Layers with full attention and with a sliding window of 16 tokens, in turn."""
    _add_attention_shape(writer, shape)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_sliding_window(16)
    weights.ones("output_norm.weight", shape.n_embd)
    for layer in range(shape.n_layer):
        block = f"blk.{layer}"
        add_attention(weights, block, shape)
        weights.ones(f"{block}.post_attention_norm.weight", shape.n_embd)
        add_feed_forward(weights, block, shape)
        weights.ones(f"{block}.post_ffw_norm.weight", shape.n_embd)


def add_jamba(writer: gguf.GGUFWriter, weights: Weights, shape: Shape) -> None:
    """Recurrent layers, and every other one with attention."""
    writer.add_feed_forward_length(shape.n_ff)
    writer.add_head_count(shape.n_head)
    writer.add_head_count_kv([shape.n_head_kv * (layer % 2) for layer in range(shape.n_layer)])
    writer.add_layer_norm_rms_eps(1e-5)
    d_inner, d_state, dt_rank = add_mamba_shape(writer, shape.n_embd)
    weights.ones("output_norm.weight", shape.n_embd)
    weights.matrix("output.weight", shape.n_vocab, shape.n_embd)
    for layer in range(shape.n_layer):
        block = f"blk.{layer}"
        if layer % 2:
            add_attention(weights, block, shape)
        else:
            weights.ones(f"{block}.attn_norm.weight", shape.n_embd)
            weights.ones(f"{block}.ssm_dt_norm.weight", dt_rank)
            weights.ones(f"{block}.ssm_b_norm.weight", d_state)
            weights.ones(f"{block}.ssm_c_norm.weight", d_state)
            add_mamba_layer(writer, weights, block, shape.n_embd, d_inner, d_state, dt_rank)
        add_feed_forward(weights, block, shape)


def add_qwen2vl(writer: gguf.GGUFWriter, weights: Weights, shape: Shape) -> None:
    """Attention with M-RoPE: four positions for each embedding."""
    _add_attention_shape(writer, shape)
    writer.add_layer_norm_rms_eps(1e-5)
    head = shape.n_embd // shape.n_head
    writer.add_rope_dimension_sections([head // 4, head // 8, head // 8, 0])
    weights.ones("output_norm.weight", shape.n_embd)
    weights.matrix("output.weight", shape.n_vocab, shape.n_embd)
    for layer in range(shape.n_layer):
        block = f"blk.{layer}"
        add_attention(weights, block, shape)
        for name, size in (("q", shape.n_embd), ("k", shape.n_embd_kv), ("v", shape.n_embd_kv)):
            weights.ones(f"{block}.attn_{name}.bias", size)
        add_feed_forward(weights, block, shape)


def add_qwen3(writer: gguf.GGUFWriter, weights: Weights, shape: Shape) -> None:
    """A decoder with a head that ranks, of two labels."""
    _add_attention_shape(writer, shape)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_classifier_output_labels(["yes", "no"])
    weights.ones("output_norm.weight", shape.n_embd)
    weights.matrix("output.weight", shape.n_vocab, shape.n_embd)
    weights.matrix("cls.output.weight", 2, shape.n_embd)
    for layer in range(shape.n_layer):
        block = f"blk.{layer}"
        add_attention(weights, block, shape)
        for name in ("q", "k"):
            weights.ones(f"{block}.attn_{name}_norm.weight", shape.n_embd // shape.n_head)
        add_feed_forward(weights, block, shape)


def add_bert(writer: gguf.GGUFWriter, weights: Weights, shape: Shape) -> None:
    """An encoder that pools, with a table of positions and a classifier of two labels."""
    writer.add_feed_forward_length(shape.n_ff)
    writer.add_head_count(shape.n_head)
    writer.add_layer_norm_eps(1e-5)
    writer.add_causal_attention(False)
    writer.add_pooling_type(gguf.PoolingType.MEAN)
    writer.add_token_type_count(2)
    writer.add_classifier_output_labels(["no", "yes"])
    weights.matrix("token_types.weight", 2, shape.n_embd)
    weights.matrix("position_embd.weight", shape.n_ctx_train, shape.n_embd)
    weights.norm("token_embd_norm", shape.n_embd)
    weights.matrix("cls.weight", shape.n_embd, shape.n_embd)
    weights.ones("cls.bias", shape.n_embd)
    weights.matrix("cls.output.weight", 2, shape.n_embd)
    weights.ones("cls.output.bias", 2)
    for layer in range(shape.n_layer):
        block = f"blk.{layer}"
        for name in ("attn_q", "attn_k", "attn_v", "attn_output"):
            weights.matrix(f"{block}.{name}.weight", shape.n_embd, shape.n_embd)
            weights.ones(f"{block}.{name}.bias", shape.n_embd)
        weights.norm(f"{block}.attn_output_norm", shape.n_embd)
        weights.matrix(f"{block}.ffn_up.weight", shape.n_ff, shape.n_embd)
        weights.ones(f"{block}.ffn_up.bias", shape.n_ff)
        weights.matrix(f"{block}.ffn_down.weight", shape.n_embd, shape.n_ff)
        weights.ones(f"{block}.ffn_down.bias", shape.n_embd)
        weights.norm(f"{block}.layer_output_norm", shape.n_embd)


def add_t5(writer: gguf.GGUFWriter, weights: Weights, shape: Shape) -> None:
    """An encoder and a decoder that attends to what was encoded."""
    writer.add_feed_forward_length(shape.n_ff)
    writer.add_head_count(shape.n_head)
    writer.add_key_length(shape.n_embd // shape.n_head)
    writer.add_value_length(shape.n_embd // shape.n_head)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_relative_attn_buckets_count(8)
    writer.add_decoder_start_token_id(1)
    weights.matrix("output.weight", shape.n_vocab, shape.n_embd)
    for part in ("enc", "dec"):
        weights.ones(f"{part}.output_norm.weight", shape.n_embd)
        for layer in range(shape.n_layer):
            block = f"{part}.blk.{layer}"
            weights.matrix(f"{block}.attn_rel_b.weight", 8, shape.n_head)
            attentions = ("attn",) if part == "enc" else ("attn", "cross_attn")
            for attention in attentions:
                weights.ones(f"{block}.{attention}_norm.weight", shape.n_embd)
                for name in ("q", "k", "v", "o"):
                    weights.matrix(f"{block}.{attention}_{name}.weight", shape.n_embd, shape.n_embd)
            add_feed_forward(weights, block, shape)


def _add_attention_shape(writer: gguf.GGUFWriter, shape: Shape) -> None:
    writer.add_feed_forward_length(shape.n_ff)
    writer.add_head_count(shape.n_head)
    writer.add_head_count_kv(shape.n_head_kv)
    writer.add_key_length(shape.n_embd // shape.n_head)
    writer.add_value_length(shape.n_embd // shape.n_head)
    writer.add_rope_dimension_count(shape.n_embd // shape.n_head)


def add_attention(weights: Weights, block: str, shape: Shape) -> None:
    weights.ones(f"{block}.attn_norm.weight", shape.n_embd)
    weights.matrix(f"{block}.attn_q.weight", shape.n_embd, shape.n_embd)
    weights.matrix(f"{block}.attn_k.weight", shape.n_embd_kv, shape.n_embd)
    weights.matrix(f"{block}.attn_v.weight", shape.n_embd_kv, shape.n_embd)
    weights.matrix(f"{block}.attn_output.weight", shape.n_embd, shape.n_embd)


def add_feed_forward(weights: Weights, block: str, shape: Shape) -> None:
    weights.ones(f"{block}.ffn_norm.weight", shape.n_embd)
    weights.matrix(f"{block}.ffn_gate.weight", shape.n_ff, shape.n_embd)
    weights.matrix(f"{block}.ffn_up.weight", shape.n_ff, shape.n_embd)
    weights.matrix(f"{block}.ffn_down.weight", shape.n_embd, shape.n_ff)


def add_mamba_shape(writer: gguf.GGUFWriter, n_embd: int) -> tuple[int, int, int]:
    d_inner, d_state, dt_rank = 2 * n_embd, 16, n_embd // 16
    writer.add_ssm_conv_kernel(4)
    writer.add_ssm_inner_size(d_inner)
    writer.add_ssm_state_size(d_state)
    writer.add_ssm_time_step_rank(dt_rank)
    return d_inner, d_state, dt_rank


def add_mamba_layer(
    writer: gguf.GGUFWriter,
    weights: Weights,
    block: str,
    n_embd: int,
    d_inner: int,
    d_state: int,
    dt_rank: int,
) -> None:
    weights.matrix(f"{block}.ssm_in.weight", 2 * d_inner, n_embd)
    weights.matrix(f"{block}.ssm_conv1d.weight", d_inner, 4)
    weights.ones(f"{block}.ssm_conv1d.bias", d_inner)
    weights.matrix(f"{block}.ssm_x.weight", dt_rank + 2 * d_state, d_inner)
    weights.matrix(f"{block}.ssm_dt.weight", d_inner, dt_rank)
    weights.ones(f"{block}.ssm_dt.bias", d_inner)
    # The state must decay: A is negative.
    decay = -np.tile(np.arange(1, d_state + 1, dtype=np.float32), (d_inner, 1))
    writer.add_tensor(f"{block}.ssm_a", decay)
    weights.ones(f"{block}.ssm_d", d_inner)
    weights.matrix(f"{block}.ssm_out.weight", n_embd, d_inner)
