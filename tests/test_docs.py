"""Every command, snippet and figure of an answer in the README and the docs, run for real.

Not run here: ``make`` (the Makefile is what runs these tests; that it has the target is checked) and ``pip``, which
the Makefile runs.  ``make demo`` is played by the command that the Makefile runs for it.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from docutils import nodes
from flask import Flask
from werkzeug.serving import make_server

from tests.docs_pages import PAGES, Block, blocks, literals, tree, write_files
from tests.docs_terminal import SHOWN_URL, Terminal, assert_like, compare_shape, read_json
from tests.store_model import recording, ticket
from tests.support import ROOT, Reply, ask, free_port, gunicorn, ini, server, stop, until
from tests.wsgi import call, environ
from wsgi_admission import AdmissionMiddleware, load_config
from wsgi_admission.config import SECTIONS
from wsgi_admission.options import Kind, options_of
from wsgi_admission.policy.decision import Mode
from wsgi_admission.stores import open_store
from wsgi_admission.stores.records import Worker
from wsgi_admission.ticket import LEGAL_MOVES, State

README, HTTP, CONFIGURATION = ROOT / "README.rst", ROOT / "docs" / "http.rst", ROOT / "docs" / "configuration.rst"
DASHBOARD = ROOT / "docs" / "dashboard.rst"
HOW, OPERATING = ROOT / "docs" / "how-it-works.rst", ROOT / "docs" / "operating.rst"
SOURCE = "\n".join(
    file.read_text("utf-8") for kind in ("*.py", "*.ini") for file in sorted((ROOT / "wsgi_admission").rglob(kind))
)
MAKEFILE = (ROOT / "Makefile").read_text("utf-8")
#: Names in the pages that are others': of gunicorn, WSGI servers, systemd and HTTP.
OTHERS = {
    "X_User_Tier",
    "preload_app",
    "max_requests",
    "wsgi_app",
    "MALLOC_ARENA_MAX",
    "MALLOC_MMAP_THRESHOLD_",
    "MALLOC_TRIM_THRESHOLD_",
    "X-Forwarded-For",
    "Access-Control-Allow-Origin",
    "Idempotency-Key",
    "Prefer",
    "If-Range",
    "Last-Event-ID",
}


def reference(block: Block) -> str:
    """Name a block."""
    return block.name


@pytest.fixture
def desk(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A working directory with the files of the page in hand, from which Python imports."""
    write_files(tmp_path, request.param if isinstance(request.param, Path) else request.param.page)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    for about in (about for section in SECTIONS for about in options_of(type(section)).values()):
        if about.env:
            monkeypatch.delenv(about.env, raising=False)
    before = set(sys.modules)
    yield tmp_path
    for name in set(sys.modules) - before:
        if str(getattr(sys.modules[name], "__file__", "")).startswith(str(tmp_path)):
            del sys.modules[name]


# ---------------------------------------------------------------- the pages themselves


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_docutils_has_nothing_to_complain_of(page: Path) -> None:
    """Catches: a title underlined too short, a table out of line, a directive that only Sphinx knows."""
    assert tree(page)[1] == ""


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_to_files_that_are_there(page: Path) -> None:
    """Catches: a page that was renamed."""
    targets = [str(node["refuri"]) for node in tree(page)[0].findall(nodes.reference) if "refuri" in node]
    missing = [uri for uri in targets if ":" not in uri and not (page.parent / uri).is_file()]
    assert missing == []
    if page.name == "index.rst":
        assert set(targets) >= {other.name for other in page.parent.glob("*.rst")} - {page.name}


def test_the_first_thirty_lines_are_enough_to_begin() -> None:
    """Catches: an introduction that grows before the INI file and the three lines of Python."""
    start = README.read_text("utf-8").split("\n")[:30]
    configuration, program = blocks("ini", pages=(README,))[0], blocks("python", pages=(README,))[0]
    for block in (configuration, program):
        assert all(f"   {line}" in start for line in block.text.splitlines())
    assert (len(configuration.text.splitlines()), len(program.text.splitlines())) == (7, 3)  # with the file's name


def test_no_block_is_left_out() -> None:
    """Catches: a block in a language that no test here runs."""
    for block in blocks():
        if block.language == "text":
            assert "not tested with this package" in block.section, block.text
        elif not block.language:
            assert block.page == HOW, block.text  # drawings and formulas
        elif block.language in {"html", "javascript"}:
            assert block.page.name == "front-ends.rst"  # run in a browser by test_client_js.py
        else:
            # jinja: test_pages.py
            assert block.language in {"ini", "python", "console", "bash", "jinja"}, block.language


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_names_in_the_text_are_those_of_the_code(page: Path) -> None:
    """Catches: an option, a header, a variable, a field, a path or a make target that does not exist (any more)."""
    known = SOURCE.lower()
    for text in literals(page):
        if found := re.fullmatch(r"(?:\[(\w+)(?::\w+)?\] ?)?(?:(\w+)(?: = (.+))?)?", text):
            if found[1] or found[3]:
                assert takes(found[1], found[2], found[3]), text
        elif found := re.fullmatch(r"make (\w+).*", text):
            assert re.search(rf"^{found[1]}:", MAKEFILE, re.MULTILINE), text
        elif re.match(r"(conf|docs|tests)/", text):
            assert (ROOT / text).is_file(), text
        for name in re.findall(r"[A-Za-z]\w*_\w+|[A-Z][a-z]+(?:-[A-Z][A-Za-z]+)+", text):
            figure = name.removeprefix("wsgi_admission_").removesuffix("_total")  # for Prometheus
            forms = {name.lower(), name.lower().replace("-", "_"), figure}
            assert name in OTHERS or any(form in known for form in forms), name


def takes(title: str | None, name: str | None, value: str | None) -> bool:
    """Whether there is such a section, with such an option, that takes such a value; None stands for any."""
    if (title, name) == (None, "workers"):
        return True  # gunicorn's
    sections = [type(section) for section in SECTIONS if title in {None, section.SECTION}]
    kinds = [about.kind for cls in sections for key, about in options_of(cls).items() if name in {None, key}]
    return any(value is None or accepts(kind, value) for kind in kinds)


def accepts(kind: Kind[Any], text: str) -> bool:
    """Whether an option takes the value."""
    try:
        kind.parse(text)
    except ValueError:
        return False
    return True


def test_every_option_is_explained_with_its_default() -> None:
    """Catches: an option that is not documented, one that is no more, another default or variable."""
    shown: dict[str, dict[str, str]] = {}
    for section in tree(CONFIGURATION)[0].findall(nodes.section):
        title = section[0].astext().strip("[]")
        for item in section.findall(nodes.definition_list_item):
            variables = [node.astext().removeprefix("environment ") for node in item.findall(nodes.classifier)]
            shown.setdefault(title, {})[item[0].astext()] = "".join(variables)
            assert item[-1].astext(), title
    real = {
        section.title: {
            f"{name} = {section.text(name)}".rstrip(): about.env for name, about in options_of(type(section)).items()
        }
        for section in SECTIONS
    }
    assert shown == real


# ---------------------------------------------------------------- configurations and programs


@pytest.mark.parametrize(("desk", "block"), [(b, b) for b in blocks("ini")], indirect=["desk"], ids=reference)
def test_configurations_can_be_used(desk: Path, block: Block) -> None:
    """Catches: an option misspelt, two that do not fit together, a resolver that is not where the page has it."""
    text = block.text if "[route:" in block.text else f"{block.text}\n[route:x]\npath = /x\n"
    (desk / "x.ini").write_text(text, "utf-8")
    load_config("x.ini", {})


def kind(block: Block) -> str:
    """Return how a program in Python is to be run."""
    marks = {
        "wsgi_admission.client": "client",
        "install(globals()": "gunicorn",
        "serve(": "script",
        "run_simple(": "script",
        "def tier_of": "resolver",
        "logconfig_dict": "logging",
    }
    return next((kind for mark, kind in marks.items() if mark in block.text), "app")


def programs(wanted: str) -> list[Any]:
    """Return the programs of a kind as parameters of a test: once for the desk, once for itself."""
    return [pytest.param(b, b, id=b.name) for b in blocks("python") if kind(b) == wanted]


def drawn(send: Callable[[str, str], Reply | Any]) -> bytes:
    """Ask for a picture and return it, at once or out of the line."""
    reply = send("/api/generate", "POST")
    if str(reply.status).startswith("202"):
        urls = reply.json()
        until(lambda: send(urls["status_url"], "GET").json()["status"] == "completed")
        reply = send(urls["result_url"], "GET")
    assert str(reply.status).startswith("200"), reply
    body: bytes = reply.body
    return body


@pytest.mark.parametrize(("desk", "block"), programs("app"), indirect=["desk"])
def test_wrapped_apps_answer_behind_the_line(desk: Path, block: Block) -> None:
    """Catches: a name that cannot be imported, a parameter that does not exist, an app that is not wrapped."""
    names: dict[str, Any] = {"__name__": "a_page"}
    exec(compile(block.text, block.name, "exec"), names)  # noqa: S102 - the pages of this repository
    app = names.get("application", names.get("app"))
    middleware = app if isinstance(app, AdmissionMiddleware) else getattr(app, "wsgi_app", None)
    assert isinstance(middleware, AdmissionMiddleware)
    assert callable(app)
    try:
        assert drawn(lambda path, method: call(app, path, method)) == b"a picture"
        health = call(app, "/api/queue/health").json()["checks"]
        assert health["store"]["kind"] == ("memory" if "memory://" in block.text else "sqlite")
    finally:
        middleware.close()


@pytest.mark.parametrize(
    ("desk", "block"),
    [*programs("client"), *(pytest.param(b, b, id=b.name) for b in blocks("bash"))],
    indirect=["desk"],
)
def test_programs_that_call_the_site_get_their_answer(desk: Path, block: Block) -> None:
    """Catches: a client that does not wait, or waits for ever; a name that cannot be imported."""
    site = Gated(desk)
    site.gate.set()
    program = block.text.replace(SHOWN_URL, site.url)
    shell, python = ["bash", "-euo", "pipefail", "-c"], [sys.executable, "-W", "error", "-c"]
    try:
        ended = subprocess.run(
            [*(shell if block.language == "bash" else python), program],
            cwd=desk, env={**os.environ, "PYTHONPATH": str(ROOT)},
            capture_output=True, text=True, timeout=60, check=False,
        )  # fmt: skip
        done = site.metrics()["completed_requests"]
    finally:
        site.close()
    assert ended.returncode == 0, ended.stderr
    assert "200" in ended.stdout.splitlines()[-1]
    assert done >= 1, "it was queued"
    if block.language == "bash":
        assert (desk / "picture.png").read_bytes() == b"a picture of prompt=a lake"


@pytest.mark.parametrize(("desk", "block"), programs("resolver"), indirect=["desk"])
def test_resolvers_tell_who_is_asking(desk: Path, block: Block) -> None:
    """Catches: a resolver that returns what the middleware does not take, or knows everybody."""
    names: dict[str, Any] = {"__name__": "a_page"}
    exec(compile(block.text, block.name, "exec"), names)  # noqa: S102 - the pages of this repository
    tier_of = names["tier_of"]
    assert tier_of(environ("/")) in {None, "anonymous"}
    if block.file == "accounts.py":
        assert tier_of(environ("/", HTTP_AUTHORIZATION="Bearer a-key-of-ada")) == ("donor", "ada")
        assert tier_of(environ("/", HTTP_AUTHORIZATION="Bearer a-key-of-ben")) == ("registered", "ben")
        return
    app = names["app"]
    assert isinstance(app, Flask)
    client = app.test_client()
    with client.session_transaction() as session:
        session["account"] = "ada"
    cookie = client.get_cookie("session")
    assert cookie is not None
    assert tier_of(environ("/", HTTP_COOKIE=f"session={cookie.value}")) == ("registered", "ada")


@pytest.mark.parametrize(("desk", "block"), programs("script"), indirect=["desk"])
def test_servers_in_python_serve_the_line(desk: Path, block: Block) -> None:
    """Catches: a parameter that the server does not know; replays that never run there."""
    port = free_port()
    assert block.text.count("8000") == 1
    (desk / "served.py").write_text(block.text.replace("8000", str(port)), "utf-8")
    with server(desk, [sys.executable, "served.py"], f"http://127.0.0.1:{port}", RESOURCE_CPU_THRESHOLD="0%") as site:
        assert drawn(site.ask) == b"a picture"
        assert site.ask("/api/queue/metrics").json()["completed_requests"] == 1, "it was replayed"


# ---------------------------------------------------------------- commands


def make(words: list[str], shown: str) -> None:
    """Play ``make``: it runs these tests itself, so only that it knows the target is looked at."""
    assert re.search(rf"^{words[-1]}:", MAKEFILE, re.MULTILINE), words
    assert not shown


def start_gunicorn(desk: Path) -> Callable[[list[str], str], None]:
    """Return what plays ``gunicorn -c FILE APP``: a real one on a free port, which draws a picture."""

    def play(words: list[str], _shown: str) -> None:
        port = free_port()
        conf = (desk / words[2]).read_text("utf-8")
        assert conf.count("127.0.0.1:8000") == 1
        conf = conf.replace("127.0.0.1:8000", f"127.0.0.1:{port}")
        (desk / words[2]).write_text(f"control_socket_disable = True\n{conf}", "utf-8")
        command = [sys.executable, "-m", *words]
        with server(desk, command, f"http://127.0.0.1:{port}", RESOURCE_CPU_THRESHOLD="0%") as site:
            assert drawn(site.ask) == b"a picture"
            until(lambda: "only replays queued requests" in site.text(), "the process set aside")
            until(lambda: site.ask("/api/queue/health").json()["checks"]["workers"]["processes"] == 1, "its report")

    return play


def start_work(desk: Path) -> Callable[[list[str], str], None]:
    """Return what plays ``work CONFIG APP``: the command itself, which replays one request that waits."""

    def play(words: list[str], _shown: str) -> None:
        config = load_config(desk / words[1], {})
        queueing = replace(config, admission=replace(config.admission, mode=Mode.QUEUE_ALL))
        site = AdmissionMiddleware(refuse, queueing, replays=False)
        process = subprocess.Popen(
            [sys.executable, "-m", "wsgi_admission", *words],
            cwd=desk, env={**os.environ, "PYTHONPATH": str(ROOT)}, stderr=subprocess.PIPE, text=True,
        )  # fmt: skip
        try:
            urls = call(site, "/api/generate", "POST").json()
            until(lambda: call(site, urls["status_url"]).json()["status"] == "completed")
            assert call(site, urls["result_url"]).body == b"a picture"
            until(lambda: call(site, "/api/queue/health").json()["checks"]["workers"]["processes"] == 2, "both reports")
        finally:
            process.terminate()
            told = process.communicate(timeout=30)[1]
            site.close()
        assert process.returncode == 0, told

    return play


def refuse(_environ: Any, _start_response: Any) -> list[bytes]:
    """Be the app of a site whose requests run elsewhere."""
    raise AssertionError("it is not this process that replays")


def waits(url: str, state: str) -> None:
    """Wait for a ticket to be in a final state; one that is shown waiting may be further already."""
    if url and state == "completed":
        until(lambda: ask(url).json()["status"] == state, url)


@pytest.mark.parametrize("desk", [README], indirect=True)
def test_the_commands_of_the_readme(desk: Path) -> None:
    """Catches: a demo that does not start or says something else, a curl line or an answer that is not so."""
    output = desk / "demo.log"
    with output.open("wb") as stream:
        process = subprocess.Popen(
            [sys.executable, "-m", "wsgi_admission", "demo", "--port", "0"],
            cwd=ROOT, env={"PATH": "/usr/bin:/bin", "RESOURCE_CPU_THRESHOLD": "0%"},
            stdout=stream, stderr=subprocess.STDOUT,
        )  # fmt: skip
    try:
        until(lambda: process.poll() is not None or "--load 50" in output.read_text(), "the demo's welcome")
        printed = output.read_text()
        found = re.search(r"demo runs at (http://127\.0\.0\.1:\d+)", printed)
        assert found, printed

        def play_make(words: list[str], shown: str) -> None:
            assert "".join(words[:-1]) in {"make", "RESOURCE_CPU_THRESHOLD=0%make"}
            if shown:
                assert_like(printed.replace(found[1], SHOWN_URL), shown)
            make(words, "")

        terminal = Terminal(desk, found[1], waits, make=play_make, gunicorn=start_gunicorn(desk), work=start_work(desk))
        done = [command for block in blocks("console", pages=(README,)) for command in terminal.run(block.text)]
        assert len(done) == 12
        assert (desk / "picture.png").read_bytes().startswith(b"\x89PNG")
    finally:
        stop(process)


class Gated:
    """The site of docs/http.rst: one slot, and a picture is done when the gate is open."""

    def __init__(self, folder: Path, more: str = "") -> None:
        self.gate = threading.Event()
        config = folder / "http.ini"
        config.write_text(
            f"[admission]\nmode = queue_all\nmax_concurrent = 1\nworker_threads = 1\n"
            f"[store]\nurl = sqlite:///{folder}/http.db\n[route:pictures]\npath = /api/generate\n{more}"
        )
        self.middleware = AdmissionMiddleware(self.app, config)
        self._server = make_server("127.0.0.1", 0, self.middleware, threaded=True)
        self._thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.02})
        self._thread.start()
        self.url = f"http://127.0.0.1:{self._server.port}"
        # The page shows a site that has been running for longer than a moment.
        until(lambda: "cpu" in self.health()["checks"]["load"]["readings"], "the first sample")

    def app(self, env: dict[str, Any], start_response: Any) -> list[bytes]:
        """Draw."""
        assert self.gate.wait(30)
        start_response("200 OK", [("Content-Type", "text/plain")])
        return [b"a picture of " + env["wsgi.input"].read(int(env["CONTENT_LENGTH"]))]

    def health(self) -> Any:
        """Ask for the health."""
        return ask(f"{self.url}/api/queue/health").json()

    def metrics(self) -> Any:
        """Ask for the metrics."""
        return ask(f"{self.url}/api/queue/metrics").json()

    def settle(self, url: str, state: str) -> None:
        """Bring a ticket into a state; without one, see to it that the next waits behind one that runs."""
        if state == "completed":
            self.gate.set()
            until(lambda: ask(url).json()["status"] == state, url)
            until(lambda: self.health()["queue_length"] + self.health()["checks"]["slots"]["in_use"] == 0, "rest")
        elif not url:
            self.gate.clear()
            first = ask(f"{self.url}/api/generate", "POST", b"").json()
            until(lambda: ask(self.url + first["status_url"]).json()["status"] == "processing", "the first start")
            ask(f"{self.url}/api/generate", "POST", b"")

    def close(self) -> None:
        """End it."""
        self.gate.set()
        self._server.shutdown()
        self._thread.join(10)
        self._server.server_close()
        self.middleware.close()


@pytest.mark.parametrize("desk", [HTTP], indirect=True)
def test_the_examples_of_the_http_page(desk: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Catches: a field or a header that is not there, or is not documented; a status line that is another."""
    monkeypatch.setattr("wsgi_admission.load.CpuSensor.__call__", lambda _self: 0.4)  # not what this machine does
    monkeypatch.setattr("wsgi_admission.load.memory_share", lambda: 0.3)
    site = Gated(desk)
    try:
        terminal = Terminal(desk, site.url, site.settle)
        for block in blocks("console", pages=(HTTP,)):
            terminal.run(block.text)
    finally:
        site.close()


@pytest.mark.parametrize("desk", [DASHBOARD], indirect=True)
def test_the_examples_of_the_dashboard_page(desk: Path) -> None:
    """Catches: a call for scripts that does something else, or nothing without a cookie."""
    (options,) = blocks("ini", pages=(DASHBOARD,))
    site = Gated(desk, options.text)
    try:
        terminal = Terminal(desk, site.url)
        for block in blocks("console", pages=(DASHBOARD,)):
            terminal.run(block.text)
    finally:
        site.close()


@pytest.mark.parametrize(
    "desk", [p for p in PAGES if p not in {README, HTTP, OPERATING, DASHBOARD} and blocks("console", pages=(p,))],
    indirect=True, ids=lambda page: page.name,
)  # fmt: skip
def test_the_commands_of_the_other_pages(desk: Path, request: pytest.FixtureRequest) -> None:
    """Catches: a command or its output that is not so."""
    terminal = Terminal(desk, make=make, gunicorn=start_gunicorn(desk), work=start_work(desk))
    for block in blocks("console", pages=(request.node.callspec.params["desk"],)):
        terminal.run(block.text)


@pytest.mark.parametrize("desk", [OPERATING], indirect=True)
def test_the_commands_of_the_operating_page(desk: Path) -> None:
    """Catches: a command that prints something else, or does not do what the next one shows."""
    page = OPERATING.read_text("utf-8")
    running, failed = (re.search(rf"{short}-[-0-9a-f]{{27}}", page) for short in ("2f1c7f0e", "77aa01b2"))
    assert running
    assert failed
    config = load_config("admission.ini")
    now = time.time()
    with closing(open_store(config.store.url)) as store:

        def put(ticket_id: str = "", tier: str = "anonymous", client: str = "addr:198.51.100.7") -> None:
            made = ticket(client, route="pictures", tier=tier, created_at=now)
            store.put(replace(made, id=ticket_id or made.id), recording(), now=now)

        def start(ticket_id: str, ago: float) -> None:
            put(ticket_id)
            assert store.claim("w", now=now - ago, lease=3600, routes={"pictures"})

        start(failed[0], 150)
        store.finish(failed[0], 1, State.FAILED, None, now=now, error="It left.", keep_request=True)
        start("", 150)
        done = store.listing(State.PROCESSING)[0]
        store.finish(done.id, 1, State.COMPLETED, recording(), now=now)
        start(running[0], 12)
        put(tier="donor", client="user:ann")
        put()
        put(client="user:ben")
        store.report(Worker("w", "web1", 4711, 1, 1), now=now - 2)
    terminal = Terminal(desk)
    for block in blocks("console", pages=(OPERATING,)):
        terminal.run(block.text)


def test_every_line_of_gunicorns_log_is_an_object(tmp_path: Path) -> None:
    """Catches: a reader of JSON that stops at a line of gunicorn, of an app or of the queue itself."""
    (block,) = (block for block in blocks("python") if kind(block) == "logging")
    text = "[admission]\nmode = queue_all\nmax_concurrent = 1\n[route:raise]\npath = /raise\n[log]\nformat = json\n"
    with gunicorn(tmp_path, ini(tmp_path, text), settings=block.text) as site:
        failed = site.final(site.ask("/raise", "POST", b""))
        assert failed["status"] == "failed"
    events = [json.loads(line)["event"] for line in site.text().splitlines()]
    assert {"log", "ticket.queued", "ticket.failed"} <= set(events)


def test_every_gunicorn_configuration_is_started() -> None:
    """Catches: a gunicorn.conf.py without the command that starts it, which no test would run."""
    for block in blocks("python"):
        if kind(block) == "gunicorn":
            assert any(f"gunicorn -c {block.file}" in b.text for b in blocks("console", pages=(block.page,)))


def test_every_field_of_the_answers_is_explained() -> None:
    """Catches: a field that is shown and not told of."""
    explained = literals(HTTP)
    shown = re.findall(r'"(\w+)":', "".join(block.text for block in blocks("console", pages=(HTTP,))[:2]))
    fields = {name for name in shown if name not in {"message"}}
    assert len(fields) > 20
    assert fields - explained == set()


def test_every_event_of_the_log_is_explained() -> None:
    """Catches: an event that is not told of, or one that is no more."""
    event = r"(?:ticket|leases|worker|process|store)\.[a-z]+"
    logged = {"ticket.completed", "ticket.failed", "ticket.cancelled"}  # named after the state
    logged |= set(re.findall(rf'"({event})"', SOURCE))
    assert {text for text in literals(OPERATING) if re.fullmatch(event, text)} == logged


# ---------------------------------------------------------------- drawings and formulas


def test_the_moves_of_a_ticket_are_the_legal_ones() -> None:
    """Catches: a drawing of the states that is not the code's."""
    drawing = next(block.text for block in blocks("", pages=(HOW,)) if "-> completed" in block.text)
    moves, before = set(), [""]
    for line in drawing.splitlines():
        states = [state.strip() for state in re.split(r"\s{3,}", line.strip())[0].split("->")]
        states[0] = states[0] or before[-2]
        moves |= set(pairwise(states))
        before = states
    assert moves == {(a.value, b.value) for a, targets in LEGAL_MOVES.items() for b in targets}


def test_the_formulas_are_those_of_the_code() -> None:
    """Catches: a formula that was changed in one place only."""
    source = " ".join(SOURCE.split())
    formulas = [block.text for block in blocks("", pages=(HOW,)) if " = " in block.text]
    assert len(formulas) == 2
    for line in "\n".join(formulas).splitlines():
        assert " ".join(line.split()) in source, line


# ---------------------------------------------------------------- the tests of these tests


def test_a_shape_that_differs_is_told() -> None:
    """Catches: a comparison that lets anything pass."""
    whole, part = read_json('{"a": 1, "b": {"c": null}}'), read_json('{"a": 1, ...}')
    assert (whole[1], part) == (True, ({"a": 1}, False))
    compare_shape({"a": 2.5, "b": {"c": "x"}}, whole[0])
    compare_shape({"a": 2, "more": 1}, part[0], whole=False)
    for real in ({"a": 1}, {"a": 1, "b": {"c": 1}, "d": 1}, {"a": "1", "b": {"c": 1}}, {"a": 1, "b": {}}):
        with pytest.raises(AssertionError):
            compare_shape(real, whole[0])
    with pytest.raises(AssertionError):
        compare_shape({"status": "failed"}, {"status": "queued"})


def test_an_output_that_differs_is_told() -> None:
    """Catches: an ellipsis that takes whatever is printed."""
    assert_like("started 12 of 12\nand more\n", "started 50 of 50 ...")
    for real in ("stopped 12 of 12 and more", "so started 12 of 12 and more"):
        with pytest.raises(AssertionError):
            assert_like(real, "started 50 of 50 ...")
