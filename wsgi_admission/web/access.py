"""Who may act as an operator: programs by the admin token itself, people by a cookie that they get for it.

Nothing is kept about who is signed in, so any process of any machine knows them.  The cookie is the time at which it
runs out, with a signature that only the token makes; whoever changes the token signs everybody out.
"""

from __future__ import annotations

import hashlib
import hmac
import secrets
from collections.abc import Callable
from http.cookies import CookieError, SimpleCookie
from typing import NamedTuple

from wsgi_admission.web.answers import Environ

#: Seconds for which somebody is signed in.
SESSION = 12 * 3600.0
COOKIE = "wsgi_admission_operator"


class Operator(NamedTuple):
    """Somebody who may act.

    :param form_token: what the forms of a signed-in person must bring along, as a cookie is sent with what another
        site makes a browser do; empty for a program, which sends the admin token each time.
    """

    form_token: str


class Access:
    """Knows operators.

    :param token: the admin token; empty: there are no operators.
    :param clock: returns seconds since the epoch.
    """

    def __init__(self, token: str, *, clock: Callable[[], float]) -> None:
        self.possible = bool(token)
        self._token = token.encode()
        self._clock = clock

    def operator(self, environ: Environ) -> Operator | None:
        """Return the operator who sent a request, or None."""
        if not self.possible:
            return None
        kind, _, given = environ.get("HTTP_AUTHORIZATION", "").partition(" ")
        if kind.lower() == "bearer":
            return Operator("") if self._is_token(given.strip()) else None
        session = _cookie(environ)
        until, _, nonce = session.rpartition(".")[0].partition(".")
        signature = self._sign("session", f"{until}.{nonce}")
        if not hmac.compare_digest(session.encode(), f"{until}.{nonce}.{signature}".encode()):
            return None
        return Operator(self._sign("form", session)) if self._clock() < int(until) else None

    def sign_in(self, environ: Environ, given: str, *, path: str) -> str | None:
        """Return the Set-Cookie of whoever gives the right token, or None.

        :param path: below which the cookie is sent back.
        """
        if not self.possible or not self._is_token(given):
            return None
        content = f"{int(self._clock() + SESSION)}.{secrets.token_hex(8)}"
        return _set_cookie(environ, f"{content}.{self._sign('session', content)}", SESSION, path)

    def sign_out(self, environ: Environ, *, path: str) -> str:
        """Return the Set-Cookie of whoever leaves."""
        return _set_cookie(environ, "", 0, path)

    def may_change(self, operator: Operator, form_token: str) -> bool:
        """Whether a change was asked for by the operator, and not by another site in the operator's browser."""
        return hmac.compare_digest(operator.form_token.encode(), form_token.encode())

    def _is_token(self, given: str) -> bool:
        return hmac.compare_digest(given.encode("utf-8", "replace"), self._token)

    def _sign(self, purpose: str, content: str) -> str:
        return hmac.new(self._token, f"{purpose}\0{content}".encode(), hashlib.sha256).hexdigest()


def _cookie(environ: Environ) -> str:
    try:
        found = SimpleCookie(environ.get("HTTP_COOKIE", "")).get(COOKIE)
    except CookieError:
        return ""
    return "" if found is None else found.value


def _set_cookie(environ: Environ, value: str, seconds: float, path: str) -> str:
    secure = "; Secure" if environ.get("wsgi.url_scheme") == "https" else ""
    return f"{COOKIE}={value}; Path={path}; Max-Age={seconds:.0f}; HttpOnly; SameSite=Strict{secure}"
