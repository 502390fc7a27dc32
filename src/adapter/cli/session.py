"""Finds, downloads and loads the model of a command, and frees it at the end."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from adapter.cli.console import fail, progress_bar
from adapter.cli.references import Reference, refer

if TYPE_CHECKING:
    import pyllama
    from adapter.models.loaded import LoadedModel
    from adapter.models.pool import ModelPool


def found(model: str | None) -> Reference:
    """The model that a user named, downloaded if it is a hub's; the demo's model if none was named.

    Raises:
        ModelDownloadError: it could not be downloaded. Otherwise as refer().
        EmbeddedModelError: the demo's model could not be downloaded.
    """
    from adapter.cli.pull import pull_missing
    from adapter.models import embedded_model

    if model is None:
        path = embedded_model.fetch()
        return Reference(path.parent, path.stem)
    reference = refer(model)
    pull_missing(reference.name)
    return reference


def require_generator(name: str, model: pyllama.Model) -> None:
    """End the command if a model does not predict the next token from those before it."""
    architecture = model.metadata.get("general.architecture")
    if model.metadata.get(f"{architecture}.attention.causal") == "false":
        fail(f"{name} is an embedding model ({architecture}): pyllama embed gives its vectors")
    if model.has_encoder:
        fail(f"{name} ({architecture}) encodes a text before it answers: that is not supported")


@contextmanager
def loaded_model(
    model: str | None, *, context_length: int | None = None, n_gpu_layers: int | None = None
) -> Iterator[LoadedModel]:
    """Load a model for the block, with a bar."""
    from adapter.models.pool import ModelPool

    reference = found(model)
    with progress_bar(f"Loading {reference.name}") as report:
        pool: ModelPool = ModelPool(
            reference.folder,
            context_length=context_length,
            n_gpu_layers=n_gpu_layers,
            progress=lambda _name, done: report(done),
        )
        loaded = pool.load_model(reference.name)
    with pool:
        yield loaded
