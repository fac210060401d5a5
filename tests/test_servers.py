"""The same wrapped app under servers other than gunicorn, in one process with memory://."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from tests.support import Server, free_port, server, until

WAITRESS = """
from waitress import serve
from tests.memory_site import app
serve(app, host="127.0.0.1", port={port}, threads=8)
"""
WERKZEUG = """
from werkzeug.serving import run_simple
from tests.memory_site import app
run_simple("127.0.0.1", {port}, app, threaded=True)
"""
WSGIREF = """
from socketserver import ThreadingMixIn
from wsgiref.simple_server import WSGIServer, make_server
from tests.memory_site import app
class Threaded(ThreadingMixIn, WSGIServer):
    daemon_threads = True
make_server("127.0.0.1", {port}, app, server_class=Threaded).serve_forever()
"""


@pytest.mark.parametrize("script", [WAITRESS, WERKZEUG, WSGIREF], ids=["waitress", "werkzeug", "wsgiref"])
def test_the_line_works_in_one_process_of_another_server(tmp_path: Path, script: str) -> None:
    """Catches: what only gunicorn does: an input that can be read twice, a server that closes answers late."""
    port = free_port()
    with server(tmp_path, [sys.executable, "-c", script.format(port=port)], f"http://127.0.0.1:{port}") as site:
        check(site)


def check(site: Server) -> None:
    """Queue, watch, cancel, replay and fetch."""
    first = site.ask("/gated?first", "POST", b"x" * 300_000)
    until(lambda: site.starts() == ["start first"], "the first start")
    waiting = [site.ask("/gated?next", "POST", b"") for _ in range(3)]
    assert [reply.json()["queue_info"]["position_in_queue"] for reply in waiting] == [1, 2, 3]
    assert site.ask("/ping").body == b"pong"
    assert site.ask(waiting[0].json()["cancel_url"], "DELETE").json()["status"] == "cancelled"
    site.open_gate()
    assert site.final(first)["status"] == "completed"
    assert [site.final(reply)["status"] for reply in waiting] == ["cancelled", "completed", "completed"]

    body = bytes(range(256)) * 2000
    echoed = site.ask("/echo?a=b", "POST", body)
    assert site.final(echoed)["status"] == "completed"
    result = site.ask(echoed.json()["result_url"])
    assert (result.status, result.reason) == (203, "Quite All Right")
    assert result.body == bytes(range(256)) + b"POST|" + body
    assert [value for name, value in result.headers if name == "Set-Cookie"] == ["a=1; Path=/", "b=2"]
    # So little that it is sent before a server that does not read it can reset the connection.
    assert site.ask("/small", "POST", b"x" * 101).status == 413
    assert site.ask("/api/queue/health").json()["checks"]["store"]["kind"] == "memory"
