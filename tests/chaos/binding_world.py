"""What a case of the binding's fuzzer works with: tiny models, and the objects made so far."""

from __future__ import annotations

import random
import threading
from collections import defaultdict
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import synthetic
from synthetic_files import write_lora, write_tensors

#: Attention, recurrent, hybrid, sliding window, encoder and decoder, encoder alone.
ARCHITECTURES = ("llama", "mamba", "jamba", "gemma2", "t5", "bert")
SHAPE = {"n_embd": 64, "n_head": 2, "n_head_kv": 1, "n_ff": 64, "n_ctx_train": 256}

#: What takes the place of an argument now and then.
ODD: tuple[Any, ...] = (
    *(-1, 0, 1, 2, 3, 7, 255, 4096, 2**31 - 1, 2**31, -(2**31), 2**32 - 1, 2**32, 2**63, 10**30),
    *(0.5, -1.0, 1e9, float("nan"), float("inf"), True, None, "", "x", b"\xff", "\ud800", (), []),
    *([1, 2, 3], {}, object, np.int64(5), np.float32(1.5), np.zeros((2, 2)), np.int32([7, 8])),
)


class Skipped(Exception):
    """The call has nothing to work on: no such object was made."""


class Planned(Exception):
    """Raised by a callback of the fuzzer's own."""


class Interrupted(BaseException):
    """Raised by a signal's handler, as KeyboardInterrupt is."""


def write_files(folder: Path) -> None:
    """Write the files that cases load."""
    for architecture in ARCHITECTURES:
        synthetic.write_model(folder / f"{architecture}.gguf", architecture=architecture, **SHAPE)
    synthetic.write_model(folder / "spm.gguf", tokenizer="spm", **SHAPE)
    synthetic.write_model(folder / "none.gguf", tokenizer="none", **SHAPE)
    draw = np.random.default_rng(0)
    factors = [draw.standard_normal(size, dtype=np.float32) for size in ((4, 64), (64, 4))]
    names = [f"blk.{layer}.attn_{part}.weight" for layer in range(2) for part in ("q", "output")]
    write_lora(folder / "adapter.lora", dict.fromkeys(names, (factors[0], factors[1])))
    write_tensors(
        folder / "vector.gguf",
        {"direction.1": draw.standard_normal(64, dtype=np.float32)},
        architecture="controlvector",
        metadata={"controlvector.model_hint": "llama", "controlvector.layer_count": 1},
    )


#: The call that makes an object of each kind.
MAKERS: dict[str, str] = {
    "model": "load_model",
    "context": "make_context",
    "batch": "decode_next",
    "view": "read_outputs",
    "sampler": "make_sampler",
    "chain": "make_chain",
    "state": "save_state",
    "lora": "lora",
    "threadpool": "threadpool",
    "template": "make_template",
    "parser": "apply_template",
}


class World:
    """The objects that a case has made, which all of its threads use."""

    def __init__(
        self,
        files: Path,
        folder: Path,
        shorten: Callable[[int | None], None],
        calls: Mapping[str, Callable[[World, random.Random], object]],
    ) -> None:
        self.files = files
        #: For what the case writes.
        self.folder = folder
        self.shorten = shorten
        self._calls = calls
        self._made: dict[str, list[Any]] = defaultdict(list)
        self._lock = threading.Lock()

    def keep(self, kind: str, made: Any) -> None:
        with self._lock:
            self._made[kind].append(made)

    def pick(self, kind: str, draw: random.Random) -> Any:
        """One of the objects of a kind, mostly of the latest; made if there is none."""
        if not self._made[kind]:
            self._calls[MAKERS[kind]](self, random.Random(draw.random()))
        with self._lock:
            made = self._made[kind]
            if not made:
                raise Skipped(kind)
            return draw.choice(made[-3:] if draw.random() < 0.8 else made)

    def several(self, kind: str, draw: random.Random, most: int) -> list[Any]:
        with self._lock:
            made = list(self._made[kind])
        return draw.sample(made, min(len(made), draw.randint(0, most)))

    def drop(self, kind: str, draw: random.Random) -> None:
        with self._lock:
            if not self._made[kind]:
                raise Skipped(kind)
            self._made[kind].pop(draw.randrange(len(self._made[kind])))

    def kinds(self) -> list[str]:
        with self._lock:
            return [kind for kind, made in self._made.items() if made]

    def forget(self) -> None:
        with self._lock:
            self._made.clear()


def odd(draw: random.Random, value: Any, chance: float = 0.04) -> Any:
    """The value, or now and then something that is no such value."""
    return draw.choice(ODD) if draw.random() < chance else value


def text(draw: random.Random) -> str:
    """Words, markup, control tokens, runs of one letter, and characters of all planes."""
    parts = []
    for _ in range(draw.randint(0, 8)):
        kind = draw.randrange(6)
        if kind == 0:
            parts.append(draw.choice(["hello", " world", "he", "\n", "ll", " t"]))
        elif kind == 1:
            parts.append(draw.choice(["<|im_end|>", "<|im_start|>", "<s>", "</s>", "<unk>"]))
        elif kind == 2:
            parts.append(draw.choice("a .\n北é1") * draw.choice([1, 10, 100, 1000, 30_000]))
        elif kind == 3:
            parts.append(chr(draw.choice([0, 9, 0x7F, 0xA0, 0x300, 0x200D, 0xFFFD, 0x1F999])))
        elif kind == 4:
            parts.append(chr(draw.randrange(0xD800)))
        else:
            parts.append(draw.choice(['{"a": [1, ', "```", "{{ x }}", "\\", '"', "</think>"]))
    return "".join(parts)


def damaged(draw: random.Random, data: bytes) -> bytes:
    """The bytes with a few places changed, cut or doubled."""
    changed = bytearray(data)
    for _ in range(draw.choice([1, 1, 2, 8])):
        at = draw.randrange(max(len(changed), 1)) if draw.random() < 0.5 else draw.randrange(200)
        how = draw.randrange(5)
        if how == 0:
            changed[at : at + 1] = bytes([draw.randrange(256)])
        elif how == 1:
            number = draw.choice([0, 1, 2**16, 2**31 - 1, 2**31, 2**32 - 1])
            changed[at : at + 4] = number.to_bytes(4, "little")
        elif how == 2:
            changed[at : at + 8] = draw.choice([0, 2**32, 2**63, 2**64 - 1]).to_bytes(8, "little")
        elif how == 3:
            del changed[at : at + draw.choice([1, 4, 8, 1000])]
        else:
            changed[at:at] = changed[at : at + draw.choice([1, 4, 8, 100])]
    return bytes(changed)
