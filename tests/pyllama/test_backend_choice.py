"""The backend that the user chooses, and what this build has."""

from __future__ import annotations

import os

import pytest
from decoding import run_python

import pyllama
from pyllama.backend_choice import requested_backend


@pytest.fixture
def variable(monkeypatch):
    return lambda value: monkeypatch.setenv("PYLLAMA_BACKEND", value)


def lacking():
    """A backend that has no device here."""
    here = {device.backend for device in pyllama.devices()}
    return "sycl" if "SYCL" not in here else "hip"


def test_nothing_chosen_leaves_it_to_llama_cpp(monkeypatch):
    monkeypatch.delenv("PYLLAMA_BACKEND", raising=False)
    assert requested_backend() == "auto"
    assert pyllama.backend_devices() is None


@pytest.mark.parametrize("value", ["cpu", "CPU"])
def test_the_environment_chooses(variable, value):
    variable(value)
    assert pyllama.backend_devices() == []


def test_the_argument_comes_first(variable):
    variable("nonsense")
    assert pyllama.backend_devices("cpu") == []
    assert pyllama.backend_devices("auto") is None


def test_an_unknown_backend_is_refused(variable, tiny_model_path):
    variable("nonsense")
    with pytest.raises(ValueError, match=r"PYLLAMA_BACKEND must be one of auto, cpu, cuda.*'nonse"):
        pyllama.Model(tiny_model_path)
    with pytest.raises(ValueError, match="backend must be one of"):
        pyllama.backend_devices("nonsense")
    with pytest.raises(TypeError, match="backend must be a str"):
        pyllama.backend_devices(3)


def test_a_missing_backend_lists_those_that_there_are(variable, tiny_model_path):
    name = lacking()
    with pytest.raises(pyllama.BackendError, match=rf"'{name}' was asked for, but .*Devices here:"):
        pyllama.backend_devices(name)
    variable(name)
    with pytest.raises(pyllama.BackendError, match="CPU"):
        pyllama.Model(tiny_model_path)
    with pytest.raises(pyllama.BackendError, match="CPU"):
        pyllama.memory_use(tiny_model_path)


def test_devices_that_are_given_need_no_choice(variable, tiny_model_path):
    variable(lacking())
    pyllama.Model(tiny_model_path, devices=[]).close()


def test_the_build_says_what_it_has():
    build = {entry.name: entry for entry in pyllama.build_info()}
    assert build["CPU"].built
    assert {"CUDA", "VULKAN", "METAL", "OPENCL", "RPC"} <= set(build)
    assert build["RPC"].built == pyllama.supports_rpc() or "GGML_BACKEND_PATH" in os.environ
    for entry in build.values():
        assert entry.built or entry.note


@pytest.mark.skipif(
    not any(backend.name == "Vulkan" for backend in pyllama.backends()),
    reason="this build has no Vulkan backend, or there is no Vulkan loader here",
)
def test_vulkan_made_of_software_computes_what_the_cpu_does(tiny_model_path):
    """Mesa's, where it is installed: eight tokens. Otherwise whatever Vulkan device is first."""
    code = """
        import sys, pyllama
        from pyllama import Batch, Context, Model, Sampler, SamplerChain

        def greedy(**options):
            with (Model(sys.argv[1], **options) as model, Context(model, n_ctx=256) as context,
                  SamplerChain([Sampler.greedy()]) as chain):
                tokens = model.vocab.tokenize("hello world")
                context.decode(Batch.from_tokens(tokens))
                out = []
                for pos in range(len(tokens), len(tokens) + 8):
                    out.append(chain.sample(context))
                    context.decode_token(out[-1], pos)
                return out

        (device, *_) = pyllama.backend_devices()
        assert device.backend == "Vulkan", device
        assert greedy() == greedy(devices=[])
        print(device.description)
    """
    environment = {**os.environ, "PYLLAMA_BACKEND": "vulkan", "GGML_VK_VISIBLE_DEVICES": "0"}
    assert run_python(code, tiny_model_path, env=environment)
