"""Call a WSGI app in this process, under wsgiref's validator."""

from __future__ import annotations

import io
import json
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any
from wsgiref.util import setup_testing_defaults
from wsgiref.validate import validator

from tests import described
from wsgi_admission import recording
from wsgi_admission.receiving import receive
from wsgi_admission.recording import Recording


@dataclass
class Result:
    """What the app answered."""

    status: str
    headers: list[tuple[str, str]]
    body: bytes

    def json(self) -> Any:
        """Return the body as JSON."""
        return json.loads(self.body)

    def header(self, name: str) -> str | None:
        """Return the first header of this name."""
        return next((value for key, value in self.headers if key.lower() == name.lower()), None)


def environ(path: str, method: str = "GET", body: bytes = b"", **keys: Any) -> dict[str, Any]:
    """Return a complete environ; ``keys`` are put into it as they are."""
    path, _, query = path.partition("?")
    env: dict[str, Any] = {
        "SCRIPT_NAME": "",
        "PATH_INFO": path,
        "QUERY_STRING": query,
        "REQUEST_METHOD": method,
        "wsgi.input": io.BytesIO(body),
        "CONTENT_LENGTH": str(len(body)),
        "REMOTE_ADDR": "127.0.0.1",
    }
    setup_testing_defaults(env)
    return {**env, **keys}


def call(app: Callable[..., Iterable[bytes]], path: str, method: str = "GET", body: bytes = b"", **keys: Any) -> Result:
    """Call the app and read and close its answer."""
    told: list[Any] = []

    def start_response(status: str, headers: list[tuple[str, str]], exc_info: Any = None) -> Callable[[bytes], object]:
        told[:] = [status, headers]
        return lambda _data: None

    answer = validator(app)(environ(path, method, body, **keys), start_response)
    try:
        text = b"".join(answer)
    finally:
        answer.close()  # type: ignore[attr-defined]  # the validator's iterator has it
    where = f"{keys.get('SCRIPT_NAME', '')}{path}"
    described.check(where, method, int(told[0][:3]), told[1], text)
    return Result(told[0], told[1], text)


def record(environ: dict[str, Any], *, max_body: int) -> Recording:
    """Read the body of a request and record it."""
    return recording.record(environ, receive(environ, max_body=max_body))
