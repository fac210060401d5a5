"""What the reliability tests share."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

_MEMORY = Path("/dev/shm")  # noqa: S108 - a file system in memory, where the system has one


@pytest.fixture(scope="module")
def quick_folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A folder in memory where there is one: for what a kill leaves behind that is the same as on a disk."""
    if not os.access(_MEMORY, os.W_OK):
        yield tmp_path_factory.mktemp("quick")
        return
    with tempfile.TemporaryDirectory(dir=_MEMORY, prefix="wsgi-admission-") as folder:
        yield Path(folder)


@pytest.fixture
def quick_path(quick_folder: Path) -> Path:
    """A folder in memory of the test's own."""
    return Path(tempfile.mkdtemp(dir=quick_folder))
