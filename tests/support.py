"""Real servers for the tests, and what asks them."""

from __future__ import annotations

import http.client
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from tests import described

ROOT = Path(__file__).parent.parent
#: Seconds after which something that a test waits for counts as not happening.
PATIENCE = 30.0


@dataclass
class Reply:
    """An answer as it came over the wire."""

    status: int
    reason: str
    headers: list[tuple[str, str]]
    body: bytes

    def json(self) -> Any:
        """Return the body as JSON."""
        return json.loads(self.body)

    def header(self, name: str) -> str | None:
        """Return the first header of this name."""
        return next((value for key, value in self.headers if key.lower() == name.lower()), None)


def ask(url: str, method: str = "GET", body: bytes | None = None, headers: Mapping[str, str] | None = None) -> Reply:
    """Send one request on a connection of its own and return the answer."""
    parts = urlsplit(url)
    assert parts.hostname in {"127.0.0.1", "localhost"}, url
    connection = http.client.HTTPConnection(parts.hostname, parts.port, timeout=PATIENCE)
    try:
        target = parts.path + (f"?{parts.query}" if parts.query else "")
        connection.request(method, target, body=body, headers=dict(headers or {}))
        response = connection.getresponse()
        reply = Reply(response.status, response.reason, response.getheaders(), response.read())
    finally:
        connection.close()
    described.check(target, method, reply.status, reply.headers, reply.body)
    return reply


def until(condition: Callable[[], Any], what: object = "it", patience: float = PATIENCE) -> Any:
    """Return the first true result of ``condition``; fail when there is none in time."""
    deadline = time.monotonic() + patience
    while True:
        result = condition()
        if result:
            return result
        assert time.monotonic() < deadline, f"{what} did not happen within {patience} s: {result!r}"
        time.sleep(0.02)  # waits for another process


def ini(path: Path, text: str) -> Path:
    """Write an INI file into the folder ``path``, with a SQLite store in it unless the text names one."""
    file = path / "admission.ini"
    store = "" if "[store]" in text else f"[store]\nurl = sqlite:///{path}/admission.db\n"
    file.write_text(f"{text}\n{store}")
    return file


@dataclass
class Server:
    """A server in a process of its own."""

    process: subprocess.Popen[bytes]
    url: str
    output: Path
    gate: Path
    log: Path

    def ask(self, path: str, method: str = "GET", body: bytes | None = None, **headers: str) -> Reply:
        """Ask this server; ``User_Tier="donor"`` becomes the header ``User-Tier``."""
        return ask(self.url + path, method, body, {name.replace("_", "-"): value for name, value in headers.items()})

    def final(self, accepted: Reply) -> dict[str, Any]:
        """Wait until the ticket of a 202 is final and return its status."""
        assert accepted.status == 202, accepted

        state: dict[str, Any] = {}

        def final() -> bool:
            state.update(self.ask(accepted.json()["status_url"]).json())
            return state["status"] in {"completed", "failed", "cancelled"}

        until(final, state)
        return state

    def starts(self) -> list[str]:
        """Return what `/gated` noted, in order."""
        return self.log.read_text().splitlines() if self.log.exists() else []

    def open_gate(self) -> None:
        """Let every `/gated` request end."""
        self.gate.touch()

    def text(self) -> str:
        """Return what the server printed."""
        return self.output.read_text(errors="replace")


@contextmanager
def server(folder: Path, command: list[str], url: str, **environment: str) -> Iterator[Server]:
    """Start a server, wait until it answers, and end it (it alone, by its pid) with its children."""
    output = folder / "server.log"
    gate, log = folder / "gate", folder / "runs.log"
    environ = {
        **os.environ,
        "PYTHONPATH": str(ROOT),
        "PYTHONUNBUFFERED": "1",
        "ADMISSION_TEST_GATE": str(gate),
        "ADMISSION_TEST_LOG": str(log),
        **environment,
    }
    with output.open("wb") as stream:
        process = subprocess.Popen(command, cwd=folder, env=environ, stdout=stream, stderr=subprocess.STDOUT)
    running = Server(process, url, output, gate, log)
    try:
        until(lambda: process.poll() is not None or _answers(url), "the server's first answer")
        assert process.poll() is None, running.text()
        yield running
    finally:
        gate.touch()  # nothing waits for it any more
        try:
            stop(process)
        finally:
            print(running.text())  # noqa: T201 - pytest shows it beside a failure


def stop(process: subprocess.Popen[bytes], patience: float = PATIENCE) -> int:
    """Ask a process to end; kill it when it does not."""
    if process.poll() is None:
        process.send_signal(signal.SIGTERM)
    try:
        return process.wait(patience)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
        raise


def _answers(url: str) -> bool:
    try:
        return ask(f"{url}/ping").status == 200
    except OSError:
        return False


def free_port() -> int:
    """Return a port that the system calls free."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def gunicorn(
    folder: Path,
    config: Path,
    *,
    settings: str = "",
    app: str = "tests.apps:app",
    arguments: tuple[str, ...] = (),
    options: str = "",
    port: int = 0,
    program: tuple[str, ...] = ("-m", "gunicorn"),
    **environment: str,
) -> Any:
    """Start gunicorn with the line installed from ``config``; ``settings`` are lines of its configuration file.

    :param program: how Python finds gunicorn.
    :param options: further arguments of ``install``.
    :param port: where it listens, if that must be known before.
    """
    port = port or free_port()
    conf = folder / "gunicorn.conf.py"
    conf.write_text(
        f"bind = '127.0.0.1:{port}'\n"
        "worker_class = 'gthread'\nworkers = 2\nthreads = 8\ngraceful_timeout = 15\ncontrol_socket_disable = True\n"
        f"{settings}\n"
        "from wsgi_admission.integrations.gunicorn import install\n"
        f"install(globals(), {str(config)!r}{options and f', {options}'})\n"
    )
    command = [sys.executable, *program, "-c", str(conf), *arguments, app]
    return server(folder, command, f"http://127.0.0.1:{port}", **environment)
