"""Where the file of a host's slots is when the store is on another machine."""

from __future__ import annotations

import os
import re
from pathlib import Path

import pytest

from wsgi_admission.config import Config
from wsgi_admission.errors import StoreError
from wsgi_admission.sections import Admission, Route, StoreOptions
from wsgi_admission.slotfile import open_slots, slots_file
from wsgi_admission.slots import HostSlots


def configured(url: str, name: str = "main") -> Config:
    """Return a configuration with this store."""
    return Config(admission=Admission(name=name), store=StoreOptions(url=url), routes=(Route(name="x", path=("/x",)),))


REMOTE = "redis://me:s3cret@10.0.0.5/0"


def test_the_slots_of_a_store_elsewhere_are_in_a_private_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Catches: slots of each process, or a file that anybody on the machine may lock."""
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path / "run"))
    file = slots_file(configured(REMOTE, "a.b"))
    assert file.parent == tmp_path / "run" / "wsgi-admission"
    assert re.fullmatch(r"a\.b-[0-9a-f]{16}\.slots", file.name)
    assert isinstance(open_slots(configured(REMOTE, "a.b")), HostSlots)
    assert (file.parent.stat().st_mode & 0o777, file.stat().st_mode & 0o777) == (0o700, 0o600)
    monkeypatch.delenv("XDG_RUNTIME_DIR")
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "tmp"))
    assert slots_file(configured(REMOTE)).parent == tmp_path / "tmp" / f"wsgi-admission-{os.geteuid()}"


def test_each_line_and_store_has_slots_of_its_own_but_not_each_password(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Catches: lines that share slots, and twice the slots while a password is changed."""
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))
    files = [
        slots_file(configured(url, name))
        for url, name in ((REMOTE, "main"), (REMOTE, "other"), (REMOTE[:-1] + "1", "main"))
    ]
    assert len(set(files)) == 3
    assert slots_file(configured(REMOTE.replace("s3cret", "n3w"))) == files[0]


@pytest.mark.parametrize("wrong", ["open to others", "a link"])
def test_a_folder_that_is_not_private_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, wrong: str) -> None:
    """Catches: a folder that somebody else has prepared in /tmp."""
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))
    folder = tmp_path / "wsgi-admission"
    if wrong == "a link":
        (tmp_path / "elsewhere").mkdir(mode=0o700)
        folder.symlink_to(tmp_path / "elsewhere")
    else:
        folder.mkdir()
        folder.chmod(0o770)
    with pytest.raises(StoreError, match="must be this user's own"):
        open_slots(configured(REMOTE))
