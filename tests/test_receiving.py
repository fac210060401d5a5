"""Reading a request's body: from slow, silent and lying clients, on full disks."""

from __future__ import annotations

import errno
import io
import os
import socket
import threading
import time
from collections.abc import Iterator
from typing import Any

import pytest

from tests.support import until
from tests.wsgi import environ
from wsgi_admission import receiving
from wsgi_admission.errors import BodyTooLarge, SlowBody, StoreUnavailable, UntellableLength
from wsgi_admission.receiving import READ, SILENCE, SLOWEST, receive


class Clock:
    """A clock that goes on by ``step`` seconds whenever it is looked at."""

    def __init__(self, step: float) -> None:
        self.now, self.step = 0.0, step

    def __call__(self) -> float:
        self.now += self.step
        return self.now


class Client:
    """A client whose body comes through a socket, on a server that shows it as gunicorn does."""

    def __init__(self, sent: bytes, length: int) -> None:
        self.server, self.client = socket.socketpair()
        self.client.sendall(sent)
        reader = self.server.makefile("rb")  # its reads wait for all that they were asked for
        self.environ = environ("/image", "POST", CONTENT_LENGTH=str(length))
        self.environ |= {"gunicorn.socket": self.server, "wsgi.input": reader}

    def close(self) -> None:
        """Close both ends."""
        self.environ["wsgi.input"].close()
        self.server.close()
        self.client.close()


@pytest.fixture
def silent() -> Iterator[Client]:
    """A client that has announced ten bytes, sent three, and stays."""
    client = Client(b"abc", 10)
    yield client
    client.close()


def test_the_app_reads_what_was_received() -> None:
    """Catches: an input that is used up, or stands at its end."""
    env = environ("/image", "POST", b"prompt")
    body = receive(env, max_body=100)
    assert body is not None
    assert body.length == 6
    assert env["wsgi.input"] is body.file
    assert body.file.read(100) == b"prompt"
    body.file.close()


@pytest.mark.parametrize("keys", [{}, {"CONTENT_LENGTH": "", "wsgi.input_terminated": True}], ids=["length", "chunked"])
def test_a_large_body_is_read_in_blocks_and_never_past_its_end(keys: dict[str, Any]) -> None:
    """Catches: 16 MiB of memory for each upload, where a server allocates what it is asked for; a wait for ever."""
    size, asked = 10 * READ + 1, []

    class Source(io.BytesIO):
        def read(self, wanted: int | None = -1) -> bytes:
            asked.append(wanted or 0)
            return super().read(wanted)

    env = environ("/image", "POST", b"x" * size, **keys)
    env["wsgi.input"] = Source(b"x" * size)
    body = receive(env, max_body=2 * size)
    assert body is not None
    with body.file:
        assert body.length == size
    assert all(0 < wanted <= READ for wanted in asked)
    assert len(asked) > 10
    if not keys:
        assert sum(asked) == size


@pytest.mark.parametrize("keys", [{}, {"wsgi.input_terminated": True}])
def test_a_request_without_a_body_keeps_the_servers_input(keys: dict[str, Any]) -> None:
    """Catches: a file made for every request of a server that ends its inputs."""
    env = environ("/image", "GET", **keys)
    given = env["wsgi.input"]
    assert receive(env, max_body=100) is None
    assert env["wsgi.input"] is given


@pytest.mark.parametrize("keys", [{"CONTENT_LENGTH": "ten"}, {"HTTP_TRANSFER_ENCODING": "chunked"}])
def test_nothing_is_read_of_a_body_whose_end_is_not_known(keys: dict[str, Any]) -> None:
    """Catches: a request that could still have run, with half of its body gone."""
    env = environ("/image", "POST", b"prompt", **keys)
    with pytest.raises(UntellableLength):
        receive(env, max_body=100)
    assert env["wsgi.input"].read(6) == b"prompt"


def test_a_client_slower_than_the_slowest_allowed_is_given_up() -> None:
    """Catches: a thread that is held for hours by a trickle of bytes."""
    size = 10 * READ
    seconds = READ / SLOWEST  # for each block: as slow as may be, and once more as slow
    patient = environ("/image", "POST", b"x" * size)
    body = receive(patient, max_body=size, clock=Clock(seconds))
    assert body is not None
    body.file.close()
    hasty = environ("/image", "POST", b"x" * size)
    with pytest.raises(SlowBody) as caught:
        receive(hasty, max_body=size, clock=Clock(2 * seconds))
    # The first moment at which the time taken exceeds what is given, and what one block more takes.
    assert caught.value.received == READ * (int(SILENCE // seconds) + 2)
    assert caught.value.status.startswith("408")


def test_a_read_that_takes_too_long_is_ended_from_outside(silent: Client) -> None:
    """Catches: gunicorn's reads, which return only when all is there, however slowly it comes."""
    began = time.monotonic()
    refused: list[SlowBody] = []

    def read() -> None:
        with pytest.raises(SlowBody) as caught:
            receive(silent.environ, max_body=100)
        refused.append(caught.value)

    thread = threading.Thread(target=read)
    thread.start()
    until(lambda: receiving._under_way, "the read")
    receiving.give_up_slow(now=began + SILENCE)
    assert thread.is_alive()
    assert silent.server.getpeername() is not None  # not shut down
    receiving.give_up_slow(now=time.monotonic() + SILENCE + READ / SLOWEST + 1)
    thread.join(30)
    assert [error.received for error in refused] == [3]
    assert not receiving._under_way
    assert silent.server.recv(1) == b""  # the server does not wait for the rest either


def test_an_error_of_the_server_after_a_body_was_given_up_is_told_as_slow(monkeypatch: pytest.MonkeyPatch) -> None:
    """Catches: a server that raises when a chunked body ends too early, and so gives no answer."""

    class Chunked(io.BytesIO):
        def read(self, _size: int | None = -1) -> bytes:
            receiving.give_up_slow(now=time.monotonic() + 3600)
            raise ConnectionResetError("no more data")

    env = environ("/image", "POST", HTTP_TRANSFER_ENCODING="chunked")
    env |= {"wsgi.input": Chunked(), "wsgi.input_terminated": True}
    with pytest.raises(SlowBody):
        receive(env, max_body=100)


@pytest.mark.filterwarnings("ignore:.*multi-threaded, use of fork:DeprecationWarning")
def test_a_child_gives_up_nothing_of_its_parents(silent: Client) -> None:
    """Catches: a worker that cuts off the clients of another one."""
    thread = threading.Thread(target=lambda: receive(silent.environ, max_body=100))
    thread.start()
    until(lambda: receiving._under_way, "the read")
    child = os.fork()
    if not child:
        receiving.give_up_slow(now=time.monotonic() + 3600)
        os._exit(0)
    os.waitpid(child, 0)
    silent.client.sendall(b"defghij")
    thread.join(30)
    assert silent.environ["wsgi.input"].read() == b"abcdefghij"
    silent.environ["wsgi.input"].close()


def test_a_client_that_is_quick_enough_keeps_its_connection() -> None:
    """Catches: a timeout of ours that stays on the server's socket, or a connection that is closed for nothing."""
    client = Client(b"0123456789", 10)
    body = receive(client.environ, max_body=100)
    assert body is not None
    assert client.server.gettimeout() is None
    client.client.sendall(b"next")
    assert client.server.recv(4) == b"next"
    body.file.close()
    client.close()


def test_a_full_disk_is_told_apart_from_an_error_of_the_client(monkeypatch: pytest.MonkeyPatch) -> None:
    """Catches: a 500, or a body that is taken for truncated, when the temporary files have no room."""

    class Full(io.BytesIO):
        def write(self, _data: Any) -> int:
            raise OSError(errno.ENOSPC, "No space left on device")

    full = Full()
    monkeypatch.setattr(receiving, "spool", lambda: full)
    with pytest.raises(StoreUnavailable, match="No space left"):
        receive(environ("/image", "POST", b"prompt"), max_body=100)
    assert full.closed


def test_a_body_that_is_announced_as_too_large_is_not_read() -> None:
    """Catches: gigabytes read before they are refused."""
    env = environ("/image", "POST", b"prompt")
    with pytest.raises(BodyTooLarge):
        receive(env, max_body=5)
    assert env["wsgi.input"].read(6) == b"prompt"
