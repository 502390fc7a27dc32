"""Which files of a repository make up a model, by the rules of llama.cpp's own downloads."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import PurePosixPath

from adapter.models.parts import PART

_GGUF = re.compile(r"\.gguf\Z", re.IGNORECASE)
_QUANTIZATION = re.compile(
    r"(?:^|[-._/])((?:UD-)?(?:I?Q\d\w*|TQ\d\w*|MXFP4\w*|NVFP4\w*|BF16|F16|F32|FP16|FP32))(?=$|[-./])",
    re.IGNORECASE,
)
TEMPLATE = "chat_template.jinja"
_NO_MODELS = ("mmproj", "imatrix", "mtp-", "eagle3-", "dflash-", "dspark-")


@dataclass(frozen=True)
class Candidate:
    """A model of a repository.

    Attributes:
        stem: path without the number of the part and without .gguf.
        files: its file, or its parts in order.
        mmproj: the projector for images or sound, if there is one.
        template: a chat template beside it, if there is one.
        quantization: as in the name, in capitals; None if it has none.
    """

    stem: str
    files: tuple[str, ...]
    mmproj: str | None = None
    template: str | None = None
    quantization: str | None = None

    @property
    def extras(self) -> tuple[str, ...]:
        """Files that belong to it besides its own."""
        return tuple(path for path in (self.mmproj, self.template) if path is not None)


class UnclearError(Exception):
    """No model or several fit a name. `choices` are the possible ones."""

    def __init__(self, reason: str, choices: Sequence[Candidate]) -> None:
        self.choices = tuple(choices)
        super().__init__(reason)


def is_safe(path: str) -> bool:
    """Whether a path of a repository stays inside the folder that it is put into."""
    parts = path.split("/")
    return (
        0 < len(path) <= 1024
        and path.isprintable()
        and not any(character in '\\:*?"<>|' for character in path)
        and all(part and part == part.strip(" ") and not part.endswith(".") for part in parts)
        and all(len(part.encode()) <= 255 for part in parts)
    )


def candidates(paths: Iterable[str]) -> list[Candidate]:
    """The complete models among the files of a repository, ordered by path."""
    safe = sorted(filter(is_safe, paths))
    known = [path for path in safe if _GGUF.search(path)]
    found = []
    for (stem, count), files in _by_model(known).items():
        if _missing(files, count):
            continue
        mmproj, template = _mmproj(known, files[0]), _template(safe, files[0])
        found.append(Candidate(stem, tuple(files), mmproj, template, quantization_of(stem)))
    return found


def _by_model(paths: Iterable[str]) -> dict[tuple[str, int], list[str]]:
    """The files of each model, by its stem and the number of its parts; 0 if it is not split."""
    models: dict[tuple[str, int], list[str]] = {}
    for path in paths:
        if any(mark in PurePosixPath(path).name.casefold() for mark in _NO_MODELS):
            continue
        stem = _GGUF.sub("", path)
        part = PART.fullmatch(stem)
        key = (part["name"], int(part["count"])) if part else (stem, 0)
        models.setdefault(key, []).append(path)
    return models


def _missing(files: Sequence[str], count: int) -> int:
    """How many parts are not there of a model of so many."""
    indices = {
        int(part["index"]) for path in files if (part := PART.fullmatch(_GGUF.sub("", path)))
    }
    return len(set(range(1, count + 1)) - indices)


def _incomplete(paths: Iterable[str]) -> str:
    """What to say of models that lack parts."""
    known = sorted(path for path in paths if is_safe(path) and _GGUF.search(path))
    lacking = [
        f"{stem} lacks {missing} of its {count} parts"
        for (stem, count), files in _by_model(known).items()
        if (missing := _missing(files, count))
    ]
    return "".join(f"; {each}" for each in lacking[:3])


def choose(paths: Iterable[str], tag: str | None) -> Candidate:
    """The one model that a tag stands for. Raises UnclearError."""
    paths = list(paths)
    found = candidates(paths)
    if tag is None:
        if len(found) == 1:
            return found[0]
        reason = "it holds several models; say which" if found else "it holds no GGUF model"
        raise UnclearError(reason + ("" if found else _incomplete(paths)), found)
    wanted = tag.casefold()
    if _GGUF.search(tag):
        exact = [one for one in found if tag in one.files]
        fits = exact or [
            one for one in found if any(_same_file(path, wanted) for path in one.files)
        ]
    else:
        # The last quantization in the name takes precedence over other parts of the name or of the
        # folder.
        pattern = re.compile(rf"(?:^|[-./]){re.escape(tag)}(?=$|[-./])", re.IGNORECASE)
        fits = [one for one in found if (one.quantization or "").casefold() == wanted]
        fits = fits or [one for one in found if pattern.search(one.stem)]
    if len(fits) == 1:
        return fits[0]
    if fits:
        raise UnclearError(f"{tag!r} can be several of its models; give the file's name", fits)
    reason = f"it holds no {tag!r}" if found else "it holds no GGUF model"
    raise UnclearError(reason + _incomplete(paths), found)


def _same_file(path: str, wanted: str) -> bool:
    folded = path.casefold()
    return folded == wanted or folded.rpartition("/")[2] == wanted


def quantization_of(stem: str) -> str | None:
    """The quantization in a name without .gguf, in capitals."""
    found = _QUANTIZATION.findall(stem)
    return found[-1].upper() if found else None


def _bits(path: str) -> int:
    digits = re.search(r"\d+", quantization_of(_GGUF.sub("", path)) or "")
    return int(digits[0]) if digits else 0


def _template(paths: Iterable[str], model: str) -> str | None:
    """The chat template in the model's folder, or the nearest above it."""
    folder = PurePosixPath(model).parent
    fitting = [
        path
        for path in paths
        if PurePosixPath(path).name == TEMPLATE
        and PurePosixPath(path).parent in (folder, *folder.parents)
    ]
    return max(fitting, key=lambda path: path.count("/"), default=None)


def _mmproj(paths: Iterable[str], model: str) -> str | None:
    """The nearest one in the model's folder or above it, with the closest precision."""
    folder = PurePosixPath(model).parent
    fitting = [
        path
        for path in paths
        if "mmproj" in PurePosixPath(path).name.casefold()
        and PurePosixPath(path).parent in (folder, *folder.parents)
    ]
    return min(
        fitting, key=lambda path: (-path.count("/"), abs(_bits(path) - _bits(model))), default=None
    )
