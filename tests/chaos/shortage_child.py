"""A child of shortage.py: something is made and used while memory ends."""

from __future__ import annotations

import logging
import os
import random
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import forked
from forked import attempt

import pyllama
from pyllama import (
    Batch,
    ChatTemplate,
    Context,
    Grammar,
    GrammarSampler,
    Model,
    Sampler,
    SamplerChain,
)

ARCHITECTURES = ("llama", "mamba", "gemma2", "jamba", "t5", "bert")
LORA = "lora.gguf"
MIB = 2**20
SCHEMA = {
    "type": "object",
    "properties": {f"p{number}": {"type": "string", "maxLength": 50} for number in range(40)},
}


def path_of(folder: Path, architecture: str) -> Path:
    return folder / f"{architecture}.gguf"


class Scene:
    """What a case works with; what it keeps fills memory step by step."""

    def __init__(self, folder: Path, draw: random.Random) -> None:
        self.folder, self.draw = folder, draw
        # Most things need little: small rooms are tried more often.
        self.room = int(draw.choice([draw.random(), draw.random() ** 3]) * 40 * MIB)
        self.rounds = draw.randint(1, 4)
        self.architecture = draw.choice(ARCHITECTURES)
        self.kept: list[Any] = []

    def model(self, architecture: str | None = None) -> Model:
        return Model(path_of(self.folder, architecture or self.architecture), devices=[])

    def context(self, model: Model, **options: Any) -> Context:
        n_threads, n_ctx = self.draw.choice([1, 2]), self.draw.choice([64, 512, 2048])
        n_ubatch = self.draw.choice([16, 512])
        options = {"n_ctx": n_ctx, "n_threads": n_threads, "n_ubatch": n_ubatch, **options}
        return Context(model, **options)

    def keep(self, call: Callable[[], Any]) -> Any:
        made = attempt(call)
        self.kept.append(made)
        self.kept.append(attempt(lambda: bytearray(self.draw.choice([1000, 100_000, MIB]))))
        return made

    def close(self) -> None:
        for thing in self.kept:
            if hasattr(thing, "close"):
                attempt(thing.close)
        self.kept.clear()


def use(context: Context, count: int = 8) -> None:
    model = context.model
    if model.has_encoder:
        context.encode(Batch.from_tokens([3] * count))
    if model.has_decoder:
        context.memory.clear()
        context.decode(Batch.from_tokens([3] * (1 if model.has_encoder else count)))


def load(scene: Scene) -> None:
    pyllama.load_backends()
    forked.limit(scene.room)
    for _ in range(scene.rounds):
        model = attempt(lambda: scene.model(scene.draw.choice(ARCHITECTURES)))
        if model is not None:
            attempt(model.close)


def make_contexts(scene: Scene) -> None:
    model = scene.model()
    forked.limit(scene.room)
    for _ in range(scene.rounds):
        context = scene.keep(lambda: scene.context(model))
        if context is not None:
            attempt(lambda context=context: use(context))
    for context in scene.kept:
        if isinstance(context, Context):
            attempt(lambda context=context: use(context))
    scene.close()


def decode(scene: Scene) -> None:
    model = scene.model()
    contexts = [scene.context(model, n_ctx=1024) for _ in range(3)]
    forked.limit(scene.room)
    for _ in range(20):
        context, count = scene.draw.choice(contexts), scene.draw.choice([1, 8, 16])
        scene.keep(lambda context=context, count=count: use(context, count))
    for context in contexts:
        attempt(context.close)


def make_in_threads(scene: Scene) -> None:
    model = scene.model()

    def work() -> None:
        for _ in range(3):
            context = attempt(lambda: Context(model, n_ctx=512, n_threads=1))
            if context is not None:
                attempt(lambda context=context: use(context))
                attempt(context.close)

    threads = [threading.Thread(target=work) for _ in range(5)]
    for thread in threads:
        thread.start()
    forked.limit(scene.room)
    for thread in threads:
        thread.join()


def sample(scene: Scene) -> None:
    model = scene.model("llama")
    context = Context(model, n_ctx=256, n_threads=1)
    use(context)
    makers = [
        lambda: Sampler.top_k(5),
        lambda: Sampler.top_p(0.9),
        lambda: Sampler.penalties(model.vocab, last_n=64, repeat=1.1),
        lambda: Sampler.dry(model.vocab, multiplier=0.5),
        lambda: Sampler.xtc(0.5, 0.1, 1),
        lambda: Sampler.logit_bias(model.vocab, {5: 1.0}),
        lambda: GrammarSampler(model.vocab, 'root ::= [a-z]+ "x"{1,500}'),
    ]
    forked.limit(scene.room)

    def run() -> None:
        steps = [scene.draw.choice(makers)() for _ in range(4)]
        chain = SamplerChain([*steps, Sampler.dist(1)])
        scene.kept.append(chain)
        chain.sample(context)
        copied = chain.clone()
        scene.kept.append(copied)
        copied.sample(context)
        copied.reset()

    for _ in range(10 * scene.rounds):
        scene.keep(run)
    scene.close()


def save_and_load(scene: Scene) -> None:
    model = scene.model(scene.draw.choice(["llama", "mamba", "gemma2", "jamba"]))
    context = Context(model, n_ctx=256, n_threads=1)
    use(context, 64)
    state, whole, one = context.state, context.state.get_data(), context.state.seq_get_data(0)
    file = scene.folder / f"state-{os.getpid()}"
    forked.limit(scene.room)
    for _ in range(4 * scene.rounds):
        scene.keep(lambda: state.seq_get_data(0))
        scene.keep(state.get_data)
        attempt(lambda: state.seq_set_data(one, 0))
        attempt(lambda: state.set_data(whole))
        attempt(lambda: state.seq_save_file(file, 0))
        attempt(lambda: state.seq_load_file(file, 0))
    attempt(lambda: use(context))
    file.unlink(missing_ok=True)


def adapt(scene: Scene) -> None:
    model = scene.model("llama")
    context = Context(model, n_ctx=64, n_threads=1)
    forked.limit(scene.room)
    for _ in range(3 * scene.rounds):
        lora = scene.keep(lambda: pyllama.LoraAdapter(model, scene.folder / LORA))
        if lora is not None:
            attempt(lambda lora=lora: pyllama.set_adapters_lora(context, {lora: 1.0}))
            attempt(lambda: use(context))
    scene.close()


def follow_grammars(scene: Scene) -> None:
    model = scene.model("llama")
    forked.limit(scene.room)
    for _ in range(3 * scene.rounds):
        grammar = attempt(lambda: Grammar.from_json_schema(SCHEMA))
        if grammar is not None:
            sampler = scene.keep(lambda grammar=grammar: GrammarSampler(model.vocab, grammar))
            if sampler is not None:
                attempt(sampler.allowed_tokens)
                scene.keep(sampler.clone)
    scene.close()


def apply_templates(scene: Scene) -> None:
    model = scene.model("llama")
    messages = [{"role": "user", "content": "hello " * 100}]
    forked.limit(scene.room)
    for _ in range(5 * scene.rounds):
        template = scene.keep(lambda: ChatTemplate(model))
        if template is not None:
            scene.keep(lambda template=template: template.apply(messages))


def share_threads(scene: Scene) -> None:
    model = scene.model()
    forked.limit(scene.room)
    for _ in range(scene.rounds):
        pool = scene.keep(lambda: pyllama.Threadpool(scene.draw.choice([1, 2, 8])))
        context = scene.keep(lambda: scene.context(model, n_ctx=64))
        if pool is not None and context is not None:
            attempt(lambda pool=pool, context=context: context.attach_threadpool(pool))
            attempt(lambda context=context: use(context))
    scene.close()


KINDS = (
    *(load, make_contexts, make_contexts, decode, make_in_threads, sample, save_and_load),
    *(adapt, follow_grammars, apply_templates, share_threads),
)


def case(folder: Path, draw: random.Random) -> tuple[str, Callable[[], None]]:
    kind, scene = draw.choice(KINDS), Scene(folder, draw)

    def work() -> None:
        logging.disable()
        kind(scene)

    return f"{kind.__name__}, {scene.architecture}, {scene.room} bytes, {scene.rounds}", work


if __name__ == "__main__":
    forked.work_off(case)
