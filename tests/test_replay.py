"""Recording a request, running it, and serving its answer: each rule by itself."""

from __future__ import annotations

import gc
import io
import json
import logging
import logging.config
import sys
import weakref
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, BinaryIO, cast

import pytest

from tests.wsgi import environ as whole_environ
from tests.wsgi import record
from wsgi_admission import errorlog, receiving, replay
from wsgi_admission.errors import BodyTooLarge, InvalidLength, LengthRequired, RequestRefused, TruncatedBody
from wsgi_admission.replay import MARK, Outcome, Recording, queueable, restore, run, serve

LIMIT = 1024 * 1024
RAISED = "The application raised an error while it ran this request."
BROKEN = "The application gave no valid answer to this request."
PLAIN = [("Content-Type", "text/plain")]

Start = Callable[..., Callable[[bytes], object]]
App = Callable[[dict[str, Any], Start], Iterable[bytes]]


@pytest.fixture(autouse=True)
def files(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[BinaryIO]]:
    """Note every temporary file; at the end of a test all of them must be closed."""
    made: list[BinaryIO] = []
    real = receiving.spool

    def spool() -> BinaryIO:
        made.append(real())
        return made[-1]

    monkeypatch.setattr(receiving, "spool", spool)
    monkeypatch.setattr(replay, "spool", spool)
    yield made
    assert [file.closed for file in made] == [True] * len(made)


class Input:
    """A server's input that must not be read without a size or past ``length``."""

    def __init__(self, data: bytes, length: int | None = None) -> None:
        self._data = io.BytesIO(data)
        self._left = length

    def read(self, size: int) -> bytes:
        assert size > 0, "a read that some servers answer by waiting for ever"
        if self._left is not None:
            assert size <= self._left, "read past the Content-Length"
        block = self._data.read(min(size, 1000))
        if self._left is not None:
            self._left -= len(block)
        return block


def call(body: bytes | None = None, **entries: Any) -> dict[str, Any]:
    """Return the environ of a call, with a strict input for ``body``."""
    environ: dict[str, Any] = {
        "REQUEST_METHOD": "POST" if body is not None else "GET",
        "PATH_INFO": "/img2img",
        "SCRIPT_NAME": "",
        "QUERY_STRING": "q=1",
        "SERVER_NAME": "localhost",
        "SERVER_PORT": "80",
        "SERVER_PROTOCOL": "HTTP/1.1",
        "wsgi.url_scheme": "https",
        "wsgi.input": Input(body or b"", len(body or b"")),
    }
    if body is not None:
        environ["CONTENT_LENGTH"] = str(len(body))
    environ.update(entries)
    return environ


def head_of(environ: dict[str, Any]) -> dict[str, str]:
    """Record ``environ`` and return the recorded head."""
    request = record(environ, max_body=LIMIT)
    request.body.close()
    return cast("dict[str, str]", json.loads(request.head))


def outcome_of(app: App, environ: dict[str, Any] | None = None, **options: Any) -> Outcome:
    """Run ``app`` with the recorded ``environ``; the request's file must be closed afterwards."""
    request = record(environ or call(b"prompt"), max_body=LIMIT)
    outcome = run(cast("Any", app), request, extras=options.pop("extras", {}), **options)
    assert request.body.closed
    return outcome


def body_of(outcome: Outcome) -> bytes:
    """Return the recorded body and close it."""
    assert outcome.response is not None
    with outcome.response.body as body:
        data = body.read()
    assert len(data) == outcome.response.length
    return data


def fetch(response: Recording | None, method: str = "GET") -> tuple[str, list[tuple[str, str]], list[bytes]]:
    """Serve a recorded response and return what the server would send."""
    assert response is not None
    answer: list[Any] = []

    def start_response(status: str, headers: list[tuple[str, str]], exc_info: Any = None) -> Callable[[bytes], object]:
        answer.extend((status, headers))
        return answer.append

    result = serve(response, {"REQUEST_METHOD": method}, cast("Any", start_response))
    blocks = list(result)
    if hasattr(result, "close"):
        result.close()
    assert response.body.closed
    return answer[0], answer[1], blocks


class Result:
    """An app's iterable that counts its ``close()`` and can fail where it is told to."""

    def __init__(self, *items: Any, close: BaseException | None = None) -> None:
        self.items, self.error, self.closed = items, close, 0

    def __iter__(self) -> Iterator[bytes]:
        for item in self.items:
            if isinstance(item, BaseException):
                raise item
            yield item

    def close(self) -> None:
        self.closed += 1
        if self.error is not None:
            raise self.error


def answering(result: Iterable[bytes], *, status: str = "200 OK", headers: list[tuple[str, str]] | None = None) -> App:
    """Return an app that answers with ``result``."""

    def app(environ: dict[str, Any], start_response: Start) -> Iterable[bytes]:
        start_response(status, PLAIN if headers is None else headers)
        return result

    return app


def fail(text: str) -> None:
    """Raise, as something deep in an app does."""
    raise KeyError(text)


# ---- what can be queued ----


@pytest.mark.parametrize(
    ("entries", "expected"),
    [
        ({"REQUEST_METHOD": "POST"}, True),
        ({"REQUEST_METHOD": "GET", "HTTP_CONNECTION": "keep-alive"}, True),
        ({"REQUEST_METHOD": "GET", "HTTP_UPGRADE_INSECURE_REQUESTS": "1"}, True),
        ({"REQUEST_METHOD": "OPTIONS"}, False),
        ({"REQUEST_METHOD": "CONNECT"}, False),
        ({"REQUEST_METHOD": "TRACE"}, False),
        ({"REQUEST_METHOD": "GET", "HTTP_UPGRADE": "websocket"}, False),
        ({"REQUEST_METHOD": "GET", "HTTP_CONNECTION": "keep-alive, Upgrade"}, True),
        ({"REQUEST_METHOD": "POST", "HTTP_UPGRADE": "h2c", "HTTP_CONNECTION": "Upgrade, HTTP2-Settings"}, True),
        ({"REQUEST_METHOD": "GET", "HTTP_UPGRADE": "h2c, WebSocket"}, False),
    ],
)
def test_what_asks_about_the_connection_is_not_queued(entries: dict[str, Any], expected: bool) -> None:  # noqa: FBT001 - a table's column
    """Catches: a websocket or a CORS preflight that gets a 202."""
    assert queueable(entries) is expected


# ---- record ----


@pytest.mark.parametrize("size", [0, 1, 999, 70_000, 300_000])
def test_the_body_is_recorded_byte_for_byte(size: int) -> None:
    """Catches: a lost last block, a read without a size, a read past the length."""
    body = bytes(range(256)) * (size // 256) + bytes(size % 256)

    request = record(call(body), max_body=LIMIT)

    with request.body as file:
        assert file.read() == body
    assert request.length == size


@pytest.mark.parametrize("length", ["", None])
@pytest.mark.parametrize("protocol", ["HTTP/1.0", "HTTP/1.1"])
def test_without_a_length_there_is_no_body(length: str | None, protocol: str) -> None:
    """Catches: a read that waits for ever because no length was taken for any length."""
    environ = call(CONTENT_LENGTH=length, CONTENT_TYPE="text/plain", SERVER_PROTOCOL=protocol)
    environ["wsgi.input"] = None

    assert "CONTENT_LENGTH" not in head_of(environ) or head_of(environ)["CONTENT_LENGTH"] == ""


@pytest.mark.parametrize("value", ["abc", "-5", "+5", "5, 5", "1_0", "5.0", "٣", "0x10"])
def test_a_length_that_is_no_number_is_refused_by_name(value: str, files: list[BinaryIO]) -> None:
    """Catches: int() as the judge of a length; it takes +5, 1_0 and digits of any script."""
    with pytest.raises(InvalidLength) as caught:
        record(call(b"12345", CONTENT_LENGTH=value), max_body=LIMIT)

    assert caught.value.value == value
    assert caught.value.status.startswith("400")
    assert files == []


def test_white_space_around_a_length_does_not_count() -> None:
    """Catches: refusing what RFC 9110 5.5 says a recipient strips, or handing it on to the app."""
    assert head_of(call(b"12345", CONTENT_LENGTH=" 5\t"))["CONTENT_LENGTH"] == "5"


@pytest.mark.parametrize("length", [str(LIMIT + 1), "9" * 25, "9" * 5000])
def test_a_body_that_is_announced_too_large_is_not_read(length: str, files: list[BinaryIO]) -> None:
    """Catches: reading before the limit is checked, and int() that refuses thousands of digits."""
    environ = call(b"", CONTENT_LENGTH=length)
    environ["wsgi.input"] = None

    with pytest.raises(BodyTooLarge) as caught:
        record(environ, max_body=LIMIT)

    assert caught.value.limit == LIMIT
    assert files == []


def test_a_body_of_just_the_limit_is_taken() -> None:
    """Catches: a limit that is one byte off, with a length and without."""
    for environ in (call(b"12345"), chunked(b"12345")):
        request = record(environ, max_body=5)
        request.body.close()
        assert request.length == 5


def chunked(body: bytes, **entries: Any) -> dict[str, Any]:
    """Return the environ of a chunked upload on a server that ends its input."""
    environ = call(b"", HTTP_TRANSFER_ENCODING="chunked", **{"wsgi.input_terminated": True}, **entries)
    del environ["CONTENT_LENGTH"]
    environ["wsgi.input"] = Input(body)
    return environ


def test_a_chunked_body_is_read_to_its_end_and_replayed_with_its_length() -> None:
    """Catches: a chunked upload that is recorded as empty, or replayed as chunked once more."""
    body = b"x" * 300_000

    head = head_of(chunked(body))

    assert head["CONTENT_LENGTH"] == "300000"
    assert "HTTP_TRANSFER_ENCODING" not in head


def test_a_chunked_body_overrides_a_stated_length() -> None:
    """Catches: a Content-Length beside a Transfer-Encoding that cuts the body (RFC 9112 6.3)."""
    environ = chunked(b"whole body")
    environ["CONTENT_LENGTH"] = "5"

    assert head_of(environ)["CONTENT_LENGTH"] == "10"


def test_a_chunked_body_past_the_limit_is_given_up_at_once() -> None:
    """Catches: reading gigabytes before saying that they are too many."""
    environ = chunked(b"x" * 50_000)

    with pytest.raises(BodyTooLarge):
        record(environ, max_body=10)

    assert environ["wsgi.input"].read(100_000) != b""


def test_a_body_without_an_end_is_refused() -> None:
    """Catches: waiting for the end of a body on a server that does not tell it."""
    environ = chunked(b"x")
    del environ["wsgi.input_terminated"]
    with pytest.raises(LengthRequired) as caught:
        record(environ, max_body=LIMIT)
    assert caught.value.status.startswith("411")

    environ = call(b"x", SERVER_PROTOCOL="HTTP/2", CONTENT_TYPE="text/plain", CONTENT_LENGTH="")
    with pytest.raises(LengthRequired):
        record(environ, max_body=LIMIT)


@pytest.mark.parametrize("size", [10, 300_000])
def test_a_truncated_upload_is_refused_and_its_file_closed(size: int, files: list[BinaryIO]) -> None:
    """Catches: half an upload in the line, and a temporary file that stays open."""
    with pytest.raises(TruncatedBody) as caught:
        record(call(b"x" * (size - 1), CONTENT_LENGTH=str(size), **{"wsgi.input": Input(b"x" * 5)}), max_body=LIMIT)

    assert (caught.value.expected, caught.value.received) == (size, 5)
    assert isinstance(caught.value, RequestRefused)
    assert [file.closed for file in files] == [True]


def test_an_error_of_the_server_passes_through(files: list[BinaryIO]) -> None:
    """Catches: an answer of our own where only the server knows what to do with the connection."""
    blocks = [b"123"]

    class Broken:
        def read(self, size: int) -> bytes:
            if blocks:
                return blocks.pop()
            raise ConnectionResetError("peer")

    with pytest.raises(ConnectionResetError, match="peer"):
        record(call(b"12345", **{"wsgi.input": Broken()}), max_body=LIMIT)

    assert [file.closed for file in files] == [True]


def test_what_the_app_may_ask_for_is_kept() -> None:
    """Catches: a filter that loses identity, the raw address or a header of the app's own."""
    kept = {
        "REMOTE_USER": "ann",
        "AUTH_TYPE": "Basic",
        "SSL_CLIENT_S_DN": "CN=ann",
        "RAW_URI": "//img2img?q=1",
        "REQUEST_URI": "/x%2fy",
        "REMOTE_ADDR": "192.0.2.1",
        "CONTENT_TYPE": "image/png",
        "HTTP_COOKIE": "session=1",
        "HTTP_IDEMPOTENCY_KEY": "k",
        "HTTP_PREFER": "respond-async",
        "HTTP_IF_MATCH": '"v1"',
        "HTTP_IF_NONE_MATCH": "*",
        "HTTP_X_NAME": "caf\xe9 \udce9",
    }

    head = head_of(call(b"12345", REMOTE_PORT=4711, **kept))

    assert {key: head[key] for key in kept} == kept
    assert head["REMOTE_PORT"] == "4711"
    assert head["wsgi.url_scheme"] == "https"
    assert (head["PATH_INFO"], head["QUERY_STRING"], head["SCRIPT_NAME"]) == ("/img2img", "q=1", "")


def test_what_is_the_servers_or_the_connections_is_dropped() -> None:
    """Catches: sockets and callables in the head, and headers that speak of a connection that is gone."""
    head = head_of(
        call(
            b"12345",
            HTTP_CONNECTION="keep-alive, X-Hop",
            HTTP_KEEP_ALIVE="timeout=5",
            HTTP_TE="trailers",
            HTTP_TRAILER="X-Sum",
            HTTP_EXPECT="100-continue",
            HTTP_PROXY_CONNECTION="close",
            HTTP_PROXY_AUTHORIZATION="Basic x",
            HTTP_X_HOP="1",
            HTTP_X_STAYS="1",
            SOME_BYTES=b"x",
            SOME_NUMBER=1,
            **{"gunicorn.socket": object(), "some.text": "dotted", "wsgi.input_terminated": True},
        )
    )

    assert {key for key in head if key.startswith("HTTP_")} == {"HTTP_X_STAYS", "HTTP_ACCEPT_ENCODING"}
    assert {key for key in head if "." in key} == {"wsgi.url_scheme"}
    assert "SOME_BYTES" not in head
    assert "SOME_NUMBER" not in head


@pytest.mark.parametrize("method", ["GET", "HEAD"])
def test_a_queued_get_asks_for_the_whole_thing(method: str) -> None:
    """Catches: a 304 or a 206 as the result that somebody else fetches an hour later."""
    conditions = ["HTTP_IF_NONE_MATCH", "HTTP_IF_MODIFIED_SINCE", "HTTP_IF_RANGE", "HTTP_RANGE"]

    head = head_of(call() | {"REQUEST_METHOD": method, "HTTP_IF_MATCH": '"v1"'} | dict.fromkeys(conditions, "x"))

    assert not set(conditions) & set(head)
    assert head["HTTP_IF_MATCH"] == '"v1"'


@pytest.mark.parametrize("encodings", [{}, {"HTTP_ACCEPT_ENCODING": "gzip, br"}])
def test_identity_encoding_is_asked_for(encodings: dict[str, str]) -> None:
    """Catches: a result packed for a client other than the one that fetches it."""
    assert head_of(call(b"", **encodings))["HTTP_ACCEPT_ENCODING"] == "identity"


def test_the_head_is_ascii() -> None:
    """Catches: text that a store cannot encode."""
    request = record(call(HTTP_X_NAME="\xe9\udce9"), max_body=LIMIT)
    request.body.close()

    assert request.head.isascii()


# ---- restore ----


@pytest.mark.parametrize("make", [call, chunked])
def test_a_restored_request_can_be_run_at_once(make: Callable[[bytes], dict[str, Any]]) -> None:
    """Catches: an app that gets an empty or endless body after the store has failed."""
    environ = make(b"prompt")
    request = record(environ, max_body=LIMIT)

    restore(environ, request)

    assert environ["wsgi.input"].read() == b"prompt"
    assert environ["CONTENT_LENGTH"] == "6"
    assert environ["wsgi.input_terminated"] is True
    assert "HTTP_TRANSFER_ENCODING" not in environ
    request.body.close()


@pytest.mark.parametrize("length", [{}, {"CONTENT_LENGTH": ""}])
def test_a_restored_request_without_a_body_states_no_length(length: dict[str, str]) -> None:
    """Catches: a length of 0 where the app would have seen none."""
    environ = call() | length
    request = record(environ, max_body=LIMIT)
    request.body.close()
    request = record(environ, max_body=LIMIT)

    restore(environ, request)

    assert environ.get("CONTENT_LENGTH") == length.get("CONTENT_LENGTH")
    assert environ["wsgi.input"].read() == b""
    request.body.close()


# ---- run: what the app sees ----


def seen_by_app(environ: dict[str, Any], **extras: Any) -> dict[str, Any]:
    """Return a copy of the environ with which the app is called."""
    seen: dict[str, Any] = {}

    def app(environ: dict[str, Any], start_response: Start) -> Iterable[bytes]:
        seen.update(environ)
        start_response("200 OK", PLAIN)
        return [environ["wsgi.input"].readline(), environ["wsgi.input"].read()]

    outcome = outcome_of(app, environ, extras=extras)
    seen["body"] = body_of(outcome)
    return seen


def test_the_environ_is_rebuilt() -> None:
    """Catches: a version that came back as a list, the server's file_wrapper, a lost mark."""
    ticket = object()

    seen = seen_by_app(call(b"first\nsecond", HTTP_X_NAME="caf\xe9 \udce9"), **{MARK: ticket})

    assert seen["wsgi.version"] == (1, 0)
    assert type(seen["wsgi.version"]) is tuple
    assert (seen["wsgi.multithread"], seen["wsgi.multiprocess"], seen["wsgi.run_once"]) == (True, True, False)
    assert seen["wsgi.input_terminated"] is True
    assert seen["wsgi.file_wrapper"].__module__ == "wsgiref.util"
    assert seen["wsgi.url_scheme"] == "https"
    assert seen[MARK] is ticket
    assert seen["CONTENT_LENGTH"] == "12"
    assert seen["HTTP_X_NAME"] == "caf\xe9 \udce9"
    assert seen["body"] == b"first\nsecond"


def test_missing_entries_get_their_defaults() -> None:
    """Catches: a KeyError in an app that rightly relies on PEP 3333, and an invented client address."""
    seen = seen_by_app({"REQUEST_METHOD": "GET"})

    expected = {
        "PATH_INFO": "/",
        "SCRIPT_NAME": "",
        "QUERY_STRING": "",
        "SERVER_NAME": "localhost",
        "SERVER_PORT": "80",
        "SERVER_PROTOCOL": "HTTP/1.1",
        "wsgi.url_scheme": "http",
    }
    assert {key: seen[key] for key in expected} == expected
    assert "REMOTE_ADDR" not in seen
    assert "CONTENT_LENGTH" not in seen
    assert seen_by_app({"REQUEST_METHOD": "GET", "SCRIPT_NAME": "/mount"})["PATH_INFO"] == ""


def test_the_input_can_be_wrapped_and_sought() -> None:
    """Catches: a spooled file of Python 3.10, which lacks what io classes and parsers ask for."""
    texts: list[str] = []

    def app(environ: dict[str, Any], start_response: Start) -> Iterable[bytes]:
        file = environ["wsgi.input"]
        assert (list(file), file.seek(0), file.readlines(), file.seek(0)) == ([b"a\n", b"b"], 0, [b"a\n", b"b"], 0)
        texts.append(io.TextIOWrapper(file, encoding="ascii").read())
        return answering([])(environ, start_response)

    body_of(outcome_of(app, call(b"a\nb")))

    assert texts == ["a\nb"]


def test_a_recording_that_cannot_be_read_is_an_outcome() -> None:
    """Catches: a damaged store row that ends the thread, or that keeps its file open."""
    body = io.BytesIO(b"")

    outcome = run(cast("Any", answering([])), Recording("{damaged", body, 0), extras={})

    assert outcome == (0, None, "The recorded request could not be read.")
    assert body.closed


# ---- run: what the app may do ----


def test_status_headers_and_body_are_recorded_as_given() -> None:
    """Catches: a header list that is sorted, merged or made a dict, and an odd reason that is lost."""
    headers = [("Set-Cookie", "a=1"), ("X-Name", "caf\xe9\tx"), ("set-cookie", "b=2")]

    outcome = outcome_of(answering([b"a", b"", b"b"], status="299 Odd \xe9 reason", headers=headers))

    assert (outcome.status, outcome.error) == (299, "")
    assert fetch(outcome.response) == ("299 Odd \xe9 reason", headers, [b"ab"])


def test_write_comes_before_the_iterable() -> None:
    """Catches: losing what an app sends through write(), as several test clients do."""

    def app(environ: dict[str, Any], start_response: Start) -> Iterable[bytes]:
        write = start_response("200 OK", PLAIN)
        write(b"written ")
        write(b"twice ")
        return [b"and returned"]

    assert body_of(outcome_of(app)) == b"written twice and returned"


def test_the_answer_may_start_during_iteration() -> None:
    """Catches: expecting the status before the first step of a generator."""

    def app(environ: dict[str, Any], start_response: Start) -> Iterator[bytes]:
        start_response("201 Created", PLAIN)
        yield b"lazy"

    outcome = outcome_of(app)

    assert outcome.status == 201
    assert body_of(outcome) == b"lazy"


@pytest.mark.parametrize("first", [[], [b""]])
def test_an_error_page_replaces_an_answer_that_has_not_begun(first: list[bytes]) -> None:
    """Catches: an empty first chunk that counts as sent, and a mix of both header lists."""

    def app(environ: dict[str, Any], start_response: Start) -> Iterator[bytes]:
        start_response("200 OK", [("X-First", "1")])
        yield from first
        try:
            fail("x")
        except KeyError:
            start_response("404 Not Found", PLAIN, exc_info=sys.exc_info())
        yield b"error page"

    outcome = outcome_of(app)

    assert fetch(outcome.response) == ("404 Not Found", PLAIN, [b"error page"])


def test_an_error_after_the_first_byte_is_raised_again(caplog: pytest.LogCaptureFixture) -> None:
    """Catches: an error page glued to half an answer."""

    def app(environ: dict[str, Any], start_response: Start) -> Iterator[bytes]:
        start_response("200 OK", PLAIN)
        yield b"half"
        try:
            fail("the app's own")
        except KeyError:
            start_response("404 Not Found", PLAIN, sys.exc_info())
        yield b"error page"

    assert outcome_of(app) == (0, None, RAISED)
    assert "the app's own" in caplog.text


def test_an_error_that_is_raised_again_is_freed_with_its_request(monkeypatch: pytest.MonkeyPatch) -> None:
    """Catches: a cycle through the traceback, which keeps the app's frames, and their images, until the next sweep."""

    class Failure(Exception):
        pass

    raised: list[weakref.ref[Failure]] = []

    def broken() -> None:
        raise Failure

    def app(environ: dict[str, Any], start_response: Start) -> Iterator[bytes]:
        start_response("200 OK", PLAIN)
        yield b"half"
        try:
            broken()
        except Failure as failure:
            raised.append(weakref.ref(failure))
            start_response("404 Not Found", PLAIN, sys.exc_info())

    monkeypatch.setattr(logging.getLogger("wsgi_admission.replay"), "disabled", True)  # a log's records keep it too
    gc.disable()
    try:
        assert outcome_of(app) == (0, None, RAISED)
        assert raised[0]() is None
    finally:
        gc.enable()


def test_a_second_start_without_exc_info_is_an_error(caplog: pytest.LogCaptureFixture) -> None:
    """Catches: the second status silently taking the place of the first."""

    def app(environ: dict[str, Any], start_response: Start) -> Iterable[bytes]:
        start_response("200 OK", PLAIN)
        start_response("404 Not Found", PLAIN)
        return []

    assert outcome_of(app) == (0, None, BROKEN)
    assert "twice" in caplog.text


@pytest.mark.parametrize(
    ("status", "headers"),
    [
        (b"200 OK", PLAIN),
        (200, PLAIN),
        ("OK", PLAIN),
        ("20 OK", PLAIN),
        ("103 Early Hints", PLAIN),
        ("200OK", PLAIN),
        ("200 OK\r\nX: 1", PLAIN),
        ("200 OK\n", PLAIN),
        ("200 \N{SNOWMAN}", PLAIN),
        ("200 OK", tuple(PLAIN)),
        ("200 OK", dict(PLAIN)),
        ("200 OK", [["X", "1"]]),
        ("200 OK", [("X",)]),
        ("200 OK", [("X", 1)]),
        ("200 OK", [(b"X", "1")]),
        ("200 OK", [("X Y", "1")]),
        ("200 OK", [("X:", "1")]),
        ("200 OK", [("X", "1\r\nSet-Cookie: a=1")]),
        ("200 OK", [("X", "1\n")]),
        ("200 OK", [("X", "\N{SNOWMAN}")]),
        ("200 OK", [("Content-Length", "many")]),
        ("200 OK", [("Content-Length", "1"), ("content-length", "2")]),
    ],
)
def test_a_head_that_no_server_could_send_fails(status: Any, headers: Any) -> None:
    """Catches: response splitting and answers that break whoever fetches them."""
    assert outcome_of(answering([], status=status, headers=headers)) == (0, None, BROKEN)


@pytest.mark.parametrize("item", ["text", bytearray(b"x"), 7, None])
def test_a_body_of_anything_but_bytes_fails(item: Any) -> None:
    """Catches: str that is encoded by guess."""
    result = Result(b"good ", item)

    assert outcome_of(answering(result)) == (0, None, BROKEN)
    assert result.closed == 1


def test_a_body_before_the_head_fails() -> None:
    """Catches: an answer without a status that is stored all the same, or gets one when it is too late."""

    def late(environ: dict[str, Any], start_response: Start) -> Iterator[bytes]:
        yield b"x"
        start_response("200 OK", PLAIN)

    assert outcome_of(late) == (0, None, BROKEN)
    assert outcome_of(lambda *_: [b"x"]) == (0, None, BROKEN)
    assert outcome_of(lambda *_: []) == (0, None, BROKEN)


@pytest.mark.parametrize("result", [None, 5])
def test_a_result_that_is_no_iterable_fails(result: Any) -> None:
    """Catches: an app that forgot its return statement and ends the thread."""
    assert outcome_of(answering(result)).error == RAISED


# ---- run: endings ----

ERRORS = [ValueError("secret"), SystemExit(3), KeyboardInterrupt(), GeneratorExit()]


@pytest.mark.parametrize("error", ERRORS)
def test_nothing_that_the_app_raises_escapes(error: BaseException, caplog: pytest.LogCaptureFixture) -> None:
    """Catches: SystemExit that ends a thread of the pool, and exception texts in what clients read."""

    def app(environ: dict[str, Any], start_response: Start) -> Iterable[bytes]:
        raise error

    assert outcome_of(app) == (0, None, RAISED)
    assert caplog.records[-1].exc_info is not None
    assert caplog.records[-1].exc_info[1] is error


@pytest.mark.parametrize("error", ERRORS)
@pytest.mark.parametrize("close", [None, OSError("on top")])
def test_half_an_answer_is_never_kept(error: BaseException, close: BaseException | None, files: list[BinaryIO]) -> None:
    """Catches: half a body served as a result, a close() that is skipped, or that hides the first error."""
    result = Result(b"x" * 300_000, error, close=close)

    assert outcome_of(answering(result)) == (0, None, RAISED)
    assert result.closed == 1
    assert [file.closed for file in files] == [True, True]


@pytest.mark.parametrize("error", [None, *ERRORS])
def test_close_is_called_once_and_its_error_does_not_count(
    error: BaseException | None, caplog: pytest.LogCaptureFixture
) -> None:
    """Catches: failing a run whose direct client had the whole answer already."""
    result = Result(b"whole", close=error)

    outcome = outcome_of(answering(result))

    assert result.closed == 1
    assert (outcome.status, outcome.error) == (200, "")
    assert body_of(outcome) == b"whole"
    assert ("close()" in caplog.text) is (error is not None)


def test_close_is_called_after_an_error_in_the_head() -> None:
    """Catches: close() skipped when it is the first chunk that finds no status."""
    result = Result(b"x")

    assert outcome_of(lambda *_: result).error == BROKEN
    assert result.closed == 1


def test_an_answer_of_5xx_is_kept_and_named() -> None:
    """Catches: throwing away the app's own error page, or calling it a success."""
    outcome = outcome_of(answering([b"page"], status="503 Service Unavailable"))

    assert outcome.status == 503
    assert outcome.error == "The application answered 503 Service Unavailable."
    assert body_of(outcome) == b"page"


@pytest.mark.parametrize(("status", "error"), [("500 ", "500"), ("500", "500"), ("599 \xe9", "599 \xe9")])
def test_an_odd_reason_does_not_spoil_the_sentence(status: str, error: str) -> None:
    """Catches: a blank before the full stop, or a status without a reason that fails."""
    outcome = outcome_of(answering([], status=status))
    body_of(outcome)
    assert outcome.error == f"The application answered {error}."


def test_fewer_bytes_than_stated_fail() -> None:
    """Catches: a result that makes its fetcher wait for bytes which never come."""
    outcome = outcome_of(answering([b"12345"], headers=[("Content-Length", "10")]))

    assert outcome == (0, None, "The application's answer ended after 5 of 10 bytes.")


@pytest.mark.parametrize("size", [10, 400_000])
def test_more_bytes_than_stated_are_cut(size: int, caplog: pytest.LogCaptureFixture) -> None:
    """Catches: bytes after the end of an answer, which the next answer on the connection would begin with."""
    outcome = outcome_of(answering([b"1" * size], headers=[("Content-Length", "5")]))

    assert body_of(outcome) == b"11111"
    assert "Content-Length" in caplog.text


def test_an_endless_answer_is_given_up() -> None:
    """Catches: an app that fills the disk, also when it goes on after write() has raised."""

    def endless(environ: dict[str, Any], start_response: Start) -> Iterator[bytes]:
        start_response("200 OK", PLAIN)
        for _ in range(100):
            yield b"x" * 1000

    def stubborn(environ: dict[str, Any], start_response: Start) -> Iterable[bytes]:
        write = start_response("200 OK", PLAIN)
        try:
            write(b"x" * 20_000)
        except Exception:  # noqa: BLE001 - the stubborn app
            return []
        return [b"not reached"]

    for app in (endless, stubborn):
        outcome = outcome_of(app, max_response=10_000)
        assert outcome == (0, None, "The application's answer is larger than 10000 bytes.")


@pytest.mark.parametrize("size", [100, 100_000])
def test_a_full_disk_is_not_blamed_on_the_app(size: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Catches: an answer with a hole in it, and an error of closing that hides the first one."""
    full = cast("BinaryIO", Path("/dev/full").open("r+b"))  # noqa: SIM115 - run() closes it
    monkeypatch.setattr(replay, "spool", lambda: full)

    def app(environ: dict[str, Any], start_response: Start) -> Iterable[bytes]:
        write = start_response("200 OK", PLAIN)
        try:
            write(b"x" * size)
        except OSError:
            pass  # an app that takes it for a client that went away
        return []

    assert outcome_of(app) == (0, None, "The application's answer could not be kept.")
    assert full.closed


@pytest.mark.parametrize("status", ["204 No Content", "304 Not Modified"])
def test_an_answer_that_has_no_body_loses_it(status: str) -> None:
    """Catches: bytes that the next answer on the connection would begin with."""
    assert body_of(outcome_of(answering([b"stray"], status=status, headers=[]))) == b""


def test_the_response_is_recorded_in_ascii() -> None:
    """Catches: a head that a store cannot encode."""
    outcome = outcome_of(answering([], headers=[("X-Name", "caf\xe9")]))
    assert outcome.response is not None
    assert outcome.response.head.isascii()
    body_of(outcome)


# ---- wsgi.errors ----


def test_what_the_app_says_in_wsgi_errors_is_logged_by_line(caplog: pytest.LogCaptureFixture) -> None:
    """Catches: a record for every write, and a last line without an end that is lost."""
    kept: list[Any] = []  # an app may hold on to the stream

    def app(environ: dict[str, Any], start_response: Start) -> Iterable[bytes]:
        errors = environ["wsgi.errors"]
        kept.append(errors)
        errors.write("one ")
        errors.writelines(["line\n", "another\n\nlast"])
        return answering([])(environ, start_response)

    body_of(outcome_of(app))

    assert [(r.name, r.message) for r in caplog.records] == [
        ("wsgi_admission.app", text) for text in ("one line", "another", "last")
    ]


def test_a_log_handler_that_writes_to_wsgi_errors_does_not_go_in_circles(
    capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    """Catches: endless or doubled records under the log set-up that Flask's manual recommends."""
    errors = errorlog.ErrorLog()
    handler = logging.StreamHandler(errors)
    logger = logging.getLogger("wsgi_admission.app")
    logger.addHandler(handler)
    try:
        errors.write("one\ntwo\n")
        errors.write("three\n")
    finally:
        logger.removeHandler(handler)

    assert capsys.readouterr().err.splitlines() == ["one", "two", "three"]
    assert caplog.messages == ["one", "two", "three"]


# ---- serve ----


def test_the_recorded_answer_is_served_but_for_what_is_the_connections() -> None:
    """Catches: a Connection: close of a connection that is gone, and two Date headers."""
    gone = [
        ("Connection", "close, X-Hop"),
        ("X-Hop", "1"),
        ("Keep-Alive", "timeout=5"),
        ("Transfer-Encoding", "chunked"),
        ("Trailer", "X-Sum"),
        ("TE", "x"),
        ("Upgrade", "h2c"),
        ("Proxy-Authenticate", "Basic"),
        ("Proxy-Authentication-Info", "x"),
        ("Date", "Thu, 01 Jan 2026 00:00:00 GMT"),
        ("SERVER", "app"),
    ]
    kept = [("Location", "//host/x?y"), ("Set-Cookie", "a=1"), ("ETag", '"x"'), ("Set-Cookie", "b=2")]

    outcome = outcome_of(answering([b"x"], headers=[*kept, *gone]))

    assert fetch(outcome.response) == ("200 OK", kept, [b"x"])


@pytest.mark.parametrize(
    ("given", "served"),
    [
        ("done?x=1", "/shop/done?x=1"),
        ("../up", "/up"),
        ("?page=2", "/shop/image?page=2"),
        ("/root", "/root"),
        ("//host/x", "//host/x"),
        ("https://example.org/x", "https://example.org/x"),
        ("mailto:a@example.org", "mailto:a@example.org"),
        ("", ""),
    ],
)
def test_a_relative_location_means_the_same_at_the_result(given: str, served: str) -> None:
    """Catches: a redirect that leads to an address below the queue API, because that is where it is fetched."""
    env = whole_environ("/image", "POST", SCRIPT_NAME="/shop")
    outcome = run(answering([b""], headers=[("Location", given)]), record(env, max_body=10), extras={})
    assert fetch(outcome.response)[1] == [("Location", served)]


@pytest.mark.parametrize(
    ("entries", "expected"),
    [
        ({"SCRIPT_NAME": "/shop", "PATH_INFO": "/image", "QUERY_STRING": "a=b&c='<%27"}, "/shop/image?a=b&c=%27%3C%27"),
        ({"PATH_INFO": "/100% gr\xc3\xbc;v=1/it's", "QUERY_STRING": ""}, "/100%25%20gr%C3%BC;v=1/it's"),
        ({"PATH_INFO": "/x\r\ny?", "QUERY_STRING": "\r\n\xff#"}, "/x%0D%0Ay%3F?%0D%0A%FF%23"),
    ],
)
def test_the_answer_knows_what_was_asked(entries: dict[str, str], expected: str) -> None:
    """Catches: an address that lacks the mount or the query, or that no header can hold; one that the app changed."""

    def app(environ: dict[str, Any], start_response: Any) -> list[bytes]:
        environ["SCRIPT_NAME"] = environ["QUERY_STRING"] = environ["PATH_INFO"] = "/changed"
        start_response("200 OK", [])
        return [b""]

    env: dict[str, Any] = {**whole_environ("/"), **entries}
    response = run(app, record(env, max_body=10), extras={}).response
    assert response is not None
    response.body.close()
    assert json.loads(response.head)["address"] == expected


@pytest.mark.parametrize("size", [0, 1, 65_536, 65_537, 300_000])
def test_a_body_is_served_in_blocks(size: int) -> None:
    """Catches: an empty list, a whole video in memory, a file left open."""
    status, headers, blocks = fetch(outcome_of(answering([b"x" * size])).response)

    assert (status, headers) == ("200 OK", PLAIN)
    assert b"".join(blocks) == b"x" * size
    assert len(blocks) == max(1, -(-size // 65_536))


def test_a_small_body_has_a_length_for_the_server() -> None:
    """Catches: a small answer sent chunked because the server could not count its blocks."""
    response = outcome_of(answering([b"x" * 65_536])).response
    assert response is not None

    result = serve(response, {"REQUEST_METHOD": "GET"}, cast("Any", lambda *_: None))

    assert len(cast("list[bytes]", result)) == 1
    assert response.body.closed


def test_an_abandoned_fetch_closes_its_file() -> None:
    """Catches: a descriptor lost for every client that hangs up."""
    response = outcome_of(answering([b"x" * 300_000])).response
    assert response is not None

    result = serve(response, {"REQUEST_METHOD": "GET"}, cast("Any", lambda *_: None))
    next(iter(result))
    cast("Any", result).close()

    assert response.body.closed


@pytest.mark.parametrize("size", [1, 300_000])
def test_a_server_that_refuses_the_head_closes_the_file(size: int) -> None:
    """Catches: a descriptor lost when start_response raises."""
    response = outcome_of(answering([b"x" * size])).response
    assert response is not None

    def refuse(status: str, headers: list[tuple[str, str]], exc_info: Any = None) -> Callable[[bytes], object]:
        raise ValueError("no")

    with pytest.raises(ValueError, match="no"):
        serve(response, {"REQUEST_METHOD": "GET"}, cast("Any", refuse))

    assert response.body.closed


@pytest.mark.parametrize(
    ("recorded", "fetched", "status", "stated", "expected"),
    [
        ("POST", "HEAD", "200 OK", "4", "4"),  # as the app said
        ("POST", "HEAD", "200 OK", None, "4"),  # lest a server says 0
        ("POST", "HEAD", "204 No Content", None, None),  # RFC 9110 8.6 forbids it
        ("POST", "GET", "200 OK", "4", "4"),
        ("POST", "GET", "200 OK", None, None),  # the app's list stays as it is
        ("HEAD", "HEAD", "200 OK", "4", "4"),
        ("HEAD", "HEAD", "200 OK", None, None),  # nobody knows it
        ("HEAD", "GET", "200 OK", "4", None),  # its body was never sent
    ],
)
def test_the_length_fits_what_is_sent(
    recorded: str, fetched: str, status: str, stated: str | None, expected: str | None
) -> None:
    """Catches: a fetcher that waits for the body of a recorded HEAD, or is told of an empty one."""
    headers = [] if stated is None else [("Content-Length", stated)]
    app = answering([b"body"], status=status, headers=headers)

    outcome = outcome_of(app, call(b"x", REQUEST_METHOD=recorded))
    _, headers, blocks = fetch(outcome.response, fetched)

    assert [value for name, value in headers if name == "Content-Length"] == ([expected] if expected else [])
    assert b"".join(blocks) == (b"body" if (recorded, fetched) == ("POST", "GET") else b"")
    assert blocks != []
