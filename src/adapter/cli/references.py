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
            ModelLoadError: a part of it is no regular file.
        """
        from adapter.models.files import ModelFolder

        return ModelFolder(self.folder, {}).find(self.name)


def refer(text: str) -> Reference:
    """Read what a user wrote.

    Raises:
        InvalidModelNameError: no model can have this name.
        ModelNotFoundError: a path without a file.
    """
    from adapter.models.embedded_model import model_dir
    from adapter.models.hub.names import PREFIX, HubName
    from adapter.models.parts import plain_name
    from adapter.models.stores import is_stored_name

    path, own = Path(text).expanduser(), model_dir()
    is_gguf = path.suffix.casefold() == ".gguf"
    if is_gguf and (path.is_file() or text.startswith((".", "/", "~"))):
        if not path.is_file():
            raise ModelNotFoundError(text, path)
        return Reference(path.absolute().parent, plain_name(path))
    own.mkdir(parents=True, exist_ok=True)
    if is_stored_name(text) or "/" not in text:
        return Reference(own, text)
    try:
        return Reference(own, str(HubName.parse(text)))
    except InvalidModelNameError:
        if path.exists():
            raise InvalidModelNameError(text, "is a path, but of no .gguf file") from None
        raise InvalidModelNameError(
            text, f"is neither a file nor {PREFIX}owner/repo of a hub"
        ) from None


def completed(begun: str) -> list[str]:
    """The names that a shell can complete a word to. No file is opened."""
    from adapter.models.embedded_model import model_dir
    from adapter.models.files import ModelFolder
    from adapter.models.stores import stored_models

    own = model_dir()
    mine = ModelFolder(own, {}).names() if own.is_dir() else []
    names = [*mine, *(model.name for model in stored_models())]
    return [name for name in names if name.startswith(begun)]
