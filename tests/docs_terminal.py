"""A terminal that runs the commands of the documentation and compares what they print with what is shown there.

Commands go to a real site on another port.  ``curl`` is played by a few lines of Python, so that the tests need
no program that may be missing; it knows only the options that the pages use.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shlex
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from tests.support import ROOT, Reply, ask

SHOWN_URL = "http://127.0.0.1:8000"
_ID = re.compile(r"[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}")
#: Headers that are the server's own.
_SERVERS = {"server", "date", "connection", "content-length", "transfer-encoding"}
#: Where the text itself is promised, and not only that there is one.
_EXACT = {"status", "priority", "type", "title", "detail", "kind", "journal_mode", "durability"}

_CURL = argparse.ArgumentParser(prog="curl", add_help=False)
_CURL.add_argument("url")
_CURL.add_argument("-s", action="store_true")
_CURL.add_argument("-i", action="store_true")
_CURL.add_argument("-o")
_CURL.add_argument("-X", default="")
_CURL.add_argument("-d")
_CURL.add_argument("-H", action="append", default=[])

#: Brings a ticket into the state that an example shows; called with the ticket's status URL and the state.
Settle = Callable[[str, str], None]


def commands(text: str) -> Iterator[tuple[str, str]]:
    """Yield each command of a console block with the output that is shown for it."""
    parts = re.split(r"^\$ (.*)\n?", text, flags=re.MULTILINE)
    assert not parts[0], f"output without a command: {parts[0]}"
    for command, output in zip(parts[1::2], parts[2::2], strict=True):
        yield command, output.rstrip("\n")


class Terminal:
    """Runs the commands of one page, one after the other, in the folder.

    :param url: where the site runs that the page has at `SHOWN_URL`.
    :param settle: see `Settle`.
    :param others: command's first word (or the one behind ``wsgi-admission``) -> what plays it: called with the words
        and the output shown.
    """

    def __init__(
        self,
        folder: Path,
        url: str = "",
        settle: Settle = lambda _url, _state: None,
        **others: Callable[[list[str], str], None],
    ) -> None:
        self._folder = folder
        self._url = url
        self._settle = settle
        self._others = others
        self._ids: dict[str, str] = {}
        self._status = 0

    def run(self, text: str) -> list[str]:
        """Run the commands of a block; return them."""
        done = []
        for command, shown in commands(text):
            self._run(command, shown)
            done.append(command)
        return done

    def _run(self, command: str, shown: str) -> None:
        words = shlex.split(command)
        environment = {}
        while re.match(r"[A-Z_]+=", words[0]):
            name, _, environment[name] = words.pop(0).partition("=")
        if words == ["echo", "$?"]:
            assert shown == str(self._status)
            self._status = 0
            return
        assert self._status == 0, f"the command before {command!r} ended with {self._status}"
        program = words[0].rpartition("/")[2]
        if program in self._others:
            self._others[program]([*(f"{k}={v}" for k, v in environment.items()), *words], shown)
        elif program == "curl":
            self._curl(words[1:], shown)
        elif program == "wsgi-admission":
            self._wsgi_admission(words[1:], environment, shown)
        else:
            raise AssertionError(f"nothing here can run {command!r}")

    def _wsgi_admission(self, words: list[str], environment: dict[str, str], shown: str) -> None:
        if words[0] in self._others:
            self._others[words[0]](words, shown)
            return
        if words[0] == "demo":
            assert words[1] == "--load", "the demo itself is started by the test"
            words = ["demo", "--load", "2", "--url", self._url]  # fifty would take half a minute
        ended = subprocess.run(
            [sys.executable, "-m", "wsgi_admission", *words],
            cwd=self._folder, env={**os.environ, "PYTHONPATH": str(ROOT), "COLUMNS": "200", **environment},
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=60, check=False,
        )  # fmt: skip
        self._status = ended.returncode
        assert_like(ended.stdout, shown)

    def _curl(self, words: list[str], shown: str) -> None:
        given = _CURL.parse_args([self._real(word) for word in words])
        assert given.url.startswith(self._url), f"{given.url}: the pages have their site at {SHOWN_URL}"
        found = _ID.search(given.url)
        state = _state_shown(f"{' '.join(words)}\n{shown}")
        if found and state and found[0] in self._ids.values():
            self._settle(f"{self._url}/api/queue/status/{found[0]}", state)
        elif given.d is not None and not any(header.startswith("Prefer: wait") for header in given.H):
            self._settle("", "queued")
        body = None if given.d is None else given.d.encode()
        headers = {"Content-Type": "application/x-www-form-urlencoded"} if body else {}
        headers |= dict(header.split(": ", 1) for header in given.H)
        reply = ask(given.url, given.X or ("POST" if given.d is not None else "GET"), body, headers)
        if given.o:
            (self._folder / given.o).write_bytes(reply.body)
        elif shown:
            self._compare(reply, shown, head=given.i)

    def _real(self, word: str) -> str:
        word = word.replace(SHOWN_URL, self._url)
        return _ID.sub(lambda found: self._ids.get(found[0], found[0]), word)

    def _compare(self, reply: Reply, shown: str, *, head: bool) -> None:
        if head:
            top, _, shown = shown.partition("\n\n")
            compare_head(reply, top)
        if not shown:
            return
        if not shown.startswith("{"):
            assert_like(reply.body.decode(), shown)
            return
        expected, whole = read_json(shown)
        real = reply.json()
        if "request_id" in expected and "queued" in expected and expected["request_id"] not in self._ids:
            self._ids[expected["request_id"]] = real["request_id"]
        compare_shape(real, expected, whole=whole)


def _state_shown(example: str) -> str:
    """Return the state that a ticket must be brought to for such an example, or an empty string."""
    found = re.search(r'"status": "(\w+)"|Admission-Status: (\w+)|Last-Event-ID: (\w+)|is (\w+) already', example)
    state = next(filter(None, found.groups())) if found else "completed" if "/result/" in example else ""
    return "" if state == "cancelled" or "was cancelled" in example else state  # an earlier example did that


def compare_head(reply: Reply, shown: str) -> None:
    """Compare status line and headers; ``...`` stands for headers that are not shown."""
    line, *headers = shown.splitlines()
    assert line == f"HTTP/1.1 {reply.status} {reply.reason}"
    real = {name: value for name, value in reply.headers if name.lower() not in _SERVERS}
    expected = dict(header.split(": ", 1) for header in headers if header != "...")
    for name, value in expected.items():
        assert_like(real.get(name, f"no {name}"), value)
    if "..." not in headers:
        assert set(real) == set(expected)


def read_json(shown: str) -> tuple[dict[str, Any], bool]:
    """Return the object that is shown, and whether it is the whole one: ``, ...}`` stands for more."""
    whole = not re.search(r",\s*\.\.\.\s*\}$", shown)
    data: dict[str, Any] = json.loads(re.sub(r",\s*\.\.\.\s*\}$", "}", shown))
    return data, whole


def compare_shape(real: Any, shown: Any, *, whole: bool = True, where: str = "the answer") -> None:
    """Compare the keys at every depth, and the kinds of the values; a value that may be null may be null."""
    if isinstance(shown, dict):
        assert isinstance(real, dict), where
        missing, unknown = set(real) - set(shown), set(shown) - set(real)
        assert not unknown, f"{where} has no {unknown}"
        assert not (whole and missing), f"{where} has {missing}, which are not shown"
        for name, value in shown.items():
            compare_shape(real[name], value, where=f"{where} {name}")
            if name in _EXACT and isinstance(value, str):
                assert real[name] == value, f"{where} {name}"
    elif shown is not None and real is not None:
        assert {type(real), type(shown)} <= {int, float} or type(real) is type(shown), f"{where}: {real!r}"


def assert_like(real: str, shown: str) -> None:
    """Compare texts: numbers and ids may be others, spaces and line ends too, ``...`` stands for anything."""
    expression = re.sub(r"(?:\\ )?\\\.\\\.\\\.(?:\\ )?", ".*", re.escape(_normal(shown)))
    assert re.fullmatch(expression, _normal(real), re.DOTALL), f"shown:\n{shown}\n\nreal:\n{real}"


def _normal(text: str) -> str:
    text = re.sub(r"\[[^\]]*\] \[\d+\] \[INFO\] .*\n", "", text)  # gunicorn's log
    text = re.sub(r'"[0-9a-f]{24}"', '"TAG"', _ID.sub("ID", text))
    return " ".join(re.sub(r"\d+(?:\.\d+)?", "0", text).split())
