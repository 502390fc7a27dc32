"""The model files of a folder: their names, their parts, and their headers."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping
from difflib import get_close_matches
from pathlib import Path, PurePosixPath, PureWindowsPath

from adapter.errors import InvalidModelNameError, ModelFileError, ModelNotFoundError
from adapter.models.hub.names import PREFIX, HubName
from adapter.models.hub.pull import load_path
from adapter.models.info import ModelInfo, read_info
from adapter.models.parts import PART, parts
from adapter.models.stores import is_stored_name, stored_path
from adapter.wording import reason_of

_SUFFIX = re.compile(r"\.gguf\Z", re.IGNORECASE)

# Names that Windows takes for a device, whatever follows the first dot.
_WINDOWS_DEVICE = re.compile(
    r"(?:CON|PRN|AUX|NUL|CONIN\$|CONOUT\$|(?:COM|LPT)[0-9\u00b9\u00b2\u00b3]) *(?:\..*)?",
    re.IGNORECASE | re.DOTALL,
)


class ModelFolder:
    """Finds models by name in one folder.

    The model ``name`` is the file ``name.gguf``, or the split files ``name-00001-of-00003.gguf``
    and so on. A name may have its .gguf, and another case if only one file matches. Names are
    plain, without folders, so a name cannot lead outside. An alias stands for another name, or for
    a path below the folder that ends in .gguf. An alias takes precedence over a file of that name.
    Symbolic links are followed wherever they lead: whoever may put links into the folder decides
    what it contains.

    ``hf:owner/repo:Q4_K_M`` is a model of a hub, in huggingface_hub's cache.
    ``lmstudio:owner/repo/file`` and ``ollama:model:tag`` are models of those programs.

    Raises:
        NotADirectoryError: there is no such folder.
        InvalidModelNameError: an alias is no plain name, or leads outside.
    """

    def __init__(self, path: Path, aliases: Mapping[str, str]) -> None:
        if not path.is_dir():
            raise NotADirectoryError(f"model_dir must be a folder of GGUF files, got {path}")
        self.path = path
        for alias, target in aliases.items():
            _require_plain(alias)
            if isinstance(target, str) and target.endswith(".gguf"):
                _require_inside(target)
            else:
                _require_plain(target)
        self._aliases = dict(aliases)
        self._headers: dict[Path, tuple[object, ModelInfo]] = {}

    def find(self, name: str) -> Path:
        """The file of a model; the first part of a split one. Nothing is downloaded.

        Raises:
            InvalidModelNameError: the name is not plain.
            ModelNotFoundError: there is no such file.
            ModelFileError: a part of it is no regular file.
        """
        if is_stored_name(name) and not self._has_file(name):
            return stored_path(name)
        _require_plain(name)
        target = self._aliases.get(name, name)
        if name in self._aliases and target.endswith(".gguf"):
            path = self.path / target
        else:
            path = self.path / f"{target}.gguf"
            if not path.is_file():
                path = self._meant(target) or path
        if not path.is_file():
            known = {one.casefold(): one for one in [*self._files(), *self._aliases]}
            near = get_close_matches(_SUFFIX.sub("", target).casefold(), known, cutoff=0.5)
            raise ModelNotFoundError(name, path, [known[one] for one in near])
        for part in parts(path):
            if part.exists() and not part.is_file():  # reading a pipe would block for ever
                raise ModelFileError(name, part, "it is no regular file")
        return path

    def fetch(self, name: str) -> Path:
        """Like ``find``, but download a hub's model that is not in the cache.

        Raises:
            ModelDownloadError: it could not be downloaded. Otherwise as ``find``.
        """
        if is_stored_name(name) and name.startswith(PREFIX):
            return load_path(HubName.parse(name))
        return self.find(name)

    def _has_file(self, name: str) -> bool:
        """Whether a plain name that looks like another program's belongs to this folder."""
        return _misnamed(name) is None and (self.path / f"{name}.gguf").is_file()

    def _meant(self, name: str) -> Path | None:
        """The file of a split model, or of a name that is written with .gguf or in another case.

        None if there is no such file, or if several differ only in their case.
        """
        files = self._files()
        if name in files:
            return files[name]
        plain = _SUFFIX.sub("", name).casefold()
        alike = [path for known, path in files.items() if known.casefold() == plain]
        return alike[0] if len(alike) == 1 else None

    def models(self) -> Iterator[ModelInfo]:
        """The models in the folder, and those that aliases find below it, ordered by name."""
        files = self._files()
        names = {path: name for name, path in files.items()}
        aliases: dict[Path, list[str]] = {}
        for alias in sorted(self._aliases):
            try:
                path = self.find(alias)
            except ModelNotFoundError:
                continue
            if names.setdefault(path, alias) != alias:
                aliases.setdefault(path, []).append(alias)
        for path, name in sorted(names.items(), key=lambda item: item[1]):
            yield self._info(name, path, tuple(aliases.get(path, ())))

    def names(self) -> list[str]:
        """The names of the folder's own models, in order. No file is opened."""
        return sorted(self._files())

    def _files(self) -> dict[str, Path]:
        """Every model of the folder itself, by its name."""
        files = {}
        found = (path for path in self.path.iterdir() if _SUFFIX.search(path.name))
        for path in sorted(filter(Path.is_file, found)):
            part = PART.fullmatch(path.stem)
            if part is None:
                files[path.stem] = path
            elif int(part["index"]) == 1:
                files.setdefault(part["name"], path)
        return {name: path for name, path in files.items() if _misnamed(name) is None}

    def _info(self, name: str, path: Path, aliases: tuple[str, ...]) -> ModelInfo:
        """The facts of one model. They are read again only if its files have changed."""
        paths = parts(path)
        try:
            stats = [part.stat() for part in paths]
        except OSError as error:
            what = "it" if len(paths) == 1 else f"one of its {len(paths)} files"
            problem = f"{what} cannot be read: {reason_of(error)}"
            return ModelInfo(name, paths, 0, problem=problem, aliases=aliases)
        stamp = (name, aliases, [(stat.st_size, stat.st_mtime_ns) for stat in stats])
        known = self._headers.get(path)
        if known is None or known[0] != stamp:
            size = sum(stat.st_size for stat in stats)
            known = stamp, read_info(name, paths, size, aliases)
            self._headers[path] = known
        return known[1]


def _misnamed(name: object, *, on_windows: bool = os.name == "nt") -> str | None:
    """What is wrong with a name; None for a plain one."""
    if not isinstance(name, str):
        return "is no string"
    if not name.strip():
        return "is empty"
    if any(character in name for character in "/\\\0") or name.startswith("."):
        return "is not a plain file name"
    if on_windows and _is_special_on_windows(f"{name}.gguf"):
        return "means something else than a file of that name on Windows"
    return None


def _is_special_on_windows(part: str) -> bool:
    """Whether Windows takes a part of a path for a device, a drive, a stream or another name.

    ``C:x`` is in the current folder of another drive, ``a:b`` is a stream of the file ``a``,
    ``NUL.gguf`` is a device, and ``a. `` is the file ``a``.
    """
    return (
        any(character in '<>:"|?*' or character < " " for character in part)
        or part != part.rstrip(". ")
        or _WINDOWS_DEVICE.fullmatch(part) is not None
    )


def _require_plain(name: str) -> None:
    reason = _misnamed(name)
    if reason is not None:
        raise InvalidModelNameError(name, reason)


def _require_inside(target: str, *, on_windows: bool = os.name == "nt") -> None:
    path = PurePosixPath(target)
    leaves = path.is_absolute() or ".." in path.parts or PureWindowsPath(target).drive
    special = on_windows and any(map(_is_special_on_windows, path.parts))
    if leaves or special or "\\" in target or "\0" in target:
        raise InvalidModelNameError(target, "is no path below the model folder, written with /")
