"""Run the benchmarks by name, or all of them."""

from __future__ import annotations

import argparse
import os
import platform
import sqlite3
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from benchmarks import cycle, enqueue, latency, passing, position, running, waiting
from benchmarks.harness import Report
from wsgi_admission import __version__
from wsgi_admission.stores.opening import filesystem_type

BENCHMARKS: dict[str, tuple[Callable[..., Report], dict[str, int]]] = {
    "pass": (passing.run, passing.QUICK),
    "run": (running.run, running.QUICK),
    "enqueue": (enqueue.run, enqueue.QUICK),
    "cycle": (cycle.run, cycle.QUICK),
    "position": (position.run, position.QUICK),
    "latency": (latency.run, latency.QUICK),
    "waiting": (waiting.run, waiting.QUICK),
}


def facts() -> str:
    """Return what the figures depend on."""
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text().splitlines() if cpuinfo.exists() else []
    model = next((line.partition(": ")[2] for line in lines if line.startswith("model name")), platform.machine())
    folder = os.path.realpath(tempfile.gettempdir())
    system = filesystem_type(folder, Path("/proc/self/mountinfo").read_text()) or "unknown"
    python = f"{platform.python_implementation()} {platform.python_version()}"
    cpus = f"{len(os.sched_getaffinity(0))} of {os.cpu_count()} CPUs, {model}"
    load = f"load average {os.getloadavg()[0]:.1f}"
    return (
        f"wsgi_admission {__version__}, {python}, SQLite {sqlite3.sqlite_version}\n"
        f"{platform.system()} {platform.release()}, {cpus}, {load}\n"
        f"databases on {system} ({folder}; TMPDIR chooses another place)\n"
    )


def main() -> None:
    """Run what the command line asks for."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("name", nargs="*", help=f"what to measure: {', '.join(BENCHMARKS)} (all if none is named)")
    parser.add_argument("--quick", action="store_true", help="fewer repeats, in less than half a minute")
    options = parser.parse_args()
    unknown = [name for name in options.name if name not in BENCHMARKS]
    if unknown:
        parser.error(f"there is no benchmark {unknown[0]!r}; expected one of {', '.join(BENCHMARKS)}")
    print(facts())
    for name in options.name or BENCHMARKS:
        benchmark, quick = BENCHMARKS[name]
        start = time.perf_counter()
        print(benchmark(**(quick if options.quick else {})).text())
        print(f"  ({name}: {time.perf_counter() - start:.1f} s)\n", flush=True)


if __name__ == "__main__":
    main()
