"""Quantization: against gguf-py's own arithmetic, and everything that is refused."""

from __future__ import annotations

import os
import platform
import signal
import threading
from typing import get_args

import gguf
import numpy as np
import pytest
import synthetic
from decoding import PROMPT, logits_of

import pyllama
from pyllama.file_type import FILE_TYPES, FileType
from pyllama.ggml_type import GGML_TYPES, GgmlType, row_size

# Which types of rows come out of these mixtures when all tensors get the same.
PURE = {
    "F16": "f16",
    "BF16": "bf16",
    "Q8_0": "q8_0",
    "Q4_0": "q4_0",
    "Q4_1": "q4_1",
    "Q5_0": "q5_0",
    "Q5_1": "q5_1",
    "TQ1_0": "tq1_0",
    "TQ2_0": "tq2_0",
}
MATRICES = {
    f"blk.{layer}.{name}.weight": columns
    for layer in range(2)
    for name, columns in {
        "attn_q": 256,
        "attn_k": 256,
        "attn_v": 256,
        "attn_output": 256,
        "ffn_gate": 256,
        "ffn_up": 256,
        "ffn_down": 512,
    }.items()
}


SMALL = {"n_embd": 256, "n_ff": 256, "n_layer": 1, "n_head_kv": 1}


@pytest.fixture(scope="module")
def source(write_tiny_model):
    """Rows long enough for every type."""
    return write_tiny_model(n_embd=256, n_ff=512)


@pytest.fixture(scope="module")
def small(write_tiny_model):
    """As little as has a row for every type: some types take long to search."""
    return write_tiny_model(**SMALL)


@pytest.fixture
def target(tmp_path):
    return tmp_path / "quantized.gguf"


def tensors_of(path):
    return {tensor.name: tensor for tensor in gguf.GGUFReader(path).tensors}


def logits_from(path):
    with (
        pyllama.Model(path) as model,
        pyllama.Context(model, n_ctx=256, n_threads=1) as context,
    ):
        return logits_of(context, PROMPT)


def ones():
    return {name: np.ones(size, np.float32) for name, size in MATRICES.items()}


def small_imatrix(level=1.0):
    names = [name for name in MATRICES if name.startswith("blk.0.")]
    return {name: np.full(256, level, np.float32) for name in names}


# What comes out


@pytest.mark.parametrize(("ftype", "kind"), PURE.items())
def test_the_bytes_are_those_of_gguf_pys_own_quantization(source, target, ftype, kind):
    result = pyllama.quantize(source, target, ftype, pure=True)
    number = gguf.GGMLQuantizationType[kind.upper()]
    original = tensors_of(source)
    for name, tensor in tensors_of(target).items():
        data = original[name].data
        if data.ndim == 1:
            assert np.array_equal(tensor.data, data)
            assert result.tensor_types[name] == "f32"
        else:
            assert tensor.tensor_type == number
            assert result.tensor_types[name] == kind
            expected = gguf.quants.quantize(data, number)
            differ = tensor.data.view(np.uint8) != expected.view(np.uint8)
            # Compilers for other processors fuse a product and a sum, which is rounded once then.
            assert differ.mean() <= (0 if platform.machine() in ("x86_64", "AMD64") else 1e-3)


@pytest.mark.parametrize(
    ("ftype", "least"),
    [("F16", 0.99999), ("Q8_0", 0.999), ("Q6_K", 0.99), ("Q5_K_M", 0.97), ("Q4_K_M", 0.9)],
)
def test_a_quantized_model_says_nearly_the_same(source, target, ftype, least):
    result = pyllama.quantize(source, target, ftype)
    assert result.paths == (str(target),)
    with pyllama.Model(target) as model:
        assert model.ftype == ftype
        assert model.size == result.size
        assert model.metadata["tokenizer.chat_template"] == synthetic.CHATML
    assert np.corrcoef(logits_from(source), logits_from(target))[0, 1] > least


@pytest.mark.parametrize("ftype", [name for name in FILE_TYPES if name != "NVFP4"])
def test_every_file_type_can_be_written_and_loaded(small, target, ftype):
    result = pyllama.quantize(small, target, ftype, imatrix=small_imatrix())
    with pyllama.Model(target, check_tensors=True) as model:
        assert model.ftype == ftype
        assert model.size == result.size
    assert np.isfinite(logits_from(target)).all()


def test_the_mixture_of_q4_k_m(source):
    """llama.cpp keeps the output, and some of the values and of ffn_down, in more bits."""
    types = pyllama.quantize(source, None, "Q4_K_M", dry_run=True).tensor_types
    assert types["output.weight"] == "q6_K"
    assert types["token_embd.weight"] == "q4_K"
    assert types["blk.0.attn_q.weight"] == types["blk.0.ffn_up.weight"] == "q4_K"
    assert types["output_norm.weight"] == "f32"


@pytest.mark.parametrize("ftype", ["Q4_0", "Q5_K_S", "F16"])
def test_a_dry_run_reports_what_would_come_out(source, target, ftype):
    dry = pyllama.quantize(source, None, ftype, dry_run=True)
    assert not target.exists()
    wet = pyllama.quantize(source, target, ftype)
    assert (dry.size, dry.original_size) == (wet.size, wet.original_size)
    assert dict(dry.tensor_types) == dict(wet.tensor_types)
    assert dry.paths == ()
    assert dry.original_size == sum(t.n_bytes for t in tensors_of(source).values())
    assert dry.size == sum(t.n_bytes for t in tensors_of(target).values())


def test_a_dry_run_needs_no_imatrix(source):
    assert pyllama.quantize(source, None, "IQ2_XXS", dry_run=True).size > 0


def test_threads_and_buffers_change_nothing(source, tmp_path):
    files = []
    for options in ({"nthread": 1}, {"nthread": 7}, {"max_buf_size": 1}, {}):
        pyllama.quantize(source, tmp_path / "q.gguf", "Q4_0", **options)
        files.append((tmp_path / "q.gguf").read_bytes())
    assert all(file == files[0] for file in files)


# Choices


def test_types_by_pattern(source, target):
    result = pyllama.quantize(
        source,
        target,
        "Q4_0",
        tensor_types={r"blk\.1\.ffn_(up|gate)": "q8_0", "ffn": "q6_K", "attn_q": "iq4_nl"},
        output_tensor_type="f16",
        token_embedding_type="q5_1",
    )
    types = {name: tensor.tensor_type.name for name, tensor in tensors_of(target).items()}
    assert {name: kind.upper() for name, kind in result.tensor_types.items()} == types
    assert types["blk.1.ffn_up.weight"] == types["blk.1.ffn_gate.weight"] == "Q8_0"
    assert types["blk.0.ffn_up.weight"] == types["blk.1.ffn_down.weight"] == "Q6_K"
    assert types["blk.0.attn_q.weight"] == "IQ4_NL"
    assert types["blk.0.attn_k.weight"] == "Q4_0"
    assert types["output.weight"] == "F16"
    assert types["token_embd.weight"] == "Q5_1"


def test_the_output_tensor_can_stay(source, target):
    result = pyllama.quantize(source, target, "Q4_0", quantize_output_tensor=False)
    assert result.tensor_types["output.weight"] == "f32"


def test_only_copy_copies(source, target):
    pyllama.quantize(source, target, "Q4_0", only_copy=True)
    for name, tensor in tensors_of(target).items():
        assert np.array_equal(tensor.data, tensors_of(source)[name].data)


def test_metadata_can_be_set(source, target):
    pyllama.quantize(
        source,
        target,
        "Q8_0",
        kv_overrides={
            "general.name": "modèle",
            "own.flag": True,
            "own.count": 2**32 - 1,
            "own.share": 0.5,
        },
    )
    with pyllama.Model(target, vocab_only=True) as model:
        assert model.metadata["general.name"] == "modèle"
        assert model.metadata["own.flag"] == "true"
        assert model.metadata["own.count"] == str(2**32 - 1)
        assert float(model.metadata["own.share"]) == 0.5


def test_layers_can_be_pruned(source, target, tmp_path):
    pyllama.quantize(source, target, "F32", prune_layers=[0])
    with pyllama.Model(target) as model:
        assert model.n_layer == 1
    pruned, original = tensors_of(target), tensors_of(source)
    assert np.array_equal(pruned["blk.0.ffn_up.weight"].data, original["blk.1.ffn_up.weight"].data)
    assert "blk.1.ffn_up.weight" not in pruned


def test_quantizing_again_must_be_allowed(source, tmp_path):
    first, second = tmp_path / "first.gguf", tmp_path / "second.gguf"
    pyllama.quantize(source, first, "Q8_0")
    with pytest.raises(pyllama.QuantizeError, match="requantizing"):
        pyllama.quantize(first, second, "Q4_0")
    pyllama.quantize(first, second, "Q4_0", allow_requantize=True)
    with pyllama.Model(second) as model:
        assert model.ftype == "Q4_0"
    assert sorted(os.listdir(tmp_path)) == ["first.gguf", "second.gguf"]


# The importance matrix


def test_an_imatrix_shifts_the_error_to_columns_that_matter_less(source, target):
    name, random = "blk.0.ffn_up.weight", np.random.default_rng(0)
    importance = (random.random(256) ** 8 + 1e-4).astype(np.float32)
    original = tensors_of(source)[name].data
    errors = []
    for imatrix in (None, {name: importance}):
        pyllama.quantize(source, target, "Q4_K_S", imatrix=imatrix)
        tensor = tensors_of(target)[name]
        values = gguf.quants.dequantize(tensor.data, tensor.tensor_type)
        errors.append(float(np.sum(importance * (values - original) ** 2)))
    assert errors[1] < 0.8 * errors[0]


def test_an_imatrix_from_a_file(source, tmp_path):
    from test_imatrix import write_imatrix

    random = np.random.default_rng(1)
    sums = {name: random.random((1, size), np.float32) for name, size in MATRICES.items()}
    path = write_imatrix(tmp_path / "i.gguf", {n: (s, [[2.0]]) for n, s in sums.items()})
    by_file, by_array = tmp_path / "a.gguf", tmp_path / "b.gguf"
    pyllama.quantize(source, by_file, "Q4_K_S", imatrix=path)
    arrays = {name: values[0] / 2 for name, values in sums.items()}
    pyllama.quantize(source, by_array, "Q4_K_S", imatrix=arrays)
    assert by_file.read_bytes() == by_array.read_bytes()


def test_the_smallest_types_need_an_imatrix(small, target):
    with pytest.raises(pyllama.QuantizeError, match="importance matrix"):
        pyllama.quantize(small, target, "IQ2_XXS")
    pyllama.quantize(small, target, "IQ2_XXS", imatrix=small_imatrix())


@pytest.mark.parametrize(
    "options",
    [
        {"pure": True},
        {"output_tensor_type": "iq2_xs"},
        {"token_embedding_type": "iq1_s"},
        {"tensor_types": {"token_embd": "iq2_xxs"}},
    ],
)
def test_tensors_for_which_llama_cpp_forgets_to_ask(small, target, options):
    """Without this check it ends the process, from a thread of its own."""
    with pytest.raises(pyllama.QuantizeError, match=r"needs 256 values of an imatrix"):
        pyllama.quantize(small, target, "IQ2_XXS", imatrix=small_imatrix(), **options)
    outer = ("token_embd.weight", "output.weight")
    wrong = small_imatrix() | {name: np.ones(255, np.float32) for name in outer}
    with pytest.raises(pyllama.QuantizeError, match=r"needs 256 values of an imatrix"):
        pyllama.quantize(small, target, "IQ2_XXS", imatrix=wrong, **options)
    whole = small_imatrix() | {name: np.ones(256, np.float32) for name in outer}
    pyllama.quantize(small, target, "IQ2_XXS", imatrix=whole, **options)


def test_an_imatrix_of_another_model(source, target):
    with pytest.raises(pyllama.QuantizeError, match="imatrix size 3"):
        pyllama.quantize(
            source, target, "Q4_0", imatrix={"blk.0.attn_q.weight": np.ones(3, np.float32)}
        )
    assert not target.exists()


@pytest.mark.parametrize("value", [-1.0, 1e13, np.nan, np.inf])
def test_importances_that_llama_cpp_would_abort_on(source, target, value):
    imatrix = ones()
    imatrix["blk.1.ffn_down.weight"][7] = value
    with pytest.raises(ValueError, match=r"imatrix\['blk.1.ffn_down.weight'\]"):
        pyllama.quantize(source, target, "IQ2_S", imatrix=imatrix)


@pytest.mark.parametrize("ftype", ["IQ2_XXS", "IQ3_S"])
@pytest.mark.parametrize("level", [0.0, 1e-38, 1e12])
def test_importances_that_it_takes(small, target, ftype, level):
    pyllama.quantize(small, target, ftype, imatrix=small_imatrix(level))


@pytest.mark.parametrize("value", [2e6, -1e20, 3e38, np.inf, np.nan])
def test_weights_that_llama_cpp_would_abort_on(target, tmp_path, value):
    delta = np.zeros((512, 256), np.float32)
    delta[3, 77] = value
    path = synthetic.write_model(
        tmp_path / "wild.gguf", n_embd=256, n_ff=512, deltas={"blk.1.ffn_up.weight": delta}
    )
    with pytest.raises(pyllama.QuantizeError, match=r"blk\.1\.ffn_up\.weight"):
        pyllama.quantize(path, target, "IQ3_XXS", imatrix=ones())
    assert os.listdir(tmp_path) == ["wild.gguf"]


@pytest.mark.parametrize("ftype", ["IQ1_M", "IQ2_S", "IQ3_XXS"])
def test_the_largest_weights_that_it_takes(target, tmp_path, ftype):
    signs = np.random.default_rng(0).choice([-1.0, 0.0, 1.0], (256, 256))
    path = synthetic.write_model(
        tmp_path / "wild.gguf", deltas={"blk.0.ffn_up.weight": 9.99e5 * signs}, **SMALL
    )
    pyllama.quantize(path, target, ftype, imatrix=small_imatrix(1e12))


# Parts


@pytest.fixture(scope="module")
def parts(tmp_path_factory):
    folder = tmp_path_factory.mktemp("parts")
    synthetic.write_model(folder / "tiny.gguf", n_embd=256, n_ff=512, split_max_tensors=6)
    return sorted(folder.iterdir())


def test_a_split_model_becomes_one_file(parts, source, tmp_path):
    joined, whole = tmp_path / "joined.gguf", tmp_path / "whole.gguf"
    pyllama.quantize(parts[0], joined, "Q4_K_M")
    pyllama.quantize(source, whole, "Q4_K_M")
    assert np.array_equal(logits_from(joined), logits_from(whole))


def test_a_split_model_can_stay_split(parts, source, tmp_path):
    result = pyllama.quantize(parts[0], tmp_path / "small.gguf", "Q8_0", keep_split=True)
    names = [f"small-{i:05}-of-00004.gguf" for i in range(1, 5)]
    assert [os.path.basename(path) for path in result.paths] == names
    assert sorted(os.listdir(tmp_path)) == names
    pyllama.quantize(source, tmp_path / "whole.gguf", "Q8_0")
    assert np.array_equal(logits_from(result.paths[0]), logits_from(tmp_path / "whole.gguf"))


def test_the_parts_of_the_source_are_not_overwritten(parts):
    before = [part.read_bytes() for part in parts]
    folder = parts[0].parent
    for dst, keep_split in [(folder / "tiny.gguf", True), (parts[2], False)]:
        with pytest.raises(ValueError, match="dst must not be the source"):
            pyllama.quantize(parts[0], dst, "Q8_0", keep_split=keep_split)
    assert [part.read_bytes() for part in parts] == before
    assert sorted(folder.iterdir()) == parts


def test_a_part_without_tensors(parts, tmp_path):
    """llama.cpp would read through a null pointer."""
    for part in parts:
        (tmp_path / part.name).write_bytes(part.read_bytes())
    empty = bytearray(parts[2].read_bytes())
    empty[8:16] = bytes(8)
    (tmp_path / parts[2].name).write_bytes(empty)
    with pytest.raises(pyllama.QuantizeError, match="holds no tensors"):
        pyllama.quantize(tmp_path / parts[0].name, tmp_path / "o.gguf", "Q8_0", keep_split=True)
    with pytest.raises(ValueError, match="prune_layers cannot go with keep_split"):
        pyllama.quantize(parts[0], tmp_path / "o.gguf", "Q8_0", keep_split=True, prune_layers=[0])


def test_a_part_that_is_missing(parts, tmp_path):
    (tmp_path / parts[0].name).write_bytes(parts[0].read_bytes())
    with pytest.raises(FileNotFoundError):
        pyllama.quantize(tmp_path / parts[0].name, tmp_path / "o.gguf", "Q8_0")


# Progress


def test_progress_rises_to_one(source, target):
    fractions = []
    pyllama.quantize(source, target, "Q8_0", progress=fractions.append)
    assert fractions == sorted(fractions)
    assert fractions[0] == 0.0
    assert fractions[-1] == 1.0
    assert len(fractions) == len(tensors_of(source)) + 1


def test_cancelling_leaves_nothing(source, target, tmp_path):
    target.write_text("older")
    with pytest.raises(pyllama.QuantizeCancelled):
        pyllama.quantize(source, target, "Q8_0", progress=lambda fraction: fraction < 0.5)
    assert os.listdir(tmp_path) == [target.name]
    assert target.read_text() == "older"


@pytest.mark.parametrize("error", [KeyError("mine"), KeyboardInterrupt(), SystemExit(3)])
def test_what_the_progress_callback_raises_arrives_as_itself(source, target, tmp_path, error):
    def fail(_):
        raise error

    with pytest.raises(type(error)) as caught:
        pyllama.quantize(source, target, "Q8_0", progress=fail)
    assert caught.value is error
    assert os.listdir(tmp_path) == []


def test_ctrl_c_stops_between_tensors(source, target, tmp_path, capfd, heeding_ctrl_c):
    """The signal's handler runs where the next tensor is announced."""
    seen = []

    def interrupt(fraction):
        seen.append(fraction)
        if len(seen) == 3:
            signal.raise_signal(signal.SIGINT)

    with pytest.raises(KeyboardInterrupt):
        pyllama.quantize(source, target, "Q8_0", progress=interrupt)
    assert len(seen) == 3
    assert os.listdir(tmp_path) == []
    assert capfd.readouterr().err == ""


def test_progress_may_use_pyllama(source, target, tiny):
    used = []

    def progress(_):
        used.append(tiny.vocab.tokenize("hello"))
        pyllama.Model(source, vocab_only=True).close()

    result = pyllama.quantize(source, target, "Q8_0", progress=progress)
    assert used
    assert len(result.tensor_types) == len(tensors_of(source))


def test_several_threads_at_once(source, tmp_path):
    def work(name, ftype):
        results[name] = pyllama.quantize(source, tmp_path / name, ftype, nthread=2)

    results = {}
    kinds = {"a.gguf": "Q8_0", "b.gguf": "Q4_0", "c.gguf": "Q5_1", "d.gguf": "F16"}
    threads = [threading.Thread(target=work, args=item) for item in kinds.items()]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for name, ftype in kinds.items():
        alone = pyllama.quantize(source, tmp_path / "alone.gguf", ftype)
        assert dict(alone.tensor_types) == dict(results[name].tensor_types)
        assert (tmp_path / "alone.gguf").read_bytes() == (tmp_path / name).read_bytes()


# Names


def test_the_names_of_types_are_ggmls_own():
    writable = set(get_args(GgmlType))
    assert writable <= set(GGML_TYPES)
    for name in writable:
        kind = gguf.GGMLQuantizationType[name.upper()] if name.upper() in NAMES else None
        if kind is not None:
            assert GGML_TYPES[name] == kind
            block, size = gguf.GGML_QUANT_SIZES[kind]
            assert row_size(name, 256) == 256 // block * size


NAMES = gguf.GGMLQuantizationType.__members__


def test_the_names_of_file_types_are_llama_cpps_own():
    assert set(get_args(FileType)) == set(FILE_TYPES)
    for name, number in FILE_TYPES.items():
        for prefix in ("MOSTLY_", "ALL_"):
            known = gguf.LlamaFileType.__members__.get(prefix + name)
            assert known is None or known == number


def test_what_is_printed_is_short(tiny_model_path):
    made = pyllama.quantize(tiny_model_path, None, "Q8_0", dry_run=True)
    assert made.tensor_types
    assert "blk.0" not in repr(made)
