"""The scripts and styles that our pages use, from the folder ``static``."""

from __future__ import annotations

import hashlib
import re
from functools import cache
from importlib.resources import files

from wsgi_admission.web.answers import Answer, Environ, not_modified, problem

_TYPES = {".js": "text/javascript; charset=utf-8", ".css": "text/css; charset=utf-8", ".svg": "image/svg+xml"}

#: The script that sites put into pages of their own; without comments and needless space it is small.
CLIENT = "client.js"
_COMMENT = re.compile(r"^\s*(?://.*\n)?| // .*", re.MULTILINE)
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
    for file in files("wsgi_admission.web").joinpath("static").iterdir():
        ending = file.name[file.name.rfind(".") :]
        if ending not in _TYPES:
            continue
        body = file.read_bytes()
        if file.name == CLIENT:
            body = _short(body.decode()).encode()
        found[file.name] = (_TYPES[ending], body, f'"{hashlib.blake2b(body, digest_size=12).hexdigest()}"')
    return found


def _short(script: str) -> str:
    """Return a script without what only its readers need."""
    script = _SPACED.sub(lambda part: part[1] or part[2], _COMMENT.sub("", script))
    return re.sub("[,;]+}", "}", re.sub(r"(?<=\W)\((\w+)\)=>", r"\1=>", script))
