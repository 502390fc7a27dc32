"""Importance matrices: both formats of their files, and files that are none."""

from __future__ import annotations

import struct

import numpy as np
import pytest
from synthetic_files import write_tensors

import pyllama

METADATA = {"imatrix.datasets": ["text.txt"], "imatrix.chunk_count": 3, "imatrix.chunk_size": 512}


def write_imatrix(path, sums_and_counts, metadata=METADATA):
    tensors = {}
    for name, (sums, counts) in sums_and_counts.items():
        tensors[f"{name}.in_sum2"] = np.asarray(sums, np.float32)
        tensors[f"{name}.counts"] = np.asarray(counts, np.float32)
    return write_tensors(path, tensors, architecture="llama", metadata=metadata)


def legacy(entries, tail=b""):
    parts = [struct.pack("<i", len(entries))]
    for name, calls, values in entries:
        parts.append(struct.pack("<i", len(name)) + name)
        parts.append(struct.pack("<ii", calls, len(values)))
        parts.append(np.asarray(values, np.float32).tobytes())
    return b"".join(parts) + tail


def test_the_mean_of_each_column(tmp_path):
    sums = np.arange(8, dtype=np.float32)
    path = write_imatrix(
        tmp_path / "imatrix.gguf", {"blk.0.attn_q.weight": (sums.reshape(1, 8), [[4.0]])}
    )
    found = pyllama.load_imatrix(path)
    assert list(found) == ["blk.0.attn_q.weight"]
    assert found["blk.0.attn_q.weight"].dtype == np.float32
    assert np.array_equal(found["blk.0.attn_q.weight"], sums / 4)


def test_experts_have_counts_of_their_own(tmp_path):
    sums = np.arange(12, dtype=np.float32).reshape(3, 4)
    counts = np.array([[2.0], [0.0], [4.0]], np.float32)
    path = write_imatrix(tmp_path / "imatrix.gguf", {"blk.0.ffn_up_exps.weight": (sums, counts)})
    found = pyllama.load_imatrix(path)["blk.0.ffn_up_exps.weight"]
    assert np.array_equal(found, np.concatenate([sums[0] / 2, np.ones(4), sums[2] / 4]))


def test_the_older_format(tmp_path):
    path = tmp_path / "imatrix.dat"
    values = np.array([2.0, 4.0, 8.0], np.float32)
    entries = [(b"output.weight", 2, values), (b"blk.0.attn_k.weight", 0, values)]
    for tail in (b"", struct.pack("<i", 7), struct.pack("<ii", 7, 4) + b"text"):
        path.write_bytes(legacy(entries, tail))
        found = pyllama.load_imatrix(path)
        assert np.array_equal(found["output.weight"], values / 2)
        assert np.array_equal(found["blk.0.attn_k.weight"], values)


def refused(path):
    with pytest.raises(pyllama.QuantizeError, match=path.name):
        pyllama.load_imatrix(path)


def test_files_that_are_no_imatrix(tmp_path, tiny_model_path):
    refused(tiny_model_path)
    with pytest.raises(FileNotFoundError):
        pyllama.load_imatrix(tmp_path / "absent")
    with pytest.raises(IsADirectoryError):
        pyllama.load_imatrix(tmp_path)
    with pytest.raises(TypeError, match="path"):
        pyllama.load_imatrix(b"imatrix")
    path = tmp_path / "imatrix.dat"
    for content in (b"", b"\0", b"hello world, this is text", b"\xff" * 100, b"\x01" * 100):
        path.write_bytes(content)
        refused(path)


def test_an_imatrix_without_its_keys_or_halves(tmp_path):
    path = tmp_path / "imatrix.gguf"
    write_imatrix(path, {"output.weight": ([1.0], [1.0])}, metadata={})
    refused(path)
    for tensors in (
        {},
        {"output.weight.in_sum2": np.ones(4, np.float32)},
        {"output.weight.counts": np.ones(4, np.float32)},
        {
            "output.weight.in_sum2": np.ones(4, np.float32),
            "output.weight.counts": np.ones(3, np.float32),
        },
        {
            "output.weight.in_sum2": np.ones(4, np.float16),
            "output.weight.counts": np.ones(1, np.float32),
        },
    ):
        write_tensors(path, tensors, architecture="llama", metadata=METADATA)
        refused(path)


def test_damaged_counts_of_the_older_format_allocate_nothing(tmp_path):
    """llama.cpp would make room for whatever the file says."""
    path = tmp_path / "imatrix.dat"
    good = legacy([(b"output.weight", 2, [1.0, 2.0])])
    for place in (0, 4, 4 + 4 + 13 + 4):
        for count in (-1, 2**31 - 1, 2**30, 10**6):
            content = bytearray(good)
            struct.pack_into("<i", content, place, count)
            path.write_bytes(content)
            refused(path)


@pytest.mark.parametrize("older", [True, False])
def test_truncated_files(tmp_path, older):
    path = tmp_path / "imatrix"
    if older:
        path.write_bytes(legacy([(b"output.weight", 2, [1.0, 2.0])]))
    else:
        write_imatrix(path, {"output.weight": (np.ones((1, 64)), [[1.0]])})
    content = path.read_bytes()
    for kept in range(0, len(content) - 32 if not older else len(content), 7):
        path.write_bytes(content[:kept])
        refused(path)
