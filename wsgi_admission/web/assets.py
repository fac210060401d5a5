"""The scripts and styles that our pages use, from the folder ``static``."""

from __future__ import annotations

import hashlib
import re
from functools import cache
from importlib.resources import files

from wsgi_admission.web.answers import Answer, Environ, not_modified, problem

_TYPES = {".js": "text/javascript; charset=utf-8", ".css": "text/css; charset=utf-8", ".svg": "image/svg+xml"}

_FOLDER = files("wsgi_admission.web").joinpath("static")

#: The script that sites put into pages of their own; without comments and needless space it is small.
CLIENT = "client.js"
#: A line of a script that stands for another file of the folder.
_INCLUDE = re.compile(r"^ *// include (\S+)\n", re.MULTILINE)
_COMMENT = re.compile(r"^\s*(?://.*\n)?", re.MULTILINE)
#: What keeps its spaces (strings, templates, regular expressions), or signs with spaces around them.
_SPACED = re.compile(r"""("(?:\\.|[^"\\])*"|`[^`]*`|(?<=[(= ])/(?:\\.|[^/\\])+/)|\s*([^\w\s$"`]+)\s*""")


def asset(environ: Environ, name: str) -> Answer:
    """Return a file of the folder; a browser keeps it and asks each time whether it is still the same."""
    found = _files().get(name)
    if found is None:
        return problem(404, "The queue API has no such address.")
    content_type, body, tag = found
    headers = [("ETag", tag), ("Cache-Control", "no-cache")]
    if not_modified(environ, tag):
        return Answer(304, headers, b"")
    return Answer(200, [("Content-Type", content_type), *headers], body)


@cache
def _files() -> dict[str, tuple[str, bytes, str]]:
    """Return name -> content type, content and entity tag.  They are few: what is asked for can be no other path."""
    found = {}
    for file in _FOLDER.iterdir():
        ending = file.name[file.name.rfind(".") :]
        if ending not in _TYPES:
            continue
        body = _text(file.name).encode()
        found[file.name] = (_TYPES[ending], body, f'"{hashlib.blake2b(body, digest_size=12).hexdigest()}"')
    return found


def _text(name: str) -> str:
    text = _INCLUDE.sub(lambda line: _text(line[1]), _FOLDER.joinpath(name).read_text("utf-8"))
    return _short(text) if name == CLIENT else text


def _short(script: str) -> str:
    """Return a script without what only its readers need."""
    script = _SPACED.sub(lambda part: part[1] or part[2], _COMMENT.sub("", script))
    return re.sub("[,;]+}", "}", script)
