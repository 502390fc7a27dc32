"""Quantization: against gguf-py's own arithmetic, and everything that is refused."""

from __future__ import annotations

import os
import signal
import threading
from typing import get_args

import gguf
import numpy as np
import pytest
import synthetic
from decoding import PROMPT, logits_of, run_python

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


@pytest.fixture(scope="module")
def source(write_tiny_model):
    """Rows long enough for every type."""
    return write_tiny_model(n_embd=256, n_ff=512)


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


def ones(**others):
    return {name: np.ones(size, np.float32) for name, size in {**MATRICES, **others}.items()}


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
            assert np.array_equal(tensor.data.view(np.uint8), expected.view(np.uint8))


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
def test_every_file_type_can_be_written_and_loaded(source, target, ftype):
    result = pyllama.quantize(source, target, ftype, imatrix=ones())
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


@pytest.mark.parametrize("ftype", ["Q4_0", "Q5_K_S", "IQ4_XS", "F16"])
def test_a_dry_run_tells_what_would_come_out(source, target, ftype):
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
        pyllama.quantize(source, tmp_path / "q.gguf", "Q4_K_M", **options)
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
    pyllama.quantize(source, by_file, "IQ3_XXS", imatrix=path)
    arrays = {name: values[0] / 2 for name, values in sums.items()}
    pyllama.quantize(source, by_array, "IQ3_XXS", imatrix=arrays)
    assert by_file.read_bytes() == by_array.read_bytes()


def test_the_smallest_types_need_an_imatrix(source, target):
    with pytest.raises(pyllama.QuantizeError, match="importance matrix"):
        pyllama.quantize(source, target, "IQ2_XXS")
    pyllama.quantize(source, target, "IQ2_XXS", imatrix=ones())


@pytest.mark.parametrize(
    "options",
    [
        {"pure": True},
        {"output_tensor_type": "iq2_xs"},
        {"token_embedding_type": "iq1_s"},
        {"tensor_types": {"token_embd": "iq2_xxs"}},
    ],
)
def test_tensors_for_which_llama_cpp_forgets_to_ask(source, target, options):
    """Without this check it ends the process, from a thread of its own."""
    with pytest.raises(pyllama.QuantizeError, match=r"needs 256 values of an imatrix"):
        pyllama.quantize(source, target, "IQ2_XXS", imatrix=ones(), **options)
    wrong = ones(**{"token_embd.weight": 255, "output.weight": 255})
    with pytest.raises(pyllama.QuantizeError, match=r"needs 256 values of an imatrix"):
        pyllama.quantize(source, target, "IQ2_XXS", imatrix=wrong, **options)
    whole = ones(**{"token_embd.weight": 256, "output.weight": 256})
    pyllama.quantize(source, target, "IQ2_XXS", imatrix=whole, **options)


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


@pytest.mark.parametrize("ftype", ["IQ1_S", "IQ2_XXS", "IQ2_M", "IQ3_S"])
@pytest.mark.parametrize("level", [0.0, 1e-38, 1.0, 1e12])
def test_importances_that_it_takes(source, target, ftype, level):
    imatrix = {name: np.full(len(values), level, np.float32) for name, values in ones().items()}
    pyllama.quantize(source, target, ftype, imatrix=imatrix)


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


@pytest.mark.parametrize("value", [1e6, -1e6])
def test_large_weights_that_it_takes(target, tmp_path, value):
    random = np.random.default_rng(0)
    delta = value * random.choice([-1.0, 0.0, 1.0], (512, 256)).astype(np.float32) * 0.9
    path = synthetic.write_model(
        tmp_path / "wild.gguf", n_embd=256, n_ff=512, deltas={"blk.1.ffn_up.weight": delta}
    )
    for ftype in ("IQ3_XXS", "IQ2_S", "IQ1_M"):
        imatrix = {name: values * np.float32(1e12) for name, values in ones().items()}
        try:
            pyllama.quantize(path, target, ftype, imatrix=imatrix)
        except pyllama.QuantizeError as error:
            refused = str(error)
            assert "validation failed" in refused  # beyond the scales of the type


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


@pytest.fixture
def heeding_ctrl_c():
    """Python's own handler: a shell that starts programs in the background ignores SIGINT."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


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
        results[name] = pyllama.quantize(source, tmp_path / name, ftype)

    results = {}
    kinds = {"a.gguf": "Q8_0", "b.gguf": "Q4_0", "c.gguf": "IQ4_NL", "d.gguf": "Q4_K_M"}
    threads = [threading.Thread(target=work, args=item) for item in kinds.items()]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for name, ftype in kinds.items():
        alone = pyllama.quantize(source, tmp_path / "alone.gguf", ftype)
        assert dict(alone.tensor_types) == dict(results[name].tensor_types)
        assert (tmp_path / "alone.gguf").read_bytes() == (tmp_path / name).read_bytes()


# What is refused


def test_a_full_disk_leaves_nothing(source, tmp_path):
    run_python(
        """
        import os, resource, sys, logging
        import pyllama
        logging.disable()
        resource.setrlimit(resource.RLIMIT_FSIZE, (300_000, 300_000))
        try:
            pyllama.quantize(sys.argv[1], sys.argv[2] + "/model.gguf", "Q8_0")
        except pyllama.QuantizeError as error:
            pass
        else:
            raise SystemExit("quantized")
        assert os.listdir(sys.argv[2]) == []
        """,
        source,
        tmp_path,
    )


def test_the_source_is_not_the_target(source, tmp_path):
    link = tmp_path / "link.gguf"
    link.symlink_to(source)
    before = source.read_bytes()
    for dst in (source, link):
        with pytest.raises(ValueError, match="dst must not be the source"):
            pyllama.quantize(source, dst, "Q8_0")
    assert source.read_bytes() == before


def test_sources_that_are_no_models(target, tmp_path, tiny_model_path):
    with pytest.raises(FileNotFoundError):
        pyllama.quantize(tmp_path / "absent.gguf", target, "Q8_0")
    path = tmp_path / "broken.gguf"
    path.write_bytes(b"hello world")
    with pytest.raises(pyllama.ModelLoadError, match="no GGUF file"):
        pyllama.quantize(path, target, "Q8_0")
    content = tiny_model_path.read_bytes()
    for kept in (4, 30, 1000, len(content) // 2):
        path.write_bytes(content[:kept])
        with pytest.raises(pyllama.QuantizeError, match=r"broken\.gguf"):
            pyllama.quantize(path, target, "Q8_0")
    assert os.listdir(tmp_path) == ["broken.gguf"]


def test_an_alignment_that_llama_cpp_would_not_keep(source, target):
    with pytest.raises(pyllama.QuantizeError):
        pyllama.quantize(source, target, "Q8_0", kv_overrides={"general.alignment": 4096})
    assert not target.exists()


@pytest.mark.parametrize(
    ("argument", "value", "error"),
    [
        ("ftype", "Q9_9", ValueError),
        ("ftype", "q8_0", ValueError),
        ("ftype", "NVFP4", ValueError),
        ("ftype", 7, ValueError),
        ("output_tensor_type", "q8_1", ValueError),
        ("token_embedding_type", "Q8_0", ValueError),
        ("tensor_types", {"attn": "i32"}, ValueError),
        ("tensor_types", {"": "q8_0"}, ValueError),
        ("tensor_types", {"a" * 257: "q8_0"}, ValueError),
        ("tensor_types", {"a\0": "q8_0"}, ValueError),
        ("tensor_types", {"\udc80": "q8_0"}, ValueError),
        ("tensor_types", {3: "q8_0"}, TypeError),
        ("tensor_types", ["attn=q8_0"], TypeError),
        ("prune_layers", [2], ValueError),
        ("prune_layers", [-1], ValueError),
        ("prune_layers", [0, 1], ValueError),
        ("prune_layers", ["0"], TypeError),
        ("prune_layers", 0, TypeError),
        ("kv_overrides", {"key": -1}, ValueError),
        ("kv_overrides", {"key": 2**32}, ValueError),
        ("kv_overrides", {"": 1}, ValueError),
        ("kv_overrides", {"k" * 128: 1}, ValueError),
        ("kv_overrides", {"key": "v" * 128}, ValueError),
        ("kv_overrides", {"key": float("nan")}, ValueError),
        ("kv_overrides", {"key": None}, TypeError),
        ("kv_overrides", {3: 3}, TypeError),
        ("nthread", 0, ValueError),
        ("nthread", 513, ValueError),
        ("nthread", "all", TypeError),
        ("max_buf_size", -1, ValueError),
        ("max_buf_size", 1.5, TypeError),
        ("progress", 3, TypeError),
        ("imatrix", 3, TypeError),
        ("imatrix", {3: np.ones(3)}, TypeError),
        ("imatrix", {"a": "b"}, TypeError),
        ("imatrix", {"a": np.ones((2, 2))}, ValueError),
        ("imatrix", {"a": np.ones(0)}, ValueError),
        ("dst", None, TypeError),
        ("dst", "", IsADirectoryError),
        ("dst", "a\0b", ValueError),
        ("dst", b"model.gguf", TypeError),
    ],
)
def test_arguments_are_checked(source, target, argument, value, error):
    arguments = {"dst": target, "ftype": "Q8_0", argument: value}
    with pytest.raises(error, match="folder|file to write" if value == "" else argument):
        pyllama.quantize(source, **arguments)
    assert not target.exists()


def test_a_pattern_that_is_no_regular_expression(source, target):
    for pattern in ("([", "*", "a{2,1}"):
        with pytest.raises(pyllama.QuantizeError, match=r"expression|repeat|brace|range|regex"):
            pyllama.quantize(source, target, "Q4_0", tensor_types={pattern: "q8_0"})
    deep = "(" * 127 + "a" + ")" * 127
    pyllama.quantize(source, target, "Q4_0", tensor_types={deep: "q8_0"})


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
