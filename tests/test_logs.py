from __future__ import annotations

import json
import logging
from collections.abc import Iterator

import pytest

from wsgi_admission import logs
from wsgi_admission.errorlog import ErrorLog
from wsgi_admission.logs import event

log = logging.getLogger("wsgi_admission.test")
ID = "0b6f2c1e-8f0c-4f6e-9b1c-0123456789ab"


@pytest.fixture(autouse=True)
def _text_again(caplog: pytest.LogCaptureFixture) -> Iterator[None]:
    caplog.set_level(logging.INFO)
    yield
    logs.use("text")


def test_an_event_is_one_line_of_name_and_fields(caplog: pytest.LogCaptureFixture) -> None:
    """Catches: a field out of order, a field about nothing, a record that points to the logging module."""
    event(log, "ticket.started", ticket=ID, route="image", attempt=2, waited=1.25, nothing=None)
    assert caplog.messages == ["ticket.started ticket=0b6f2c1e route=image attempt=2 waited=1.25"]
    assert caplog.records[0].funcName == "test_an_event_is_one_line_of_name_and_fields"


def test_an_id_is_cut_wherever_it_stands(caplog: pytest.LogCaptureFixture) -> None:
    """Catches: an error's sentence that gives the id away with which anybody reads the result."""
    event(log, "store.failing", error=f"There is a ticket {ID} already.")
    logs.use("json")
    event(log, "store.failing", error=f"There is a ticket {ID} already.")
    assert "0b6f2c1e already" in caplog.messages[0]
    assert ID not in caplog.text


@pytest.mark.parametrize(
    "value",
    ["", "two words", "a=b", 'say "so"', "a\nticket.failed", "\x1b[2J", "\x7f", "\x9b1m", "\u2028", "\u202e", "\\"],
)
def test_no_value_can_pass_for_something_else(value: str, caplog: pytest.LogCaptureFixture) -> None:
    """Catches: a second line, a field of one's own, or a terminal's command in a log."""
    event(log, "ticket.queued", route=value)
    logs.use("json")
    event(log, "ticket.queued", route=value)
    text, structured = caplog.messages
    quoted = text.removeprefix("ticket.queued route=")
    assert quoted[0] == quoted[-1] == '"'
    assert json.loads(quoted) == json.loads(structured)["route"] == value
    assert (text + structured).isascii()
    assert (text + structured).isprintable()


def test_json_has_time_level_event_and_numbers(caplog: pytest.LogCaptureFixture) -> None:
    """Catches: a line that a program cannot use without knowing the format of the logging module."""
    logs.use("json")
    event(log, "process.drained", level=logging.WARNING, pid=12, seconds=0.5)
    data = json.loads(caplog.messages[0])
    assert data.pop("time").endswith("Z")
    assert data == {"level": "warning", "event": "process.drained", "pid": 12, "seconds": 0.5}


def test_an_event_that_nobody_wants_costs_nothing(caplog: pytest.LogCaptureFixture) -> None:
    """Catches: text made for every ticket on sites that log warnings only."""

    class Costly:
        def __str__(self) -> str:
            raise AssertionError("was looked at")

    caplog.set_level(logging.WARNING)
    event(log, "ticket.queued", route=Costly())
    assert caplog.messages == []


def test_what_is_no_event_is_json_too(caplog: pytest.LogCaptureFixture) -> None:
    """Catches: a log of which some lines are no JSON, so that its reader stops."""
    logs.use("json")
    formatter = logs.Formatter()
    event(log, "ticket.started", ticket=ID)
    log.info("process %d\nis started", 7)
    try:
        int("wrong")
    except ValueError:
        log.exception("a chore failed")
    lines = [formatter.format(record) for record in caplog.records]
    read = [json.loads(line) for line in lines if "\n" not in line]
    assert [one["event"] for one in read] == ["ticket.started", "log", "log"]
    assert (read[1]["message"], read[1]["logger"]) == ("process 7\nis started", "wsgi_admission.test")
    assert read[2]["traceback"].endswith("with base 10: 'wrong'")
    logs.use("text")
    assert formatter.format(caplog.records[1]).endswith("[INFO] process 7\nis started")


def test_what_only_looks_like_an_event_is_none(caplog: pytest.LogCaptureFixture) -> None:
    """Catches: an event that a visitor made up, or a second line of his own, through a line that an app logs."""
    forged = '{"time": "x", "event": "ticket.completed"}\nsecond \x1b[31m'
    logging.getLogger("shop").info("%s", forged)
    line = logs.Formatter(use="json").format(caplog.records[0])
    assert line.isprintable()
    assert (json.loads(line)["event"], json.loads(line)["message"]) == ("log", forged)
    event(log, "ticket.started", ticket=ID)
    assert json.loads(logs.Formatter(use="json").format(caplog.records[1]))["event"] == "log", "it is text"


def test_what_an_app_writes_cannot_steer_a_terminal(caplog: pytest.LogCaptureFixture) -> None:
    """Catches: colours, or a second line, out of a request."""
    with ErrorLog() as errors:
        errors.write("a\tb \x1b[31mred\rticket.failed \x9b\u2028ü\n")
    assert caplog.messages == ["a\tb \\u001b[31mred\\rticket.failed \\u009b\\u2028ü"]


def test_what_an_app_raises_passes_for_no_event_and_cannot_steer_a_terminal(caplog: pytest.LogCaptureFixture) -> None:
    """Catches: a line of its own, or a terminal's command, that a request put into an error of the app."""

    def app() -> None:
        raise RuntimeError("bad prompt \x1b[31m\n2026-01-01 12:00:00,000 [1] [INFO] line.resumed\r\u2028ü")

    try:
        app()
    except RuntimeError:
        log.exception("the replay failed")
    (record,) = caplog.records
    logging.Formatter().format(record)  # leaves its text in the record
    first, *rest = logs.Formatter().format(record).split("\n")
    assert first.endswith("[ERROR] the replay failed")
    assert rest[0] == "  Traceback (most recent call last):"
    assert rest[-2:] == [
        "  RuntimeError: bad prompt \\u001b[31m",
        "  2026-01-01 12:00:00,000 [1] [INFO] line.resumed\\r\\u2028ü",
    ]
    assert all(line.startswith("  ") and line.isprintable() for line in rest)
    assert logging.Formatter("%(message)s").format(record).split("\n")[1] == "Traceback (most recent call last):"
