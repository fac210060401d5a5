"""What this host tells of itself."""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path

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
