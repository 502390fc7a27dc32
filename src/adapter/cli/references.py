"""What a user may write for a model: a name, a path, or a name on a hub."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from adapter.errors import InvalidModelNameError, ModelNotFoundError

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
    path, own = Path(text).expanduser(), model_dir()
    if path.suffix.casefold() == ".gguf":
        if not path.is_file() and (own / text).is_file():
            path = own / text
        if path.is_file():
            return Reference(path.absolute().parent, plain_name(path))
        if _is_path(text) or "/" not in text or (":" not in text and path.parent.is_dir()):
            raise ModelNotFoundError(text, path)
    if is_stored_name(text) or text in _names(own):
        return Reference(_nearest(own), text)
    if path.is_dir():
        reason = "it is a folder; give a .gguf file, or make one of it: pyllama convert"
        raise ModelNotFoundError(text, path, reason=reason)
    if path.exists():
        raise ModelNotFoundError(text, path, reason="it is a file, but no .gguf file")
    if _is_path(text):
        raise ModelNotFoundError(text, path)
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


def _is_path(text: str) -> bool:
    return text.startswith((".", "/", "~"))


def _names(own: Path) -> list[str]:
    from adapter.models.files import ModelFolder

    return ModelFolder(own, {}).names() if own.is_dir() else []


def _nearest(folder: Path) -> Path:
    """A folder that is there, for a pool whose model is elsewhere. It may not be made here."""
    while not folder.is_dir():
        folder = folder.parent
    return folder


def completed(prefix: str) -> list[str]:
    """The names that a shell can complete a word to. No file is opened."""
    from adapter.models.embedded_model import model_dir
    from adapter.models.stores import stored_models

    names = [*_names(model_dir()), *(model.name for model in stored_models())]
    return [name for name in names if name.startswith(prefix)]
