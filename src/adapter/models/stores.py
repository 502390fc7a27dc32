"""Models that other programs keep on this machine. Nothing here writes.

hf:owner/repo:Q4_K_M      huggingface_hub's cache, which many programs share
lmstudio:owner/repo/file  LM Studio's folder
ollama:model:tag          Ollama's blobs, by their manifests
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path

from adapter.errors import InvalidModelNameError, ModelNotFoundError
from adapter.models.hub.cache import repositories, tree_files
from adapter.models.hub.choice import Candidate, candidates, is_safe
from adapter.models.hub.names import PREFIX
from adapter.models.hub.pull import cached_path, clear_name

LM_STUDIO, OLLAMA = "lmstudio:", "ollama:"

_MODEL_LAYER = "application/vnd.ollama.image.model"
_PROJECTOR_LAYER = "application/vnd.ollama.image.projector"
_DIGEST = re.compile(r"sha256:([0-9a-f]{64})")
_MAX_MANIFEST = 2**20
_OLLAMA_SERVICE = "/usr/share/ollama/.ollama/models"
_OLLAMA_DEFAULT = "library"


@dataclass(frozen=True)
class StoredModel:
    """A model that another program keeps.

    Attributes:
        name: what load_model() takes.
        paths: its file, or its parts in order.
        mmproj: the file for images or sound that belongs to it, if there is one.
    """

    name: str
    paths: tuple[Path, ...]
    mmproj: Path | None = None


def stored_models() -> Iterator[StoredModel]:
    """All models that other programs keep. Those that cannot be read are left out."""
    yield from _hugging_face_models()
    yield from _lm_studio_models()
    yield from _ollama_models()


def is_stored_name(name: object) -> bool:
    """Whether a name has the form of another program's."""
    return isinstance(name, str) and name.startswith((PREFIX, LM_STUDIO, OLLAMA))


def stored_path(name: str) -> Path:
    """The file of a model that another program keeps; the first part of a split one.

    Raises:
        InvalidModelNameError: no model can have this name.
        ModelNotFoundError: there is no such model.
    """
    if name.startswith(PREFIX):
        return cached_path(name)
    kept, prefix = name.partition(":")[2], name.partition(":")[0] + ":"
    if not is_safe(kept.replace(":", "/")):
        raise InvalidModelNameError(name, "is no name of a model that another program keeps")
    if prefix == OLLAMA and ":" not in kept:
        kept += ":latest"
    models = _ollama_models() if prefix == OLLAMA else _lm_studio_models()
    wanted = f"{prefix}{kept}".casefold()
    known = []
    for model in models:
        if model.name.casefold() == wanted:
            return model.paths[0]
        known.append(model.name)
    folders = _ollama_folders() if prefix == OLLAMA else _lm_studio_folders()
    near = get_close_matches(wanted, known, cutoff=0.5)
    reason = f"{' and '.join(map(str, folders))} have no such model"
    raise ModelNotFoundError(name, folders[0], near, reason=reason)


def _hugging_face_models() -> Iterator[StoredModel]:
    for repository in repositories():
        seen: dict[str, tuple[Path, Candidate]] = {}
        with suppress(OSError):
            for tree in repository.snapshots():
                for model in candidates(tree_files(tree)):
                    seen.setdefault(model.stem, (tree, model))
        found = [model for _, model in seen.values()]
        for tree, model in seen.values():
            yield _stored(clear_name(repository.repo, model, found), tree, model)


def _lm_studio_models() -> Iterator[StoredModel]:
    seen = set()
    for folder in _lm_studio_folders():
        for model in candidates(tree_files(folder)):
            name = f"{LM_STUDIO}{model.stem}"
            if name not in seen:
                seen.add(name)
                yield _stored(name, folder, model)


def _stored(name: str, folder: Path, model: Candidate) -> StoredModel:
    paths = tuple(folder / path for path in model.files)
    return StoredModel(name, paths, folder / model.mmproj if model.mmproj else None)


def _lm_studio_folders() -> list[Path]:
    home = Path.home()
    folders = [home / ".lmstudio" / "models", home / ".cache" / "lm-studio" / "models"]
    with suppress(OSError, ValueError):
        pointer = (home / ".lmstudio-home-pointer").read_text(encoding="utf-8").strip()
        if pointer:
            folders.insert(0, Path(pointer) / "models")
    return list(dict.fromkeys(folders))


def _ollama_folders() -> list[Path]:
    if os.environ.get("OLLAMA_MODELS"):
        return [Path(os.environ["OLLAMA_MODELS"])]
    return [Path.home() / ".ollama" / "models", Path(_OLLAMA_SERVICE)]


def _ollama_models() -> Iterator[StoredModel]:
    seen = set()
    for folder in _ollama_folders():
        manifests = folder / "manifests"
        for path in sorted(tree_files(manifests)):
            # host/namespace/model/tag
            _, _, rest = path.partition("/")
            namespace, _, named = rest.partition("/")
            model, _, tag = named.rpartition("/")
            if not model or not tag or "/" in model:
                continue
            owner = "" if namespace == _OLLAMA_DEFAULT else f"{namespace}/"
            name = f"{OLLAMA}{owner}{model}:{tag}"
            blobs = _ollama_blobs(folder, manifests / path)
            if name not in seen and _MODEL_LAYER in blobs:
                seen.add(name)
                yield StoredModel(name, (blobs[_MODEL_LAYER],), blobs.get(_PROJECTOR_LAYER))


def _ollama_blobs(folder: Path, manifest: Path) -> dict[str, Path]:
    """The files of a manifest that exist, by their kind."""
    try:
        with manifest.open("rb") as file:
            data = file.read(_MAX_MANIFEST + 1)
        layers = json.loads(data)["layers"] if len(data) <= _MAX_MANIFEST else []
        named = [(layer["mediaType"], layer["digest"]) for layer in layers]
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return {}
    blobs: dict[str, Path] = {}
    for kind, digest in named:
        found = _DIGEST.fullmatch(digest) if isinstance(digest, str) else None
        path = folder / "blobs" / f"sha256-{found[1]}" if found else None
        if isinstance(kind, str) and path is not None and path.is_file():
            blobs.setdefault(kind, path)
    return blobs
