"""Where models are loaded from, and saved to: parts, open files, memory."""

from __future__ import annotations

import io
import os
import struct

import gguf
import numpy as np
import pytest
import synthetic
from decoding import PROMPT, logits_of, run_python

import pyllama


def logits_from(model):
    with pyllama.Context(model, n_ctx=256, n_threads=1) as context:
        return logits_of(context, PROMPT)


@pytest.fixture(scope="module")
def parts(tmp_path_factory):
    folder = tmp_path_factory.mktemp("parts")
    first = synthetic.write_model(folder / "tiny.gguf", split_max_tensors=6)
    found = sorted(folder.iterdir())
    assert found[0] == first
    assert len(found) == 4
    return found


# Parts


def test_a_split_model_is_loaded_by_its_first_part(parts, expected):
    with pyllama.Model(parts[0]) as model:
        assert np.array_equal(logits_from(model), expected)


def test_another_part_than_the_first_is_refused(parts):
    with pytest.raises(pyllama.ModelLoadError, match="first split"):
        pyllama.Model(parts[1])


def test_parts_with_names_of_their_own(parts, tmp_path, expected):
    renamed = [tmp_path / f"{letter}.bin" for letter in "zyxw"]
    for part, name in zip(parts, renamed, strict=True):
        name.write_bytes(part.read_bytes())
    with pyllama.Model.from_splits(renamed) as model:
        assert model.path == str(renamed[0])
        assert np.array_equal(logits_from(model), expected)


@pytest.mark.parametrize("order", [[0], [0, 1, 2], [1, 0, 2, 3], [0, 2, 1, 3], [0, 0, 1, 2]])
def test_parts_missing_or_out_of_order(parts, order):
    with pytest.raises(pyllama.ModelLoadError):
        pyllama.Model.from_splits([parts[i] for i in order])


def test_a_whole_model_is_one_part(tiny_model_path, expected):
    with pyllama.Model.from_splits([tiny_model_path]) as model:
        assert np.array_equal(logits_from(model), expected)
    with pytest.raises(pyllama.ModelLoadError, match="1 parts, but paths has 2"):
        pyllama.Model.from_splits([tiny_model_path, tiny_model_path])


def test_a_missing_part(parts, tmp_path):
    with pytest.raises(FileNotFoundError):
        pyllama.Model.from_splits([*parts[:3], tmp_path / "absent.gguf"])
    alone = tmp_path / parts[0].name
    alone.write_bytes(parts[0].read_bytes())
    with pytest.raises(pyllama.ModelLoadError, match="00002-of-00004"):
        pyllama.Model(alone)


@pytest.mark.parametrize(
    ("paths", "error"),
    [([], ValueError), ("model.gguf", TypeError), (3, TypeError), (None, TypeError)],
)
def test_paths_are_checked(paths, error):
    with pytest.raises(error, match="paths"):
        pyllama.Model.from_splits(paths)


# Open files


def test_from_an_open_file(tiny_model_path, expected):
    with open(tiny_model_path, "rb") as file:
        model = pyllama.Model.from_file(file)
        assert file.tell() == 0
    with model:
        assert np.array_equal(logits_from(model), expected)
        assert "file descriptor" in model.path


@pytest.mark.parametrize("load_mode", ["auto", "none"])
def test_from_the_middle_of_a_file(tiny_model_path, tmp_path, expected, load_mode):
    path = tmp_path / "archive.bin"
    path.write_bytes(b"\x01" * 4096 + tiny_model_path.read_bytes() + b"trailer")
    with open(path, "rb") as file:
        file.seek(4096)
        with pyllama.Model.from_file(file, load_mode=load_mode) as model:
            assert np.array_equal(logits_from(model), expected)
        assert file.read(4) == b"GGUF"  # it stands where it stood
        with pyllama.Model.from_file(file.fileno(), offset=4096, load_mode=load_mode) as model:
            assert np.array_equal(logits_from(model), expected)


def test_a_place_in_a_file_that_cannot_be_mapped(tiny_model_path, tmp_path, expected):
    path = tmp_path / "archive.bin"
    path.write_bytes(b"\x01" * 5 + tiny_model_path.read_bytes())
    with open(path, "rb") as file:
        with pytest.raises(pyllama.ModelLoadError, match="aligned"):
            pyllama.Model.from_file(file, offset=5)
        with pyllama.Model.from_file(file, offset=5, load_mode="none") as model:
            assert np.array_equal(logits_from(model), expected)


def test_a_descriptor_stays_open_and_in_place(tiny_model_path):
    descriptor = os.open(tiny_model_path, os.O_RDONLY)
    try:
        os.lseek(descriptor, 7, os.SEEK_SET)
        pyllama.Model.from_file(descriptor, offset=0, vocab_only=True).close()
        assert os.lseek(descriptor, 0, os.SEEK_CUR) == 7
        with pytest.raises(pyllama.ModelLoadError, match="no GGUF file"):
            pyllama.Model.from_file(descriptor)
        assert os.lseek(descriptor, 0, os.SEEK_CUR) == 7
    finally:
        os.close(descriptor)


def test_objects_that_are_no_open_files(tiny_model_path, tmp_path):
    with open(tiny_model_path, "rb") as closed:
        pass
    for file in (io.BytesIO(b"GGUF"), closed, None, "model.gguf", b"GGUF", object(), 1.5):
        with pytest.raises(TypeError, match="file"):
            pyllama.Model.from_file(file)
    with pytest.raises(TypeError, match="file"):
        pyllama.Model.from_file(True)
    with pytest.raises(ValueError, match="file"):
        pyllama.Model.from_file(-1)
    with pytest.raises(OSError, match="descriptor"):
        pyllama.Model.from_file(10**6)
    with (tmp_path / "new").open("wb") as writing, pytest.raises(OSError, match="descriptor"):
        pyllama.Model.from_file(writing)


@pytest.mark.parametrize(
    ("offset", "error"), [(-1, ValueError), (2**63, ValueError), (1.0, TypeError), ("0", TypeError)]
)
def test_the_offset_is_checked(tiny_model_path, offset, error):
    with open(tiny_model_path, "rb") as file, pytest.raises(error, match="offset"):
        pyllama.Model.from_file(file, offset=offset)


def test_an_offset_beyond_the_end(tiny_model_path):
    with open(tiny_model_path, "rb") as file, pytest.raises(pyllama.ModelLoadError):
        pyllama.Model.from_file(file, offset=2**40)


def test_a_pipe_is_no_file_to_load_from():
    read, write = os.pipe()
    try:
        with pytest.raises(OSError, match="seek"):
            pyllama.Model.from_file(read)
    finally:
        os.close(read)
        os.close(write)


# Memory


@pytest.mark.parametrize("kind", [bytes, bytearray, memoryview])
def test_from_bytes(tiny_model_path, expected, kind):
    with pyllama.Model.from_bytes(kind(tiny_model_path.read_bytes())) as model:
        assert model.path == "<bytes>"
        assert np.array_equal(logits_from(model), expected)


def test_from_an_array_of_numbers(tiny_model_path):
    data = np.frombuffer(tiny_model_path.read_bytes(), dtype=np.uint8)
    pyllama.Model.from_bytes(data, vocab_only=True).close()
    with pytest.raises(TypeError, match="data"):
        pyllama.Model.from_bytes(data[::2])


@pytest.mark.parametrize("data", ["GGUF", None, 3, [1, 2]])
def test_data_of_another_type(data):
    with pytest.raises(TypeError, match="data"):
        pyllama.Model.from_bytes(data)


def test_bytes_that_are_no_model(tiny_model_path):
    for data in (b"", b"GG", b"hello world", b"\0" * 100):
        with pytest.raises(pyllama.ModelLoadError, match="no GGUF file"):
            pyllama.Model.from_bytes(data)
    with pytest.raises(pyllama.ModelLoadError, match="<bytes>"):
        pyllama.Model.from_bytes(tiny_model_path.read_bytes()[:5000])


def test_the_copy_in_memory_goes_away_with_the_model(tiny_model_path):
    data = tiny_model_path.read_bytes()
    before = len(os.listdir("/proc/self/fd"))
    with pyllama.Model.from_bytes(data):
        assert len(os.listdir("/proc/self/fd")) == before
    with pytest.raises(pyllama.ModelLoadError):
        pyllama.Model.from_bytes(data[:5000])
    assert len(os.listdir("/proc/self/fd")) == before


# Saving


def test_a_saved_model_is_the_same_model(tiny_model_path, tmp_path):
    path = tmp_path / "saved.gguf"
    with pyllama.Model(tiny_model_path, use_extra_bufts=False) as model:
        before = logits_from(model)
        model.save(path)
        shape = (model.n_params, model.size, model.n_layer, model.rope_type)
    with pyllama.Model(path) as saved:
        assert np.array_equal(logits_from(saved), before)
        assert (saved.n_params, saved.size, saved.n_layer, saved.rope_type) == shape
        assert saved.vocab.tokenize("hello world", add_special=False)
        assert saved.metadata["general.name"] == "synthetic"


def test_saving_replaces_a_file_at_once(tiny_model_path, tmp_path):
    path = tmp_path / "saved.gguf"
    path.write_text("older")
    with pyllama.Model(tiny_model_path, use_extra_bufts=False) as model:
        model.save(path)
    assert path.read_bytes()[:4] == b"GGUF"
    assert os.listdir(tmp_path) == ["saved.gguf"]


def test_a_model_can_be_saved_over_its_own_file(tiny_model_path, tmp_path, expected):
    path = tmp_path / "model.gguf"
    path.write_bytes(tiny_model_path.read_bytes())
    with pyllama.Model(path, use_extra_bufts=False) as model:
        model.save(path)
        assert np.array_equal(logits_from(model), expected)  # it still has the older file
    with pyllama.Model(path) as model:
        assert np.array_equal(logits_from(model), expected)


def test_weights_that_may_be_repacked_are_not_saved(tiny, tiny_model_path, tmp_path):
    with pytest.raises(ValueError, match="use_extra_bufts=False"):
        tiny.save(tmp_path / "saved.gguf")
    with (
        pyllama.Model(tiny_model_path, vocab_only=True, use_extra_bufts=False) as model,
        pytest.raises(ValueError, match="vocab_only"),
    ):
        model.save(tmp_path / "saved.gguf")
    assert os.listdir(tmp_path) == []


def test_places_to_save_to_are_checked(tiny_model_path, tmp_path):
    with pyllama.Model(tiny_model_path, use_extra_bufts=False) as model:
        for path, error in [
            (tmp_path, IsADirectoryError),
            (tmp_path / "absent" / "model.gguf", FileNotFoundError),
            ("", IsADirectoryError),
            ("a\0b", ValueError),
            (None, TypeError),
            (b"model.gguf", TypeError),
        ]:
            with pytest.raises(error):
                model.save(path)
    with pytest.raises(pyllama.ClosedError):
        model.save(tmp_path / "model.gguf")
    assert os.listdir(tmp_path) == []


def test_a_full_disk_leaves_nothing(tiny_model_path, tmp_path):
    run_python(
        """
        import os, resource, sys, logging
        import pyllama
        logging.disable()
        model = pyllama.Model(sys.argv[1], use_extra_bufts=False)
        path = sys.argv[2] + "/model.gguf"
        with open(path, "w") as file:
            file.write("older")
        resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
        try:
            model.save(path)
        except pyllama.ModelSaveError as error:
            assert "ends before" in str(error), error
        else:
            raise SystemExit("saved")
        assert os.listdir(sys.argv[2]) == ["model.gguf"]
        with open(path) as file:
            assert file.read() == "older"
        """,
        tiny_model_path,
        tmp_path,
    )


def test_an_architecture_that_cannot_be_saved(tmp_path):
    """T5 has an encoder, and hyperparameters that llama.cpp cannot write."""
    path = synthetic.write_model(tmp_path / "t5.gguf", architecture="t5")
    with pyllama.Model(path, use_extra_bufts=False) as model:
        assert model.has_encoder
        assert model.decoder_start_token == synthetic.BOS
        with pytest.raises(pyllama.ModelSaveError, match="supports_arch"):
            model.save(tmp_path / "saved.gguf")
        with pyllama.Context(model, n_ctx=256, n_threads=1) as context:
            context.encode(pyllama.Batch.from_tokens(PROMPT, outputs="all"))
    assert os.listdir(tmp_path) == ["t5.gguf"]


def test_ggufs_own_reader_agrees_with_what_was_saved(tiny_model_path, tmp_path):
    path = tmp_path / "saved.gguf"
    with pyllama.Model(tiny_model_path, use_extra_bufts=False) as model:
        model.save(path)
    original = {tensor.name: tensor for tensor in gguf.GGUFReader(tiny_model_path).tensors}
    saved = {tensor.name: tensor for tensor in gguf.GGUFReader(path).tensors}
    assert original.keys() == saved.keys()
    for name, tensor in original.items():
        assert np.array_equal(tensor.data, saved[name].data)
    assert struct.unpack_from("<I", path.read_bytes(), 4) == (3,)
