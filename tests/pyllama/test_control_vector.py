"""Control vectors: what they add to each layer, against numpy, and what is refused."""

from __future__ import annotations

import gguf
import numpy as np
import pytest
from decoding import PROMPT, logits_of
from synthetic_files import write_tensors

import pyllama

N_EMBD = 64


def test_a_control_vector_points_the_last_layer(tiny, tiny_model_path, context):
    """A vector that outweighs everything else is all that the output sees, normalized."""
    direction = np.random.default_rng(5).standard_normal(N_EMBD).astype(np.float32)
    pyllama.set_control_vector(context, 1e7 * direction[np.newaxis])
    output = next(
        tensor.data
        for tensor in gguf.GGUFReader(tiny_model_path).tensors
        if tensor.name == "output.weight"
    )
    truth = output @ (direction / np.sqrt(np.mean(direction**2)))
    np.testing.assert_allclose(logits_of(context, PROMPT), truth, rtol=1e-4, atol=1e-4)


def test_a_control_vector_is_cleared(context, expected):
    vector = np.ones((1, N_EMBD), np.float32)
    pyllama.set_control_vector(context, vector)
    assert not np.array_equal(logits_of(context, PROMPT), expected)
    pyllama.set_control_vector(context, None)
    assert np.array_equal(logits_of(context, PROMPT), expected)


def test_a_control_vector_for_some_layers(write_tiny_model):
    with pyllama.Model(write_tiny_model(n_layer=4)) as model:
        random = np.random.default_rng(6)
        vector = random.standard_normal((3, N_EMBD)).astype(np.float32)
        with pyllama.Context(model, n_ctx=256, n_threads=1) as context:

            def logits(directions, **layers):
                pyllama.set_control_vector(context, directions, **layers)
                return logits_of(context, PROMPT)

            only = vector.copy()
            only[[0, 2]] = 0
            assert np.array_equal(logits(vector, layer_start=2, layer_end=2), logits(only))
            # A shorter one says nothing of the layers after it, whatever was there before.
            short = logits(vector[:2])
            logits(vector)
            assert np.array_equal(logits(vector[:2]), short)
            assert not np.array_equal(logits(vector), short)
            assert np.array_equal(logits(vector[:2].tolist()), short)


def test_control_vectors_are_checked(context):
    good = np.ones((1, N_EMBD), np.float32)
    for wrong in (good[0], good[:, :-1], good[:0], np.ones((2, N_EMBD)), good * np.nan, [[1.0]]):
        with pytest.raises(ValueError, match="directions"):
            pyllama.set_control_vector(context, wrong)
    for wrong in ("vector", object(), [["a"] * N_EMBD]):
        with pytest.raises(TypeError, match="directions"):
            pyllama.set_control_vector(context, wrong)
    for name, value in [
        ("layer_start", 0),
        ("layer_start", 2),
        ("layer_end", 0),
        ("layer_end", 2),
        ("layer_end", -1),
    ]:
        with pytest.raises(ValueError, match=name):
            pyllama.set_control_vector(context, good, **{name: value})
    with pytest.raises(TypeError, match="layer_start"):
        pyllama.set_control_vector(context, good, layer_start="1")
    with pytest.raises(TypeError, match="context"):
        pyllama.set_control_vector(None, good)
    context.close()
    with pytest.raises(pyllama.ClosedError):
        pyllama.set_control_vector(context, good)


def test_a_control_vector_from_a_file(tmp_path, context):
    vector = np.random.default_rng(7).standard_normal((3, N_EMBD)).astype(np.float32)
    path = tmp_path / "vector.gguf"
    write_tensors(
        path,
        {"direction.1": vector[0], "direction.3": vector[2]},
        architecture="controlvector",
    )
    loaded = pyllama.load_control_vector(path)
    assert loaded.dtype == np.float32
    vector[1] = 0
    assert np.array_equal(loaded, vector)
    pyllama.set_control_vector(context, loaded[:1])


@pytest.mark.parametrize(
    "tensors",
    [
        {},
        {"direction.0": np.ones(4, np.float32)},
        {"direction.-1": np.ones(4, np.float32)},
        {"direction.513": np.ones(4, np.float32)},
        {"direction.99999999999999999999": np.ones(4, np.float32)},
        {"direction.1x": np.ones(4, np.float32)},
        {"direction.": np.ones(4, np.float32)},
        {"vector.1": np.ones(4, np.float32)},
        {"direction.1": np.ones(4, np.float16)},
        {"direction.1": np.ones((2, 4), np.float32)},
        {"direction.1": np.ones(4, np.float32), "direction.2": np.ones(5, np.float32)},
    ],
)
def test_files_that_are_no_control_vectors(tmp_path, tensors):
    path = write_tensors(tmp_path / "vector.gguf", tensors, architecture="controlvector")
    with pytest.raises(pyllama.AdapterError, match=r"vector\.gguf"):
        pyllama.load_control_vector(path)


def test_truncated_control_vectors(tmp_path):
    path = tmp_path / "vector.gguf"
    write_tensors(path, {"direction.1": np.ones(64, np.float32)}, architecture="controlvector")
    content = path.read_bytes()
    for kept in [4, 10, 30, 60, 120, len(content) - 4]:
        path.write_bytes(content[:kept])
        with pytest.raises(pyllama.AdapterError, match=r"vector\.gguf"):
            pyllama.load_control_vector(path)
