"""Models of the shapes of real ones, with random weights. Speed does not depend on values."""

from __future__ import annotations

from pathlib import Path

import gguf
import numpy as np

# n_embd, n_ff, n_head, n_head_kv, n_layer, n_vocab: SmolLM2 135M, Qwen2.5 0.5B and 1.5B, Llama 3.1
# 8B.
SHAPES = {
    "135M": (576, 1536, 9, 3, 30, 49_152),
    "0.5B": (896, 4864, 14, 2, 24, 151_936),
    "1.5B": (1536, 8960, 12, 2, 28, 151_936),
    "8B": (4096, 14_336, 32, 8, 32, 128_256),
}


def write_model(
    path: Path, n_embd: int, n_ff: int, n_head: int, n_head_kv: int, n_layer: int, n_vocab: int
) -> Path:
    """A llama with random Q4_0 weights."""
    if path.exists():
        return path
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_context_length(131_072)
    writer.add_embedding_length(n_embd)
    writer.add_block_count(n_layer)
    writer.add_feed_forward_length(n_ff)
    writer.add_head_count(n_head)
    writer.add_head_count_kv(n_head_kv)
    writer.add_rope_dimension_count(n_embd // n_head)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_file_type(gguf.LlamaFileType.MOSTLY_Q4_0)
    add_vocabulary(writer, n_vocab)
    random = np.random.default_rng(0)

    def matrix(name: str, rows: int, columns: int) -> None:
        blocks = rows * columns // 32
        data = np.empty((blocks, 18), dtype=np.uint8)
        data[:, :2] = np.frombuffer(np.float16(0.3 / np.sqrt(columns)).tobytes(), dtype=np.uint8)
        data[:, 2:] = np.frombuffer(random.bytes(blocks * 16), dtype=np.uint8).reshape(blocks, 16)
        shaped = data.reshape(rows, columns // 32 * 18)
        writer.add_tensor(name, shaped, raw_dtype=gguf.GGMLQuantizationType.Q4_0)

    def norm(name: str) -> None:
        writer.add_tensor(name, np.ones(n_embd, dtype=np.float32))

    n_kv = n_embd // n_head * n_head_kv
    matrix("token_embd.weight", n_vocab, n_embd)
    norm("output_norm.weight")
    matrix("output.weight", n_vocab, n_embd)
    for layer in range(n_layer):
        block = f"blk.{layer}"
        norm(f"{block}.attn_norm.weight")
        matrix(f"{block}.attn_q.weight", n_embd, n_embd)
        matrix(f"{block}.attn_k.weight", n_kv, n_embd)
        matrix(f"{block}.attn_v.weight", n_kv, n_embd)
        matrix(f"{block}.attn_output.weight", n_embd, n_embd)
        norm(f"{block}.ffn_norm.weight")
        matrix(f"{block}.ffn_gate.weight", n_ff, n_embd)
        matrix(f"{block}.ffn_up.weight", n_ff, n_embd)
        matrix(f"{block}.ffn_down.weight", n_embd, n_ff)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def add_vocabulary(writer: gguf.GGUFWriter, n_vocab: int) -> None:
    writer.add_tokenizer_model("llama")
    tokens = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256))]
    tokens += [f"▁{index}" for index in range(n_vocab - len(tokens))]
    types = [gguf.TokenType.UNKNOWN, gguf.TokenType.CONTROL, gguf.TokenType.CONTROL]
    types += [gguf.TokenType.BYTE] * 256
    types += [gguf.TokenType.NORMAL] * (n_vocab - len(types))
    writer.add_token_list(tokens)
    writer.add_token_scores([-float(index) for index in range(n_vocab)])
    writer.add_token_types(types)
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
