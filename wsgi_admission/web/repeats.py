"""Repeated requests: what a client means by an Idempotency-Key, and when two requests are the same.

The field is that of draft-ietf-httpapi-idempotency-key-header: a string of structured fields (RFC 9651), in quotation
marks.  Clients that send it bare are common, so that is taken too.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping
from typing import Any, NamedTuple

from wsgi_admission.errors import InvalidKey
from wsgi_admission.receiving import Body

#: The longest key, in characters.
LONGEST_KEY = 255
#: Bytes hashed at once; a multipart body up to `WHOLE` bytes is read as a whole instead, to leave its boundary out.
BLOCK = 256 * 1024
WHOLE = 64 * 2**20

_QUOTED = re.compile(r'"((?:[ !#-\[\]-~]|\\["\\])+)"')
_BARE = re.compile(r"[!#-\[\]-~]+")  # no blank, no quotation mark, no backslash
_BOUNDARY = re.compile(r'multipart/[^;]+;.*boundary="?([^";,]{1,70})', re.IGNORECASE)


class Key(NamedTuple):
    """What a client calls its request, and what it asked for under that name.

    :param value: the Idempotency-Key, or an empty string.
    :param digest: the same for two requests that ask for the same.
    """

    value: str
    digest: str


NO_KEY = Key("", "")


def key_of(environ: Mapping[str, Any], body: Body | None) -> Key:
    """Return the key of a request.

    :raises InvalidKey: when the Idempotency-Key is none that this understands.
    """
    value: str = environ.get("HTTP_IDEMPOTENCY_KEY", "").strip(" \t")
    if not value:
        return NO_KEY
    quoted = _QUOTED.fullmatch(value)
    key = re.sub(r"\\(.)", r"\1", quoted[1]) if quoted else value
    if len(key) > LONGEST_KEY or not (quoted or _BARE.fullmatch(value)):
        raise InvalidKey
    return Key(key, _digest(environ, body))


def _digest(environ: Mapping[str, Any], body: Body | None) -> str:
    """Return what is the same for two requests that ask for the same: method, address and body.

    The boundary of a multipart body is left out: most clients make another one for each attempt.  ``body`` is at its
    beginning before and after.
    """
    found = hashlib.sha256()
    for name in ("REQUEST_METHOD", "SCRIPT_NAME", "PATH_INFO", "QUERY_STRING"):
        found.update(environ.get(name, "").encode("utf-8", "surrogateescape") + b"\n")
    if body is not None:
        boundary = _BOUNDARY.match(environ.get("CONTENT_TYPE", ""))
        if boundary and body.length <= WHOLE:
            for part in body.file.read().split(boundary[1].encode("latin-1", "replace")):
                found.update(hashlib.sha256(part).digest())
        else:
            while block := body.file.read(BLOCK):
                found.update(block)
        body.file.seek(0)
    return found.hexdigest()
