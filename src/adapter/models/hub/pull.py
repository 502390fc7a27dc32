"""Downloads a model from a hub into the cache."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from adapter.errors import ModelDownloadError, ModelNotFoundError
from adapter.models.disk_space import too_little_room
from adapter.models.hub.cache import CachedRepository
from adapter.models.hub.choice import Candidate, UnclearError, choose
from adapter.models.hub.completeness import problem_of
from adapter.models.hub.listing import HubFile, Listing, list_repository
from adapter.models.hub.names import HubName
from adapter.models.hub.transfer import Progress, adding_up, fetch, missing_bytes
from adapter.wording import file_size, reason_of


@dataclass(frozen=True)
class PulledModel:
    """A complete model in the cache.

    Attributes:
        name: what load_model() takes.
        paths: its file, or its parts in order.
        mmproj: the file for images or sound that belongs to it, if there is one.
        size: bytes of all of them.
    """

    name: str
    paths: tuple[Path, ...]
    mmproj: Path | None
    size: int


class Unclear(ModelDownloadError):
    """No model or several fit a name. `models` are those of the repository."""

    def __init__(self, name: HubName, reason: str, models: Sequence[Candidate]) -> None:
        self.models = tuple(models)
        super().__init__(str(name), reason, [clear_name(name.repo, one, models) for one in models])


def clear_name(repo: str, model: Candidate, models: Sequence[Candidate]) -> str:
    """The shortest name that stands for one of the models only."""
    alike = [one for one in models if one.quantization == model.quantization]
    quantization = model.quantization if len(alike) == 1 else None
    return str(HubName(repo, quantization or model.files[0]))


def pull(
    name: HubName,
    *,
    listed: Callable[[Listing, Candidate], None] | None = None,
    report: Progress | None = None,
) -> PulledModel:
    """Download a model with its other parts, mmproj and chat template, as far as they are missing.

    Every file is checked against its digest. The model appears when all of it is there. If this is
    interrupted, what has arrived stays, and the next call continues. In offline mode, the cache's
    files are used.

    Args:
        listed: called with what the hub has, and what will be downloaded.
        report: see Progress.

    Raises:
        ModelDownloadError: the message says what to do.
    """
    try:
        listing = list_repository(name)
    except ModelDownloadError as error:
        kept = _kept(name) if _is_offline(error) else None
        if kept is None:
            raise
        return kept
    try:
        model = choose(listing.files, name.tag)
    except UnclearError as error:
        hint = "" if error.choices else _conversion_hint(listing)
        raise Unclear(name, f"{name.repo}: {error}{hint}", error.choices) from error
    if listed is not None:
        listed(listing, model)
    # The first part comes last: if it is there, all are.
    paths = [*model.extras, *reversed(model.files)]
    made = _fetch_all(name, listing, paths, report)
    for path in (*model.files, *([model.mmproj] if model.mmproj else [])):
        _require_complete(name, path, made[path])
    return PulledModel(
        name=str(name),
        paths=tuple(made[path] for path in model.files),
        mmproj=made[model.mmproj] if model.mmproj else None,
        size=sum(listing.files[path].size for path in paths),
    )


def _conversion_hint(listing: Listing) -> str:
    """What makes a GGUF model of a repository that has another format."""
    if not any(path.endswith(".safetensors") for path in listing.files):
        return ""
    return (
        f"; it holds safetensors, of which a GGUF file is made by: pyllama convert {listing.repo}"
    )


def _is_offline(error: ModelDownloadError) -> bool:
    from huggingface_hub.errors import OfflineModeIsEnabled

    return isinstance(error.__cause__, OfflineModeIsEnabled)


def _kept(name: HubName) -> PulledModel | None:
    """The model as the cache has it; None if it is not there."""
    found = _found(name, CachedRepository(name.repo))
    if found is None:
        return None
    tree, model = found
    paths = tuple(tree / path for path in model.files)
    mmproj = tree / model.mmproj if model.mmproj else None
    size = sum((tree / path).stat().st_size for path in (*model.files, *model.extras))
    return PulledModel(str(name), paths, mmproj, size)


def _require_complete(name: HubName, path: str, made: Path) -> None:
    """Refuse a file that was cut before it came to the hub."""
    problem = problem_of(made, path)
    if problem is not None:
        raise ModelDownloadError(
            str(name),
            f"{problem}. The hub has it so: tell its owner, or take another file. To delete what "
            f"was downloaded: pyllama rm {name}",
        )


def pull_files(
    name: HubName,
    wanted: Callable[[Listing], list[str]],
    *,
    report: Progress | None = None,
) -> Path:
    """Download files of a repository, and return the folder that holds them.

    In offline mode, this is the folder that the cache has.

    Args:
        wanted: picks the paths from those that the hub has.

    Raises:
        ModelDownloadError: the message says what to do.
    """
    cached = CachedRepository(name.repo)
    try:
        listing = list_repository(name)
    except ModelDownloadError as error:
        trees = cached.snapshots() if _is_offline(error) else []
        if not trees:
            raise
        return trees[0]
    paths = wanted(listing)
    if not paths:
        raise ModelDownloadError(str(name), f"{name.repo} holds nothing of what is looked for")
    _fetch_all(name, listing, paths, report)
    return cached.path(listing.commit, "")


def _fetch_all(
    name: HubName,
    listing: Listing,
    paths: Sequence[str],
    report: Progress | None,
) -> dict[str, Path]:
    """Get files into the cache, check them, and put them into the tree in that order."""
    files = [listing.files[path] for path in paths]
    cached = CachedRepository(name.repo)
    _require_room(name, cached, files)
    arrived = adding_up(sum(file.size for file in files), report)
    for file in files:
        fetch(name, listing, cached, file, arrived)
    try:
        made = {file.path: cached.link(listing.commit, file.path, file.digest) for file in files}
        cached.set_main(listing.commit)
    except OSError as error:
        raise ModelDownloadError(
            str(name), f"the cache cannot be written: {reason_of(error)}"
        ) from error
    return made


def cached_path(name: str) -> Path:
    """The file of a hub's model in the cache; the first part of a split one.

    Raises:
        InvalidModelNameError: the name has another form.
        ModelNotFoundError: the cache does not have it.
    """
    hub_name = HubName.parse(name)
    cached = CachedRepository(hub_name.repo)
    found = _located(hub_name, cached)
    if found is None:
        reason = f"it is not in {cached.folder}; download it with: pyllama pull {name}"
        raise ModelNotFoundError(name, cached.folder, reason=reason)
    return found


def load_path(name: HubName) -> Path:
    """The same, downloaded if it is missing, with huggingface_hub's bar.

    The hub is not contacted if the cache has it.

    Raises:
        ModelDownloadError: the message says what to do.
    """
    found = _located(name, CachedRepository(name.repo))
    if found is not None:
        return found
    from huggingface_hub.utils import tqdm  # type: ignore[attr-defined]

    with tqdm(desc=str(name), unit="B", unit_scale=True) as bar:  # type: ignore[no-untyped-call]

        def report(done: int, total: int) -> None:
            bar.total = total
            bar.update(done - bar.n)

        return pull(name, report=report).paths[0]


def _located(name: HubName, cached: CachedRepository) -> Path | None:
    found = _found(name, cached)
    return None if found is None else found[0] / found[1].files[0]


def _found(name: HubName, cached: CachedRepository) -> tuple[Path, Candidate] | None:
    try:
        return cached.find(name.tag)
    except UnclearError as error:
        raise Unclear(name, f"the cache: {error}", error.choices) from error
    except OSError as error:
        raise ModelDownloadError(
            str(name), f"the cache cannot be read: {reason_of(error)}"
        ) from error


def _require_room(name: HubName, cached: CachedRepository, files: Sequence[HubFile]) -> None:
    folder = cached.folder
    while not folder.exists() and folder != folder.parent:
        folder = folder.parent
    try:
        needed = sum(missing_bytes(cached, file) for file in files)
        free = too_little_room(folder, needed)
    except OSError as error:
        raise ModelDownloadError(
            str(name), f"the cache cannot be read: {reason_of(error)}"
        ) from error
    if needed and free is not None:
        raise ModelDownloadError(
            str(name),
            f"{file_size(needed)} are still to come, but {cached.folder} has {free}: "
            "make room, or set HF_HOME to a folder on another disk",
        )
