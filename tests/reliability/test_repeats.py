"""Clients that send every request twice, at the same time and with the same Idempotency-Key."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path

import pytest

from tests.reliability.running import CONFIG, line_of
from tests.reliability.size import sized
from tests.support import gunicorn, ini
from wsgi_admission.stores import open_store

KEYS = sized(200, 5000)


@pytest.fixture(params=["sqlite", "redis"])
def url(request: pytest.FixtureRequest, quick_path: Path) -> Iterator[str]:
    """The URL of a store."""
    with line_of(request.param, quick_path) as found:
        yield found


def test_parallel_repeats_are_one_ticket(tmp_path: Path, url: str) -> None:
    """Catches: a key that is looked up in one step and kept in another."""
    config = ini(tmp_path, f"{CONFIG}\n[store]\nurl = {url}\n")
    with gunicorn(tmp_path, config, options="replays=False", XDG_RUNTIME_DIR=str(tmp_path)) as site:

        def submit(number: int) -> tuple[int, int, str]:
            key = number // 2
            answer = site.ask("/twice", "POST", json.dumps(key).encode(), Idempotency_Key=f'"key {key}"')
            return key, answer.status, answer.json().get("request_id", "")

        with ThreadPoolExecutor(16) as threads:
            answers = list(threads.map(submit, range(2 * KEYS)))
    assert {status for _, status, _ in answers} == {202}
    tickets = defaultdict(set)
    for key, _, ticket in answers:
        tickets[key].add(ticket)
    assert all(len(same) == 1 for same in tickets.values()), "two tickets for one key"
    accepted = set[str]().union(*tickets.values())
    assert len(accepted) == KEYS, "one ticket for two keys"
    with closing(open_store(url)) as store:
        assert sum(tally.queued for tally in store.counts().values()) == KEYS
