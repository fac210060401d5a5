from __future__ import annotations

import signal
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from playwright.sync_api import Browser

from tests.browsers import chromium
from tests.redis_servers import RedisServer, started

# What a script starts in the background ignores SIGINT, and so would the programs that are interrupted here.
signal.signal(signal.SIGINT, signal.default_int_handler)

_RELIABILITY = Path(__file__).parent / "reliability"


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark the tests of the folder as what is run alone: most of them ask for an answer within seconds."""
    for item in items:
        if _RELIABILITY in item.path.parents:
            item.add_marker("alone")


@pytest.fixture(scope="session")
def shared_server() -> Iterator[Callable[[str], RedisServer]]:
    """Return an empty server of a kind; it is started when it is first asked for, and serves all tests."""
    running: dict[str, RedisServer] = {}
    # A Unix socket's path has room for about a hundred characters.
    with tempfile.TemporaryDirectory(prefix="wa-", ignore_cleanup_errors=True) as folder:

        def empty(kind: str) -> RedisServer:
            if kind not in running:
                running[kind] = started(Path(folder) / kind, kind)
            assert running[kind].ask("FLUSHALL") == b"+OK\r\n"
            return running[kind]

        yield empty
        for server in running.values():
            server.stop()


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    """A browser that the tests of a module share; each opens a page of its own with `page_of`.

    While it is there its event loop runs in this thread, and no test can run another one.
    """
    with chromium() as running:
        yield running
