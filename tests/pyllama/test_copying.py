"""Copying and pickling: objects that own something in C refuse it, values do not."""

from __future__ import annotations

import copy
import pickle

import numpy as np
import pytest
from synthetic_files import write_lora

import pyllama
from pyllama import Batch, Context, Sampler, SamplerChain

MESSAGES = [{"role": "user", "content": "hi"}]

# How to make one of each class that stands for an object of llama.cpp, and what it says to do.
OWNING = {
    "Model": (lambda made: made.model, r"another process opens its file by Model\(path\)"),
    "Vocab": (lambda made: made.model.vocab, "threads may use it"),
    "Context": (lambda made: made.context, r"Make another with Context\(model"),
    "Memory": (lambda made: made.context.memory, r"Context\.state takes and sets"),
    "State": (lambda made: made.context.state, r"get_data\(\)"),
    "Threadpool": (lambda _: pyllama.Threadpool(1), "another Threadpool"),
    "Batch": (lambda _: Batch.from_tokens([1]), "Make another Batch"),
    "Sampler": (lambda _: Sampler.greedy(), r"clone\(\)"),
    "Generation": (
        lambda made: pyllama.Generation(Context(made.model, n_ctx=64, n_threads=1)),
        "another context",
    ),
    "SamplerChain": (lambda _: SamplerChain([Sampler.greedy()]), r"clone\(\)"),
    "GrammarSampler": (
        lambda made: pyllama.GrammarSampler(made.model.vocab, "root ::= [a-z]"),
        r"clone\(\)",
    ),
    "ReasoningBudgetSampler": (
        lambda made: pyllama.ReasoningBudgetSampler(
            made.model.vocab, start=[3], ends=[[4]], forced=[4], budget=5
        ),
        r"clone\(\)",
    ),
    "ChatTemplate": (lambda made: pyllama.ChatTemplate(made.model), "from its source"),
    "ChatParser": (
        lambda made: pyllama.ChatTemplate(made.model).apply(MESSAGES).parser,
        r"RenderedChat\.parser",
    ),
    "LoraAdapter": (lambda made: pyllama.LoraAdapter(made.model, made.lora), "Load its file again"),
    "RpcServer": (lambda _: pyllama.RpcServer.__new__(pyllama.RpcServer), "endpoint"),
}

# What holds nothing of C's: Python's own rules of copying hold.
VALUES = {
    *("Backend", "BackendBuild", "BackendPackage", "Candidates", "ChatCapabilities", "ChatMessage"),
    *("ChatMessageDiff", "ChatToolCall", "Detokenizer", "Device", "DeviceMemory", "Grammar"),
    *("GrammarTrigger", "MemoryFit", "MemoryUse", "Performance", "PythonSampler", "Quantization"),
    *("RenderedChat", "SamplerPerf", "TensorInfo", "ContextParams", "Run", "Drawn", "Generated"),
    *("Forcing", "SequenceProgress"),
}


class Made:
    def __init__(self, model, context, lora):
        self.model, self.context, self.lora = model, context, lora


@pytest.fixture
def made(tiny, tmp_path):
    factors = np.ones((4, 64), np.float32), np.ones((64, 4), np.float32)
    lora = write_lora(tmp_path / "lora.gguf", {"blk.0.attn_q.weight": factors}, alpha=1.0)
    with Context(tiny, n_ctx=64) as context:
        yield Made(tiny, context, lora)


def test_every_public_class_is_in_one_of_the_tables():
    classes = {
        name
        for name in pyllama.__all__
        if isinstance(getattr(pyllama, name), type)
        and not issubclass(getattr(pyllama, name), BaseException)
    }
    assert classes == OWNING.keys() | VALUES
    assert not OWNING.keys() & VALUES


@pytest.mark.parametrize("name", OWNING)
def test_what_owns_something_in_c_refuses(made, name):
    make, advice = OWNING[name]
    thing = make(made)
    assert type(thing).__name__ == name
    ways = [copy.copy, copy.deepcopy]
    ways += [lambda thing, n=n: pickle.dumps(thing, n) for n in range(pickle.HIGHEST_PROTOCOL + 1)]
    for way in ways:
        with pytest.raises(TypeError, match=f"{name} can be neither copied nor pickled.*{advice}"):
            way(thing)


def test_refusing_leaves_the_object_as_it_was(made):
    with pytest.raises(TypeError):
        copy.copy(made.context)
    made.context.decode(Batch.from_tokens([1, 2, 3]))
    with pytest.raises(TypeError):
        copy.deepcopy({"of": [made.model]})
    assert np.isfinite(made.context.logits()).all()


def test_devices_are_values_of_this_process():
    device, backend = pyllama.devices()[0], pyllama.backends()[0]
    for thing in (device, backend):
        assert copy.copy(thing) is thing
        assert copy.deepcopy([thing])[0] is thing
        with pytest.raises(TypeError, match=r"cannot be pickled.*Send its name"):
            pickle.dumps(thing)


def test_values_are_copied_and_pickled():
    grammar = pyllama.Grammar("root ::= [a-z]")
    assert pickle.loads(pickle.dumps(grammar)) == copy.deepcopy(grammar) == grammar
