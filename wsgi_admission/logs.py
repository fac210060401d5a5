"""One log line for each event: a fixed name and ``key=value`` fields, or one JSON object.

::

    ticket.queued ticket=0b6f2c1e route=image tier=donor
    {"time": "2026-01-01T12:00:00.250Z", "level": "info", "event": "ticket.queued", "ticket": "0b6f2c1e", ...}

What clients sent stands in no field but the names of routes and tiers.  Ids of tickets are cut to 8 characters:
whoever has the whole one may read an anonymous client's result.
"""

from __future__ import annotations

import copy
import json
import logging
import re
import time
from datetime import datetime, timezone

#: The formats of ``[log] format``.
FORMATS = ("text", "json")

_ID = re.compile(r"([0-9a-f]{8})(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}")
_BARE = re.compile(r"[\w.:/@+-]+")
# The attribute of a record that says whether its message is an event in JSON: the text of any other may be a visitor's.
_STRUCTURED = "wsgi_admission_json"
# Logging is the process's, and so is this.
_format = "text"


def use(format_name: str) -> None:
    """Write the events of this process in one of the `FORMATS` from now on."""
    global _format  # noqa: PLW0603 - see above
    _format = format_name


def event(logger: logging.Logger, name: str, *, level: int = logging.INFO, **fields: object) -> None:
    """Log that something happened.

    :param name: what, for programs: ``ticket.queued``.
    :param fields: the facts; those that are None are left out.  Numbers stay numbers in JSON, the rest is its text.
    """
    if not logger.isEnabledFor(level):
        return
    values = {key: _plain(value) for key, value in fields.items() if value is not None}
    structured = _format == "json"
    if structured:
        line = json.dumps(
            {"time": _iso(time.time()), "level": logging.getLevelName(level).lower(), "event": name, **values}
        )
    else:
        line = " ".join([name, *(f"{key}={_text(value)}" for key, value in values.items())])
    logger.log(level, "%s", line, stacklevel=2, extra={_STRUCTURED: structured})


class Formatter(logging.Formatter):
    """Formats all records, also those of others: what is no event becomes one, named ``log``, in JSON.

    :param use: one of the `FORMATS`; ``[log] format`` of this process if it is not said.
    """

    def __init__(self, *, use: str = "") -> None:
        super().__init__("%(asctime)s [%(process)d] [%(levelname)s] %(message)s")
        self._format = use

    def format(self, record: logging.LogRecord) -> str:
        """Return one line, and in text the traceback after it, indented: what is raised may quote a visitor."""
        if (self._format or _format) != "json":
            # The text that one formatter leaves in a record is taken by the others, whatever they make of it.
            ours = copy.copy(record)
            if record.exc_info:
                lines = self.formatException(record.exc_info).split("\n")
                ours.exc_text = "\n".join(f"  {printable(line)}" for line in lines)
            return super().format(ours)
        message = record.getMessage()
        if getattr(record, _STRUCTURED, False):
            return message
        data = {
            "time": _iso(record.created),
            "level": record.levelname.lower(),
            "event": "log",
            "logger": record.name,
            "message": message,
        }
        if record.exc_info:
            data["traceback"] = self.formatException(record.exc_info)
        return json.dumps(data)


def printable(line: str) -> str:
    """Return the line with nothing in it that could steer a terminal, or pass for another line."""
    return "".join(c if c.isprintable() or c == "\t" else json.dumps(c)[1:-1] for c in line)


def _iso(seconds: float) -> str:
    return datetime.fromtimestamp(seconds, timezone.utc).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def _plain(value: object) -> int | float | str:
    return value if isinstance(value, int | float) else _ID.sub(r"\1", str(value))


def _text(value: float | str) -> str:
    """Return the value, quoted where it could be taken for something else; then nothing but printable ASCII is left."""
    if isinstance(value, float):
        return f"{value:.3f}".rstrip("0").rstrip(".")
    text = str(value)
    return text if _BARE.fullmatch(text) else json.dumps(text)
