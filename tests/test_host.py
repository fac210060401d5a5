"""What this host tells of itself."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import psutil
import pytest

from wsgi_admission import host


def test_the_clock_is_that_of_all_processes_and_not_that_of_the_day() -> None:
    """Catches: a clock that begins with the process, or that is set with the time of day."""
    script = "from wsgi_admission import host; print(host.clock())"
    before = host.clock()
    other = float(subprocess.run([sys.executable, "-c", script], capture_output=True, check=True, timeout=30).stdout)
    assert before < other < host.clock()
    assert abs(float(Path("/proc/uptime").read_text().split()[0]) - host.clock()) < 1
    assert abs(host.clock() - time.time()) > 1e6


def test_the_boot_is_the_same_for_all_processes() -> None:
    """Catches: an id that differs for each reader, so that every lease seems to be of another boot."""
    assert len(host.boot_id()) == 36
    assert host.boot_id() == host.boot_id()


def test_the_name_is_that_of_the_boot_for_all_processes() -> None:
    """Catches: workers of another boot, or of another process of this one, taken for those of another machine."""
    script = "from wsgi_admission import host; print(host.name())"
    other = subprocess.run([sys.executable, "-c", script], capture_output=True, check=True, timeout=30, text=True)
    assert other.stdout.strip() == host.name()
    assert host.boot_id() in host.name()


def test_a_living_process_was_born_when_psutil_says_so() -> None:
    """Catches: another field of the kernel's line, or ticks that are taken for seconds."""
    with subprocess.Popen(["cat"], stdin=subprocess.PIPE) as child:
        born = host.born(child.pid)
        assert born is not None
        assert abs(psutil.boot_time() + born - psutil.Process(child.pid).create_time()) < 1.1
        own = host.born(os.getpid())
        assert own is not None
        assert own <= born <= host.clock() + 0.02


def test_a_name_with_blanks_and_parentheses_shifts_nothing(tmp_path: Path) -> None:
    """Catches: a line that is cut at its blanks."""
    odd = tmp_path / "a) Z 1 (b"
    odd.symlink_to("/bin/cat")
    with subprocess.Popen([odd], stdin=subprocess.PIPE) as child:
        own, born = host.born(os.getpid()), host.born(child.pid)
        assert own is not None
        assert born is not None
        assert own <= born <= host.clock() + 0.02


def test_the_dead_are_dead_even_before_their_parent_takes_note() -> None:
    """Catches: a killed process that counts as alive as long as nobody waits for it."""
    child = subprocess.Popen(["cat"], stdin=subprocess.PIPE)
    assert host.born(child.pid) is not None
    child.kill()
    os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)
    assert host.born(child.pid) is None
    child.communicate()
    assert host.born(child.pid) is None


def test_a_process_that_cannot_be_looked_at_is_not_dead(monkeypatch: pytest.MonkeyPatch) -> None:
    """Catches: everybody declared dead when this process has no file descriptor left."""

    def none_left(*_args: Any, **_keys: Any) -> str:
        raise OSError(errno.EMFILE, "Too many open files")

    monkeypatch.setattr(Path, "read_text", none_left)
    with pytest.raises(OSError, match="Too many"):
        host.born(os.getpid())


@pytest.mark.parametrize("code", [errno.ENOENT, errno.EACCES, errno.EPERM])
def test_a_system_that_keeps_its_boot_to_itself_has_none(monkeypatch: pytest.MonkeyPatch, code: int) -> None:
    """Catches: no line where there is no /proc, or a profile of the kernel's closes it."""

    def kept(*_args: Any, **_keys: Any) -> str:
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(Path, "read_text", kept)
    assert host.boot_id() == ""


@pytest.mark.parametrize("code", [errno.EMFILE, errno.ENFILE, errno.ENOMEM])
def test_a_boot_that_cannot_be_read_just_now_is_not_none(monkeypatch: pytest.MonkeyPatch, code: int) -> None:
    """Catches: a process that had no descriptor left for a moment, and takes all leases for those of another boot."""

    def none_left(*_args: Any, **_keys: Any) -> str:
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(Path, "read_text", none_left)
    for read in (host.boot_id, host.name):
        with pytest.raises(OSError, match=os.strerror(code)):
            read()
