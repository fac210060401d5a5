"""The whole way of a request, under wsgiref's validator on every side, against a direct call."""

from __future__ import annotations

import hashlib
import io
import json
from collections.abc import Callable, Iterable
from typing import Any, cast
from wsgiref.validate import validator

import flask
import pytest
import werkzeug
from hypothesis import given
from hypothesis import strategies as st

from tests.wsgi import record
from wsgi_admission.replay import Recording, run, serve

Start = Callable[..., Callable[[bytes], object]]
App = Callable[[dict[str, Any], Start], Iterable[bytes]]
Answer = tuple[str, list[tuple[str, str]], bytes]

IMAGE = bytes(range(256)) * 2000  # 512,000 bytes: more than stays in memory
BOUNDARY = "----boundary"
FORM = (
    f'--{BOUNDARY}\r\nContent-Disposition: form-data; name="prompt"\r\n\r\ncaf\u00e9 \u2603\r\n'
    f'--{BOUNDARY}\r\nContent-Disposition: form-data; name="image"; filename="a.png"\r\n'
    "Content-Type: image/png\r\n\r\n"
).encode() + (IMAGE + f"\r\n--{BOUNDARY}--\r\n".encode())


def environ_of(method: str, body: bytes = b"", **entries: Any) -> dict[str, Any]:
    """Return a complete environ, as a server makes it."""
    return {
        "REQUEST_METHOD": method,
        "SCRIPT_NAME": "",
        "PATH_INFO": "/img2img",
        "QUERY_STRING": "steps=20&name=caf%C3%A9",
        "SERVER_NAME": "localhost",
        "SERVER_PORT": "8000",
        "SERVER_PROTOCOL": "HTTP/1.1",
        "REMOTE_ADDR": "192.0.2.1",
        "CONTENT_LENGTH": str(len(body)),
        "HTTP_HOST": "example.org",
        "HTTP_COOKIE": "session=abc",
        "HTTP_ACCEPT_ENCODING": "identity",
        "wsgi.version": (1, 0),
        "wsgi.url_scheme": "http",
        "wsgi.input": io.BytesIO(body),
        "wsgi.errors": io.StringIO(),
        "wsgi.multithread": False,
        "wsgi.multiprocess": False,
        "wsgi.run_once": False,
        **entries,
    }


def ask(app: App, environ: dict[str, Any]) -> Answer:
    """Call ``app`` as a server does, under the validator, and return what it answers."""
    head: list[Any] = []
    written: list[bytes] = []

    def start_response(status: str, headers: list[tuple[str, str]], exc_info: Any = None) -> Callable[[bytes], object]:
        head[:] = [status, headers]
        return written.append

    result = cast("Any", validated(app)(environ, start_response))
    try:
        body = b"".join(result)
    finally:
        result.close()
    headers = [(name, value) for name, value in head[1] if name != "Date"]  # the server's own is sent instead
    return head[0], headers, b"".join(written) + body


def replayed(app: App, environ: dict[str, Any], *, fetch: str = "GET") -> Answer:
    """Record the request, run it and fetch its answer, under the validator on all three sides."""
    kept: list[Recording] = []

    def recorder(environ: dict[str, Any], start_response: Start) -> Iterable[bytes]:
        kept.append(record(environ, max_body=10**7))
        start_response("202 Accepted", [("Content-Type", "text/plain")])
        return [b"queued"]

    ask(recorder, environ)
    outcome = run(cast("Any", validated(app)), kept[0], extras={"wsgi_admission.ticket": object()})
    assert outcome.response is not None, outcome.error
    response = outcome.response
    answer = ask(
        lambda environ, start_response: serve(response, environ, cast("Any", start_response)), environ_of(fetch)
    )
    assert kept[0].body.closed
    assert response.body.closed
    return answer


class Unsized:
    """An input whose ``read`` may lack a size: the validator forbids that, frameworks do it on a terminated input."""

    def __init__(self, file: Any) -> None:
        self._file = file

    def read(self, size: int = -1) -> bytes:
        return cast("bytes", self._file.read(size))

    def readline(self, size: int = -1) -> bytes:
        return cast("bytes", self._file.readline(size))


def validated(app: App) -> App:
    """Return ``app`` under the validator, and able to read as frameworks do."""

    def inner(environ: dict[str, Any], start_response: Start) -> Iterable[bytes]:
        return app({**environ, "wsgi.input": Unsized(environ["wsgi.input"])}, start_response)

    return cast("App", validator(cast("Any", inner)))


def describe(environ: dict[str, Any]) -> bytes:
    """Return all that an app can see of a request but its body."""
    return json.dumps(sorted(item for item in environ.items() if isinstance(item[1], str))).encode()


def plain(environ: dict[str, Any], start_response: Start) -> Iterable[bytes]:
    """Answer with all that was seen, through write() and the iterable."""
    length = int(environ.get("CONTENT_LENGTH") or 0)
    body = environ["wsgi.input"].read(length) if length else b""
    headers = [("Content-Type", "application/json"), ("Set-Cookie", "a=1"), ("Set-Cookie", "b=2"), ("X-N", "caf\xe9")]
    write = start_response("299 Odd reason", headers)
    write(describe(environ))
    yield b""
    yield hashlib.sha256(body).hexdigest().encode()
    yield body


def make_flask() -> App:
    """Return a Flask app that reads the form, sets cookies and redirects, streams or fails as told."""
    app = flask.Flask("shop")

    @app.route("/img2img", methods=["GET", "POST", "HEAD"])
    def generate() -> flask.Response:
        uploaded = flask.request.files.get("image")
        data = uploaded.read() if uploaded is not None else flask.request.get_data()
        seen = [flask.request.url, flask.request.form.get("prompt", ""), flask.request.remote_addr]
        response = flask.jsonify(seen=seen, sum=hashlib.sha256(data).hexdigest(), args=flask.request.args)
        response.set_cookie("one", "1", httponly=True)
        response.set_cookie("two", "2")
        return response

    @app.post("/redirect")
    def redirect() -> werkzeug.Response:
        return flask.redirect("/done?id=1", 303)

    @app.post("/stream")
    def stream() -> flask.Response:
        return flask.Response(b"%d\n" % number for number in range(50_000))

    return cast("App", app)


def make_werkzeug() -> App:
    """Return a werkzeug app that sends the upload back as a download."""

    @werkzeug.Request.application
    def app(request: werkzeug.Request) -> werkzeug.Response:
        uploaded = request.files.get("image")
        data = uploaded.read() if uploaded is not None else request.get_data()
        response = werkzeug.Response(data, status=201, mimetype="image/png")
        response.set_etag("v1")
        return response.make_conditional(request)

    return cast("App", app)


APPS = {"plain": lambda: plain, "flask": make_flask, "werkzeug": make_werkzeug}
CALLS: dict[str, Callable[[], dict[str, Any]]] = {
    "get": lambda: environ_of("GET"),
    "json": lambda: environ_of("POST", b'{"prompt": "a cat"}', CONTENT_TYPE="application/json"),
    "multipart": lambda: environ_of("POST", FORM, CONTENT_TYPE=f"multipart/form-data; boundary={BOUNDARY}"),
    "mounted": lambda: environ_of("POST", b"x", SCRIPT_NAME="/shop", CONTENT_TYPE="text/plain"),
    "latin-1": lambda: environ_of("GET", HTTP_X_NAME="caf\xe9", HTTP_REFERER="http://x/\udce9"),
}


@pytest.mark.parametrize("make", APPS.values(), ids=APPS)
@pytest.mark.parametrize("make_call", CALLS.values(), ids=CALLS)
def test_a_replay_answers_as_the_direct_call_does(make: Callable[[], App], make_call: Callable[[], Any]) -> None:
    """Catches: any difference in status line, headers, their order, or body; a rule of WSGI broken on any side."""
    assert replayed(make(), make_call()) == ask(make(), make_call())


@pytest.mark.parametrize("path", ["/redirect", "/stream", "/nothing-here"])
def test_other_answers_of_a_framework_come_back_unchanged(path: str) -> None:
    """Catches: a Location that is made absolute, and a stream that gains a length."""
    app = make_flask()

    assert replayed(app, environ_of("POST", PATH_INFO=path)) == ask(app, environ_of("POST", PATH_INFO=path))


def test_a_multipart_upload_arrives_byte_for_byte() -> None:
    """Catches: an upload that is decoded, cut, or read in text mode on its way through the temporary file."""
    status, _, body = replayed(
        make_werkzeug(), environ_of("POST", FORM, CONTENT_TYPE=f"multipart/form-data; boundary={BOUNDARY}")
    )

    assert status == "201 CREATED"
    assert body == IMAGE


def test_a_chunked_upload_arrives_byte_for_byte() -> None:
    """Catches: a framework that takes a body without a length for none."""
    environ = environ_of("POST", IMAGE, HTTP_TRANSFER_ENCODING="chunked", CONTENT_TYPE="image/png")
    del environ["CONTENT_LENGTH"]
    environ["wsgi.input_terminated"] = True

    assert replayed(make_werkzeug(), environ)[2] == IMAGE


def test_a_conditional_get_is_answered_in_full() -> None:
    """Catches: a 304 at the result URL, fetched by a client that has nothing."""
    status, _, _ = replayed(make_werkzeug(), environ_of("GET", HTTP_IF_NONE_MATCH='"v1"', HTTP_RANGE="bytes=0-1"))

    assert status == "201 CREATED"


@pytest.mark.parametrize("app", [plain, make_flask()])
def test_a_head_request_and_a_head_fetch_have_no_body(app: App) -> None:
    """Catches: a body after the answer to a HEAD, which the next answer on the connection would begin with."""
    direct = ask(app, environ_of("GET"))
    status, headers, body = replayed(app, environ_of("GET"), fetch="HEAD")
    assert (status, body) == (direct[0], b"")
    assert dict(headers)["Content-Length"] == str(len(direct[2]))

    status, headers, body = replayed(app, environ_of("HEAD"))
    assert (status, body) == (direct[0], b"")
    assert "Content-Length" not in dict(headers)


@pytest.mark.parametrize("missing", ["QUERY_STRING", "PATH_INFO", "SCRIPT_NAME", "REMOTE_ADDR", "CONTENT_LENGTH"])
def test_a_server_may_leave_entries_out(missing: str) -> None:
    """Catches: a KeyError on servers that give no more than PEP 3333 asks for."""
    environ = environ_of("GET")
    del environ[missing]
    request = record(environ, max_body=10**7)

    outcome = run(cast("Any", validated(plain)), request, extras={})

    assert outcome.status == 299
    assert outcome.response is not None
    outcome.response.body.close()


# What a server decodes as latin-1, and what the process environment smuggles through as surrogates.
texts = st.text(st.characters(max_codepoint=0xFF) | st.characters(min_codepoint=0xDC80, max_codepoint=0xDCFF))
names = st.text("ABCDEFGHIJKLMNOPQRSTUVWXYZ_", min_size=1).map(lambda name: f"HTTP_X_{name}")


@given(entries=st.dictionaries(names, texts), body=st.binary(max_size=200))
def test_any_value_and_any_body_come_back_as_they_were(entries: dict[str, str], body: bytes) -> None:
    """Catches: an encoding that cannot hold what servers put into an environ."""
    seen: dict[str, Any] = {}

    def app(environ: dict[str, Any], start_response: Start) -> Iterable[bytes]:
        seen.update(environ)
        start_response("200 OK", [])
        return [environ["wsgi.input"].read(len(body))]

    outcome = run(cast("Any", app), record(environ_of("POST", body, **entries), max_body=200), extras={})

    assert {key: seen[key] for key in entries} == entries
    assert outcome.response is not None
    with outcome.response.body as file:
        assert file.read() == body
