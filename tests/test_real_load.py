"""Real load: what turns passing into queueing, and back."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.support import Server, gunicorn, ini, until

pytestmark = pytest.mark.alone

CONFIG = """
[admission]
max_concurrent = 4
[load]
cpu_threshold = 80%
resume = 70%
[route:echo]
path = /echo
methods = GET
"""
#: Ends by itself when its parent is gone, so that a killed test leaves no burner behind.
BURNER = "import os\nparent = os.getppid()\nwhile os.getppid() == parent:\n    for _ in range(100000):\n        pass\n"


def queues(site: Server) -> bool:
    """Return whether a newcomer is queued now."""
    return site.ask("/echo").status == 202


def watch(site: Server, seconds: float) -> list[bool]:
    """Return whether newcomers were queued, looked at about ten times a second."""
    seen, end = [], time.monotonic() + seconds
    while time.monotonic() < end:
        seen.append(queues(site))
        time.sleep(0.1)  # paces the visitors: a real load takes real time
    return seen


def test_a_cpu_burner_turns_passing_into_queueing_and_its_end_turns_it_back(tmp_path: Path) -> None:
    """Catches: a load that is not measured, a line that never opens again, a decision that flaps."""
    with gunicorn(tmp_path, ini(tmp_path, CONFIG)) as site:
        until(lambda: not any(watch(site, 2.0)), "an idle machine", patience=60)
        burners = [subprocess.Popen([sys.executable, "-c", BURNER]) for _ in range(os.cpu_count() or 1)]
        try:
            # Each worker measures for itself, a moment apart from the other.
            until(lambda: all(watch(site, 1.0)), "queueing")
            loaded = watch(site, 3.0)
            status = site.ask("/api/queue/health").json()
        finally:
            for burner in burners:
                burner.kill()
                burner.wait()
        assert all(loaded), loaded
        assert status["server_load"] >= 0.8
        assert status["checks"]["load"]["readings"]["cpu"] >= 0.8
        until(lambda: not any(watch(site, 1.0)), "passing")
        assert not any(watch(site, 3.0))
        until(lambda: site.ask("/api/queue/metrics").json()["queued_requests"] == 0, "an empty line")
