"""Requests that are sent again under the same Idempotency-Key."""

from __future__ import annotations

import io
import threading
import time
from collections.abc import Iterator
from typing import Any

import pytest

from tests.test_middleware import Site
from tests.wsgi import Result, environ
from wsgi_admission import StoreUnavailable
from wsgi_admission.policy.decision import Mode
from wsgi_admission.receiving import Body
from wsgi_admission.replay import Recording
from wsgi_admission.ticket import State
from wsgi_admission.web import repeats
from wsgi_admission.web.repeats import NO_KEY, key_of

THREADS: dict[str, Any] = {"wsgi.multithread": True}


@pytest.fixture
def site() -> Iterator[Site]:
    """A site that queues everything and replays nothing."""
    made = Site(mode=Mode.QUEUE_ALL)
    yield made
    made.middleware.close()


def send(site: Site, body: bytes = b"prompt", key: str = '"k1"', **keys: Any) -> Result:
    """Send a request under a key."""
    return site.call(body=body, HTTP_IDEMPOTENCY_KEY=key, **keys)


def number(site: Site) -> int:
    """Return how many tickets there are."""
    return sum(tally.accepted for tally in site.middleware.process().store.counts().values())


def finish(site: Site, state: State, answer: bytes | None) -> None:
    """Run the first ticket."""
    store = site.middleware.process().store
    ticket = store.claim("w", now=time.time(), lease=30, routes=["image"])
    assert ticket is not None
    head = '{"status": "203 Fine", "headers": [["Content-Type", "image/png"]], "method": "POST"}'
    response = None if answer is None else Recording(head, io.BytesIO(answer), len(answer))
    store.finish(ticket.id, ticket.attempt, state, response, now=time.time(), error="It broke.")


def test_the_same_key_is_the_same_ticket(site: Site) -> None:
    """Catches: a picture drawn twice because its first 202 was lost on the way."""
    first, second = send(site), send(site)
    assert first.status == second.status == "202 Accepted"
    assert first.json()["request_id"] == second.json()["request_id"]
    assert second.json()["queue_info"]["position_in_queue"] == 1
    assert number(site) == 1


def test_another_body_under_the_same_key_is_refused(site: Site) -> None:
    """Catches: the answer to one request given for another."""
    send(site)
    refused = send(site, b"another prompt")
    assert refused.status == "422 Unprocessable Content"
    assert refused.header("Content-Type") == "application/problem+json"
    assert send(site, QUERY_STRING="seed=2").status == "422 Unprocessable Content"
    assert number(site) == 1


def test_the_key_is_the_clients_own(site: Site) -> None:
    """Catches: a stranger who gets somebody's ticket by guessing the key."""
    mine, theirs = send(site, REMOTE_ADDR="192.0.2.1"), send(site, b"x", REMOTE_ADDR="192.0.2.2")
    assert theirs.status == "202 Accepted"
    assert mine.json()["request_id"] != theirs.json()["request_id"]
    other = send(site, REMOTE_USER="ann", REMOTE_ADDR="192.0.2.1")
    assert other.json()["request_id"] != mine.json()["request_id"]


def test_without_a_key_two_requests_are_two(site: Site) -> None:
    """Catches: an empty key that is everybody's."""
    for key in ("", " "):
        assert send(site, key=key).status == send(site, key=key).status == "202 Accepted"
    assert number(site) == 4


def test_a_repeat_gets_the_result_once_it_is_there(site: Site) -> None:
    """Catches: a client that is told for ever that it waits."""
    send(site)
    finish(site, State.COMPLETED, b"\x00picture")
    again = send(site)
    assert (again.status, again.body) == ("203 Fine", b"\x00picture")
    assert again.header("Admission-Status") is None
    assert number(site) == 1


def test_a_repeat_of_what_failed_or_was_cancelled_is_told_so(site: Site) -> None:
    """Catches: a run that a key promised not to repeat."""
    send(site)
    finish(site, State.FAILED, None)
    assert send(site).status == "500 Internal Server Error"
    second = send(site, key='"k2"').json()
    site.call(second["cancel_url"], "DELETE")
    assert send(site, key='"k2"').status == "410 Gone"
    assert number(site) == 2


def test_a_repeat_is_known_while_the_server_is_idle() -> None:
    """Catches: a second run as soon as the load has gone."""
    site = Site(slots=1)
    _, held = site.open()
    first = send(site)
    assert first.status == "202 Accepted"
    finish(site, State.COMPLETED, b"picture")
    held.close()
    assert send(site).body == b"picture"
    assert len(site.environs) == 1
    site.middleware.close()


def at_the_same_time(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let four requests put their ticket at once."""
    store = site.middleware.process().store
    put, meet = store.put, threading.Barrier(4)

    def late(*of: Any, **how: Any) -> Any:
        meet.wait(30)
        return put(*of, **how)

    monkeypatch.setattr(store, "put", late)


def test_a_key_makes_one_run_while_the_server_is_idle(monkeypatch: pytest.MonkeyPatch) -> None:
    """Catches: requests that run at once, side by side, because none of them has a ticket."""
    site = Site(slots=4, replays=True)
    found = []
    at_the_same_time(site, monkeypatch)
    threads = [threading.Thread(target=lambda: found.append(send(site, **THREADS))) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    monkeypatch.undo()
    direct = [answer for answer in found if answer.status == "200 OK"]
    assert direct
    assert {answer.body for answer in direct} == {b"prompt"}
    assert all(answer.status == "202 Accepted" for answer in found if answer not in direct)
    assert send(site).body == b"prompt"
    assert len(site.environs) == number(site) == 1
    site.middleware.close()


def test_what_takes_long_is_told_its_place_meanwhile(monkeypatch: pytest.MonkeyPatch) -> None:
    """Catches: a client that is held for as long as its request runs."""
    monkeypatch.setattr("wsgi_admission.middleware.HOLD", 0.05)
    site = Site(slots=1)
    assert send(site, **THREADS).status == "202 Accepted"
    assert send(site, key='"k2"').status == "202 Accepted"  # and at once, where no thread can be spared
    assert site.environs == []
    site.middleware.close()


def test_a_store_that_cannot_be_opened_means_503_and_no_run(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    """Catches: a new process that runs what is in the line of the others."""

    def dead() -> Any:
        raise StoreUnavailable("The disk is gone.")

    monkeypatch.setattr(site.middleware, "process", dead)
    refused = send(site)
    assert (refused.status, refused.header("Content-Type")) == ("503 Service Unavailable", "application/problem+json")
    assert site.environs == []
    monkeypatch.undo()


def test_parallel_repeats_make_one_ticket(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    """Catches: a key that is looked for before it is put."""
    found: list[str] = []
    at_the_same_time(site, monkeypatch)
    threads = [threading.Thread(target=lambda: found.append(send(site).json()["request_id"])) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert len(found) == 4
    assert len(set(found)) == 1
    assert number(site) == 1


def test_a_store_that_cannot_tell_means_503_and_no_run(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    """Catches: a request that runs although it may be in the line already."""

    def dead(*_args: Any, **_keys: Any) -> Any:
        raise StoreUnavailable("The disk is gone.")

    monkeypatch.setattr(site.middleware.process().store, "put", dead)
    refused = send(site)
    assert refused.status == "503 Service Unavailable"
    assert refused.header("Retry-After")
    assert site.environs == []


@pytest.mark.parametrize("key", ['"', '""', '"a', 'a"b', "two words", "x" * 256, "\u00e9", '"a\x7f"', '"k";p=1', "\\"])
def test_a_key_that_is_none_is_refused(site: Site, key: str) -> None:
    """Catches: a key of which two readers see two things."""
    assert send(site, key=key).status == "400 Bad Request"
    assert number(site) == 0


def test_a_quoted_key_and_a_bare_one_are_the_same() -> None:
    """Catches: a client library that quotes, beside one that does not."""
    keys = [key_of(environ("/x", HTTP_IDEMPOTENCY_KEY=key), None) for key in ('"a-1"', "a-1", ' "a-1"\t')]
    assert len(set(keys)) == 1
    assert key_of(environ("/x", HTTP_IDEMPOTENCY_KEY=r'"say \"a\""'), None).value == 'say "a"'
    assert key_of(environ("/x"), None) == NO_KEY


def multipart(boundary: str, content: bytes) -> tuple[dict[str, Any], Body]:
    """Return an upload."""
    text = b"--%b\r\n\r\n%b\r\n--%b--\r\n" % (boundary.encode(), content, boundary.encode())
    env = environ("/x", "POST", HTTP_IDEMPOTENCY_KEY="k", CONTENT_TYPE=f'multipart/form-data; boundary="{boundary}"')
    return env, Body(io.BytesIO(text), len(text))


def test_an_upload_may_be_sent_again_with_another_boundary(monkeypatch: pytest.MonkeyPatch) -> None:
    """Catches: a repeat that is refused because most clients invent a boundary for each attempt."""
    first, again, other = multipart("aaa", b"cat"), multipart("bbbb", b"cat"), multipart("aaa", b"dog")
    assert key_of(*first) == key_of(*again)
    assert key_of(*first) != key_of(*other)
    assert first[1].file.tell() == 0
    monkeypatch.setattr(repeats, "WHOLE", 3)  # as if they were too large to be read as a whole
    assert key_of(*first) != key_of(*again)
    assert key_of(*first) == key_of(*multipart("aaa", b"cat"))
