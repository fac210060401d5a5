"""The line under real gunicorn: what a site's users and its operators would see."""

from __future__ import annotations

import json
import random
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from tests.support import Reply, Server, gunicorn, ini, until
from wsgi_admission.cli import main

FORCED = """
[admission]
max_concurrent = 1
worker_threads = 2
[load]
cpu_threshold = 0%
[tiers]
header = X-User-Tier
trusted_proxies = 127.0.0.0/8
[route:echo]
path = /echo
methods = GET, POST
[route:gated]
path = /gated
[route:broken]
path = /500
       /raise
       /half
"""
TIERS = ("anonymous", "registered", "donor")


@pytest.fixture
def site(tmp_path: Path) -> Iterator[Server]:
    """A site of two web workers and one process that replays, one slot, with the load threshold at 0 %."""
    with gunicorn(tmp_path, ini(tmp_path, FORCED)) as running:
        yield running


def hold(site: Server) -> Reply:
    """Put one request in front that takes the only slot until the gate opens."""
    first = site.ask("/gated?first", "POST")
    until(lambda: "start first" in site.starts(), "the start of the first")
    return first


def submit(site: Server, number: int) -> Reply:
    """Send request ``number``: its tier, and one of five clients in that tier, follow from it."""
    return site.ask(
        f"/gated?{number}",
        "POST",
        X_User_Tier=TIERS[number % 3],
        X_Forwarded_For=f"10.0.{number % 3}.{number // 3 % 5}",
    )


def test_fifty_at_once_are_accepted_run_in_tier_order_and_answered(site: Server) -> None:
    """Catches: a denied request, a lost one, tiers out of order, a client's own requests out of order."""
    hold(site)
    with ThreadPoolExecutor(50) as pool:
        accepted = list(pool.map(lambda number: submit(site, number), range(50)))
        assert [reply.status for reply in accepted] == [202] * 50
        assert site.ask("/ping").body == b"pong"

        def position(reply: Reply) -> int:
            place: int = site.ask(reply.json()["status_url"]).json()["position_in_queue"]
            return place

        assert sorted(pool.map(position, accepted)) == list(range(1, 51))
        site.open_gate()
        states = list(pool.map(site.final, accepted))

    assert [state["status"] for state in states] == ["completed"] * 50
    starts = [int(line.split()[1]) for line in site.starts()[1:]]
    assert sorted(starts) == list(range(50))
    assert [TIERS[number % 3] for number in starts] == ["donor"] * 16 + ["registered"] * 17 + ["anonymous"] * 17
    arrived = {accepted[number].json()["request_id"]: number for number in range(50)}
    assert len(arrived) == 50
    for number, reply in enumerate(accepted):
        assert site.ask(reply.json()["result_url"]).body == f"gated {number}".encode()


def test_the_requests_of_one_client_run_first_in_first_out(site: Server) -> None:
    """Catches: an order inside a client that is not that of its submissions."""
    hold(site)
    accepted = [site.ask(f"/gated?{number}", "POST") for number in range(8)]
    assert [reply.json()["queue_info"]["position_in_queue"] for reply in accepted] == list(range(1, 9))
    site.open_gate()
    for reply in accepted:
        site.final(reply)
    assert site.starts()[1:] == [f"start {number}" for number in range(8)]


MULTIPART = (
    b'--x\r\nContent-Disposition: form-data; name="image"; filename="a.png"\r\nContent-Type: image/png\r\n\r\n'
    + bytes(range(256)) * 1200
    + b"\r\n--x--\r\n"
)


@pytest.mark.parametrize(
    ("method", "body", "content_type"),
    [
        ("POST", MULTIPART, "multipart/form-data; boundary=x"),
        ("POST", b"", "application/json"),
        ("POST", b'{"prompt": "\xc3\xbc"}', "application/json"),
        ("GET", None, ""),
    ],
    ids=["multipart", "empty", "json", "get"],
)
def test_the_recorded_answer_is_the_direct_answer_byte_for_byte(
    tmp_path: Path, method: str, body: bytes | None, content_type: str
) -> None:
    """Catches: a header lost, joined or added, a status line rebuilt, a body decoded."""
    headers = {"Content_Type": content_type} if content_type else {}
    direct_folder = tmp_path / "direct"
    direct_folder.mkdir()
    text = FORCED.replace("[admission]", "[admission]\nmode = pass_through")
    with gunicorn(direct_folder, ini(direct_folder, text)) as site:
        direct = site.ask("/echo?a=%20b&c", method, body, **headers)
    with gunicorn(tmp_path, ini(tmp_path, FORCED)) as site:
        accepted = site.ask("/echo?a=%20b&c", method, body, **headers)
        assert accepted.header("Location") == accepted.json()["result_url"]
        assert site.final(accepted)["status"] == "completed"
        for _ in range(2):
            recorded = site.ask(accepted.json()["result_url"])
            assert (recorded.status, recorded.reason) == (direct.status, direct.reason) == (203, "Quite All Right")
            assert kept(recorded) == kept(direct)
            assert recorded.body == direct.body
            assert recorded.header("Admission-Status") is None


def kept(reply: Reply) -> list[tuple[str, str]]:
    """Return the headers less those that are the server's own, and the one that we put behind a recorded answer."""
    own = {"date", "server", "connection", "transfer-encoding", "content-length", "server-timing"}
    return [(name, value) for name, value in reply.headers if name.lower() not in own]


def upload(site: Server, number: int) -> Reply:
    """Send upload ``number``: its bytes, its boundary and its query are no other's."""
    boundary = f"part-{number}-of-fifty"
    # Empty, of one byte, just below and above what is read at once (64 KiB) and what stays in memory (256 KiB).
    size = (0, 1, 65_000, 66_000, 262_000, 263_000)[number % 6] + number
    body = (
        f'--{boundary}\r\nContent-Disposition: form-data; name="image"; filename="{number}.png"\r\n'
        "Content-Type: image/png\r\n\r\n".encode()
        + random.Random(number).randbytes(size)  # noqa: S311 - any bytes, the same for both sites
        + f"\r\n--{boundary}--\r\n".encode()
    )
    content_type = f"multipart/form-data; boundary={boundary}"
    return site.ask(f"/echo?{number}", "POST", body, Content_Type=content_type)


def as_sent(reply: Reply) -> tuple[int, str, list[tuple[str, str]], bytes]:
    """Return all of an answer that does not depend on when and on which connection it was sent."""
    ours = {"date", "server", "connection", "server-timing"}  # the last one is put behind a recorded answer
    headers = [(name, value) for name, value in reply.headers if name.lower() not in ours]
    return reply.status, reply.reason, headers, reply.body


def test_fifty_uploads_at_once_are_answered_as_they_would_have_been_directly(tmp_path: Path) -> None:
    """Catches: uploads that are mixed up, cut or lost on the way through many threads and several processes."""
    echo = FORCED.replace("max_concurrent = 1", "max_concurrent = 2")
    folders = {mode: tmp_path / mode for mode in ("pass_through", "queue_all")}
    configs = {}
    for mode, folder in folders.items():
        folder.mkdir()
        configs[mode] = ini(folder, echo.replace("[admission]", f"[admission]\nmode = {mode}"))
    numbers = range(50)
    with ThreadPoolExecutor(50) as pool:
        with gunicorn(folders["pass_through"], configs["pass_through"]) as site:
            direct = list(pool.map(lambda number: as_sent(upload(site, number)), numbers))
        with gunicorn(folders["queue_all"], configs["queue_all"]) as site:
            accepted = list(pool.map(lambda number: upload(site, number), numbers))
            assert [reply.status for reply in accepted] == [202] * 50
            assert [state["status"] for state in pool.map(site.final, accepted)] == ["completed"] * 50
            results = pool.map(lambda reply: as_sent(site.ask(reply.json()["result_url"])), accepted)
            # One by one: a difference of megabytes is nothing to look at.
            differing = [number for number, result in zip(numbers, results, strict=True) if result != direct[number]]
    assert {answer[:2] for answer in direct} == {(203, "Quite All Right")}
    assert len({answer[3] for answer in direct}) == 50
    assert differing == []


def test_any_worker_answers_and_positions_fall_while_nobody_better_arrives(site: Server) -> None:
    """Catches: state that lives in one process; a position that rises."""
    hold(site)
    accepted = [submit(site, number).json()["status_url"] for number in range(9)]
    before = [site.ask(url).json()["position_in_queue"] for url in accepted for _ in range(4)]
    assert [before[i : i + 4] for i in range(0, 36, 4)] == [[before[i]] * 4 for i in range(0, 36, 4)]
    site.open_gate()
    seen: dict[str, list[int]] = {url: [] for url in accepted}

    def all_done() -> bool:
        places = {url: site.ask(url).json()["position_in_queue"] for url in accepted}
        for url, place in places.items():
            seen[url].append(place or 0)
        return not any(places.values())

    until(all_done, "the end of the line")
    for places in seen.values():
        assert places == sorted(places, reverse=True)


def test_a_queued_request_is_cancelled_by_its_owner_and_never_runs(site: Server) -> None:
    """Catches: a cancel that only changes what is shown."""
    hold(site)
    accepted = site.ask("/gated?unwanted", "POST").json()
    cancelled = site.ask(accepted["cancel_url"], "DELETE")
    assert (cancelled.status, cancelled.json()["status"]) == (200, "cancelled")
    again = site.ask(accepted["cancel_url"], "DELETE")
    assert (again.status, again.header("Content-Type")) == (409, "application/problem+json")
    assert site.ask(accepted["result_url"]).status == 410
    last = site.ask("/gated?last", "POST")
    site.open_gate()
    site.final(last)
    assert "start unwanted" not in site.starts()


def test_a_running_request_is_cancelled_when_the_app_returns(site: Server) -> None:
    """Catches: a cancelled run whose response is kept after all."""
    first = hold(site)
    asked = site.ask(first.json()["cancel_url"], "DELETE")
    assert (asked.status, asked.json()["status"]) == (200, "processing")
    site.open_gate()
    assert site.final(first)["status"] == "cancelled"
    assert site.ask(first.json()["result_url"]).status == 410


@pytest.mark.parametrize(
    ("path", "status", "body"), [("/500", 500, b"no paint left"), ("/raise", 500, None), ("/half", 500, None)]
)
def test_a_failing_app_is_told_as_failed(site: Server, path: str, status: int, body: bytes | None) -> None:
    """Catches: half a body served as whole, an exception's text shown to a client, a stuck ticket."""
    accepted = site.ask(path, "POST")
    state = site.final(accepted)
    assert state["status"] == "failed"
    assert state["error_message"]
    assert state["message"].startswith("❌ Your request failed. ")
    assert state["retry_suggestion"]["delay_seconds"] >= 1
    result = site.ask(accepted.json()["result_url"])
    assert result.status == status
    assert b"secret" not in result.body
    assert "secret" not in state["error_message"]
    if body is not None:
        assert (result.reason, result.body) == ("Out Of Paint", body)


def test_what_is_unknown_wrong_or_expired_is_told_apart(tmp_path: Path) -> None:
    """Catches: 404 for what has expired, an id echoed, a method without Allow."""
    text = FORCED.replace("[admission]", "[admission]\nretention = 100ms\ncleanup_interval = 100ms")
    with gunicorn(tmp_path, ini(tmp_path, text)) as site:
        unknown = site.ask("/api/queue/status/00000000-0000-4000-8000-000000000000")
        assert (unknown.status, unknown.header("Content-Type")) == (404, "application/problem+json")
        accepted = site.ask("/echo", "POST", b"x").json()
        until(lambda: site.ask(accepted["status_url"]).status == 410, "the end of the retention")
        assert site.ask(accepted["result_url"]).status == 410
        wrong = site.ask(accepted["status_url"], "PUT")
        assert wrong.status == 405
        assert wrong.header("Allow") == "GET, DELETE, HEAD, OPTIONS"
        assert site.ask("/api/queue/elsewhere").status == 404


def test_a_truncated_or_too_large_body_is_refused_and_nothing_is_queued(tmp_path: Path) -> None:
    """Catches: half an upload in the line."""
    import socket  # noqa: PLC0415 - only here

    text = FORCED.replace("path = /echo", "path = /echo\nmax_body = 1KiB")
    with gunicorn(tmp_path, ini(tmp_path, text)) as site:
        assert site.ask("/echo", "POST", b"x" * 1025).status == 413
        host, port = site.url.removeprefix("http://").split(":")
        with socket.create_connection((host, int(port)), timeout=10) as connection:
            connection.sendall(b"POST /echo HTTP/1.1\r\nHost: x\r\nContent-Length: 10\r\n\r\nhalf")
            connection.shutdown(socket.SHUT_WR)
            assert connection.recv(1000).startswith(b"HTTP/1.1 400 ")
        figures = site.ask("/api/queue/metrics").json()
        assert figures["queued_requests"] == figures["processing_requests"] == figures["completed_requests"] == 0


def test_while_there_is_room_requests_pass(tmp_path: Path) -> None:
    """Catches: a line in front of an idle server; a slot that is never given back."""
    text = FORCED.replace(
        "cpu_threshold = 0%", "cpu_threshold = 100%\nmemory_threshold = 100%\nthreshold = 100%\nresume = 99%"
    )
    with gunicorn(tmp_path, ini(tmp_path, text)) as site:
        for _ in range(5):
            until(lambda: site.ask("/echo", "POST", b"x").status == 203, "room for a request")
        figures = until(
            lambda: (m := site.ask("/api/queue/metrics").json())["passed_requests"] == 5 and m,
            "the count of passed ones",
        )
        assert figures["total_requests"] >= 5  # those that met a busy machine were queued


def test_health_and_metrics_have_the_fields_of_the_contract(site: Server) -> None:
    """Catches: a field renamed or lost."""
    hold(site)
    submit(site, 0)
    figures = site.ask("/api/queue/metrics").json()
    assert {
        "total_requests", "queued_requests", "processing_requests", "completed_requests", "failed_requests",
        "average_wait_time", "average_processing_time", "queue_throughput", "server_load", "queue_lengths",
        "max_concurrent_requests",
    } <= set(figures)  # fmt: skip
    assert figures["queue_lengths"] == {"high_priority": 0, "medium_priority": 0, "low_priority": 1}
    assert (figures["queued_requests"], figures["processing_requests"], figures["total_requests"]) == (1, 1, 2)
    health = site.ask("/api/queue/health").json()
    assert {"status", "server_load", "queue_length", "processing_requests", "timestamp", "checks"} <= set(health)
    assert health["queue_length"] == 1
    assert health["checks"]["slots"] == {"status": "ok", "in_use": 1, "limit": 1}
    assert health["checks"]["workers"] == {"status": "ok", "processes": 1, "threads": 2}


def test_an_operator_stops_a_running_site_takes_back_a_run_and_goes_on(site: Server, tmp_path: Path) -> None:
    """Catches: a process that does not see the pause, an answer of a run that was taken back, a line that stays."""

    def operator(*arguments: str) -> Any:
        ended = CliRunner().invoke(main, [*arguments, "--json", "--config", str(tmp_path / "admission.ini")])
        assert ended.exit_code == 0, ended.output
        return json.loads(ended.stdout)

    first = hold(site)
    (running,) = operator("status")["running"]
    assert operator("pause") == {"name": "main", "paused": True, "queued": 0, "processing": 1}
    second = submit(site, 1)
    # Not the 202 itself: it tells no place if the store was slow.
    assert "paused" in site.ask(second.json()["status_url"]).json()["message"]
    assert site.ask("/api/queue/health").json()["checks"]["paused"] == {"status": "paused"}
    assert operator("requeue", running["request_id"][:8])["status"] == "queued"
    site.open_gate()
    until(lambda: site.ask("/api/queue/health").json()["checks"]["slots"]["in_use"] == 0, "the end of the first run")
    assert operator("drain", "--wait", "--timeout", "10")["queued"] == 2
    assert len(site.starts()) == 1
    assert operator("resume")["paused"] is False
    assert [site.final(reply)["status"] for reply in (first, second)] == ["completed"] * 2
    assert sorted(site.starts()) == ["start 1", "start first", "start first"]
