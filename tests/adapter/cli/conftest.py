from __future__ import annotations

from collections.abc import Callable

import pytest
from typer.testing import CliRunner, Result

from adapter.cli.app import app


@pytest.fixture
def run() -> Callable[..., Result]:
    """Run a command of pyllama's in this process; `input` is what it reads."""
    runner = CliRunner()
    return lambda *arguments, **options: runner.invoke(app, list(map(str, arguments)), **options)
