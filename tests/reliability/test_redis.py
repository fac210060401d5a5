"""A Redis server that is killed, cut off or slow while its site is visited."""

from __future__ import annotations

import random
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, closing
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest

from tests.redis_servers import RedisServer, started
from tests.reliability.delaying import Network
from tests.reliability.history import check
from tests.reliability.running import ANSWERED, BACK, CONFIG, Visits, at_once, at_the_end, emptied, go_on, visited
from tests.reliability.size import sized
from tests.support import Server, gunicorn, ini, until
from wsgi_admission.stores.scripts import script

KILLS = sized(2, 20)
#: Seconds for which the server is away after a kill, cut off, and slow.
AWAY, CUT, SLOW = 0.5, sized(1.0, 30.0), sized(2.0, 30.0)
#: Seconds by which every answer of the slow server is late.
DELAY = 0.5
#: Seconds for which the answers to puts are lost: after each nothing is tried for a second.
LOSING = sized(5.0, 60.0)
#: Slots of the site, and requests that come at once: more than there are slots.
SLOTS, CROWD = 6, 9
#: How many of the visitors' requests have an Idempotency-Key.
KEYED = 0.5
#: Seconds that a request of the crowd takes.
RUN = 0.3


@pytest.fixture
def redis() -> Iterator[RedisServer]:
    """A server that has on its disk what it has answered."""
    with TemporaryDirectory(prefix="wa-", ignore_cleanup_errors=True) as folder:
        running = started(Path(folder), "redis", "--appendonly", "yes", "--appendfsync", "always")
        yield running
        running.stop()


@pytest.fixture
def history(tmp_path: Path) -> Path:
    """The history of the run."""
    file = tmp_path / "history"
    file.touch()
    return file


def site_on(url: str, folder: Path, history: Path) -> AbstractContextManager[Server]:
    """Return what starts a site with its line at a URL."""
    text = f"{CONFIG}\n[tiers]\nresolver = tests.reliability.site:who\n[store]\nurl = {url}\n"
    site: AbstractContextManager[Server] = gunicorn(
        folder,
        ini(folder, text),
        settings="threads = 16",
        app="tests.reliability.site:app",
        ADMISSION_TEST_HISTORY=str(history),
        XDG_RUNTIME_DIR=str(folder),
    )
    return site


def crowd(visits: Visits, seed: str) -> None:
    """Send more requests at once than there are slots, and see that some run and none is queued."""

    def submit(number: int) -> str | None:
        dice = random.Random(f"{seed} {number}")  # noqa: S311 - repeatable
        return visits.visitor(dice, seconds=(RUN, RUN), routes=["/twice"]).submit("donor:crowd")

    before = visits.statuses.copy()
    with ThreadPoolExecutor(CROWD) as threads:
        assert not any(threads.map(submit, range(CROWD))), "a 202 without a store"
    assert visits.statuses[200] > before[200], "none ran at once"


def back(visits: Visits, seed: str) -> None:
    """See that requests are kept again."""
    visitor = visits.visitor(random.Random(seed))  # noqa: S311 - repeatable
    who, since = visitor.somebody(), time.monotonic()
    ticket = until(lambda: visitor.submit(who), "a ticket again", BACK)
    assert time.monotonic() - since < BACK
    visitor.look_after([ticket], who)


def nothing_is_lost(url: str, history: Path, visits: Visits) -> None:
    """Look at the end of a run."""
    totals = emptied(url)
    assert totals["crashed"] == totals["late"] == 0, "nobody was killed"
    events = at_the_end(url, history)
    found = check(events)
    assert found.faults == [], found.faults[:10]
    assert at_once(events) <= SLOTS
    assert found.accepted >= 10
    assert set(visits.statuses) <= {200, 202, 503}, visits.statuses
    assert visits.longest < ANSWERED


def test_nothing_is_lost_while_redis_is_killed_and_restarted(tmp_path: Path, redis: RedisServer, history: Path) -> None:
    """Catches: a 202 before the server has it on its disk, a site that hangs without its server or stays so after."""
    with site_on(redis.url, tmp_path, history) as site:
        with visited(site, history, keyed=KEYED) as visits:
            for kill in range(KILLS):
                go_on(visits, 10)
                redis.kill()
                try:
                    crowd(visits, f"crowd {kill}")
                    time.sleep(AWAY)  # the visitors go on meanwhile
                finally:
                    redis.start()
                back(visits, f"back {kill}")
        nothing_is_lost(redis.url, history, visits)


def test_nothing_is_lost_while_redis_is_cut_off_and_then_slow(
    tmp_path: Path, redis: RedisServer, history: Path
) -> None:
    """Catches: a step that is done after its caller was told that it failed, a wait for each step of a request."""
    with closing(Network(redis.path)) as network, site_on(network.url, tmp_path, history) as site:
        with visited(site, history, keyed=KEYED) as visits:
            go_on(visits, 10)
            with network.cut():
                crowd(visits, "crowd")
                time.sleep(CUT)  # the visitors go on meanwhile
            back(visits, "back")
            with network.slow(DELAY):
                time.sleep(SLOW)  # the visitors go on meanwhile
            back(visits, "back again")
        nothing_is_lost(network.url, history, visits)


def test_a_key_is_one_run_while_the_answers_to_puts_are_lost(tmp_path: Path, redis: RedisServer, history: Path) -> None:
    """Catches: a ticket that its key has found, cancelled or forgotten because its put had no answer."""
    with closing(Network(redis.path)) as network, site_on(network.url, tmp_path, history) as site:
        with visited(site, history, keyed=1.0) as visits:
            go_on(visits, 10)
            with network.losing_answers_to(script("put").sha):
                time.sleep(LOSING)  # the visitors go on meanwhile
            back(visits, "back")
        assert visits.statuses[503] > 0, "no answer was lost"
        nothing_is_lost(network.url, history, visits)
