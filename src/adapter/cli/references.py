"""What a user may write for a model: a name, a path, or a name on a hub."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from adapter.errors import InvalidModelNameError, ModelNotFoundError
from adapter.models.local_path import local_path

HELP = "A name that pyllama models lists, the path of a .gguf file, or owner/repo:Q4_K_M of a hub."


@dataclass(frozen=True)
class Reference:
    """A model of a pool.

    Attributes:
        folder: the pool's folder.
        name: the model's name there.
    """

    folder: Path
    name: str

    def path(self) -> Path:
        """Its file, or the first part. Nothing is downloaded.

        Raises:
            InvalidModelNameError: no model can have this name.
            ModelNotFoundError: there is no such file.
            ModelFileError: a part of it is no regular file.
        """
        from adapter.models.files import ModelFolder

        return ModelFolder(self.folder, {}).find(self.name)


def refer(text: str) -> Reference:
    """Read what a user wrote.

    Raises:
        InvalidModelNameError: no model can have this name.
        ModelNotFoundError: a path without a model.
    """
    from adapter.models.embedded_model import model_dir
    from adapter.models.hub.names import PREFIX, HubName
    from adapter.models.parts import plain_name
    from adapter.models.stores import is_stored_name

    if not text.strip():
        raise InvalidModelNameError(text, "is empty")
    path, own = local_path(text), model_dir()
    if path.suffix.casefold() == ".gguf":
        if not path.is_file() and (own / text).is_file():
            path = own / text
        if path.is_file():
            return Reference(path.absolute().parent, plain_name(path))
        if means_file(text):
            raise ModelNotFoundError(text, path)
    if is_stored_name(text) or text in own_names(own):
        return Reference(_nearest(own), text)
    if means_file(text):  # whose name does not end in .gguf
        is_folder = "is a folder, of which pyllama convert may make a model"
        raise InvalidModelNameError(text, is_folder if path.is_dir() else "is no .gguf file")
    if path.is_dir():
        reason = "it is a folder; give a .gguf file, or make one of it: pyllama convert"
        raise ModelNotFoundError(text, path, reason=reason)
    if path.exists():
        raise ModelNotFoundError(text, path, reason="it is a file, but no .gguf file")
    if "/" not in text:
        if own.is_dir():  # which knows names that are like it
            return Reference(own, text)
        raise ModelNotFoundError(text, own / f"{text}.gguf")
    try:
        return Reference(_nearest(own), str(HubName.parse(text)))
    except InvalidModelNameError:
        raise InvalidModelNameError(
            text, f"is neither a file nor {PREFIX}owner/repo of a hub"
        ) from None


def means_file(text: str) -> bool:
    """Whether a text stands for a file, even if there is none: no repository of a hub has such a
    name, or the file's folder is here.
    """
    if text.startswith((".", "/", "~")):
        return True
    if not text.casefold().endswith(".gguf"):
        return False
    in_folder = text.count("/") > 1 or Path(text).parent.is_dir()
    return "/" not in text or (":" not in text and in_folder)


def own_names(own: Path) -> list[str]:
    """The names of the models of pyllama's own folder, if there is one."""
    from adapter.models.files import ModelFolder

    return ModelFolder(own, {}).names() if own.is_dir() else []


def _nearest(folder: Path) -> Path:
    """A folder that is there, for a pool whose model is elsewhere. It may not be made here."""
    while not folder.is_dir():
        folder = folder.parent
    return folder
