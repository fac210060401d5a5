"""``latency``: how soon a client has its 202, and how soon after it the request runs, under real gunicorn.

Two servers stand side by side: one with the line (every request is queued; slots are free), one without.  Both have
two web workers, and the line one process more that replays.  The app answers with the time at which it ran.
"""

from __future__ import annotations

import io
import random
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, ExitStack, contextmanager, redirect_stdout
from pathlib import Path
from tempfile import TemporaryDirectory

from benchmarks.harness import Report, ms, percentile, times, verdict
from benchmarks.site import BODY
from tests.support import Reply, Server, free_port, gunicorn, ini, server, until

QUICK = {"requests": 40, "rounds": 4}
CLIENTS = 50
APP = "benchmarks.site:app"
#: Seconds: from the 202 to the start, the slowest; and the 202 itself, its median.
STARTED, ACCEPTED = 0.1, 0.1
CONFIG = """
[admission]
mode = queue_all
[route:job]
path = /job
expected_time = 1s
"""


def run(*, requests: int = 100, rounds: int = 20, clients: int = CLIENTS) -> Report:
    """Start the servers; send ``requests`` one by one, then ``rounds`` of one from each of ``clients`` at once."""
    with ExitStack() as stack:
        stack.enter_context(_silence_unless_failing())
        queued, direct = (Path(stack.enter_context(TemporaryDirectory())) for _ in range(2))
        line = stack.enter_context(gunicorn(queued, ini(queued, CONFIG), app=APP))
        bare = stack.enter_context(_without_the_line(direct))
        waits = _starts(line, requests)
        sides: dict[str, list[float]] = {"bare": [], "line": []}
        for _ in range(rounds):
            for side, site, status in (("bare", bare, 200), ("line", line, 202)):
                sides[side] += _crowd(site, status, clients)
    slowest, middle = max(waits), {side: percentile(seconds, 50) for side, seconds in sides.items()}
    crowd = f"{clients} clients at once"
    return Report(
        "latency: under gunicorn, 2 web workers of 8 threads and 1 process that replays; slots are free",
        f"{requests} requests one by one, at odd moments: from the arrival of the 202 to the start of the run, by the"
        f" machine's clock. Then {rounds} rounds of {clients} clients that send at once, each on a connection of its"
        " own, in turns with the same app without the line, which runs it.",
        ("", "p50", "p99", "max", "ratio of p50", "at most", "target"),
        [
            ("202 -> started", *_cells(waits), "", f"max {ms(STARTED)}", verdict(met=slowest <= STARTED)),
            (f"200 without the line, {crowd}", *_cells(sides["bare"]), "", "", ""),
            (
                f"202, {crowd}",
                *_cells(sides["line"]),
                times(middle["line"] / middle["bare"]),
                f"p50 {ms(ACCEPTED)}",
                verdict(met=middle["line"] <= ACCEPTED),
            ),
        ],
    )


@contextmanager
def _silence_unless_failing() -> Iterator[None]:
    """Show what the servers said only when something failed."""
    said = io.StringIO()
    try:
        with redirect_stdout(said):
            yield
    except BaseException:
        print(said.getvalue())
        raise


def _without_the_line(folder: Path) -> AbstractContextManager[Server]:
    """Start gunicorn with the same settings as `gunicorn` does, and without the line."""
    conf, port = folder / "gunicorn.conf.py", free_port()
    workers = "worker_class = 'gthread'\nworkers = 2\nthreads = 8\ncontrol_socket_disable = True\n"
    conf.write_text(f"bind = '127.0.0.1:{port}'\n{workers}")
    command = [sys.executable, "-m", "gunicorn", "-c", str(conf), APP]
    return server(folder, command, f"http://127.0.0.1:{port}")


def _starts(site: Server, requests: int) -> list[float]:
    """Return the seconds from each 202 to the start of its run; 0 for one that had begun before the 202 was read."""
    accepted: list[tuple[float, Reply]] = []
    for _ in range(requests):
        reply = site.ask("/job", "POST", BODY)
        accepted.append((time.time(), reply))
        assert reply.status == 202, reply
        time.sleep(random.uniform(0.02, 0.08))  # noqa: S311 - at odd moments of what the server does at intervals
    return [max(0.0, _ran_at(site, reply) - answered) for answered, reply in accepted]


def _ran_at(site: Server, accepted: Reply) -> float:
    result = accepted.json()["result_url"]

    def answer() -> bytes:
        reply = site.ask(result)
        return reply.body if reply.status == 200 else b""

    return float(until(answer, "the run"))


def _crowd(site: Server, status: int, clients: int) -> list[float]:
    """Return the seconds that each of so many clients waits for an answer when all send at once."""
    together = threading.Barrier(clients)

    def send(_client: int) -> float:
        together.wait()
        start = time.perf_counter()
        reply = site.ask("/job", "POST", BODY)
        seconds = time.perf_counter() - start
        assert reply.status == status, reply
        return seconds

    with ThreadPoolExecutor(clients) as pool:
        return list(pool.map(send, range(clients)))


def _cells(seconds: list[float]) -> tuple[str, str, str]:
    return ms(percentile(seconds, 50)), ms(percentile(seconds, 99)), ms(max(seconds))
