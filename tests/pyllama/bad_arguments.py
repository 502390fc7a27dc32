"""Every public function and method of pyllama, and values to break it with.

A row for each: what to call, and the arguments without which it cannot be called. All parameters
of its signature are then given every hostile value in turn.
"""

from __future__ import annotations

import dataclasses
import functools
import inspect
import math
import threading
import typing
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import fuzz
import numpy as np

import pyllama
from pyllama import Batch, Context, Sampler, SamplerChain
from pyllama.context_params import ContextOptions
from pyllama.memory_fit import LayoutOptions
from pyllama.model_params import ModelOptions

PROMPT = [1, 10, 20]
MESSAGES = [{"role": "user", "content": "Hello"}]

NOT_FOR_USERS = {
    # Made by the object that they belong to, from a pointer that nobody else has.
    *("Vocab", "Memory", "State", "Sampler", "ChatParser"),
    "Generated",  # what a call gives
    "RpcServer.wait",  # takes nothing, and has no end
    "BackendName",  # a type, for annotations
    # Written by users, called by C.
    "PythonSampler",
    *(f"PythonSampler.{name}" for name in ("apply", "accept", "reset", "clone")),
}

# What **options stands for.
OPTIONS = {
    "Model": ModelOptions,
    "Model.from_splits": ModelOptions,
    "Model.from_file": ModelOptions,
    "Model.from_bytes": ModelOptions,
    "Context": ContextOptions,
    "memory_use": LayoutOptions,
    "memory_fit": LayoutOptions,
}


class World:
    """Objects to call methods of, made when they are asked for, for one row alone."""

    def __init__(self, folder: Path, write_model: Callable[..., Path]) -> None:
        self.folder = folder
        self.model_path = write_model(**fuzz.SMALL)
        self.foreign_path = write_model(**{**fuzz.SMALL, "n_embd": 64})
        self.opened: list[Any] = []

    def keep(self, thing: Any) -> Any:
        self.opened.append(thing)
        return thing

    def close(self) -> None:
        for thing in reversed(self.opened):
            thing.close()

    @functools.cached_property
    def model(self) -> pyllama.Model:
        return self.keep(pyllama.Model(self.model_path, use_extra_bufts=False))

    @functools.cached_property
    def context(self) -> Context:
        made = Context(self.model, n_ctx=64, n_seq_max=2, n_threads=1, embeddings=True)
        made.decode(Batch.from_tokens(PROMPT))
        return self.keep(made)

    @functools.cached_property
    def pooled(self) -> Context:
        made = Context(self.model, n_ctx=64, n_threads=1, embeddings=True, pooling_type="mean")
        made.decode(Batch.from_tokens(PROMPT))
        return self.keep(made)

    @functools.cached_property
    def generation(self) -> pyllama.Generation:
        context = self.keep(Context(self.model, n_ctx=64, n_seq_max=2, n_threads=1))
        return self.keep(pyllama.Generation(context))

    @functools.cached_property
    def chain(self) -> SamplerChain:
        return self.keep(SamplerChain([Sampler.greedy()]))

    @functools.cached_property
    def sampler(self) -> Sampler:
        return self.keep(Sampler.top_k(3))

    @functools.cached_property
    def grammar(self) -> pyllama.GrammarSampler:
        return self.keep(pyllama.GrammarSampler(self.model.vocab, 'root ::= "hello"'))

    @property
    def candidates(self) -> pyllama.Candidates:
        return pyllama.Candidates([1.0, 2.0, 3.0])

    @functools.cached_property
    def pool(self) -> pyllama.Threadpool:
        return self.keep(pyllama.Threadpool(1))

    @functools.cached_property
    def adapter(self) -> pyllama.LoraAdapter:
        return self.keep(pyllama.LoraAdapter(self.model, self.lora_path))

    @functools.cached_property
    def lora_path(self) -> Path:
        return fuzz.lora(self.folder / "lora")

    @functools.cached_property
    def foreign(self) -> Context:
        """A context of another model."""
        other = self.keep(pyllama.Model(self.foreign_path))
        return self.keep(Context(other, n_ctx=64, n_threads=1))

    @functools.cached_property
    def template(self) -> pyllama.ChatTemplate:
        return pyllama.ChatTemplate(self.model)

    @functools.cached_property
    def vector_path(self) -> Path:
        rows = {"direction.1": np.ones(32, np.float32)}
        path = self.folder / "vector"
        return fuzz.write_tensors(path, rows, architecture="controlvector")

    @functools.cached_property
    def state_path(self) -> Path:
        self.context.state.save_file(self.folder / "state")
        return self.folder / "state"

    @functools.cached_property
    def seq_state_path(self) -> Path:
        self.context.state.seq_save_file(self.folder / "seq_state", 0)
        return self.folder / "seq_state"

    def hostile(self) -> Iterator[tuple[str, Any]]:
        """Values that no parameter, or hardly one, is meant for."""
        yield from HOSTILE.items()
        closed = pyllama.Model(self.model_path, vocab_only=True)
        closed.close()
        yield "a closed model", closed
        yield "a context of another model", self.foreign
        yield "that model", self.foreign.model
        yield "its vocabulary", self.foreign.model.vocab
        closed = Context(self.foreign.model, n_ctx=64)
        closed.close()
        yield "a closed context", closed
        closed = pyllama.Threadpool(1)
        closed.close()
        yield "a closed threadpool", closed
        yield "an empty batch", Batch(1)
        yield "a batch outside the vocabulary", Batch.from_tokens([10**9])
        yield "a batch of embeddings", _embeddings()
        yield "a lock", threading.Lock()


def _embeddings() -> Batch:
    batch = Batch(2, n_embd=7)
    batch.add_embeddings(np.zeros((2, 7)))
    return batch


class _Raises:
    """Fails wherever it is asked for something."""

    def __index__(self) -> int:
        raise ZeroDivisionError

    __float__ = __len__ = __iter__ = __fspath__ = __index__


HOSTILE: dict[str, Any] = {
    "None": None,
    "True": True,
    "-1": -1,
    "-2**31": -(2**31),
    "2**31": 2**31,
    "2**32": 2**32,
    "2**63": 2**63,
    "10**400": 10**400,
    "1.5": 1.5,
    "-1e300": -1e300,
    "NaN": math.nan,
    "infinity": math.inf,
    "complex": 1j,
    "an empty string": "",
    "a string": "nonsense",
    "a null character": "a\0b",
    "a lone surrogate": "\ud800",
    "a long string": "x" * 1_000_000,
    "empty bytes": b"",
    "bytes": b"\xff\xfe",
    "many bytes": bytes(1_000_000),
    "an empty list": [],
    "a list that holds itself": (lambda itself: itself.append(itself) or itself)([]),
    "a list of None": [None],
    "negative numbers": [-1],
    "large numbers": [2**40],
    "100,000 numbers": [0] * 100_000,
    "a set": {1, 2},
    "an empty dict": {},
    "a dict": {"nonsense": object()},
    "a dict of numbers": {0: math.nan},
    "NaN in an array": np.full(3, math.nan, np.float32),
    "an array of three dimensions": np.zeros((2, 2, 2)),
    "an empty array": np.zeros(0),
    "an array of objects": np.array([object()]),
    "a function": lambda *_: None,
    "a class": World,
    "an object": object(),
    "what raises": _Raises(),
}

Row = Callable[[World], tuple[Callable[..., Any], dict[str, Any]]]


def public_callables() -> Iterator[str]:
    """The name of everything in pyllama that a user can call."""
    public = [getattr(pyllama, name) for name in pyllama.__all__]
    for name, thing in zip(pyllama.__all__, public, strict=True):
        if not inspect.isclass(thing):
            yield name
        elif not issubclass(thing, BaseException) and not typing.is_typeddict(thing):
            # A plain record holds whatever it is given.
            if not dataclasses.is_dataclass(thing) or hasattr(thing, "__post_init__"):
                yield name
            for member in dir(thing):
                found = inspect.getattr_static(thing, member)
                bases = [base for base in thing.__mro__[1:] if base in public]
                inherited = any(inspect.getattr_static(b, member, None) is found for b in bases)
                if member[0] != "_" and callable(getattr(thing, member)) and not inherited:
                    yield f"{name}.{member}"


def parameters(name: str, function: Callable[..., Any]) -> list[str]:
    """The names of its parameters, those of **options among them."""
    found = []
    for parameter in inspect.signature(function).parameters.values():
        if parameter.kind is inspect.Parameter.VAR_KEYWORD:
            found += OPTIONS[name].__annotations__
        else:
            found.append(parameter.name)
    return found
